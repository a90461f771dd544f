//! What a manifest names outside of itself: files with secrets, folders with recipes.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use mvm_model::manifest::{Manifest, ManifestError, SecretSource, is_folder};
use mvm_protocol::SecretBytes;
use mvm_protocol::api::{DeployMode, DeployRequest, SecretValue};

/// The longest secret, in bytes: what a machine is given of secrets and configuration together.
const MAX_SECRET: u64 = 128 << 10;

/// Reads everything that the agent needs besides the manifest.
///
/// # Errors
/// The first mistake, at the key of the file or folder.
pub fn gather(manifest: &Manifest, folder: &Path, mode: DeployMode) -> Result<DeployRequest, ManifestError> {
    let mut deployment = manifest.deployment.clone();
    for image in manifest.image_folders() {
        let path = self::image(&image.folder, folder).map_err(|why| manifest.error_at(&image.key(), why))?;
        deployment.pools[image.pool].image = path;
    }
    let read = |source: &SecretSource| {
        let of_file = secret(&source.scope, &source.key, &folder.join(&source.file));
        of_file.map_err(|why| manifest.error_at(&source.file_key(), why))
    };
    let secrets = manifest.secrets.as_ref().map(|sources| sources.iter().map(read).collect());
    Ok(DeployRequest { deployment, secrets: secrets.transpose()?, mode })
}

/// An image as the agent takes it: a built-in recipe's name, or the absolute path of a recipe's folder.
///
/// # Errors
/// Where the folder has no recipe.
pub fn image(image: &str, folder: &Path) -> Result<String, String> {
    if is_folder(image) { recipe(&folder.join(image)) } else { Ok(image.to_owned()) }
}

/// The absolute path of a recipe's folder.
fn recipe(folder: &Path) -> Result<String, String> {
    let description = folder.join("image.toml");
    if !description.is_file() {
        return Err(format!("there is no recipe: {} is missing", description.display()));
    }
    let absolute: io::Result<PathBuf> = folder.canonicalize();
    let absolute = absolute.map_err(|error| format!("cannot find {}: {error}", folder.display()))?;
    absolute
        .into_os_string()
        .into_string()
        .map_err(|path| format!("{} is not UTF-8: rename it", path.display()))
}

/// A secret out of a file, with where that is.
///
/// # Errors
/// What cannot be a secret, or be read, in words.
pub fn secret(scope: &str, key: &str, file: &Path) -> Result<SecretValue, String> {
    let shown = format!("the secret's file {}", file.display());
    let cannot = |error: io::Error| format!("cannot read {shown}: {error}");
    let value = secret_value(File::open(file).map_err(cannot)?, &shown)?;
    let absolute = std::path::absolute(file).map_err(cannot)?;
    let file = absolute.into_os_string().into_string().ok();
    Ok(SecretValue { scope: scope.to_owned(), key: key.to_owned(), value, file, account: None })
}

/// A secret's value, out of what is `shown`; editors end a file with a newline that does not belong to it.
///
/// # Errors
/// What cannot be a secret, or be read, in words.
pub fn secret_value(from: impl Read, shown: &str) -> Result<SecretBytes, String> {
    let mut bytes = Vec::new();
    let read = from.take(MAX_SECRET + 2).read_to_end(&mut bytes);
    read.map_err(|error| format!("cannot read {shown}: {error}"))?;
    if bytes.ends_with(b"\n") {
        bytes.pop();
    }
    if bytes.is_empty() {
        return Err(format!("{shown} is empty"));
    }
    if bytes.len() as u64 > MAX_SECRET {
        return Err(format!("{shown} is larger than {} KiB", MAX_SECRET >> 10));
    }
    Ok(SecretBytes::new(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn one_newline_at_the_end_is_not_part_of_a_secret() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        for (content, value) in [("a", "a"), ("a\n", "a"), ("a\n\n", "a\n"), ("\na", "\na"), (" ", " ")] {
            fs::write(&file, content).unwrap();
            assert_eq!(secret("default", "X", &file).unwrap().value.expose(), value.as_bytes());
        }
        for empty in ["", "\n"] {
            fs::write(&file, empty).unwrap();
            assert!(secret("default", "X", &file).unwrap_err().contains("empty"));
        }
    }

    #[test]
    fn a_secret_has_a_largest_size() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        let mut content = vec![b'x'; 128 << 10];
        content.push(b'\n');
        fs::write(&file, &content).unwrap();
        assert_eq!(secret("default", "X", &file).unwrap().value.expose().len(), 128 << 10);
        content.push(b'x');
        fs::write(&file, &content).unwrap();
        assert!(secret("default", "X", &file).unwrap_err().contains("larger than 128 KiB"));
    }

    #[test]
    fn a_recipe_is_a_folder_with_a_description() {
        let folder = tempfile::tempdir().unwrap();
        assert!(recipe(folder.path()).unwrap_err().contains("image.toml is missing"));
        fs::write(folder.path().join("image.toml"), "").unwrap();
        let path = recipe(&folder.path().join(".")).unwrap();
        assert_eq!(Path::new(&path), folder.path().canonicalize().unwrap());
    }
}
