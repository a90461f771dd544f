//! What a worker may do with the Bot API, and what not.

use std::time::{Duration, Instant};

use mvm_fakes::Fault;
use mvm_protocol::openclaw::worker_bot_token;
use serde_json::{Value, json};

use super::super::harness::{Message, Peer};
use super::world::*;

/// Everybody has written to the bot.
fn world() -> World {
    let world = World::new();
    for chat in [ALICE, BOB] {
        world.bot.push_message(chat, "x");
    }
    world.alice.takes(1);
    world.bob.takes(1);
    world.all_acknowledged();
    world
}

fn body(message: &Message) -> Value {
    serde_json::from_str(&message.body).unwrap()
}

fn path(world: &World, method: &str) -> String {
    format!("/telegram/bot{}/{method}", worker_bot_token(&world.alice.token))
}

#[test]
fn a_worker_speaks_to_its_person_in_each_of_the_forms() {
    let world = world();
    let said = json!({ "chat_id": ALICE, "text": "hello", "reply_parameters": { "message_id": 1 } });
    let answer = world.call(&world.alice, "sendMessage", &said);
    assert_eq!(answer.status(), 200, "{}", answer.body);
    assert_eq!(body(&answer)["result"]["text"], "hello");
    let form = format!("chat_id={ALICE}&text=a+%26+b&reply_parameters=%7B%22message_id%22%3A1%7D");
    let kind = "application/x-www-form-urlencoded";
    assert_eq!(world.raw(world.alice.ip, post(&path(&world, "SENDMESSAGE"), kind, form)).status(), 200);
    let query = format!("{}?chat_id={ALICE}&text=hi", path(&world, "sendMessage"));
    assert_eq!(world.raw(world.alice.ip, format!("GET {query} HTTP/1.1\r\nHost: x\r\n\r\n")).status(), 200);
    let sent = world.bot.calls_of("sendMessage");
    let texts: Vec<&str> = sent.iter().map(|call| call.text()).collect();
    assert_eq!(texts, ["hello", "a & b", "hi"]);
    assert!(sent.iter().all(|call| call.params["chat_id"] == json!(ALICE)));
    assert!(world.metrics().contains("method=\"sendMessage\",status=\"200\"} 3\n"));
}

#[test]
fn uploads_and_downloads_go_through_as_they_are() {
    let world = world();
    let content: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let head = "--B\r\nContent-Disposition: form-data; name=\"document\"; filename=\"a.bin\"\r\nContent-Type: application/x-a\r\n\r\n";
    let tail =
        format!("\r\n--B\r\nContent-Disposition: form-data; name=\"chat_id\"\r\n\r\n{ALICE}\r\n--B--\r\n");
    let form = [head.as_bytes(), &content, tail.as_bytes()].concat();
    let kind = "multipart/form-data; boundary=B";
    let answer = world.raw(world.alice.ip, post(&path(&world, "sendDocument"), kind, &form));
    assert_eq!(answer.status(), 200, "{}", answer.body);
    let sent = world.bot.calls_of("sendDocument").pop().unwrap();
    assert_eq!((sent.chat_id(), &sent.files["document"]), (Some(ALICE), &content));

    world.bot.add_file("f1", b"content of f1");
    let token = worker_bot_token(&world.alice.token);
    let file = |path: &str| {
        let request = format!("GET /telegram/file/bot{token}/{path} HTTP/1.1\r\nHost: x\r\n\r\n");
        world.raw(world.alice.ip, request)
    };
    assert_eq!(file("documents/f1").status(), 404, "it has not asked about it");
    let got = body(&world.call(&world.alice, "getFile", &json!({ "file_id": "f1" })));
    assert_eq!(got["result"]["file_path"], "documents/f1");
    assert_eq!(file("documents/f1").body, "content of f1");
    assert_eq!(file("documents/../documents/f1").status(), 404);
    world.bot.remove_file("f1");
    assert_eq!(file("documents/f1").status(), 404, "it has gone, and the token is good");
}

