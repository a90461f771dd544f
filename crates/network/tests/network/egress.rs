use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use mvm_model::Egress;

use crate::frames::{Seen, ethernet, udp};
use crate::lab::{
    Answer, HOST, Lab, METADATA, Machine, PRIVATE, PUBLIC, WAIT, WHO, expected, only, port, run, within,
};

#[test]
fn nothing_is_reached_by_default_and_that_is_said() {
    let lab = Lab::new();
    lab.serve_who();
    let network = lab.tenant(20);
    let worker = Machine::worker(&lab, &network, 3);
    for target in [PUBLIC, PRIVATE, METADATA, HOST] {
        // More often than the kernel's usual limit of ICMP errors allows.
        for _ in 0..10 {
            assert_eq!(worker.asks_who(target), Answer::Refused, "{target}");
        }
        assert_eq!(worker.connects((target, WHO)), Answer::Refused, "{target}");
    }
}

#[test]
fn any_is_every_public_address_as_the_host() {
    let lab = Lab::new();
    lab.serve_who();
    let network = lab.tenant(21);
    let worker = Machine::start(&lab, &network, port(&network, 3, true, Egress::Any));
    assert_eq!(worker.asks_who(PUBLIC), Answer::From(HOST));
    for target in [PRIVATE, METADATA, HOST, network.uplink.host_ip()] {
        assert_eq!(worker.asks_who(target), Answer::Refused, "{target}");
    }
    // The neighbour with other egress has nothing of it.
    let other = Machine::worker(&lab, &network, 4);
    assert_eq!(other.asks_who(PUBLIC), Answer::Refused);
}

#[test]
fn a_network_opens_itself_and_a_port_only_that_port() {
    let lab = Lab::new();
    lab.serve_who();
    let listeners: Vec<TcpListener> =
        within(&lab.world, || [443, 444].map(|port| TcpListener::bind((PUBLIC, port)).unwrap()).into());
    let network = lab.tenant(22);
    let allowed = only(&["198.51.100.0/24:443", "10.9.0.0/16"]);
    let worker = Machine::start(&lab, &network, port(&network, 3, true, allowed));
    assert_eq!(worker.connects((PUBLIC, 443)), Answer::From(PUBLIC));
    assert_eq!(worker.connects((PUBLIC, 444)), Answer::Refused);
    assert_eq!(worker.asks_who(PUBLIC), Answer::Refused);
    assert_eq!(worker.asks_who(PRIVATE), Answer::From(HOST), "a private network that is named");
    assert_eq!(worker.asks_who(METADATA), Answer::Refused);
    drop(listeners);
}

#[test]
fn a_wide_network_opens_no_special_range() {
    let lab = Lab::new();
    lab.serve_who();
    let network = lab.tenant(23);
    let worker = Machine::start(&lab, &network, port(&network, 3, true, only(&["0.0.0.0/0"])));
    assert_eq!(worker.asks_who(PUBLIC), Answer::From(HOST));
    for target in [PRIVATE, METADATA, HOST] {
        assert_eq!(worker.asks_who(target), Answer::Refused, "{target}");
    }
    let named = Machine::start(&lab, &network, port(&network, 4, true, only(&["169.254.169.254/32"])));
    assert_eq!(named.asks_who(METADATA), Answer::From(HOST));
}

#[test]
fn a_rule_taken_away_ends_what_it_allowed() {
    let lab = Lab::new();
    lab.serve_who();
    let network = lab.tenant(24);
    let mut worker = Machine::start(&lab, &network, port(&network, 3, true, Egress::Any));
    assert_eq!(worker.asks_who(PUBLIC), Answer::From(HOST));
    worker.port.egress = Egress::None;
    lab.networks.admit(&network, &worker.port).unwrap();
    // The same flow, which conntrack still knows.
    assert_eq!(worker.asks_who(PUBLIC), Answer::Refused);
    worker.port.egress = only(&["198.51.100.7"]);
    lab.networks.admit(&network, &worker.port).unwrap();
    assert_eq!(worker.asks_who(PUBLIC), Answer::From(HOST));
}

