//! Real OpenClaw under the real agent, without a machine: emulation is too slow for it. The test is the host's end of the
//! control channel, and "suspended" is OpenClaw's own suspension.

#[path = "native/gateway.rs"]
mod gateway;
#[path = "native/guest.rs"]
mod guest;
#[path = "native/openclaw.rs"]
mod openclaw;
#[path = "native/outside.rs"]
mod outside;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mvm_harness::fresh;
use mvm_protocol::control::{GuestReply, GuestRequest, IntegrationStatus, Phase, WorkerStatus};
use serde_json::json;

use gateway::Gateway;
use guest::Guest;
use outside::Outside;

/// How far the guest's clock is from this host's, in seconds.
const AHEAD: u64 = 2 * 3600;

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn it_is_configured_suspended_resumed_and_given_new_secrets() {
    let Some(openclaw) = openclaw::installed() else { return };
    let outside = Outside::new();
    let guest = Guest::start(outside.namespace(), &openclaw);
    assert!(matches!(guest.hello(), GuestReply::Hello { phase: Phase::Booted, generation: 0, .. }));

    let token = fresh();
    guest.come_up(1, now() + AHEAD, &token);
    let acts = guest.acts();
    assert_eq!(acts[0], json!({ "act": "credit", "bytes": 64 }));
    assert_eq!((&acts[1]["act"], &acts[2]["act"]), (&json!("step"), &json!("identity")));

    // A message, and one over HTTP.
    outside.say(&token, 1, "aardvark");
    outside.wait_for_answers(1);
    assert_eq!(outside.sent()[0], (format!("1:{token}"), "777".to_owned(), "answer to aardvark".to_owned()));
    assert_eq!(outside.last_key(), token);
    let body = json!({
        "model": "openclaw/default", "user": "test", "messages": [{ "role": "user", "content": "badger" }],
    });
    let (status, answer) = outside.ask(&token, "/v1/chat/completions", &body);
    assert_eq!(
        (status, answer["choices"][0]["message"]["content"].as_str()),
        (200, Some("answer to badger"))
    );
    guest.wait_until_idle();
    let telegram = guest.ask(GuestRequest::IntegrationStatus);
    let GuestReply::IntegrationStatusReport { integrations } = telegram else { panic!("{telegram:?}") };
    assert_eq!(integrations["telegram"], IntegrationStatus::Active);

    // A sleep with something planned.
    let planned = now() + 45;
    outside.plan(&token, planned, "caracal");
    let prepared = guest.ask(GuestRequest::SleepPrep { drain_timeout_secs: 30 });
    let expected = GuestReply::SleepPrepAck { success: true, detail: String::new(), wake_at: Some(planned) };
    assert_eq!(prepared, expected);
    assert_eq!(guest.acts().last().unwrap()["act"], "flush");
    assert_eq!(outside.probe("/readyz"), 503);
    outside.say(&token, 2, "dolphin");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(outside.sent().len(), 1, "it takes messages while it is suspended, and does not answer");
    guest.come_up(2, now() + AHEAD, &token);
    outside.wait_for_answers(2);
    assert_eq!(outside.sent()[1].2, "answer to dolphin");
    outside.wait_for_answers(3);
    assert!(now() >= planned, "its timer goes on");

    // While the model thinks it is busy, and does not let itself be suspended.
    let thinking = outside.hold_answers();
    outside.say(&token, 3, "echidna");
    outside.wait_for_question("echidna");
    guest.wait_for_status(WorkerStatus::Busy);
    let refused = guest.ask(GuestRequest::SleepPrep { drain_timeout_secs: 1 });
    let GuestReply::SleepPrepAck { success: false, detail, .. } = refused else { panic!("{refused:?}") };
    assert!(detail.starts_with("OpenClaw is busy: "), "{detail}");
    drop(thinking);
    outside.wait_for_answers(4);
    guest.wait_until_idle();

    // A new token, without a new start.
    let new = fresh();
    guest.update(&new);
    outside.say(&new, 5, "flamingo");
    assert_eq!(outside.post(&token, 4, "x").0, 401, "the old webhook secret");
    outside.wait_for_answers(5);
    assert_eq!((outside.sent()[4].0.clone(), outside.last_key()), (format!("1:{new}"), new));
    guest.shut_down();
}

