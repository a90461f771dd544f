//! A root file system: packages, the recipe's files and what maintainer scripts would have written,
//! as one read-only erofs file.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use mvm_model::service::{SERVICES_PATH, ServicesFile};

use crate::error::{At, Result, malformed};
use crate::source::RootSpec;
use crate::tree::Tree;
use crate::{BuildStep, Progress, deb, npm, tool};

/// Raised whenever the same [`RootSpec`] gives another file.
pub(crate) const FORMAT: u32 = 1;

/// The time of every file: 2020-01-01, in seconds since 1970.
const FILE_TIME: &str = "1577836800";
/// The same for every image: nothing mounts these by UUID.
const FILE_SYSTEM_UUID: &str = "6d766d00-726f-4f74-8000-000000000001";

/// Where the C library looks first; packages for other machines are not built.
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";

/// Builds the erofs file `out`, with the packages' files given in the order of `spec`, npm's last; `work` is
/// an empty folder for the tree.
pub(crate) fn build(
    spec: &RootSpec,
    packages: &[PathBuf],
    work: &Path,
    out: &Path,
    progress: Progress<'_>,
) -> Result<()> {
    let tree = Tree::new(work);
    add_skeleton(&tree)?;
    let of = packages.len();
    let unpacking = |index, package: &str| {
        progress(BuildStep::Unpack { package: package.to_owned(), number: index + 1, of });
    };
    let mut files = packages.iter().enumerate();
    for (package, (index, file)) in spec.packages.iter().zip(files.by_ref().take(spec.packages.len())) {
        unpacking(index, &package.name);
        tree.unpack(&package.name, deb::open(file)?)?;
    }
    if let Some(npm) = &spec.npm {
        let prune = npm::Prune::new(&npm.prune)?;
        for (package, (index, file)) in npm.packages.iter().zip(files) {
            unpacking(index, &package.name);
            npm::unpack(&tree, package, file, &prune)?;
        }
        npm.strip.iter().try_for_each(|program| npm::strip(&tree, program))?;
    }
    add_accounts(&tree, &spec.services)?;
    add_system_files(&tree, &spec.services)?;
    for link in &spec.links {
        // A package that brings the real thing wins.
        if !tree.has(&link.path)? {
            tree.link(&link.path, &link.to)?;
        }
    }
    for file in &spec.files {
        tree.file(&file.target, file.mode, &mut file.content.as_slice())?;
    }
    if !spec.python_bytecode.is_empty() {
        progress(BuildStep::Bytecode);
        compile_python(&tree, work, &spec.python_bytecode)?;
    }
    progress(BuildStep::Pack);
    pack(work, out)
}

/// The folders of every Debian root, `/usr` merged, and the mount points of a machine.
fn add_skeleton(tree: &Tree) -> Result<()> {
    tree.folder("/", 0o755)?;
    for folder in ["bin", "sbin", "lib", "lib64"] {
        tree.folder(Path::new("/usr").join(folder), 0o755)?;
        tree.link(Path::new("/").join(folder), Path::new("usr").join(folder))?;
    }
    let folders = [
        "boot",
        "data",
        "dev",
        "etc",
        "etc/mvm",
        "etc/mvm-config",
        "home",
        "mnt",
        "opt",
        "proc",
        "run",
        "run/secrets",
        "srv",
        "sys",
        "var",
        "var/cache",
        "var/lib",
        "var/log",
        "var/tmp",
    ];
    for folder in folders {
        tree.folder(Path::new("/").join(folder), 0o755)?;
    }
    tree.link("/var/run", "../run")?;
    tree.link("/var/lock", "../run/lock")?;
    tree.folder("/root", 0o700)?;
    tree.folder("/tmp", 0o1777)?;
    tree.folder("/var/tmp", 0o1777)
}

