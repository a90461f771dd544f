//! What a VMM could try on a base, and how each attempt has to fail.

use std::ffi::CStr;

use crate::injected::{Arg, Injected, Outcome};

/// One system call.
pub struct Attempt<'a> {
    pub what: String,
    number: i64,
    arguments: Vec<Arg<'a>>,
    expected: &'static [Outcome],
}

impl Attempt<'_> {
    /// Tries it; what was wrong with the outcome.
    pub fn make(&self, vmm: &mut Injected) -> Option<String> {
        let found = vmm.call(self.number, &self.arguments);
        let fits = self.expected.contains(&found);
        (!fits).then(|| format!("{}: {found:?} instead of {:?}", self.what, self.expected))
    }
}

/// How a descriptor of the base is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    Both,
}

impl Access {
    pub fn flags(self) -> i32 {
        match self {
            Self::Read => libc::O_RDONLY,
            Self::Write => libc::O_WRONLY,
            Self::Both => libc::O_RDWR,
        }
    }
}

/// Nobody may, and so it is with a descriptor that is not open for it.
const NOT_PERMITTED: &[Outcome] = &[Err(libc::EPERM)];
const NOT_OPEN_FOR_IT: &[Outcome] = &[Err(libc::EBADF)];
const UNSUPPORTED: &[Outcome] = &[Err(libc::EOPNOTSUPP)];
const INVALID: &[Outcome] = &[Err(libc::EINVAL)];
const READ_ONLY: &[Outcome] = &[Err(libc::EROFS)];
const ABSENT: &[Outcome] = &[Err(libc::ENOENT)];

const LOOP_IOCTLS: [(&str, u64); 11] = [
    ("LOOP_SET_FD", 0x4c00),
    ("LOOP_CLR_FD", 0x4c01),
    ("LOOP_SET_STATUS", 0x4c02),
    ("LOOP_GET_STATUS", 0x4c03),
    ("LOOP_SET_STATUS64", 0x4c04),
    ("LOOP_GET_STATUS64", 0x4c05),
    ("LOOP_CHANGE_FD", 0x4c06),
    ("LOOP_SET_CAPACITY", 0x4c07),
    ("LOOP_SET_DIRECT_IO", 0x4c08),
    ("LOOP_SET_BLOCK_SIZE", 0x4c09),
    ("LOOP_CONFIGURE", 0x4c0a),
];
const BLOCK_IOCTLS: [(&str, u64); 15] = [
    ("BLKROSET", 0x125d),
    ("BLKRRPART", 0x125f),
    ("BLKFLSBUF", 0x1261),
    ("BLKRASET", 0x1262),
    ("BLKFRASET", 0x1264),
    ("BLKPG", 0x1269),
    ("BLKBSZSET", 0x4008_1271),
    ("BLKTRACESETUP", 0xc048_1273),
    ("BLKTRACESTART", 0x1274),
    ("BLKTRACESTOP", 0x1275),
    ("BLKTRACETEARDOWN", 0x1276),
    ("BLKDISCARD", 0x1277),
    ("BLKSECDISCARD", 0x127d),
    ("BLKZEROOUT", 0x127f),
    ("BLKTRACESETUP2", 0xc050_128e),
];

/// 512 bytes that are not the base's.
static BYTES: [u8; 512] = [0xa5; 512];
/// Large enough for every call's argument.
static NOTHING: [u8; 1024] = [0; 1024];
/// The second page, as block devices' requests have it.
/// `struct file_handle`, with eight bytes of a handle.
static HANDLE: [u8; 16] = [8, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0];
/// `struct blk_user_trace_setup`, with four small buffers.
static TRACE: [u8; 512] = {
    let mut setup = [0; 512];
    (setup[32], setup[37], setup[40]) = (0xff, 0x10, 4);
    setup
};
static RANGE: [u8; 512] = {
    let mut range = [0; 512];
    (range[1], range[9]) = (0x10, 0x10);
    range
};

