//! How a gateway finds the machine a message is for: the contents of `routes.json`.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::{InstanceId, PoolId, UserName};

/// Every route of a tenant, given to each of its gateways.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoutingTable {
    /// The routes, in the order they were written.
    pub routes: Vec<Route>,
}

/// Where messages that match go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Unique in its table; named in logs.
    pub name: String,
    /// Which messages.
    pub match_rule: MatchRule,
    /// Where to.
    pub target: Target,
    /// How much and how long.
    #[serde(default, skip_serializing_if = "RouteLimits::are_default")]
    pub limits: RouteLimits,
}

/// What one request on a route may take. What is absent is as the gateway has it by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RouteLimits {
    /// From its head to the last byte of its answer, a wake included; not for what follows an upgrade.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
    /// Without a byte in either direction. A request is ended then; an upgraded connection stays, but no longer keeps its
    /// machine awake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_seconds: Option<u32>,
    /// The largest body of a request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_body_mib: Option<u32>,
}

impl RouteLimits {
    /// What a time may be: up to a day.
    pub const SECONDS: RangeInclusive<u32> = 1..=86_400;
    /// What a body may be: up to a TiB.
    pub const BODY_MIB: RangeInclusive<u32> = 1..=1024 * 1024;

    fn are_default(&self) -> bool {
        *self == RouteLimits::default()
    }

    /// The key of the first that is out of its range, and that range.
    fn out_of_range(&self) -> Option<(&'static str, RangeInclusive<u32>)> {
        [
            ("timeout_seconds", self.timeout_seconds, Self::SECONDS),
            ("idle_seconds", self.idle_seconds, Self::SECONDS),
            ("max_body_mib", self.max_body_mib, Self::BODY_MIB),
        ]
        .into_iter()
        .find(|(_, value, range)| value.is_some_and(|value| !range.contains(&value)))
        .map(|(key, _, range)| (key, range))
    }
}

/// What a message must be. At least one of the three is given.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct MatchRule {
    /// The gateway's port it came in on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The start of the request's path, in whole segments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_prefix: Option<String>,
    /// The network its sender is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>"))]
    pub source_cidr: Option<Ipv4Net>,
}

/// Where a message goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// The pool.
    pub pool_id: PoolId,
    /// Which of its instances.
    pub instance_selector: InstanceSelector,
    /// The port there.
    pub target_port: u16,
}

/// Which instance of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum InstanceSelector {
    /// Prefers running, then warm, then sleeping; ties go to the lowest id.
    Any,
    /// The one with this address.
    ByIp(Ipv4Addr),
    /// The one with this id.
    ByInstance(InstanceId),
    /// The one of this user.
    ByUser(UserName),
    /// The one with the fewest connections.
    LeastConnections,
}

/// A table that cannot decide.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRoutes {
    /// No condition at all.
    #[error("route `{0}` matches everything: give match_rule a port, a path_prefix or a source_cidr")]
    Empty(String),
    /// The same name twice.
    #[error("route `{0}` is named twice")]
    DuplicateName(String),
    /// A prefix that no path starts with.
    #[error("route `{0}`: path_prefix must start with `/`")]
    Prefix(String),
    /// Two routes that nothing tells apart.
    #[error("routes `{0}` and `{1}` match the same messages: tell them apart by path_prefix or source_cidr")]
    Ambiguous(String, String),
    /// A port that is not one.
    #[error("route `{0}`: port 0 does not exist")]
    Port(String),
    /// A limit that is none.
    #[error("route `{route}`: limits.{key} must be from {} to {}", .range.start(), .range.end())]
    Limit {
        /// The route.
        route: String,
        /// Which limit.
        key: &'static str,
        /// What it may be.
        range: RangeInclusive<u32>,
    },
}

impl InvalidRoutes {
    /// The route at fault (the later one of two).
    pub fn route(&self) -> &str {
        match self {
            InvalidRoutes::Empty(name)
            | InvalidRoutes::DuplicateName(name)
            | InvalidRoutes::Prefix(name)
            | InvalidRoutes::Port(name)
            | InvalidRoutes::Ambiguous(_, name)
            | InvalidRoutes::Limit { route: name, .. } => name,
        }
    }
}

