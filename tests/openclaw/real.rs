//! OpenClaw itself, in emulation: what `scripts/e2e-openclaw` runs.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use mvm_harness::{Lab, assert_tidy, build_image, checkout};

use crate::alice::{ALICE, KNOWN, Outside, WORKER, wakes};

/// What a start may take that takes 15 s where machines are not emulated, in seconds.
const START: u32 = 3600;
/// How long an answer may take.
const ANSWERED: Duration = Duration::from_secs(1200);
/// How long it may take until it has nothing in hand and can be put to sleep.
const ASLEEP: Duration = Duration::from_secs(900);
/// What it needs, and its processors.
const WORKERS: &str = "[overrides.workers]\nvcpus = 2\nmem_mib = 2048\ndata_disk_mib = 1024\n";

/// Says what happens, when it does.
struct Steps {
    begun: Instant,
    done: Vec<(&'static str, Duration, String)>,
}

impl Steps {
    fn new() -> Self {
        Self { begun: Instant::now(), done: Vec::new() }
    }

    fn say(&self, text: &str) {
        println!("{:>6.0} s  {text}", self.begun.elapsed().as_secs_f64());
    }

    fn step<T>(&mut self, name: &'static str, act: impl FnOnce() -> T) -> T {
        self.say(&format!("{name} …"));
        let begun = Instant::now();
        let result = act();
        self.done.push((name, begun.elapsed(), String::new()));
        result
    }

    /// Something about the last step.
    fn note(&mut self, note: String) {
        self.say(&note);
        self.done.last_mut().unwrap().2 = note;
    }

    fn table(&self) {
        println!("\n| step | seconds | |\n|---|---:|---|");
        for (name, took, note) in &self.done {
            println!("| {name} | {:.1} | {note} |", took.as_secs_f64());
        }
    }
}

/// The built-in recipe with more time, and with what makes OpenClaw patient. It has no prewarm: one would take as long as
/// the start that it shortens, and there is only one start.
fn patient_recipe(lab: &Lab) -> PathBuf {
    let built_in = checkout().join("images/openclaw");
    let read = |path: PathBuf| std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    let recipe = read(built_in.join("image.toml"));
    let (services, _) = recipe.split_once("[prewarm]").expect("a prewarm, at the end");
    let mut patient = services.to_owned();
    for (before, after) in [
        ("timeout_seconds = 300", format!("timeout_seconds = {START}")),
        (
            "\"/usr/bin/node\", ",
            "\"/usr/bin/node\", \"--import\", \"/opt/openclaw/patience.mjs\", ".to_owned(),
        ),
        ("prewarm.mjs", "patience.mjs".to_owned()),
    ] {
        assert!(patient.contains(before), "images/openclaw/image.toml has no {before:?} any more");
        patient = patient.replace(before, &after);
    }
    let files = [
        ("image.toml", patient),
        ("image.lock", read(built_in.join("image.lock"))),
        ("package-lock.json", read(built_in.join("package-lock.json"))),
        ("patience.mjs", read(checkout().join("tests/openclaw/real/patience.mjs"))),
    ];
    let folders = files.map(|(name, text)| lab.file(&format!("openclaw/{name}"), &text));
    folders[0].parent().unwrap().to_owned()
}

/// When something fails, what OpenClaw said is of use.
struct LogOnFailure<'a>(&'a Lab);

impl Drop for LogOnFailure<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.0.try_mvm(&["instance", "logs", WORKER, "--tail", "100"]);
            println!("--- OpenClaw's log ---\n{}", String::from_utf8_lossy(&log.stdout));
        }
    }
}

/// Puts the worker to sleep as soon as it has nothing in hand.
fn sleep(steps: &mut Steps, lab: &Lab) {
    steps.step("sleep", || {
        let begun = Instant::now();
        while lab.state(WORKER) != "sleeping" {
            let tried = lab.try_mvm(&["instance", "sleep", WORKER]);
            if !tried.status.success() {
                let why = String::from_utf8_lossy(&tried.stderr);
                assert!(begun.elapsed() < ASLEEP, "it does not sleep: {why}");
                println!("          not yet: {}", why.trim_end());
                std::thread::sleep(Duration::from_secs(10));
            }
        }
    });
    let mib = lab.info(WORKER)["snapshot_bytes"].as_u64().unwrap() >> 20;
    steps.note(format!("its snapshot has {mib} MiB"));
}

fn talk(steps: &mut Steps, lab: &Lab, outside: &Outside, text: &str, answer: &str) {
    let woken = wakes(lab, WORKER);
    // What a model is told last is not what the person said but what OpenClaw knows of them.
    outside.model.set_answer(answer);
    steps.step("message to a sleeping assistant, until it is answered", || {
        outside.bot.push_message(ALICE, text);
        outside.wait_for_answer_within(ANSWERED, ALICE, answer);
    });
    assert_eq!(wakes(lab, WORKER), woken + 1, "with its memory");
    let ms = lab.info(WORKER)["last_start"]["total_ms"].as_f64().unwrap();
    steps.note(format!("{text:?} → {answer:?}, awake after {ms:.0} ms"));
}

#[test]
#[ignore = "takes half an hour without KVM: scripts/e2e-openclaw runs it"]
fn openclaw_itself_sleeps_and_answers() {
    let mut steps = Steps::new();
    let lab = Lab::new();
    let outside = Outside::new(&lab);
    let recipe = patient_recipe(&lab);
    steps.say("OpenClaw is given more patience by a preload of ours: tests/openclaw/real/patience.mjs");
    steps.step("image", || build_image(&recipe));
    let config = outside.config_with_workers(&lab, &format!("{WORKERS}{KNOWN}"));
    let _log = LogOnFailure(&lab);
    steps.step("mvm new openclaw, with the first start", || {
        let mut new = lab.command();
        new.args(["new", "openclaw", "alice", "--config"]).arg(config).arg("--image").arg(&recipe);
        // It may be busy for longer than a first sleep waits: it is put to sleep below then.
        let status = new.status().unwrap();
        assert!(matches!(lab.state(WORKER).as_str(), "sleeping" | "running"), "{status}");
    });
    sleep(&mut steps, &lab);
    talk(&mut steps, &lab, &outside, "Good morning.", "Good morning, Alice.");
    sleep(&mut steps, &lab);
    talk(&mut steps, &lab, &outside, "Where were we?", "At the beginning.");
    assert_eq!(outside.bot.mistakes(), [""; 0]);
    assert_tidy(&lab);
    steps.table();
}
