//! From what a pool names as its image to everything that its build needs, checked.

use std::path::{Path, PathBuf};
use std::{fs, io};

use mvm_model::service::{ServiceUser, ServicesFile};
use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::error::{At, Error, Result};
use crate::lock::{LOCK_FILE, Lock, LockedPackage, NPM_LOCK_FILE};
use crate::npm::{self, NpmPackage};
use crate::recipe::{RECIPE_FILE, Recipe, RecipeError};

/// The recipes inside the program: recipe, file, content.
static BUILT_IN: &[(&str, &str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/recipes.rs"));

/// What an image is built from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageSource {
    /// A recipe inside the program, by its name.
    BuiltIn(String),
    /// A folder with an `image.toml` and an `image.lock`.
    Path(PathBuf),
}

impl ImageSource {
    /// The names of the built-in recipes.
    pub fn built_in() -> Vec<&'static str> {
        let recipes = BUILT_IN.iter().filter(|(_, file, _)| *file == RECIPE_FILE);
        recipes.map(|(recipe, _, _)| *recipe).collect()
    }
}

/// A recipe's folder, inside the program or on disk.
#[derive(Debug)]
enum Folder {
    BuiltIn(String),
    Path(PathBuf),
}

impl Folder {
    fn open(source: &ImageSource) -> Result<Self> {
        match source {
            ImageSource::Path(path) => Ok(Self::Path(path.clone())),
            ImageSource::BuiltIn(image) => Self::open_built_in(image),
        }
    }

    /// One by its name, or by `name@version` where its recipe says that version.
    fn open_built_in(image: &str) -> Result<Self> {
        let (name, version) = image.split_once('@').map_or((image, None), |(name, v)| (name, Some(v)));
        if !ImageSource::built_in().contains(&name) {
            return Err(Error::UnknownImage {
                name: name.to_owned(),
                known: ImageSource::built_in().join(", "),
            });
        }
        let folder = Self::BuiltIn(name.to_owned());
        match version {
            Some(version) if folder.recipe()?.version.as_deref() != Some(version) => {
                let known = folder.recipe()?.version.map(|version| format!("{name}@{version}"));
                let known = known.unwrap_or_else(|| name.to_owned());
                Err(Error::UnknownVersion { image: image.to_owned(), known })
            }
            _ => Ok(folder),
        }
    }

    /// A file's place, for messages.
    fn place(&self, file: impl AsRef<Path>) -> PathBuf {
        match self {
            Self::BuiltIn(name) => Path::new("images").join(name).join(file),
            Self::Path(path) => path.join(file),
        }
    }

    fn read(&self, file: &Path) -> io::Result<Vec<u8>> {
        match self {
            Self::BuiltIn(name) => BUILT_IN
                .iter()
                .find(|(recipe, path, _)| recipe == name && Path::new(path) == file)
                .map(|(_, _, content)| content.to_vec())
                .ok_or_else(|| io::ErrorKind::NotFound.into()),
            Self::Path(path) => fs::read(path.join(file)),
        }
    }

    fn read_text(&self, file: &str) -> Result<String> {
        let bytes = self.read(Path::new(file)).at(self.place(file))?;
        String::from_utf8(bytes)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "is not UTF-8 text"))
            .at(self.place(file))
    }

    fn recipe(&self) -> Result<Recipe> {
        Ok(Recipe::parse(&self.place(RECIPE_FILE), &self.read_text(RECIPE_FILE)?)?)
    }
}

/// Everything a build needs.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The image's name.
    pub(crate) image: String,
    /// For the snapshot archive.
    pub(crate) timestamp: String,
    /// The kernel's package.
    pub(crate) kernel: LockedPackage,
    /// What the root is made of.
    pub(crate) root: RootSpec,
}

/// What a root file system is made of, and nothing else: its digest stands for the root.
#[derive(Debug, Serialize)]
pub(crate) struct RootSpec {
    pub(crate) packages: Vec<LockedPackage>,
    pub(crate) files: Vec<RootFile>,
    pub(crate) links: Vec<RootLink>,
    pub(crate) python_bytecode: Vec<PathBuf>,
    pub(crate) services: ServicesFile,
    /// Not written where absent, so that roots without keep their digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) npm: Option<NpmRoot>,
}

/// What of a root is npm's.
#[derive(Debug, Serialize)]
pub(crate) struct NpmRoot {
    pub(crate) packages: Vec<NpmPackage>,
    pub(crate) prune: Vec<String>,
    pub(crate) strip: Vec<PathBuf>,
}

