//! Which secret lies where, and for whom.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use mvm_model::service::{Service, ServicesFile};
use mvm_protocol::control::SecretFiles;

use super::places;
use crate::error::{Doing as _, Failure, Result};
use crate::services::account::Account;

/// A secret's place below the secrets folder, and its owner.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Placed<'a> {
    /// `<scope>/<KEY>` or `<service>/<scope>/<KEY>`.
    pub(super) path: String,
    /// The one user who may read it.
    pub(super) owner: u32,
    /// What it says.
    pub(super) content: &'a [u8],
}

/// Decides where secrets go: to the user of the services that name their scope, to root where none does, and, where
/// these are different users, to a copy for each such service.
pub(super) fn place<'a>(secrets: &'a SecretFiles, services: &ServicesFile) -> Result<Vec<Placed<'a>>> {
    let mut placed = Vec::new();
    for (scope, keys) in secrets {
        for (folder, owner) in folders(scope, services)? {
            for (key, value) in keys {
                placed.push(Placed { path: format!("{folder}/{key}"), owner, content: value.expose() });
            }
        }
        keys.keys().chain([scope]).try_for_each(|name| require_name(name))?;
    }
    let paths: BTreeSet<&str> = placed.iter().map(|secret| secret.path.as_str()).collect();
    if paths.len() < placed.len() {
        return Err(Failure::new("placing secrets", "a service has the name of a scope, and keys collide"));
    }
    Ok(placed)
}

/// The folders of a scope, each with its owner.
fn folders(scope: &str, services: &ServicesFile) -> Result<BTreeMap<String, u32>> {
    let users = users_of(scope, services);
    let is_shared = users.values().collect::<BTreeSet<_>>().len() > 1;
    if users.is_empty() {
        return Ok(BTreeMap::from([(scope.to_owned(), 0)]));
    }
    users
        .into_iter()
        .map(|(service, user)| {
            let owner = Account::find(&services.users, user)?.uid;
            let folder = if is_shared { format!("{service}/{scope}") } else { scope.to_owned() };
            Ok((folder, owner))
        })
        .collect()
}

/// The services that name a scope, each with its user.
fn users_of<'a>(scope: &str, services: &'a ServicesFile) -> BTreeMap<&'a str, Option<&'a str>> {
    let names_it = |service: &&Service| service.secret_scopes.iter().any(|named| named == scope);
    let user = |service: &'a Service| {
        let user = service.user.as_deref().filter(|user| *user != "root");
        (service.name.as_str(), user)
    };
    services.services.iter().filter(names_it).map(user).collect()
}

/// A name becomes a file's or folder's.
pub(super) fn require_name(name: &str) -> Result<()> {
    let fits = (1..=255).contains(&name.len()) && name != "." && name != "..";
    if fits && !name.contains(['/', '\0']) {
        return Ok(());
    }
    Err(Failure::new(format_args!("naming a file {name:?}"), "config files, scopes and keys are plain names"))
}

/// Key and value of a secret (`scope/KEY`) that a service wants in its environment.
///
/// # Errors
/// There is no such secret.
pub fn read_for_service(service: &str, wanted: &str) -> Result<(String, String)> {
    let (_, key) = wanted
        .split_once('/')
        .ok_or_else(|| Failure::new(format_args!("reading secret `{wanted}`"), "write it as scope/KEY"))?;
    let shared = Path::new(places::SECRETS).join(service).join(wanted);
    let own = Path::new(places::SECRETS).join(wanted);
    let path = if shared.exists() { shared } else { own };
    let value =
        fs::read_to_string(&path).doing(format_args!("reading secret `{wanted}` for its environment"))?;
    Ok((key.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvm_model::service::ServiceUser;
    use mvm_protocol::SecretBytes;

    fn service(name: &str, user: Option<&str>, scopes: &[&str]) -> Service {
        let scopes: Vec<&str> = scopes.to_vec();
        serde_json::from_value(serde_json::json!({
            "name": name, "command": ["/bin/true"], "user": user, "secret_scopes": scopes,
        }))
        .unwrap()
    }

    fn services(services: Vec<Service>) -> ServicesFile {
        let users = ["ann", "bob"].into_iter().zip(2001..);
        let users = users.map(|(name, uid)| ServiceUser { name: name.to_owned(), uid }).collect();
        ServicesFile { services, users, prewarm: None }
    }

    fn secrets(scope: &str) -> SecretFiles {
        let keys = BTreeMap::from([("KEY".to_owned(), SecretBytes::new(b"v".to_vec()))]);
        BTreeMap::from([(scope.to_owned(), keys)])
    }

    fn paths(services_: Vec<Service>) -> Vec<(String, u32)> {
        let secrets = secrets("web");
        let placed = place(&secrets, &services(services_)).unwrap();
        placed.into_iter().map(|secret| (secret.path, secret.owner)).collect()
    }

    #[test]
    fn the_owner_is_the_one_user_whose_service_names_the_scope() {
        assert_eq!(paths(vec![]), [("web/KEY".to_owned(), 0)]);
        assert_eq!(paths(vec![service("a", Some("ann"), &["web"])]), [("web/KEY".to_owned(), 2001)]);
        assert_eq!(paths(vec![service("a", Some("ann"), &["other"])]), [("web/KEY".to_owned(), 0)]);
        let same = vec![service("a", Some("ann"), &["web"]), service("b", Some("ann"), &["web"])];
        assert_eq!(paths(same), [("web/KEY".to_owned(), 2001)]);
        let root = vec![service("a", None, &["web"]), service("b", Some("root"), &["web"])];
        assert_eq!(paths(root), [("web/KEY".to_owned(), 0)]);
    }

    #[test]
    fn different_users_get_a_copy_each() {
        let both = vec![service("a", Some("ann"), &["web"]), service("b", Some("bob"), &["web"])];
        assert_eq!(paths(both), [("a/web/KEY".to_owned(), 2001), ("b/web/KEY".to_owned(), 2002)]);
    }

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        for scope in ["", ".", "..", "a/b", "/", "a\0"] {
            assert!(place(&secrets(scope), &services(vec![])).is_err(), "{scope:?}");
        }
        assert!(require_name("TELEGRAM_BOT_TOKEN").is_ok());
    }
}
