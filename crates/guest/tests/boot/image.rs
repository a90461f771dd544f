//! What the tests boot: the distribution's kernel, an initrd with this guest, a root of BusyBox.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Files of a bootable image.
pub struct Image {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub rootfs: PathBuf,
    // Keeps the files.
    _folder: tempfile::TempDir,
}

/// Each after what it depends on.
const MODULES: [&str; 12] = [
    "virtio_ring",
    "virtio",
    "virtio_mmio",
    "virtio_blk",
    "failover",
    "net_failover",
    "virtio_net",
    "virtio_console",
    "virtio-rng",
    "libcrc32c",
    "erofs",
    "overlay",
];

const APPLETS: &str = "arp cat date dd echo grep hostname httpd id ip kill ls mkdir mount nc pidof ps setsid sh sleep stat syslogd true umount wc";

impl Image {
    /// Makes an image with these services, or says what this computer lacks for it.
    pub fn make(services: &str) -> Result<Self, String> {
        for tool in ["qemu-system-x86_64", "mkfs.erofs", "dpkg-deb", "mke2fs"] {
            run(Command::new("which").arg(tool)).map_err(|_| format!("{tool} is not installed"))?;
        }
        let dependencies = run(Command::new("apt-cache").args(["depends", "linux-image-cloud-amd64"]))?;
        let kernel = dependencies.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
        let packages = [unpacked(kernel.ok_or("apt knows no cloud kernel")?)?, unpacked("busybox-static")?];
        Ok(Self::build(&packages, services).unwrap_or_else(|error| panic!("making the image: {error}")))
    }

    fn build([kernel, busybox]: &[PathBuf; 2], services: &str) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let (initrd, rootfs) = (folder.path().join("initrd"), folder.path().join("rootfs"));
        fs::write(&initrd, make_initrd(kernel)?).map_err(|error| error.to_string())?;
        make_root(busybox, services, &folder.path().join("root"), &rootfs)
            .map_err(|error| error.to_string())?;
        let kernel = find(&kernel.join("boot"), |name| name.starts_with("vmlinuz")).ok_or("no kernel")?;
        Ok(Self { kernel, initrd, rootfs, _folder: folder })
    }
}

/// Runs a tool; its standard output.
pub fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A package's files; downloaded and unpacked by whichever test is first.
fn unpacked(package: &str) -> Result<PathBuf, String> {
    let store = Path::new(env!("CARGO_TARGET_TMPDIR")).join("packages");
    let files = store.join(package);
    if !files.exists() {
        fs::create_dir_all(&store).map_err(|error| error.to_string())?;
        let fresh = tempfile::tempdir_in(&store).map_err(|error| error.to_string())?;
        run(Command::new("apt-get").args(["download", package]).current_dir(fresh.path()))?;
        let deb = find(fresh.path(), |name| name.ends_with(".deb")).ok_or("apt-get downloaded nothing")?;
        run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(fresh.path().join("files")))?;
        // Fails where another test was faster, whose files are as good.
        let _ = fs::rename(fresh.path().join("files"), &files);
    }
    Ok(files)
}

fn find(folder: &Path, wanted: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths.into_iter().find(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(&wanted))
}

/// The static guest: a ready-made one, or built as for real images.
fn guest() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("MVM_GUEST_BIN") {
        return Ok(path.into());
    }
    let target = target()?;
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = workspace.join("target/guest");
    run(Command::new(env!("CARGO"))
        .args(["build", "-p", "mvm-guest", "--bin", "mvm-guest", "--profile", "guest", "--target", target])
        .arg("--target-dir")
        .arg(&folder)
        .env_remove("CARGO_TARGET_DIR")
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .current_dir(&workspace))?;
    Ok(folder.join(target).join("guest/mvm-guest"))
}

/// musl where it is installed: the guest gets smaller with it.
fn target() -> Result<&'static str, String> {
    const MUSL: &str = "x86_64-unknown-linux-musl";
    let libraries = run(Command::new("rustc").args(["--print", "target-libdir", "--target", MUSL]))?;
    Ok(if Path::new(libraries.trim()).is_dir() { MUSL } else { "x86_64-unknown-linux-gnu" })
}

fn make_initrd(packages: &Path) -> Result<Vec<u8>, String> {
    let read = |path: &Path| fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    let mut modules = BTreeMap::new();
    collect_modules(&packages.join("lib/modules"), &mut modules);
    let mut archive = Vec::new();
    for folder in ["dev", "lib", "lib/modules", "proc", "sys"] {
        add(&mut archive, folder, 0o040_755, (0, 0), &[]);
    }
    add(&mut archive, "dev/console", 0o020_600, (5, 1), &[]);
    add(&mut archive, "init", 0o100_755, (0, 0), &read(&guest()?)?);
    let mut list = String::new();
    for name in MODULES {
        let path = format!("lib/modules/{name}.ko");
        let file = modules.get(name).ok_or_else(|| format!("the kernel has no module {name}"))?;
        add(&mut archive, &path, 0o100_644, (0, 0), &read(file)?);
        list.push_str(&format!("/{path}\n"));
    }
    add(&mut archive, "modules.load", 0o100_644, (0, 0), list.as_bytes());
    add(&mut archive, "TRAILER!!!", 0, (0, 0), &[]);
    Ok(archive)
}

fn collect_modules(folder: &Path, modules: &mut BTreeMap<String, PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_modules(&path, modules);
        } else if let Some(name) = entry.file_name().to_str().and_then(|name| name.strip_suffix(".ko")) {
            modules.insert(name.to_owned(), path);
        }
    }
}

/// Adds an entry of a "newc" cpio archive.
fn add(archive: &mut Vec<u8>, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
    let inode = u32::try_from(archive.len()).unwrap();
    let sizes = (u32::try_from(content.len()).unwrap(), u32::try_from(path.len()).unwrap() + 1);
    let fields = [inode, mode, 0, 0, 1, 0, sizes.0, 0, 0, device.0, device.1, sizes.1, 0];
    archive.extend(b"070701");
    archive.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
    archive.extend(path.bytes().chain([0]));
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(content);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

fn make_root(packages: &Path, services: &str, root: &Path, out: &Path) -> std::io::Result<()> {
    for folder in ["bin", "etc/mvm", "etc/mvm-config", "data", "dev", "proc", "run", "sys", "tmp", "root"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::copy(packages.join("bin/busybox"), root.join("bin/busybox"))?;
    for applet in APPLETS.split(' ') {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nweb:x:2001:2001::/data/home/web:/bin/sh\n",
    )?;
    fs::write(root.join("etc/nsswitch.conf"), "hosts: files\nservices: files\n")?;
    fs::write(root.join("etc/machine-id"), "")?;
    symlink("../run/resolv.conf", root.join("etc/resolv.conf"))?;
    fs::write(root.join("etc/mvm/services.json"), services)?;
    run(Command::new("mkfs.erofs").args(["--quiet", "--all-root"]).arg(out).arg(root))
        .map(drop)
        .map_err(std::io::Error::other)
}
