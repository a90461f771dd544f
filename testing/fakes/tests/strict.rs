//! What the fakes take and what they refuse, as their documentation says: a test against a lenient fake proves nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use mvm_fakes::{BotApi, Fault, ModelApi};
use serde_json::{Value, json};

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// Status and body of the answer; none where the connection ends without one.
fn ask(to: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> Option<(u16, Value)> {
    let mut stream = TcpStream::connect(to).unwrap();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    stream.write_all((head + body).as_bytes()).unwrap();
    let mut answer = String::new();
    // A connection that is dropped may be reset.
    let _ = stream.read_to_string(&mut answer);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, serde_json::from_str(body).unwrap()))
}

fn call(bot: &BotApi, method: &str, parameters: Value) -> Option<(u16, Value)> {
    let json = "Content-Type: application/json\r\n";
    ask(bot.address(), "POST", &format!("/bot1:a/{method}"), json, &parameters.to_string())
}

#[test]
fn the_bot_api_acknowledges_by_offset_and_refuses_what_it_does_not_know() {
    let bot = BotApi::start(listener(), "1:a").unwrap();
    let (first, second) = (bot.push_message(7, "a"), bot.push_message(7, "b"));
    let ids = |parameters: Value| {
        let (_, body) = call(&bot, "getUpdates", parameters).unwrap();
        body["result"]
            .as_array()
            .unwrap()
            .iter()
            .map(|update| update["update_id"].as_i64().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(json!({})), [first, second]);
    assert_eq!(ids(json!({ "limit": 1 })), [first]);
    assert_eq!(ids(json!({ "offset": second })), [second]);
    assert_eq!(ids(json!({ "offset": first })), [second], "it was acknowledged");
    assert_eq!(ids(json!({ "offset": second + 1 })), [0; 0]);
    for (method, parameters, code) in [
        ("getUpdate", json!({}), 404),
        ("sendMessage", json!({ "chat_id": 7 }), 400),
        ("sendMessage", json!({ "chat_id": 8, "text": "never wrote to it" }), 400),
        ("sendMessage", json!("text"), 400),
        ("getFile", json!({ "file_id": "none" }), 400),
        ("SENDMESSAGE", json!({ "chat_id": "7", "text": "x" }), 200),
    ] {
        let (status, body) = call(&bot, method, parameters).unwrap();
        assert_eq!((status, &body["ok"]), (code, &json!(code == 200)), "{method}");
    }
    let (status, body) = ask(bot.address(), "GET", "/bot1:b/getMe", "", "").unwrap();
    assert_eq!((status, &body["error_code"]), (401, &json!(401)));
    bot.order("getMe", Fault::DropBefore, 1);
    bot.order("getMe", Fault::DropAfter, 1);
    assert!(call(&bot, "getMe", json!({})).is_none() && bot.calls_of("getMe").is_empty());
    assert!(call(&bot, "getMe", json!({})).is_none() && bot.calls_of("getMe").len() == 1);
}

#[test]
fn a_newer_poll_ends_an_older_one_and_a_webhook_ends_all() {
    let bot = BotApi::start(listener(), "1:a").unwrap();
    let older = std::thread::scope(|scope| {
        let older = scope.spawn(|| call(&bot, "getUpdates", json!({ "timeout": 20 })).unwrap());
        bot.wait_for(|calls| calls.len() == 1, Duration::from_secs(20)).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(call(&bot, "getUpdates", json!({})).unwrap().0, 200);
        older.join().unwrap()
    });
    assert_eq!((older.0, bot.mistakes().len()), (409, 1));
    assert_eq!(call(&bot, "setWebhook", json!({ "url": "https://x" })).unwrap().0, 200);
    assert_eq!(call(&bot, "getUpdates", json!({})).unwrap().0, 409);
}

#[test]
fn the_messages_api_wants_its_headers_and_fields() {
    let model = ModelApi::start(listener(), "k").unwrap();
    let good = json!({ "model": "claude-sonnet-4-5", "max_tokens": 9, "messages": [{ "role": "user", "content": "a b" }] });
    let headers = "x-api-key: k\r\nanthropic-version: 2023-06-01\r\nContent-Type: application/json\r\n";
    let post = |headers: &str, body: &Value| {
        let (status, answer) =
            ask(model.address(), "POST", "/v1/messages", headers, &body.to_string()).unwrap();
        (status, answer["error"]["type"].as_str().unwrap_or_default().to_owned(), answer)
    };
    let (status, _, answer) = post(headers, &good);
    assert_eq!(
        (status, &answer["usage"]["input_tokens"], &answer["usage"]["output_tokens"]),
        (200, &json!(2), &json!(2))
    );
    for absent in ["anthropic-version: 2023-06-01\r\n", "Content-Type: application/json\r\n"] {
        let (status, kind, _) = post(&headers.replace(absent, ""), &good);
        assert_eq!((status, kind.as_str()), (400, "invalid_request_error"), "{absent}");
    }
    let (status, kind, _) = post(&headers.replace("key: k", "key: l"), &good);
    assert_eq!((status, kind.as_str()), (401, "authentication_error"));
    for (field, value) in [("max_tokens", Value::Null), ("messages", json!([])), ("modle", json!("x"))] {
        let mut bad = good.clone();
        bad[field] = value;
        assert_eq!(post(headers, &bad).0, 400, "{field}");
    }
}
