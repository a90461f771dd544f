//! Who may talk to whom.

use crate::alice::{ALICE, KNOWN, WORKER, alice, wakes};

const STRANGER: i64 = 666;

#[test]
fn whoever_opens_the_link_first_is_alice_and_strangers_wake_nobody() {
    let (lab, outside, printed) = alice("");
    let link = printed.split_whitespace().find(|word| word.starts_with("https://t.me/")).unwrap();
    let (bot, code) = link.split_once("?start=").unwrap();
    assert_eq!(bot, "https://t.me/fake_bot", "its name is known from getMe: {printed}");
    let user = |key: &str| lab.json(&["user", "list", "alice"])[0][key].clone();
    assert_eq!((user("name"), user("telegram")), ("alice".into(), serde_json::Value::Null));

    let before = wakes(&lab, WORKER);
    for _ in 0..3 {
        outside.bot.push_message(STRANGER, "let me in");
        outside.bot.push_message(STRANGER, "/start wrong-code");
    }
    lab.wait_for("a stranger is refused", || !outside.said(STRANGER).is_empty());
    lab.wait_for("and all was looked at", || outside.bot.unacknowledged().is_empty());
    assert_eq!(outside.said(STRANGER).len(), 1, "once a day");

    outside.bot.push_message(ALICE, &format!("/start {code}"));
    lab.wait_for("alice is known", || user("telegram") == ALICE);
    assert_eq!(wakes(&lab, WORKER), before, "so far nobody was woken");
    lab.wait_for("she is greeted", || !outside.said(ALICE).is_empty());
    outside.talk(ALICE, "hello it is me");
    assert_eq!(user("telegram"), ALICE);
    assert!(user("link_expires_at").is_null());

    // The link is used up, for others and for her.
    outside.bot.push_message(STRANGER, &format!("/start {code}"));
    lab.wait_for("that was looked at", || outside.bot.unacknowledged().is_empty());
    assert_eq!((user("telegram"), outside.said(STRANGER).len()), (ALICE.into(), 1));
    assert!(lab.mvm_fails(&["user", "link", "alice/alice"]).contains("known already"));
    assert_eq!(lab.info("alice/alice")["id"], lab.info(WORKER)["id"], "a user is an instance's name");
    assert_eq!(outside.bot.mistakes(), [""; 0]);
}

#[test]
fn another_link_takes_the_place_of_the_first() {
    let (lab, outside, printed) = alice("");
    let first = printed.split_once("?start=").unwrap().1.split_whitespace().next().unwrap().to_owned();
    let link = lab.json(&["user", "link", "alice/alice"]);
    let second = link["code"].as_str().unwrap().to_owned();
    assert_eq!(link["url"], format!("https://t.me/fake_bot?start={second}"), "the bot's name was kept");
    let told = || lab.json(&["user", "list"])[0]["telegram"].clone();
    outside.bot.push_message(ALICE, &format!("/start {first}"));
    lab.wait_for("that was looked at", || outside.bot.unacknowledged().is_empty());
    assert!(told().is_null());
    outside.bot.push_message(ALICE, &format!("/start {second}"));
    lab.wait_for("alice is known", || told() == ALICE);
}

#[test]
fn a_link_is_never_for_the_bot_of_an_earlier_token() {
    let (lab, outside, _) = alice("");
    let set = |token: &str, more: &[&str]| {
        outside.bot.set_token(token);
        let file = lab.file("telegram.token", token).display().to_string();
        let set = ["tenant", "secrets", "set", "alice", "telegram_token", "--file", &file];
        lab.mvm(&[set.as_slice(), more].concat());
    };
    let is_for = |bot: &str| {
        let told = lab.mvm(&["user", "link", "alice/alice"]);
        assert!(told.starts_with(&format!("https://t.me/{bot}?start=")), "{told}");
    };
    set(&outside.bot_token, &["--offline"]);
    is_for("fake_bot");
    set("654321:another", &["--offline"]);
    is_for("<your bot>");
    // Asked about it, Telegram says whose it is, also where nothing else is new.
    let told = lab.mvm(&["tenant", "secrets", "rotate", "alice", "telegram_token"]);
    assert!(told.contains("nothing to do"), "{told}");
    is_for("fake_bot");
    set("765432:third", &[]);
    is_for("fake_bot");
}

#[test]
fn a_tenant_is_what_its_manifest_says_and_who_opened_their_links() {
    let (lab, _outside, _) = alice(&format!("{KNOWN}monthly_limit_usd = 20\n"));
    let manifest = lab.mvm(&["tenant", "info", "alice", "-o", "toml"]);
    assert!(
        manifest.contains("monthly_limit_usd = 20.0") && manifest.contains("telegram = 777"),
        "{manifest}"
    );
    let file = lab.file("again.toml", &manifest);
    let again = lab.mvm(&["deploy", file.to_str().unwrap()]);
    assert!(again.contains("nothing to do"), "{again}");
    let without = manifest.replace("telegram = 777\n", "");
    let file = lab.file("without.toml", &without);
    let again = lab.mvm(&["deploy", file.to_str().unwrap()]);
    assert!(again.contains("nothing to do"), "who is known stays known: {again}");
}
