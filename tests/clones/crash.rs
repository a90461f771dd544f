//! Agent and VMM die, one or both, after every step by which memory is kept, used or given up: it is used once or, once
//! consumed, never again.

use mvm_harness::KillPoint::*;
use mvm_harness::{KillPoint, Lab, assert_tidy, die_in, kill, stop_in};

use crate::workers::{POOL, Workers, bases, count, fill_memory, folder_of, how, spare, start_anew};

/// Which table takes care of a point. A new point does not compile without one.
const fn table(point: KillPoint) -> &'static str {
    match point {
        SleepBegun | SleepDrained | SleepPaused | SleepWritten | SleepCommitted | SleepEnded => "sleep",
        SleepPagesBegun | SleepPagesWritten | SleepDeviceWritten | SleepManifestWritten => "snapshot",
        OwnOpened | OwnPartlyWritten | OwnContentWritten => "own image",
        SpareTaken | SpareMoved | SpareWrittenDown | SpareTapNamed | SpareDiskGiven => "spare",
        WakeBegun | WakeLaunched | WakeRecorded | WakeRestored | WakeConsumed | WakeGoing | WakeConfirmed
        | WakeReady | WakeCommitted => "wake",
        StartBegun | StartLaunched | StartRecorded | StartLoaded | StartGoing | StartConfirmed
        | StartReady | StartCommitted => "clone",
        WarmBegun | WarmPaused | ResumeBegun => "warm",
        BaseLaunched | BaseReady | BasePartlyWritten | BaseWritten | BaseCommitted => "base",
        RecoverVmmEnded | RecoverResumed => "recover",
        // revisions.rs
        BasesForgotten | RevisionsForgotten => "",
        // They use no memory that is kept, or no other than these: tests/first_light, tests/daily.
        DeployDisksMade
        | DeployCommitted
        | DeployNetworkMade
        | StopBegun
        | StopShutDown
        | StopEnded
        | BackupAsleep
        | RestoreKept
        | RestoreBegun
        | RestoreStopped
        | RestoreReplaced
        | RestoreCommitted
        | UpgradeBegun
        | UpgradeStopped
        | UpgradeKept
        | UpgradeReady
        | UpgradeCommitted
        | UpgradeFailed
        | UpgradeUndone
        | UpgradeBack
        | DestroyMarked
        | DestroyBegun
        | DestroyEnded
        | DestroyFilesRemoved
        | DestroyMachinesGone
        | DestroyNetworkRemoved
        | PoolDestroyMarked
        | PoolDestroyMachinesGone => "",
    }
}

fn points_of(name: &str) -> impl Iterator<Item = KillPoint> {
    KillPoint::ALL.iter().copied().filter(move |point| table(*point) == name)
}

/// Who dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dies {
    Agent,
    AgentAndVmm,
    /// Under an agent that lives.
    Vmm,
}

const ALL: &[Dies] = &[Dies::Agent, Dies::AgentAndVmm, Dies::Vmm];

/// What the machine's memory is when the act begins that is not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    /// Pages over the base, copied.
    Delta,
    /// An own image, which it maps if it woke before.
    Own,
    /// An own image that it maps, so that it is updated in place.
    Mapped,
    /// Pages over the base, in a VMM that was started ahead.
    Spare,
}

impl Memory {
    fn is_own(self) -> bool {
        matches!(self, Self::Own | Self::Mapped)
    }
}

/// What may become of the memory: exactly one of them, at each point.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// The machine runs on in the VMM it had.
    RunsOn,
    /// It wakes with it.
    Wakes,
    /// It is lost: one start without it.
    StartsAnew,
}

