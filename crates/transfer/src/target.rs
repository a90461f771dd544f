//! Where a copy lands, decided as `docker cp` decides it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The folder that a copy may write below, and as what.
#[derive(Debug)]
pub struct Target {
    /// Opened, so that it stays the same one.
    pub(crate) folder: File,
    /// For messages.
    pub(crate) path: PathBuf,
    pub(crate) place: Place,
}

/// What becomes of the first part of the names in a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// It is replaced by this one name.
    As(OsString),
    /// It goes: what is in the copied folder lands in the target folder itself.
    Contents,
    /// It stays: an archive of somebody's.
    Archive,
}

impl Target {
    /// Where something called `name` lands that is copied to `path`; without a name only what is in it is copied.
    ///
    /// | `path` is | a file or link | a folder |
    /// |---|---|---|
    /// | a folder | goes into it by its name | goes into it by its name; without one, what is in it does |
    /// | a file | takes its place | is refused |
    /// | nothing, in a folder | gets this name; refused with a `/` at the end | gets this name |
    ///
    /// # Errors
    /// [`Error::NoFolder`], [`Error::NotAFolder`].
    pub fn find(path: &Path, name: Option<&OsStr>, is_folder: bool) -> Result<Self> {
        let slash = path.as_os_str().as_encoded_bytes().ends_with(b"/");
        let found = match path.metadata() {
            Ok(found) => Some(found),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(Error::at(path)(error)),
        };
        match found {
            Some(found) if found.is_dir() => {
                let place = name.map_or(Place::Contents, |name| Place::As(name.to_owned()));
                return Self::open(path, place);
            }
            Some(_) if is_folder || slash => return Err(Error::NotAFolder { path: path.to_owned() }),
            None if slash && !is_folder => return Err(Error::NoFolder { path: path.to_owned() }),
            _ => {}
        }
        // A link to a file stays one: the file is replaced.
        let real =
            if found.is_some() { path.canonicalize().map_err(Error::at(path))? } else { path.to_owned() };
        let Some(name) = real.file_name() else {
            return Err(Error::NoFolder { path: path.to_owned() });
        };
        let parent = match real.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        Self::open(parent, Place::As(name.to_owned()))
    }

    /// A folder that an archive is unpacked into.
    ///
    /// # Errors
    /// [`Error::NoFolder`], [`Error::NotAFolder`].
    pub fn for_archive(path: &Path) -> Result<Self> {
        match path.metadata() {
            Ok(found) if !found.is_dir() => Err(Error::NotAFolder { path: path.to_owned() }),
            _ => Self::open(path, Place::Archive),
        }
    }

    fn open(path: &Path, place: Place) -> Result<Self> {
        match File::open(path) {
            Ok(folder) => Ok(Self { folder, path: path.to_owned(), place }),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(Error::NoFolder { path: path.to_owned() })
            }
            Err(error) => Err(Error::at(path)(error)),
        }
    }

    /// Where the copy is to be found when it is made, for messages.
    pub fn path(&self) -> PathBuf {
        match &self.place {
            Place::As(name) => self.path.join(name),
            Place::Contents | Place::Archive => self.path.clone(),
        }
    }

    /// Brings everything that was written to its file system to where it lasts.
    ///
    /// # Errors
    /// The disk's.
    pub fn flush(&self) -> Result<()> {
        rustix::fs::syncfs(&self.folder).map_err(|error| Error::at(&self.path)(error.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_lands_where_docker_puts_it() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| PathBuf::from(format!("{}/{name}", folder.path().display()));
        std::fs::create_dir(at("folder")).unwrap();
        std::fs::write(at("file"), "").unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        let name = OsStr::new("x");
        let land = |to: &str, name, is_folder| Target::find(&at(to), name, is_folder).map(|t| t.path());

        for is_folder in [false, true] {
            assert_eq!(land("folder", Some(name), is_folder).unwrap(), at("folder/x"));
            assert_eq!(land("folder/", Some(name), is_folder).unwrap(), at("folder/x"));
            assert_eq!(land("new", Some(name), is_folder).unwrap(), at("new"));
            assert!(matches!(land("no/new", Some(name), is_folder), Err(Error::NoFolder { .. })));
        }
        assert_eq!(land("folder", None, true).unwrap(), at("folder"));
        assert_eq!(land("new", None, true).unwrap(), at("new"));
        assert_eq!(land("new/", Some(name), true).unwrap(), at("new"));
        assert!(matches!(land("new/", Some(name), false), Err(Error::NoFolder { .. })));
        assert_eq!(land("file", Some(name), false).unwrap(), at("file").canonicalize().unwrap());
        assert_eq!(land("link", Some(name), false).unwrap(), at("file").canonicalize().unwrap());
        assert!(matches!(land("file", Some(name), true), Err(Error::NotAFolder { .. })));
        assert!(land("file/", Some(name), false).is_err());
        assert!(Target::for_archive(&at("file")).is_err());
        assert!(Target::for_archive(&at("new")).is_err());
    }
}
