//! The test guest: PID 1 of a machine, alone in its initrd.
//!
//! It loads the virtio modules, then answers lines on the port `mvm.control`. It is compiled by the tests
//! with plain `rustc` for musl, so it has no dependencies.

use std::ffi::{CString, c_char, c_int, c_long, c_ulong, c_void};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Duration;

unsafe extern "C" {
    fn mount(from: *const c_char, to: *const c_char, kind: *const c_char, flags: c_ulong, data: *const c_void) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn sendto(fd: c_int, data: *const u8, length: usize, flags: c_int, to: *const u8, size: u32) -> isize;
    fn ioctl(fd: c_int, request: c_int, ...) -> c_int;
    fn reboot(how: c_int) -> c_int;
}

const FINIT_MODULE: c_long = 313;
const POWER_OFF: c_int = 0x4321_fedc;
const SIOCSIFFLAGS: c_int = 0x8914;
/// The order matters: `virtio_ring` comes before `virtio`.
const MODULES: [&str; 8] = [
    "virtio_ring", "virtio", "virtio_mmio", "virtio_blk", "failover", "net_failover", "virtio_net", "virtio_console",
];

fn main() {
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        let _ = fs::create_dir_all(at);
        let (kind, at) = (CString::new(kind).unwrap(), CString::new(at).unwrap());
        unsafe { mount(kind.as_ptr(), at.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
    }
    for module in MODULES {
        load(module);
    }
    link_up();
    let mut port = open_port();
    println!("guest: ready");
    serve(&mut port);
}

fn load(module: &str) {
    let file = File::open(format!("/modules/{module}.ko")).unwrap();
    let result = unsafe { syscall(FINIT_MODULE, file.as_raw_fd(), c"".as_ptr(), 0) };
    assert!(result == 0, "{module}: {}", std::io::Error::last_os_error());
}

/// Sets eth0 up, without which the kernel does not tell its carrier.
fn link_up() {
    let mut request = [0u8; 40];
    request[..4].copy_from_slice(b"eth0");
    request[16] = 1; // IFF_UP
    unsafe { ioctl(socket(2, 2, 0), SIOCSIFFLAGS, request.as_mut_ptr()) };
}

/// Sends a frame of its own out of eth0, and says how many bytes the kernel took.
fn send() -> isize {
    const SOCK_PACKET: c_int = 10;
    let every_protocol = c_int::from(3u16.to_be());
    let mut frame = [0u8; 60];
    frame[..6].fill(0xff);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]); // for experiments (IEEE 802)
    let mut to = [0u8; 16];
    to[0] = 2;
    to[2..6].copy_from_slice(b"eth0");
    unsafe { sendto(socket(2, SOCK_PACKET, every_protocol), frame.as_ptr(), frame.len(), 0, to.as_ptr(), 16) }
}

fn open_port() -> File {
    loop {
        for entry in fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten() {
            let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            let device = PathBuf::from("/dev").join(entry.file_name());
            if name.trim() == "mvm.control" && device.exists() {
                return OpenOptions::new().read(true).write(true).open(device).unwrap();
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn serve(port: &mut File) {
    let (mut count, mut held, mut line, mut buffer) = (0u64, Vec::new(), Vec::new(), [0u8; 512]);
    loop {
        // Without a connected host a read gives nothing at all, at once.
        let Ok(read @ 1..) = port.read(&mut buffer) else {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        for byte in &buffer[..read] {
            if *byte != b'\n' {
                line.push(*byte);
                continue;
            }
            let command = String::from_utf8_lossy(&std::mem::take(&mut line)).into_owned();
            let answer = answer(&command, &mut count, &mut held);
            let _ = port.write_all(format!("{answer}\n").as_bytes());
        }
    }
}

fn answer(command: &str, count: &mut u64, held: &mut Vec<u64>) -> String {
    let (verb, argument) = command.split_once(' ').unwrap_or((command, ""));
    match verb {
        "count" => {
            *count += 1;
            count.to_string()
        }
        // Fills so many MiB with numbers that do not repeat.
        "fill" => {
            let words = argument.parse::<u64>().unwrap() << 17;
            *held = (1..=words).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
            "filled".into()
        }
        "check" => {
            let good = held.iter().zip(1u64..).all(|(word, n)| *word == n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            format!("{} {good}", held.len() >> 17)
        }
        "link" => format!(
            "{} {}",
            read("/sys/class/net/eth0/address"),
            if read("/sys/class/net/eth0/carrier") == "1" { "up" } else { "down" }
        ),
        "send" => send().to_string(),
        "disks" => format!("{} {}", read("/sys/block/vda/size"), read("/sys/block/vdb/size")),
        "read-only" => read("/sys/block/vda/ro"),
        "write" => {
            let mut disk = OpenOptions::new().write(true).open("/dev/vdb").unwrap();
            disk.write_all(format!("{argument:<4096}").as_bytes()).and_then(|()| disk.sync_all()).map_or_else(|e| e.to_string(), |()| "written".into())
        }
        "read" => {
            let mut disk = File::open("/dev/vdb").unwrap();
            let mut block = vec![0; 4096];
            disk.seek(SeekFrom::Start(0)).and_then(|_| disk.read_exact(&mut block)).unwrap();
            String::from_utf8_lossy(&block).trim().into()
        }
        "log" => {
            println!("{argument}");
            "logged".into()
        }
        "power-off" => {
            unsafe { reboot(POWER_OFF) };
            "still here".into()
        }
        "panic" => std::process::exit(1),
        _ => format!("what is {command:?}?"),
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|error| error.to_string(), |text| text.trim().into())
}
