//! How the outside services are with which a machine's workload keeps a session. Looking keeps no machine awake and waits for no act.

use std::collections::BTreeMap;
use std::time::Duration;

use mvm_model::InstanceState;
use mvm_protocol::control::{GuestReply, GuestRequest, IntegrationStatus};

use crate::agent::Agent;
use crate::machine::View;

/// How long a guest may take to say: whoever looks at a machine wants to see also one that hangs.
const PATIENCE: Duration = Duration::from_secs(2);
/// More than any workload has.
const MOST: usize = 64;
/// More than any name has, in bytes.
const LONGEST_NAME: usize = 64;

/// By name, as its guest says; nothing where it does not run or does not say.
pub(super) async fn of(agent: &Agent, view: &View) -> Option<BTreeMap<String, IntegrationStatus>> {
    if view.row.state != InstanceState::Running {
        return None;
    }
    let revision = view.row.launched.as_ref()?.revision.clone();
    let services = agent.hands.services(revision).await.ok()?.services;
    // Only those know of any who speak for a workload.
    if services.iter().all(|service| service.adapter.is_none()) {
        return Some(BTreeMap::new());
    }
    let request = GuestRequest::IntegrationStatus;
    match view.link.as_ref()?.try_begin(&request, "IntegrationStatus", PATIENCE).await {
        Ok((GuestReply::IntegrationStatusReport { integrations }, _)) => checked(integrations),
        Ok(_) => None,
        Err(error) => {
            tracing::debug!(instance = %view.row.address(), %error, "its integrations are not known");
            None
        }
    }
}

/// What a guest says is shown on people's terminals.
fn checked(said: BTreeMap<String, IntegrationStatus>) -> Option<BTreeMap<String, IntegrationStatus>> {
    let is_name = |name: &String| {
        (1..=LONGEST_NAME).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    (said.len() <= MOST && said.keys().all(is_name)).then_some(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_cannot_write_what_it_likes_on_a_terminal() {
        let said = |name: &str| checked(BTreeMap::from([(name.to_owned(), IntegrationStatus::Active)]));
        for name in ["telegram", "whatsapp_business", "x.y-1", &"x".repeat(LONGEST_NAME)] {
            assert!(said(name).is_some(), "{name}");
        }
        for name in ["", "\u{1b}[2J", "a b", "é", &"x".repeat(LONGEST_NAME + 1)] {
            assert!(said(name).is_none(), "{name:?}");
        }
        let many = (0..=MOST).map(|n| (n.to_string(), IntegrationStatus::Error)).collect();
        assert!(checked(many).is_none());
    }
}
