//! The table itself. The end-to-end tests match every point of it.

macro_rules! kill_points {
    ($($(#[$doc:meta])* $point:ident = $name:literal,)*) => {
        /// A moment between two steps of an act, at which the agent may die.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum KillPoint {
            $($(#[$doc])* $point,)*
        }

        impl KillPoint {
            /// Every point.
            pub const ALL: &'static [KillPoint] = &[$(KillPoint::$point,)*];

            /// Its name in the environment.
            pub const fn name(self) -> &'static str {
                match self {
                    $(KillPoint::$point => $name,)*
                }
            }
        }
    };
}

kill_points! {
    /// Data disks are made, nothing is committed.
    DeployDisksMade = "deploy:disks-made",
    /// What is wanted is committed, nothing of it is there.
    DeployCommitted = "deploy:committed",
    /// The tenant's network is there, no port is open and no machine begun.
    DeployNetworkMade = "deploy:network-made",
    /// The intent to boot is committed.
    StartBegun = "start:begun",
    /// The VMM is there; nobody wrote down that it is.
    StartLaunched = "start:launched",
    /// The VMM is recorded; its guest stands still.
    StartRecorded = "start:recorded",
    /// The base that it begins from is loaded; its guest stands still.
    StartLoaded = "start:loaded",
    /// The guest boots, or goes on from the base.
    StartGoing = "start:going",
    /// The guest has confirmed who it is; no secrets, no link yet.
    StartConfirmed = "start:confirmed",
    /// The workload is ready; that it runs is not committed.
    StartReady = "start:ready",
    /// That it runs is committed.
    StartCommitted = "start:committed",
    /// A machine that is to become a base is there; nothing of it is recorded.
    BaseLaunched = "base:launched",
    /// It has booted and done what its recipe wants done ahead; it runs still.
    BaseReady = "base:ready",
    /// Some of its memory is written.
    BasePartlyWritten = "base:partly-written",
    /// The base is written; nothing refers to it.
    BaseWritten = "base:written",
    /// The base is committed.
    BaseCommitted = "base:committed",
    /// Bases that nothing needs any more are forgotten; their files are there.
    BasesForgotten = "gc:bases-forgotten",
    /// Revisions that nothing needs any more are forgotten; their files are there.
    RevisionsForgotten = "gc:revisions-forgotten",
    /// The intent to pause is committed.
    WarmBegun = "warm:begun",
    /// The processors stand still; that it is warm is not committed.
    WarmPaused = "warm:paused",
    /// The intent to resume is committed.
    ResumeBegun = "resume:begun",
    /// The intent to sleep is committed.
    SleepBegun = "sleep:begun",
    /// The guest has drained and flushed.
    SleepDrained = "sleep:drained",
    /// Its processors stand still.
    SleepPaused = "sleep:paused",
    /// Some of its pages are in the snapshot, or in an own image that it has not had yet.
    SleepPagesBegun = "sleep:pages-begun",
    /// All of them are, or in its own image; its device state is not.
    SleepPagesWritten = "sleep:pages-written",
    /// That is, too; nothing says yet what belongs together.
    SleepDeviceWritten = "sleep:device-written",
    /// The snapshot has all its parts, and not its name.
    SleepManifestWritten = "sleep:manifest-written",
    /// The own image that it maps has no checksums any more; its content is as it was.
    OwnOpened = "own:opened",
    /// Some of its pages are written over those of the image that it maps.
    OwnPartlyWritten = "own:partly-written",
    /// All of them are; there are no checksums.
    OwnContentWritten = "own:content-written",
    /// The snapshot is written, the sleep is not committed.
    SleepWritten = "sleep:snapshot-written",
    /// The sleep is committed, the VMM is still there.
    SleepCommitted = "sleep:committed",
    /// The VMM has ended.
    SleepEnded = "sleep:ended",
    /// A VMM that was started ahead waits no more; nothing of it is changed.
    SpareTaken = "spare:taken",
    /// Its folder is the machine's; how it was launched is not written down there.
    SpareMoved = "spare:moved",
    /// That is; it has its own tap and a stand-in for the disk.
    SpareWrittenDown = "spare:written-down",
    /// Its tap is the machine's; its disk may be.
    SpareTapNamed = "spare:tap-named",
    /// Its disk is the machine's; its tap may be.
    SpareDiskGiven = "spare:disk-given",
    /// The intent to wake is committed.
    WakeBegun = "wake:begun",
    /// The VMM is there; nobody wrote down that it is.
    WakeLaunched = "wake:launched",
    /// The VMM is recorded; the snapshot is not loaded.
    WakeRecorded = "wake:recorded",
    /// The snapshot is loaded, and not consumed.
    WakeRestored = "wake:restored",
    /// The consumed mark is committed; the guest has not run.
    WakeConsumed = "wake:consumed",
    /// The guest goes on.
    WakeGoing = "wake:going",
    /// The guest has confirmed who it is; no secrets, no link yet.
    WakeConfirmed = "wake:confirmed",
    /// The workload is ready; that it runs is not committed.
    WakeReady = "wake:ready",
    /// That it runs is committed.
    WakeCommitted = "wake:committed",
    /// By a new agent, the VMM is ended of a sleep that was committed, or of a launch that was not finished; its row says that it
    /// is there.
    RecoverVmmEnded = "recover:vmm-ended",
    /// By a new agent, a machine whose sleep was not committed goes on; that is not committed.
    RecoverResumed = "recover:resumed",
    /// The intent to stop is committed.
    StopBegun = "stop:begun",
    /// The guest has powered off, or was given up.
    StopShutDown = "stop:shut-down",
    /// VMM, port and snapshot are gone; that it is stopped is not committed.
    StopEnded = "stop:ended",
    /// It sleeps for its backup, and is not woken again.
    BackupAsleep = "backup:asleep",
    /// The disk that it is to have is whole and kept, the intent is not committed.
    RestoreKept = "restore:kept",
    /// The intent to replace its disk is committed; it may still run.
    RestoreBegun = "restore:begun",
    /// It has ended, and has its old disk.
    RestoreStopped = "restore:stopped",
    /// It has its new disk; that is not committed.
    RestoreReplaced = "restore:replaced",
    /// That it has its new disk is committed; it is not started again.
    RestoreCommitted = "restore:committed",
    /// The intent to give it another image is committed; it may still run.
    UpgradeBegun = "upgrade:begun",
    /// It has ended, and its snapshot is gone; there is no copy of its disk.
    UpgradeStopped = "upgrade:stopped",
    /// There is one; it is not started with the other image.
    UpgradeKept = "upgrade:disk-kept",
    /// It has come up with it; that is not committed.
    UpgradeReady = "upgrade:ready",
    /// That is committed, and the copy is there still.
    UpgradeCommitted = "upgrade:committed",
    /// It did not come up; that it goes back is committed, its pool has its earlier image.
    UpgradeFailed = "upgrade:failed",
    /// It has its earlier disk again; that is not committed.
    UpgradeUndone = "upgrade:disk-back",
    /// That is committed; it is not started again.
    UpgradeBack = "upgrade:back",
    /// The tenant is marked, its ports are open still.
    DestroyMarked = "destroy:marked",
    /// The intent to destroy an instance is committed.
    DestroyBegun = "destroy:begun",
    /// The instance's VMM and port are gone.
    DestroyEnded = "destroy:ended",
    /// Its files are gone, its row is not.
    DestroyFilesRemoved = "destroy:files-removed",
    /// All machines are gone, the network is not.
    DestroyMachinesGone = "destroy:machines-gone",
    /// The network is gone, the tenant's row is not.
    DestroyNetworkRemoved = "destroy:network-removed",
    /// The pool is marked, the ports that lead to it are open still.
    PoolDestroyMarked = "pool-destroy:marked",
    /// The pool's machines are gone, its bases and row are not.
    PoolDestroyMachinesGone = "pool-destroy:machines-gone",
}
