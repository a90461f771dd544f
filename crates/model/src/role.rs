//! What a pool's machines are for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Whether machines of a role need something before they may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Never given.
    No,
    /// Given when there is any.
    Optional,
    /// A machine does not start without it.
    Required,
}

/// A role decides services, secrets and order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Receives everyone's messages and has sleeping machines woken.
    Gateway,
    /// Builds images.
    Builder,
    /// Does a user's work.
    #[default]
    Worker,
    /// Bridges iMessage.
    #[serde(rename = "capability-imessage")]
    CapabilityImessage,
    /// Runs OpenClaw for one user.
    #[serde(rename = "capability-openclaw")]
    CapabilityOpenclaw,
}

impl Role {
    /// Every role, in the order of [`Role::priority`].
    pub const ALL: [Role; 5] =
        [Role::Gateway, Role::Builder, Role::Worker, Role::CapabilityImessage, Role::CapabilityOpenclaw];

    /// The name on the wire, in the CLI and in TOML.
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Gateway => "gateway",
            Role::Builder => "builder",
            Role::Worker => "worker",
            Role::CapabilityImessage => "capability-imessage",
            Role::CapabilityOpenclaw => "capability-openclaw",
        }
    }

    /// Whether policy puts its idle machines to sleep. A gateway has to hear what wakes the others, and what a builder does is
    /// not its guest's.
    pub const fn sleeps_when_idle(self) -> bool {
        !matches!(self, Role::Gateway | Role::Builder)
    }

    /// Pools start in rising and sleep in falling priority.
    pub const fn priority(self) -> u8 {
        match self {
            Role::Gateway => 0,
            Role::Builder => 1,
            Role::Worker => 2,
            Role::CapabilityImessage | Role::CapabilityOpenclaw => 3,
        }
    }

    /// Whether machines of this role are given a config drive.
    pub const fn config(self) -> Need {
        match self {
            Role::Gateway | Role::CapabilityOpenclaw => Need::Required,
            Role::Worker => Need::Optional,
            Role::Builder | Role::CapabilityImessage => Need::No,
        }
    }

    /// Whether machines of this role are given a secrets drive.
    pub const fn secrets(self) -> Need {
        match self {
            Role::Gateway | Role::Worker | Role::CapabilityOpenclaw => Need::Required,
            Role::Builder | Role::CapabilityImessage => Need::No,
        }
    }

    /// Whether this is the role that may ask the host to wake others.
    pub const fn is_gateway(self) -> bool {
        matches!(self, Role::Gateway)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Not one of the five roles.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a role: use gateway, builder, worker, capability-imessage or capability-openclaw")]
pub struct UnknownRole(pub String);

impl FromStr for Role {
    type Err = UnknownRole;
    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        Role::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| UnknownRole(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_has_one_name_on_the_wire_and_in_text() {
        for role in Role::ALL {
            assert_eq!(role.as_str().parse(), Ok(role));
            assert_eq!(serde_json::to_string(&role).unwrap(), format!("\"{role}\""));
        }
        assert!("Gateway".parse::<Role>().is_err());
    }

    #[test]
    fn roles_are_listed_by_priority() {
        assert!(Role::ALL.is_sorted_by_key(|role| role.priority()));
        assert_eq!(Role::default(), Role::Worker);
    }
}
