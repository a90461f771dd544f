//! `image.toml`: what an image is made of, parsed with the place of every mistake.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use mvm_model::service::{Adapter, Prewarm, Service, ServiceUser};
use serde::Deserialize;
use toml::Spanned;

use crate::npm;

/// The file name of a recipe in its folder.
pub const RECIPE_FILE: &str = "image.toml";

/// A mistake in a recipe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}:{line}: {key}: {message}", file.display())]
pub struct RecipeError {
    /// The recipe.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// The key, as `services[0].user`.
    pub key: String,
    /// What is wrong with it.
    pub message: String,
}

/// What an `image.toml` says, checked by itself: what it refers to may still be missing.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The file it was read from, for messages.
    file: PathBuf,
    /// Its text, for the lines of messages.
    text: String,
    /// The image's name.
    pub name: String,
    /// What `name@version` asks for.
    pub version: Option<String>,
    /// The built-in recipe it builds on.
    pub base: Option<String>,
    /// The packages it asks for by name; the lock has what these need.
    pub packages: Vec<String>,
    /// Folders of the image whose Python sources are compiled ahead.
    pub python_bytecode: Vec<PathBuf>,
    /// What it asks of npm.
    pub npm: Option<Npm>,
    /// Files copied from the recipe's folder.
    pub files: Vec<FileEntry>,
    /// Symbolic links.
    pub links: Vec<LinkEntry>,
    /// Service users.
    pub users: Vec<ServiceUser>,
    /// Services.
    pub services: Vec<Service>,
    /// What warms up a machine before others are cloned from it.
    pub prewarm: Option<Spanned<Prewarm>>,
}

/// Packages of npm, which come to `/usr/lib/node_modules` with all that they depend on by the lock. Their install scripts
/// are not run.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Npm {
    /// Each as `name@version`.
    pub packages: Vec<String>,
    /// Patterns of paths below `node_modules` that are left out: files, or folders with all that is in them.
    #[serde(default)]
    pub prune: Vec<String>,
    /// Programs below `node_modules` that lose what only debuggers read of them.
    #[serde(default)]
    pub strip: Vec<PathBuf>,
}

/// A file copied from the recipe's folder into the root.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Relative to the recipe's folder.
    pub source: Spanned<PathBuf>,
    /// Absolute, in the image.
    target: Spanned<PathBuf>,
    /// Permissions in octal; `0644` where absent.
    #[serde(default)]
    mode: Option<Spanned<String>>,
}

impl FileEntry {
    /// Where it goes in the image; absolute, without `..`.
    pub fn target(&self) -> &Path {
        self.target.get_ref()
    }

    /// Its permission bits.
    pub fn mode(&self) -> u32 {
        self.mode.as_ref().and_then(|mode| parse_mode(mode.get_ref())).unwrap_or(0o644)
    }
}

/// Symbolic links in one folder to one target. A link yields to what a package brought.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkEntry {
    /// What the links say.
    pub to: String,
    /// The folder they are made in; absolute.
    folder: Spanned<PathBuf>,
    /// Their names.
    pub names: Vec<String>,
}

