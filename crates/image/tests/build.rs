//! Builds the smallest image from the distribution's archive, for real, and looks into what came out.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use mvm_image::{BuildStep, Error, ImageSource, ImageStore, Revision, guest};
use mvm_model::service::ServicesFile;

/// Packages are fetched once for all tests, and all parts built once.
fn shared_cache() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/image-cache")
}

fn build(root: &Path, cache: &Path, source: &ImageSource) -> Revision {
    ImageStore::open(root, cache).unwrap().build(source, &|_| ()).unwrap()
}

fn minimal() -> ImageSource {
    ImageSource::BuiltIn("minimal".to_owned())
}

/// Flips a bit of a file, as a disk does it that rots.
fn rot(path: &Path) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let (at, mut byte) = (file.metadata().unwrap().len() / 2, [0]);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

/// The shared cache's packages in a cache of its own, which has no parts yet.
fn packages_only(folder: &Path) -> PathBuf {
    let cache = folder.join("cache");
    fs::create_dir_all(cache.join("packages")).unwrap();
    for entry in fs::read_dir(shared_cache().join("packages")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "deb" || extension == "tgz") {
            let name = path.file_name().unwrap();
            fs::copy(&path, cache.join("packages").join(name)).unwrap();
        }
    }
    cache
}

fn extract(rootfs: &Path, to: &Path) {
    let output =
        Command::new("fsck.erofs").arg(format!("--extract={}", to.display())).arg(rootfs).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn the_smallest_image_has_what_a_machine_needs() {
    let folder = tempfile::tempdir().unwrap();
    let revision = build(folder.path(), &shared_cache(), &minimal());
    assert_eq!(revision.image, "minimal");

    let kernel = fs::read(&revision.kernel).unwrap();
    // A 64-bit little-endian executable for x86-64.
    assert_eq!(kernel[..6], *b"\x7fELF\x02\x01");
    assert_eq!(kernel[16..20], [2, 0, 62, 0]);

    let initrd = fs::read(&revision.initrd).unwrap();
    let holds = |text: &[u8]| initrd.windows(text.len()).any(|window| window == text);
    assert!(holds(b"/lib/modules/virtio_blk.ko\n") && holds(b"/lib/modules/erofs.ko\n"));
    assert!(holds(&guest::binary()[..1000]), "mvm-guest is not in the initrd");

    let root = folder.path().join("root");
    extract(&revision.rootfs, &root);
    for mount_point in ["proc", "sys", "dev", "run", "tmp", "data", "etc/mvm-config", "var/log"] {
        assert!(root.join(mount_point).is_dir(), "/{mount_point} is missing");
    }
    assert_eq!(fs::read_link(root.join("bin")).unwrap(), Path::new("usr/bin"));
    assert_eq!(fs::read_link(root.join("usr/bin/sh")).unwrap(), Path::new("busybox"));
    assert!(fs::read_to_string(root.join("etc/os-release")).unwrap().contains("bookworm"));
    let said = Command::new("chroot").arg(&root).args(["/bin/sh", "-c", "echo $((6 * 7))"]).output();
    assert_eq!(said.unwrap().stdout, b"42\n");
    assert!(fs::metadata(&revision.rootfs).unwrap().len() < 30 << 20);
}

#[test]
fn the_same_recipe_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    // The one with everything in it: a base's base, files, users, bytecode.
    let worker = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/echo/worker");
    let source = ImageSource::Path(worker);
    let first = build(&folder.path().join("a"), &shared_cache(), &source);
    assert_eq!(first.services.services[0].name, "echo");
    let cache = packages_only(folder.path());
    let second = build(&folder.path().join("b"), &cache, &source);
    assert_eq!(first.id, second.id);
    ImageStore::open(&folder.path().join("b"), &cache).unwrap().verify(&second.id).unwrap();

    let root = folder.path().join("root");
    extract(&second.rootfs, &root);
    let services = fs::read(root.join("etc/mvm/services.json")).unwrap();
    assert_eq!(serde_json::from_slice::<ServicesFile>(&services).unwrap(), first.services);
    let passwd = fs::read_to_string(root.join("etc/passwd")).unwrap();
    assert!(passwd.contains("echo:x:1000:1000::/data/home/echo:"));
    assert!(root.join("usr/lib/python3.11/json/__pycache__/decoder.cpython-311.pyc").is_file());
}

