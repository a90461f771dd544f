use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};

use proptest::prelude::*;

use super::*;

fn facts() -> Facts {
    Facts {
        mvm_version: "0.1.0".into(),
        tenant: "alice".parse().unwrap(),
        pool: "workers".parse().unwrap(),
        instance: InstanceId::new(42),
        role: Role::Worker,
        revision: Some("abc".into()),
        resources: Resources::default(),
        taken_at_ms: 1_700_000_000_000,
    }
}

const SIZE: u64 = 8 << 20;

/// A disk with these bytes at these places, and holes between them.
fn disk(parts: &[(u64, Vec<u8>)]) -> File {
    let disk = tempfile::tempfile().unwrap();
    disk.set_len(SIZE).unwrap();
    for (at, bytes) in parts {
        disk.write_all_at(bytes, *at).unwrap();
    }
    disk
}

fn backup(mut disk: File) -> Vec<u8> {
    let mut file = Vec::new();
    write(facts(), &mut disk, &mut file, |done, total| assert!(done <= total)).unwrap();
    file
}

fn content(disk: &mut File) -> Vec<u8> {
    let mut content = Vec::new();
    disk.seek(SeekFrom::Start(0)).unwrap();
    disk.read_to_end(&mut content).unwrap();
    content
}

fn read(file: &[u8]) -> Result<(Metadata, File)> {
    let disk = tempfile::tempfile().unwrap();
    unpack(file, &disk, |_| Ok(())).map(|(metadata, _)| (metadata, disk))
}

/// As `tar` would read it, so that people can.
fn uncompressed(file: &[u8]) -> Vec<u8> {
    zstd::decode_all(file).unwrap()
}

fn some_parts() -> Vec<(u64, Vec<u8>)> {
    // More pieces than a first header has room for.
    (0..40).map(|n| (n * 131_072, vec![n as u8 + 1; 5000])).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn a_disk_comes_back_as_it_was(parts in prop::collection::vec(
        (0..SIZE - 70_000, prop::collection::vec(any::<u8>(), 1..70_000)), 0..6,
    )) {
        let mut disk = disk(&parts);
        let expected = content(&mut disk);
        let (metadata, mut back) = read(&backup(disk)).unwrap();
        prop_assert_eq!((&metadata.facts, metadata.disk_bytes), (&facts(), SIZE));
        prop_assert!(content(&mut back) == expected);
    }

    #[test]
    fn any_bytes_are_refused(bytes: Vec<u8>) {
        prop_assert!(read(&bytes).is_err());
        prop_assert!(read(&zstd::encode_all(bytes.as_slice(), 1).unwrap()).is_err());
    }
}

#[test]
fn holes_take_nothing_here_or_there() {
    let file = backup(disk(&some_parts()));
    assert!(uncompressed(&file).len() < 1 << 20);
    let (_, back) = read(&file).unwrap();
    assert!(back.metadata().unwrap().blocks() * 512 < SIZE / 2 + (6 << 20));
}

#[test]
fn a_flipped_byte_anywhere_is_found() {
    let file = backup(disk(&some_parts()));
    for at in (0..file.len()).step_by(97).chain([0, 3, 4, 5, file.len() - 5, file.len() - 1]) {
        let mut flipped = file.clone();
        flipped[at] ^= 0x40;
        assert!(read(&flipped).is_err(), "byte {at}");
    }
    // Also where the compression is none the wiser.
    let archive = uncompressed(&file);
    for at in (0..archive.len()).step_by(509) {
        let mut flipped = archive.clone();
        flipped[at] ^= 0x40;
        // But for what fills up behind the checksum.
        let inside = at < archive.len() - 1024 - 512 + 65;
        assert!(!inside || read(&zstd::encode_all(flipped.as_slice(), 1).unwrap()).is_err(), "byte {at}");
    }
}

#[test]
fn what_is_cut_off_or_has_something_behind_it_is_refused() {
    let file = backup(disk(&some_parts()));
    for length in (0..file.len()).step_by(1000).chain(file.len() - 8..file.len()) {
        assert!(read(&file[..length]).is_err(), "{length} bytes");
    }
    let mut more = file.clone();
    more.push(0);
    assert!(matches!(read(&more), Err(Error::Damaged(_))));
    more.truncate(file.len());
    more.extend(file);
    assert!(matches!(read(&more), Err(Error::Damaged(_))));
}

/// An archive with these entries, and a right checksum behind them.
fn forged(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let append = |archive: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, content).unwrap();
    };
    for (name, content) in entries {
        append(&mut archive, name, content);
    }
    let checksum = blake3::hash(archive.get_ref()).to_hex().to_string();
    append(&mut archive, CHECKSUM, checksum.as_bytes());
    zstd::encode_all(archive.into_inner().unwrap().as_slice(), 1).unwrap()
}

#[test]
fn other_formats_are_told_apart_and_sizes_are_checked() {
    let metadata = |version: u32, bytes: u64| {
        let metadata =
            Metadata { version, cipher: Cipher::None, key_id: None, facts: facts(), disk_bytes: bytes };
        serde_json::to_vec(&metadata).unwrap()
    };
    let (one, two) = (metadata(1, 4), metadata(2, 4));
    assert!(read(&forged(&[(METADATA, &one), (DISK, b"disk")])).is_ok());
    assert!(matches!(
        read(&forged(&[(METADATA, &two), (DISK, b"disk")])),
        Err(Error::Unknown { version: 2, .. })
    ));
    let sealed = br#"{"version": 1, "cipher": "aes-256-gcm"}"#;
    assert!(matches!(read(&forged(&[(METADATA, sealed), (DISK, b"disk")])), Err(Error::Unknown { .. })));
    assert!(matches!(read(&forged(&[(METADATA, &one), (DISK, b"disks")])), Err(Error::Damaged(_))));
    assert!(matches!(read(&forged(&[(METADATA, &one)])), Err(Error::Damaged(_))));
    assert!(matches!(read(&forged(&[(DISK, b"disk"), (METADATA, &one)])), Err(Error::Foreign)));
    assert!(matches!(read(b"PK\x03\x04"), Err(Error::Foreign)));
    assert!(matches!(read(b""), Err(Error::Foreign)));

    let disk = tempfile::tempfile().unwrap();
    let refused =
        unpack(forged(&[(METADATA, &one), (DISK, b"disk")]).as_slice(), &disk, |_| Err("no".into()));
    assert!(matches!(refused, Err(Error::Refused(why)) if why == "no"));
    assert_eq!(disk.metadata().unwrap().len(), 0);
}

#[test]
fn tar_itself_reads_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("archive");
    let mut disk = disk(&some_parts());
    let expected = content(&mut disk);
    File::create(&path).unwrap().write_all(&uncompressed(&backup(disk))).unwrap();
    let tar = std::process::Command::new("tar").arg("-xf").arg(&path).arg("-C").arg(folder.path()).output();
    assert!(tar.unwrap().status.success());
    assert!(std::fs::read(folder.path().join(DISK)).unwrap() == expected);
}
