//! What is packed comes out the same, and nothing comes out elsewhere.

#![allow(clippy::unwrap_used)]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
use std::path::Path;

use mvm_transfer::{Counts, Error, Permissions, Source, Target, unpack};
use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

fn packed(path: &Path) -> Vec<u8> {
    let mut stream = Vec::new();
    let left_out = Source::find(path).unwrap().pack(&mut stream).unwrap();
    assert!(left_out.is_empty(), "{left_out:?}");
    stream
}

fn copied(from: &Path, to: &Path) -> Result<Counts, Error> {
    let source = Source::find(from).unwrap();
    let target = Target::find(to, source.name(), source.is_folder())?;
    unpack(&target, packed(from).as_slice(), Permissions::All)
}

/// Everything in a folder: names, kinds, permissions, times and contents.
fn seen(folder: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut left = vec![folder.to_owned()];
    while let Some(path) = left.pop() {
        let found = path.symlink_metadata().unwrap();
        let what = if found.is_symlink() {
            format!("-> {}", fs::read_link(&path).unwrap().display())
        } else if found.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            format!("folder {:o} {}", found.mode(), found.mtime())
        } else {
            format!("{:o} {} {:?}", found.mode(), found.mtime(), fs::read(&path).unwrap())
        };
        all.push(format!("{} {what}", path.strip_prefix(folder).unwrap().display()));
    }
    all.sort();
    all
}

#[test]
fn a_tree_comes_out_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    let long = "a-name-of-some-length/".repeat(9);
    fs::create_dir_all(from.join(&long)).unwrap();
    fs::create_dir(from.join("empty")).unwrap();
    fs::write(from.join(&long).join("deep"), vec![7; 100_000]).unwrap();
    fs::write(from.join("run"), "#!/bin/sh\n").unwrap();
    fs::write(from.join("nothing"), "").unwrap();
    for (name, mode) in [("run", 0o4755), ("nothing", 0o000), ("empty", 0o1777)] {
        fs::set_permissions(from.join(name), PermissionsExt::from_mode(mode)).unwrap();
    }
    fs::set_permissions(from.join("a-name-of-some-length"), PermissionsExt::from_mode(0o555)).unwrap();
    symlink("../nowhere", from.join("dangling")).unwrap();
    symlink("x".repeat(200), from.join("far")).unwrap();

    let counts = copied(&from, &to).unwrap();
    assert_eq!(seen(&from), seen(&to));
    assert_eq!((counts.files, counts.links, counts.folders, counts.bytes), (3, 2, 11, 100_010));
    // Into it, and what is in it.
    copied(&from.join("run"), &to.join("empty")).unwrap();
    assert!(to.join("empty/run").is_file());
    copied(&from.join("."), &to).unwrap();
    assert!(to.join("empty/run").is_file(), "what is there and not in the copy stays");
    copied(&from, &to).unwrap();
    assert_eq!(seen(&from), seen(&to.join("from")));
    // A link is copied as one.
    copied(&from.join("far"), &to.join("other")).unwrap();
    assert!(to.join("other").is_symlink());
}

#[test]
fn only_plain_permissions_are_taken_from_somebody_else() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    fs::write(&from, "").unwrap();
    fs::set_permissions(&from, PermissionsExt::from_mode(0o6755)).unwrap();
    let target = Target::find(&to, Some(OsStr::new("from")), false).unwrap();
    unpack(&target, packed(&from).as_slice(), Permissions::Plain).unwrap();
    assert_eq!(to.metadata().unwrap().mode() & 0o7777, 0o755);
}

