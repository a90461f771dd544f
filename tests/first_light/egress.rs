//! What machines reach outside of their tenant: what their egress names, and nothing else, the host least of all.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use mvm_harness::Lab;

use crate::outside::{HOST, Outside, SERVER, serve};
use crate::probe::{Machine, Outcome};

/// Addresses that look public, one of which is named.
const NAMED: &str = "198.51.100.7";
const NEXT_TO_IT: &str = "198.51.100.8";
const PRIVATE: [&str; 8] = [
    "10.1.2.3",
    "172.16.5.5",
    "192.168.77.7",
    "169.254.169.254",
    "169.254.1.1",
    "100.64.0.9",
    "168.63.129.16",
    "198.18.0.1",
];
const PORT: u16 = 4443;
const OTHER_PORT: u16 = 4444;

/// Three workers that differ in what they may reach.
fn manifest(closed: &str) -> String {
    let pool = |id: &str, egress: &str| {
        format!(
            "[[pools]]\nid = \"{id}\"\nimage = \"python\"\nvcpus = 1\nmem_mib = 192\ndesired_running = 1\n\
             egress = {egress}\n"
        )
    };
    let named = format!("[\"{NAMED}:{PORT}\", \"192.168.77.0/24\"]");
    let pools = pool("closed", closed) + &pool("named", &named) + &pool("open", "\"any\"");
    format!("[tenant]\nid = \"alice\"\n{pools}")
}

#[track_caller]
fn assert_refused(who: &str, outcomes: &BTreeMap<String, Outcome>) {
    assert!(!outcomes.is_empty());
    for (target, outcome) in outcomes {
        let told = ["tcp", "udp", "icmp"].map(|protocol| outcome[protocol].as_str());
        assert_eq!(told, ["ECONNREFUSED", "EHOSTUNREACH", "EHOSTUNREACH"], "{who} to {target}");
    }
}

#[track_caller]
fn assert_open(who: &str, outcomes: &BTreeMap<String, Outcome>) {
    assert!(!outcomes.is_empty());
    for (target, outcome) in outcomes {
        let told = ["tcp", "udp", "icmp"].map(|protocol| outcome[protocol].as_str());
        assert_eq!(told, ["ok", "ok", "ok"], "{who} to {target}");
    }
}

fn worker(lab: &Lab, pool: &str) -> Machine {
    Machine::of_pool(lab, &format!("alice/{pool}")).remove(0)
}