/// Accounts: root, nobody and the service users, nobody of them with a password.
fn add_accounts(tree: &Tree, services: &ServicesFile) -> Result<()> {
    let mut passwd = String::from("root:x:0:0:root:/root:/bin/sh\n");
    let mut group = String::from("root:x:0:\n");
    let mut shadow = String::from("root:*:::::::\n");
    for user in &services.users {
        let (name, uid) = (&user.name, user.uid);
        let _ = writeln!(passwd, "{name}:x:{uid}:{uid}::/data/home/{name}:/bin/sh");
        let _ = writeln!(group, "{name}:x:{uid}:");
        let _ = writeln!(shadow, "{name}:*:::::::");
    }
    passwd.push_str("nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n");
    group.push_str("nogroup:x:65534:\n");
    shadow.push_str("nobody:*:::::::\n");
    tree.text("/etc/passwd", &passwd)?;
    tree.text("/etc/group", &group)?;
    tree.file("/etc/shadow", 0o600, &mut shadow.as_bytes())
}

/// What maintainer scripts and installers write, and the list of services.
fn add_system_files(tree: &Tree, services: &ServicesFile) -> Result<()> {
    tree.text("/etc/hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n")?;
    tree.text(
        "/etc/nsswitch.conf",
        "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\nprotocols: files\n",
    )?;
    tree.text("/etc/fstab", "")?;
    // Both are the machine's own and written when it gets its identity.
    tree.text("/etc/machine-id", "")?;
    tree.link("/etc/resolv.conf", "../run/resolv.conf")?;
    tree.link("/etc/mtab", "../proc/self/mounts")?;
    let json = serde_json::to_string_pretty(services).map_err(|e| malformed(SERVICES_PATH, e.to_string()))?;
    tree.text(SERVICES_PATH, &json)
}

/// Compiles Python sources to bytecode that is used without looking at the source again. The image's
/// own interpreter does it, since bytecode fits one version only; it compiles, and runs nothing.
fn compile_python(tree: &Tree, root: &Path, folders: &[PathBuf]) -> Result<()> {
    let libraries = tree.on_host(LIBRARIES)?;
    let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
    command
        .arg("--library-path")
        .arg(&libraries)
        .arg(tree.on_host("/usr/bin/python3")?)
        .args(["-S", "-s", "-B", "-m", "compileall", "-q"])
        .args(["--invalidation-mode", "unchecked-hash", "-p", "/", "-s"])
        .arg(root)
        .env("PYTHONHOME", tree.on_host("/usr")?)
        .env("PYTHONHASHSEED", "0");
    let on_host = folders.iter().map(|folder| tree.on_host(folder)).collect::<Result<Vec<_>>>()?;
    command.args(&on_host);
    tool::run_command(command, "python3.11, as `packages` of the recipe")?;
    on_host.iter().try_for_each(|folder| set_bytecode_modes(folder, false))
}

/// Gives bytecode the modes it should have whatever the umask was.
fn set_bytecode_modes(folder: &Path, is_cache: bool) -> Result<()> {
    for entry in fs::read_dir(folder).at(folder)? {
        let entry = entry.at(folder)?;
        let path = entry.path();
        let set = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).at(&path);
        let kind = entry.file_type().at(&path)?;
        if kind.is_dir() {
            let is_cache = entry.file_name() == "__pycache__";
            if is_cache {
                set(0o755)?;
            }
            set_bytecode_modes(&path, is_cache)?;
        } else if is_cache && kind.is_file() {
            set(0o644)?;
        }
    }
    Ok(())
}

/// Not compressed: a machine's disk is in the host's page cache, and decompressing costs guest time.
fn pack(root: &Path, out: &Path) -> Result<()> {
    let arguments = ["--quiet", "-x-1", "--all-root", "-T", FILE_TIME, "-U", FILE_SYSTEM_UUID].map(Path::new);
    tool::run("mkfs.erofs", "erofs-utils", arguments.into_iter().chain([out, root]))
}
