//! System calls for which there is no safe wrapper. All of this program's `unsafe` is here.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::mem::size_of;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

// Request numbers of include/uapi/linux/{random,fs,sockios}.h.
const RNDADDENTROPY: u32 = 0x4008_5203;
const RNDRESEEDCRNG: u32 = 0x5207;
const EXT4_IOC_RESIZE_FS: u32 = 0x4008_6610;
const BLKFLSBUF: u32 = 0x1261;
const SIOCADDRT: u32 = 0x890b;
const SIOCSIFFLAGS: u32 = 0x8914;
const SIOCSIFADDR: u32 = 0x8916;
const SIOCSIFNETMASK: u32 = 0x891c;
const SIOCSIFHWADDR: u32 = 0x8924;

const ARPHRD_ETHER: u16 = 1;
const RTF_UP_GATEWAY: u16 = 0x3;
/// Room for a seed: more than any host sends.
const MAX_SEED: usize = 512;

fn ioctl<T>(fd: impl AsFd, request: u32, argument: *mut T) -> io::Result<()> {
    // SAFETY: every caller passes the structure that its request reads or writes, alive for the call.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request as _, argument.cast::<c_void>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[repr(C)]
struct PoolInfo {
    entropy_bits: i32,
    size: i32,
    bytes: [u8; MAX_SEED],
}

/// Mixes a seed into the kernel's random generator, credits it in full, and has the generator start anew from it.
///
/// # Errors
/// The kernel's.
pub fn credit_entropy(random: impl AsFd, seed: &[u8]) -> io::Result<()> {
    let seed = &seed[..seed.len().min(MAX_SEED)];
    let size = i32::try_from(seed.len()).map_err(io::Error::other)?;
    let mut info = PoolInfo { entropy_bits: size * 8, size, bytes: [0; MAX_SEED] };
    info.bytes[..seed.len()].copy_from_slice(seed);
    let credited = ioctl(&random, RNDADDENTROPY, &raw mut info);
    info.bytes.fill(0);
    std::hint::black_box(&info.bytes);
    credited?;
    ioctl(&random, RNDRESEEDCRNG, std::ptr::null_mut::<c_void>())
}

/// Writes out and forgets what the kernel has buffered of a block device.
///
/// # Errors
/// The kernel's.
pub fn flush_block_device(device: impl AsFd) -> io::Result<()> {
    ioctl(device, BLKFLSBUF, std::ptr::null_mut::<c_void>())
}

/// Makes a mounted ext4 as large as so many of its blocks; does nothing where it is. linux/fs/ext4/ext4.h.
///
/// # Errors
/// It has more already, or the kernel's.
pub fn resize_ext4(mounted: impl AsFd, mut blocks: u64) -> io::Result<()> {
    ioctl(mounted, EXT4_IOC_RESIZE_FS, &raw mut blocks)
}

/// Sets the clock straight by this many microseconds, slowly.
///
/// # Errors
/// The kernel's.
pub fn slew_clock(micros: i64) -> io::Result<()> {
    // SAFETY: `timex` is plain numbers, for which zeros are valid; the call reads and writes only it.
    let result = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        timex.modes = libc::ADJ_OFFSET_SINGLESHOT as _;
        timex.offset = micros;
        libc::adjtimex(&raw mut timex)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The id of a child that has ended and is still to be waited for.
pub fn ended_child() -> Option<i32> {
    // SAFETY: `siginfo_t` is plain numbers, for which zeros are valid; waitid writes only it, and `si_pid` is set by it.
    let pid = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        if libc::waitid(libc::P_ALL, 0, &raw mut info, options) < 0 {
            return None;
        }
        info.si_pid()
    };
    (pid > 0).then_some(pid)
}

/// Sends a signal to every process but this one.
pub fn signal_everyone(signal: i32) {
    // SAFETY: kill has no memory effects.
    unsafe { libc::kill(-1, signal) };
}

/// Has a command's process write this to a file just before it becomes the program.
pub fn write_before_exec(command: &mut Command, file: File, text: &'static [u8]) {
    // SAFETY: between fork and exec this only makes the system call: nothing is allocated and no lock is taken.
    unsafe { command.pre_exec(move || Ok(rustix::io::write(&file, text).map(drop)?)) };
}

/// Has a command's process begin a session on the terminal that is its standard input.
pub fn lead_session_on_terminal(command: &mut Command) {
    // SAFETY: between fork and exec this only makes two system calls: nothing is allocated and no lock is taken.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?)
        });
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct SocketAddress {
    family: u16,
    data: [u8; 14],
}

