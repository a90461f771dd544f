//! First light: real machines, and a message that wakes a sleeping one.

#![allow(clippy::unwrap_used)]

#[path = "first_light/broken_channel.rs"]
mod broken_channel;

#[path = "first_light/changes.rs"]
mod changes;

#[path = "first_light/egress.rs"]
mod egress;

#[path = "first_light/egress_by_name.rs"]
mod egress_by_name;

#[path = "first_light/holds.rs"]
mod holds;

#[path = "first_light/host_requests.rs"]
mod host_requests;

#[path = "first_light/isolation.rs"]
mod isolation;

#[path = "first_light/destroy.rs"]
mod destroy;

#[path = "first_light/failure.rs"]
mod failure;

#[path = "first_light/outside.rs"]
mod outside;

#[path = "first_light/probe.rs"]
mod probe;

#[path = "first_light/refusals.rs"]
mod refusals;

#[path = "first_light/restart.rs"]
mod restart;

#[path = "first_light/secrets.rs"]
mod secrets;

#[path = "first_light/sleep_and_wake.rs"]
mod sleep_and_wake;

#[path = "first_light/timed.rs"]
mod timed;
