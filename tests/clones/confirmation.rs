//! A clone that does not say who it is: no secrets, no link, and it does not run.

use std::time::{Duration, Instant};

use mvm_harness::{Lab, Value, assert_tidy, forms, fresh, has_in_memory};

use crate::workers::{POOL, Workers, ask, bases, own_image};

/// Left in the base: takes the link up and sends frames without end as soon as it sees that the machine learned the time, and so
/// is becoming someone, and holds it at the writing of its host name for some seconds.
const HOLDS: &str = r#"
import os, socket, time
link = next(name for name in os.listdir("/sys/class/net") if os.path.exists(f"/sys/class/net/{name}/device"))
os.mkfifo("/run/hold")
assert os.system("mount -o bind /run/hold /etc/hostname") == 0
if os.fork():
    os._exit(0)
os.setsid()
behind = time.time() - time.monotonic()
while abs(time.time() - time.monotonic() - behind) < 0.1:
    time.sleep(0.02)
until = time.monotonic() + 8
os.system(f"ip link set {link} up")
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind((link, 0))
while True:
    try:
        wire.send(b"\xff" * 6 + b"\x02" * 6 + b"\x88\xb5" + b"left in the base".ljust(46, b"\0"))
    except OSError:
        pass
    time.sleep(0.02)
    if until < time.monotonic():
        os.close(os.open("/run/hold", os.O_RDONLY))
        until = time.monotonic() + 3600
"#;

/// Less than it holds the machine for.
const HELD: Duration = Duration::from_secs(6);

/// Left in the base: its host name cannot be written.
const REFUSES: &str = r#"
import os
assert os.system("mount -o bind /etc/hostname /etc/hostname") == 0
assert os.system("mount -o remount,bind,ro /etc/hostname") == 0
"#;

/// A pool of one worker with a secret, whose prewarm does something.
fn manifest(lab: &Lab, prewarm: &str, secret: &str) -> String {
    let image = own_image(lab);
    lab.file("worker/seeded.py", prewarm);
    let recipe = std::fs::read_to_string(image.join("image.toml")).unwrap();
    lab.file("worker/image.toml", &recipe.replace("SIGUSR1", "SIGWINCH"));
    lab.file("secrets/first", secret);
    let more = "[secrets]\nfirst = { file = \"./secrets/first\" }\n";
    Workers { image, more, ..Workers::default() }.manifest()
}

/// Whether a VMM has its guest's memory already.
fn maps_memory(vmm: u32) -> bool {
    let maps = std::fs::read_to_string(format!("/proc/{vmm}/maps")).unwrap_or_default();
    let bytes = |line: &str| {
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        Some(u64::from_str_radix(end, 16).ok()? - u64::from_str_radix(start, 16).ok()?)
    };
    maps.lines().filter_map(bytes).any(|bytes| bytes >= 256 << 20)
}

