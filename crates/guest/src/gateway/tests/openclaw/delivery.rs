//! Each update comes once, in order, whatever goes wrong.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mvm_fakes::Fault;
use serde_json::json;

use super::worker::Does;
use super::world::*;

#[test]
fn an_update_comes_as_it_is_and_is_acknowledged_when_it_is_taken() {
    let world = World::new();
    world.alice.next(&[Does::Slow(Duration::from_millis(300))]);
    let id = world.bot.push_message(ALICE, "Hello, \u{1f99e}!");
    world.alice.comes(1);
    assert_eq!(world.bot.unacknowledged(), [id]);
    assert_eq!(world.alice.takes(1), [id]);
    assert_eq!(world.alice.last()["message"]["text"], "Hello, \u{1f99e}!");
    world.all_acknowledged();
    let by = json!({ "id": ALICE, "is_bot": false, "first_name": "A" });
    let chat = json!({ "id": ALICE, "type": "private" });
    let message = json!({ "message_id": 1, "date": 1, "chat": chat, "text": "x" });
    let query = json!({ "callback_query": { "id": "q", "from": by, "message": message, "data": "d" } });
    let reaction = json!({ "message_reaction": { "user": by, "chat": chat, "message_id": 1, "date": 1 } });
    let mut edited = message.clone();
    edited["from"] = by.clone();
    for update in [query, reaction, json!({ "edited_message": edited })] {
        world.bot.push_update(update);
    }
    assert_eq!(world.alice.takes(4).len(), 4);
    world.all_acknowledged();
    assert!(world.bot.mistakes().is_empty(), "{:?}", world.bot.mistakes());
    assert!(world.bob.came().is_empty());
}

#[test]
fn what_is_not_taken_durably_is_tried_again_in_order_and_others_do_not_wait() {
    let world = World::new();
    world.alice.next(&[
        Does::Status(500),
        Does::NotDurable,
        Does::Status(503),
        Does::Slow(Duration::from_millis(500)),
    ]);
    let to_alice: Vec<i64> = (0..5).map(|n| world.bot.push_message(ALICE, &n.to_string())).collect();
    world.alice.comes(1);
    let to_bob: Vec<i64> = (0..5).map(|n| world.bot.push_message(BOB, &n.to_string())).collect();
    assert_eq!(world.bob.takes(5), to_bob);
    assert!(world.alice.taken().len() < 5, "Bob waited for Alice");
    assert_eq!(world.alice.takes(5), to_alice);
    assert_eq!(world.alice.came().len(), 8);
    world.all_acknowledged();
    assert_eq!((world.alice.taken(), world.bob.taken()), (to_alice, to_bob));
}

#[test]
fn an_answer_that_is_lost_is_no_answer() {
    let world = World::new();
    world.alice.next(&[Does::Drop]);
    let id = world.bot.push_message(ALICE, "x");
    // A worker knows by the id that it has it.
    assert_eq!(world.alice.takes(2), [id, id]);
    world.all_acknowledged();
}

#[test]
fn a_kill_loses_nothing_and_repeats_nothing_that_was_written_down() {
    let mut world = World::new();
    world.alice.always(Some(Does::Status(503)));
    let to_alice = [world.bot.push_message(ALICE, "1"), world.bot.push_message(ALICE, "2")];
    let to_bob = [world.bot.push_message(BOB, "1"), world.bot.push_message(BOB, "2")];
    assert_eq!(world.bob.takes(2), to_bob);
    world.until(|world| {
        let path = world.config.openclaw.data.join("telegram/12345/position.json");
        std::fs::read_to_string(path)
            .is_ok_and(|text| text.contains(&format!("[{},{}]", to_bob[0], to_bob[1])))
    });
    world.kill();
    world.alice.always(None);
    world.start();
    assert_eq!(world.alice.takes(2), to_alice);
    world.all_acknowledged();
    assert_eq!(world.bob.taken(), to_bob);

    // Between a worker's word and the record of it.
    world.alice.next(&[Does::Hang]);
    let id = world.bot.push_message(ALICE, "3");
    world.alice.takes(3);
    world.kill();
    world.start();
    assert_eq!(world.alice.takes(4)[2..], [id, id]);
    world.all_acknowledged();
    world.stop();
    world.start();
    let last = world.bot.push_message(ALICE, "4");
    assert_eq!(world.alice.takes(5)[4..], [last]);
}

#[test]
fn kills_at_any_moment_lose_nothing_and_keep_the_order() {
    let mut world = World::new();
    let mut pushed = Vec::new();
    for round in 0..8_u64 {
        pushed.extend((0..10).map(|n| world.bot.push_message(if n % 2 == 0 { ALICE } else { BOB }, "x")));
        std::thread::sleep(Duration::from_millis(7 * round));
        world.kill();
        world.start();
    }
    let all = |world: &World| {
        let mut all = [world.alice.taken(), world.bob.taken()].concat();
        all.sort_unstable();
        all.dedup();
        all
    };
    world.until(|world| all(world) == pushed);
    world.all_acknowledged();
    for worker in [&world.alice, &world.bob] {
        assert!(worker.taken().is_sorted(), "{:?}", worker.taken());
    }
}

