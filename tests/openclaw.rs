//! An assistant for each user, asleep until spoken to: real machines, a stand-in for OpenClaw that keeps its contract, and fakes of the
//! services outside.

#![allow(clippy::unwrap_used)]

#[path = "openclaw/alice.rs"]
mod alice;

#[path = "openclaw/conversation.rs"]
mod conversation;

#[path = "openclaw/isolation.rs"]
mod isolation;

#[path = "openclaw/keys.rs"]
mod keys;

#[path = "openclaw/mistakes.rs"]
mod mistakes;

#[path = "openclaw/native.rs"]
mod native;

#[path = "openclaw/people.rs"]
mod people;

// Only some of what machines can try is tried here.
#[allow(dead_code)]
#[path = "first_light/probe.rs"]
mod probe;

#[path = "openclaw/real.rs"]
mod real;

#[path = "openclaw/upgrade.rs"]
mod upgrade;
