//! Prints how long boots, sleeps and wakes take here: `cargo run --release --example measure -- [MiB] [rounds] [filled MiB]`.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on ends")]

#[path = "../tests/support/mod.rs"]
#[allow(dead_code)]
mod support;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use mvm_vmm::{LAUNCH_ARGUMENT, Machine, Snapshot, Start};
use support::{Guest, World};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == LAUNCH_ARGUMENT) {
        return mvm_vmm::launcher_main();
    }
    let number =
        |at: usize, default| arguments.get(at).map_or(default, |text: &String| text.parse().unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(measure(number(0, 256), number(1, 10), number(2, 0)));
    ExitCode::SUCCESS
}

async fn measure(mem_mib: u32, rounds: u32, filled_mib: u32) {
    let world = World::with_memory(mem_mib).await;
    println!("{:?}, {mem_mib} MiB", world.engine.accel());
    let mut clock = Clock::start();
    let machine = world.launch(None, Start::Cold).await.unwrap();
    clock.lap("launch");
    let mut guest = Guest::connect(&*machine).await;
    machine.cont().await.unwrap();
    guest.ask("count").await;
    clock.lap("boot");
    tell(&*machine).await;
    if filled_mib > 0 {
        guest.ask(&format!("fill {filled_mib}")).await;
    }
    let mut machine = machine;
    for _ in 0..rounds {
        (machine, guest) = cycle(&world, machine).await;
        guest.ask("count").await;
    }
    tell(&*machine).await;
}

async fn cycle(world: &World, machine: Box<dyn Machine>) -> (Box<dyn Machine>, Guest) {
    let mut clock = Clock::start();
    machine.pause().await.unwrap();
    clock.lap("pause");
    let info = machine.snapshot(&world.asleep(), World::facts(), &world.options()).await.unwrap();
    clock.lap("snapshot");
    machine.kill().await.unwrap();
    clock.lap("kill");
    print!("({:.1} MiB) ", info.memory_bytes as f64 / f64::from(1 << 20));
    clock.total("sleep");
    let expected = world.expected(&info);
    let mut clock = Clock::start();
    let snapshot = Snapshot::open(&world.asleep(), &world.options().own, &expected).unwrap();
    clock.lap("open");
    let machine = world.launch(None, Start::Restore).await.unwrap();
    clock.lap("launch");
    let mut guest = Guest::connect(&*machine).await;
    machine.restore(snapshot.restore()).await.unwrap();
    clock.lap("restore");
    machine.cont().await.unwrap();
    clock.lap("cont");
    guest.ask("hello").await;
    clock.lap("answer");
    clock.total("wake");
    mvm_vmm::remove_kept(&world.asleep()).unwrap();
    (machine, guest)
}

async fn tell(machine: &dyn Machine) {
    let usage = machine.memory_usage().await.unwrap();
    println!("resident {} MiB, proportional {} MiB", usage.resident >> 20, usage.proportional >> 20);
}

struct Clock {
    start: Instant,
    last: Instant,
}

impl Clock {
    fn start() -> Self {
        let now = Instant::now();
        Self { start: now, last: now }
    }

    fn lap(&mut self, name: &str) {
        print!("{name} {} ", show(self.last.elapsed()));
        self.last = Instant::now();
    }

    fn total(&self, name: &str) {
        println!("= {name} {}", show(self.start.elapsed()));
    }
}

fn show(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}
