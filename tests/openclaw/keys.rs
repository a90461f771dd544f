//! Keys are replaced without a message lost.

use std::time::Duration;

use mvm_fakes::{BotCall, Fault};

use crate::alice::{ALICE, ANSWERED, GATEWAY, KNOWN, Outside, alice, vmm};

/// Something is said, and the model is asked and thinks about it: what follows happens meanwhile.
fn with_a_turn_in_hand(outside: &Outside, text: &str) {
    let before = outside.model.calls().len();
    outside.model.order("/v1/messages", Fault::Slow(Duration::from_secs(15)), 1);
    outside.bot.push_message(ALICE, text);
    outside.model.wait_for(|calls| calls.len() > before, ANSWERED).expect("the model was not asked");
}

#[test]
fn a_new_key_is_checked_and_then_used_by_the_next_call() {
    let (lab, mut outside, _) = alice(KNOWN);
    outside.talk(ALICE, "with the first key");
    let gateway = vmm(&lab, GATEWAY);

    // One that is rejected changes nothing.
    let wrong = lab.file("wrong.key", "sk-ant-wrong");
    let error = lab.mvm_fails(&[
        "tenant",
        "secrets",
        "set",
        "alice",
        "anthropic_key",
        "--file",
        wrong.to_str().unwrap(),
    ]);
    assert!(error.contains("anthropic_key") && error.contains("does not take this key"), "{error}");
    outside.talk(ALICE, "still with the first key");

    with_a_turn_in_hand(&outside, "while the key is replaced");
    outside.model_key = "sk-ant-second".to_owned();
    outside.model.set_key("sk-ant-second");
    lab.file("anthropic.key", "sk-ant-second");
    let told = lab.mvm(&["tenant", "secrets", "rotate", "alice"]);
    assert!(told.contains("anthropic"), "{told}");
    outside.wait_for_answer(ALICE, "while the key is replaced");
    outside.talk(ALICE, "with the second key");

    // The answer waits in the gateway, and goes with the token that counts then.
    outside.bot.order("sendMessage", Fault::TooManyRequests { retry_after: 15 }, 1);
    outside.talk(ALICE, "while the token is replaced");
    let token = "123456:another";
    outside.bot.set_token(token);
    lab.file("telegram.token", token);
    lab.mvm(&["tenant", "secrets", "rotate", "alice", "telegram_token"]);
    let sent =
        |call: &&BotCall| call.method == "sendMessage" && call.text().contains("while the token is replaced");
    let both = |calls: &[BotCall]| calls.iter().filter(sent).count() == 2;
    outside.bot.wait_for(both, ANSWERED).expect("the answer was lost");
    outside.talk(ALICE, "with another token");

    with_a_turn_in_hand(&outside, "while the workers' tokens are replaced");
    let new = lab.file("openclaw.token", "another key of the workers' tokens");
    let new = new.to_str().unwrap();
    lab.mvm(&["tenant", "secrets", "set", "alice", "openclaw_token", "--file", new]);
    outside.wait_for_answer(ALICE, "while the workers' tokens are replaced");
    outside.talk(ALICE, "with other tokens of the workers'");
    assert_eq!(vmm(&lab, GATEWAY), gateway, "the gateway ran on");
    let listed = lab.mvm(&["tenant", "secrets", "list", "alice"]);
    assert!(
        listed.contains("anthropic") && !listed.contains("sk-ant-second") && !listed.contains(token),
        "{listed}"
    );
}