/// A file of a recipe's own.
#[derive(Debug, Serialize)]
pub(crate) struct RootFile {
    pub(crate) target: PathBuf,
    pub(crate) mode: u32,
    pub(crate) digest: Digest,
    #[serde(skip)]
    pub(crate) content: Vec<u8>,
}

/// A symbolic link.
#[derive(Debug, Serialize)]
pub(crate) struct RootLink {
    pub(crate) path: PathBuf,
    pub(crate) to: String,
}

impl Plan {
    /// Reads a recipe, those that it builds on, and its lock.
    pub(crate) fn load(source: &ImageSource) -> Result<Self> {
        let folder = Folder::open(source)?;
        let lock_file = folder.place(LOCK_FILE);
        let layers = layers(folder)?;
        let (top_folder, top) = layers.last().ok_or_else(|| no_layers(source))?;
        let lock = match top_folder.read(Path::new(LOCK_FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::Lock { file: lock_file, reason: "is missing".to_owned() });
            }
            _ => Lock::parse(&lock_file, &top_folder.read_text(LOCK_FILE)?)?,
        };
        check_packages(&layers, &lock, &lock_file)?;
        let (kernels, packages): (Vec<_>, Vec<_>) =
            lock.packages.into_iter().partition(|package| package.name == lock.kernel);
        let kernel = kernels.into_iter().next().ok_or_else(|| no_layers(source))?;
        Ok(Self {
            image: top.name.clone(),
            timestamp: lock.timestamp,
            kernel,
            root: RootSpec {
                packages,
                files: files(&layers)?,
                links: links(&layers),
                python_bytecode: layers.iter().flat_map(|(_, r)| r.python_bytecode.clone()).collect(),
                services: services(&layers)?,
                npm: npm_root(&layers)?,
            },
        })
    }
}

