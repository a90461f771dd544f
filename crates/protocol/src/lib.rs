//! What crosses a boundary: the control channel between host and guest, and the agent's HTTP types.
//!
//! From below: [`session`] begins a channel anew over bytes that may hold leftovers, [`mux`] carries
//! parallel streams over it, each stream begins with its [`Port`] and carries [`frame`]s of JSON, the
//! messages of [`control`]; some requests switch their stream to [`record`]s of raw bytes.

#[cfg(feature = "api")]
pub mod api;
pub mod control;
pub mod frame;
mod integration;
pub mod mux;
pub mod openclaw;
pub mod proxy;
pub mod record;
mod secret;
pub mod session;

pub use mux::{Mux, Stream};
pub use secret::SecretBytes;

/// Version of the control channel, said in `Hello` by both sides.
pub const PROTOCOL_VERSION: u32 = 1;

/// What a stream is for: its first four bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// 52: the host asks the guest.
    Guest,
    /// 53, `HOST_BOUND_PORT`: the guest asks the host.
    Host,
}

impl Port {
    /// The number on the wire.
    pub const fn number(self) -> u32 {
        match self {
            Port::Guest => 52,
            Port::Host => 53,
        }
    }
}

/// Streams a machine may have open at once.
pub const MAX_STREAMS: usize = 64;
/// Streams a gateway may have open at once.
pub const MAX_GATEWAY_STREAMS: usize = 512;
/// Of these, the ones that are kept for the host's own.
pub const HOST_STREAMS: usize = 16;
