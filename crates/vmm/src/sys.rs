//! The system calls that no safe wrapper offers. All `unsafe` of this crate is here.

use std::io;
use std::os::fd::OwnedFd;

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

/// Writes `bytes` into another process's memory at `address`, all of them.
///
/// # Errors
/// If the range is not wholly writable or the process may not be changed.
pub(crate) fn write_process(pid: i32, address: u64, bytes: &[u8]) -> io::Result<()> {
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: bytes.len() };
    // SAFETY: `local` describes `bytes`, which the kernel only reads; `remote` is an address in another
    // process, which the kernel checks.
    let moved = unsafe { libc::process_vm_writev(pid, &local, 1, &remote, 1, 0) };
    all(moved, bytes.len())
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

/// A descriptor whose readability can be awaited. To be called in a runtime.
///
/// # Errors
/// If the descriptor cannot be polled.
pub(crate) fn watch_readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor stays open, and the same, as long as what owns it.
    unsafe { Ok(AsyncFd::register_with_interest(descriptor, Interest::READABLE)?) }
}