#[test]
fn telegrams_troubles_are_waited_out() {
    let world = World::new();
    for (fault, times) in
        [(Fault::ServerError, 2), (Fault::DropAfter, 2), (Fault::DropBefore, 1), (Fault::Overloaded, 1)]
    {
        world.bot.order("getUpdates", fault, times);
    }
    let first = world.bot.push_message(ALICE, "x");
    assert_eq!(world.alice.takes(1), [first]);
    world.bot.order("getUpdates", Fault::TooManyRequests { retry_after: 1 }, 1);
    world.bot.push_message(ALICE, "y");
    let is_refused = |world: &World| {
        let polls = world.bot.calls_of("getUpdates");
        let pause = |pair: &[mvm_fakes::BotCall]| pair[1].at - pair[0].at;
        polls
            .windows(2)
            .any(|pair| pause(pair) >= Duration::from_secs(1) && pause(pair) < Duration::from_secs(4))
    };
    world.alice.takes(2);
    world.all_acknowledged();
    world.bot.push_message(ALICE, "z");
    world.alice.takes(3);
    world.until(is_refused);
}

#[test]
fn a_second_poller_and_a_wrong_token_are_asked_slowly_until_that_is_mended() {
    let mut world = World::new();
    world.until(|world| !world.bot.calls_of("getUpdates").is_empty());
    world.bot.set_token("12345:other");
    world.bot.push_message(ALICE, "x");
    world.until(|world| !world.bot.unacknowledged().is_empty());
    // The poll that runs ends with the update; the next is refused, until the token is the new one.
    world.alice.takes(1);
    let before = world.bot.calls().len();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(world.bot.calls().len(), before, "with the wrong token nothing is recorded");
    world.secret("telegram/TELEGRAM_BOT_TOKEN", b"12345:other");
    world.reload();
    world.all_acknowledged();
    let id = world.bot.push_message(ALICE, "y");
    assert_eq!(world.alice.takes(2)[1..], [id]);
    assert_eq!(world.alice.came().len(), 2, "the same bot goes on where it was");
}

#[test]
fn somebody_else_who_polls_does_not_stop_the_gateway() {
    let world = World::new();
    world.until(|world| !world.bot.calls_of("getUpdates").is_empty());
    let url = format!("GET /bot{TOKEN}/getUpdates HTTP/1.1\r\nHost: x\r\n\r\n");
    world.block_on(async {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut other = tokio::net::TcpStream::connect(world.bot.address()).await.unwrap();
        other.write_all(url.as_bytes()).await.unwrap();
        other.read_exact(&mut [0; 12]).await.unwrap();
    });
    world.until(|world| world.bot.mistakes().len() == 1);
    let begin = Instant::now();
    let polls = world.bot.calls_of("getUpdates").len();
    world.until(|world| world.bot.calls_of("getUpdates").len() > polls);
    assert!(begin.elapsed() > Duration::from_millis(50), "it is to be slow then");
    let id = world.bot.push_message(ALICE, "x");
    assert_eq!(world.alice.takes(1), [id]);
}

#[test]
fn without_a_token_nothing_is_polled_until_there_is_one() {
    let mut world = World::asleep();
    std::fs::remove_file(world.config.openclaw.secrets.join("telegram/TELEGRAM_BOT_TOKEN")).unwrap();
    world.start();
    world.bot.push_message(ALICE, "x");
    std::thread::sleep(Duration::from_millis(200));
    assert!(world.bot.calls().is_empty());
    world.secret("telegram/TELEGRAM_BOT_TOKEN", TOKEN.as_bytes());
    world.reload();
    world.alice.takes(1);
}

#[test]
fn another_bot_begins_anew_and_the_first_one_goes_on_where_it_was() {
    let mut world = World::new();
    world.alice.always(Some(Does::Status(503)));
    let kept = world.bot.push_message(ALICE, "x");
    world.alice.comes(1);
    let serve = |world: &mut World, token: &str| {
        world.bot.set_token(token);
        world.secret("telegram/TELEGRAM_BOT_TOKEN", token.as_bytes());
        world.reload();
    };
    serve(&mut world, "99:other");
    let polls = world.bot.calls_of("getUpdates").len();
    world.until(|world| world.bot.calls_of("getUpdates").len() > polls);
    assert!(world.config.openclaw.data.join("telegram/99/position.json").exists());
    world.alice.always(None);
    // To the fake all tokens are of one bot, so the other one has this update, too.
    assert_eq!(world.alice.takes(1), [kept]);
    world.all_acknowledged();
    serve(&mut world, TOKEN);
    let last = world.bot.push_message(ALICE, "y");
    assert_eq!(world.alice.takes(2), [kept, last]);
    world.until(|world| world.metrics().contains("mvm_openclaw_deliveries_waiting{user=\"alice\"} 0\n"));
}

