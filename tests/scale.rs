//! Pools are brought to their counts, and what machines and the node take is told.

#![allow(clippy::unwrap_used)]

#[path = "scale/counts.rs"]
mod counts;

#[path = "scale/limits.rs"]
mod limits;

#[path = "scale/manifest.rs"]
mod manifest;

#[path = "scale/usage.rs"]
mod usage;
