//! Bases and what begins from them: clones, deltas over a base, own images, machines started ahead.

use std::os::fd::OwnedFd;
use std::process::Command;

use libtest_mimic::Trial;
use mvm_vmm::{
    Base, BaseExpected, BaseFacts, BaseInfo, BlockDevice, Engine, Error, FlatCheck, Machine, MemoryBase,
    Rule, SnapshotMemory, Start,
};

use crate::support::{Guest, World};
use crate::test;

pub fn tests() -> Vec<Trial> {
    vec![
        test("clones_share_a_base_and_differ", clones_share_a_base_and_differ),
        test("an_idle_clone_sleeps_in_little", an_idle_clone_sleeps_in_little),
        test("a_big_delta_becomes_an_own_image", a_big_delta_becomes_an_own_image),
        test("a_machine_outlives_a_sleep_without_room", a_machine_outlives_a_sleep_without_room),
        test("a_spare_becomes_any_machine_of_its_base", a_spare_becomes_any_machine_of_its_base),
        test("a_base_that_does_not_fit_is_refused", a_base_that_does_not_fit_is_refused),
    ]
}

/// A base and the device that its clones map.
pub struct Cloning {
    pub world: World,
    pub info: BaseInfo,
    _device: BlockDevice,
}

impl Cloning {
    pub async fn new() -> Self {
        let mut world = World::new().await;
        let (machine, guest) = world.boot().await;
        drop(guest);
        machine.pause().await.unwrap();
        let info = machine.make_base(&bases(&world), facts()).await.unwrap();
        machine.kill().await.unwrap();
        let base = Base::open(&bases(&world).join(&info.id), &expected(&world, &info)).unwrap();
        let device = BlockDevice::attach(&base.memory()).unwrap();
        assert!(device.is_protected().unwrap());
        world.spec.memory = MemoryBase::Shared {
            id: info.id.clone(),
            folder: bases(&world).join(&info.id),
            node: device.node().to_owned(),
        };
        Self { world, info, _device: device }
    }

    /// The world of another machine of the same base.
    pub fn another(&self, name: &str) -> World {
        let mut world = self.world.another(name);
        world.spec.memory = self.world.spec.memory.clone();
        world
    }

    pub fn open(&self) -> Base {
        let folder = bases(&self.world).join(&self.info.id);
        Base::open(&folder, &expected(&self.world, &self.info)).unwrap()
    }

    pub async fn begin(&self, machine: &dyn Machine) -> Guest {
        let guest = Guest::connect(machine).await;
        machine.restore(self.open().restore()).await.unwrap();
        machine.cont().await.unwrap();
        guest
    }

    pub async fn clone_in(&self, world: &World) -> (Box<dyn Machine>, Guest) {
        let machine = world.launch(None::<OwnedFd>, Start::Restore).await.unwrap();
        let guest = self.begin(&*machine).await;
        (machine, guest)
    }
}

fn bases(world: &World) -> std::path::PathBuf {
    let bases = world.asleep().with_file_name("bases");
    std::fs::create_dir_all(&bases).unwrap();
    bases
}

fn facts() -> BaseFacts {
    BaseFacts { tenant: "a".into(), pool: "p".into(), revision: "r1".into(), recorded_at_ms: 1 }
}

fn expected(world: &World, info: &BaseInfo) -> BaseExpected {
    BaseExpected {
        id: info.id.clone(),
        tenant: "a".into(),
        pool: "p".into(),
        revision: "r1".into(),
        shape: world.engine.shape(&world.spec).unwrap(),
    }
}

async fn clones_share_a_base_and_differ() {
    let cloning = Cloning::new().await;
    let worlds = [cloning.another("one"), cloning.another("two")];
    let (one, mut first) = cloning.clone_in(&worlds[0]).await;
    let (two, mut second) = cloning.clone_in(&worlds[1]).await;
    assert_eq!(first.ask("count").await, "1");
    assert_eq!(first.ask("count").await, "2");
    assert_eq!(second.ask("count").await, "1");
    let usage = two.memory_usage().await.unwrap();
    assert!(usage.proportional < usage.resident, "{usage:?}");
    one.kill().await.unwrap();
    assert_eq!(second.ask("count").await, "2");
}