#[test]
fn an_upload_that_is_not_for_the_own_chat_does_nothing() {
    let world = world();
    let file = "--B\r\nContent-Disposition: form-data; name=\"document\"; filename=\"a\"\r\n\r\nx\r\n";
    let part = |name: &str, value: &str| {
        format!("--B\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
    };
    let own = part("chat_id", "777");
    for form in [
        file.to_owned(),
        format!("{file}{}", part("chat_id", "888")),
        format!("{own}{file}{}", part("chat_id", "888")),
        format!("{own}{file}{own}"),
        format!("{own}{file}{}", part("reply_parameters", "{\"chat_id\":888}")),
        format!("{own}{file}{}", file.replace("\"document\"", "\"chat_id\"")),
        format!("{own}{file}{}", file.replace("\"document\"", "\"user_id\"")),
        format!("{own}{file}{}", file.replace("\"document\"", "\"reply_parameters\"")),
        format!("{own}{file}{}", file.replace("\"document\"", "\"Inline_Message_Id\"")),
        format!("{own}{file}{file}"),
        format!("{own}{file}{}", part("document", "x")),
        format!("{own}{}", file.replace("\"document\"", "\"a\\\"; b\"")),
    ] {
        let form = format!("{form}--B--\r\n");
        let answer = world.raw(
            world.alice.ip,
            post(&path(&world, "sendDocument"), "multipart/form-data; boundary=B", &form),
        );
        assert!(matches!(answer.status(), 400 | 403), "{form}\n{}", answer.body);
    }
    let cut_off = format!("{own}{file}");
    let answer = world
        .raw(world.alice.ip, post(&path(&world, "sendDocument"), "multipart/form-data; boundary=B", cut_off));
    assert_eq!(answer.status(), 400);
    assert!(world.bot.calls_of("sendDocument").is_empty());
}

#[test]
fn a_form_of_which_much_would_have_to_be_kept_is_refused() {
    let world = world();
    let part = |name: &str, value: &str| {
        format!("--B\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
    };
    let file = |name: &str, more: &str| {
        format!("--B\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"a\"\r\n{more}\r\nx\r\n")
    };
    let send = |parts: &[String]| {
        let form = format!("{}{}--B--\r\n", part("chat_id", "777"), parts.concat());
        let kind = "multipart/form-data; boundary=B";
        world.raw(world.alice.ip, post(&path(&world, "sendMediaGroup"), kind, form))
    };
    // A small text, and many values each of which takes much room.
    let objects = |count: usize| format!("[{}]", vec![r#"{"":0}"#; count].join(","));
    let several = ["a", "b", "c", "d"].map(|name| part(name, &objects(1000)));
    // Few values, and long texts.
    let long = ["a", "b", "c", "d"].map(|name| part(name, &format!("[\"{}\"]", "x".repeat(70_000))));
    let many: Vec<String> = (0..64).map(|number| part(&format!("p{number}"), "1")).collect();
    let files: Vec<String> = (0..65).map(|number| file(&format!("f{number}"), "")).collect();
    let head = file("a", &format!("X: {}\r\n", "x".repeat(2 << 20)));
    for (parts, status, why) in [
        (&several[..], 400, "more than 4096 values"),
        (&long[..], 413, "Too Large"),
        (&many[..], 400, "more than 64 parameters"),
        (&files[..], 400, "more than 64 files"),
        (&[head][..], 400, "head of a part is too long"),
    ] {
        let answer = send(parts);
        assert!(answer.status() == status && answer.body.contains(why), "{why}: {}", answer.body);
    }
    let json = format!("{{\"chat_id\":777,\"media\":{}}}", objects(3000));
    let path = path(&world, "sendMediaGroup");
    assert_eq!(world.raw(world.alice.ip, post(&path, "application/json", json)).status(), 400);
    assert!(world.bot.calls_of("sendMediaGroup").is_empty());
    // As much as Telegram takes.
    let entity = r#"{"type":"bold","offset":1,"length":2}"#;
    let item = |number| {
        format!(
            r#"{{"type":"photo","media":"attach://f{number}","caption_entities":[{}]}}"#,
            vec![entity; 98].join(",")
        )
    };
    let album: Vec<String> = (0..10).map(item).collect();
    let mut parts = vec![part("media", &format!("[{}]", album.join(",")))];
    parts.extend((0..10).map(|number| file(&format!("f{number}"), "Content-Type: image/png\r\n")));
    let answer = send(&parts);
    assert_eq!(answer.status(), 200, "{}", answer.body);
}

#[test]
fn other_chats_methods_and_workers_are_refused() {
    let world = world();
    let calls = world.bot.calls().len();
    for (method, said) in [
        ("sendMessage", json!({ "chat_id": BOB, "text": "x" })),
        ("sendMessage", json!({ "text": "x" })),
        ("sendMessage", json!({ "chat_id": ALICE, "text": "x", "reply_parameters": { "chat_id": BOB } })),
        ("copyMessage", json!({ "chat_id": ALICE, "from_chat_id": BOB, "message_id": 1 })),
        ("editMessageText", json!({ "inline_message_id": "x", "text": "x" })),
        ("deleteMessage", json!({ "chat_id": BOB, "message_id": 1 })),
        ("getUpdates", json!({})),
        ("logOut", json!({})),
        ("banChatMember", json!({ "chat_id": ALICE, "user_id": 1 })),
        ("sendGift", json!({ "user_id": ALICE })),
    ] {
        let answer = world.call(&world.alice, method, &said);
        assert!(matches!(answer.status(), 400 | 403 | 404), "{method} {said}: {}", answer.body);
        assert_eq!(body(&answer)["ok"], json!(false));
    }
    // Another worker's token, none, and the right one from another address.
    let alices = path(&world, "getMe");
    assert_eq!(world.raw(world.bob.ip, post(&alices, "application/json", "{}")).status(), 401);
    let nobodys = "/telegram/bot1:x/getMe";
    assert_eq!(world.raw(world.alice.ip, post(nobodys, "application/json", "{}")).status(), 401);
    let elsewhere = super::super::harness::own_address();
    assert_eq!(world.raw(elsewhere, post(&alices, "application/json", "{}")).status(), 403);
    let real = format!("/telegram/bot{TOKEN}/getMe");
    assert_eq!(world.raw(world.alice.ip, post(&real, "application/json", "{}")).status(), 401);
    let others = world.bot.calls().into_iter().skip(calls).filter(|call| call.method != "getUpdates");
    assert_eq!(others.count(), 0, "something got through");
}

#[test]
fn what_is_the_gateways_own_is_answered_by_it() {
    let world = world();
    for method in [
        "setWebhook",
        "deleteWebhook",
        "setMyCommands",
        "deleteMyCommands",
        "getMyCommands",
        "getWebhookInfo",
    ] {
        let answer = world.call(&world.alice, method, &json!({ "url": "http://x/" }));
        assert_eq!((answer.status(), &body(&answer)["ok"]), (200, &json!(true)), "{method}");
        assert!(world.bot.calls_of(method).is_empty());
    }
    assert_eq!(body(&world.call(&world.alice, "getMe", &json!({})))["result"]["id"], json!(12345));
    assert!(world.bot.mistakes().is_empty(), "{:?}", world.bot.mistakes());
}

#[test]
fn what_was_not_sent_is_tried_again_and_what_was_is_not() {
    let mut world = world();
    let said = json!({ "chat_id": ALICE, "text": "x" });
    world.bot.order("sendMessage", Fault::TooManyRequests { retry_after: 1 }, 1);
    let begin = Instant::now();
    assert_eq!(world.call(&world.alice, "sendMessage", &said).status(), 200);
    assert!(begin.elapsed() >= Duration::from_secs(1));
    assert_eq!(world.bot.calls_of("sendMessage").len(), 2);

    world.bot.order("sendMessage", Fault::TooManyRequests { retry_after: 3600 }, 1);
    let answer = world.call(&world.alice, "sendMessage", &said);
    assert_eq!((answer.status(), answer.header("retry-after")), (429, Some("3600")));
    world.bot.order("sendMessage", Fault::DropAfter, 1);
    let before = world.bot.calls_of("sendMessage").len();
    assert_eq!(world.call(&world.alice, "sendMessage", &said).status(), 502);
    assert_eq!(world.bot.calls_of("sendMessage").len(), before + 1);

    // A port that only opens after a while.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    world.block["endpoints"]["telegram"] = json!(format!("http://{address}"));
    world.reload();
    let late = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(400));
        let bot = mvm_fakes::BotApi::start(std::net::TcpListener::bind(address).unwrap(), TOKEN).unwrap();
        bot.wait_for(|calls| calls.iter().any(|call| call.method == "getFile"), Duration::from_secs(20))
            .unwrap();
    });
    let answer = world.call(&world.alice, "getFile", &json!({ "file_id": "none" }));
    assert_eq!(answer.status(), 400, "{}", answer.body);
    late.join().unwrap();
}

/// Sends a call, and has the worker wait for its answer.
fn begin(world: &World, method: &str, said: &Value) -> Peer {
    let mut peer = world.peer(world.alice.ip);
    world.block_on(peer.send(post(&path(world, method), "application/json", said.to_string())));
    peer
}

const ANOTHER: &str = "12345:AAanother";

#[test]
fn a_call_that_waits_when_the_token_is_replaced_goes_on_with_the_new_one() {
    let mut world = world();
    world.bot.order("sendMessage", Fault::TooManyRequests { retry_after: 2 }, 1);
    let mut peer = begin(&world, "sendMessage", &json!({ "chat_id": ALICE, "text": "x" }));
    world.until(|world| world.bot.calls_of("sendMessage").len() == 1);
    world.bot.set_token(ANOTHER);
    world.secret("telegram/TELEGRAM_BOT_TOKEN", ANOTHER.as_bytes());
    world.reload();
    let answer = world.block_on(peer.message());
    assert_eq!(answer.status(), 200, "{}", answer.body);
}

#[test]
fn a_token_that_is_refused_is_the_gateways_and_not_the_workers() {
    let mut world = World::asleep();
    world.config.openclaw.pace.patience = Duration::from_secs(3);
    world.start();
    world.bot.push_message(ALICE, "x");
    world.alice.takes(1);
    world.bot.add_file("f1", b"x");
    assert_eq!(world.call(&world.alice, "getFile", &json!({ "file_id": "f1" })).status(), 200);
    world.bot.set_token(ANOTHER);
    let said = json!({ "chat_id": ALICE, "text": "x" });
    let answer = world.call(&world.alice, "sendMessage", &said);
    assert_eq!((answer.status(), answer.header("retry-after")), (503, Some("5")));
    assert_eq!(body(&answer)["error_code"], json!(503));
    let form = format!(
        "--B\r\nContent-Disposition: form-data; name=\"chat_id\"\r\n\r\n{ALICE}\r\n\
         --B\r\nContent-Disposition: form-data; name=\"document\"; filename=\"a\"\r\n\r\nx\r\n--B--\r\n"
    );
    let upload = post(&path(&world, "sendDocument"), "multipart/form-data; boundary=B", form);
    assert_eq!(world.raw(world.alice.ip, upload).status(), 503);
    let token = worker_bot_token(&world.alice.token);
    let file = format!("GET /telegram/file/bot{token}/documents/f1 HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(world.raw(world.alice.ip, file).status(), 503);
    let refused =
        |world: &World| world.metrics().contains("keys_refused_total{key=\"telegram/TELEGRAM_BOT_TOKEN\"} ");
    assert!(refused(&world), "{}", world.metrics());

    // A call waits a moment for the token that follows.
    let mut peer = begin(&world, "sendMessage", &said);
    std::thread::sleep(Duration::from_millis(300));
    world.secret("telegram/TELEGRAM_BOT_TOKEN", ANOTHER.as_bytes());
    world.reload();
    assert_eq!(world.block_on(peer.message()).status(), 200);
}
