//! From start to end.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use libtest_mimic::Trial;
use mvm_vmm::cgroup::Cgroup;
use mvm_vmm::{Detection, Ended, Engine, Error, Exit, MachineSpec, Shutdown, Start, trim_console};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Guest, World, engine};
use crate::test;

pub fn tests() -> Vec<Trial> {
    vec![
        test("a_cold_boot_answers", a_cold_boot_answers),
        test("the_link_starts_down", the_link_starts_down),
        test("a_power_off_is_told", a_power_off_is_told),
        test("a_panic_is_told", a_panic_is_told),
        test("a_kill_from_outside_is_noticed", a_kill_from_outside_is_noticed),
        test("quit_ends_in_order", quit_ends_in_order),
        test("another_agent_takes_a_machine_up", another_agent_takes_a_machine_up),
        test("a_machine_outlives_its_agent", a_machine_outlives_its_agent),
        test("what_has_ended_is_not_taken_up", what_has_ended_is_not_taken_up),
        test("a_start_that_fails_says_why_and_leaves_nothing", a_start_that_fails_says_why),
        test("the_console_is_kept_and_trimmed", the_console_is_kept_and_trimmed),
        test("what_is_no_qemu_is_named", what_is_no_qemu_is_named),
    ]
}

async fn a_cold_boot_answers() {
    let world = World::new().await;
    let (_machine, mut guest) = world.boot().await;
    // In sectors: vda is the rootfs and cannot be written, vdb the data disk.
    assert_eq!(guest.ask("disks").await, "2048 4096");
    assert_eq!(guest.ask("read-only").await, "1");
    assert_eq!(guest.ask("write something kept").await, "written");
    assert_eq!(guest.ask("read").await, "something kept");
    let on_host = std::fs::read(&world.spec.data).unwrap();
    assert!(on_host.starts_with(b"something kept"));
}

async fn the_link_starts_down() {
    let world = World::new().await;
    let (machine, mut guest) = world.boot().await;
    guest.expect("link", "02:6d:00:00:00:03 down").await;
    machine.set_link(true).await.unwrap();
    guest.expect("link", "02:6d:00:00:00:03 up").await;
}

async fn a_power_off_is_told() {
    let world = World::new().await;
    let (machine, mut guest) = world.boot().await;
    assert_eq!(*machine.ended().borrow(), None);
    let _ = guest.try_ask("power-off").await;
    let expected = Ended { exit: Exit::Exited(0), shutdown: Some(Shutdown::GuestPoweredOff) };
    assert_eq!(machine.wait().await, expected);
}

async fn a_panic_is_told() {
    let world = World::new().await;
    let (machine, mut guest) = world.boot().await;
    let _ = guest.try_ask("panic").await;
    let expected = Ended { exit: Exit::Exited(0), shutdown: Some(Shutdown::GuestReset) };
    assert_eq!(machine.wait().await, expected);
    let console = std::fs::read_to_string(machine.console()).unwrap();
    assert!(console.contains("Attempted to kill init"), "{console}");
}

async fn a_kill_from_outside_is_noticed() {
    let world = World::new().await;
    let (machine, _guest) = world.boot().await;
    let pid = Pid::from_raw(machine.identity().pid as i32).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    assert_eq!(machine.wait().await, Ended { exit: Exit::Signaled(9), shutdown: None });
    assert!(!machine.identity().is_alive().unwrap());
    let refused = machine.pause().await.unwrap_err();
    assert!(matches!(refused, Error::Ended(Ended { exit: Exit::Signaled(9), .. })), "{refused}");
}

async fn quit_ends_in_order() {
    let world = World::new().await;
    let (machine, _guest) = world.boot().await;
    let ended = machine.quit(Duration::from_secs(60)).await.unwrap();
    assert_eq!(ended, Ended { exit: Exit::Exited(0), shutdown: Some(Shutdown::Asked) });
}

async fn another_agent_takes_a_machine_up() {
    let world = World::new().await;
    let (machine, mut guest) = world.boot().await;
    assert_eq!(guest.ask("count").await, "1");
    let (identity, mut first) = (machine.identity().clone(), machine.ended());
    drop((machine, guest));
    let other = world.engine.clone();
    assert_eq!(other.find(&world.spec).unwrap().as_ref(), Some(&identity));
    let machine = other.reattach(&world.spec, other.shape(&world.spec).unwrap(), &identity).await.unwrap();
    assert!(machine.is_running().await.unwrap());
    let mut guest = Guest::connect(&*machine).await;
    assert_eq!(guest.ask("count").await, "2");
    drop(guest);
    let info = world.sleep(&*machine).await;
    // An agent that is gone clears nothing away; here the first one is this process, and must be done before the name is used again.
    first.wait_for(Option::is_some).await.unwrap();
    let (_machine, mut guest) = world.wake(&info).await;
    assert_eq!(guest.ask("count").await, "3");
}

