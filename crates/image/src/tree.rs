//! A root file system while it is put together, as a folder on the host.
//!
//! Everything in it belongs to root and nothing is set-user-id. Paths are resolved as inside the
//! root: no symbolic link of a package leads out of it.

use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use tar::EntryType;

use crate::deb::DataArchive;
use crate::error::{At, Result, malformed};

/// The kernel's own limit.
const MAX_SYMLINKS: usize = 40;

/// Folders of packages that machines have no use for.
const LEFT_OUT: [&str; 6] = [
    "/usr/share/bash-completion",
    "/usr/share/doc-base",
    "/usr/share/info",
    "/usr/share/lintian",
    "/usr/share/locale",
    "/usr/share/man",
];

pub(crate) struct Tree {
    root: PathBuf,
}

impl Tree {
    /// In an empty folder.
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Where a path of the image is on the host, with folders made on the way. The last part is not
    /// followed.
    fn locate(&self, path: &Path) -> Result<PathBuf> {
        let place = self.locate_within(path, &mut 0);
        place.at(self.root.join(path.strip_prefix("/").unwrap_or(path)))
    }

    fn locate_within(&self, path: &Path, followed: &mut usize) -> io::Result<PathBuf> {
        let mut at = self.root.clone();
        let mut parts = path.components().peekable();
        while let Some(part) = parts.next() {
            match part {
                Component::RootDir => at.clone_from(&self.root),
                Component::CurDir | Component::Prefix(_) => {}
                Component::ParentDir if at == self.root => {}
                Component::ParentDir => drop(at.pop()),
                Component::Normal(name) => {
                    at.push(name);
                    if parts.peek().is_some() {
                        self.enter(&mut at, followed)?;
                    }
                }
            }
        }
        Ok(at)
    }

    /// Makes sure that `at` is a folder, following it where it is a link.
    fn enter(&self, at: &mut PathBuf, followed: &mut usize) -> io::Result<()> {
        match fs::symlink_metadata(&at) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => make_folder(at, 0o755),
            Err(error) => Err(error),
            Ok(metadata) if metadata.is_symlink() => {
                *followed += 1;
                if *followed > MAX_SYMLINKS {
                    return Err(io::Error::other("too many levels of symbolic links"));
                }
                let link = fs::read_link(&at)?;
                let parent = at.parent().and_then(|parent| parent.strip_prefix(&self.root).ok());
                let target = Path::new("/").join(parent.unwrap_or(Path::new(""))).join(link);
                *at = self.locate_within(&target, followed)?;
                self.enter(at, followed)
            }
            Ok(_) => Ok(()),
        }
    }

    /// Makes a folder; one that is there keeps what it has.
    pub(crate) fn folder(&self, path: impl AsRef<Path>, mode: u32) -> Result<()> {
        let place = self.locate(path.as_ref())?;
        match fs::symlink_metadata(&place) {
            // `/lib` of a package is the folder that the root's link of that name leads to.
            Ok(metadata) if metadata.is_symlink() => Ok(()),
            Ok(metadata) if metadata.is_dir() => set_mode(&place, mode).at(&place),
            _ => make_folder(&place, mode).at(&place),
        }
    }

    /// Makes a file, in the place of what is there.
    pub(crate) fn file(&self, path: impl AsRef<Path>, mode: u32, content: &mut dyn Read) -> Result<()> {
        let place = self.vacate(path.as_ref())?;
        let mut file = File::create_new(&place).at(&place)?;
        io::copy(content, &mut file).at(&place)?;
        set_mode(&place, mode).at(&place)
    }

    /// Makes a text file that all may read.
    pub(crate) fn text(&self, path: &str, content: &str) -> Result<()> {
        self.file(path, 0o644, &mut content.as_bytes())
    }

    /// Makes a symbolic link, in the place of what is there.
    pub(crate) fn link(&self, path: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        let place = self.vacate(path.as_ref())?;
        symlink(to.as_ref(), &place).at(&place)
    }

    /// Whether anything has this path.
    pub(crate) fn has(&self, path: &Path) -> Result<bool> {
        Ok(fs::symlink_metadata(self.locate(path)?).is_ok())
    }

    /// The path on the host of a file of the image, for tools that read it there.
    pub(crate) fn on_host(&self, path: impl AsRef<Path>) -> Result<PathBuf> {
        self.locate(path.as_ref())
    }

    /// Where a file can be made: no file or link is there any more.
    fn vacate(&self, path: &Path) -> Result<PathBuf> {
        let place = self.locate(path)?;
        match fs::remove_file(&place) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at(&place),
            _ => Ok(place),
        }
    }

    /// Unpacks a package's files; its maintainer scripts are not run.
    pub(crate) fn unpack(&self, package: &str, mut archive: DataArchive) -> Result<()> {
        for entry in archive.entries().at(package)? {
            let mut entry = entry.at(package)?;
            let path = Path::new("/").join(entry.path().at(package)?);
            if is_left_out(&path) {
                continue;
            }
            let mode = entry.header().mode().at(package)? & 0o1777;
            match entry.header().entry_type() {
                EntryType::Directory => self.folder(&path, mode)?,
                EntryType::Regular | EntryType::Continuous => {
                    self.file(&path, mode, &mut entry)?;
                }
                kind @ (EntryType::Symlink | EntryType::Link) => {
                    let missing = || malformed(package, "has a link that leads nowhere");
                    let to = entry.link_name().at(package)?.ok_or_else(missing)?;
                    if kind == EntryType::Symlink {
                        self.link(&path, to)?;
                    } else {
                        let from = self.locate(&to)?;
                        fs::hard_link(from, self.vacate(&path)?).at(&path)?;
                    }
                }
                other => {
                    let reason = format!("has a file of unknown kind {other:?}: {}", path.display());
                    return Err(malformed(package, reason));
                }
            }
        }
        Ok(())
    }
}

