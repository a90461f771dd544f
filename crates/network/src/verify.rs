//! What is really there, against what should be.

use std::collections::BTreeSet;

use ipnet::Ipv4Net;
use mvm_model::network::BRIDGE_OFFSET;
use serde::{Deserialize, Serialize};

use crate::names::{UPLINK_LINK, is_waiting_tap};
use crate::namespace::Namespace;
use crate::netlink::{Link, Netlink};
use crate::nft::Ruleset;
use crate::rules::{self, Checks, HostPair};
use crate::sysctl::{self, Setting};
use crate::{NodeTag, PortSpec, Result, TenantNetwork, host, nft, tenant};

const REPAIR_NETWORK: &str = "make the tenant's network again: the agent does so when it starts";
const REPAIR_PORT: &str = "admit the machine again: the agent does so when it starts";
const RESTART_MACHINE: &str = "stop and start the machine";

/// What should be there of one tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// Its network.
    pub network: TenantNetwork,
    /// The ports of its machines that run.
    pub ports: Vec<PortSpec>,
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What it is about, with its namespace.
    pub object: String,
    /// How it should be.
    pub expected: String,
    /// How it is.
    pub found: String,
    /// What to do about it.
    pub remedy: String,
}

/// Findings about one namespace.
struct Report<'a> {
    place: &'a str,
    findings: Vec<Finding>,
}

impl Report<'_> {
    fn add(&mut self, object: &str, expected: impl Into<String>, found: impl Into<String>, remedy: &str) {
        let object = format!("{object} in {}", self.place);
        self.findings.push(Finding {
            object,
            expected: expected.into(),
            found: found.into(),
            remedy: remedy.into(),
        });
    }

    fn compare<T: PartialEq + std::fmt::Debug>(
        &mut self,
        object: &str,
        expected: &T,
        found: &T,
        remedy: &str,
    ) {
        if expected != found {
            self.add(object, format!("{expected:?}"), format!("{found:?}"), remedy);
        }
    }

    fn settings(&mut self, settings: &[Setting]) -> Result<()> {
        for (setting, found) in sysctl::differing(settings)? {
            let found = found.unwrap_or_else(|| "nothing".to_owned());
            self.add(&format!("setting {}", setting.key), setting.value, found, REPAIR_NETWORK);
        }
        Ok(())
    }

    fn rules(&mut self, found: &Ruleset, expected: &Ruleset) {
        for difference in found.differences(expected) {
            let object = format!("nft {}", difference.object);
            self.add(&object, difference.expected, difference.found, REPAIR_NETWORK);
        }
    }

    /// A link that routes: its address, state and settings.
    fn routing_link(&mut self, netlink: &mut Netlink, link: &Link, address: Ipv4Net) -> Result<()> {
        let object = format!("link {}", link.name);
        self.compare(&format!("{object} up"), &true, &link.up, REPAIR_NETWORK);
        let all = netlink.addresses()?;
        let found: Vec<Ipv4Net> =
            all.iter().filter(|(index, _)| *index == link.index).map(|(_, a)| *a).collect();
        self.compare(&format!("addresses of {object}"), &vec![address], &found, REPAIR_NETWORK);
        self.settings(&sysctl::of_routing_link(&link.name))
    }
}

/// Compares everything of this agent's with `expected`.
pub(crate) fn verify(tag: &NodeTag, host: &Namespace, expected: &[Expected]) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for tenant in expected {
        findings.extend(verify_tenant(tag, tenant)?);
    }
    findings.extend(leftover_namespaces(tag, expected)?);
    let wanted = Namespace::scratch(|| {
        if expected.is_empty() {
            return Ok(Ruleset::default());
        }
        let pairs = expected.iter().map(|tenant| rules::add_pair(tag, &HostPair::of(tag, &tenant.network)));
        nft::load(&(rules::host_table(tag) + &pairs.collect::<String>()))?;
        read_host_table(tag)
    })?;
    findings.extend(host.run(|| on_host(tag, expected, &wanted))?);
    Ok(findings)
}

