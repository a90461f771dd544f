//! Who said what the manifest of a new tenant says: an argument, a key of its file, or nobody but the template.

use super::place::Places;
use super::template::{GATEWAYS, NewOpenClaw, WORKERS};
use super::{Manifest, ManifestError, Problem};

/// What is said of a new tenant outside of its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Argument {
    /// Its name.
    Tenant,
    /// Its network number.
    NetId,
    /// Its subnet.
    Subnet,
    /// The image of its workers.
    Image,
}

/// A mistake in what is said of a new tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewMistake {
    /// A key of its file.
    InFile(ManifestError),
    /// An argument, and what is wrong with it.
    Argument(Argument, String),
    /// Nobody said it: the template has it so.
    Template(String),
}

impl NewOpenClaw {
    /// A problem of the manifest that was made of this, told of what said it.
    pub fn mistake(&self, manifest: &Manifest, problem: Problem) -> NewMistake {
        self.told(&manifest.places, problem)
    }

    pub(super) fn told(&self, places: &Places, problem: Problem) -> NewMistake {
        let Problem { key, message } = problem;
        let in_file = |key: &str| {
            let key = key.to_owned();
            NewMistake::InFile(places.locate(Problem { key, message: message.clone() }))
        };
        let pool = key.strip_prefix("pools[").and_then(|rest| rest.split_once("]."));
        let (candidates, what) = match (key.as_str(), pool) {
            ("tenant.id", _) => return NewMistake::Argument(Argument::Tenant, message),
            ("tenant.net_id", _) if self.network.net_id.is_some() => {
                return NewMistake::Argument(Argument::NetId, message);
            }
            ("tenant.subnet", _) if self.network.subnet.is_some() => {
                return NewMistake::Argument(Argument::Subnet, message);
            }
            // As many instances as it cannot have.
            ("tenant.subnet", _) => (how_many(), "subnet".to_owned()),
            (_, Some(("1", "image"))) if self.image.is_some() => {
                return NewMistake::Argument(Argument::Image, message);
            }
            (_, Some((index, rest))) => {
                let pool = if index == "0" { GATEWAYS } else { WORKERS };
                (keys_of(pool, rest), format!("pool {pool}: {rest}"))
            }
            (key, None) if key.starts_with("tenant.") => (Vec::new(), key.to_owned()),
            (key, None) => return in_file(key),
        };
        match candidates.iter().find(|key| places.has(key)) {
            Some(key) => in_file(key),
            None => NewMistake::Template(format!("{what}: {message}")),
        }
    }
}

/// The keys that say how many workers there are.
fn how_many() -> Vec<String> {
    vec![format!("overrides.{WORKERS}.instances"), "users".to_owned()]
}

/// The keys of the file that may have said a key of a pool.
fn keys_of(pool: &str, key: &str) -> Vec<String> {
    match key.split(['.', '[']).next().unwrap_or_default() {
        "secret_scopes" => vec!["secrets".to_owned()],
        "egress" => vec!["endpoints".to_owned()],
        "desired_sleeping" => how_many(),
        own => vec![format!("overrides.{pool}.{own}")],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::RequestedNetwork;
    use crate::{NetId, TenantSubnet};

    const FILE: &str = "[secrets]\nanthropic_key = { file = 'a' }\ntelegram_token = { file = 't' }\n\
        [overrides.workers]\nmem_mib = 512\n[[users]]\nname = 'alice'\n";

    fn told(new: &NewOpenClaw, key: &str) -> (String, usize) {
        let manifest = Manifest::openclaw(FILE, new).unwrap();
        match new.mistake(&manifest, Problem::new(key, "why")) {
            NewMistake::InFile(error) => (error.key, error.place.line),
            NewMistake::Argument(argument, message) => (format!("{argument:?}: {message}"), 0),
            NewMistake::Template(message) => (message, 0),
        }
    }

    #[test]
    fn a_mistake_is_told_of_what_said_it() {
        let tenant = "alice".parse().unwrap();
        let mut new = NewOpenClaw { tenant, network: RequestedNetwork::default(), image: None };
        let of = |what: &str| (what.to_owned(), 0);
        let at = |key: &str, line: usize| (key.to_owned(), line);
        for (key, expected) in [
            ("tenant.id", of("Tenant: why")),
            ("tenant.net_id", of("tenant.net_id: why")),
            ("tenant.subnet", at("users", 6)),
            ("pools[1].image", of("pool workers: image: why")),
            ("pools[1].mem_mib", at("overrides.workers.mem_mib", 5)),
            ("pools[0].mem_mib", of("pool gateways: mem_mib: why")),
            ("pools[1].desired_sleeping", at("users", 6)),
            ("pools[0].secret_scopes[1].keys[0]", at("secrets", 1)),
            ("secrets.anthropic_key.file", at("secrets.anthropic_key.file", 2)),
            ("users[0].telegram", at("users[0].telegram", 6)),
        ] {
            assert_eq!(told(&new, key), expected, "{key}");
        }
        new.network.net_id = Some(NetId::new(7).unwrap());
        let subnet: ipnet::Ipv4Net = "10.240.7.0/24".parse().unwrap();
        new.network.subnet = Some(TenantSubnet::try_from(subnet).unwrap());
        new.image = Some("other".to_owned());
        assert_eq!(told(&new, "tenant.net_id"), of("NetId: why"));
        assert_eq!(told(&new, "tenant.subnet"), of("Subnet: why"));
        assert_eq!(told(&new, "pools[1].image"), of("Image: why"));
        assert_eq!(told(&new, "pools[0].image"), of("pool gateways: image: why"));
    }
}
