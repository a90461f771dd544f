//! The model API for workers: keys, streams, what is spent.

use std::time::Duration;

use mvm_fakes::Fault;
use serde_json::{Value, json};

use super::super::harness::Message;
use super::worker::Worker;
use super::world::*;

const MODEL: &str = "claude-sonnet-4-5";

fn request(path: &str, key: &str, more: &str, body: &str) -> String {
    let method = if body.is_empty() { "GET" } else { "POST" };
    format!(
        "{method} /anthropic{path} HTTP/1.1\r\nHost: gateway\r\nx-api-key: {key}\r\nanthropic-version: 2023-06-01\r\n\
         Content-Type: application/json\r\nCookie: a=b\r\n{more}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn said(text: &str, stream: bool) -> String {
    let messages = json!([{ "role": "user", "content": text }]);
    json!({ "model": MODEL, "max_tokens": 100, "stream": stream, "messages": messages }).to_string()
}

fn ask(world: &World, worker: &Worker, text: &str) -> Message {
    world.raw(worker.ip, request("/v1/messages", &worker.token, "", &said(text, false)))
}

fn body(message: &Message) -> Value {
    serde_json::from_str(&message.body).unwrap()
}

fn usage(world: &World) -> Value {
    let text = std::fs::read(world.config.openclaw.data.join("usage.json")).unwrap_or_default();
    let months: Value = serde_json::from_slice(&text).unwrap_or_default();
    months.as_object().and_then(|months| months.values().next_back().cloned()).unwrap_or_default()
}

#[test]
fn a_worker_asks_with_its_own_token_and_the_service_sees_the_real_key() {
    let world = World::new();
    let answer = ask(&world, &world.alice, "one two three");
    assert_eq!(answer.status(), 200, "{}", answer.body);
    assert_eq!(body(&answer)["content"][0]["text"], "one two three");
    assert_eq!(answer.header("request-id"), Some("req_fake"));
    assert_eq!(answer.header("anthropic-organization-id"), None);
    let call = &world.model.calls()[0];
    assert_eq!(call.headers["x-api-key"], KEY);
    for absent in ["cookie", "authorization", "x-forwarded-for"] {
        assert!(!call.headers.contains_key(absent), "{absent}");
    }
    let list = world.raw(world.alice.ip, request("/v1/models", &world.alice.token, "", ""));
    assert_eq!(list.status(), 200);
    let one = request(&format!("/v1/models/{MODEL}"), &world.alice.token, "", "");
    assert_eq!(body(&world.raw(world.alice.ip, one))["id"], MODEL);
    let messages = json!([{ "role": "user", "content": "a b" }]);
    let count = json!({ "model": MODEL, "messages": messages }).to_string();
    let counted =
        world.raw(world.alice.ip, request("/v1/messages/count_tokens", &world.alice.token, "", &count));
    assert_eq!(body(&counted)["input_tokens"], json!(2));
    let bearer = format!("Authorization: Bearer {}\r\n", world.alice.token);
    let bearer = request("/v1/models", "", &bearer, "").replace("x-api-key: \r\n", "");
    assert_eq!(world.raw(world.alice.ip, bearer).status(), 200);
}

#[test]
fn others_and_other_paths_are_refused() {
    let world = World::new();
    let refused = |from, path: &str, key: &str| {
        let answer = world.raw(from, request(path, key, "", &said("x", false)));
        assert_eq!(body(&answer)["type"], "error");
        answer.status()
    };
    let token = &world.alice.token;
    assert_eq!(refused(world.alice.ip, "/v1/messages", "wrong"), 401);
    assert_eq!(refused(world.alice.ip, "/v1/messages", KEY), 401);
    assert_eq!(refused(world.bob.ip, "/v1/messages", token), 401);
    assert_eq!(refused(super::super::harness::own_address(), "/v1/messages", token), 403);
    for path in ["/v1/messages/batches", "/v1/organizations", "/v1/messages/../models", "/v1/files"] {
        assert_eq!(refused(world.alice.ip, path, token), 404);
    }
    let models = request("/v1/models/..%2f..%2fv1%2ffiles", token, "", "");
    assert_eq!(world.raw(world.alice.ip, models).status(), 404);
    assert!(world.model.calls().is_empty());
}

#[test]
fn errors_of_the_service_come_as_they_are() {
    let world = World::new();
    for (fault, status, kind) in [
        (Fault::TooManyRequests { retry_after: 7 }, 429, "rate_limit_error"),
        (Fault::Overloaded, 529, "overloaded_error"),
        (Fault::ServerError, 500, "api_error"),
        (Fault::DropAfter, 502, "api_error"),
    ] {
        world.model.order("/v1/messages", fault, 1);
        let answer = ask(&world, &world.alice, "x");
        assert_eq!((answer.status(), body(&answer)["error"]["type"].as_str()), (status, Some(kind)));
        assert_eq!(answer.header("retry-after").is_some(), status == 429);
    }
    assert_eq!(world.model.calls().len(), 4, "nothing is asked twice");
    assert_eq!(usage(&world), Value::Null);
}

#[test]
fn a_key_that_is_refused_is_the_gateways_and_not_the_workers() {
    let mut world = World::new();
    world.model.set_key("sk-ant-new");
    let answer = ask(&world, &world.alice, "x");
    assert_eq!((answer.status(), body(&answer)["error"]["type"].as_str()), (503, Some("api_error")));
    assert_eq!(answer.header("retry-after"), Some("5"));
    let line = "mvm_openclaw_keys_refused_total{key=\"anthropic/ANTHROPIC_API_KEY\"} 1\n";
    assert!(world.metrics().contains(line), "{}", world.metrics());
    world.secret("anthropic/ANTHROPIC_API_KEY", b"sk-ant-new");
    world.reload();
    assert_eq!(ask(&world, &world.alice, "x").status(), 200);
}

#[test]
fn a_stream_comes_word_by_word_and_a_new_key_does_not_end_it() {
    let mut world = World::new();
    world.model.set_pause(Duration::from_millis(40));
    let mut peer = world.peer(world.alice.ip);
    let text = "one two three four five six";
    let begin = std::time::Instant::now();
    world.block_on(async {
        peer.send(request("/v1/messages", &world.alice.token, "", &said(text, true))).await;
        let head = peer.head().await;
        assert_eq!(
            (head.status(), head.header("content-type")),
            (200, Some("text/event-stream; charset=utf-8"))
        );
        let first = peer.chunk().await.unwrap();
        assert!(first.contains("message_start"), "{first}");
    });
    assert!(begin.elapsed() < Duration::from_millis(300), "the first event waited for the last");
    world.model.set_key("sk-ant-new");
    world.secret("anthropic/ANTHROPIC_API_KEY", b"sk-ant-new\n");
    world.reload();
    let events = world.block_on(async {
        let mut events = String::new();
        while let Some(event) = peer.chunk().await {
            events += &event;
        }
        events
    });
    assert!(events.contains("\"six\"") && events.contains("message_stop"), "{events}");
    assert_eq!(ask(&world, &world.alice, "x").status(), 200);
    let keys: Vec<_> = world.model.calls().iter().map(|call| call.headers["x-api-key"].clone()).collect();
    assert_eq!(keys, [KEY, "sk-ant-new"]);
    world.until(|world| usage(world)["alice"]["requests"] == json!(2));
    assert_eq!(usage(&world)["alice"]["tokens"]["output"], json!(7));
}

#[test]
fn what_is_spent_is_counted_by_person_and_kept_and_limited() {
    let mut world = World::asleep();
    world.block["users"][0]["monthly_limit_cents"] = json!(1);
    world.write_block();
    world.start();
    // 10,000 words in and out at 3 and 15 dollars a million are 18 cents.
    let long = "word ".repeat(10_000);
    assert_eq!(ask(&world, &world.alice, &long).status(), 200);
    let refused = ask(&world, &world.alice, "x");
    let error = &body(&refused)["error"];
    assert_eq!((refused.status(), error["type"].as_str()), (400, Some("invalid_request_error")));
    let text = error["message"].as_str().unwrap();
    assert!(
        text.starts_with("This month's limit of $0.01 for models is reached; it starts anew on 1 "),
        "{text}"
    );
    assert_eq!(ask(&world, &world.bob, "x").status(), 200, "a limit is one person's");
    world.until(|world| usage(world)["bob"]["requests"] == json!(1));
    assert_eq!(usage(&world)["alice"]["cost_nanodollars"], json!(180_000_000));
    let metrics = world.metrics();
    for line in [
        "mvm_openclaw_model_cost_dollars{user=\"alice\"} 0.180000\n",
        "mvm_openclaw_model_tokens{user=\"alice\",kind=\"input\"} 10000\n",
        "mvm_openclaw_over_limit_total{user=\"alice\"} 1\n",
        "mvm_openclaw_api_calls_total{user=\"alice\",method=\"messages\",status=\"400\"} 1\n",
    ] {
        assert!(metrics.contains(line), "{line}{metrics}");
    }
    world.kill();
    world.start();
    assert_eq!(ask(&world, &world.alice, "x").status(), 400, "it outlives the gateway");
    world.block["users"][0]["monthly_limit_cents"] = json!(19);
    world.reload();
    assert_eq!(ask(&world, &world.alice, "x").status(), 200);
    world.stop();
    assert_eq!(usage(&world)["alice"]["requests"], json!(2), "it is written down at the end");
}

#[test]
fn a_limit_holds_while_what_was_spent_cannot_be_read() {
    let mut world = World::asleep();
    world.block["users"][0]["monthly_limit_cents"] = json!(100);
    world.write_block();
    let file = world.config.openclaw.data.join("usage.json");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "{\"2026").unwrap();
    world.start();
    let refused = ask(&world, &world.alice, "x");
    let error = &body(&refused)["error"];
    assert_eq!((refused.status(), error["type"].as_str()), (400, Some("invalid_request_error")));
    assert!(error["message"].as_str().unwrap().starts_with("What you have used this month cannot be read"));
    assert_eq!(ask(&world, &world.bob, "x").status(), 200, "who has no limit has models");
    assert_eq!(std::fs::read(&file).unwrap(), b"{\"2026");
    std::fs::write(&file, "{}").unwrap();
    // It is looked at every second, and what was counted meanwhile is not lost.
    world.until(|world| usage(world)["bob"]["requests"] == json!(1));
    assert_eq!(ask(&world, &world.alice, "x").status(), 200);
}