impl MatchRule {
    fn accepts(&self, port: u16, path: &str, source: Ipv4Addr) -> bool {
        self.port.is_none_or(|p| p == port)
            && self.path_prefix.as_deref().is_none_or(|prefix| has_prefix(path, prefix))
            && self.source_cidr.is_none_or(|cidr| cidr.contains(&source))
    }

    /// The more a rule says, the earlier it is asked.
    fn precision(&self) -> (usize, u8, bool) {
        (
            self.path_prefix.as_ref().map_or(0, |p| p.trim_end_matches('/').len() + 1),
            self.source_cidr.map_or(0, |c| c.prefix_len() + 1),
            self.port.is_some(),
        )
    }

    fn normal(&self) -> (Option<u16>, Option<&str>, Option<Ipv4Net>) {
        let prefix = self.path_prefix.as_deref().map(|p| p.trim_end_matches('/'));
        (self.port, prefix, self.source_cidr.map(|c| c.trunc()))
    }
}

/// Whether `prefix` covers whole segments of `path`: `/a` covers `/a` and `/a/b`, not `/ab`.
fn has_prefix(path: &str, prefix: &str) -> bool {
    let prefix = prefix.trim_end_matches('/');
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl RoutingTable {
    /// Checks that the table can decide for every message.
    ///
    /// # Errors
    /// The first route at fault.
    pub fn validate(&self) -> Result<(), InvalidRoutes> {
        for (index, route) in self.routes.iter().enumerate() {
            let rule = &route.match_rule;
            if *rule == MatchRule::default() {
                return Err(InvalidRoutes::Empty(route.name.clone()));
            }
            if rule.port == Some(0) || route.target.target_port == 0 {
                return Err(InvalidRoutes::Port(route.name.clone()));
            }
            if rule.path_prefix.as_ref().is_some_and(|p| !p.starts_with('/')) {
                return Err(InvalidRoutes::Prefix(route.name.clone()));
            }
            if let Some((key, range)) = route.limits.out_of_range() {
                return Err(InvalidRoutes::Limit { route: route.name.clone(), key, range });
            }
            for earlier in &self.routes[..index] {
                if earlier.name == route.name {
                    return Err(InvalidRoutes::DuplicateName(route.name.clone()));
                }
                if earlier.match_rule.normal() == rule.normal() {
                    return Err(InvalidRoutes::Ambiguous(earlier.name.clone(), route.name.clone()));
                }
            }
        }
        Ok(())
    }

    /// The route of a message: the one that says most about it (longest prefix, then narrowest source, then port).
    pub fn find(&self, port: u16, path: &str, source: Ipv4Addr) -> Option<&Route> {
        self.routes
            .iter()
            .filter(|route| route.match_rule.accepts(port, path, source))
            .max_by_key(|route| route.match_rule.precision())
    }

    /// The ports a gateway listens on: every port that a route names.
    pub fn ports(&self) -> std::collections::BTreeSet<u16> {
        self.routes.iter().filter_map(|route| route.match_rule.port).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn route(name: &str, port: Option<u16>, prefix: Option<&str>, source: Option<&str>) -> Route {
        Route {
            name: name.to_owned(),
            match_rule: MatchRule {
                port,
                path_prefix: prefix.map(str::to_owned),
                source_cidr: source.map(|s| s.parse().unwrap()),
            },
            target: Target {
                pool_id: "workers".parse().unwrap(),
                instance_selector: InstanceSelector::Any,
                target_port: 8080,
            },
            limits: RouteLimits::default(),
        }
    }

    const HERE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

    #[test]
    fn the_longest_prefix_of_whole_segments_wins() {
        let table = RoutingTable {
            routes: vec![
                route("all", Some(8080), Some("/"), None),
                route("a", Some(8080), Some("/a"), None),
                route("ab", Some(8080), Some("/a/b/"), None),
            ],
        };
        table.validate().unwrap();
        let find = |path| table.find(8080, path, HERE).map(|r| r.name.as_str());
        assert_eq!(find("/"), Some("all"));
        assert_eq!(find("/ab"), Some("all"));
        assert_eq!(find("/a"), Some("a"));
        assert_eq!(find("/a/b"), Some("ab"));
        assert_eq!(find("/a/b/c"), Some("ab"));
        assert!(table.find(8081, "/", HERE).is_none());
    }

    #[test]
    fn a_narrower_source_wins_at_equal_prefix() {
        let table = RoutingTable {
            routes: vec![
                route("anyone", Some(1), None, None),
                route("net", Some(1), None, Some("203.0.113.0/24")),
            ],
        };
        table.validate().unwrap();
        assert_eq!(table.find(1, "/", HERE).unwrap().name, "net");
        assert_eq!(table.find(1, "/", Ipv4Addr::LOCALHOST).unwrap().name, "anyone");
    }

    #[test]
    fn tables_that_cannot_decide_are_refused() {
        let table = |routes| RoutingTable { routes }.validate().unwrap_err();
        assert!(matches!(table(vec![route("x", None, None, None)]), InvalidRoutes::Empty(_)));
        assert!(matches!(table(vec![route("x", None, Some("a"), None)]), InvalidRoutes::Prefix(_)));
        assert!(matches!(table(vec![route("x", Some(0), None, None)]), InvalidRoutes::Port(_)));
        let twice = vec![route("x", Some(1), None, None), route("x", Some(2), None, None)];
        assert!(matches!(table(twice), InvalidRoutes::DuplicateName(_)));
        let same = vec![route("x", Some(1), Some("/a"), None), route("y", Some(1), Some("/a/"), None)];
        assert!(matches!(table(same), InvalidRoutes::Ambiguous(..)));
    }

    #[test]
    fn limits_are_optional_and_in_their_ranges() {
        let mut limited = route("x", Some(1), None, None);
        assert!(!serde_json::to_string(&limited).unwrap().contains("limits"));
        limited.limits.idle_seconds = Some(5);
        let text = serde_json::to_string(&limited).unwrap();
        assert!(text.ends_with(r#""limits":{"idle_seconds":5}}"#), "{text}");
        assert_eq!(serde_json::from_str::<Route>(&text).unwrap(), limited);
        assert!(serde_json::from_str::<Route>(&text.replace("idle_", "idel_")).is_err());
        RoutingTable { routes: vec![limited.clone()] }.validate().unwrap();
        limited.limits.max_body_mib = Some(0);
        let refused = RoutingTable { routes: vec![limited] }.validate().unwrap_err().to_string();
        assert_eq!(refused, "route `x`: limits.max_body_mib must be from 1 to 1048576");
    }

    #[test]
    fn selectors_are_written_as_the_contract_says() {
        let text = |s: &InstanceSelector| serde_json::to_string(s).unwrap();
        assert_eq!(text(&InstanceSelector::Any), r#""any""#);
        assert_eq!(text(&InstanceSelector::LeastConnections), r#""least_connections""#);
        assert_eq!(text(&InstanceSelector::ByIp(HERE)), r#"{"by_ip":"203.0.113.9"}"#);
        assert_eq!(
            text(&InstanceSelector::ByInstance(InstanceId::new(42))),
            r#"{"by_instance":"i-0000002a"}"#
        );
    }

    proptest! {
        #[test]
        fn a_route_that_is_found_accepts_the_message(port in 1u16..4, path in "(/[ab]{1,2}){0,3}", source: u32) {
            let table = RoutingTable { routes: vec![
                route("p1", Some(1), None, None),
                route("a", None, Some("/a"), None),
                route("net", Some(2), Some("/b"), Some("0.0.0.0/1")),
            ]};
            let source = Ipv4Addr::from_bits(source);
            match table.find(port, &path, source) {
                Some(found) => prop_assert!(found.match_rule.accepts(port, &path, source)),
                None => prop_assert!(!table.routes.iter().any(|r| r.match_rule.accepts(port, &path, source))),
            }
        }
    }
}
