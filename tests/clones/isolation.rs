//! A base is what it was, whatever a VMM that maps it does: tried by a VMM's own process.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use mvm_harness::Lab;

use crate::attempts::{self, Access, Kind, Means};
use crate::injected::{self, Injected};

const POOL: &str = "alice/workers";
const WORKERS: &str = r#"
[tenant]
id = "alice"
[[pools]]
id = "workers"
vcpus = 1
mem_mib = 128
desired_running = 2
spares = 0
"#;
const PAGE: usize = 4096;
/// What a VMM's descriptor and mapping of the base lead to.
const BASE: &str = "/base/memory (deleted)";

/// An instance's VMM, and where it has its guest's memory.
struct Vmm {
    instance: String,
    pid: u32,
    memory: u64,
    bytes: usize,
}

impl Vmm {
    fn of(lab: &Lab, instance: &str) -> Self {
        let info = lab.info(instance);
        assert_eq!(info["last_start"]["how"], "clone", "{info}");
        let pid = u32::try_from(info["pid"].as_u64().unwrap()).unwrap();
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let mappings: Vec<&str> = maps.lines().filter(|line| line.ends_with(BASE)).collect();
        let [mapping] = mappings.as_slice() else { panic!("{mappings:?}") };
        let (from, rest) = mapping.split_once('-').unwrap();
        let (to, rest) = rest.split_once(' ').unwrap();
        assert!(rest.starts_with("rw-p 00000000 "), "{mapping}");
        let [memory, end] = [from, to].map(|address| u64::from_str_radix(address, 16).unwrap());
        Self { instance: instance.to_owned(), pid, memory, bytes: (end - memory) as usize }
    }

    fn guest_memory(&self) -> Vec<u8> {
        injected::read(self.pid, self.memory, self.bytes)
    }

    /// Whether a page of the guest's is the base's own: present, and of a file.
    fn shares(&self, page: usize) -> bool {
        let pagemap = fs::File::open(format!("/proc/{}/pagemap", self.pid)).unwrap();
        let (mut entry, number) = ([0; 8], self.memory / PAGE as u64 + page as u64);
        std::os::unix::fs::FileExt::read_exact_at(&pagemap, &mut entry, number * 8).unwrap();
        u64::from_ne_bytes(entry) >> 61 == 0b101
    }

    /// Its descriptors, and what they lead to.
    fn descriptors(&self) -> Vec<(i32, PathBuf)> {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.pid)).unwrap().flatten();
        let number = |entry: &fs::DirEntry| entry.file_name().to_str().unwrap().parse().unwrap();
        let all = entries.map(|entry| (number(&entry), fs::read_link(entry.path()).unwrap()));
        all.collect()
    }

    fn root(&self) -> PathBuf {
        format!("/proc/{}/root", self.pid).into()
    }
}

/// A base's file, its content when it was found, and the device that VMMs map.
struct Base {
    file: PathBuf,
    device: PathBuf,
    content: Vec<u8>,
}

impl Base {
    fn of(lab: &Lab, instance: &str) -> Self {
        let id = lab.info(instance)["base"].as_str().unwrap().to_owned();
        let file = lab.data_dir().join("bases").join(id).join("memory").canonicalize().unwrap();
        let backing =
            |device: &Path| fs::read_to_string(device.join("loop/backing_file")).unwrap_or_default();
        let mut devices = fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap().path());
        let device = devices.find(|device| Path::new(backing(device).trim_end()) == file).unwrap();
        let content = fs::read(&file).unwrap();
        Self { file, device: Path::new("/dev").join(device.file_name().unwrap()), content }
    }

    #[track_caller]
    fn assert_unchanged(&self) {
        assert!(fs::read(&self.file).unwrap() == self.content, "the base's file has changed");
        assert!(fs::read(&self.device).unwrap() == self.content, "its device shows something else");
        let file = fs::metadata(&self.file).unwrap();
        assert_eq!((file.mode() & 0o7777, file.uid(), file.gid()), (0o400, 0, 0));
        let flag = self.device.file_name().unwrap().to_str().unwrap();
        assert_eq!(fs::read_to_string(format!("/sys/block/{flag}/ro")).unwrap().trim(), "1");
    }
}

