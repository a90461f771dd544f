//! What a VMM may do and see.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use libtest_mimic::Trial;
use mvm_vmm::{Machine, Start};

use crate::support::{Guest, World};
use crate::test;

pub fn tests() -> Vec<Trial> {
    vec![
        test("it_runs_as_nobody_with_nothing", it_runs_as_nobody_with_nothing),
        test("its_namespaces_are_its_own", its_namespaces_are_its_own),
        test("it_sees_what_it_needs", it_sees_what_it_needs),
        test("it_holds_what_it_was_handed", it_holds_what_it_was_handed),
        test("its_use_is_limited", its_use_is_limited),
        test("its_folder_is_the_agents", its_folder_is_the_agents),
        test("a_tap_is_handed_over_and_survives_sleep", a_tap_is_handed_over_and_survives_sleep),
    ]
}

fn proc(machine: &dyn Machine, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/{name}", machine.identity().pid))
}

/// A field of the status file of every thread; all have the same.
fn status(machine: &dyn Machine, field: &str) -> String {
    let of = |path: PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        let line = text.lines().find(|line| line.starts_with(&format!("{field}:"))).unwrap();
        line.split_once(':').unwrap().1.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
    };
    let threads = fs::read_dir(proc(machine, "task")).unwrap();
    let found: BTreeSet<String> = threads.map(|thread| of(thread.unwrap().path().join("status"))).collect();
    assert_eq!(found.len(), 1, "{field}: {found:?}");
    found.into_iter().next().unwrap()
}

async fn it_runs_as_nobody_with_nothing() {
    let world = World::new().await;
    let (machine, _guest) = world.boot().await;
    let uid = world.spec.uid;
    let all_four = format!("{uid} {uid} {uid} {uid}");
    assert_eq!(status(&*machine, "Uid"), all_four);
    assert_eq!(status(&*machine, "Gid"), all_four);
    assert_eq!(status(&*machine, "Groups"), "");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(&*machine, set), "0000000000000000", "{set}");
    }
    assert_eq!(status(&*machine, "NoNewPrivs"), "1");
    assert_eq!(status(&*machine, "Seccomp"), "2");
    // Ours, and QEMU's own.
    let filters: u32 = status(&*machine, "Seccomp_filters").parse().unwrap();
    assert!(filters >= 2, "{filters}");
    // A session of its own: the field after pgrp is the session.
    let stat = fs::read_to_string(proc(&*machine, "stat")).unwrap();
    let session = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(3).unwrap();
    assert_eq!(session, machine.identity().pid.to_string());
}

async fn its_namespaces_are_its_own() {
    let world = World::new().await;
    let (machine, _guest) = world.boot().await;
    for namespace in ["net", "mnt", "ipc", "uts"] {
        let theirs = fs::read_link(proc(&*machine, "ns").join(namespace)).unwrap();
        assert_ne!(theirs, fs::read_link(format!("/proc/self/ns/{namespace}")).unwrap());
    }
    let interfaces = fs::read_to_string(proc(&*machine, "net/dev")).unwrap();
    let names: Vec<_> = interfaces.lines().filter_map(|line| Some(line.split_once(':')?.0.trim())).collect();
    assert_eq!(names, ["lo"]);
}

async fn it_sees_what_it_needs() {
    let world = World::new().await;
    let (machine, _guest) = world.boot().await;
    let root = proc(&*machine, "root");
    let list = |folder: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(root.join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let known = ["boot", "dev", "etc", "lib", "lib32", "lib64", "usr"].map(str::to_owned);
    let seen = list(".");
    assert!(seen.is_subset(&BTreeSet::from(known)), "{seen:?}");
    assert!(list("dev").is_subset(&["null", "zero", "urandom", "kvm"].map(str::to_owned).into()));
    assert_eq!(list("etc"), BTreeSet::from(["ld.so.cache".to_owned()]));
    let mounts = fs::read_to_string(proc(&*machine, "mounts")).unwrap();
    for mount in mounts.lines() {
        let options = mount.split(' ').nth(3).unwrap();
        assert!(options.split(',').any(|option| option == "ro"), "{mount}");
    }
}

async fn it_holds_what_it_was_handed() {
    let world = World::new().await;
    let (machine, _guest) = world.boot().await;
    let links: Vec<String> = fs::read_dir(proc(&*machine, "fd"))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok()?.into_os_string().into_string().ok())
        .collect();
    let run_dir = world.spec.run_dir.to_str().unwrap();
    let allowed = |link: &str| {
        let own = [&world.spec.rootfs, &world.spec.data].iter().any(|path| path.to_str() == Some(link));
        let log = link.strip_prefix(run_dir).is_some_and(|name| name.ends_with(".log"));
        let made = ["socket:", "anon_inode:", "pipe:", "/memfd:", "/dev/null"];
        own || log || made.iter().any(|start| link.starts_with(start))
    };
    let strange: Vec<_> = links.iter().filter(|link| !allowed(link)).collect();
    assert!(strange.is_empty(), "{strange:?}");
    assert!(links.iter().any(|link| Some(link.as_str()) == world.spec.data.to_str()), "{links:?}");
}

