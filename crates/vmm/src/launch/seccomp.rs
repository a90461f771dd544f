//! The filter that is installed before QEMU installs its own.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

/// Loop devices' ioctls: `LOOP_CHANGE_FD` and `LOOP_SET_STATUS` need no privilege on a device one has
/// open, and would replace a base for every machine that maps it.
const LOOP_IOCTLS: u64 = 0x4c00;
/// Block devices' ioctls: `BLKTRACESETUP` needs no privilege either, takes as much of the kernel's memory as it is told, and
/// shows what others do with the base. A VMM needs none of them: its disks are files.
const BLOCK_IOCTLS: u64 = 0x1200;
const IOCTL_TYPE: u64 = 0xff00;
/// The bit that marks x32's system calls, whose numbers would slip past the filter.
const X32: u32 = 0x4000_0000;

/// Refuses block devices' ioctls and rings of system calls that no filter sees with EPERM, and kills the process at system
/// calls of another architecture.
///
/// Without KVM, which needs them, shared mappings are refused too: before Linux 6.6 a read-only device could be written by one.
pub(super) fn install(kvm: bool) -> Result<(), Box<dyn std::error::Error>> {
    seccompiler::apply_filter(&program(kvm)?)?;
    Ok(seccompiler::apply_filter(&fatal()?)?)
}

fn program(kvm: bool) -> Result<BpfProgram, seccompiler::BackendError> {
    let ioctls = |kind| {
        let of_kind = SeccompCmpOp::MaskedEq(IOCTL_TYPE);
        SeccompRule::new(vec![SeccompCondition::new(1, SeccompCmpArgLen::Dword, of_kind, kind)?])
    };
    let mut rules = BTreeMap::from([
        (libc::SYS_ioctl, vec![ioctls(LOOP_IOCTLS)?, ioctls(BLOCK_IOCTLS)?]),
        // Whatever the arguments. The second one could hold up whoever reads the VMM's memory.
        (libc::SYS_io_uring_setup, Vec::new()),
        (libc::SYS_userfaultfd, Vec::new()),
    ]);
    if !kvm {
        // MAP_SHARED_VALIDATE has this bit too, MAP_PRIVATE has not.
        let shared = libc::MAP_SHARED as u64;
        let condition =
            SeccompCondition::new(3, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(shared), shared)?;
        rules.insert(libc::SYS_mmap, vec![SeccompRule::new(vec![condition])?]);
    }
    let filter = filter(rules, SeccompAction::Errno(libc::EPERM as u32))?;
    Ok(refuse_x32().into_iter().chain(filter).collect())
}

/// Calls that no VMM makes. QEMU's own filter ends only the thread that makes one, which would leave a machine without its
/// main loop and its process there: this one ends the process.
fn fatal() -> Result<BpfProgram, seccompiler::BackendError> {
    let calls = [
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
    ];
    filter(calls.map(|call| (call, Vec::new())).into(), SeccompAction::KillProcess)
}

fn filter(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    matched: SeccompAction,
) -> Result<BpfProgram, seccompiler::BackendError> {
    SeccompFilter::new(rules, SeccompAction::Allow, matched, TargetArch::x86_64)?.try_into()
}

/// Load the call's number; kill the process if it has x32's bit. (The architecture is the same for both.)
fn refuse_x32() -> [sock_filter; 3] {
    let statement = |code: u32, jt, jf, k| sock_filter { code: code as u16, jt, jf, k };
    [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, X32),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(request: u64) -> Option<i32> {
        let null = std::fs::File::open("/dev/null").unwrap();
        let descriptor = std::os::fd::AsRawFd::as_raw_fd(&null);
        // SAFETY: /dev/null knows no ioctl, and none of these takes memory.
        let result = unsafe { libc::ioctl(descriptor, request, 0) };
        (result != 0).then(|| std::io::Error::last_os_error().raw_os_error()).flatten()
    }

    #[test]
    fn block_devices_ioctls_are_refused_and_others_are_not() {
        let (change_fd, set_status, trace, other) = (0x4c06, 0x4c02, 0xc048_1273, 0x5401);
        assert_eq!(error_of(change_fd), Some(libc::ENOTTY), "so it is without the filter");
        // A filter is its thread's own.
        let filtered = std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            install(true).unwrap();
            [change_fd, set_status, 0xffff_ffff_0000_4c06, trace, other].map(error_of)
        });
        let refused = Some(libc::EPERM);
        assert_eq!(filtered.join().unwrap(), [refused, refused, refused, refused, Some(libc::ENOTTY)]);
    }
}