impl LinkEntry {
    /// The folder they are made in; absolute, without `..`.
    pub fn folder(&self) -> &Path {
        self.folder.get_ref()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    image: ImageTable,
    #[serde(default)]
    npm: Option<Spanned<Npm>>,
    #[serde(default)]
    files: Vec<FileEntry>,
    #[serde(default)]
    links: Vec<LinkEntry>,
    #[serde(default)]
    users: Vec<Spanned<ServiceUser>>,
    #[serde(default)]
    services: Vec<Spanned<Service>>,
    #[serde(default)]
    prewarm: Option<Spanned<Prewarm>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ImageTable {
    name: Spanned<String>,
    #[serde(default)]
    version: Option<String>,
    #[serde(default)]
    base: Option<String>,
    #[serde(default)]
    packages: Vec<Spanned<String>>,
    #[serde(default)]
    python_bytecode: Vec<Spanned<PathBuf>>,
}

impl Recipe {
    /// Reads a recipe; `file` is for messages.
    ///
    /// # Errors
    /// The first mistake, with its line and key.
    pub fn parse(file: &Path, text: &str) -> Result<Self, RecipeError> {
        let place = Place { file, text };
        let deserializer = toml::Deserializer::parse(text).map_err(|e| place.toml_error(&e, "(syntax)"))?;
        let document: Document = serde_path_to_error::deserialize(deserializer)
            .map_err(|e| place.toml_error(e.inner(), &key(e.path())))?;
        document.check(place)?;
        Ok(Self {
            file: file.to_owned(),
            text: text.to_owned(),
            name: document.image.name.into_inner(),
            version: document.image.version,
            base: document.image.base,
            packages: unspanned(document.image.packages),
            python_bytecode: unspanned(document.image.python_bytecode),
            npm: document.npm.map(Spanned::into_inner),
            files: document.files,
            links: document.links,
            users: unspanned(document.users),
            services: unspanned(document.services),
            prewarm: document.prewarm,
        })
    }

    /// A mistake that shows only when the file number `index` is read.
    pub(crate) fn bad_file(&self, index: usize, message: String) -> RecipeError {
        let place = Place { file: &self.file, text: &self.text };
        let span = self.files.get(index).map_or(0..0, |entry| entry.source.span());
        place.error(span, format!("files[{index}].source"), message)
    }

    /// A mistake in the image's own table that shows only with the recipes it builds on.
    pub(crate) fn bad_image(&self, key: &str, message: String) -> RecipeError {
        let place = Place { file: &self.file, text: &self.text };
        let at = self.text.find(key).unwrap_or(0);
        place.error(at..at, format!("image.{key}"), message)
    }
}

/// A path as it is in the file: values with a span have one more step in it.
fn key(path: &serde_path_to_error::Path) -> String {
    path.to_string().replace(".$__serde_spanned_private_value", "")
}

fn unspanned<T>(items: Vec<Spanned<T>>) -> Vec<T> {
    items.into_iter().map(Spanned::into_inner).collect()
}

/// Where in which text a mistake is.
#[derive(Clone, Copy)]
struct Place<'a> {
    file: &'a Path,
    text: &'a str,
}

impl Place<'_> {
    fn error(&self, span: Range<usize>, key: String, message: String) -> RecipeError {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        RecipeError { file: self.file.to_owned(), line, key, message }
    }

    fn toml_error(&self, error: &toml::de::Error, key: &str) -> RecipeError {
        self.error(error.span().unwrap_or(0..0), key.to_owned(), error.message().to_owned())
    }
}

impl Document {
    fn check(&self, place: Place<'_>) -> Result<(), RecipeError> {
        self.check_image(place)?;
        self.check_npm(place)?;
        self.check_files(place)?;
        self.check_users(place)?;
        self.check_services(place)?;
        self.check_prewarm(place)
    }

    fn check_image(&self, place: Place<'_>) -> Result<(), RecipeError> {
        let ImageTable { name, packages, python_bytecode, .. } = &self.image;
        if !is_name(name.get_ref()) {
            return Err(place.error(name.span(), "image.name".into(), bad_name(name.get_ref())));
        }
        for package in packages {
            if !is_package_name(package.get_ref()) {
                let message = format!("`{}` is not the name of a Debian package", package.get_ref());
                return Err(place.error(package.span(), "image.packages".into(), message));
            }
        }
        for folder in python_bytecode {
            check_target(folder.get_ref())
                .map_err(|message| place.error(folder.span(), "image.python_bytecode".into(), message))?;
        }
        Ok(())
    }

