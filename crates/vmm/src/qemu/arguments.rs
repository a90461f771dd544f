//! QEMU's command line. The same spec gives the same virtual hardware, which is what snapshots depend on.

use crate::accel::Accel;
use crate::engine::{MachineSpec, MemoryBase, Start};
use crate::launch::FIRST_DESCRIPTOR;

pub(super) const DISK: &str = "virtio-blk-device";
pub(super) const NETWORK: &str = "virtio-net-device";
pub(super) const SERIAL: &str = "virtio-serial-device";
/// The port by which host and guest talk.
const CONTROL_PORT: &str = "mvm.control";

/// Name of the network device in the monitor.
pub(super) const NETWORK_ID: &str = "nic0";
/// What a network device with a tap is the other end of.
pub(super) const TAP_ID: &str = "net0";
/// Name of the control port's socket in the monitor.
pub(super) const CONTROL_ID: &str = "control";
/// Where the VMM sees kernel and initrd.
pub(super) const KERNEL: &str = "/boot/kernel";
pub(super) const INITRD: &str = "/boot/initrd";
/// Where the VMM sees what its memory is a copy of.
pub(super) const SHARED_MEMORY: &str = "/base/memory";
pub(super) const OWN_MEMORY: &str = "/memory";

/// The node of the data disk that the device is on, and what limits it.
pub(super) const DATA_NODE: &str = "data";
pub(super) const DATA_LIMITS: &str = "data-limits";

/// Descriptors that the VMM inherits, in this order.
#[derive(Clone, Copy)]
pub(super) enum Passed {
    Monitor,
    Control,
    Rootfs,
    Data,
    Console,
    /// Last, as a machine may have none.
    Tap,
}

impl Passed {
    fn number(self) -> usize {
        FIRST_DESCRIPTOR + self as usize
    }
}

/// The node below the filter of a spare's data disk.
const STAND_IN: &str = "data-stand-in";

/// MiB for translated code. Enough for a boot without throwing any away; a smaller one saves little.
const TRANSLATIONS_MIB: u32 = 64;

/// The processor a guest sees.
pub(super) fn guest_cpu(accel: Accel) -> &'static str {
    match accel {
        // Without a nested hypervisor: its state cannot be restored.
        Accel::Kvm => "host,-svm,-vmx",
        // Boots faster than `max`. Without `arat` the guest never idles.
        Accel::Tcg => "qemu64,-svm,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand,+aes,+arat",
    }
}

/// Everything after the program's name.
pub(super) fn arguments(
    spec: &MachineSpec,
    accel: Accel,
    tsc_khz: u64,
    with_tap: bool,
    start: Start,
) -> Vec<String> {
    let mut all = Arguments::default();
    all.machine(spec, accel, start);
    all.flag("-kernel", KERNEL);
    all.flag("-initrd", INITRD);
    all.flag("-append", kernel_command_line(spec, tsc_khz));
    all.disk("rootfs", Passed::Rootfs, true, false);
    all.disk(DATA_NODE, Passed::Data, false, matches!(start, Start::Spare { .. }));
    all.network(spec, with_tap);
    all.channels();
    all.0
}

#[derive(Default)]
struct Arguments(Vec<String>);

impl Arguments {
    fn flag(&mut self, name: &str, value: impl Into<String>) {
        self.0.extend([name.to_owned(), value.into()]);
    }