#[test]
fn workers_reach_what_their_egress_names_and_neither_more_nor_the_host() {
    let mut lab = Lab::new();
    let public = [SERVER, NAMED, NEXT_TO_IT];
    let outside = Outside::new(&lab, &[&[NAMED, NEXT_TO_IT], PRIVATE.as_slice()].concat());
    outside.serve(PORT);
    outside.serve(OTHER_PORT);
    let at_host = Arc::new(Mutex::new(Vec::new()));
    serve(lab.host(), "0.0.0.0", PORT, &at_host);
    lab.deploy(&manifest("\"none\""));
    assert!(lab.mvm(&["net", "verify"]).contains("as they should be"));
    let [closed, named, open] = ["closed", "named", "open"].map(|pool| worker(&lab, pool));

    // The servers are there, at every address: the host itself reaches them.
    for address in public.iter().chain(&PRIVATE) {
        let connect = || std::net::TcpStream::connect((*address, PORT)).map(|_| ());
        lab.host().inside(connect).unwrap_or_else(|error| panic!("{address}: {error}"));
    }
    let mut heard = 0;
    lab.wait_for("the host was heard", || {
        heard += outside.heard().len();
        heard == public.len() + PRIVATE.len()
    });

    let tries = |addresses: &[&'static str], port: u16| -> Vec<(&str, &str, u16)> {
        addresses.iter().map(|address| (*address, *address, port)).collect()
    };
    let everything: Vec<_> = tries(&public, PORT).into_iter().chain(tries(&PRIVATE, PORT)).collect();
    assert_refused("closed", &closed.reach(&lab, "closed", &everything));
    assert_refused("open", &open.reach(&lab, "open", &tries(&PRIVATE, PORT)));
    let not_named: Vec<_> =
        everything.iter().filter(|(ip, ..)| *ip != NAMED && *ip != "192.168.77.7").copied().collect();
    assert_refused("named", &named.reach(&lab, "named", &not_named));
    assert_refused("named, at another port", &named.reach(&lab, "named", &tries(&[NAMED], OTHER_PORT)));
    assert_eq!(outside.heard(), Vec::<String>::new(), "what was refused did not arrive");

    assert_open("open", &open.reach(&lab, "open", &tries(&public, PORT)));
    assert_open(
        "named, the whole network",
        &named.reach(&lab, "named", &tries(&["192.168.77.7"], OTHER_PORT)),
    );
    let by_port = named.reach(&lab, "by-port", &tries(&[NAMED], PORT));
    let told = ["tcp", "udp", "icmp"].map(|protocol| by_port[NAMED][protocol].as_str());
    assert_eq!(told, ["ok", "ok", "EHOSTUNREACH"], "a port has no echo");
    assert!(
        outside.heard().iter().any(|text| text.contains("by-port-udp")),
        "it was this server that answered"
    );

    the_host_is_out_of_reach(&lab, &[closed.clone(), named, open]);
    assert_eq!(*at_host.lock().unwrap(), Vec::<String>::new());

    // What is changed counts at once in a machine that runs, and goes on counting with another agent.
    let server = tries(&[SERVER], PORT);
    let pid = lab.info(&closed.address)["pid"].clone();
    let opened = lab.deploy(&manifest(&format!("[\"{SERVER}\"]")));
    assert!(opened.contains("alice/closed: egress changed"), "{opened}");
    assert_open("closed, opened", &closed.reach(&lab, "opened", &server));
    lab.stop_agent();
    lab.start_agent();
    assert_open("closed, opened, with another agent", &closed.reach(&lab, "opened", &server));
    lab.deploy(&manifest("\"none\""));
    assert_refused("closed again", &closed.reach(&lab, "closed", &everything));
    assert_eq!(lab.info(&closed.address)["pid"], pid, "it was not restarted");
    assert!(lab.mvm(&["net", "verify"]).contains("as they should be"));
}

/// The host's addresses: of its loopback, towards the outside, of the bridge, of the uplink.
fn the_host_is_out_of_reach(lab: &Lab, machines: &[Machine]) {
    lab.host().run("ip", &["addr", "add", "198.51.100.99/32", "dev", "lo"]);
    let links = lab.host().run("ip", &["-4", "-brief", "addr"]);
    let uplink = links.lines().find(|line| line.starts_with("mv-")).unwrap();
    let uplink = uplink.split_whitespace().nth(2).unwrap().split('/').next().unwrap();
    let uplink: std::net::Ipv4Addr = uplink.parse().unwrap();
    // The pair's other address is the tenant's own end.
    let pair = std::net::Ipv4Addr::from_bits(uplink.to_bits() ^ 1);
    for machine in machines {
        let (router, _) = machine.router();
        let (uplink, pair) = (uplink.to_string(), pair.to_string());
        let addresses = [HOST, "198.51.100.99", &router, &uplink, &pair];
        for port in [PORT, 22] {
            let tries: Vec<_> = addresses.iter().map(|address| (*address, *address, port)).collect();
            // The host refuses itself what is sent to its own addresses, and like every host it does not answer a
            // burst of packets with as many errors: only TCP's resets are not counted.
            for (target, outcome) in machine.grope(lab, "host", &tries) {
                assert_eq!(outcome["tcp"], "ECONNREFUSED", "{} to {target}", machine.address);
                assert!(
                    outcome.values().all(|told| told != "ok"),
                    "{} to {target}: {outcome:?}",
                    machine.address
                );
            }
        }
    }
}