fn fate(point: KillPoint, dies: Dies) -> Fate {
    match point {
        SleepBegun | SleepDrained | SleepPaused | SleepPagesBegun | OwnOpened | OwnPartlyWritten
        | OwnContentWritten | SleepPagesWritten | SleepDeviceWritten | SleepManifestWritten
        | SleepWritten | WarmBegun | WarmPaused | ResumeBegun | WakeCommitted
            if dies == Dies::Agent =>
        {
            Fate::RunsOn
        }
        // All that is needed of the VMM is read: the agent writes it whole, and commits it.
        OwnContentWritten | SleepPagesWritten | SleepDeviceWritten | SleepManifestWritten | SleepWritten
            if dies == Dies::Vmm =>
        {
            Fate::Wakes
        }
        SleepCommitted | SleepEnded | WakeBegun | WakeLaunched | WakeRecorded | WakeRestored => Fate::Wakes,
        SpareTaken | SpareMoved | SpareWrittenDown | SpareTapNamed | SpareDiskGiven => Fate::Wakes,
        _ => Fate::StartsAnew,
    }
}

/// How often a worker was launched.
fn launches(lab: &Lab) -> usize {
    lab.events("alice", "InstanceStarted").len() + lab.events("alice", "InstanceWoken").len()
}

/// In an act the agent dies, maybe with every VMM, and is started again; or only the VMMs do, and it goes on.
/// Tells whether the act succeeded.
fn interrupt(lab: &mut Lab, point: KillPoint, dies: Dies, worker: &str, act: &str) -> bool {
    if dies == Dies::Vmm {
        let done = stop_in(lab, point.name(), &["instance", act, worker], || kill_vmms(lab));
        lab.settle();
        return done;
    }
    die_in(lab, point.name(), &["instance", act, worker]);
    if dies == Dies::AgentAndVmm {
        lab.vmms().into_iter().for_each(kill);
    }
    lab.start_agent();
    lab.settle();
    false
}

/// Kills all that there are.
fn kill_vmms(lab: &Lab) {
    lab.vmms().into_iter().for_each(kill);
    lab.wait_for("they have ended", || lab.vmms().is_empty());
}

/// What an agent is told that is to be interrupted at a point.
fn interrupted(point: KillPoint, dies: Dies) -> [(&'static str, &'static str); 1] {
    [(if dies == Dies::Vmm { "MVM_STOP_AT" } else { "MVM_KILL_AT" }, point.name())]
}

/// A worker, and what it should remember.
struct Worker {
    address: String,
    count: u64,
    lines: u64,
}

impl Worker {
    fn new(lab: &Lab, address: &str) -> Self {
        let (count, lines) = count(lab);
        Self { address: address.to_owned(), count, lines }
    }

    /// Begins as a clone, with memory of this kind, where it was started without the one that it had.
    #[track_caller]
    fn get_ready(&mut self, lab: &Lab, memory: Memory) {
        if self.count > 1 {
            return;
        }
        if how(lab, &self.address) == "cold boot" {
            start_anew(lab, &self.address);
            (self.count, self.lines) = count(lab);
        }
        if memory.is_own() {
            fill_memory(lab, &self.address);
        }
        if memory == Memory::Mapped {
            lab.mvm(&["instance", "sleep", &self.address]);
            lab.mvm(&["instance", "wake", &self.address]);
            assert_eq!(how(lab, &self.address), "wake", "{}", lab.info(&self.address));
        }
    }

    /// Its memory has the fate that it must have, its disk lost nothing, and it was launched no more often than that.
    #[track_caller]
    fn meets(&mut self, lab: &Lab, fate: &Fate, launched_before: usize, at: &str) {
        let (count, lines) = count(lab);
        let (expected, launches_expected) = match fate {
            Fate::RunsOn => (self.count + 1, 0),
            Fate::Wakes => (self.count + 1, 1),
            Fate::StartsAnew => (1, 1),
        };
        assert_eq!(count, expected, "its memory, {at}: {}", lab.info(&self.address));
        self.lines += 1;
        assert_eq!(lines, self.lines, "its disk, {at}");
        self.count = count;
        let how = how(lab, &self.address);
        match fate {
            Fate::RunsOn => {}
            Fate::Wakes => assert_eq!(how, "wake", "{at}"),
            Fate::StartsAnew => assert!(how == "cold boot" || how == "clone", "{at}: {how}"),
        }
        // A wake that was committed before the agent died counts with it.
        let launched = launches(lab) - launched_before;
        let counts_too = at.contains("wake:committed") || at.contains(" Vmm at wake:ready");
        assert!(
            launched == launches_expected || (counts_too && launched == launches_expected + 1),
            "{launched} launches {at}"
        );
        assert_tidy(lab);
    }
}