#[test]
fn who_leaves_before_the_end_has_it_counted_nevertheless() {
    let world = World::new();
    world.model.set_pause(Duration::from_millis(100));
    let mut peer = world.peer(world.alice.ip);
    world.block_on(async {
        peer.send(request("/v1/messages", &world.alice.token, "", &said("one two three", true))).await;
        let head = peer.head().await;
        assert_eq!(head.status(), 200);
        assert!(peer.chunk().await.unwrap().contains("message_start"));
    });
    drop(peer);
    world.until(|world| usage(world)["alice"]["requests"] == json!(1));
    assert_eq!(usage(&world)["alice"]["tokens"]["output"], json!(3));

    world.model.order("/v1/messages", Fault::Slow(Duration::from_millis(300)), 1);
    let mut peer = world.peer(world.alice.ip);
    world.block_on(peer.send(request("/v1/messages", &world.alice.token, "", &said("one two", false))));
    world.until(|world| world.model.calls().len() == 2);
    drop(peer);
    world.until(|world| usage(world)["alice"]["requests"] == json!(2));
    assert_eq!(usage(&world)["alice"]["tokens"]["output"], json!(5));
}

#[test]
fn who_leaves_again_and_again_has_no_more_calls_in_hand_than_who_stays() {
    let world = World::new();
    let token = &world.alice.token;
    world.model.set_pause(Duration::from_millis(500));
    for _ in 0..8 {
        let mut peer = world.peer(world.alice.ip);
        world.block_on(async {
            peer.send(request("/v1/messages", token, "", &said("1 2 3 4 5 6 7 8 9 10", true))).await;
            assert_eq!(peer.head().await.status(), 200);
        });
    }
    world.model.order("/v1/messages", Fault::Slow(Duration::from_secs(5)), 8);
    for count in 9..=24 {
        let mut peer = world.peer(world.alice.ip);
        world.block_on(peer.send(request("/v1/messages", token, "", &said("x", false))));
        if count <= 16 {
            world.until(|world| world.model.calls().len() == count);
        } else {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let refused = ask(&world, &world.alice, "x");
    assert_eq!((refused.status(), refused.header("retry-after")), (429, Some("5")));
    let error = &body(&refused)["error"];
    assert_eq!(error["type"], "rate_limit_error");
    assert!(error["message"].as_str().unwrap().contains("has 16 calls in hand"), "{error}");
    assert_eq!(world.model.calls().len(), 16);
    assert_eq!(ask(&world, &world.bob, "x").status(), 200, "they are one worker's");
    world.until(|world| usage(world)["alice"]["requests"] == json!(16));
    assert_eq!(ask(&world, &world.alice, "x").status(), 200);
}

#[test]
fn a_worker_makes_so_many_calls_a_second_whatever_they_are() {
    let world = World::new();
    let messages = json!([{ "role": "user", "content": "x" }]);
    let count = json!({ "model": MODEL, "messages": messages }).to_string();
    let count = request("/v1/messages/count_tokens", &world.alice.token, "", &count);
    let begin = std::time::Instant::now();
    let mut passed = 0;
    let refused = loop {
        let answer = world.raw(world.alice.ip, &count);
        match answer.status() {
            200 => passed += 1,
            _ => break answer,
        }
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "no call is refused, or each takes too long: {passed}"
        );
        // 30 at once, and five a second.
        assert!(f64::from(passed) <= 30.0 + 5.0 * begin.elapsed().as_secs_f64(), "{passed}");
    };
    assert_eq!((refused.status(), refused.header("retry-after")), (429, Some("1")));
    assert_eq!(body(&refused)["error"]["type"], "rate_limit_error");
    assert!(passed >= 30, "{passed}");
    let models = request("/v1/models", &world.bob.token, "", "");
    assert_eq!(world.raw(world.bob.ip, models).status(), 200);
}

#[test]
fn models_do_without_telegram_and_telegram_without_models() {
    let mut world = World::asleep();
    std::fs::remove_file(world.config.openclaw.secrets.join("anthropic/ANTHROPIC_API_KEY")).unwrap();
    world.start();
    world.bot.push_message(ALICE, "x");
    world.alice.takes(1);
    let answer = ask(&world, &world.alice, "x");
    assert_eq!((answer.status(), body(&answer)["error"]["type"].as_str()), (502, Some("api_error")));
    world.secret("anthropic/ANTHROPIC_API_KEY", KEY.as_bytes());
    std::fs::remove_file(world.config.openclaw.secrets.join("telegram/TELEGRAM_BOT_TOKEN")).unwrap();
    world.reload();
    assert_eq!(ask(&world, &world.alice, "x").status(), 200);
    assert_eq!(world.call(&world.alice, "getMe", &json!({})).status(), 502);
    world.stop();
    // One that is none is as good as none.
    world.secret("telegram/TELEGRAM_BOT_TOKEN", b"no token");
    world.start();
    assert_eq!(ask(&world, &world.alice, "x").status(), 200);
    assert_eq!(world.call(&world.alice, "getMe", &json!({})).status(), 502);
    world.secret("telegram/TELEGRAM_BOT_TOKEN", TOKEN.as_bytes());
    world.reload();
    world.bot.push_message(ALICE, "y");
    world.alice.takes(2);
}
