//! Whom a tenant serves, and the services outside that its gateway speaks to for them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::UserName;

/// A person served by a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct User {
    /// The name.
    pub name: UserName,
    /// Who they are to Telegram; without it, whoever first opens their one-time link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub telegram: Option<TelegramId>,
    /// What their worker may spend on models in a calendar month, in cents of a US dollar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monthly_limit_cents: Option<u64>,
}

/// A person's id at Telegram, which is also that of their private chat with a bot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct TelegramId(i64);

impl TelegramId {
    /// The largest there can be: ids have at most 52 bits (Bot API, `User.id`).
    pub const MAX: i64 = (1 << 52) - 1;

    /// An id of a person, if it is one: those of groups and channels are negative.
    pub fn new(id: i64) -> Option<Self> {
        (1..=Self::MAX).contains(&id).then_some(Self(id))
    }

    /// The number.
    pub const fn get(self) -> i64 {
        self.0
    }
}

impl fmt::Display for TelegramId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a service outside is: `https://api.telegram.org`, without a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "String", into = "String")]
pub struct ServiceUrl {
    tls: bool,
    host: String,
    port: Option<u16>,
}

/// A text that is no [`ServiceUrl`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not where a service is: write https://<name> or http://<name>:<port>, without a path")]
pub struct InvalidServiceUrl(String);

impl ServiceUrl {
    /// The host, a name or an IPv4 address, and the port: what has to be reached.
    pub fn host_and_port(&self) -> (&str, u16) {
        (&self.host, self.port.unwrap_or(if self.tls { 443 } else { 80 }))
    }
}

impl FromStr for ServiceUrl {
    type Err = InvalidServiceUrl;

    fn from_str(text: &str) -> Result<Self, InvalidServiceUrl> {
        let invalid = || InvalidServiceUrl(text.to_owned());
        let (tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err(invalid()),
        };
        let (host, port) = match rest.split_once(':') {
            Some((host, port)) => {
                (host, Some(port.parse().ok().filter(|port| *port > 0).ok_or_else(invalid)?))
            }
            None => (rest, None),
        };
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        let whole = (1..=253).contains(&host.len()) && host.split('.').all(|label| !label.is_empty());
        if !whole || !host.bytes().all(allowed) {
            return Err(invalid());
        }
        Ok(Self { tls, host: host.to_owned(), port })
    }
}

impl TryFrom<String> for ServiceUrl {
    type Error = InvalidServiceUrl;

    fn try_from(text: String) -> Result<Self, InvalidServiceUrl> {
        text.parse()
    }
}

impl From<ServiceUrl> for String {
    fn from(url: ServiceUrl) -> String {
        url.to_string()
    }
}

impl fmt::Display for ServiceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// The services outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Endpoints {
    /// Telegram's Bot API.
    pub telegram: ServiceUrl,
    /// Anthropic's API.
    pub anthropic: ServiceUrl,
}

impl Default for Endpoints {
    fn default() -> Self {
        let public = |host: &str| ServiceUrl { tls: true, host: host.to_owned(), port: None };
        Self { telegram: public("api.telegram.org"), anthropic: public("api.anthropic.com") }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_service_is_a_name_and_maybe_a_port() {
        let reached = |text: &str| {
            let url: ServiceUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), text);
            let (host, port) = url.host_and_port();
            format!("{host}:{port}")
        };
        assert_eq!(reached("https://api.telegram.org"), "api.telegram.org:443");
        assert_eq!(reached("http://192.0.2.1"), "192.0.2.1:80");
        assert_eq!(reached("http://192.0.2.1:8081"), "192.0.2.1:8081");
        for bad in [
            "",
            "api.telegram.org",
            "https://",
            "ftp://a",
            "https://a/",
            "https://a/b",
            "https://u@a",
            "https://a:",
            "https://a:0",
            "https://a:65536",
            "https://[::1]",
            "https://A",
            "https://a..b",
        ] {
            assert!(bad.parse::<ServiceUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn people_have_positive_ids() {
        assert_eq!(TelegramId::new(777).map(TelegramId::get), Some(777));
        for other in [0, -1, -1_001_234_567_890, TelegramId::MAX + 1] {
            assert_eq!(TelegramId::new(other), None);
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_again(text in "(http|https)://[a-z0-9.-]{1,12}(:[0-9]{1,5})?") {
            if let Ok(url) = text.parse::<ServiceUrl>() {
                prop_assert_eq!(url.to_string().parse(), Ok(url));
            }
        }
    }
}