fn sleep_table(memory: Memory, points: &str, all_dies: &[Dies]) {
    let mut lab = Workers::default().in_lab();
    let mut worker = Worker::new(&lab, POOL);
    for dies in all_dies.iter().copied() {
        for point in points_of(points) {
            let at = format!("{memory:?}, {dies:?} at {}", point.name());
            worker.get_ready(&lab, memory);
            let before = launches(&lab);
            lab.restart_agent_with(&interrupted(point, dies));
            lab.settle();
            interrupt(&mut lab, point, dies, POOL, "sleep");
            let fate = fate(point, dies);
            if fate == Fate::Wakes {
                assert_eq!(lab.state(POOL), "sleeping", "{at}");
                assert_eq!(folder_of(&lab, POOL).join("own").exists(), memory.is_own(), "{at}");
            }
            worker.meets(&lab, &fate, before, &at);
        }
    }
}

#[test]
fn a_delta_that_is_being_written_is_used_once_or_not_at_all() {
    sleep_table(Memory::Delta, "sleep", ALL);
}

#[test]
fn a_delta_of_which_a_part_is_written_is_used_once_or_not_at_all() {
    sleep_table(Memory::Delta, "snapshot", ALL);
}

#[test]
fn an_own_image_that_is_being_written_is_used_once_or_not_at_all() {
    sleep_table(Memory::Own, "sleep", ALL);
}

#[test]
fn an_own_image_of_which_a_part_is_written_is_used_once_or_not_at_all() {
    sleep_table(Memory::Own, "snapshot", &[Dies::Agent, Dies::AgentAndVmm]);
}

#[test]
fn an_own_image_that_is_updated_in_place_is_used_once_or_not_at_all() {
    sleep_table(Memory::Mapped, "own image", ALL);
}

fn wake_table(memory: Memory, points: &str, all_dies: &[Dies]) {
    let spares = u32::from(memory == Memory::Spare);
    let mut lab = Workers { spares, ..Workers::default() }.in_lab();
    let worker = lab.instances(POOL).remove(0);
    let mut worker = Worker::new(&lab, &worker);
    // Another of the pool whose start makes demand.
    let other = (memory == Memory::Spare).then(|| {
        lab.mvm(&["pool", "scale", POOL, "--running", "2"]);
        let other = lab.instances(POOL).into_iter().find(|one| *one != worker.address).unwrap();
        lab.mvm(&["instance", "stop", &other]);
        other
    });
    for dies in all_dies.iter().copied() {
        for point in points_of(points) {
            let at = format!("{memory:?}, {dies:?} at {}", point.name());
            worker.get_ready(&lab, memory);
            lab.mvm(&["instance", "sleep", &worker.address]);
            assert_eq!(folder_of(&lab, &worker.address).join("own").exists(), memory.is_own(), "{at}");
            lab.restart_agent_with(&interrupted(point, dies));
            lab.settle();
            let ahead = other.as_ref().map(|other| {
                lab.mvm(&["instance", "start", other]);
                let ahead = spare(&lab);
                lab.mvm(&["instance", "stop", other]);
                ahead
            });
            let before = launches(&lab);
            let done = interrupt(&mut lab, point, dies, &worker.address, "wake");
            let fate = fate(point, dies);
            if dies == Dies::Vmm && !matches!(point, WakeBegun | WakeReady | WakeCommitted) {
                // Once more with its memory, or one cold start, in the same act.
                assert!(done, "{at}");
                assert_eq!(lab.state(&worker.address), "running", "{at}");
                let how = how(&lab, &worker.address);
                assert_eq!(how, if fate == Fate::Wakes { "wake" } else { "cold boot" }, "{at}");
            }
            if let (Some(ahead), WakeCommitted, Dies::Agent) = (ahead, point, dies) {
                assert_eq!(lab.info(&worker.address)["pid"], ahead, "the spare was taken");
            }
            worker.meets(&lab, &fate, before, &at);
        }
    }
}

