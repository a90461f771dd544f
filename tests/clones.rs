//! Machines that begin as clones of a base.

#![allow(clippy::unwrap_used)]

#[path = "clones/attempts.rs"]
mod attempts;

#[path = "clones/injected.rs"]
mod injected;

#[path = "clones/isolation.rs"]
mod isolation;
