//! The system calls that no safe wrapper offers. All `unsafe` of this crate is here.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Reads another process's memory at `address` into `buffer`, all of it.
///
/// # Errors
/// If the range is not wholly readable or the process may not be looked into.
pub(crate) fn read_process(pid: i32, address: u64, buffer: &mut [u8]) -> io::Result<()> {
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: buffer.len() };
    // SAFETY: `local` describes `buffer`, which is borrowed mutably for the call; `remote` is an address in
    // another process, which the kernel checks.
    let moved = unsafe { libc::process_vm_readv(pid, &local, 1, &remote, 1, 0) };
    all(moved, buffer.len())
}

/// The most pieces that one call moves.
const PIECES: usize = 1024;

/// Writes bytes into another process's memory, each piece at its address, all of them.
///
/// # Errors
/// If a range is not wholly writable or the process may not be changed.
pub(crate) fn write_process(pid: i32, pieces: &[(u64, &[u8])]) -> io::Result<()> {
    for pieces in pieces.chunks(PIECES) {
        let of = |base: *mut libc::c_void, bytes: &[u8]| libc::iovec { iov_base: base, iov_len: bytes.len() };
        let local: Vec<_> =
            pieces.iter().map(|(_, bytes)| of(bytes.as_ptr().cast_mut().cast(), bytes)).collect();
        let remote: Vec<_> =
            pieces.iter().map(|(address, bytes)| of(*address as *mut libc::c_void, bytes)).collect();
        let count = local.len() as libc::c_ulong;
        // SAFETY: `local` describes the pieces' bytes, which the kernel only reads; `remote` has addresses in another
        // process, which the kernel checks. Both lists live for the call and have `count` entries.
        let moved = unsafe { libc::process_vm_writev(pid, local.as_ptr(), count, remote.as_ptr(), count, 0) };
        all(moved, pieces.iter().map(|(_, bytes)| bytes.len()).sum())?;
    }
    Ok(())
}

fn all(moved: isize, wanted: usize) -> io::Result<()> {
    match usize::try_from(moved) {
        Err(_) => Err(io::Error::last_os_error()),
        Ok(moved) if moved == wanted => Ok(()),
        Ok(_) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the memory ends early")),
    }
}

/// Lets a write beyond the file size limit fail instead of killing the process; an exec keeps it.
pub(crate) fn ignore_file_size_signal() {
    // SAFETY: ignoring a signal installs no handler that could run.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Marks every descriptor from `first` on to be closed by the next exec.
///
/// # Errors
/// On kernels before 5.11.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: only the close-on-exec flag changes; no descriptor is closed here.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The processor's time stamp counter.
pub(crate) fn time_stamp() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux lets user space run it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Gives this process a mount, network, IPC and host name namespace of its own.
///
/// # Errors
/// Without CAP_SYS_ADMIN, or where the kernel lacks one of them.
pub(crate) fn unshare_namespaces() -> rustix::io::Result<()> {
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    let namespaces = UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    // SAFETY: the descriptor table stays shared (no `FILES`), which is the one thing that could be unsound.
    unsafe { unshare_unsafe(namespaces) }
}

// linux/loop.h.
const LOOP_GET_STATUS64: libc::Ioctl = 0x4c05;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    names: [u8; 64 + 64 + 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo>() == 232 && size_of::<LoopConfig>() == 304);

impl LoopInfo {
    const EMPTY: Self = Self {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        names: [0; 160],
        init: [0; 2],
    };
}

/// What is behind a loop device.
pub(crate) struct LoopStatus {
    pub(crate) inode: u64,
    pub(crate) read_only: bool,
}

/// The number of a loop device that nobody uses.
///
/// # Errors
/// The kernel's.
pub(crate) fn free_loop(control: BorrowedFd<'_>) -> io::Result<i32> {
    // SAFETY: this request takes no argument.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    if number < 0 { Err(io::Error::last_os_error()) } else { Ok(number) }
}

/// Puts a file behind a loop device: read-only, past the file's own page cache, until the last one closes it.
///
/// # Errors
/// `EBUSY` if another program was faster, and the kernel's others.
pub(crate) fn configure_loop(device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<()> {
    let flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO;
    let fd = u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
    let info = LoopInfo { flags, ..LoopInfo::EMPTY };
    let mut config = LoopConfig { fd, block_size: 0, info, reserved: [0; 8] };
    // SAFETY: the request reads one `loop_config`, which lives for the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw mut config) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What is behind a loop device.
///
/// # Errors
/// `ENXIO` if nothing is.
pub(crate) fn loop_status(device: BorrowedFd<'_>) -> io::Result<LoopStatus> {
    let mut info = LoopInfo::EMPTY;
    // SAFETY: the request writes one `loop_info64`, which lives for the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(LoopStatus { inode: info.inode, read_only: info.flags & LO_FLAGS_READ_ONLY != 0 })
}

/// Whether the kernel lets this descriptor be mapped shared and writable. The mapping is taken away at once.
pub(crate) fn maps_writable(descriptor: BorrowedFd<'_>) -> bool {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let length = 4096;
    // SAFETY: a new mapping, at an address that the kernel chooses, that nothing is read from or written to.
    unsafe {
        let address =
            libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, descriptor.as_raw_fd(), 0);
        address != libc::MAP_FAILED && {
            libc::munmap(address, length);
            true
        }
    }
}

/// Whether somebody keeps the host's clock right, as the kernel was told.
pub(crate) fn clock_is_kept() -> bool {
    // SAFETY: all of its fields are numbers, and may be zero.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: with no mode set it changes nothing, and writes one `timex`, which lives for the call.
    let answer = unsafe { libc::adjtimex(&raw mut state) };
    answer >= 0 && state.status & libc::STA_UNSYNC == 0
}

/// A descriptor whose readability can be awaited. To be called in a runtime.
///
/// # Errors
/// If the descriptor cannot be polled.
pub(crate) fn watch_readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor stays open, and the same, as long as what owns it.
    unsafe { Ok(AsyncFd::register_with_interest(descriptor, Interest::READABLE)?) }
}
