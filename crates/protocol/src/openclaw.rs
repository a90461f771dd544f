//! What the parts of an OpenClaw tenant know of one another: the `openclaw` block of `config.json`, the ports, and the
//! secrets that are derived rather than stored.

use std::net::Ipv4Addr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use mvm_model::{Endpoints, InstanceId, PoolId};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// On a gateway machine: where workers reach the Bot API and the model API, and nothing else.
pub const WORKER_PORT: u16 = 8788;
/// The Bot API's place there: `apiRoot` of a worker is `http://<gateway>:8788/telegram`.
pub const BOT_API_PATH: &str = "/telegram";
/// The model API's place there: `baseUrl` of a worker is `http://<gateway>:8788/anthropic`.
pub const MODEL_API_PATH: &str = "/anthropic";
/// On a worker: where updates are posted.
pub const WEBHOOK_PORT: u16 = 8787;
/// The path that they are posted to.
pub const WEBHOOK_PATH: &str = "/telegram-webhook";
/// On a worker: OpenClaw's own port, with its probes and its admin RPC.
pub const CONTROL_PORT: u16 = 18789;

/// The `openclaw` block of `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OpenClaw {
    /// Of a gateway machine.
    Gateway(GatewayConfig),
    /// Of a worker machine.
    Worker(WorkerConfig),
}

/// What a gateway is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GatewayConfig {
    /// The services outside.
    pub endpoints: Endpoints,
    /// Everyone who is served.
    pub users: Vec<Served>,
}

/// A person, and the worker that is theirs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Served {
    /// The name.
    pub user: String,
    /// Their worker; none where it was destroyed, until they have another. What they write waits for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<AssignedWorker>,
    /// Who they are to Telegram, where that is known: a user's id, and the id of their private chat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub telegram: Option<i64>,
    /// What makes whoever opens it first this user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<OneTimeLink>,
    /// What their worker may spend on models in a calendar month (UTC), in cents of a US dollar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monthly_limit_cents: Option<u64>,
}

/// Somebody's worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedWorker {
    /// Its pool.
    pub pool_id: PoolId,
    /// Its id.
    pub instance_id: InstanceId,
    /// Its address, which is also how a request from it is known.
    pub ip: Ipv4Addr,
}

/// A link `https://t.me/<bot>?start=<code>`, as far as a gateway has to know it: to ask the host only about codes that may
/// be right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OneTimeLink {
    /// SHA-256 of the code, in hex.
    pub code_sha256: String,
    /// When it ceases to be valid, in seconds since 1970.
    pub expires_at: u64,
}

/// What a worker is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerConfig {
    /// Whom it serves.
    pub user: String,
    /// The gateway's address.
    pub gateway_ip: Ipv4Addr,
    /// Who that is to Telegram, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub telegram: Option<i64>,
}

/// A worker's `openclaw/OPENCLAW_GATEWAY_TOKEN`: base64url(HMAC-SHA256(openclaw_token, instance_id)), without padding. Its
/// gateway can compute it, and no other worker can.
pub fn worker_token(openclaw_token: &[u8], instance: InstanceId) -> String {
    URL_SAFE_NO_PAD.encode(hmac(openclaw_token, instance.to_string().as_bytes()))
}

/// What a worker says for a bot token to its gateway: of a bot token's form, and worth nothing elsewhere.
pub fn worker_bot_token(worker_token: &str) -> String {
    format!("1:{worker_token}")
}

/// `X-Telegram-Bot-Api-Secret-Token` of the updates that a worker is sent, of one person. A worker that does not know yet
/// that it serves them refuses it: it would take the update, and answer nothing.
pub fn webhook_secret(worker_token: &str, telegram: Option<i64>) -> String {
    let of_whom = telegram.map(|telegram| format!(":{telegram}")).unwrap_or_default();
    let message = format!("telegram-webhook{of_whom}");
    URL_SAFE_NO_PAD.encode(hmac(worker_token.as_bytes(), message.as_bytes()))
}

fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    // HMAC takes keys of every length, so the short block is never what is returned.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return [0; 32] };
    mac.update(message);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workers_token_is_what_the_contract_says() {
        // printf %s i-0000002a | openssl dgst -sha256 -hmac secret -binary | basenc --base64url
        let token = worker_token(b"secret", InstanceId::new(0x2a));
        assert_eq!(token, "NyZZ2o5ZFvqtcCAZ-3StSMXP9JkfGL4sv57s2sNwt5g");
        assert_ne!(token, worker_token(b"secret", InstanceId::new(0x2b)));
        assert_ne!(webhook_secret(&token, None), token);
    }

    #[test]
    fn a_workers_webhook_is_of_whom_it_serves() {
        // printf %s telegram-webhook:777 | openssl dgst -sha256 -hmac token -binary | basenc --base64url
        let secret = webhook_secret("token", Some(777));
        assert_eq!(secret, "IzfZ2hu3cgf32mulb600yFLgUP9IIActV6uSZyRFYK0");
        for other in [
            webhook_secret("token", None),
            webhook_secret("token", Some(778)),
            webhook_secret("other", Some(777)),
        ] {
            assert_ne!(secret, other);
        }
    }

    #[test]
    fn the_block_is_written_as_guests_read_it() {
        let worker = WorkerConfig {
            user: "alice".to_owned(),
            gateway_ip: [10, 240, 0, 3].into(),
            telegram: Some(777),
        };
        let text = serde_json::to_string(&OpenClaw::Worker(worker)).unwrap();
        assert_eq!(text, r#"{"worker":{"user":"alice","gateway_ip":"10.240.0.3","telegram":777}}"#);
        let gateway: OpenClaw = serde_json::from_str(r#"{"gateway":{"endpoints":{},"users":[]}}"#).unwrap();
        assert_eq!(
            gateway,
            OpenClaw::Gateway(GatewayConfig { endpoints: Endpoints::default(), users: Vec::new() })
        );
    }
}
