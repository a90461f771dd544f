//! What raw machines are restored from: a base, and what a machine wrote over it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::memory::{GuestMemory, PAGE, Pages, append, count, groups};
use crate::Result;

/// Pages that are read and written at once.
const PORTION: u64 = 256;

/// Memory that machines map, and the device state that belongs to it.
#[derive(Debug)]
pub struct Image {
    /// MiB of memory.
    pub mem_mib: u32,
    /// Device state.
    pub devices: File,
    file: PathBuf,
    loop_device: LoopDevice,
}

impl Image {
    /// Of a stopped machine with memory of its own: every page that is not zero, in a sparse file.
    pub fn of(memory: &GuestMemory, mem_mib: u32, devices: &[u8], file: PathBuf) -> Result<Self> {
        let mut options = File::options();
        let output = options.write(true).create_new(true).mode(0o400).open(&file)?;
        output.set_len(u64::from(mem_mib) << 20)?;
        write_over(&output, memory, Zeros::AreThere)?;
        Self::finish(output, mem_mib, devices, file)
    }

    /// A copy of this image with a stopped machine's pages written over it.
    pub fn with(&self, memory: &GuestMemory, devices: &[u8], file: PathBuf) -> Result<Self> {
        let copied = Command::new("cp").arg("--sparse=always").arg(&self.file).arg(&file).status()?;
        if !copied.success() {
            return Err(format!("{} could not be copied", self.file.display()).into());
        }
        let output = File::options().write(true).open(&file)?;
        write_over(&output, memory, Zeros::Count)?;
        Self::finish(output, self.mem_mib, devices, file)
    }

    fn finish(output: File, mem_mib: u32, devices: &[u8], file: PathBuf) -> Result<Self> {
        output.sync_all()?;
        let loop_device = LoopDevice::attach(&file)?;
        Ok(Self { mem_mib, devices: super::memory_file(devices)?, file, loop_device })
    }

    /// What machines map.
    pub fn path(&self) -> &Path {
        &self.loop_device.path
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

/// What becomes of private pages of zeros.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Zeros {
    /// There are zeros below: they are left out.
    AreThere,
    /// They may lie over something else.
    Count,
}

fn write_over(output: &File, memory: &GuestMemory, zeros: Zeros) -> Result<()> {
    each_portion(memory, zeros, |pages, bytes| {
        let mut rest = bytes;
        for range in pages {
            let (now, after) = rest.split_at((range.end - range.start) as usize * PAGE);
            output.write_all_at(now, range.start * PAGE as u64)?;
            rest = after;
        }
        Ok(())
    })
}

/// Gives out every private page, some at a time.
fn each_portion(
    memory: &GuestMemory,
    zeros: Zeros,
    mut take: impl FnMut(&[Pages], &[u8]) -> Result<()>,
) -> Result<()> {
    let mut buffer = vec![0; PORTION as usize * PAGE];
    for group in groups(&memory.private()?, PORTION) {
        let bytes = &mut buffer[..count(&group) as usize * PAGE];
        memory.read(&group, bytes)?;
        if zeros == Zeros::Count {
            take(&group, bytes)?;
            continue;
        }
        let (mut full, mut kept) = (Vec::with_capacity(bytes.len()), Vec::new());
        for (page, index) in bytes.chunks_exact(PAGE).zip(group.into_iter().flatten()) {
            if page != [0; PAGE] {
                full.extend_from_slice(page);
                append(&mut kept, index);
            }
        }
        take(&kept, &full)?;
    }
    Ok(())
}

/// A read-only loop device, held open so that its page cache stays.
#[derive(Debug)]
struct LoopDevice {
    path: PathBuf,
    _open: File,
}

impl LoopDevice {
    fn attach(file: &Path) -> Result<Self> {
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show", "--read-only", "--direct-io=on"]).arg(file);
        let output = crate::leftovers::spawning(|| losetup.output())?;
        if !output.status.success() {
            return Err(format!("losetup: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        let path = PathBuf::from(String::from_utf8(output.stdout)?.trim());
        Ok(Self { _open: File::open(&path)?, path })
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.path).status();
    }
}

/// Pages that a machine wrote over its image, and its device state, in one file.
#[derive(Debug)]
pub struct Delta {
    file: PathBuf,
    pages: Vec<Pages>,
    device_bytes: usize,
}

impl Delta {
    /// Writes a stopped machine's delta durably: a temporary file, fsynced, renamed, the folder fsynced.
    pub fn write(memory: &GuestMemory, devices: &[u8], file: &Path) -> Result<Self> {
        let temporary = file.with_extension("new");
        let mut output = File::create(&temporary)?;
        output.write_all(devices)?;
        let mut pages: Vec<Pages> = Vec::new();
        each_portion(memory, Zeros::Count, |kept, bytes| {
            kept.iter().cloned().flatten().for_each(|page| append(&mut pages, page));
            Ok(output.write_all(bytes)?)
        })?;
        output.sync_all()?;
        std::fs::rename(&temporary, file)?;
        File::open(file.parent().ok_or("a delta lies in a folder")?)?.sync_all()?;
        Ok(Self { file: file.to_owned(), pages, device_bytes: devices.len() })
    }

    /// Its device state, and its pages written into a VMM that waits for it.
    pub fn fill(&self, memory: &GuestMemory) -> Result<File> {
        let mut input = File::open(&self.file)?;
        let mut devices = vec![0; self.device_bytes];
        input.read_exact(&mut devices)?;
        let mut buffer = vec![0; PORTION as usize * PAGE];
        for group in groups(&self.pages, PORTION) {
            let bytes = &mut buffer[..count(&group) as usize * PAGE];
            input.read_exact(bytes)?;
            memory.write(&group, bytes)?;
        }
        super::memory_file(&devices)
    }

    /// MiB of pages in it.
    pub fn mib(&self) -> f64 {
        (count(&self.pages) as usize * PAGE) as f64 / f64::from(1 << 20)
    }
}

impl Drop for Delta {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

/// A descriptor of its own position over the same content.
pub fn again(file: &File) -> Result<File> {
    super::memory_file(&super::content(file)?)
}

/// Loads device state.
pub fn load(vmm: &mut super::vmm::Vmm, devices: &File) -> Result<()> {
    vmm.monitor.load_devices(devices.as_fd())
}