async fn an_idle_clone_sleeps_in_little() {
    let cloning = Cloning::new().await;
    let world = cloning.another("idle");
    let (mut machine, mut guest) = cloning.clone_in(&world).await;
    for round in 1..=10 {
        assert_eq!(guest.ask("count").await, round.to_string());
        let info = world.sleep(&*machine).await;
        assert_eq!(info.memory, SnapshotMemory::Delta { base: Some(cloning.info.id.clone()) });
        assert!(info.memory_bytes < 4 << 20, "{info:?}");
        (machine, guest) = world.wake(&info).await;
    }
    assert_eq!(guest.ask("fill 16").await, "filled");
    let info = world.sleep(&*machine).await;
    assert!(info.memory_bytes > 16 << 20, "{info:?}");
    let (_machine, mut guest) = world.wake(&info).await;
    assert_eq!(guest.ask("check").await, "16 true");
}

async fn a_big_delta_becomes_an_own_image() {
    let cloning = Cloning::new().await;
    let mut world = cloning.another("big");
    world.own_from = 8 << 20;
    let (machine, mut guest) = cloning.clone_in(&world).await;
    assert_eq!(guest.ask("fill 24").await, "filled");
    let info = world.sleep(&*machine).await;
    assert_eq!(info.memory, SnapshotMemory::Own);
    let own = world.options().own;
    world.spec.memory = MemoryBase::Own { folder: own.clone() };
    let (machine, mut guest) = world.wake(&info).await;
    assert_eq!(guest.ask("check").await, "24 true");
    FlatCheck::of(&own).unwrap().run().unwrap();
    assert_eq!(guest.ask("count").await, "1");
    // In place, whatever an attempt before it left there.
    machine.pause().await.unwrap();
    machine.snapshot(&world.asleep(), World::facts(), &world.options()).await.unwrap();
    mvm_vmm::remove_kept(&world.asleep()).unwrap();
    machine.cont().await.unwrap();
    assert_eq!(guest.ask("fill 20").await, "filled");
    let info = world.sleep(&*machine).await;
    assert_eq!(info.memory, SnapshotMemory::Own);
    let (machine, mut guest) = world.wake(&info).await;
    assert_eq!(guest.ask("check").await, "20 true");
    assert_eq!(guest.ask("count").await, "2");
    FlatCheck::of(&own).unwrap().run().unwrap();
    let info = world.sleep(&*machine).await;
    let image = std::fs::OpenOptions::new().read(true).write(true).open(own.join("memory")).unwrap();
    let written = image.metadata().unwrap().modified().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&image, b"flipped", 40 << 20).unwrap();
    // A disk that rots does not say when.
    image.set_modified(written).unwrap();
    let refused = world.open(&info).unwrap().verify().unwrap_err();
    assert_eq!(refused.rule(), Rule::S8, "{refused}");
    image.set_len(1 << 20).unwrap();
    assert_eq!(world.open(&info).unwrap_err().rule(), Rule::S8);
}

async fn a_machine_outlives_a_sleep_without_room() {
    let mut world = World::new().await;
    let room = Room::new(&world.asleep().with_extension("room"), 160);
    (world.own, world.own_from) = (Some(room.0.join("own")), 4 << 20);
    let own = world.options().own;
    let (machine, mut guest) = world.boot().await;
    assert_eq!(guest.ask("fill 8").await, "filled");
    let info = world.sleep(&*machine).await;
    assert_eq!(info.memory, SnapshotMemory::Own);
    world.spec.memory = MemoryBase::Own { folder: own.clone() };
    let (machine, mut guest) = world.wake(&info).await;
    assert_eq!(guest.ask("fill 32").await, "filled");

    let filler = room.leave(4 << 20);
    machine.pause().await.unwrap();
    let failed = machine.snapshot(&world.asleep(), World::facts(), &world.options()).await.unwrap_err();
    assert!(failed.to_string().contains("No space left"), "{failed}");
    assert!(!world.asleep().exists());
    assert!(FlatCheck::unless_changing(&own).unwrap().is_none(), "nothing to find damaged");
    machine.cont().await.unwrap();
    assert_eq!(guest.ask("check").await, "32 true");
    assert_eq!(guest.ask("count").await, "1");

    std::fs::remove_file(filler).unwrap();
    let info = world.sleep(&*machine).await;
    FlatCheck::of(&own).unwrap().run().unwrap();
    let (machine, mut guest) = world.wake(&info).await;
    assert_eq!(guest.ask("check").await, "32 true");
    assert_eq!(guest.ask("count").await, "2");
    machine.kill().await.unwrap();
}

