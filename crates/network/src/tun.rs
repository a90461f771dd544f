//! Taps: made by ioctl, alive as long as somebody holds the descriptor.

use std::ffi::c_void;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::ioctl;

/// `_IOW('T', 202, int)` of linux/if_tun.h; the kernel reads a `struct ifreq`.
const TUNSETIFF: ioctl::Opcode = ioctl::opcode::write::<i32>(b'T', 202);
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const NAME_LEN: usize = 16;

/// The beginning of `struct ifreq`, padded to its full size.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME_LEN],
    flags: u16,
    rest: [u8; 22],
}

/// Creates the tap in the calling thread's namespace, or joins a persistent one of that name. It is gone when the
/// last copy of the descriptor is closed. `EBUSY`: somebody holds it.
pub(crate) fn open_tap(name: &str) -> io::Result<OwnedFd> {
    let mut request =
        InterfaceRequest { name: [0; NAME_LEN], flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, rest: [0; 22] };
    let bytes = name.as_bytes();
    if bytes.len() >= NAME_LEN {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    request.name[..bytes.len()].copy_from_slice(bytes);
    let fd = open_device()?;
    // SAFETY: TUNSETIFF reads a `struct ifreq` (40 bytes on 64-bit Linux), writes back the name and flags in it, and
    // keeps no pointer; `InterfaceRequest` has that size and outlives the call.
    unsafe { ioctl::ioctl(&fd, SetInterface(&mut request))? };
    Ok(fd)
}

/// Opens /dev/net/tun for a tap in the calling thread's namespace.
pub(crate) fn open_device() -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(rustix::fs::open("/dev/net/tun", flags, Mode::empty())?)
}

struct SetInterface<'a>(&'a mut InterfaceRequest);

// SAFETY: the opcode is TUNSETIFF and the pointer is to what it reads and writes, borrowed for the call.
unsafe impl ioctl::Ioctl for SetInterface<'_> {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> ioctl::Opcode {
        TUNSETIFF
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self.0).cast()
    }

    unsafe fn output_from_ptr(_: ioctl::IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_has_the_size_of_struct_ifreq() {
        assert_eq!(std::mem::size_of::<InterfaceRequest>(), 40);
        assert_eq!(TUNSETIFF, 0x4004_54ca);
    }
}