    fn check_npm(&self, place: Place<'_>) -> Result<(), RecipeError> {
        let Some(spanned) = &self.npm else { return Ok(()) };
        let Npm { packages, prune, strip } = spanned.get_ref();
        let error =
            |field: &str, message: String| Err(place.error(spanned.span(), format!("npm.{field}"), message));
        if let Some(package) = packages.iter().find(|package| npm::exact(package).is_none()) {
            return error("packages", format!("`{package}` is not of the form `name@1.2.3`"));
        }
        if let Some((pattern, reason)) = npm::bad_pattern(prune) {
            return error("prune", format!("`{pattern}`: {reason}"));
        }
        let is_inside = |path: &PathBuf| path.components().all(|part| matches!(part, Component::Normal(_)));
        if let Some(path) = strip.iter().find(|path| !is_inside(path)) {
            return error("strip", format!("`{}` is no path below node_modules", path.display()));
        }
        Ok(())
    }

    fn check_files(&self, place: Place<'_>) -> Result<(), RecipeError> {
        for (index, FileEntry { source, target, mode }) in self.files.iter().enumerate() {
            let key = |field: &str| format!("files[{index}].{field}");
            let inside = |part: Component| matches!(part, Component::Normal(_) | Component::CurDir);
            if !source.get_ref().components().all(inside) {
                let message = "must be a path inside the recipe's folder".to_owned();
                return Err(place.error(source.span(), key("source"), message));
            }
            check_target(target.get_ref())
                .map_err(|message| place.error(target.span(), key("target"), message))?;
            if let Some(mode) = mode.as_ref().filter(|mode| parse_mode(mode.get_ref()).is_none()) {
                let message = format!("`{}` is not of the form \"0644\"", mode.get_ref());
                return Err(place.error(mode.span(), key("mode"), message));
            }
        }
        for (index, LinkEntry { folder, names, .. }) in self.links.iter().enumerate() {
            check_target(folder.get_ref())
                .map_err(|message| place.error(folder.span(), format!("links[{index}].folder"), message))?;
            if let Some(name) = names.iter().find(|name| name.is_empty() || name.contains('/')) {
                let message = format!("`{name}` is not a file name");
                return Err(place.error(folder.span(), format!("links[{index}].names"), message));
            }
        }
        Ok(())
    }

    fn check_users(&self, place: Place<'_>) -> Result<(), RecipeError> {
        let mut names = BTreeSet::from(["root", "nobody"]);
        let mut uids = BTreeSet::new();
        for (index, user) in self.users.iter().enumerate() {
            let ServiceUser { name, uid } = user.get_ref();
            let error = |field: &str, message: String| {
                Err(place.error(user.span(), format!("users[{index}].{field}"), message))
            };
            if !is_name(name) {
                return error("name", bad_name(name));
            }
            if !names.insert(name) {
                return error("name", format!("there is already a user `{name}`"));
            }
            if !(1000..60000).contains(uid) {
                return error("uid", format!("{uid} is not in 1000..59999"));
            }
            if !uids.insert(uid) {
                return error("uid", format!("{uid} is already another user's"));
            }
        }
        Ok(())
    }

    fn check_services(&self, place: Place<'_>) -> Result<(), RecipeError> {
        let mut names = BTreeSet::new();
        for (index, spanned) in self.services.iter().enumerate() {
            let service = spanned.get_ref();
            let error = |field: &str, message: String| {
                Err(place.error(spanned.span(), format!("services[{index}].{field}"), message))
            };
            if !is_name(&service.name) {
                return error("name", bad_name(&service.name));
            }
            if !names.insert(&service.name) {
                return error("name", format!("there is already a service `{}`", service.name));
            }
            if !is_command(&service.command) {
                return error("command", BAD_COMMAND.to_owned());
            }
            if let Some(secret) = service.env_from_secrets.iter().find(|text| !is_secret(text)) {
                return error("env_from_secrets", format!("`{secret}` is not of the form `scope/KEY`"));
            }
            let config = service.environment.get("OPENCLAW_CONFIG_PATH");
            if service.adapter == Some(Adapter::OpenClaw)
                && !config.is_some_and(|path| path.starts_with("/data/"))
            {
                let message = "OPENCLAW_CONFIG_PATH in its environment must name a file on /data";
                return error("adapter", message.to_owned());
            }
            let Some(ready) = &service.ready else { continue };
            let checks = [ready.http.is_some(), ready.tcp.is_some(), ready.command.is_some()];
            if checks.into_iter().filter(|given| *given).count() != 1 {
                return error("ready", "give exactly one of `http`, `tcp`, `command`".to_owned());
            }
            if ready.command.as_ref().is_some_and(|command| !is_command(command)) {
                return error("ready.command", BAD_COMMAND.to_owned());
            }
        }
        Ok(())
    }

