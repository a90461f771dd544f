//! Tenant networks on a real kernel. Each test has a "host" of its own: a network namespace with an uplink to a
//! "world" in another one. The frames are written to and read from the taps, as a VMM does.

#![allow(clippy::unwrap_used)]

mod by_name;
mod egress;
mod frames;
mod isolation;
mod lab;
mod lifecycle;
mod verification;