#[test]
fn a_delta_is_woken_from_once_or_never_again() {
    wake_table(Memory::Delta, "wake", &[Dies::Agent, Dies::AgentAndVmm]);
}

#[test]
fn a_delta_whose_vmm_dies_under_its_agent_is_woken_from_once_or_never_again() {
    wake_table(Memory::Delta, "wake", &[Dies::Vmm]);
}

#[test]
fn an_own_image_is_woken_from_once_or_never_again() {
    wake_table(Memory::Own, "wake", &[Dies::AgentAndVmm, Dies::Vmm]);
}

#[test]
fn an_own_image_whose_agent_dies_alone_is_woken_from_once_or_never_again() {
    wake_table(Memory::Own, "wake", &[Dies::Agent]);
}

#[test]
fn a_delta_in_a_spare_is_woken_from_once_or_never_again() {
    wake_table(Memory::Spare, "wake", &[Dies::Agent, Dies::Vmm]);
}

#[test]
fn a_spare_that_is_half_a_machine_leaves_the_snapshot_to_another_vmm() {
    wake_table(Memory::Spare, "spare", &[Dies::Agent, Dies::Vmm]);
}

#[test]
fn a_clone_is_begun_anew_after_agent_or_vmm_died_in_the_middle_of_it() {
    let mut lab = Workers::default().in_lab();
    let mut worker = Worker::new(&lab, POOL);
    let base = bases(&lab);
    for dies in ALL.iter().copied() {
        for point in points_of("clone") {
            lab.mvm(&["instance", "stop", POOL]);
            lab.restart_agent_with(&interrupted(point, dies));
            lab.settle();
            interrupt(&mut lab, point, dies, POOL, "start");
            let at = format!("{dies:?} at {}", point.name());
            let (count, lines) = count(&lab);
            worker.lines += 1;
            assert_eq!((count, lines), (1, worker.lines), "{at}");
            // Until the guest has confirmed who it is, an agent that lives goes on without a clone in the same act.
            let booted = dies == Dies::Vmm
                && matches!(point, StartLaunched | StartRecorded | StartLoaded | StartGoing);
            assert_eq!(
                how(&lab, POOL),
                if booted { "cold boot" } else { "clone" },
                "{at}: {}",
                lab.info(POOL)
            );
            assert_tidy(&lab);
            assert_eq!(bases(&lab), base, "{at}");
        }
    }
}

#[test]
fn a_pause_or_resume_keeps_the_memory_or_loses_it_with_the_vmm() {
    let mut lab = Workers::default().in_lab();
    let mut worker = Worker::new(&lab, POOL);
    for dies in ALL.iter().copied() {
        for point in points_of("warm") {
            let act = if point == ResumeBegun { "resume" } else { "warm" };
            if act == "resume" {
                lab.mvm(&["instance", "warm", POOL]);
            }
            lab.restart_agent_with(&interrupted(point, dies));
            lab.settle();
            let before = launches(&lab);
            interrupt(&mut lab, point, dies, POOL, act);
            let at = format!("{dies:?} at {}", point.name());
            let state = if dies == Dies::Agent { "running" } else { "failed" };
            lab.wait_for(&format!("it is {state}, {at}"), || lab.state(POOL) == state);
            worker.meets(&lab, &fate(point, dies), before, &at);
        }
    }
}

