//! Sleep and wake, and what must not wake.

use std::path::Path;

use libtest_mimic::Trial;
use mvm_vmm::{Error, Expected, RefusalReason, Rule, Snapshot, SnapshotMemory, Start};

use crate::support::{Guest, World};
use crate::test;

pub fn tests() -> Vec<Trial> {
    vec![
        test("twenty_sleeps_lose_nothing", twenty_sleeps_lose_nothing),
        test("many_pages_come_back", many_pages_come_back),
        test("a_sleep_can_be_called_off", a_sleep_can_be_called_off),
        test("a_running_machine_has_no_snapshot", a_running_machine_has_no_snapshot),
        test("a_snapshot_is_never_written_over", a_snapshot_is_never_written_over),
        test("two_processors_sleep_too", two_processors_sleep_too),
        test("a_snapshot_that_does_not_fit_is_refused", a_snapshot_that_does_not_fit_is_refused),
        test("a_flipped_byte_is_refused", a_flipped_byte_is_refused),
        test("a_wake_needs_the_control_socket", a_wake_needs_the_control_socket),
        test("a_cold_machine_is_not_restored", a_cold_machine_is_not_restored),
    ]
}

async fn twenty_sleeps_lose_nothing() {
    let world = World::new().await;
    let (mut machine, mut guest) = world.boot().await;
    guest.ask("write kept over all sleeps").await;
    machine.set_link(true).await.unwrap();
    for round in 1..=20 {
        assert_eq!(guest.ask("count").await, round.to_string());
        let info = world.sleep(&*machine).await;
        assert_eq!(machine.wait().await.exit, mvm_vmm::Exit::Signaled(9));
        (machine, guest) = world.wake(&info).await;
        guest.expect("link", "02:6d:00:00:00:03 up").await;
    }
    assert_eq!(guest.ask("count").await, "21");
    assert_eq!(guest.ask("read").await, "kept over all sleeps");
}

async fn many_pages_come_back() {
    let world = World::new().await;
    let (machine, mut guest) = world.boot().await;
    assert_eq!(guest.ask("fill 48").await, "filled");
    let info = world.sleep(&*machine).await;
    assert!(info.memory_bytes > 48 << 20);
    let (_machine, mut guest) = world.wake(&info).await;
    assert_eq!(guest.ask("check").await, "48 true");
}

async fn a_sleep_can_be_called_off() {
    let world = World::new().await;
    let (machine, mut guest) = world.boot().await;
    guest.ask("count").await;
    machine.pause().await.unwrap();
    machine.snapshot(&world.asleep(), World::facts(), &world.options()).await.unwrap();
    mvm_vmm::remove_kept(&world.asleep()).unwrap();
    machine.cont().await.unwrap();
    assert_eq!(guest.ask("count").await, "2");
    // The disk is still the machine's.
    assert_eq!(guest.ask("write afterwards").await, "written");
    let info = world.sleep(&*machine).await;
    let (_machine, mut guest) = world.wake(&info).await;
    assert_eq!(guest.ask("count").await, "3");
    assert_eq!(guest.ask("read").await, "afterwards");
}

async fn a_running_machine_has_no_snapshot() {
    let world = World::new().await;
    let (machine, _guest) = world.boot().await;
    let refused = machine.snapshot(&world.asleep(), World::facts(), &world.options()).await.unwrap_err();
    assert!(matches!(refused, Error::WrongStatus { .. }), "{refused}");
    assert!(!world.asleep().exists());
}

async fn a_snapshot_is_never_written_over() {
    let world = World::new().await;
    let (machine, _guest) = world.boot().await;
    machine.pause().await.unwrap();
    let first = machine.snapshot(&world.asleep(), World::facts(), &world.options()).await.unwrap();
    let refused = machine.snapshot(&world.asleep(), World::facts(), &world.options()).await.unwrap_err();
    assert!(refused.to_string().contains("remove it first"), "{refused}");
    let snapshot = world.open(&first).unwrap();
    snapshot.verify().unwrap();
    assert_eq!(*snapshot.facts(), World::facts());
}