#[test]
fn what_is_said_first_after_a_claim_is_answered() {
    let Some(openclaw) = openclaw::installed() else { return };
    let outside = Outside::new();
    let guest = Guest::start(outside.namespace(), &openclaw);
    let token = fresh();
    guest.personalize(1, now());
    guest.update_for_nobody(&token);
    guest.wake(1);
    outside.is_refused(&token, 1, "aardvark");
    // It takes that over some time later, and the gateway does not wait for it.
    guest.update(&token);
    outside.say(&token, 1, "aardvark");
    outside.wait_for_answers(1);
    assert_eq!(outside.sent()[0].2, "answer to aardvark");
    guest.shut_down();
}

#[test]
fn a_heartbeat_is_a_time_to_wake_at() {
    let Some(openclaw) = openclaw::installed() else { return };
    let outside = Outside::new();
    let guest = Guest::start(outside.namespace(), &openclaw);
    let token = fresh();
    guest.come_up(1, now(), &token);
    outside.say(&token, 1, "aardvark");
    outside.wait_for_answers(1);
    assert_eq!(outside.next_wake(&token), None, "it has none unless its person wants one");
    guest.edit_config(|config| config["agents"]["defaults"]["heartbeat"]["every"] = "1h".into());
    outside.wait_for_plan(&token);
    guest.wait_until_idle();
    let prepared = guest.ask(GuestRequest::SleepPrep { drain_timeout_secs: 30 });
    let GuestReply::SleepPrepAck { success: true, wake_at: Some(at), .. } = prepared else {
        panic!("{prepared:?}")
    };
    assert!((now()..=now() + 3600).contains(&at), "{at} at {}", now());
    guest.shut_down();
}

#[test]
fn after_two_hours_its_clock_is_right_and_what_was_due_meanwhile_is_done() {
    let Some(openclaw) = openclaw::installed() else { return };
    let outside = Outside::new();
    let Some(guest) = Guest::start_in_time(outside.namespace(), &openclaw) else { return };
    let token = fresh();
    guest.come_up(1, now(), &token);
    outside.say(&token, 1, "aardvark");
    outside.wait_for_answers(1);
    guest.wait_until_idle();
    let planned = now() + 3600;
    outside.plan(&token, planned, "caracal");
    let prepared = guest.ask(GuestRequest::SleepPrep { drain_timeout_secs: 30 });
    let expected = GuestReply::SleepPrepAck { success: true, detail: String::new(), wake_at: Some(planned) };
    assert_eq!(prepared, expected);

    guest.jump(AHEAD);
    guest.come_up(2, now() + AHEAD, &token);
    outside.wait_for_answers(2);
    outside.say(&token, 2, "dolphin");
    outside.wait_for_answers(3);
    assert_eq!(outside.sent()[2].2, "answer to dolphin");
    // What it plans now is later than the jump.
    let planned = now() + AHEAD + 600;
    outside.plan(&token, planned, "echidna");
    guest.wait_until_idle();
    let prepared = guest.ask(GuestRequest::SleepPrep { drain_timeout_secs: 30 });
    let GuestReply::SleepPrepAck { wake_at, success: true, .. } = prepared else { panic!("{prepared:?}") };
    assert_eq!(wake_at, Some(planned));
    let stepped: Vec<_> = guest.acts().into_iter().filter(|act| act["act"] == "step").collect();
    assert_eq!(stepped.len(), 2, "{stepped:?}");
    guest.shut_down();
}

#[test]
fn it_is_reached_through_the_gateway_which_wakes_it_and_has_the_keys() {
    let Some(openclaw) = openclaw::installed() else { return };
    let gateway = Gateway::start();
    let guest = Guest::start(gateway.namespace(), &openclaw);
    let token = gateway.worker_token();
    guest.come_up(1, now() + AHEAD, &token);
    gateway.say("aardvark", "answer one");
    gateway.wait_for_answer("answer one");
    guest.wait_until_idle();

    let suspend = || {
        let prepared = guest.ask(GuestRequest::SleepPrep { drain_timeout_secs: 30 });
        assert!(matches!(prepared, GuestReply::SleepPrepAck { success: true, .. }), "{prepared:?}");
        gateway.say("badger", "answer two");
    };
    gateway.asleep_until_asked(suspend, || {
        guest.come_up(2, now() + AHEAD, &token);
    });
    gateway.wait_for_answer("answer two");
    guest.wait_until_idle();

    let key = gateway.rotate_model_key();
    gateway.say("caracal", "answer three");
    gateway.wait_for_answer("answer three");
    let calls = gateway.model.calls();
    assert_eq!(calls.last().unwrap().headers["x-api-key"], key.as_str());
    assert_eq!(gateway.bot.unacknowledged(), [0; 0]);
    assert_eq!(gateway.bot.mistakes(), [""; 0]);
    guest.shut_down();
}