/// Leaves something in a machine's memory; how to see whether it is still there.
fn remember(lab: &Lab, instance: &str) -> String {
    lab.exec(instance, &["sh", "-c", "head -c 4194304 /dev/urandom > /tmp/kept; sha256sum /tmp/kept"])
}

#[track_caller]
fn assert_remembers(lab: &Lab, instance: &str, sum: &str) {
    assert_eq!(lab.exec(instance, &["sha256sum", "/tmp/kept"]), sum, "{instance}");
}

/// Writes what an attempt may need into the process: a pipe and a vector.
fn means(vmm: &mut Injected, of: &Vmm) -> Means {
    let descriptors = of.descriptors();
    let (source, _) =
        descriptors.iter().find(|(_, path)| path.to_str().unwrap().contains("/images/")).unwrap();
    let (ends, vector, bytes) = (vmm.scratch(0xc000), vmm.scratch(0xc100), vmm.scratch(0xd000));
    vmm.call(libc::SYS_pipe2, &[ends.into(), libc::O_NONBLOCK.into()]).unwrap();
    let pipe = vmm.read(ends, 8);
    let pipe = [0, 4].map(|at| i32::from_ne_bytes(pipe[at..at + 4].try_into().unwrap()));
    vmm.call(libc::SYS_write, &[pipe[1].into(), (&[0x5a; 2048]).into(), 2048.into()]).unwrap();
    vmm.write(bytes, &[0xa5; 512]);
    vmm.write(vector, &[bytes.to_ne_bytes(), 512u64.to_ne_bytes()].concat());
    Means { source: *source, pipe, vector, shares: of.root().join("dev/kvm").exists() }
}

/// By every descriptor that it has.
fn by_descriptors(vmm: &mut Injected, of: &Vmm, base: &Base, means: Means) -> Vec<String> {
    let device = fs::metadata(&base.device).unwrap().rdev();
    let (mut wrong, mut found) = (Vec::new(), 0);
    for (fd, path) in of.descriptors() {
        let opened = fs::metadata(format!("/proc/{}/fd/{fd}", of.pid)).unwrap();
        assert_ne!((opened.dev(), opened.ino()), identity(&base.file), "{fd} is the base's file: {path:?}");
        let tried = if opened.file_type().is_block_device() {
            assert_eq!((path.to_str(), opened.rdev()), (Some(BASE), device), "{fd}");
            found += 1;
            attempts::on_base(fd, access_of(of.pid, fd), means)
        } else {
            attempts::ioctls(fd)
        };
        wrong.extend(tried.iter().filter_map(|attempt| attempt.make(vmm)));
    }
    assert!(found > 0, "it has no descriptor of the base");
    wrong
}

/// How a descriptor was opened.
fn access_of(pid: u32, fd: i32) -> Access {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
    match i32::from_str_radix(flags.trim(), 8).unwrap() & libc::O_ACCMODE {
        libc::O_RDONLY => Access::Read,
        libc::O_WRONLY => Access::Write,
        _ => Access::Both,
    }
}

fn identity(path: &Path) -> (u64, u64) {
    let found = fs::metadata(path).unwrap();
    (found.dev(), found.ino())
}

