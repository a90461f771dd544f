//! `[[routes]]`, read from the tree. The keys are those of `routes.json`.

use ipnet::Ipv4Net;

use super::Problem;
use super::check::PORT;
use super::reader::{Keys, Value};
use crate::routes::{MatchRule, RouteLimits, Target};
use crate::{InstanceSelector, Route};

/// Reads one of `[[routes]]`.
pub(super) fn read(section: Value<'_, '_>) -> Result<Route, Problem> {
    const ROUTE: Keys = Keys { known: &["name", "match_rule", "target", "limits"], later: &[] };
    let route = section.table(&ROUTE)?;
    Ok(Route {
        name: route.required("name", |value| value.filled_text())?,
        match_rule: route.required("match_rule", read_match_rule)?,
        target: route.required("target", read_target)?,
        limits: route.optional("limits", read_limits)?.unwrap_or_default(),
    })
}

fn read_limits(value: Value<'_, '_>) -> Result<RouteLimits, Problem> {
    const LIMITS: Keys = Keys { known: &["timeout_seconds", "idle_seconds", "max_body_mib"], later: &[] };
    let limits = value.table(&LIMITS)?;
    let seconds = |key| limits.optional(key, |value| value.integer(&RouteLimits::SECONDS));
    Ok(RouteLimits {
        timeout_seconds: seconds("timeout_seconds")?,
        idle_seconds: seconds("idle_seconds")?,
        max_body_mib: limits.optional("max_body_mib", |value| value.integer(&RouteLimits::BODY_MIB))?,
    })
}

fn read_match_rule(value: Value<'_, '_>) -> Result<MatchRule, Problem> {
    const RULE: Keys = Keys { known: &["port", "path_prefix", "source_cidr"], later: &[] };
    let rule = value.table(&RULE)?;
    Ok(MatchRule {
        port: rule.optional("port", |value| value.integer(&PORT))?,
        path_prefix: rule.optional("path_prefix", |value| value.filled_text())?,
        source_cidr: rule.optional("source_cidr", read_cidr)?,
    })
}

fn read_cidr(value: Value<'_, '_>) -> Result<Ipv4Net, Problem> {
    let net: Ipv4Net = value.parsed_as("a network: write one as 203.0.113.0/24")?;
    if net.addr() != net.network() {
        let message = format!("`{net}` has bits set beyond its prefix: did you mean {}?", net.trunc());
        return Err(value.problem(message));
    }
    Ok(net)
}

fn read_target(value: Value<'_, '_>) -> Result<Target, Problem> {
    const TARGET: Keys = Keys { known: &["pool_id", "instance_selector", "target_port"], later: &[] };
    let target = value.table(&TARGET)?;
    Ok(Target {
        pool_id: target.required("pool_id", |value| value.parsed())?,
        instance_selector: target.required("instance_selector", read_selector)?,
        target_port: target.required("target_port", |value| value.integer(&PORT))?,
    })
}

fn read_selector(value: Value<'_, '_>) -> Result<InstanceSelector, Problem> {
    const SELECTOR: Keys = Keys { known: &["by_ip", "by_instance", "by_user"], later: &[] };
    const FORMS: &str = "\"any\", { by_ip = \"…\" }, { by_instance = \"…\" } or { by_user = \"…\" }";
    match value.as_text() {
        Some("any") => return Ok(InstanceSelector::Any),
        Some("least_connections") => {
            return Err(value.problem("least_connections is not supported by this version: use \"any\""));
        }
        Some(other) => return Err(value.problem(format!("`{other}` selects nothing: use {FORMS}"))),
        None => {}
    }
    let selector = value.table(&SELECTOR)?;
    let by_ip = selector.optional("by_ip", |ip| ip.parsed_as("an IPv4 address"))?;
    let by_instance = selector.optional("by_instance", |id| id.parsed())?;
    let by_user = selector.optional("by_user", |user| user.parsed())?;
    match (by_ip, by_instance, by_user) {
        (Some(ip), None, None) => Ok(InstanceSelector::ByIp(ip)),
        (None, Some(id), None) => Ok(InstanceSelector::ByInstance(id)),
        (None, None, Some(user)) => Ok(InstanceSelector::ByUser(user)),
        _ => Err(value.problem(format!("must be exactly one of {FORMS}"))),
    }
}