async fn its_use_is_limited() {
    let world = World::new().await;
    let (machine, _guest) = world.boot().await;
    let limits = fs::read_to_string(proc(&*machine, "limits")).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].split_ascii_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(limit("Max file size"), (64 << 20).to_string());
    assert_eq!(limit("Max core file size"), "0");
    // A file at its limit is an error to QEMU, not its end.
    let ignored = u64::from_str_radix(&status(&*machine, "SigIgn"), 16).unwrap();
    assert_ne!(ignored & (1 << (libc::SIGXFSZ - 1)), 0);
    let group = mvm_vmm::cgroup::Cgroup::existing(&world.spec.name).unwrap();
    let pid = machine.identity().pid.to_string();
    // In each hierarchy that has one of the three controllers.
    for folder in group.folders() {
        let members = fs::read_to_string(folder.join("cgroup.procs")).unwrap();
        assert!(members.lines().any(|member| member == pid), "{}", folder.display());
    }
    assert!(!group.folders().is_empty() || machine.missing_limits().len() == 3);
    machine.kill().await.unwrap();
    assert!(group.folders().iter().all(|folder| !folder.exists()), "the groups end with the machine");
}

async fn its_folder_is_the_agents() {
    let world = World::new().await;
    let (_machine, _guest) = world.boot().await;
    let folder = fs::metadata(&world.spec.run_dir).unwrap();
    assert_eq!((folder.mode() & 0o777, folder.uid()), (0o700, 0));
    // The root folder is mounted in the VMM's own namespace only.
    assert_eq!(fs::read_dir(world.spec.run_dir.join("root")).unwrap().count(), 0);
}

async fn a_tap_is_handed_over_and_survives_sleep() {
    let world = World::new().await;
    let (first, frames) = tap();
    let machine = world.launch(Some(first), Start::Cold).await.unwrap();
    let mut guest = Guest::connect(&*machine).await;
    machine.cont().await.unwrap();
    guest.expect("link", "02:6d:00:00:00:03 down").await;
    machine.set_link(true).await.unwrap();
    guest.expect("link", "02:6d:00:00:00:03 up").await;
    assert_eq!(guest.ask("send").await, "60");
    frames.become_more_than(0).await;
    let info = world.sleep(&*machine).await;
    let snapshot = world.open(&info).unwrap();
    // Another tap than before, as after a host's reboot.
    let (second, frames) = tap();
    let machine = world.launch(Some(second), Start::Restore).await.unwrap();
    let mut guest = Guest::connect(&*machine).await;
    machine.restore(snapshot.restore()).await.unwrap();
    machine.cont().await.unwrap();
    // As before it slept for the guest, while nothing passes; what it sends is lost.
    guest.expect("link", "02:6d:00:00:00:03 up").await;
    for _ in 0..20 {
        assert_eq!(guest.ask("send").await, "60");
    }
    assert_eq!(frames.so_far(), 0);
    machine.set_link(true).await.unwrap();
    assert_eq!(guest.ask("send").await, "60");
    frames.become_more_than(0).await;
    assert!(frames.so_far() < 20, "what was sent before is lost: {}", frames.so_far());
}

/// The frames that have come out of a machine.
struct Frames {
    namespace: File,
}

impl Frames {
    fn so_far(&self) -> u64 {
        let namespace = self.namespace.try_clone().unwrap();
        let read = std::thread::spawn(move || {
            rustix::thread::move_into_link_name_space(namespace.as_fd(), None).unwrap();
            fs::read_to_string("/proc/thread-self/net/dev").unwrap()
        });
        let table = read.join().unwrap();
        let line = table.lines().find_map(|line| line.trim_start().strip_prefix("tap0:")).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    }

    async fn become_more_than(&self, few: u64) {
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
        while self.so_far() <= few {
            assert!(tokio::time::Instant::now() < deadline, "nothing came");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

/// A tap in a network namespace that nothing else is in, and what comes out of it.
fn tap() -> (OwnedFd, Frames) {
    const SIOCSIFFLAGS: u64 = 0x8914;
    const TUNSETIFF: u64 = 0x4004_54ca;
    const IFF_TAP_NO_PI_VNET_HDR: u16 = 0x0002 | 0x1000 | 0x4000;
    // A thread's namespace is its own; the tap keeps it.
    let made = std::thread::spawn(|| {
        // SAFETY: the descriptor table stays shared.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
        let tun = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        let mut request = [0u8; 40];
        request[..4].copy_from_slice(b"tap0");
        request[16..18].copy_from_slice(&IFF_TAP_NO_PI_VNET_HDR.to_ne_bytes());
        // SAFETY: the request is a whole `struct ifreq`.
        let result = unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        request[16..18].copy_from_slice(&1u16.to_ne_bytes()); // IFF_UP
        // SAFETY: any socket takes the request, which is a whole `struct ifreq`.
        let result = unsafe {
            libc::ioctl(libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0), SIOCSIFFLAGS, request.as_mut_ptr())
        };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        (OwnedFd::from(tun), Frames { namespace: File::open("/proc/thread-self/ns/net").unwrap() })
    });
    made.join().unwrap()
}
