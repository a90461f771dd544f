//! First light: real machines, and a message that wakes a sleeping one.

#![allow(clippy::unwrap_used)]

#[path = "first_light/manifest.rs"]
mod manifest;

#[path = "first_light/sleep_and_wake.rs"]
mod sleep_and_wake;

#[path = "first_light/timed.rs"]
mod timed;