    fn machine(&mut self, spec: &MachineSpec, accel: Accel, start: Start) {
        let name = &spec.name;
        self.flag("-name", format!("guest={name},process={name}"));
        self.flag("-machine", "microvm,acpi=on,memory-backend=mem");
        self.flag(
            "-accel",
            match accel {
                Accel::Kvm => "kvm".to_owned(),
                Accel::Tcg => format!("tcg,thread=multi,tb-size={TRANSLATIONS_MIB}"),
            },
        );
        self.flag("-cpu", guest_cpu(accel));
        self.flag("-smp", spec.vcpus.to_string());
        self.flag("-m", format!("{}M", spec.mem_mib));
        self.flag(
            "-object",
            match &spec.memory {
                MemoryBase::Empty => format!("memory-backend-ram,id=mem,size={}M", spec.mem_mib),
                MemoryBase::Shared { .. } => copy_of(SHARED_MEMORY, spec),
                MemoryBase::Own { .. } => copy_of(OWN_MEMORY, spec),
            },
        );
        self.0.extend(["-nodefaults", "-no-user-config", "-no-reboot", "-S"].map(str::to_owned));
        self.flag("-display", "none");
        self.flag("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
        // Device state that is saved by itself has no such section.
        self.flag("-global", "migration.send-configuration=off");
        if start != Start::Cold {
            self.flag("-incoming", "defer");
        }
    }

    /// A disk's file and format below its device; with a filter in between where another file is to come below later.
    fn disk(&mut self, name: &str, descriptor: Passed, read_only: bool, replaceable: bool) {
        let number = descriptor.number();
        let read_only = if read_only { "on" } else { "off" };
        self.flag("-add-fd", format!("fd={number},set={number}"));
        // Locks are for files that others may open; these were opened for this machine alone.
        self.flag(
            "-blockdev",
            format!(
                "driver=file,node-name={name}-file,filename=/dev/fdset/{number},read-only={read_only},locking=off,\
                 discard=unmap,aio=threads"
            ),
        );
        self.flag(
            "-blockdev",
            format!(
                "driver=raw,node-name={},file={name}-file,read-only={read_only},discard=unmap",
                if replaceable { STAND_IN } else { name }
            ),
        );
        if replaceable {
            self.flag("-object", format!("throttle-group,id={DATA_LIMITS}"));
            self.flag(
                "-blockdev",
                format!(
                    "driver=throttle,node-name={name},throttle-group={DATA_LIMITS},file={STAND_IN},\
                     discard=unmap"
                ),
            );
        }
        // The guest is told of a full or failing disk; pausing it would look like a hang.
        self.flag("-device", format!("{DISK},id={name}-disk,drive={name},werror=report,rerror=report"));
    }

    fn network(&mut self, spec: &MachineSpec, with_tap: bool) {
        let mac = spec.mac;
        if with_tap {
            self.flag("-netdev", format!("tap,id={TAP_ID},fd={},vhost=off", Passed::Tap.number()));
            self.flag("-device", format!("{NETWORK},id={NETWORK_ID},mac={mac},netdev={TAP_ID}"));
        } else {
            self.flag("-device", format!("{NETWORK},id={NETWORK_ID},mac={mac}"));
        }
    }

    fn channels(&mut self) {
        let socket =
            |id: &str, passed: Passed| format!("socket,id={id},fd={},server=on,wait=off", passed.number());
        self.flag("-chardev", socket("monitor", Passed::Monitor));
        self.flag("-mon", "chardev=monitor,mode=control");
        self.flag("-chardev", socket(CONTROL_ID, Passed::Control));
        self.flag("-device", format!("{SERIAL},id=serial0,max_ports=2"));
        self.flag(
            "-device",
            format!("virtserialport,bus=serial0.0,nr=1,chardev={CONTROL_ID},name={CONTROL_PORT}"),
        );
        let console = Passed::Console.number();
        self.flag("-add-fd", format!("fd={console},set={console}"));
        self.flag("-chardev", format!("file,id=console,path=/dev/fdset/{console},append=on"));
        self.flag("-serial", "chardev:console");
    }
}

fn copy_of(path: &str, spec: &MachineSpec) -> String {
    format!("memory-backend-file,id=mem,size={}M,mem-path={path},share=off", spec.mem_mib)
}

fn kernel_command_line(spec: &MachineSpec, tsc_khz: u64) -> String {
    // A microvm hangs calibrating its clock unless it is told. A panic ends the machine at once (-no-reboot).
    let fixed = format!(
        "console=ttyS0 quiet panic=-1 tsc_early_khz={tsc_khz} pci=off 8250.nr_uarts=1 random.trust_cpu=on \
         noreplace-smp psi=0 lsm=landlock,yama"
    );
    let own = spec.kernel_arguments.iter().map(String::as_str);
    std::iter::once(fixed.as_str()).chain(own).collect::<Vec<_>>().join(" ")
}