/// Has the test binary be an agent that launches a machine and dies.
pub const SHORT_LIVED_AGENT: &str = "short-lived-agent";

pub fn short_lived_agent(spec: &str) -> ExitCode {
    let spec: MachineSpec = serde_json::from_str(spec).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let engine = engine(&spec.kernel).await;
        let machine = engine.launch(&spec, None, Start::Cold).await.unwrap();
        machine.cont().await.unwrap();
        // Without any tidying up.
        kill_process(rustix::process::getpid(), Signal::KILL).unwrap();
    });
    ExitCode::FAILURE
}

async fn a_machine_outlives_its_agent() {
    let world = World::new().await;
    let spec = serde_json::to_string(&world.spec).unwrap();
    let agent = std::process::Command::new(std::env::current_exe().unwrap())
        .args([SHORT_LIVED_AGENT, &spec])
        .status()
        .unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&agent), Some(9));
    let identity = world.engine.find(&world.spec).unwrap().unwrap();
    world.will_end(&identity);
    let machine = world
        .engine
        .reattach(&world.spec, world.engine.shape(&world.spec).unwrap(), &identity)
        .await
        .unwrap();
    let mut guest = Guest::connect(&*machine).await;
    assert_eq!(guest.ask("count").await, "1");
    let folders = Cgroup::existing(&world.spec.name).unwrap();
    assert_eq!(machine.kill().await.unwrap(), Ended { exit: Exit::StatusUnknown, shutdown: None });
    assert!(!identity.is_alive().unwrap());
    assert!(folders.folders().iter().all(|folder| !folder.exists()));
}

async fn what_has_ended_is_not_taken_up() {
    let world = World::new().await;
    let machine = world.launch(None, Start::Cold).await.unwrap();
    machine.kill().await.unwrap();
    assert_eq!(world.engine.find(&world.spec).unwrap(), None);
    let gone = world
        .engine
        .reattach(&world.spec, world.engine.shape(&world.spec).unwrap(), machine.identity())
        .await;
    assert!(matches!(gone, Err(Error::Gone { .. })));
}

async fn a_start_that_fails_says_why() {
    let mut world = World::new().await;
    let kernel = std::mem::replace(&mut world.spec.kernel, world.spec.data.clone());
    assert_start_fails(&world, "kernel").await;
    world.spec.kernel = "/nowhere".into();
    assert_start_fails(&world, "/nowhere").await;
    world.spec.kernel = kernel;
    world.spec.uid = 0;
    assert_start_fails(&world, "root").await;
    world.spec.uid = 61_234;
    let name = std::mem::replace(&mut world.spec.name, "../a,b".into());
    assert_start_fails(&world, "hyphens").await;
    world.spec.name = name;
    let machine = world.launch(None, Start::Cold).await.unwrap();
    assert!(!machine.is_running().await.unwrap());
}

async fn assert_start_fails(world: &World, because: &str) {
    let reason = match world.launch(None, Start::Cold).await {
        Err(Error::Launch { reason, .. }) => reason,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it started"),
    };
    assert!(reason.contains(because), "{reason}");
    assert!(Cgroup::existing(&world.spec.name).unwrap().folders().is_empty());
    assert!(!world.spec.run_dir.join("monitor.sock").exists());
    let name = world.spec.name.as_bytes();
    let holds = |path: std::path::PathBuf| {
        std::fs::read(path).is_ok_and(|text| text.windows(name.len()).any(|at| at == name))
    };
    let processes = std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path().join("cmdline"));
    assert_eq!(processes.filter(|path| holds(path.clone())).count(), 0, "a process is left");
}

async fn the_console_is_kept_and_trimmed() {
    let world = World::new().await;
    let (machine, mut guest) = world.boot().await;
    for line in 0..50 {
        guest.ask(&format!("log line {line} of a machine that talks much")).await;
    }
    assert!(trim_console(machine.console(), 1000).unwrap());
    guest.ask("log the last").await;
    let console = std::fs::read_to_string(machine.console()).unwrap();
    assert!(console.len() < 600, "{console}");
    assert!(console.trim_end().ends_with("the last"), "{console}");
}

async fn what_is_no_qemu_is_named() {
    for binary in ["/nowhere/qemu", "/bin/true"] {
        let refused = Detection::run(Path::new(binary), None).await.unwrap_err();
        assert!(
            matches!(&refused, Error::NoBinary { .. }) && refused.to_string().contains(binary),
            "{refused}"
        );
    }
}