/// Documentation and translations are left out; the licences stay.
fn is_left_out(path: &Path) -> bool {
    if let Ok(documentation) = path.strip_prefix("/usr/share/doc") {
        return documentation.components().count() > 1 && !path.ends_with("copyright");
    }
    LEFT_OUT.iter().any(|folder| path.starts_with(folder))
}

fn make_folder(path: &Path, mode: u32) -> io::Result<()> {
    fs::create_dir(path)?;
    set_mode(path, mode)
}

/// Whatever the umask is.
fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_link_leads_out_of_the_root() {
        let folder = tempfile::tempdir().unwrap();
        let outside = folder.path().join("outside");
        let root = folder.path().join("root");
        fs::create_dir_all(&outside).unwrap();
        fs::create_dir_all(&root).unwrap();
        let tree = Tree::new(&root);
        tree.link("/absolute", &outside).unwrap();
        tree.link("/relative", "../outside").unwrap();
        tree.file("/absolute/a", 0o644, &mut &b"a"[..]).unwrap();
        tree.file("/relative/b", 0o644, &mut &b"b"[..]).unwrap();
        tree.file("/../c", 0o644, &mut &b"c"[..]).unwrap();
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        assert_eq!(fs::read(root.join("outside/b")).unwrap(), b"b");
        assert_eq!(fs::read(root.join("c")).unwrap(), b"c");
        tree.link("/loop", "loop").unwrap();
        assert!(tree.file("/loop/d", 0o644, &mut &b"d"[..]).is_err());
    }

    #[test]
    fn packages_go_through_the_links_of_the_merged_root() {
        let folder = tempfile::tempdir().unwrap();
        let tree = Tree::new(folder.path());
        tree.folder("/usr/bin", 0o755).unwrap();
        tree.link("/bin", "usr/bin").unwrap();
        tree.folder("/bin/", 0o755).unwrap();
        tree.file("/bin/sh", 0o755, &mut &b"new"[..]).unwrap();
        assert_eq!(fs::read(folder.path().join("usr/bin/sh")).unwrap(), b"new");
        assert!(tree.has(Path::new("/usr/bin/sh")).unwrap());
    }

    #[test]
    fn licences_stay() {
        assert!(!is_left_out(Path::new("/usr/share/doc/libc6/copyright")));
        assert!(is_left_out(Path::new("/usr/share/doc/libc6/changelog.gz")));
        assert!(is_left_out(Path::new("/usr/share/man/man1/sh.1.gz")));
        assert!(!is_left_out(Path::new("/usr/share/zoneinfo")));
    }
}
