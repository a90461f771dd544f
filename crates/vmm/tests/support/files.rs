//! The guest's files, made once and kept under the target folder.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a guest boots with.
pub struct GuestFiles {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
}

/// In the order of loading; `init.rs` has the same.
const MODULES: [&str; 8] = [
    "virtio/virtio_ring",
    "virtio/virtio",
    "virtio/virtio_mmio",
    "block/virtio_blk",
    "net/failover",
    "net/net_failover",
    "net/virtio_net",
    "char/virtio_console",
];

/// The folder `tmp` beside the build's profiles.
pub fn cache() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let target = program.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists());
    let folder = target.map_or_else(std::env::temp_dir, Path::to_owned).join("tmp/vmm-guest");
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Writes a file so that no other test sees half of it.
pub fn replace(path: &Path, content: &[u8]) {
    let mut partial = tempfile::NamedTempFile::new_in(path.parent().unwrap()).unwrap();
    partial.write_all(content).unwrap();
    // The VMM's user reads them too.
    partial.as_file().set_permissions(fs::Permissions::from_mode(0o644)).unwrap();
    partial.persist(path).unwrap();
}

/// Makes what is missing. The kernel package is the one that `MVM_TEST_KERNEL_DEB` names, or the distribution's.
pub fn guest() -> GuestFiles {
    let folder = cache();
    let lock = File::create(folder.join("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let files = GuestFiles { kernel: folder.join("kernel"), initrd: folder.join("initrd") };
    if !files.kernel.exists() {
        let packed = pick(&package(&folder).join("boot"), "vmlinuz-");
        replace(&files.kernel, &unpack(&fs::read(packed).unwrap()));
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/init.rs");
    if is_older(&files.initrd, &source) {
        replace(&files.initrd, &initrd(&folder, &source));
    }
    files
}

fn is_older(file: &Path, than: &Path) -> bool {
    let changed = |path: &Path| fs::metadata(path).and_then(|found| found.modified()).ok();
    changed(file) < changed(than)
}

/// The kernel package, unpacked.
fn package(folder: &Path) -> PathBuf {
    let unpacked = folder.join("package");
    if !unpacked.join("boot").exists() {
        let deb = std::env::var_os("MVM_TEST_KERNEL_DEB").map_or_else(|| download(folder), PathBuf::from);
        run(Command::new("dpkg-deb").arg("-x").args([&deb, &unpacked]));
    }
    unpacked
}

fn download(folder: &Path) -> PathBuf {
    let depends = run(Command::new("apt-cache").args(["depends", "linux-image-cloud-amd64"]));
    let name = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: ")).unwrap();
    run(Command::new("apt-get").args(["download", name]).current_dir(folder));
    pick(folder, "linux-image-")
}

fn pick(folder: &Path, prefix: &str) -> PathBuf {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let fits = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(prefix);
    let mut found: Vec<_> = entries.filter(fits).collect();
    assert_eq!(found.len(), 1, "{prefix} in {}", folder.display());
    found.remove(0)
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The ELF file in a bzImage whose payload is in LZ4's old frames, as Debian's cloud kernel's is.
fn unpack(image: &[u8]) -> Vec<u8> {
    let number = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let start = (usize::from(image[0x1f1]) + 1) * 512 + number(image, 0x248);
    // The last four bytes are the size, for the kernel's own use.
    let payload = &image[start..start + number(image, 0x24c) - 4];
    assert_eq!(number(payload, 0), 0x184c_2102, "another compression");
    let (mut kernel, mut at) = (Vec::new(), 4);
    while at < payload.len() {
        let size = number(payload, at);
        let block = &payload[at + 4..at + 4 + size];
        kernel.extend(lz4_flex::block::decompress(block, 8 << 20).unwrap());
        at += 4 + size;
    }
    kernel
}

fn initrd(folder: &Path, source: &Path) -> Vec<u8> {
    let init = folder.join("init");
    let target = "x86_64-unknown-linux-musl";
    run(Command::new("rustc")
        .args(["--edition=2024", "-Copt-level=2", "-Cstrip=symbols", "--target", target, "-o"])
        .args([&init, source]));
    let modules = pick(&package(folder).join("lib/modules"), "").join("kernel");
    let mut archive = Vec::new();
    for name in ["proc", "sys", "dev", "modules"] {
        entry(&mut archive, name, 0o040_755, &[]);
    }
    entry(&mut archive, "init", 0o100_755, &fs::read(init).unwrap());
    for module in MODULES {
        let name = module.rsplit('/').next().unwrap();
        let places = ["drivers", "net/core"].map(|under| {
            let module = if under == "drivers" { module } else { name };
            modules.join(under).join(format!("{module}.ko"))
        });
        let content = places.iter().find_map(|place| fs::read(place).ok());
        entry(&mut archive, &format!("modules/{name}.ko"), 0o100_644, &content.expect(module));
    }
    entry(&mut archive, "TRAILER!!!", 0, &[]);
    archive
}

/// Appends an entry in cpio's "newc" format.
fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    let (size, name_size) = (content.len() as u32, name.len() as u32 + 1);
    let inode = archive.len() as u32;
    archive.extend(b"070701");
    for field in [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0] {
        archive.extend(format!("{field:08x}").bytes());
    }
    archive.extend(name.bytes().chain([0]));
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(content);
    archive.resize(archive.len().next_multiple_of(4), 0);
}
