//! Messages to an assistant that sleeps.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::{Duration, Instant};

use mvm_harness::{assert_tidy, freeze, kill, thaw};

use crate::alice::{ALICE, GATEWAY, KNOWN, WORKER, alice, sleep, taken, vmm, wakes};

/// A call that was in flight at a kill began at most so long before it.
const IN_FLIGHT: Duration = Duration::from_secs(10);

#[test]
fn every_message_is_taken_once_and_answered_whatever_is_killed_in_between() {
    let (mut lab, outside, _) = alice(KNOWN);
    assert_eq!(lab.state(WORKER), "sleeping");
    outside.talk(ALICE, "message 00");
    assert_eq!(wakes(&lab, WORKER), 1, "with its memory");
    let mut sent = vec!["message 00".to_owned()];
    let mut burst = |count: usize| {
        for _ in 0..count {
            let text = format!("message {:02}", sent.len());
            outside.bot.push_message(ALICE, &text);
            sent.push(text);
        }
        sent.last().unwrap().clone()
    };
    let mut kills = Vec::new();
    let last = burst(9);
    outside.wait_for_answer(ALICE, "message 04");
    kills.push(Instant::now());
    kill(vmm(&lab, WORKER));
    outside.wait_for_answer(ALICE, &last);
    sleep(&lab, WORKER);
    let last = burst(10);
    kills.push(Instant::now());
    kill(vmm(&lab, GATEWAY));
    outside.wait_for_answer(ALICE, &last);
    let last = burst(10);
    outside.wait_for_answer(ALICE, "message 24");
    kills.push(Instant::now());
    lab.kill_agent();
    lab.start_agent();
    outside.wait_for_answer(ALICE, &last);

    let lines = taken(&lab);
    let texts: Vec<&str> =
        lines.iter().map(|line| line.splitn(3, ' ').nth(2).unwrap().trim_matches('\'')).collect();
    assert_eq!(texts, sent, "each once, in order");
    let mut told: BTreeMap<String, Vec<Instant>> = BTreeMap::new();
    for call in outside.said(ALICE) {
        told.entry(call.text().to_owned()).or_default().push(call.at);
    }
    let mut repeats = 0;
    for text in &sent {
        let times = told.iter().find(|(said, _)| said.contains(text.as_str())).map(|(_, times)| times);
        let times = times.unwrap_or_else(|| panic!("{text} was not answered: {told:?}"));
        let in_flight = |first: &Instant| {
            kills.iter().any(|kill| *first + IN_FLIGHT > *kill && *kill + IN_FLIGHT > *first)
        };
        assert!(times.len() == 1 || in_flight(&times[0]), "{text} was said {} times", times.len());
        repeats += times.len() - 1;
    }
    // She has one call in flight at a time.
    assert!(repeats <= kills.len(), "{repeats} repeats: {told:?}");
    assert_eq!(outside.bot.mistakes(), [""; 0]);
    assert_tidy(&lab);
}

#[test]
fn she_sleeps_by_herself_and_wakes_for_what_she_has_planned() {
    let (lab, outside, _) = alice(KNOWN);
    let soon = ["--sleep-after-seconds", "3", "--min-running-seconds", "1"];
    lab.mvm(&[["pool", "update", WORKER].as_slice(), soon.as_slice()].concat());
    outside.talk(ALICE, "remind me in 30 s");
    lab.wait_for("she sleeps by herself", || lab.state(WORKER) == "sleeping");
    let before = wakes(&lab, WORKER);
    outside.wait_for_answer(ALICE, "reminder: remind me in 30 s");
    assert!(wakes(&lab, WORKER) > before, "she woke for it: {:?}", lab.events("alice", "InstanceWoken"));
    lab.wait_for("and sleeps again", || lab.state(WORKER) == "sleeping");
    // Nothing is planned any more, so nothing wakes her.
    let woken = wakes(&lab, WORKER);
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!((lab.state(WORKER).as_str(), wakes(&lab, WORKER)), ("sleeping", woken));
    outside.talk(ALICE, "still there?");
}

#[test]
fn a_turn_that_takes_long_is_seen_as_typing() {
    let (lab, outside, _) = alice(KNOWN);
    lab.mvm(&["instance", "stop", WORKER]);
    lab.mvm(&["instance", "start", WORKER]);
    outside.model.order("/v1/messages", mvm_fakes::Fault::Slow(Duration::from_secs(8)), 1);
    outside.talk(ALICE, "think about it");
    let typed = outside.bot.calls_of("sendChatAction");
    assert!(typed.iter().any(|call| call.chat_id() == Some(ALICE)), "{typed:?}");
    // Its end is not shown as typing.
    let answered = outside.said(ALICE)[0].at;
    std::thread::sleep(Duration::from_secs(7));
    let later = |call: &mvm_fakes::BotCall| call.at > answered + Duration::from_secs(1);
    assert!(!outside.bot.calls_of("sendChatAction").iter().any(later));
}

#[test]
fn how_telegram_is_is_shown_in_the_middle_of_an_act_and_nobody_waits_for_a_guest_that_hangs() {
    let (lab, outside, _) = alice(KNOWN);
    let telegram = || lab.info(WORKER)["integrations"]["telegram"].clone();
    assert!(lab.info(WORKER)["integrations"].is_null(), "nobody asks one that sleeps");
    outside.talk(ALICE, "hello");
    lab.wait_for("telegram to be connected", || telegram() == "active");
    let shown = lab.mvm(&["instance", "info", WORKER]);
    let line = shown.lines().find(|line| line.starts_with("integrations"));
    assert!(line.is_some_and(|line| line.ends_with(" telegram active")), "{shown}");
    assert_eq!(lab.info(GATEWAY)["integrations"], serde_json::json!({}), "it has none");

    lab.wait_for("the message to be done with", || lab.info(WORKER)["holds"] == 0);
    let mut working = lab.mvm_with_input(&["instance", "exec", WORKER, "--", "/bin/cat"]);
    lab.wait_for("somebody to work in it", || lab.info(WORKER)["holds"] == 1);
    let mut falling_asleep = lab.mvm_beside(&["instance", "sleep", WORKER]);
    lab.wait_for("a sleep that waits for them", || lab.info(WORKER)["act"] == "going to sleep");
    assert_eq!(telegram(), "active");

    let pid = vmm(&lab, WORKER);
    freeze(pid);
    let asked = Instant::now();
    let (info, shown) = (lab.info(WORKER), lab.mvm(&["instance", "info", WORKER]));
    let took = asked.elapsed();
    thaw(pid);
    assert_eq!((info["state"].as_str(), info["integrations"].as_str()), (Some("running"), None));
    assert!(shown.contains("not known"), "{shown}");
    assert!(took < Duration::from_secs(15), "{took:?}");

    // Its session is the same as before: who works in it goes on.
    let mut input = working.stdin.take().unwrap();
    input.write_all(b"still here\n").unwrap();
    drop(input);
    let output = working.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "still here\n", "{output:?}");
    assert!(falling_asleep.wait().unwrap().success());
    assert_eq!(lab.state(WORKER), "sleeping");
}
