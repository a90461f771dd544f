//! What mvm needs of a host, and how it is met.

use serde::{Deserialize, Serialize};

/// How a [`Requirement`] is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// It works, and could be better.
    Warning,
    /// Without it mvm does not work.
    Missing,
    /// It could not be looked at.
    Unknown,
}

/// One thing that mvm needs of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Requirement {
    /// What it is called: `nftables`.
    pub name: String,
    /// How it is met.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do about it, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// Commands that do it, where there are any: each a program and its arguments, one after the other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<Vec<String>>,
}

impl Requirement {
    /// It is as it should be.
    pub fn ok(name: &str, found: impl ToString) -> Self {
        Self::new(name, Status::Ok, found, None)
    }

    /// It works, and could be better.
    pub fn warning(name: &str, found: impl ToString, remedy: impl Into<String>) -> Self {
        Self::new(name, Status::Warning, found, Some(remedy.into()))
    }

    /// mvm does not work so.
    pub fn missing(name: &str, found: impl ToString, remedy: impl Into<String>) -> Self {
        Self::new(name, Status::Missing, found, Some(remedy.into()))
    }

    /// Nobody knows; in words why.
    pub fn unknown(name: &str, why: impl ToString) -> Self {
        Self::new(name, Status::Unknown, why, None)
    }

    fn new(name: &str, status: Status, found: impl ToString, remedy: Option<String>) -> Self {
        Self { name: name.to_owned(), status, found: found.to_string(), remedy, commands: Vec::new() }
    }

    /// This command is the remedy, or the next part of it.
    #[must_use]
    pub fn by_command(mut self, command: &[&str]) -> Self {
        self.commands.push(command.iter().map(|word| (*word).to_owned()).collect());
        self
    }

    /// A package of the distribution is the remedy.
    #[must_use]
    pub fn by_package(self, package: &str) -> Self {
        self.by_command(&[&INSTALL[..], &[package]].concat())
    }

    /// Whether mvm does not work for want of it.
    pub fn is_missing(&self) -> bool {
        self.status == Status::Missing
    }
}

/// How packages are installed; their names follow. Debian's way, and Ubuntu's.
pub const INSTALL: [&str; 4] = ["apt-get", "install", "-y", "--no-install-recommends"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_as_it_should_be_has_no_remedy_in_json() {
        let json = serde_json::to_string(&Requirement::ok("tun", "works")).unwrap();
        assert_eq!(json, r#"{"name":"tun","status":"ok","found":"works"}"#);
    }
}
