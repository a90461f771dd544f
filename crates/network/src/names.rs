//! Names of what an agent makes: all carry its tag.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use mvm_model::NetId;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Error;

/// Host-side links of every agent on a host begin with this.
pub(crate) const LINK_PREFIX: &str = "mv-";
/// Host-side nft tables of every agent on a host begin with this.
pub(crate) const TABLE_PREFIX: &str = "mvm_";
/// The tenant's end of its uplink.
pub(crate) const UPLINK_LINK: &str = "uplink";

const WAITING_TAP: &str = "wait";

/// The name of a tap that is made ahead of the machine it will be of.
pub(crate) fn waiting_tap(number: u32) -> String {
    format!("{WAITING_TAP}{number}")
}

/// Whether a link has the name of such a tap.
pub(crate) fn is_waiting_tap(name: &str) -> bool {
    name.strip_prefix(WAITING_TAP).is_some_and(|number| number.parse::<u32>().is_ok())
}

/// A short id of an agent's data folder: six hexadecimal digits in the names of everything it makes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeTag(String);

impl NodeTag {
    /// The tag of the agent whose data folder this is: pass its canonical path.
    pub fn of_data_folder(path: &Path) -> Self {
        let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
        Self(hex::encode(&digest[..3]))
    }

    /// The tag's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A tenant's namespace, as `ip netns` shows it: `mvm-1a2b3c-t5`.
    pub fn namespace(&self, net_id: NetId) -> String {
        format!("mvm-{}-t{net_id}", self.0)
    }

    /// The host's end of a tenant's uplink: `mv-1a2b3c-5`.
    pub fn host_link(&self, net_id: NetId) -> String {
        format!("{LINK_PREFIX}{}-{net_id}", self.0)
    }

    /// The agent's nft table in the host's namespace: `mvm_1a2b3c`.
    pub fn table(&self) -> String {
        format!("{TABLE_PREFIX}{}", self.0)
    }

    /// The tenant whose namespace has this name.
    pub(crate) fn net_id_of_namespace(&self, name: &str) -> Option<NetId> {
        parse_net_id(name.strip_prefix(&format!("mvm-{}-t", self.0))?)
    }

    /// The tenant whose host link has this name.
    pub(crate) fn net_id_of_link(&self, name: &str) -> Option<NetId> {
        parse_net_id(name.strip_prefix(&format!("{LINK_PREFIX}{}-", self.0))?)
    }
}

fn parse_net_id(text: &str) -> Option<NetId> {
    NetId::new(text.parse().ok()?).ok().filter(|id| id.to_string() == text)
}

impl FromStr for NodeTag {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let valid = text.len() == 6 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if valid { Ok(Self(text.to_owned())) } else { Err(Error::Tag(text.to_owned())) }
    }
}

impl TryFrom<String> for NodeTag {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<NodeTag> for String {
    fn from(tag: NodeTag) -> String {
        tag.0
    }
}

impl fmt::Display for NodeTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_an_interface_and_lead_back_to_their_tenant() {
        let tag = NodeTag::of_data_folder(Path::new("/var/lib/mvm"));
        let other: NodeTag = "000000".parse().unwrap();
        for id in NetId::all() {
            let link = tag.host_link(id);
            assert!(link.len() <= 15, "{link}");
            assert_eq!(tag.net_id_of_link(&link), Some(id));
            assert_eq!(tag.net_id_of_namespace(&tag.namespace(id)), Some(id));
            assert_eq!(other.net_id_of_link(&link), None);
            assert_eq!(other.net_id_of_namespace(&tag.namespace(id)), None);
        }
        assert_eq!(tag.net_id_of_link(&format!("mv-{tag}-007")), None);
    }

    #[test]
    fn a_tag_is_six_hexadecimal_digits() {
        for bad in ["", "12345", "1234567", "12345g", "ABCDEF", "../../"] {
            assert!(bad.parse::<NodeTag>().is_err(), "{bad}");
        }
        assert!("0a1b2c".parse::<NodeTag>().is_ok());
    }
}
