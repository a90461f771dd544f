use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use mvm_model::{Egress, NetId};
use mvm_network::{Error, choose_uplink};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::lab::{Answer, HOST, Lab, Machine, PUBLIC, expected, port, run, within};

#[test]
fn making_it_again_changes_nothing() {
    let lab = Lab::new();
    lab.serve_who();
    let network = lab.tenant(40);
    let worker = Machine::start(&lab, &network, port(&network, 3, true, Egress::Any));
    assert_eq!(worker.asks_who(PUBLIC), Answer::From(HOST));
    let picture = || {
        let inside = lab.inside(&network);
        [&inside, &lab.host].map(|namespace| {
            (
                run(&["ip", "-4", "-n", namespace, "-o", "addr"]),
                run(&["ip", "-n", namespace, "route"]),
                lab.nft(namespace, "list ruleset"),
            )
        })
    };
    let before = picture();
    lab.networks.ensure(&network).unwrap();
    lab.networks.admit(&network, &worker.port).unwrap();
    assert_eq!(picture(), before);
    assert_eq!(worker.asks_who(PUBLIC), Answer::From(HOST));
}

#[test]
fn a_new_agent_adopts_running_machines() {
    let lab = Lab::new();
    let network = lab.tenant(41);
    let (gateway, worker) = (Machine::gateway(&lab, &network, 3), Machine::worker(&lab, &network, 4));
    let agent = lab.restarted();
    let known = agent.list().unwrap();
    assert_eq!(
        known.iter().map(|l| (l.net_id, l.namespace, l.host_side)).collect::<Vec<_>>(),
        [(network.net_id, true, true)]
    );
    agent.ensure(&network).unwrap();
    for machine in [&gateway, &worker] {
        assert!(matches!(agent.attach(&network, &machine.port), Err(Error::TapBusy { .. })));
        agent.admit(&network, &machine.port).unwrap();
    }
    assert_eq!(agent.verify(&[expected(&network, &[&gateway, &worker])]).unwrap(), []);
    gateway.say(&worker, b"still here");
    assert_eq!(worker.hears(b"still here"), []);
}

#[test]
fn a_tap_goes_with_its_machine_and_comes_back() {
    let lab = Lab::new();
    let network = lab.tenant(42);
    let gateway = Machine::gateway(&lab, &network, 3);
    let worker = Machine::worker(&lab, &network, 4);
    let (inside, spec) = (lab.inside(&network), worker.port.clone());
    let taps = || run(&["ip", "-n", &inside, "-br", "link"]);
    assert!(taps().contains("tn42i4"));
    drop(worker);
    assert!(!taps().contains("tn42i4"));
    assert!(matches!(lab.networks.admit(&network, &spec), Err(Error::NoTap { .. })));
    // Without a detach in between: what is left is replaced.
    let worker = Machine::start(&lab, &network, spec.clone());
    gateway.say(&worker, b"again");
    assert_eq!(worker.hears(b"again"), []);
    drop(worker);
    lab.networks.detach(&network, &spec).unwrap();
    lab.networks.detach(&network, &spec).unwrap();
    let rules = lab.nft(&inside, "list ruleset");
    assert!(
        !rules.contains("tn42i4") && !rules.contains("machine_4") && rules.contains("machine_3"),
        "{rules}"
    );
    // A machine that still runs is cut off.
    let worker = Machine::start(&lab, &network, spec.clone());
    lab.networks.detach(&network, &spec).unwrap();
    assert!(!taps().contains("tn42i4"));
    drop(worker);
    assert_eq!(lab.networks.verify(&[expected(&network, &[&gateway])]).unwrap(), []);
}