#[test]
fn packages_of_npm_come_as_their_lock_says() {
    let folder = tempfile::tempdir().unwrap();
    let source = ImageSource::Path(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/npm"));
    let first = build(&folder.path().join("a"), &shared_cache(), &source);
    let second = build(&folder.path().join("b"), &packages_only(folder.path()), &source);
    assert_eq!(first.id, second.id);
    let root = folder.path().join("root");
    extract(&second.rootfs, &root);
    let modules = root.join("usr/lib/node_modules");
    let files = |package: &str| {
        let entries = fs::read_dir(modules.join(package)).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(files("is-odd"), ["LICENSE", "index.js", "package.json"]);
    assert_eq!(files("is-number"), ["README.md", "index.js", "package.json"]);
    let package = fs::read_to_string(modules.join("is-number/package.json")).unwrap();
    assert!(package.contains("\"version\": \"6.0.0\""), "{package}");
    assert_eq!(fs::metadata(modules.join("is-odd/index.js")).unwrap().permissions().mode() & 0o777, 0o644);
}

#[test]
fn what_was_built_is_found_and_not_built_again() {
    let folder = tempfile::tempdir().unwrap();
    let first = build(folder.path(), &shared_cache(), &minimal());
    let store = ImageStore::open(folder.path(), &shared_cache()).unwrap();
    let steps = std::sync::Mutex::new(Vec::<BuildStep>::new());
    let second = store.build(&minimal(), &|step| steps.lock().unwrap().push(step)).unwrap();
    assert_eq!(first, second);
    assert_eq!(*steps.lock().unwrap(), []);
    assert_eq!(store.revision(&first.id).unwrap(), first);
    assert_eq!(store.list().unwrap(), [first.id]);
    assert_eq!(store.built(&minimal()).unwrap(), Some(first.id));
    let empty = ImageStore::open(&folder.path().join("empty"), &packages_only(folder.path())).unwrap();
    assert_eq!(empty.built(&minimal()).unwrap(), None);
}

#[test]
fn removing_a_revision_leaves_what_others_need() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("recipe");
    fs::create_dir(&recipe).unwrap();
    fs::write(recipe.join("image.toml"), "[image]\nname = \"own\"\nbase = \"minimal\"\n").unwrap();
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images/minimal/image.lock");
    fs::copy(lock, recipe.join("image.lock")).unwrap();

    let root = folder.path().join("store");
    let one = build(&root, &shared_cache(), &minimal());
    let other = build(&root, &shared_cache(), &ImageSource::Path(recipe));
    assert_ne!(one.id, other.id);
    assert_eq!(one.kernel, other.kernel);

    let store = ImageStore::open(&root, &shared_cache()).unwrap();
    store.remove(&one.id).unwrap();
    store.remove(&one.id).unwrap();
    assert!(store.revision(&one.id).is_err());
    store.verify(&other.id).unwrap();

    // All but one, and what a removal left that was interrupted.
    assert_eq!(build(&root, &shared_cache(), &minimal()), one);
    let left = root.join("parts").join(one.id.to_string());
    fs::write(&left, "of a revision that is forgotten").unwrap();
    assert_eq!(store.keep_only(&[other.id].into()).unwrap(), [one.id]);
    assert_eq!(store.keep_only(&[other.id].into()).unwrap(), []);
    assert!(!left.exists());
    assert_eq!(store.list().unwrap(), [other.id]);
    store.verify(&other.id).unwrap();

    // The cache has the file too, by another name: write a new one in its place.
    let damaged = fs::read(&other.initrd).unwrap().into_iter().rev().collect::<Vec<_>>();
    fs::remove_file(&other.initrd).unwrap();
    fs::write(&other.initrd, damaged).unwrap();
    assert!(matches!(store.verify(&other.id), Err(Error::Corrupt { file, .. }) if file == other.initrd));
    store.remove(&other.id).unwrap();
    assert_eq!(fs::read_dir(root.join("parts")).unwrap().count(), 0);
}

#[test]
fn a_build_makes_anew_what_is_damaged_if_it_is_to_mend() {
    let folder = tempfile::tempdir().unwrap();
    let (root, cache) = (folder.path().join("store"), packages_only(folder.path()));
    let built = build(&root, &cache, &minimal());
    let store = ImageStore::open(&root, &cache).unwrap();
    let mend = || store.mend(&minimal(), &|_| ()).unwrap();
    assert_eq!(mend(), (built.clone(), 0));

    // In the store and in the cache, where it is the same file.
    for file in [&built.rootfs, &built.initrd, &built.kernel] {
        rot(file);
        assert!(matches!(store.verify(&built.id), Err(Error::Corrupt { file: found, .. }) if found == *file));
        build(&root, &cache, &minimal());
        assert!(store.verify(&built.id).is_err(), "only its size is looked at");
        assert_eq!(mend(), (built.clone(), 1));
        store.verify(&built.id).unwrap();
    }

    // In the store alone.
    let copy = root.join("copy");
    fs::copy(&built.rootfs, &copy).unwrap();
    rot(&copy);
    fs::rename(&copy, &built.rootfs).unwrap();
    assert_eq!(mend(), (built.clone(), 1));
    store.verify(&built.id).unwrap();
    assert_eq!(fs::read_dir(root.join("parts")).unwrap().count(), 3);

    let metadata = root.join("revisions").join(format!("{}.json", built.id));
    let changed = fs::read_to_string(&metadata).unwrap().replace("minimal", "another");
    fs::write(&metadata, changed).unwrap();
    assert!(store.verify(&built.id).is_err());
    assert_eq!(mend().0, built);
    store.verify(&built.id).unwrap();
}
