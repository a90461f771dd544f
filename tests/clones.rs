//! Machines begin from bases and go on from snapshots: each is used as the rules say, whatever happens.

#![allow(clippy::unwrap_used)]

#[path = "clones/attempts.rs"]
mod attempts;

#[path = "clones/confirmation.rs"]
mod confirmation;

#[path = "clones/crash.rs"]
mod crash;

#[path = "clones/cycles.rs"]
mod cycles;

#[path = "clones/damage.rs"]
mod damage;

#[path = "clones/engine.rs"]
mod engine;

#[path = "clones/full_disk.rs"]
mod full_disk;

#[path = "clones/identity.rs"]
mod identity;

#[path = "clones/injected.rs"]
mod injected;

#[path = "clones/isolation.rs"]
mod isolation;

#[path = "clones/pause.rs"]
mod pause;

#[path = "clones/revisions.rs"]
mod revisions;

#[path = "clones/secrets.rs"]
mod secrets;

#[path = "clones/spares.rs"]
mod spares;

#[path = "clones/timed.rs"]
mod timed;

#[path = "clones/workers.rs"]
mod workers;