impl SocketAddress {
    fn ipv4(address: Ipv4Addr) -> Self {
        let mut data = [0; 14];
        data[2..6].copy_from_slice(&address.octets());
        Self { family: libc::AF_INET as u16, data }
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct InterfaceRequest {
    name: [u8; 16],
    address: SocketAddress,
    rest: [u8; 8],
}

#[repr(C)]
struct RouteRequest {
    pad1: u64,
    destination: SocketAddress,
    gateway: SocketAddress,
    netmask: SocketAddress,
    flags: u16,
    pad2: i16,
    pad3: u64,
    pad4: *mut c_void,
    metric: i16,
    device: *mut u8,
    mtu: u64,
    window: u64,
    irtt: u16,
}

/// A network interface, and the socket through which it is changed.
pub struct Interface {
    name: [u8; 16],
    socket: OwnedFd,
}

impl Interface {
    /// The interface with this name.
    ///
    /// # Errors
    /// A name that is too long, or no socket.
    pub fn new(name: &str) -> io::Result<Self> {
        let mut bytes = [0; 16];
        if name.len() >= bytes.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        Ok(Self { name: bytes, socket })
    }

    fn request(&self, request: u32, address: SocketAddress) -> io::Result<()> {
        let mut argument = InterfaceRequest { name: self.name, address, rest: [0; 8] };
        ioctl(&self.socket, request, &raw mut argument)
    }

    /// Takes the interface up or down.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_up(&self, up: bool) -> io::Result<()> {
        let flags = if up { libc::IFF_UP as u16 } else { 0 };
        // The request's flags lie where its address would.
        self.request(SIOCSIFFLAGS, SocketAddress { family: flags, data: [0; 14] })
    }

    /// Sets the Ethernet address of an interface that is down.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_mac(&self, mac: [u8; 6]) -> io::Result<()> {
        let mut data = [0; 14];
        data[..6].copy_from_slice(&mac);
        self.request(SIOCSIFHWADDR, SocketAddress { family: ARPHRD_ETHER, data })
    }

    /// Sets the only IPv4 address.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_address(&self, address: Ipv4Addr, prefix_len: u8) -> io::Result<()> {
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix_len.min(32))).unwrap_or(0);
        self.request(SIOCSIFADDR, SocketAddress::ipv4(address))?;
        self.request(SIOCSIFNETMASK, SocketAddress::ipv4(Ipv4Addr::from_bits(mask)))
    }

    /// Adds the default route, on this interface, which is up.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add_default_route(&self, gateway: Ipv4Addr) -> io::Result<()> {
        let mut device = self.name;
        let mut route = RouteRequest {
            pad1: 0,
            destination: SocketAddress::ipv4(Ipv4Addr::UNSPECIFIED),
            gateway: SocketAddress::ipv4(gateway),
            netmask: SocketAddress::ipv4(Ipv4Addr::UNSPECIFIED),
            flags: RTF_UP_GATEWAY,
            pad2: 0,
            pad3: 0,
            pad4: std::ptr::null_mut(),
            metric: 0,
            device: device.as_mut_ptr(),
            mtu: 0,
            window: 0,
            irtt: 0,
        };
        ioctl(&self.socket, SIOCADDRT, &raw mut route)
    }
}

const _: () = assert!(size_of::<InterfaceRequest>() == 40);
const _: () = assert!(size_of::<RouteRequest>() == 120);