/// Compares what is inside one tenant's namespace.
pub(crate) fn verify_tenant(tag: &NodeTag, tenant: &Expected) -> Result<Vec<Finding>> {
    let name = tag.namespace(tenant.network.net_id);
    match Namespace::open(&name)? {
        Some(inside) => inside_of(&inside, tenant),
        None => Ok(vec![Finding {
            object: format!("namespace {name}"),
            expected: "present".to_owned(),
            found: "nothing".to_owned(),
            remedy: REPAIR_NETWORK.to_owned(),
        }]),
    }
}

/// The record of switched links is what it is; all else has to be equal.
fn read_host_table(tag: &NodeTag) -> Result<Ruleset> {
    let table = tag.table();
    let read = Ruleset::read(|family, name| family == "inet" && name == table)?;
    Ok(read.without(&format!("set inet {table} switched")))
}

fn leftover_namespaces(tag: &NodeTag, expected: &[Expected]) -> Result<Vec<Finding>> {
    let known: BTreeSet<String> =
        expected.iter().map(|tenant| tag.namespace(tenant.network.net_id)).collect();
    let names = Namespace::names()?;
    let left = names.iter().filter(|name| tag.net_id_of_namespace(name).is_some() && !known.contains(*name));
    Ok(left.map(|name| leftover(format!("namespace {name}"))).collect())
}

fn leftover(object: String) -> Finding {
    let remedy = "no tenant has it: restart the agent, which removes what nobody owns".to_owned();
    Finding { object, expected: "nothing".to_owned(), found: "present".to_owned(), remedy }
}

fn on_host(tag: &NodeTag, expected: &[Expected], wanted: &Ruleset) -> Result<Vec<Finding>> {
    let mut report = Report { place: "the host's namespace", findings: Vec::new() };
    let mut netlink = Netlink::open()?;
    report.rules(&read_host_table(tag)?, wanted);
    let mut known = BTreeSet::new();
    for tenant in expected {
        let network = &tenant.network;
        known.insert(network.net_id);
        let name = tag.host_link(network.net_id);
        match netlink.link(&name)? {
            Some(link) => report.routing_link(&mut netlink, &link, host::host_address(network))?,
            None => report.add(&format!("link {name}"), "present", "nothing", REPAIR_NETWORK),
        }
        if let Some(taken) = host::uplink_conflict(tag, network)? {
            let found = format!("overlaps {} ({})", taken.net, taken.what);
            let remedy = "remove that from the host, or give the tenant another uplink";
            report.add(
                &format!("uplink {}", network.uplink),
                "free of other addresses and routes",
                found,
                remedy,
            );
        }
    }
    if !expected.is_empty() {
        for link in host::needed_links(expected)? {
            let forwarding = Setting { key: sysctl::forwarding_key(&link), value: "1", optional: false };
            report.settings(&[forwarding])?;
        }
    }
    let left = netlink.links()?.into_iter().map(|link| link.name);
    let left = left.filter(|name| tag.net_id_of_link(name).is_some_and(|net_id| !known.contains(&net_id)));
    report.findings.extend(left.map(|name| leftover(format!("link {name}"))));
    Ok(report.findings)
}

fn inside_of(inside: &Namespace, tenant: &Expected) -> Result<Vec<Finding>> {
    let network = &tenant.network;
    let wanted = Namespace::scratch(|| {
        let mut script = rules::tenant_table(network);
        let mut held = Vec::new();
        for port in &tenant.ports {
            held.push(tenant::open_tap(network, port.offset, "a scratch namespace")?);
            script += &rules::admit(network, port, Checks::New);
        }
        nft::load(&script)?;
        Ruleset::read(|_, _| true)
    })?;
    inside.run(|| {
        let mut report = Report { place: inside.name(), findings: Vec::new() };
        let mut netlink = Netlink::open()?;
        report.settings(&sysctl::of_tenant_namespace())?;
        links(&mut report, &mut netlink, network)?;
        let missing = ports(&mut report, &mut netlink, tenant)?;
        // Without its tap a machine's checks may be gone with it: that is one finding, not two.
        let relevant = |family: &str, table: &str| family != "netdev" || !missing.contains(table);
        let wanted = wanted.keep(relevant);
        // A set without a rule lets nobody in: its machines sleep, or their egress was changed.
        let is_spare = |object: &str| {
            let of_name = object.rsplit(' ').next().is_some_and(rules::is_set_of_name);
            of_name && object.starts_with("set ip ") && !wanted.has(object)
        };
        report.rules(&Ruleset::read(relevant)?.without_all(is_spare), &wanted);
        Ok(report.findings)
    })
}

