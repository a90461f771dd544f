//! Builds an image into a folder and prints where its files are, for trying one out by hand:
//! `cargo run -p mvm-image --example build-image -- minimal /tmp/images`. The image is a built-in recipe's
//! name, or a path with a `/` in it.

use std::path::{Path, PathBuf};
use std::{env, error, process};

use mvm_image::{ImageSource, ImageStore, cache_folder};

fn main() -> Result<(), Box<dyn error::Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [image, folder] = arguments.as_slice() else {
        eprintln!("usage: build-image IMAGE FOLDER");
        process::exit(2);
    };
    let source = if image.contains('/') {
        ImageSource::Path(PathBuf::from(image))
    } else {
        ImageSource::BuiltIn(image.clone())
    };
    let root = Path::new(folder);
    let store = ImageStore::open(root, &cache_folder(root))?;
    let revision = store.build(&source, &|step| eprintln!("{step:?}"))?;
    println!("{revision:#?}");
    Ok(())
}