fn attempt<'a>(
    what: impl Into<String>,
    number: i64,
    arguments: impl IntoIterator<Item = Arg<'a>>,
    expected: &'static [Outcome],
) -> Attempt<'a> {
    Attempt { what: what.into(), number, arguments: arguments.into_iter().collect(), expected }
}

/// What a VMM has beside the descriptor of the base.
#[derive(Debug, Clone, Copy)]
pub struct Means {
    /// A file with something in it that it may read.
    pub source: i32,
    /// The ends of a pipe with something in it.
    pub pipe: [i32; 2],
    /// The address of an `iovec` with something in it.
    pub vector: u64,
    /// Whether its filter lets it map anything shared: KVM needs that.
    pub shares: bool,
}

/// Everything that could change what is behind a descriptor of the base.
pub fn on_base(fd: i32, access: Access, means: Means) -> Vec<Attempt<'static>> {
    let mut all = writes(fd, access, means);
    all.extend(mappings(fd, access, means.shares));
    all.extend(ioctls(fd));
    all
}

/// Loop and block devices' requests: refused by the filter, whatever the descriptor is.
pub fn ioctls(fd: i32) -> Vec<Attempt<'static>> {
    let requests = LOOP_IOCTLS.into_iter().chain(BLOCK_IOCTLS);
    // The kernel looks at the lower half of the request only.
    let high = [0, 0xffff_ffff_0000_0000, 0x4c00_0000_0000];
    let all = requests.flat_map(|(name, request)| high.map(|high| (name, request | high)));
    all.map(|(name, request)| {
        let argument = if name.contains("TRACESETUP") { &TRACE } else { &RANGE };
        let arguments = [fd.into(), request.into(), argument.into()];
        attempt(format!("{name} {request:#x} on {fd}"), libc::SYS_ioctl, arguments, NOT_PERMITTED)
    })
    .collect()
}

fn writes(fd: i32, access: Access, means: Means) -> Vec<Attempt<'static>> {
    let Means { source, pipe, vector, .. } = means;
    let or_not_open = |expected| if access == Access::Read { NOT_OPEN_FOR_IT } else { expected };
    let (refused, unsupported) = (or_not_open(NOT_PERMITTED), or_not_open(UNSUPPORTED));
    let (to, from, bytes, zero) = (Arg::from(fd), Arg::from(source), Arg::from(&BYTES), Arg::from(0));
    let (some, at) = (Arg::from(BYTES.len() as u64), Arg::from(4096));
    let copied = [from, zero, to, zero, some, zero];
    let mut all = vec![
        attempt("write", libc::SYS_write, [to, bytes, some], refused),
        attempt("pwrite64", libc::SYS_pwrite64, [to, bytes, some, at], refused),
        attempt("writev", libc::SYS_writev, [to, vector.into(), 1.into()], refused),
        attempt("pwritev", libc::SYS_pwritev, [to, vector.into(), 1.into(), at, zero], refused),
        attempt("pwritev2", libc::SYS_pwritev2, [to, vector.into(), 1.into(), at, zero, zero], refused),
        attempt("ftruncate", libc::SYS_ftruncate, [to, at], INVALID),
        attempt("copy_file_range", libc::SYS_copy_file_range, copied, INVALID),
        attempt("sendfile", libc::SYS_sendfile, [to, from, (&NOTHING).into(), some], refused),
        attempt("splice", libc::SYS_splice, [pipe[0].into(), zero, to, zero, some, zero], refused),
        attempt("fchmod", libc::SYS_fchmod, [to, 0o666.into()], READ_ONLY),
        attempt("fchown", libc::SYS_fchown, [to, zero, zero], READ_ONLY),
    ];
    for (what, mode, expected) in [
        ("fallocate", 0, unsupported),
        ("fallocate: punch a hole", libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, refused),
        ("fallocate: zero a range", libc::FALLOC_FL_ZERO_RANGE, refused),
        ("fallocate: collapse a range", libc::FALLOC_FL_COLLAPSE_RANGE, unsupported),
        ("fallocate: insert a range", libc::FALLOC_FL_INSERT_RANGE, unsupported),
    ] {
        all.push(attempt(what, libc::SYS_fallocate, [to, mode.into(), zero, at], expected));
    }
    if access != Access::Write {
        // What comes out of the page cache into a pipe is not to be written into there.
        let arguments = [to, (&NOTHING).into(), pipe[1].into(), zero, some, zero];
        all.push(attempt("splice out of it", libc::SYS_splice, arguments, &[Ok(512)]));
        let arguments = [pipe[1].into(), bytes, some];
        all.push(attempt("write after what was spliced", libc::SYS_write, arguments, &[Ok(512)]));
        // As much as came in, so that there is always room.
        let arguments = [pipe[0].into(), (&NOTHING).into(), 1024.into()];
        all.push(attempt("read what was spliced first", libc::SYS_read, arguments, &[Ok(1024)]));
    }
    all
}