/// By every path that it has: those outside the system's folders, and these folders themselves.
fn by_paths(vmm: &mut Injected, of: &Vmm) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut folders = vec![PathBuf::from("/")];
    let inside = |path: &Path| of.root().join(path.strip_prefix("/").unwrap());
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(inside(&folder)).unwrap() {
            let path = folder.join(entry.unwrap().file_name());
            let found = fs::symlink_metadata(inside(&path)).unwrap();
            let system = path.starts_with("/usr") || path.starts_with("/lib");
            let kind = match found.file_type() {
                kind if kind.is_dir() => Kind::Folder,
                kind if kind.is_symlink() => continue,
                kind if kind.is_block_device() || kind.is_char_device() => Kind::Device,
                _ => Kind::File,
            };
            if kind == Kind::Folder && !system {
                folders.push(path.clone());
            }
            let name = CString::new(path.to_str().unwrap()).unwrap();
            let beside = CString::new(path.with_file_name("new").to_str().unwrap()).unwrap();
            let tried = attempts::on_path(&name, &beside, kind);
            wrong.extend(tried.iter().filter_map(|attempt| attempt.make(vmm)));
            seen += 1;
        }
    }
    assert!(seen > 10, "only {seen} paths were tried");
    // The name by which it opened the base is gone: what that number means later is nothing to it.
    for access in [Access::Read, Access::Write, Access::Both] {
        let opened = vmm.call(libc::SYS_open, &[c"/base/memory".into(), access.flags().into(), 0.into()]);
        assert_eq!(opened, Err(libc::ENOENT), "{access:?}");
    }
    wrong
}

/// Nothing else that it can see is the base, and nothing is mounted for writing.
fn assert_sees_nothing_else(of: &Vmm, base: &Base) {
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", of.pid)).unwrap();
    for mount in mounts.lines() {
        let options = mount.split(' ').nth(5).unwrap();
        assert!(options.split(',').any(|option| option == "ro"), "{mount}");
    }
    let file = identity(&base.file);
    let mut folders = vec![of.root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let found = entry.metadata().unwrap();
            if found.is_dir() {
                folders.push(entry.path());
            }
            let is_base = found.file_type().is_block_device() || (found.dev(), found.ino()) == file;
            assert!(!is_base, "{entry:?}");
        }
    }
}

/// What it writes to its own memory is its own.
fn by_its_memory(vmm: &mut Injected, of: &Vmm, other: &Vmm, base: &Base) {
    let pages = base.content.chunks_exact(PAGE).enumerate();
    let full = pages.filter(|(_, page)| page.iter().any(|byte| *byte != 0)).map(|(index, _)| index);
    let page = full.filter(|page| of.shares(*page) && other.shares(*page)).nth(100).unwrap();
    let (offset, address) = (page * PAGE, of.memory + (page * PAGE) as u64);
    let kept = &base.content[offset..offset + PAGE];
    assert_eq!(vmm.read(address, PAGE), kept);
    assert_eq!(
        vmm.call(libc::SYS_getrandom, &[address.into(), (PAGE as u64).into(), 0.into()]),
        Ok(PAGE as u64)
    );
    let all = [address.into(), (PAGE as u64).into()];
    for (number, argument, expected) in [
        (libc::SYS_msync, libc::MS_SYNC | libc::MS_INVALIDATE, Ok(0)),
        (libc::SYS_madvise, libc::MADV_REMOVE, Err(libc::EACCES)),
        (libc::SYS_madvise, libc::MADV_POPULATE_WRITE, Ok(0)),
        (libc::SYS_remap_file_pages, 0, Err(libc::EINVAL)),
    ] {
        let arguments = [all[0], all[1], argument.into()];
        assert_eq!(vmm.call(number, &arguments), expected, "call {number} of {argument}");
    }
    assert_ne!(vmm.read(address, PAGE), kept);
    assert_eq!(injected::read(other.pid, other.memory + offset as u64, PAGE), kept);
    assert!(other.shares(page) && !of.shares(page));
    base.assert_unchanged();
    vmm.write(address, kept);
}

