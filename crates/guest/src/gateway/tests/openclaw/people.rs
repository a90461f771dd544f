//! Who is served, who becomes a user, and who is told that they are not one.

use std::time::{Duration, Instant};

use mvm_model::InstanceId;
use mvm_protocol::control::HostRequest;
use mvm_protocol::openclaw::{worker_bot_token, worker_token};
use serde_json::json;

use super::world::*;

const STRANGER: i64 = 4242;

fn told(world: &World, chat: i64) -> Vec<String> {
    let calls = world.bot.calls_of("sendMessage").into_iter().filter(|call| call.chat_id() == Some(chat));
    calls.map(|call| call.text().to_owned()).collect()
}

#[test]
fn strangers_are_told_once_a_day_and_wake_nobody() {
    let mut world = World::new();
    for text in ["hello", "/start", "/start wrong-code", "hello?"] {
        world.bot.push_message(STRANGER, text);
    }
    world.all_acknowledged();
    world.until(|world| !told(world, STRANGER).is_empty());
    world.kill();
    world.start();
    world.bot.push_message(STRANGER, "hello again");
    world.bot.push_message(STRANGER + 1, "hello");
    world.until(|world| !told(world, STRANGER + 1).is_empty());
    assert_eq!(told(&world, STRANGER).len(), 1);
    assert!(world.host.seen().requests.is_empty(), "{:?}", world.host.seen().requests);
    assert!(world.metrics().contains("mvm_openclaw_updates_of_strangers_total 2\n"));
}

#[test]
fn groups_are_left_alone() {
    let world = World::new();
    let group = json!({ "id": -5, "type": "group", "title": "G" });
    let by = json!({ "id": ALICE, "is_bot": false, "first_name": "A" });
    world.bot.push_update(
        json!({ "message": { "message_id": 1, "date": 1, "from": by, "chat": group, "text": "x" } }),
    );
    world.all_acknowledged();
    let id = world.bot.push_message(ALICE, "x");
    assert_eq!(world.alice.takes(1), [id]);
    assert!(world.bot.calls_of("sendMessage").is_empty());
}

#[test]
fn whoever_opens_a_link_first_is_its_user() {
    let mut world = World::new();
    world.bot.push_message(CAROL, &format!("/start {CODE}"));
    // What they write before the host has answered is theirs already. It waits for their worker, which is told later than
    // the gateway.
    let early = world.bot.push_message(CAROL, "hello");
    world.until(|world| world.carol.refused() > 1);
    assert_eq!(world.bot.unacknowledged(), [early]);
    world.carol.serves(CAROL);
    assert_eq!(world.carol.takes(1), [early]);
    assert_eq!(told(&world, CAROL).len(), 1);
    let claim = HostRequest::ClaimUser { code: CODE.to_owned(), telegram: CAROL };
    assert!(world.host.seen().requests.contains(&claim));

    // Nobody else can, before the config says so and after.
    world.bot.push_message(STRANGER, &format!("/start {CODE}"));
    world.until(|world| !told(world, STRANGER).is_empty());
    let user = &mut world.block["users"][2];
    user["telegram"] = json!(CAROL);
    user.as_object_mut().unwrap().remove("link");
    world.reload();
    let later = world.bot.push_message(CAROL, "still me");
    assert_eq!(world.carol.takes(2)[1..], [later]);
    let claims = |world: &World| {
        let requests = world.host.seen().requests;
        requests.iter().filter(|request| matches!(request, HostRequest::ClaimUser { .. })).count()
    };
    assert_eq!(claims(&world), 1);
    let answer = world.call(&world.carol, "sendMessage", &json!({ "chat_id": CAROL, "text": "hi" }));
    assert_eq!(answer.status(), 200, "{}", answer.body);
}

#[test]
fn who_has_opened_a_link_stays_a_user_after_a_kill() {
    let mut world = World::new();
    world.bot.push_message(CAROL, &format!("/start {CODE}"));
    world.until(|world| !told(world, CAROL).is_empty());
    world.kill();
    // The config does not say so yet.
    world.start();
    world.carol.serves(CAROL);
    let id = world.bot.push_message(CAROL, "hello");
    assert_eq!(world.carol.takes(1), [id]);
    let answer = world.call(&world.carol, "sendMessage", &json!({ "chat_id": CAROL, "text": "hi" }));
    assert_eq!(answer.status(), 200, "{}", answer.body);
    world.all_acknowledged();
    let user = &mut world.block["users"][2];
    user["telegram"] = json!(CAROL);
    user.as_object_mut().unwrap().remove("link");
    world.reload();
    let kept = std::fs::read(world.config.openclaw.data.join("claims.json")).unwrap();
    assert_eq!(kept, b"{}", "the config says it now");
}