fn mappings(fd: i32, access: Access, shares: bool) -> Vec<Attempt<'static>> {
    let both = libc::PROT_READ | libc::PROT_WRITE;
    let mut all = Vec::new();
    for (what, protection, flags) in [
        ("MAP_SHARED", both, libc::MAP_SHARED),
        ("MAP_SHARED, write only", libc::PROT_WRITE, libc::MAP_SHARED),
        ("MAP_SHARED_VALIDATE", both, libc::MAP_SHARED_VALIDATE),
        ("MAP_SHARED_VALIDATE | MAP_SYNC", both, libc::MAP_SHARED_VALIDATE | libc::MAP_SYNC),
    ] {
        let expected: &[Outcome] = match (shares, access) {
            (false, _) => NOT_PERMITTED,
            // A descriptor that is not open for it; a device that is read-only.
            (true, Access::Both) => &[Err(libc::EINVAL), Err(libc::EOPNOTSUPP)],
            (true, _) => &[Err(libc::EACCES), Err(libc::EOPNOTSUPP)],
        };
        let arguments = [0.into(), 4096.into(), protection.into(), flags.into(), fd.into(), 0.into()];
        all.push(attempt(what, libc::SYS_mmap, arguments, expected));
    }
    all
}

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Folder,
    File,
    /// A device of its own, which it may open for writing.
    Device,
}

/// Everything that could change what a path leads to, or what is at it.
pub fn on_path<'a>(path: &'a CStr, new: &'a CStr, kind: Kind) -> Vec<Attempt<'a>> {
    let opened: &[Outcome] = match kind {
        Kind::Folder => &[Err(libc::EISDIR)],
        Kind::File => &[Err(libc::EACCES), Err(libc::EROFS)],
        Kind::Device => return on_device_path(path, new),
    };
    let mut all = in_folder(path, new);
    for flags in [libc::O_RDWR, libc::O_WRONLY, libc::O_WRONLY | libc::O_TRUNC, libc::O_RDWR | libc::O_APPEND]
    {
        let what = format!("open {path:?} with {flags:#x}");
        all.push(attempt(what, libc::SYS_open, [path.into(), flags.into()], opened));
    }
    all.push(attempt(format!("creat {path:?}"), libc::SYS_creat, [path.into(), 0o666.into()], opened));
    all.push(attempt(format!("truncate {path:?}"), libc::SYS_truncate, [path.into(), 0.into()], opened));
    all
}

fn on_device_path<'a>(path: &'a CStr, new: &'a CStr) -> Vec<Attempt<'a>> {
    let mut all = in_folder(path, new);
    all.push(attempt(format!("truncate {path:?}"), libc::SYS_truncate, [path.into(), 0.into()], INVALID));
    all
}

