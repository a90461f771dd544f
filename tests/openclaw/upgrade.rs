//! Another image for an assistant that sleeps, and messages that come meanwhile.

use std::process::Output;
use std::time::Duration;

use mvm_harness::{Lab, assert_tidy};
use serde_json::Value;

use crate::alice::{ALICE, KNOWN, Outside, WORKER, alice, sleep, standin, taken};

/// How many messages come before the upgrade.
const FIRST: usize = 3;
/// How many more during it at most, besides as many as before it.
const IN_BETWEEN: usize = 10;
/// What an answer of the new image begins with.
const NEW: &str = "anew: ";
/// Where the stand-in asks the model for what it sends.
const ASKED: &str = "self.ask([{\"role\": \"user\"";
/// Where it says that it is ready.
const READY: &str = "self.reply(200 if is_open else 503,";
/// Where it has read its journal.
const STARTED: &str = "assistant = Assistant(config)\n";

/// A recipe of the stand-in that is changed in these places, and has so many seconds to get ready.
fn recipe(lab: &Lab, name: &str, changes: &[(&str, &str)], ready_within: u32) -> String {
    let read = |file: &str| std::fs::read_to_string(format!("{}/{file}", standin())).unwrap();
    let mut source = read("standin.py");
    for (from, to) in changes {
        assert_eq!(source.matches(from).count(), 1, "{from}");
        source = source.replace(from, to);
    }
    lab.file(&format!("{name}/standin.py"), &source);
    lab.file(&format!("{name}/image.lock"), &read("image.lock"));
    let timeout = format!("timeout_seconds = {ready_within}");
    let description = read("image.toml").replace("timeout_seconds = 120", &timeout);
    assert!(description.contains(&timeout));
    let folder = lab.file(&format!("{name}/image.toml"), &description);
    folder.parent().unwrap().to_str().unwrap().to_owned()
}

/// A conversation with a worker that sleeps.
struct Asleep {
    lab: Lab,
    outside: Outside,
    /// All that alice wrote, in order.
    sent: Vec<String>,
}

impl Asleep {
    fn new() -> Self {
        let (lab, outside, _) = alice(KNOWN);
        let mut asleep = Self { lab, outside, sent: Vec::new() };
        (0..FIRST).for_each(|_| asleep.write());
        asleep.outside.wait_for_answer(ALICE, &asleep.sent[FIRST - 1]);
        sleep(&asleep.lab, WORKER);
        asleep
    }

    fn write(&mut self) {
        let text = format!("message {:02}", self.sent.len());
        self.outside.bot.push_message(ALICE, &text);
        self.sent.push(text);
    }

    /// Upgrades, and writes to it from when the machine is in the middle of it until the command ends; what came of that.
    fn upgrade(&mut self, image: &str) -> Output {
        let mut upgrading = self.lab.mvm_beside(&["pool", "update", WORKER, "--image", image]);
        self.lab.wait_for("its upgrade has begun", || !self.lab.info(WORKER)["act"].is_null());
        (0..FIRST).for_each(|_| self.write());
        assert!(upgrading.try_wait().unwrap().is_none(), "it was written to in the middle of it");
        while upgrading.try_wait().unwrap().is_none() {
            if self.sent.len() < 2 * FIRST + IN_BETWEEN {
                self.write();
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        upgrading.wait_with_output().unwrap()
    }

    /// What happened to the worker since `before` of its audit entries.
    fn happened(&self, before: usize) -> Vec<String> {
        let id = self.lab.info(WORKER)["id"].as_str().unwrap().to_owned();
        let all = self.lab.json(&["events", "alice"]);
        let of_it = |event: &&Value| event["subject"].as_str().is_some_and(|subject| subject.ends_with(&id));
        let kinds = all.as_array().unwrap().iter().filter(of_it).map(|event| event["kind"].as_str().unwrap());
        let kinds = kinds.filter(|kind| *kind != "MinRuntimeOverridden");
        kinds.skip(before).map(str::to_owned).collect()
    }

    /// Each message was taken once and answered once, in order; those that came in the upgrade with this before it.
    #[track_caller]
    fn assert_answered(&self, before: &str) {
        self.outside.wait_for_answer(ALICE, self.sent.last().unwrap());
        let lines = taken(&self.lab);
        let texts: Vec<_> =
            lines.iter().map(|line| line.splitn(3, ' ').nth(2).unwrap().trim_matches('\'')).collect();
        assert_eq!(texts, self.sent);
        let answers = self.sent.iter().enumerate().map(|(at, text)| match at < FIRST {
            true => text.clone(),
            false => format!("{before}{text}"),
        });
        let said: Vec<_> = self.outside.said(ALICE).iter().map(|call| call.text().to_owned()).collect();
        assert_eq!(said, answers.collect::<Vec<_>>());
        assert_eq!(self.outside.bot.mistakes(), [""; 0]);
        assert_tidy(&self.lab);
    }
}

#[test]
fn a_sleeper_is_upgraded_with_its_data_and_sleeps_again_and_messages_wait() {
    let mut alice = Asleep::new();
    let image = recipe(&alice.lab, "new", &[(ASKED, &format!("\"{NEW}\" + {ASKED}"))], 120);
    let before = alice.happened(0).len();
    let output = alice.upgrade(&image);
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && told.contains("upgraded to the new image"), "{told}");
    alice.assert_answered(NEW);
    let happened = alice.happened(before);
    assert_eq!(happened, ["InstanceStarted", "InstanceUpgraded", "InstanceSlept", "InstanceWoken"]);
}

#[test]
fn an_image_that_never_gets_ready_costs_neither_data_nor_messages() {
    let mut alice = Asleep::new();
    let pool = alice.lab.json(&["pool", "info", WORKER]);
    let ruin =
        format!("{STARTED}    assistant.take({{\"update_id\": 1, \"message\": {{\"text\": \"ruined\"}}}})\n");
    let changes = [(READY, "self.reply(503,"), (STARTED, ruin.as_str())];
    let image = recipe(&alice.lab, "never", &changes, 5);
    let before = alice.happened(0).len();
    let output = alice.upgrade(&image);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    for part in ["is sleeping with its earlier image and data disk", "not ready after 5 s: GET /readyz"] {
        assert!(told.contains(part), "{part:?} is not said: {told}");
    }
    let now = alice.lab.json(&["pool", "info", WORKER]);
    assert_eq!((&now["image"], &now["revision"]), (&pool["image"], &pool["revision"]));
    alice.assert_answered("");
    let happened = alice.happened(before);
    let back = ["InstanceFailed", "UpgradeFailed", "InstanceStarted", "InstanceSlept", "InstanceWoken"];
    assert_eq!(happened, back);
}