#[test]
fn a_link_that_has_run_out_makes_nobody_a_user() {
    let mut world = World::asleep();
    world.block["users"][2]["link"] = link(CODE, 0);
    world.write_block();
    world.start();
    world.bot.push_message(CAROL, &format!("/start {CODE}"));
    world.until(|world| !told(world, CAROL).is_empty());
    assert!(world.host.seen().requests.is_empty());
    world.all_acknowledged();
}

#[test]
fn a_link_that_the_host_refuses_is_said_to_be_invalid() {
    let mut world = World::asleep();
    world.block["users"][2]["link"] = link("another", 3600);
    world.write_block();
    world.start();
    world.bot.push_message(CAROL, "/start another");
    world.until(|world| told(world, CAROL).iter().any(|text| text.contains("not valid")));
    world.bot.push_message(CAROL, "hello");
    world.until(|world| told(world, CAROL).len() == 2);
    assert!(world.carol.came().is_empty());
}

#[test]
fn what_somebody_writes_who_has_no_worker_waits_for_the_next_one() {
    let mut world = World::asleep();
    let worker = world.block["users"][0].as_object_mut().unwrap().remove("worker").unwrap();
    world.write_block();
    world.start();
    let fresh = world.bot.push_message(ALICE, "x");
    let of_bob = world.bot.push_message(BOB, "x");
    assert_eq!(world.bob.takes(1), [of_bob]);
    assert_eq!(world.bot.unacknowledged()[0], fresh);
    let refused = world.call(&world.alice, "getMe", &json!({}));
    assert_eq!(refused.status(), 403, "what was hers is nobody's");
    world.kill();
    // What is kept here waits, too.
    world.config.openclaw.pace.park_after = Duration::from_millis(100);
    world.start();
    world.all_acknowledged();
    world.kill();
    world.start();
    let later = world.bot.push_message(ALICE, "y");
    world.all_acknowledged();
    assert!(world.alice.came().is_empty());
    world.block["users"][0]["worker"] = worker;
    world.reload();
    assert_eq!(world.alice.takes(2), [fresh, later]);
    assert!(told(&world, ALICE).is_empty(), "she is no stranger");
}

#[test]
fn somebody_who_is_not_served_any_more_gets_nothing() {
    let mut world = World::new();
    let id = world.bot.push_message(ALICE, "x");
    assert_eq!(world.alice.takes(1), [id]);
    world.block["users"].as_array_mut().unwrap().remove(0);
    world.reload();
    world.bot.push_message(ALICE, "y");
    world.until(|world| !told(world, ALICE).is_empty());
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(world.alice.came(), [id]);
    assert_eq!(world.call(&world.alice, "getMe", &json!({})).status(), 403);
}

#[test]
fn what_a_worker_knew_is_taken_for_a_while_after_it_was_replaced() {
    let mut world = World::asleep();
    world.config.openclaw.pace.former_tokens = Duration::from_secs(10);
    world.start();
    let calls = |world: &World, token: &str| {
        let list = format!(
            "GET /anthropic/v1/models HTTP/1.1\r\nHost: x\r\nx-api-key: {token}\r\nanthropic-version: 2023-06-01\r\n\r\n"
        );
        let get_me =
            post(&format!("/telegram/bot{}/getMe", worker_bot_token(token)), "application/json", "{}");
        [world.raw(world.alice.ip, list).status(), world.raw(world.alice.ip, get_me).status()]
    };
    let tokens = ["first", "second", "third"].map(|key| worker_token(key.as_bytes(), InstanceId::new(1)));
    for key in ["first", "second", "third"] {
        world.secret("openclaw/OPENCLAW_TOKEN_KEY", key.as_bytes());
        world.reload();
    }
    let replaced = Instant::now();
    for token in [&world.alice.token, &tokens[0], &tokens[1], &tokens[2]] {
        assert_eq!(calls(&world, token), [200, 200]);
    }
    assert_eq!(calls(&world, &world.bob.token), [401, 401], "they are one worker's");
    std::thread::sleep(
        Duration::from_secs(10).saturating_sub(replaced.elapsed()) + Duration::from_millis(500),
    );
    assert_eq!(calls(&world, &tokens[1]), [401, 401]);
    assert_eq!(calls(&world, &tokens[2]), [200, 200]);
}
