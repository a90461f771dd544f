//! The initial RAM disk: `mvm-guest` as `/init`, and the modules it loads. A "newc" cpio archive
//! (the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`), not compressed: the
//! kernel unpacks it faster than it decompresses.

/// The file that lists the modules' paths, one a line, in the order in which they are loaded.
pub(crate) const MODULE_LIST: &str = "modules.load";

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const CONSOLE: u32 = 0o020_600;

/// The part with the program that runs as `/init`. An initrd is this and then [`modules_archive`]: the
/// kernel unpacks one archive after the other.
pub(crate) fn init_archive(init: &[u8]) -> Vec<u8> {
    let mut archive = Newc::default();
    for folder in ["dev", "proc", "root", "run", "sys"] {
        archive.add(folder, FOLDER, (0, 0), &[]);
    }
    // The kernel opens it for /init before anything is mounted.
    archive.add("dev/console", CONSOLE, (5, 1), &[]);
    archive.add("init", PROGRAM, (0, 0), init);
    archive.finish()
}

/// The part with the modules, given in load order, and the list of their paths.
pub(crate) fn modules_archive(modules: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Newc::default();
    for folder in ["lib", "lib/modules"] {
        archive.add(folder, FOLDER, (0, 0), &[]);
    }
    let mut list = String::new();
    for (name, content) in modules {
        let path = format!("lib/modules/{name}.ko");
        list.push_str(&format!("/{path}\n"));
        archive.add(&path, FILE, (0, 0), content);
    }
    archive.add(MODULE_LIST, FILE, (0, 0), list.as_bytes());
    archive.finish()
}

/// A cpio archive in which everything is root's and of the same time.
#[derive(Default)]
struct Newc {
    bytes: Vec<u8>,
    entries: u32,
}

impl Newc {
    fn add(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
        self.entry(self.entries, path, mode, links, device, content);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry(0, "TRAILER!!!", 0, 1, (0, 0), &[]);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }

    fn entry(&mut self, inode: u32, path: &str, mode: u32, links: u32, device: (u32, u32), content: &[u8]) {
        let (owner, group, time, checksum) = (0, 0, 0, 0);
        let (size, name_size) = (content.len() as u32, path.len() as u32 + 1);
        let (major, minor) = device;
        let fields = [inode, mode, owner, group, links, time, size, 0, 0, major, minor, name_size, checksum];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(path.bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_laid_out_as_newc() {
        let archive = modules_archive(&[("virtio", b"\x7fELF1")]);
        let text = String::from_utf8_lossy(&archive);
        // The first entry: magic, inode 1, mode 040755, root's, two links.
        assert!(text.starts_with("07070100000001000041ed000000000000000000000002"));
        assert!(text.contains("/lib/modules/virtio.ko\n"));
        assert!(text.trim_end_matches('\0').ends_with("TRAILER!!!"));
        assert_eq!(archive.len() % 512, 0);
    }

    /// What a reader that follows the format's description finds: names and contents.
    fn entries(mut archive: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut found = Vec::new();
        loop {
            let field = |number: usize| {
                let text = std::str::from_utf8(&archive[6 + 8 * number..14 + 8 * number]).unwrap();
                usize::from_str_radix(text, 16).unwrap()
            };
            assert_eq!(&archive[..6], b"070701");
            let (size, name_size) = (field(6), field(11));
            let name = String::from_utf8(archive[110..110 + name_size - 1].to_vec()).unwrap();
            let start = (110 + name_size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                return found;
            }
            found.push((name, archive[start..start + size].to_vec()));
            archive = &archive[(start + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn modules_are_listed_in_load_order() {
        let found = entries(&modules_archive(&[("b", b"12345"), ("a", b"6")]));
        let file = |name: &str, content: &str| (name.to_owned(), content.as_bytes().to_vec());
        let list = "/lib/modules/b.ko\n/lib/modules/a.ko\n";
        let files =
            [file("lib/modules/b.ko", "12345"), file("lib/modules/a.ko", "6"), file(MODULE_LIST, list)];
        assert_eq!(found[2..], files);
        assert!(entries(&init_archive(b"guest")).contains(&file("init", "guest")));
    }
}