#[test]
fn one_stuck_worker_does_not_stop_the_others_and_gets_its_updates_in_the_end() {
    let mut world = World::new();
    world.alice.always(Some(Does::Status(503)));
    let to_alice: Vec<i64> = (0..150).map(|n| world.bot.push_message(ALICE, &n.to_string())).collect();
    let to_bob = world.bot.push_message(BOB, "x");
    assert_eq!(world.bob.takes(1), [to_bob]);
    world.until(|world| world.bot.unacknowledged().len() < 100);
    let metrics = world.metrics();
    assert!(metrics.contains("mvm_openclaw_deliveries_waiting{user=\"alice\"} 150\n"), "{metrics}");
    assert!(!metrics.contains("mvm_openclaw_updates_parked{user=\"alice\"} 0\n"), "{metrics}");
    world.kill();
    world.start();
    let last = world.bot.push_message(ALICE, "last");
    world.alice.always(None);
    let taken = world.alice.takes(151);
    assert_eq!(taken[..150], to_alice);
    assert_eq!(taken[150], last);
    world.all_acknowledged();
    let folder = world.config.openclaw.data.join("telegram/12345/parked/777");
    world.until(|_| std::fs::read_dir(&folder).is_ok_and(|mut files| files.next().is_none()));
    assert_eq!(world.alice.taken().len(), 151);
}

#[test]
fn what_others_have_taken_does_not_hide_what_comes_behind_one_that_waits() {
    let world = World::new();
    world.alice.always(Some(Does::Status(503)));
    let to_alice = world.bot.push_message(ALICE, "x");
    let to_bob: Vec<i64> = (0..120).map(|n| world.bot.push_message(BOB, &n.to_string())).collect();
    assert_eq!(world.bob.takes(120), to_bob);
    for stranger in 5000..5150 {
        world.bot.push_message(stranger, "hello");
    }
    let last = world.bot.push_message(BOB, "last");
    assert_eq!(world.bob.takes(121)[120..], [last]);
    world.alice.always(None);
    assert_eq!(world.alice.takes(1), [to_alice]);
    world.all_acknowledged();
}

#[test]
fn what_waits_for_long_is_kept_here() {
    let mut world = World::asleep();
    world.config.openclaw.pace.park_after = Duration::from_millis(100);
    world.start();
    world.alice.always(Some(Does::NotDurable));
    let id = world.bot.push_message(ALICE, "x");
    world.all_acknowledged();
    assert!(world.alice.taken().is_empty());
    world.alice.always(None);
    assert_eq!(world.alice.takes(1), [id]);
}

#[test]
fn a_person_sees_that_something_happens_until_the_worker_says_something() {
    let mut world = World::asleep();
    world.config.openclaw.pace.typing_after = Duration::from_millis(100);
    world.config.openclaw.pace.typing_every = Duration::from_millis(50);
    world.start();
    let typed = |world: &World| world.bot.calls_of("sendChatAction").len();
    world.wake.store(false, Ordering::Relaxed);
    world.bot.push_message(ALICE, "x");
    world.until(|world| typed(world) > 0);
    assert!(world.alice.taken().is_empty(), "it was shown while she woke");
    world.wake.store(true, Ordering::Relaxed);
    world.host.say(None);
    world.alice.takes(1);
    let before = typed(&world);
    world.until(|world| typed(world) > before + 2);
    let action = world.bot.calls_of("sendChatAction").pop().unwrap();
    assert_eq!((action.chat_id(), &action.params["action"]), (Some(ALICE), &json!("typing")));
    world.call(&world.alice, "sendMessage", &json!({ "chat_id": ALICE, "text": "done" }));
    let shown = typed(&world);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(300) {
        assert!(typed(&world) <= shown + 1);
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_gateway_is_ready_without_telegram_and_without_the_block_it_is_what_it_was() {
    let mut world = World::asleep();
    world.block["endpoints"]["telegram"] = json!("http://127.0.0.1:9");
    world.write_block();
    world.start();
    assert_eq!(world.raw(world.alice.ip, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").status(), 404);
    world.stop();
    std::fs::write(&world.config.openclaw.machine_config, r#"{"instance_id": "i-000000ff"}"#).unwrap();
    world.start();
    let refused = std::net::TcpStream::connect((world.config.listen, mvm_protocol::openclaw::WORKER_PORT));
    assert!(refused.is_err());
    assert!(!world.folder.path().join("data").join("telegram").join("0").exists());
}