enum Item<'a> {
    File(&'a str),
    Folder(&'a str),
    Link(&'a str, &'a str),
    Other(&'a str, EntryType),
}

/// An archive as no tool would make it: names are written as they are.
fn archive(items: &[Item<'_>]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    for item in items {
        let (name, kind, content, leads_to) = match item {
            Item::File(name) => (name, EntryType::Regular, &b"evil"[..], ""),
            Item::Folder(name) => (name, EntryType::Directory, &b""[..], ""),
            Item::Link(name, to) => (name, EntryType::Symlink, &b""[..], *to),
            Item::Other(name, kind) => (name, *kind, &b""[..], "etc/passwd"),
        };
        let mut header = Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + leads_to.len()].copy_from_slice(leads_to.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        header.set_cksum();
        archive.append(&header, content).unwrap();
    }
    archive.into_inner().unwrap()
}

#[test]
fn what_leads_out_of_the_target_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (outside, inside) = (folder.path().join("outside"), folder.path().join("inside"));
    let absolute = outside.join("x").display().to_string();
    let mut cases = vec![
        vec![Item::File("x/../../outside/x")],
        vec![Item::File("../outside/x")],
        vec![Item::File("x/..")],
        vec![Item::Folder("..")],
        vec![Item::File(&absolute)],
        vec![Item::Folder("x"), Item::Link("x/l", "../../outside"), Item::File("x/l/x")],
        vec![Item::Folder("x"), Item::Link("x/l", outside.to_str().unwrap()), Item::File("x/l/x")],
        vec![Item::Link("l", "../outside"), Item::Folder("l"), Item::File("l/x")],
        vec![Item::Link("x", "../outside"), Item::File("x/x")],
        vec![Item::Link("l", "../outside"), Item::Folder("l/y")],
        vec![Item::Other("x", EntryType::Link)],
        vec![Item::Other("x", EntryType::Char)],
        vec![Item::Other("x", EntryType::Fifo)],
    ];
    // Over a link that was there before, too.
    cases.push(vec![Item::Folder("x"), Item::File("x/there/x")]);
    for (number, case) in cases.iter().enumerate() {
        for place in ["as", "contents", "archive"] {
            for path in [&outside, &inside] {
                let _ = fs::remove_dir_all(path);
                fs::create_dir(path).unwrap();
            }
            for there in ["there", "x/there", "as/there"] {
                fs::create_dir_all(inside.join(there).parent().unwrap()).unwrap();
                symlink(&outside, inside.join(there)).unwrap();
            }
            let target = match place {
                "as" => Target::find(&inside, Some(OsStr::new("as")), true),
                "contents" => Target::find(&inside, None, true),
                _ => Target::for_archive(&inside),
            };
            let result = unpack(&target.unwrap(), archive(case).as_slice(), Permissions::All);
            assert_eq!(seen(&outside).len(), 1, "case {number} as {place}: {:?}", seen(&outside));
            assert!(result.is_err(), "case {number} as {place}: {result:?}");
            let left = seen(&inside);
            assert!(!left.iter().any(|line| line.contains(".mvm-cp-")), "{left:?}");
        }
    }
}

#[test]
fn a_file_takes_the_place_of_a_link_and_does_not_follow_it() {
    let folder = tempfile::tempdir().unwrap();
    let (outside, inside) = (folder.path().join("outside"), folder.path().join("inside"));
    fs::write(&outside, "mine").unwrap();
    fs::create_dir(&inside).unwrap();
    symlink(&outside, inside.join("l")).unwrap();
    let target = Target::for_archive(&inside).unwrap();
    unpack(&target, archive(&[Item::File("l")]).as_slice(), Permissions::All).unwrap();
    assert_eq!(fs::read_to_string(&outside).unwrap(), "mine");
    assert_eq!(fs::read_to_string(inside.join("l")).unwrap(), "evil");
}

#[test]
fn part_of_a_stream_is_never_taken_for_all_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let from = folder.path().join("from");
    fs::create_dir(&from).unwrap();
    fs::write(from.join("a"), vec![1; 1500]).unwrap();
    fs::write(from.join("b"), "b").unwrap();
    let whole = packed(&from);
    for length in (0..whole.len()).step_by(256).filter(|length| length + 1024 < whole.len()) {
        let to = tempfile::tempdir().unwrap();
        let target = Target::find(to.path(), None, true).unwrap();
        let result = unpack(&target, &whole[..length], Permissions::All);
        assert!(result.is_err(), "{length} of {} bytes: {result:?}", whole.len());
        let left = seen(to.path());
        assert!(!left.iter().any(|line| line.contains(".mvm-cp-")), "{left:?}");
    }
}

#[test]
fn a_name_without_end_is_not_kept_in_memory() {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(u64::MAX / 4);
    header.set_cksum();
    let endless = std::io::Read::chain(header.as_bytes().as_slice(), std::io::repeat(b'a'));
    let folder = tempfile::tempdir().unwrap();
    let target = Target::for_archive(folder.path()).unwrap();
    assert!(matches!(unpack(&target, endless, Permissions::All), Err(Error::Archive(_))));
}

#[test]
fn what_is_no_file_is_left_out_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let left_out = Source::find(folder.path()).unwrap().pack(Vec::new()).unwrap();
    assert_eq!((left_out[0].path.as_path(), left_out[0].kind), (socket.as_path(), "socket"));
    assert!(matches!(Source::find(&socket), Err(Error::Unsupported { kind: "socket", .. })));
}

/// Removes what comes next in a folder when what the first file in it holds has come.
struct Removing<'a>(&'a Path);

impl std::io::Write for Removing<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if bytes == b"a's own" {
            fs::remove_file(self.0.join("b"))?;
            fs::remove_dir(self.0.join("c"))?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn what_goes_away_meanwhile_is_left_out_and_named() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a", "b", "d"] {
        fs::write(folder.path().join(name), format!("{name}'s own")).unwrap();
    }
    fs::create_dir(folder.path().join("c")).unwrap();
    let source = Source::find(folder.path()).unwrap();
    let left_out = source.pack(Removing(folder.path())).unwrap();
    let gone: Vec<_> = left_out.iter().map(|left| (left.path.clone(), left.kind)).collect();
    let kind = "file that went away";
    assert_eq!(gone, [(folder.path().join("b"), kind), (folder.path().join("c"), kind)]);
    // What was asked for itself must be there.
    fs::remove_dir_all(folder.path()).unwrap();
    assert!(source.pack(Vec::new()).is_err());
}

proptest! {
    #[test]
    fn any_bytes_are_unpacked_or_refused_and_stay_inside(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("inside");
        fs::create_dir(&inside).unwrap();
        let target = Target::for_archive(&inside).unwrap();
        let _ = unpack(&target, bytes.as_slice(), Permissions::All);
        prop_assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
