//! QEMU's command line as a person would write it. The virtual hardware is that of mvm's machines (crates/vmm,
//! `qemu/arguments.rs`); [`Hardware::differences`] compares the two while both run.

use std::path::{Path, PathBuf};

use mvm_vmm::Accel;

/// What all raw machines have in common.
#[derive(Debug, Clone)]
pub struct Hardware {
    /// QEMU's binary.
    pub qemu: PathBuf,
    /// How it runs guests.
    pub accel: Accel,
    /// The time stamp counter's frequency.
    pub tsc_khz: u64,
    /// The guest's kernel, initrd and root.
    pub kernel: PathBuf,
    /// See above.
    pub initrd: PathBuf,
    /// See above.
    pub rootfs: PathBuf,
}

/// What a machine's memory is.
#[derive(Debug, Clone, Copy)]
pub enum Memory<'a> {
    /// Its own, empty.
    Empty,
    /// A private mapping of this file or device.
    Mapped(&'a Path),
}

/// One machine.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// Name of the process.
    pub name: &'a str,
    /// Memory in MiB.
    pub mem_mib: u32,
    /// What is mapped there.
    pub memory: Memory<'a>,
    /// Whether it waits for device state.
    pub incoming: bool,
    /// Its data disk.
    pub data: &'a Path,
    /// Whether the data disk can be exchanged for another.
    pub exchangeable: bool,
    /// Its console's file.
    pub console: &'a Path,
}

impl Hardware {
    /// Everything after the program's name. Descriptor 0 is the monitor, 1 the control channel; both are connected.
    pub fn arguments(&self, launch: &Launch<'_>) -> Vec<String> {
        let mut all = self.machine(launch);
        all.extend(self.kernel_arguments());
        all.extend(self.disks(launch));
        let rest = [
            "-device",
            "virtio-net-device,id=nic0,mac=02:6d:00:00:00:03",
            "-chardev",
            "socket,id=monitor,fd=0",
            "-mon",
            "chardev=monitor,mode=control",
            "-chardev",
            "socket,id=control,fd=1",
            "-device",
            "virtio-serial-device,id=serial0,max_ports=2",
            "-device",
            "virtserialport,bus=serial0.0,nr=1,chardev=control,name=mvm.control",
            "-serial",
            "chardev:console",
        ];
        all.extend(rest.map(str::to_owned));
        all.extend(["-chardev".into(), format!("file,id=console,path={}", launch.console.display())]);
        all
    }

    fn machine(&self, launch: &Launch<'_>) -> Vec<String> {
        let Launch { name, mem_mib, .. } = launch;
        let accel = match self.accel {
            Accel::Kvm => "kvm".to_owned(),
            Accel::Tcg => "tcg,thread=multi,tb-size=64".to_owned(),
        };
        let cpu = match self.accel {
            Accel::Kvm => "host,-svm,-vmx",
            Accel::Tcg => "qemu64,-svm,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand,+aes,+arat",
        };
        let memory = match launch.memory {
            Memory::Empty => format!("memory-backend-ram,id=mem,size={mem_mib}M"),
            Memory::Mapped(path) => {
                format!("memory-backend-file,id=mem,size={mem_mib}M,mem-path={},share=off", path.display())
            }
        };
        let mut all = vec![
            "-name".into(),
            format!("guest={name},process={name}"),
            "-machine".into(),
            "microvm,acpi=on,memory-backend=mem".into(),
            "-accel".into(),
            accel,
            "-cpu".into(),
            cpu.into(),
            "-smp".into(),
            "1".into(),
            "-m".into(),
            format!("{mem_mib}M"),
            "-object".into(),
            memory,
        ];
        let fixed = ["-nodefaults", "-no-user-config", "-no-reboot", "-S", "-display", "none"];
        all.extend(fixed.map(str::to_owned));
        all.extend(["-global", "migration.send-configuration=off"].map(str::to_owned));
        if launch.incoming {
            all.extend(["-incoming", "defer"].map(str::to_owned));
        }
        all
    }

    fn kernel_arguments(&self) -> Vec<String> {
        let line = format!(
            "console=ttyS0 quiet panic=-1 tsc_early_khz={} pci=off 8250.nr_uarts=1 random.trust_cpu=on \
             noreplace-smp psi=0 lsm=landlock,yama",
            self.tsc_khz
        );
        let (kernel, initrd) = (self.kernel.display().to_string(), self.initrd.display().to_string());
        ["-kernel", &kernel, "-initrd", &initrd, "-append", &line].map(str::to_owned).to_vec()
    }

    fn disks(&self, launch: &Launch<'_>) -> Vec<String> {
        let file = |name: &str, path: &Path, read_only: &str| {
            let path = path.display();
            format!(
                "driver=raw,node-name={name},read-only={read_only},discard=unmap,file.driver=file,\
                 file.filename={path},file.locking=off,file.discard=unmap,file.aio=threads"
            )
        };
        let disk =
            |name: &str| format!("virtio-blk-device,id={name}-disk,drive={name},werror=report,rerror=report");
        let mut all = vec!["-blockdev".to_owned(), file("rootfs", &self.rootfs, "on")];
        all.extend(["-device".to_owned(), disk("rootfs")]);
        if launch.exchangeable {
            all.extend(["-object", "throttle-group,id=limits"].map(str::to_owned));
            all.extend(["-blockdev".to_owned(), file("data-first", launch.data, "off")]);
            let filter = "driver=throttle,node-name=data,throttle-group=limits,file=data-first";
            all.extend(["-blockdev", filter].map(str::to_owned));
        } else {
            all.extend(["-blockdev".to_owned(), file("data", launch.data, "off")]);
        }
        all.extend(["-device".to_owned(), disk("data")]);
        all
    }

    /// In what a VMM of mvm's differs from a raw one, by the arguments that a guest can see. `theirs` is its command line.
    pub fn differences(&self, theirs: &[String], launch: &Launch<'_>) -> Vec<String> {
        let (ours, theirs) = (visible(&self.arguments(launch)), visible(theirs));
        let only = |these: &[String], those: &[String], whose: &str| {
            let missing = these.iter().filter(|argument| !those.contains(argument));
            missing.map(|argument| format!("only {whose}: {argument}")).collect::<Vec<_>>()
        };
        [only(&ours, &theirs, "raw"), only(&theirs, &ours, "mvm")].concat()
    }
}

/// The arguments that a guest can see, without what is different in each machine.
fn visible(arguments: &[String]) -> Vec<String> {
    let flags = ["-machine", "-accel", "-cpu", "-smp", "-m", "-append", "-device"];
    let pairs = arguments.iter().zip(arguments.iter().skip(1));
    let seen = pairs.filter(|(flag, _)| flags.contains(&flag.as_str()));
    seen.map(|(flag, value)| format!("{flag} {}", without_own(value))).collect()
}

/// Without backends and addresses, which differ and do not count.
fn without_own(value: &str) -> String {
    let own = ["mac=", "netdev=", "chardev=", "drive=", "memory-backend="];
    let kept = value.split(',').filter(|part| !own.iter().any(|prefix| part.starts_with(prefix)));
    kept.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_cannot_see_does_not_count() {
        let line = |words: &[&str]| visible(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
        let one = line(&["-name", "a", "-m", "512M", "-device", "virtio-net-device,id=nic0,mac=1"]);
        let other = line(&["-m", "512M", "-device", "virtio-net-device,id=nic0,mac=2,netdev=net0"]);
        assert_eq!(one, other);
        assert_ne!(one, line(&["-m", "513M"]));
    }
}