#[test]
fn the_host_s_addresses_stay_closed_even_when_named() {
    let lab = Lab::new();
    run(&["ip", "-n", &lab.host, "addr", "add", "192.168.77.1/24", "dev", "lo"]);
    let inner = Ipv4Addr::new(192, 168, 77, 1);
    for address in [HOST, inner] {
        lab.serve_in(&lab.host, address);
    }
    let network = lab.tenant(25);
    let allowed = only(&["203.0.113.0/24", "192.168.77.0/24", "169.254.64.0/18"]);
    let worker = Machine::start(&lab, &network, port(&network, 3, true, allowed));
    for target in [HOST, inner, network.uplink.host_ip()] {
        assert_eq!(worker.asks_who(target), Answer::Refused, "{target}");
        assert_eq!(worker.connects((target, 22)), Answer::Refused, "{target}");
    }
}

#[test]
fn what_the_host_redirects_elsewhere_stays_closed_too() {
    let lab = Lab::new();
    lab.serve_who();
    lab.nft(&lab.host, "add table ip others");
    lab.nft(&lab.host, "add chain ip others pre { type nat hook prerouting priority dstnat; }");
    lab.nft(&lab.host, &format!("add rule ip others pre ip daddr {HOST} udp dport {WHO} dnat to {PRIVATE}"));
    let network = lab.tenant(26);
    let worker = Machine::start(&lab, &network, port(&network, 3, true, Egress::Any));
    assert_eq!(worker.asks_who(HOST), Answer::Refused);
    assert_eq!(worker.asks_who(PUBLIC), Answer::From(HOST));
}

#[test]
fn the_world_does_not_come_in() {
    let lab = Lab::new();
    lab.serve_who();
    let network = lab.tenant(27);
    let inside = lab.inside(&network);
    let worker = Machine::start(&lab, &network, port(&network, 3, true, Egress::Any));
    // A neighbour who takes the host for a router, and a host that knows the way.
    run(&["ip", "-n", &lab.world, "route", "add", "10.240.0.0/12", "via", &HOST.to_string()]);
    let by_uplink = network.uplink.tenant_ip().to_string();
    run(&["ip", "-n", &lab.host, "route", "add", "10.240.27.0/24", "via", &by_uplink]);
    let socket = within(&lab.world, || UdpSocket::bind((PUBLIC, 0)).unwrap());
    let arrives = |payload: &[u8]| {
        socket.send_to(payload, (worker.ip(), 7)).unwrap();
        worker.send_udp((PUBLIC, WHO), b"who");
        let answer = |frame: &Seen| matches!(frame, Seen::Udp { from, .. } if *from == (PUBLIC, WHO));
        let seen = worker.until("the answer to what it asked itself", answer);
        seen.iter().any(|frame| matches!(frame, Seen::Udp { payload: found, .. } if found == payload))
    };
    // Each of the two filters holds without the other.
    lab.nft(&inside, "insert rule ip mvm forward accept");
    assert!(!arrives(b"through the tenant's filter"));
    lab.networks.ensure(&network).unwrap();
    let open_host = format!("insert rule inet {} to_tenant accept", lab.networks.tag().table());
    lab.nft(&lab.host, &open_host);
    assert!(!arrives(b"through the host's filter"));
    lab.nft(&inside, "insert rule ip mvm forward accept");
    assert!(arrives(b"through none"), "the way is right, but for the filters");
}