#[test]
fn a_tap_made_ahead_becomes_a_machines() {
    let lab = Lab::new();
    let network = lab.tenant(46);
    let gateway = Machine::gateway(&lab, &network, 3);
    let held = lab.networks.open_waiting_tap(&network, 7).unwrap();
    let spec = port(&network, 4, true, Egress::None);
    assert!(matches!(lab.networks.admit(&network, &spec), Err(Error::NoTap { .. })));
    assert_eq!(lab.networks.verify(&[expected(&network, &[&gateway])]).unwrap(), []);
    lab.networks.assign_tap(&network, 7, 4).unwrap();
    lab.networks.admit(&network, &spec).unwrap();
    assert!(matches!(lab.networks.assign_tap(&network, 7, 5), Err(Error::NoTap { .. })));
    let inside = lab.inside(&network);
    let taps = || run(&["ip", "-n", &inside, "-br", "link"]);
    assert!(taps().contains("tn46i4") && !taps().contains("wait7"), "{}", taps());
    assert!(matches!(lab.networks.attach(&network, &spec), Err(Error::TapBusy { .. })));
    drop(held);
    assert!(!taps().contains("tn46i4"));
    drop(gateway);
}

#[test]
fn removing_leaves_nothing() {
    let lab = Lab::new();
    let state = || {
        let links: String = run(&["ip", "-n", &lab.host, "-br", "link"])
            .lines()
            .map(|l| l.split('@').next().unwrap().to_owned() + "\n")
            .collect();
        let routes = run(&["ip", "-n", &lab.host, "route", "show", "table", "all"]);
        (links, routes, lab.nft(&lab.host, "list ruleset"), lab.setting("ipv4/conf/eth0/forwarding"))
    };
    let before = state();
    let (one, two) = (lab.tenant(43), lab.tenant(44));
    let machine = Machine::gateway(&lab, &one, 3);
    lab.networks.remove(one.net_id).unwrap();
    assert_eq!(lab.setting("ipv4/conf/eth0/forwarding"), "1");
    assert_eq!(lab.networks.verify(&[expected(&two, &[])]).unwrap(), []);
    assert!(!Path::new("/run/netns").join(lab.inside(&one)).exists());
    lab.networks.remove(two.net_id).unwrap();
    assert_eq!(state(), before);
    assert_eq!(lab.networks.list().unwrap(), []);
    for network in [&one, &two] {
        assert!(!Path::new("/run/netns").join(lab.inside(network)).exists());
        lab.networks.remove(network.net_id).unwrap();
    }
    drop(machine);
}

#[test]
fn remove_all_finds_what_an_ended_agent_left() {
    let lab = Lab::new();
    let (whole, half, lone) = (lab.tenant(45), lab.tenant(46), lab.tenant(47));
    run(&["ip", "netns", "delete", &lab.inside(&half)]);
    run(&["ip", "-n", &lab.host, "link", "delete", &lab.networks.tag().host_link(lone.net_id)]);
    let agent = lab.restarted();
    let known: Vec<NetId> = agent.list().unwrap().iter().map(|left| left.net_id).collect();
    assert_eq!(known, [whole.net_id, half.net_id, lone.net_id]);
    agent.remove_all().unwrap();
    assert_eq!(agent.list().unwrap(), []);
    assert_eq!(lab.nft(&lab.host, "list ruleset"), "");
    agent.remove_all().unwrap();
}

#[test]
fn a_namespace_lost_is_made_again() {
    let lab = Lab::new();
    lab.serve_who();
    let network = lab.tenant(48);
    run(&["ip", "netns", "delete", &lab.inside(&network)]);
    // As after a restart of the host: the file is there, the namespace is not.
    std::fs::write(Path::new("/run/netns").join(lab.inside(&network)), "").unwrap();
    lab.networks.ensure(&network).unwrap();
    let worker = Machine::start(&lab, &network, port(&network, 3, true, Egress::Any));
    assert_eq!(worker.asks_who(PUBLIC), Answer::From(HOST));
    assert_eq!(lab.networks.verify(&[expected(&network, &[&worker])]).unwrap(), []);
}