    fn check_prewarm(&self, place: Place<'_>) -> Result<(), RecipeError> {
        let Some(spanned) = &self.prewarm else { return Ok(()) };
        let prewarm = spanned.get_ref();
        let error = |field: &str, message: &str| {
            Err(place.error(spanned.span(), format!("prewarm.{field}"), message.to_owned()))
        };
        if !is_command(&prewarm.command) {
            return error("command", BAD_COMMAND);
        }
        if prewarm.timeout_seconds == 0 {
            return error("timeout_seconds", "give it at least 1 second");
        }
        Ok(())
    }
}

impl Recipe {
    /// Checks what the recipe's services and its prewarm need of all recipes together: that their users exist.
    pub(crate) fn check_known_users(&self, known: &[ServiceUser]) -> Result<(), RecipeError> {
        let is_known = |name: &str| name == "root" || known.iter().any(|user| user.name == name);
        let place = Place { file: &self.file, text: &self.text };
        let error = |span: Range<usize>, key: String, user: &str| {
            Err(place.error(span, key, format!("there is no user `{user}`: add it as [[users]]")))
        };
        for (index, service) in self.services.iter().enumerate() {
            if let Some(user) = service.user.as_ref().filter(|user| !is_known(user)) {
                let at = find_service(&self.text, index);
                return error(at..at, format!("services[{index}].user"), user);
            }
        }
        if let Some(prewarm) = &self.prewarm
            && let Some(user) = prewarm.get_ref().user.as_ref().filter(|user| !is_known(user))
        {
            return error(prewarm.span(), "prewarm.user".to_owned(), user);
        }
        Ok(())
    }
}

/// Where the line `[[services]]` number `index` begins.
fn find_service(text: &str, index: usize) -> usize {
    text.match_indices("[[services]]").nth(index).map_or(0, |(at, _)| at)
}

const BAD_COMMAND: &str = "give a program by its absolute path, and its arguments";

fn bad_name(name: &str) -> String {
    format!("`{name}` is not a valid name: use 1 to 32 of a-z, 0-9 and -, beginning with a letter")
}

fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    name.len() <= 32 && name.starts_with(|c: char| c.is_ascii_lowercase()) && name.bytes().all(allowed)
}

fn is_package_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b);
    name.len() >= 2 && name.bytes().all(allowed)
}

fn is_command(command: &[String]) -> bool {
    command.first().is_some_and(|program| program.starts_with('/') || program == "mvm-guest")
}

fn is_secret(text: &str) -> bool {
    text.split_once('/')
        .is_some_and(|(scope, key)| !scope.is_empty() && !key.is_empty() && !key.contains('/'))
}

fn parse_mode(text: &str) -> Option<u32> {
    u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777)
}

/// Places that are mounted over in a machine: what an image has there is never seen.
const MOUNTED: [&str; 7] = ["/proc", "/sys", "/dev", "/run", "/tmp", "/data", "/etc/mvm-config"];

fn check_target(target: &Path) -> Result<(), String> {
    let plain = |part: Component| matches!(part, Component::RootDir | Component::Normal(_));
    if !target.is_absolute() || !target.components().all(plain) || target == Path::new("/") {
        return Err("must be an absolute path without `..`".to_owned());
    }
    match MOUNTED.iter().find(|mounted| target.starts_with(mounted)) {
        Some(mounted) => Err(format!("nothing of the image is seen under {mounted} in a machine")),
        None => Ok(()),
    }
}
