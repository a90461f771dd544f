//! Keys are replaced without a message lost.

use crate::alice::{ALICE, GATEWAY, KNOWN, alice, vmm};

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

    outside.model_key = "sk-ant-second".to_owned();
    outside.model.set_key("sk-ant-second");
    lab.file("anthropic.key", "sk-ant-second");
    let told = lab.mvm(&["tenant", "secrets", "rotate", "alice"]);
    assert!(told.contains("anthropic"), "{told}");
    outside.talk(ALICE, "with the second key");

    let token = "123456:another";
    outside.bot.set_token(token);
    lab.file("telegram.token", token);
    lab.mvm(&["tenant", "secrets", "rotate", "alice", "telegram_token"]);
    outside.talk(ALICE, "with another token");
    assert_eq!(vmm(&lab, GATEWAY), gateway, "the gateway ran on");
    let listed = lab.mvm(&["tenant", "secrets", "list", "alice"]);
    assert!(
        listed.contains("anthropic") && !listed.contains("sk-ant-second") && !listed.contains(token),
        "{listed}"
    );
}
