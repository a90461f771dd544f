//! Names of OpenClaw's secrets.

/// Their scope, as in `/run/secrets/<scope>/<KEY>`.
pub const SCOPE: &str = "openclaw";
/// What gateways are given: what workers' tokens are made of.
pub const TOKEN_KEY: &str = "OPENCLAW_TOKEN_KEY";
/// What a worker is given in its place: its own.
pub const WORKER_TOKEN_KEY: &str = "OPENCLAW_GATEWAY_TOKEN";