async fn two_processors_sleep_too() {
    let mut world = World::new().await;
    world.spec.vcpus = 2;
    let (machine, mut guest) = world.boot().await;
    guest.ask("count").await;
    let info = world.sleep(&*machine).await;
    let (_machine, mut guest) = world.wake(&info).await;
    assert_eq!(guest.ask("count").await, "2");
}

async fn a_snapshot_that_does_not_fit_is_refused() {
    let world = World::new().await;
    let (machine, _guest) = world.boot().await;
    let info = world.sleep(&*machine).await;
    type Change = fn(&mut Expected);
    let changes: [(Rule, Change); 12] = [
        (Rule::S3, |expected| expected.disk_epoch += 1),
        (Rule::S3, |expected| expected.disk.inode += 1),
        (Rule::S3, |expected| expected.disk.bytes += 512),
        (Rule::S3, |expected| expected.disk.born_ns = Some(0)),
        (Rule::S3, |expected| expected.disk.written_ns = Some(0)),
        (Rule::S4, |expected| expected.revision = "r2".into()),
        (Rule::S4, |expected| expected.shape.vcpus = 2),
        (Rule::S4, |expected| expected.shape.engine.sha256 = "0".repeat(64)),
        (Rule::S4, |expected| expected.shape.devices.reverse()),
        (Rule::S7, |expected| expected.memory = SnapshotMemory::Delta { base: Some("b".into()) }),
        (Rule::S8, |expected| expected.instance = "i-0000002b".into()),
        (Rule::S8, |expected| expected.digest = "0".repeat(64)),
    ];
    for (rule, change) in changes {
        let mut expected = world.expected(&info);
        change(&mut expected);
        let refusal = Snapshot::open(&world.asleep(), &world.options().own, &expected).unwrap_err();
        assert_eq!(refusal.rule(), rule, "{refusal}");
    }
    world.open(&info).unwrap();
    mvm_vmm::remove_kept(&world.asleep()).unwrap();
    let refusal = world.open(&info).unwrap_err();
    assert!(matches!(refusal.reason, RefusalReason::Unreadable { .. }), "{refusal}");
}

async fn a_flipped_byte_is_refused() {
    let world = World::new().await;
    let (machine, _guest) = world.boot().await;
    let info = world.sleep(&*machine).await;
    for part in ["snapshot.json", "device"] {
        flip(&world.asleep().join(part));
        let refusal = world.open(&info).unwrap_err();
        assert_eq!(refusal.rule(), Rule::S8, "{refusal}");
        flip(&world.asleep().join(part));
    }
    flip(&world.asleep().join("memory"));
    let snapshot = world.open(&info).unwrap();
    assert_eq!(snapshot.verify().unwrap_err().rule(), Rule::S8);
    let machine = world.launch(None, Start::Restore).await.unwrap();
    let _guest = Guest::connect(&*machine).await;
    let refused = machine.restore(snapshot.restore()).await.unwrap_err();
    assert!(matches!(&refused, Error::Refused(refusal) if refusal.rule() == Rule::S8), "{refused}");
    let started = machine.cont().await.unwrap_err();
    assert!(matches!(started, Error::WrongStatus { .. }), "{started}");
}

/// Flips a bit in the middle of a file.
fn flip(path: &Path) {
    let mut content = std::fs::read(path).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    std::fs::write(path, content).unwrap();
}

async fn a_wake_needs_the_control_socket() {
    let world = World::new().await;
    let (machine, _guest) = world.boot().await;
    let info = world.sleep(&*machine).await;
    let snapshot = world.open(&info).unwrap();
    let machine = world.launch(None, Start::Restore).await.unwrap();
    assert!(matches!(machine.restore(snapshot.restore()).await, Err(Error::ControlNotConnected)));
}

async fn a_cold_machine_is_not_restored() {
    let world = World::new().await;
    let (machine, _guest) = world.boot().await;
    let info = world.sleep(&*machine).await;
    let (machine, _guest) = world.boot().await;
    let snapshot = world.open(&info).unwrap();
    assert!(matches!(machine.restore(snapshot.restore()).await, Err(Error::WrongStatus { .. })));
}