#[test]
fn the_host_does_not_become_a_router_for_others() {
    let lab = Lab::new();
    // Another network of the host's, with a server that a neighbour in the world must not reach through it.
    let inner = lab.namespace("inner");
    run(&["ip", "-n", &lab.host, "link", "add", "inner0", "type", "veth", "peer", "eth0", "netns", &inner]);
    for (namespace, link, address) in
        [(&lab.host, "inner0", "192.168.88.1/24"), (&inner, "eth0", "192.168.88.2/24")]
    {
        run(&["ip", "-n", namespace, "addr", "add", address, "dev", link]);
        run(&["ip", "-n", namespace, "link", "set", link, "up"]);
    }
    run(&["ip", "-n", &inner, "route", "add", "default", "via", "192.168.88.1"]);
    run(&["ip", "-n", &lab.world, "route", "add", "192.168.88.0/24", "via", &HOST.to_string()]);
    let server = within(&inner, || UdpSocket::bind("192.168.88.2:4000").unwrap());
    server.set_read_timeout(Some(WAIT)).unwrap();
    let neighbour = within(&lab.world, || UdpSocket::bind("203.0.113.1:0").unwrap());

    let network = lab.tenant(28);
    assert_eq!(lab.setting("ipv4/conf/eth0/forwarding"), "1");
    assert_eq!(lab.setting("ipv4/ip_forward"), "0");
    neighbour.send_to(b"by mvm's doing", "192.168.88.2:4000").unwrap();
    // As soon as the host forwards by somebody else's wish, mvm holds nothing back.
    lab.set(&lab.host, "ipv4/ip_forward", "1");
    lab.networks.ensure(&network).unwrap();
    neighbour.send_to(b"by the host's wish", "192.168.88.2:4000").unwrap();
    let mut buffer = [0; 64];
    let length = server.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"by the host's wish");
    lab.networks.remove(network.net_id).unwrap();
    assert_eq!(lab.setting("ipv4/conf/eth0/forwarding"), "1", "switched on by somebody else");
}

#[test]
fn a_named_network_behind_another_link_is_reached_by_that() {
    let lab = Lab::new();
    let side = lab.namespace("side");
    run(&["ip", "-n", &lab.host, "link", "add", "side0", "type", "veth", "peer", "eth0", "netns", &side]);
    for (namespace, link, address) in [(&lab.host, "side0", "10.9.8.1/24"), (&side, "eth0", "10.9.8.2/24")] {
        run(&["ip", "-n", namespace, "addr", "add", address, "dev", link]);
        run(&["ip", "-n", namespace, "link", "set", link, "up"]);
    }
    let (server, by) = (Ipv4Addr::new(10, 9, 8, 2), Ipv4Addr::new(10, 9, 8, 1));
    lab.serve_in(&side, server);
    let network = lab.tenant(30);
    let closed = Machine::start(&lab, &network, port(&network, 3, true, only(&["10.9.7.0/24"])));
    assert_eq!(lab.setting("ipv4/conf/side0/forwarding"), "0");
    assert_eq!(closed.asks_who(server), Answer::Refused);
    let open = Machine::start(&lab, &network, port(&network, 4, true, only(&["10.9.8.0/24"])));
    assert_eq!(open.asks_who(server), Answer::From(by));
    assert_eq!(closed.asks_who(server), Answer::Refused);
    lab.set(&lab.host, "ipv4/conf/side0/forwarding", "0");
    let findings = lab.networks.verify(&[expected(&network, &[&closed, &open])]).unwrap();
    assert!(findings.iter().any(|f| f.object.contains("side0/forwarding")), "{findings:?}");
    lab.networks.admit(&network, &open.port).unwrap();
    assert_eq!(open.asks_who(server), Answer::From(by));
    lab.networks.remove(network.net_id).unwrap();
    assert_eq!(lab.setting("ipv4/conf/side0/forwarding"), "0");
}

#[test]
fn answers_pass_and_stay_with_their_machine() {
    let lab = Lab::new();
    lab.serve_who();
    let network = lab.tenant(29);
    let start = |offset| Machine::start(&lab, &network, port(&network, offset, true, Egress::Any));
    let (one, two) = (start(3), start(4));
    // Both from the same port, to the same port.
    assert_eq!(one.asks_who(PUBLIC), Answer::From(HOST));
    assert_eq!(two.asks_who(PUBLIC), Answer::From(HOST));
    // One with the other's address gets nothing out.
    let stolen = udp((two.ip(), 5000), (PUBLIC, WHO), b"who");
    one.send(&ethernet(one.router(), one.mac(), 0x0800, &stolen));
    assert_eq!(one.asks_who(PUBLIC), Answer::From(HOST));
    assert_eq!(two.asks_who(PUBLIC), Answer::From(HOST));
    let more = |machine: &Machine| machine.until("the end", |frame| matches!(frame, Seen::Udp { .. }));
    one.send_udp((PUBLIC, WHO), b"who");
    assert_eq!(more(&one).len(), 1);
    two.send_udp((PUBLIC, WHO), b"who");
    assert_eq!(more(&two).len(), 1);
}