#[test]
fn a_vmm_cannot_write_its_base() {
    let lab = Lab::new();
    lab.deploy(WORKERS);
    let [one, two] = lab.instances(POOL).try_into().unwrap();
    let base = Base::of(&lab, &one);
    base.assert_unchanged();
    let sums = [&one, &two].map(|instance| remember(&lab, instance));
    let (attacker, other) = (Vmm::of(&lab, &one), Vmm::of(&lab, &two));
    assert_ne!(attacker.pid, other.pid);
    assert_sees_nothing_else(&attacker, &base);
    {
        // Both stand still, so that whatever changes in them was changed by the attempts.
        let (mut vmm, _other) = (Injected::stop(attacker.pid), Injected::stop(other.pid));
        let before = [&attacker, &other].map(Vmm::guest_memory);
        let descriptors = attacker.descriptors();
        let means = means(&mut vmm, &attacker);
        let mut wrong = by_descriptors(&mut vmm, &attacker, &base, means);
        wrong.extend(by_paths(&mut vmm, &attacker));
        let pidfd = vmm.call(libc::SYS_pidfd_open, &[u64::from(other.pid).into(), 0.into()]).unwrap();
        let pidfd = i32::try_from(pidfd).unwrap();
        let round = attempts::ways_round(other.pid, pidfd, means.vector);
        wrong.extend(round.iter().filter_map(|attempt| attempt.make(&mut vmm)));
        assert!(wrong.is_empty(), "{wrong:#?}");
        by_its_memory(&mut vmm, &attacker, &other, &base);
        for fd in means.pipe.into_iter().chain([pidfd]) {
            vmm.call(libc::SYS_close, &[fd.into()]).unwrap();
        }
        assert_eq!(attacker.descriptors(), descriptors);
        for (vmm, before) in [&attacker, &other].into_iter().zip(before) {
            assert!(vmm.guest_memory() == before, "the memory of {} has changed", vmm.instance);
        }
    }
    base.assert_unchanged();
    for (instance, sum) in [&one, &two].into_iter().zip(&sums) {
        assert_remembers(&lab, instance, sum);
    }
    by_fatal_calls(&lab, attacker);
    assert_remembers(&lab, &two, &sums[1]);
    base.assert_unchanged();
    lab.mvm(&["node", "scrub"]);
    lab.mvm(&["pool", "scale", POOL, "--running", "3"]);
    let third = lab.instances(POOL).into_iter().find(|id| ![&one, &two].contains(&id)).unwrap();
    let third = Vmm::of(&lab, &third);
    let sum = remember(&lab, &third.instance);
    assert_remembers(&lab, &third.instance, &sum);
    base.assert_unchanged();
}

/// Calls that no VMM survives, by another architecture's way or at all: each has a VMM of its own to end.
fn by_fatal_calls(lab: &Lab, first: Vmm) {
    const X32: i64 = 0x4000_0000;
    let Vmm { instance, .. } = first;
    let base_of =
        |vmm: &Vmm| vmm.descriptors().into_iter().find(|(_, path)| path == Path::new(BASE)).unwrap().0;
    type Call<'a> = &'a dyn Fn(Injected, i32) -> Result<i32, injected::Outcome>;
    let fatal: [(&str, Call<'_>); 4] = [
        ("x32's LOOP_CHANGE_FD", &|vmm, fd| vmm.last_call(514 | X32, &[fd.into(), 0x4c06.into(), fd.into()])),
        ("x32's ioctl by 64 bit's number", &|vmm, fd| {
            vmm.last_call(libc::SYS_ioctl | X32, &[fd.into(), 0x4c06.into(), fd.into()])
        }),
        ("i386's LOOP_CHANGE_FD", &|vmm, fd| {
            vmm.last_call_of_i386(54, &[fd.cast_unsigned(), 0x4c06, fd.cast_unsigned()])
        }),
        ("mount", &|vmm, _| {
            vmm.last_call(libc::SYS_mount, &[c"/dev/zero".into(), c"/usr".into(), c"ext4".into(), 0.into()])
        }),
    ];
    for (what, call) in fatal {
        let vmm = Vmm::of(lab, &instance);
        assert_eq!(call(Injected::stop(vmm.pid), base_of(&vmm)), Ok(libc::SIGSYS), "{what}");
        lab.wait_for("it is seen", || lab.state(&instance) == "failed");
        lab.mvm(&["instance", "start", &instance]);
    }
}