fn links(report: &mut Report<'_>, netlink: &mut Netlink, network: &TenantNetwork) -> Result<()> {
    let bridge_name = network.net_id.bridge_name();
    match netlink.link(&bridge_name)? {
        Some(bridge) => {
            let mac = Some(network.net_id.mac(BRIDGE_OFFSET));
            report.compare(&format!("address of link {bridge_name}"), &mac, &bridge.mac, REPAIR_NETWORK);
            report.routing_link(netlink, &bridge, tenant::bridge_address(network))?;
        }
        None => report.add(&format!("link {bridge_name}"), "present", "nothing", REPAIR_NETWORK),
    }
    match netlink.link(UPLINK_LINK)? {
        Some(uplink) => {
            report.routing_link(netlink, &uplink, tenant::uplink_address(network))?;
            let gateway = network.uplink.host_ip();
            let routes = netlink.routes()?;
            let defaults: Vec<_> = routes
                .iter()
                .filter(|r| r.net.prefix_len() == 0)
                .map(|r| (r.gateway, r.links.clone()))
                .collect();
            let wanted = vec![(Some(gateway), vec![uplink.index])];
            report.compare("default route", &wanted, &defaults, REPAIR_NETWORK);
        }
        None => report.add(&format!("link {UPLINK_LINK}"), "present", "nothing", REPAIR_NETWORK),
    }
    Ok(())
}

/// Looks at every tap; returns the names of those that are missing.
fn ports(report: &mut Report<'_>, netlink: &mut Netlink, tenant: &Expected) -> Result<BTreeSet<String>> {
    let network = &tenant.network;
    let bridge_name = network.net_id.bridge_name();
    let links = netlink.links()?;
    let bridge = links.iter().find(|link| link.name == bridge_name).map(|link| link.index);
    let pinned = netlink.forwarding_entries()?;
    // JSON does not show a chain's device in every version of nft; the text always does, in quotes.
    let listing = nft::text(&["ruleset"])?;
    let mut missing = BTreeSet::new();
    let mut known = BTreeSet::from(["lo".to_owned(), bridge_name, UPLINK_LINK.to_owned()]);
    for port in &tenant.ports {
        let name = network.net_id.tap_name(port.offset);
        known.insert(name.clone());
        let Some(tap) = links.iter().find(|link| link.name == name) else {
            report.add(&format!("tap {name}"), "present", "nothing", RESTART_MACHINE);
            missing.insert(name);
            continue;
        };
        report.compare(&format!("bridge of tap {name}"), &bridge, &tap.bridge, REPAIR_PORT);
        report.compare(
            &format!("port flags of tap {name}"),
            &tenant::port_flags(port),
            &tap.port,
            REPAIR_PORT,
        );
        report.compare(&format!("tap {name} up"), &true, &tap.up, REPAIR_PORT);
        let macs: Vec<_> =
            pinned.iter().filter(|(index, _)| *index == tap.index).map(|(_, mac)| *mac).collect();
        if !macs.contains(&port.mac) {
            report.add(
                &format!("address behind tap {name}"),
                port.mac.to_string(),
                format!("{macs:?}"),
                REPAIR_PORT,
            );
        }
        if !listing.contains(&format!("\"{name}\"")) {
            report.add(&format!("source checks at tap {name}"), "hooked in", "nothing", REPAIR_PORT);
        }
    }
    // Down and of no bridge, a tap that waits for its machine does nothing.
    let waits = |link: &Link| is_waiting_tap(&link.name) && !link.up && link.bridge.is_none();
    for link in links.iter().filter(|link| !known.contains(&link.name) && !waits(link)) {
        report.findings.push(leftover(format!("link {} in {}", link.name, report.place)));
    }
    Ok(missing)
}