/// How many frames came out of the only worker.
fn frames(lab: &Lab, info: &Value) -> u64 {
    let mac = info["mac"].as_str().unwrap().split(':').map(|byte| u16::from_str_radix(byte, 16).unwrap());
    let mac: Vec<u16> = mac.collect();
    let tap = format!("tn{}i{}", mac[2] * 256 + mac[3], mac[4] * 256 + mac[5]);
    let namespace = lab.namespaces().remove(0);
    let shown = lab.host().run("ip", &["-n", &namespace, "-j", "-s", "link", "show", "dev", &tap]);
    let shown: Value = shown.parse().unwrap();
    shown[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
}

#[test]
fn a_clone_has_no_secrets_no_link_and_does_not_run_until_it_confirmed_who_it_is() {
    let (lab, secret) = (Lab::new(), fresh());
    let path = lab.file("deployment.toml", &manifest(&lab, HOLDS, &secret));
    let mut deploy = lab.mvm_beside(&["deploy", path.to_str().unwrap()]);
    let mut vmm = 0;
    lab.wait_for("its VMM has the base's memory", || {
        let starting = lab.try_mvm(&["instance", "list"]);
        vmm = lab.vmms().first().copied().unwrap_or_default();
        String::from_utf8_lossy(&starting.stdout).contains("starting") && maps_memory(vmm)
    });
    let (seen, mut held) = (Instant::now(), Duration::ZERO);
    while lab.info(POOL)["state"] != "running" {
        let info = lab.info(POOL);
        let (sent, told) = (frames(&lab, &info), has_in_memory(&lab, vmm, &forms(&secret)));
        // It is held for longer than this; later it may confirm in the middle of it.
        if seen.elapsed() < HELD {
            assert_eq!((sent, told), (0, false), "before it confirmed");
            assert_eq!(info["act"], "starting", "{info}");
            held = seen.elapsed();
        }
    }
    assert!(held > Duration::from_millis(500), "it was looked at while it was held: {held:?}");
    assert!(deploy.wait().unwrap().success());
    let info = lab.info(POOL);
    assert_eq!(info["last_start"]["how"], "clone", "{info}");
    assert_eq!(info["pid"], vmm, "it is the one that was looked at");
    assert!(has_in_memory(&lab, vmm, &forms(&secret)), "confirmed, it has its secret");
    lab.wait_for("and its link", || frames(&lab, &info) > 0);
}

/// A link that is up, and a socket that would be the same in all clones.
const CONNECTS: &str = r#"
import os, socket, time
link = next(name for name in os.listdir("/sys/class/net") if os.path.exists(f"/sys/class/net/{name}/device"))
assert os.system(f"ip link set {link} up") == 0
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
if os.fork():
    os._exit(0)
time.sleep(3600)
"#;

#[test]
fn no_base_is_made_of_a_machine_whose_prewarm_leaves_it_connected() {
    let lab = Lab::new();
    lab.deploy(&manifest(&lab, CONNECTS, &fresh()));
    assert_eq!(lab.info(POOL)["last_start"]["how"], "cold boot");
    let said = lab.mvm_fails(&["pool", "build", POOL]);
    assert!(said.contains(" is up") && said.contains("has a network socket open"), "{said}");
    assert_eq!((lab.events("alice", "BaseMade").len(), bases(&lab).len()), (0, 0));
}

#[test]
fn a_clone_whose_guest_refuses_is_given_up_for_one_cold_boot_that_says_why() {
    let (lab, secret) = (Lab::new(), fresh());
    lab.deploy(&manifest(&lab, REFUSES, &secret));
    let start = lab.info(POOL)["last_start"].clone();
    assert_eq!(start["how"], "cold boot", "{start}");
    let why = start["why"].as_str().unwrap();
    assert!(why.contains("could not be cloned") && why.contains("/etc/hostname"), "{why}");
    assert_eq!(lab.events("alice", "InstanceStarted").len(), 1);
    assert_eq!(ask(&lab, POOL, "open('/run/secrets/default/FIRST').read()"), secret);
    assert_eq!(lab.vmms().len(), 1, "nothing of the clone is left");
}

/// Has the next wake be of a generation that the guest has behind it. No agent runs.
fn set_back_generation(lab: &Lab) {
    let store = rusqlite::Connection::open(lab.data_dir().join("mvm.db")).unwrap();
    assert_eq!(store.execute("UPDATE instances SET generation = 0", []).unwrap(), 1);
}

#[test]
fn a_woken_guest_that_refuses_gets_no_new_secret_and_is_started_cold_instead() {
    let (mut lab, old, new) = (Lab::new(), fresh(), fresh());
    let image = own_image(&lab);
    let secret = lab.file("secrets/first", &old);
    let more = "[secrets]\nfirst = { file = \"./secrets/first\" }\n";
    lab.deploy(&Workers { image, more, ..Workers::default() }.manifest());
    assert_eq!(ask(&lab, POOL, "memory.setdefault('mark', 1)"), 1);
    lab.mvm(&["instance", "sleep", POOL]);
    std::fs::write(&secret, &new).unwrap();
    lab.mvm(&["deploy", secret.with_file_name("../deployment.toml").to_str().unwrap()]);
    lab.stop_agent();
    set_back_generation(&lab);
    lab.start_agent();
    lab.mvm(&["instance", "wake", POOL]);
    let start = lab.info(POOL)["last_start"].clone();
    assert_eq!(start["how"], "cold boot", "{start}");
    let why = start["why"].as_str().unwrap();
    assert!(why.contains("Personalize") && why.contains("is not higher than"), "{why}");
    assert_eq!(lab.events("alice", "InstanceWoken").len(), 0, "it never counted as running");
    assert_eq!(ask(&lab, POOL, "memory.get('mark', 0)"), 0, "its memory is not used again");
    assert_eq!(ask(&lab, POOL, "open('/run/secrets/default/FIRST').read()"), new);
    assert_tidy(&lab);
}