fn in_folder<'a>(path: &'a CStr, new: &'a CStr) -> Vec<Attempt<'a>> {
    let (old, made, zero) = (Arg::from(path), Arg::from(new), Arg::from(0));
    let attempts: [(&str, i64, Vec<Arg<'a>>, &'static [Outcome]); 11] = [
        ("chmod", libc::SYS_chmod, vec![old, 0o666.into()], READ_ONLY),
        ("chown", libc::SYS_chown, vec![old, zero, zero], READ_ONLY),
        ("utimensat", libc::SYS_utimensat, vec![libc::AT_FDCWD.into(), old, zero, zero], READ_ONLY),
        ("unlink", libc::SYS_unlink, vec![old], READ_ONLY),
        ("rename", libc::SYS_rename, vec![old, made], READ_ONLY),
        ("link", libc::SYS_link, vec![old, made], READ_ONLY),
        ("symlink", libc::SYS_symlink, vec![old, made], READ_ONLY),
        ("mknod", libc::SYS_mknod, vec![made, (libc::S_IFBLK | 0o666).cast_signed().into(), zero], READ_ONLY),
        ("mkdir", libc::SYS_mkdir, vec![made, 0o777.into()], READ_ONLY),
        ("a new file", libc::SYS_creat, vec![made, 0o666.into()], READ_ONLY),
        ("open_tree", libc::SYS_open_tree, vec![libc::AT_FDCWD.into(), old, 1.into()], NOT_PERMITTED),
    ];
    let named = attempts.into_iter();
    named
        .map(|(what, number, list, expected)| attempt(format!("{what} {path:?}"), number, list, expected))
        .collect()
}

/// Ways round: another process's memory and descriptors, the kernel's own file systems, rings that make calls past the filter.
pub fn ways_round(other: u32, pidfd: i32, vector: u64) -> Vec<Attempt<'static>> {
    let (pid, zero, one) = (Arg::from(u64::from(other)), Arg::from(0), Arg::from(1));
    let memory = [pid, vector.into(), one, vector.into(), one, zero];
    let mut all = vec![
        attempt("process_vm_readv", libc::SYS_process_vm_readv, memory, NOT_PERMITTED),
        attempt("process_vm_writev", libc::SYS_process_vm_writev, memory, NOT_PERMITTED),
        attempt("PTRACE_ATTACH", libc::SYS_ptrace, [16.into(), pid, zero, zero], NOT_PERMITTED),
        attempt("PTRACE_SEIZE", libc::SYS_ptrace, [0x4206.into(), pid, zero, zero], NOT_PERMITTED),
        attempt("kill", libc::SYS_kill, [pid, 9.into()], NOT_PERMITTED),
        attempt("pidfd_getfd", libc::SYS_pidfd_getfd, [pidfd.into(), zero, zero], NOT_PERMITTED),
        attempt(
            "pidfd_send_signal",
            libc::SYS_pidfd_send_signal,
            [pidfd.into(), 9.into(), zero, zero],
            NOT_PERMITTED,
        ),
        attempt("prlimit64", libc::SYS_prlimit64, [pid, 7.into(), (&NOTHING).into(), zero], NOT_PERMITTED),
        attempt("io_uring_setup", libc::SYS_io_uring_setup, [4.into(), (&NOTHING).into()], NOT_PERMITTED),
        attempt(
            "open_by_handle_at",
            libc::SYS_open_by_handle_at,
            [libc::AT_FDCWD.into(), (&HANDLE).into(), zero],
            NOT_PERMITTED,
        ),
        attempt("fsopen", libc::SYS_fsopen, [c"proc".into(), zero], NOT_PERMITTED),
        attempt("chroot", libc::SYS_chroot, [c"/".into()], NOT_PERMITTED),
    ];
    for path in
        [c"/proc/self/mem", c"/proc/1/root", c"/sys/block", c"/dev/mem", c"/dev/loop-control", c"/dev/loop0"]
    {
        let what = format!("open {path:?}");
        all.push(attempt(what, libc::SYS_open, [path.into(), libc::O_RDWR.into()], ABSENT));
    }
    all
}