#[test]
fn an_uplink_is_chosen_free_and_checked_again() {
    let lab = Lab::new();
    run(&["ip", "-n", &lab.host, "addr", "add", "169.254.64.9/29", "dev", "lo"]);
    run(&["ip", "-n", &lab.host, "route", "add", "169.254.64.0/30", "via", "203.0.113.1"]);
    let network = lab.tenant(49);
    assert_eq!(network.uplink.host_ip(), Ipv4Addr::new(169, 254, 64, 4));
    let second = lab.tenant(50);
    assert_eq!(second.uplink.host_ip(), Ipv4Addr::new(169, 254, 64, 6), "the first tenant's is taken");
    lab.networks.remove(network.net_id).unwrap();
    run(&["ip", "-n", &lab.host, "route", "add", "169.254.64.4/32", "via", "203.0.113.1"]);
    assert!(matches!(lab.networks.ensure(&network), Err(Error::UplinkTaken { .. })));
    assert!(!Path::new("/run/netns").join(lab.inside(&network)).exists(), "made before it was refused");
    assert!(choose_uplink(&lab.networks.taken_networks().unwrap()).unwrap() > second.uplink);
}

#[test]
fn two_agents_on_a_host_share_nothing() {
    let lab = Lab::new();
    lab.serve_who();
    let network = lab.tenant(51);
    let other = lab.another_agent();
    let mut same_number = network;
    same_number.uplink = choose_uplink(&other.taken_networks().unwrap()).unwrap();
    other.ensure(&same_number).unwrap();
    let spec = port(&same_number, 3, true, Egress::Any);
    let worker = Machine::start(&lab, &network, spec.clone());
    let others_tap = other.attach(&same_number, &spec).unwrap();
    assert_eq!(worker.asks_who(same_number.uplink.tenant_ip()), Answer::Refused);
    // The one that goes first leaves the other's forwarding on, and the last one takes it away.
    other.remove_all().unwrap();
    assert_eq!(worker.asks_who(PUBLIC), Answer::From(HOST));
    assert_eq!(lab.networks.verify(&[expected(&network, &[&worker])]).unwrap(), []);
    other.ensure(&same_number).unwrap();
    lab.networks.remove_all().unwrap();
    assert_eq!(lab.setting("ipv4/conf/eth0/forwarding"), "1");
    assert_eq!(other.verify(&[mvm_network::Expected { network: same_number, ports: vec![] }]).unwrap(), []);
    other.remove_all().unwrap();
    assert_eq!(lab.setting("ipv4/conf/eth0/forwarding"), "0");
    drop(others_tap);
}

/// The machine here has a whole network stack: a namespace behind a veth, in the place of a VMM behind a tap.
#[tokio::test]
async fn published_ports_connect_from_inside() {
    let lab = Lab::new();
    let network = lab.tenant(52);
    let spec = port(&network, 3, false, Egress::None);
    let (inside, guest) = (lab.inside(&network), lab.namespace("guest"));
    run(&[
        "ip",
        "-n",
        &inside,
        "link",
        "add",
        "tn52i3",
        "type",
        "veth",
        "peer",
        "name",
        "eth0",
        "address",
        &spec.mac.to_string(),
        "netns",
        &guest,
    ]);
    run(&["ip", "-n", &guest, "addr", "add", &format!("{}/24", spec.ip), "dev", "eth0"]);
    run(&["ip", "-n", &guest, "link", "set", "eth0", "up"]);
    lab.networks.admit(&network, &spec).unwrap();
    let listener = within(&guest, || std::net::TcpListener::bind((spec.ip, 8080)).unwrap());
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();

    let mut host_end = lab.networks.connect(&network, spec.ip, 8080).await.unwrap();
    let (mut guest_end, peer) = listener.accept().await.unwrap();
    assert_eq!(peer.ip(), IpAddr::V4(network.subnet.bridge_ip()));
    host_end.write_all(b"ping").await.unwrap();
    let mut buffer = [0; 4];
    guest_end.read_exact(&mut buffer).await.unwrap();
    guest_end.write_all(&buffer).await.unwrap();
    host_end.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"ping");

    let refused = lab.networks.connect(&network, spec.ip, 8081).await.unwrap_err();
    assert!(
        matches!(refused, Error::Kernel { source, .. } if source.kind() == std::io::ErrorKind::ConnectionRefused)
    );
    let none = lab.networks.connect(&lab.plan(53), spec.ip, 8080).await.unwrap_err();
    assert!(matches!(none, Error::NoNetwork { .. }));
}