#[test]
fn a_base_is_made_again_after_the_agent_died_in_the_middle_of_it() {
    let mut lab = Lab::without_agent();
    let path = lab.file("deployment.toml", &Workers::default().manifest());
    for point in points_of("base") {
        lab.start_agent_with(&[("MVM_KILL_AT", point.name())]);
        die_in(&mut lab, point.name(), &["deploy", path.to_str().unwrap()]);
        lab.start_agent();
        lab.mvm(&["deploy", path.to_str().unwrap()]);
        lab.mvm(&["pool", "build", POOL]);
        lab.wait_for("it runs", || lab.state(POOL) == "running");
        assert_tidy(&lab);
        assert_eq!(bases(&lab).len(), 1, "at {}: one base, and nothing of another", point.name());
        lab.mvm(&["instance", "stop", POOL]);
        lab.mvm(&["instance", "start", POOL]);
        assert_eq!(how(&lab, POOL), "clone", "at {}", point.name());
        lab.mvm(&["tenant", "destroy", "alice", "--force"]);
        assert_eq!(bases(&lab), [""; 0].map(std::path::PathBuf::from), "they go with their tenant");
        lab.stop_agent();
    }
}

#[test]
fn machines_start_without_a_base_whose_machine_was_killed_and_it_is_made_again() {
    let mut lab = Lab::without_agent();
    let path = lab.file("deployment.toml", &Workers::default().manifest());
    // Once it is written its machine has ended.
    for point in points_of("base").filter(|point| !matches!(point, BaseWritten | BaseCommitted)) {
        lab.start_agent_with(&interrupted(point, Dies::Vmm));
        let deploy = ["deploy", path.to_str().unwrap()];
        assert!(stop_in(&lab, point.name(), &deploy, || kill_vmms(&lab)), "at {}", point.name());
        lab.settle();
        assert_eq!(how(&lab, POOL), "cold boot", "at {}", point.name());
        assert_eq!(bases(&lab).len(), 0, "at {}: nothing of it is left", point.name());
        assert_tidy(&lab);
        lab.mvm(&["pool", "build", POOL]);
        start_anew(&lab, POOL);
        assert_eq!(bases(&lab).len(), 1, "at {}", point.name());
        lab.mvm(&["tenant", "destroy", "alice", "--force"]);
        lab.stop_agent();
    }
}

/// An act in which the agent dies, where it does, where the next two die that would finish or take it back, and what is then.
type Row = (&'static str, [KillPoint; 3], &'static str, Fate);

#[test]
fn agents_that_die_while_they_recover_use_a_snapshot_once_or_not_at_all() {
    let rows: [Row; 6] = [
        ("sleep", [SleepWritten, RecoverResumed, RecoverResumed], "running", Fate::RunsOn),
        ("sleep", [SleepCommitted, RecoverVmmEnded, RecoverVmmEnded], "sleeping", Fate::Wakes),
        ("wake", [WakeRestored, RecoverVmmEnded, WakeRestored], "running", Fate::Wakes),
        ("wake", [WakeBegun, WakeLaunched, WakeRecorded], "running", Fate::Wakes),
        ("wake", [WakeRecorded, WakeConsumed, RecoverVmmEnded], "running", Fate::StartsAnew),
        ("wake", [WakeConsumed, RecoverVmmEnded, StartRecorded], "running", Fate::StartsAnew),
    ];
    let mut lab = Workers::default().in_lab();
    let mut worker = Worker::new(&lab, POOL);
    for (act, [first, second, third], state, fate) in rows {
        let at = format!("at {}, {} and {}", first.name(), second.name(), third.name());
        worker.get_ready(&lab, Memory::Delta);
        if act == "wake" {
            lab.mvm(&["instance", "sleep", POOL]);
        }
        let before = launches(&lab);
        lab.restart_agent_with(&interrupted(first, Dies::Agent));
        lab.settle();
        die_in(&mut lab, first.name(), &["instance", act, POOL]);
        for point in [second, third] {
            lab.spawn_agent_with(&interrupted(point, Dies::Agent));
            lab.wait_for_killed_agent(point.name());
        }
        lab.start_agent();
        lab.settle();
        assert_eq!(lab.state(POOL), state, "{at}");
        worker.meets(&lab, &fate, before, &at);
    }
}