/// The packages that a recipe and those that it builds on ask for by name, in order.
///
/// # Errors
/// Where one of the recipes is wrong.
pub fn requested_packages(source: &ImageSource) -> Result<Vec<String>> {
    let layers = layers(Folder::open(source)?)?;
    let mut names: Vec<_> = layers.into_iter().flat_map(|(_, recipe)| recipe.packages).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// The packages of npm, as `name@version`, that a recipe and those that it builds on ask for, in order.
///
/// # Errors
/// Where one of the recipes is wrong.
pub fn requested_npm_packages(source: &ImageSource) -> Result<Vec<String>> {
    let layers = layers(Folder::open(source)?)?;
    let tables = layers.into_iter().filter_map(|(_, recipe)| recipe.npm);
    let mut names: Vec<_> = tables.flat_map(|npm| npm.packages).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

type Layer = (Folder, Recipe);

/// The recipe and those that it builds on, the lowest first.
fn layers(folder: Folder) -> Result<Vec<Layer>> {
    let recipe = folder.recipe()?;
    let mut layers = vec![(folder, recipe)];
    while let Some((_, Recipe { base: Some(base), .. })) = layers.last() {
        let on = |folder: &Folder| matches!(folder, Folder::BuiltIn(name) if name == base);
        if layers.iter().any(|(folder, _)| on(folder)) {
            return Err(Error::CircularBase { name: base.clone() });
        }
        let folder = Folder::open(&ImageSource::BuiltIn(base.clone()))?;
        let recipe = folder.recipe()?;
        layers.push((folder, recipe));
    }
    layers.reverse();
    Ok(layers)
}

fn no_layers(source: &ImageSource) -> Error {
    crate::error::malformed(&format!("{source:?}"), "has no recipe or no kernel")
}

fn check_packages(layers: &[Layer], lock: &Lock, lock_file: &Path) -> Result<()> {
    let requested = layers.iter().flat_map(|(_, recipe)| &recipe.packages);
    match requested.into_iter().find(|name| lock.package(name).is_none()) {
        None => Ok(()),
        Some(name) => Err(Error::Lock {
            file: lock_file.to_owned(),
            reason: format!("the package `{name}` of the recipe is not in it"),
        }),
    }
}

/// What the highest recipe's lock has of npm, where any recipe asks for something.
fn npm_root(layers: &[Layer]) -> Result<Option<NpmRoot>> {
    let tables: Vec<_> = layers.iter().filter_map(|(_, recipe)| recipe.npm.as_ref()).collect();
    let Some((folder, _)) = layers.last().filter(|_| !tables.is_empty()) else { return Ok(None) };
    let file = folder.place(NPM_LOCK_FILE);
    let text = match folder.read(Path::new(NPM_LOCK_FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::Lock { file, reason: "is missing".to_owned() });
        }
        read => read.at(&file)?,
    };
    let requested: Vec<_> = tables.iter().flat_map(|npm| &npm.packages).map(String::as_str).collect();
    Ok(Some(NpmRoot {
        packages: npm::locked(&file, &text, &requested)?,
        prune: tables.iter().flat_map(|npm| npm.prune.clone()).collect(),
        strip: tables.iter().flat_map(|npm| npm.strip.clone()).collect(),
    }))
}

fn files(layers: &[Layer]) -> Result<Vec<RootFile>> {
    let mut files = Vec::new();
    for (folder, recipe) in layers {
        for (index, entry) in recipe.files.iter().enumerate() {
            let content = folder
                .read(entry.source.get_ref())
                .map_err(|e| recipe.bad_file(index, format!("{}: {e}", entry.source.get_ref().display())))?;
            files.push(RootFile {
                target: entry.target().to_owned(),
                mode: entry.mode(),
                digest: Digest::of(&content),
                content,
            });
        }
    }
    Ok(files)
}

fn links(layers: &[Layer]) -> Vec<RootLink> {
    let entries = layers.iter().flat_map(|(_, recipe)| &recipe.links);
    let links = entries.flat_map(|entry| {
        let link = |name| RootLink { path: entry.folder().join(name), to: entry.to.clone() };
        entry.names.iter().map(link)
    });
    links.collect()
}

/// Services and users of all recipes, those of the lower ones first, and the highest one's prewarm: it knows what is
/// worth warming up.
fn services(layers: &[Layer]) -> Result<ServicesFile, RecipeError> {
    let mut all = ServicesFile::default();
    for (_, recipe) in layers {
        for user in &recipe.users {
            let same = |known: &&ServiceUser| known.name == user.name || known.uid == user.uid;
            if let Some(known) = all.users.iter().find(same) {
                let message = format!(
                    "`{}` ({}) is also a user of the recipe it builds on, as `{}` ({})",
                    user.name, user.uid, known.name, known.uid
                );
                return Err(recipe.bad_image("base", message));
            }
        }
        all.users.extend(recipe.users.iter().cloned());
        if let Some(service) =
            recipe.services.iter().find(|service| all.services.iter().any(|known| known.name == service.name))
        {
            let message = format!("there too is a service `{}`", service.name);
            return Err(recipe.bad_image("base", message));
        }
        recipe.check_known_users(&all.users)?;
        all.services.extend(recipe.services.iter().cloned());
        if let Some(prewarm) = &recipe.prewarm {
            all.prewarm = Some(prewarm.get_ref().clone());
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvm_model::service::ReseedSignal;

    #[test]
    fn every_built_in_image_is_complete() {
        for name in ImageSource::built_in() {
            let plan = Plan::load(&ImageSource::BuiltIn(name.to_owned())).unwrap();
            assert_eq!(plan.image, name);
        }
    }

    #[test]
    fn a_version_that_is_asked_for_is_the_recipe_s() {
        let load = |image: &str| Plan::load(&ImageSource::BuiltIn(image.to_owned()));
        assert_eq!(load("python@3.11").unwrap().image, "python");
        let said = |image: &str| load(image).unwrap_err().to_string();
        assert_eq!(said("python@3.10"), "there is no image `python@3.10` in this mvm: it has python@3.11");
        assert_eq!(said("minimal@1"), "there is no image `minimal@1` in this mvm: it has minimal");
        assert!(said("none@1").contains("no built-in image `none`"));
    }

    #[test]
    fn a_prewarm_comes_to_the_services() {
        let folder = tempfile::tempdir().unwrap();
        let recipe = r#"
            [image]
            name = "app"
            base = "minimal"
            [[users]]
            name = "web"
            uid = 1000
            [prewarm]
            command = ["/usr/bin/warm", "up"]
            user = "web"
            reseed_signal = "SIGUSR2"
        "#;
        fs::write(folder.path().join(RECIPE_FILE), recipe).unwrap();
        let lock = BUILT_IN.iter().find(|(recipe, file, _)| (*recipe, *file) == ("minimal", LOCK_FILE));
        fs::write(folder.path().join(LOCK_FILE), lock.unwrap().2).unwrap();
        let plan = Plan::load(&ImageSource::Path(folder.path().to_owned())).unwrap();
        let prewarm = plan.root.services.prewarm.unwrap();
        assert_eq!(prewarm.command, ["/usr/bin/warm", "up"]);
        assert_eq!((prewarm.user.as_deref(), prewarm.timeout_seconds), (Some("web"), 60));
        assert_eq!(prewarm.reseed_signal, Some(ReseedSignal::Usr2));
        let minimal = Plan::load(&ImageSource::BuiltIn("minimal".to_owned())).unwrap();
        assert_eq!(minimal.root.services.prewarm, None);
    }
}
