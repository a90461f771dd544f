//! What must differ between machines that begin from one memory, and what shows that they did.

use std::collections::BTreeSet;

use mvm_harness::{Lab, Value};

use crate::workers::{POOL, Workers, ask};

/// How a worker shows what it is.
const SELF: &str = "
import os
def read(path):
    with open(path) as file:
        return file.read().strip()
def link():
    names = os.listdir('/sys/class/net')
    return next(name for name in names if os.path.exists(f'/sys/class/net/{name}/device'))
;;
{
    'boot_id': read('/proc/sys/kernel/random/boot_id'),
    'machine_id': read('/etc/machine-id'),
    'hostname': os.uname().nodename,
    'mac': read(f'/sys/class/net/{link()}/address'),
    'ip': [word for word in os.popen('ip addr').read().split() if word.startswith('10.')],
    'getrandom': os.getrandom(32).hex(),
    'devices': open('/dev/urandom', 'rb').read(32).hex(),
    'seeded': read('/run/seeded'),
}
";

fn about(lab: &Lab, instance: &str) -> Value {
    let mut about = ask(lab, instance, SELF);
    about["seeded"] = about["seeded"].as_str().unwrap().parse().unwrap();
    about
}

/// All values that machines have of something, each once.
fn different(all: &[Value], key: &str) -> BTreeSet<String> {
    let pointer = format!("/{}", key.replace('.', "/"));
    all.iter().map(|one| one.pointer(&pointer).unwrap().to_string()).collect()
}

#[test]
fn six_clones_of_one_base_have_nothing_in_common_that_must_be_unique() {
    let lab = Workers { running: 6, ..Workers::default() }.in_lab();
    let instances = lab.instances(POOL);
    for instance in &instances {
        let info = lab.info(instance);
        assert_eq!(
            (&info["state"], &info["last_start"]["how"]),
            (&"running".into(), &"clone".into()),
            "{info}"
        );
    }
    let all: Vec<Value> = instances.iter().map(|instance| about(&lab, instance)).collect();
    for key in ["boot_id", "machine_id", "hostname", "mac", "ip", "getrandom", "devices", "seeded.anew"] {
        assert_eq!(different(&all, key).len(), 6, "{key} of {all:?}");
    }
    // What would be the same without the reseed is: they come from one memory.
    assert_eq!(different(&all, "seeded.stale").len(), 1, "{all:?}");
    for (instance, about) in instances.iter().zip(&all) {
        let info = lab.info(instance);
        assert_eq!(
            (&about["mac"], &about["ip"][0]),
            (&info["mac"], &Value::from(format!("{}/24", info["ip"].as_str().unwrap())))
        );
        assert_eq!(about["boot_id"].as_str().unwrap().len(), 36);
    }

    // A wake draws anew what a second wake from the same memory would share; what the machine is stays.
    let (one, before) = (&instances[0], &all[0]);
    lab.mvm(&["instance", "sleep", one]);
    lab.mvm(&["instance", "wake", one]);
    let after = about(&lab, one);
    for key in ["boot_id", "machine_id", "hostname", "mac", "ip"] {
        assert_eq!(after[key], before[key], "{key}");
    }
    for (key, pointer) in [("the kernel's", "/getrandom"), ("the process's", "/seeded/anew")] {
        assert_ne!(after.pointer(pointer), before.pointer(pointer), "{key} generator");
    }
    assert_eq!((&before["seeded"]["told"], &after["seeded"]["told"]), (&1.into(), &2.into()));
}
