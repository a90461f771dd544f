//! The gateway over real sockets on loopback, with real services behind it and the host's end of port 53 played.

mod forwarding;
mod hardening;
mod harness;
mod holding;
mod http2;
mod limits;
mod openclaw;
mod service;
mod upgrades;