/// A file system of some size. (Not one in memory: a machine that maps a file there fills the holes where it looks.)
struct Room(std::path::PathBuf);

impl Room {
    fn new(folder: &std::path::Path, mib: u64) -> Self {
        std::fs::create_dir(folder).unwrap();
        let image = folder.with_extension("ext4");
        std::fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        let made = Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image).status();
        assert!(made.unwrap().success());
        let mounted = Command::new("mount").args(["-o", "loop"]).args([&image, folder]).status();
        assert!(mounted.unwrap().success());
        Self(folder.to_owned())
    }

    /// Takes what is free but so many bytes: by this file.
    fn leave(&self, bytes: u64) -> std::path::PathBuf {
        let found = rustix::fs::statvfs(&self.0).unwrap();
        let path = self.0.join("filler");
        let file = std::fs::File::create(&path).unwrap();
        let taken = found.f_bavail * found.f_frsize - bytes;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, taken).unwrap();
        path
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // Lazily: where the test fails, its VMM still maps a file there.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

async fn a_spare_becomes_any_machine_of_its_base() {
    let cloning = Cloning::new().await;
    let ahead = cloning.another("ahead");
    let data_bytes = std::fs::metadata(&ahead.spec.data).unwrap().len();
    let spare = ahead.launch(None::<OwnedFd>, Start::Spare { data_bytes }).await.unwrap();
    let mut world = cloning.another("becomes");
    std::fs::rename(&ahead.spec.run_dir, &world.spec.run_dir).unwrap();
    world.spec.name.clone_from(&ahead.spec.name);
    let shape = world.engine.shape(&world.spec).unwrap();
    let machine = spare.assign(&world.spec, shape).await.unwrap();
    let mut guest = cloning.begin(&*machine).await;
    assert_eq!(guest.ask("write through the filter").await, "written");
    let disk = std::fs::read(&world.spec.data).unwrap();
    assert!(disk.starts_with(b"through the filter"));
    let info = world.sleep(&*machine).await;
    // And one that was asleep.
    let ahead = cloning.another("again");
    let spare = ahead.launch(None::<OwnedFd>, Start::Spare { data_bytes }).await.unwrap();
    std::fs::remove_dir_all(&world.spec.run_dir).unwrap();
    std::fs::rename(&ahead.spec.run_dir, &world.spec.run_dir).unwrap();
    let shape = world.engine.shape(&world.spec).unwrap();
    let machine = spare.assign(&world.spec, shape).await.unwrap();
    let mut guest = Guest::connect(&*machine).await;
    machine.restore(world.open(&info).unwrap().restore()).await.unwrap();
    machine.cont().await.unwrap();
    assert_eq!(guest.ask("read").await, "through the filter");
    assert_eq!(guest.ask("count").await, "1");
}

async fn a_base_that_does_not_fit_is_refused() {
    let cloning = Cloning::new().await;
    let folder = bases(&cloning.world).join(&cloning.info.id);
    type Change = fn(&mut BaseExpected);
    let changes: [(Rule, Change); 4] = [
        (Rule::S8, |expected| expected.pool = "q".into()),
        (Rule::S4, |expected| expected.revision = "r2".into()),
        (Rule::S4, |expected| expected.shape.mem_mib += 1),
        (Rule::S8, |expected| expected.id = "0".repeat(64)),
    ];
    for (rule, change) in changes {
        let mut expected = expected(&cloning.world, &cloning.info);
        change(&mut expected);
        assert_eq!(Base::open(&folder, &expected).unwrap_err().rule(), rule);
    }
    Base::verify(&folder, &cloning.info.id).unwrap();
    let memory = std::fs::OpenOptions::new().write(true).open(folder.join("memory")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&memory, b"x", 1 << 20).unwrap();
    let refused = Base::verify(&folder, &cloning.info.id).unwrap_err();
    assert!(matches!(&refused, Error::Refused(refusal) if refusal.rule() == Rule::S8), "{refused}");
}
