use std::net::{Ipv4Addr, UdpSocket};

use mvm_model::{Egress, MacAddr};

use crate::frames::{BROADCAST, Seen, arp, ethernet, ipv4, udp};
use crate::lab::{Answer, HOST, Lab, Machine, PUBLIC, WAIT, only, port, within};

/// What a test can assert about frames that must not come: they would have come before the marker.
fn nothing_before_marker(from: &Machine, to: &Machine, after: &str) {
    from.say(to, b"marker");
    assert_eq!(to.hears(b"marker"), [], "after {after}");
}

#[test]
fn gateways_and_workers_talk_both_ways() {
    let lab = Lab::new();
    let network = lab.tenant(5);
    let (gateway, worker) = (Machine::gateway(&lab, &network, 3), Machine::worker(&lab, &network, 4));
    gateway.say(&worker, b"hello");
    assert_eq!(worker.hears(b"hello"), []);
    worker.say(&gateway, b"hello back");
    assert_eq!(gateway.hears(b"hello back"), []);

    worker.asks_for(gateway.ip());
    gateway.asks_for(gateway.ip()); // Any read makes the gateway answer what it was asked.
    gateway.say(&worker, b"end");
    worker.say(&gateway, b"end");
    gateway.hears(b"end");
    let answers = |frame: &Seen| matches!(frame, Seen::Arp { request: false, sender, .. } if *sender == (gateway.mac(), gateway.ip()));
    worker.until("the gateway's ARP answer", answers);
}

#[test]
fn a_machine_cannot_pretend_to_be_another() {
    let lab = Lab::new();
    let network = lab.tenant(6);
    let (gateway, worker) = (Machine::gateway(&lab, &network, 3), Machine::worker(&lab, &network, 4));
    let (mac, ip) = (worker.mac(), worker.ip());
    let stolen = [
        (worker.router(), network.subnet.bridge_ip()),
        (network.net_id.mac(5), Ipv4Addr::new(10, 240, 6, 5)),
    ];
    let datagram = |from: Ipv4Addr| udp((from, 7), (gateway.ip(), 7), b"forged");
    let mut forged = vec![("a broadcast MAC", ethernet(gateway.mac(), BROADCAST, 0x0800, &datagram(ip)))];
    for (other_mac, other_ip) in stolen {
        // About an address that nobody has: the gateway would answer a question about its own in silence.
        let question = |sender| arp(1, sender, (MacAddr([0; 6]), Ipv4Addr::new(10, 240, 6, 99)));
        forged.push(("another's MAC", ethernet(gateway.mac(), other_mac, 0x0800, &datagram(ip))));
        forged.push(("another's IP", ethernet(gateway.mac(), mac, 0x0800, &datagram(other_ip))));
        forged.push(("both", ethernet(gateway.mac(), other_mac, 0x0800, &datagram(other_ip))));
        forged.push(("ARP sender's IP", ethernet(gateway.mac(), mac, 0x0806, &question((mac, other_ip)))));
        forged.push(("ARP sender's MAC", ethernet(gateway.mac(), mac, 0x0806, &question((other_mac, ip)))));
        let answer = arp(2, (mac, other_ip), (gateway.mac(), gateway.ip()));
        forged.push(("an ARP answer", ethernet(gateway.mac(), mac, 0x0806, &answer)));
        let answer = arp(2, (other_mac, ip), (gateway.mac(), gateway.ip()));
        forged.push(("an ARP answer's MAC", ethernet(gateway.mac(), mac, 0x0806, &answer)));
        let frame = ethernet(gateway.mac(), other_mac, 0x0806, &question((mac, ip)));
        forged.push(("ARP in another's frame", frame));
    }
    forged
        .push(("the gateway's own", ethernet(gateway.mac(), gateway.mac(), 0x0800, &datagram(gateway.ip()))));
    for (what, frame) in forged {
        worker.send(&frame);
        nothing_before_marker(&worker, &gateway, what);
    }
}

#[test]
fn nothing_but_arp_and_ipv4_passes_a_tap() {
    let lab = Lab::new();
    let network = lab.tenant(7);
    let (gateway, worker) = (Machine::gateway(&lab, &network, 3), Machine::worker(&lab, &network, 4));
    let (mac, ip) = (worker.mac(), worker.ip());
    let honest = udp((ip, 7), (gateway.ip(), 7), b"x");
    let tagged = |kind: u16, inner: u16, packet: &[u8]| {
        ethernet(gateway.mac(), mac, kind, &[&[0, 5][..], &inner.to_be_bytes(), packet].concat())
    };
    let question = arp(1, (mac, ip), (MacAddr([0; 6]), Ipv4Addr::new(10, 240, 7, 99)));
    let dhcp =
        |from, to| ethernet(BROADCAST, mac, 0x0800, &udp((ip, from), (Ipv4Addr::BROADCAST, to), b"dhcp"));
    let from_nowhere = udp((Ipv4Addr::UNSPECIFIED, 68), (Ipv4Addr::BROADCAST, 67), b"dhcp");
    let strange_arp = [&[0, 1, 0x86, 0xdd, 6, 16][..], &question[6..], &[0; 24]].concat();
    let frames = [
        ("IPv6", ethernet(gateway.mac(), mac, 0x86dd, &[0x60; 60])),
        ("VLAN tag on IPv4", tagged(0x8100, 0x0800, &honest)),
        ("VLAN tag on ARP", tagged(0x8100, 0x0806, &question)),
        ("priority tag", ethernet(gateway.mac(), mac, 0x8100, &[&[0, 0, 8, 0][..], &honest].concat())),
        ("provider tag on IPv4", tagged(0x88a8, 0x0800, &honest)),
        ("LLDP", ethernet(MacAddr([1, 0x80, 0xc2, 0, 0, 0x0e]), mac, 0x88cc, &[0; 46])),
        ("spanning tree", ethernet(MacAddr([1, 0x80, 0xc2, 0, 0, 0]), mac, 0x0026, &[0x42; 46])),
        ("EtherType experimental", ethernet(gateway.mac(), mac, 0x88b5, &[0; 46])),
        ("DHCP request", dhcp(68, 67)),
        ("DHCP answer", dhcp(67, 68)),
        ("DHCP from 0.0.0.0", ethernet(BROADCAST, mac, 0x0800, &from_nowhere)),
        ("ARP for something else than IPv4", ethernet(gateway.mac(), mac, 0x0806, &strange_arp)),
        ("RARP", ethernet(gateway.mac(), mac, 0x8035, &question)),
        ("IPv4 in a frame of IPv6", ethernet(gateway.mac(), mac, 0x86dd, &honest)),
    ];
    for (what, frame) in frames {
        worker.send(&frame);
        nothing_before_marker(&worker, &gateway, what);
    }
}

#[test]
fn workers_never_reach_each_other() {
    let lab = Lab::new();
    let network = lab.tenant(8);
    let gateway = Machine::gateway(&lab, &network, 3);
    // With egress that names their own subnet, too.
    let worker =
        |offset| Machine::start(&lab, &network, port(&network, offset, true, only(&["10.240.8.0/24"])));
    let (one, two) = (worker(4), worker(5));
    one.say(&two, b"direct");
    one.asks_for(two.ip());
    let broadcast = udp((one.ip(), 7), (Ipv4Addr::new(10, 240, 8, 255), 7), b"broadcast");
    one.send(&ethernet(BROADCAST, one.mac(), 0x0800, &broadcast));
    let multicast = udp((one.ip(), 7), (Ipv4Addr::new(224, 0, 0, 251), 7), b"multicast");
    one.send(&ethernet(MacAddr([1, 0, 0x5e, 0, 0, 0xfb]), one.mac(), 0x0800, &multicast));
    let unknown = udp((one.ip(), 7), (two.ip(), 7), b"unknown");
    one.send(&ethernet(network.net_id.mac(99), one.mac(), 0x0800, &unknown));
    // The way round: to the peer's address in a frame for `.1`, and the peer's broadcast address.
    assert_eq!(one.asks_who(two.ip()), Answer::Refused);
    assert_eq!(one.connects((two.ip(), 80)), Answer::Refused);
    one.send_udp((Ipv4Addr::new(10, 240, 8, 255), 7), b"directed broadcast");
    let seen = {
        gateway.say(&two, b"marker");
        two.hears(b"marker")
    };
    // The router may ask everybody for the first one's MAC address, to send it its refusals.
    let routers = |frame: &Seen| matches!(frame, Seen::Arp { sender, .. } if sender.0 == one.router());
    assert!(seen.iter().all(routers), "something of the other worker's arrived: {seen:?}");
    // Nor does the router send redirects: the first answer was the refusal, and nothing else came.
    gateway.say(&one, b"marker");
    let seen = one.hears(b"marker");
    assert!(!seen.iter().any(|frame| matches!(frame, Seen::Icmp { kind: 5, .. })), "{seen:?}");
}

#[test]
fn nobody_sees_frames_for_a_machine_that_is_not_there() {
    let lab = Lab::new();
    let network = lab.tenant(9);
    let (gateway, worker) = (Machine::gateway(&lab, &network, 3), Machine::worker(&lab, &network, 4));
    let asleep = network.subnet.machine_ip(5).unwrap();
    gateway.send(&ethernet(
        network.net_id.mac(5),
        gateway.mac(),
        0x0800,
        &udp((gateway.ip(), 7), (asleep, 7), b"psst"),
    ));
    nothing_before_marker(&gateway, &worker, "a frame to a sleeping machine");
}

#[test]
fn tenants_never_reach_each_other() {
    let lab = Lab::new();
    let (alice, bob) = (lab.tenant(10), lab.tenant(11));
    assert_ne!(alice.uplink, bob.uplink);
    let named = ["10.240.11.0/24", "169.254.64.0/18", "0.0.0.0/0"];
    let hers = Machine::start(&lab, &alice, port(&alice, 3, false, only(&named)));
    let his = Machine::gateway(&lab, &bob, 3);
    let neighbour = Machine::gateway(&lab, &bob, 4);
    for target in [his.ip(), bob.subnet.bridge_ip(), bob.uplink.tenant_ip(), bob.uplink.host_ip()] {
        assert_eq!(hers.asks_who(target), Answer::Refused, "{target}");
        assert_eq!(hers.connects((target, 80)), Answer::Refused, "{target}");
    }
    hers.send(&ethernet(his.mac(), hers.mac(), 0x0800, &udp((hers.ip(), 7), (his.ip(), 7), b"direct")));
    nothing_before_marker(&neighbour, &his, "frames of another tenant");
}

#[test]
fn tenants_never_reach_each_other_even_if_one_s_own_filters_are_gone() {
    let lab = Lab::new();
    let (alice, bob) = (lab.tenant(12), lab.tenant(13));
    let hers = Machine::gateway(&lab, &alice, 3);
    lab.serve_in(&lab.inside(&bob), bob.uplink.tenant_ip());
    // Whoever rules both namespaces still has the host's filter between them.
    lab.nft(&lab.inside(&bob), "insert rule ip mvm input accept");
    lab.nft(&lab.inside(&alice), "flush chain ip mvm leaving");
    lab.nft(&lab.inside(&alice), "add rule ip mvm leaving accept");
    for target in [bob.uplink.tenant_ip(), bob.uplink.host_ip(), alice.uplink.host_ip(), HOST] {
        assert_eq!(hers.asks_who(target), Answer::Refused, "{target}");
    }
}

#[test]
fn a_tenant_s_addresses_never_appear_outside() {
    let lab = Lab::new();
    let network = lab.tenant(15);
    let machine = Machine::start(&lab, &network, port(&network, 3, true, Egress::Any));
    let server = within(&lab.world, || UdpSocket::bind((PUBLIC, 4001)).unwrap());
    server.set_read_timeout(Some(WAIT)).unwrap();
    let send = |from: u16, payload: &[u8]| {
        let packet = udp((machine.ip(), from), (PUBLIC, 4001), payload);
        machine.send(&ethernet(machine.router(), machine.mac(), 0x0800, &packet));
    };
    // Without the first translation the host lets nothing pass, and not only because it checks the way back.
    let link = lab.networks.tag().host_link(network.net_id);
    lab.set(&lab.host, &format!("ipv4/conf/{link}/rp_filter"), "0");
    lab.nft(&lab.inside(&network), "flush chain ip mvm postrouting");
    send(1000, b"untranslated");
    lab.networks.ensure(&network).unwrap();
    send(1001, b"translated");
    let mut buffer = [0; 64];
    let (length, from) = server.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], from.ip()), (&b"translated"[..], HOST.into()));
}

#[test]
fn the_router_itself_is_closed() {
    let lab = Lab::new();
    let network = lab.tenant(14);
    let worker = Machine::worker(&lab, &network, 3);
    let router = network.subnet.bridge_ip();
    lab.serve_in(&lab.inside(&network), router);
    assert_eq!(worker.asks_who(router), Answer::Refused);
    assert_eq!(worker.connects((router, 22)), Answer::Refused);
    let ping = [8, 0, 0xf7, 0xff, 0, 0, 0, 0];
    worker.send(&ethernet(worker.router(), worker.mac(), 0x0800, &ipv4(worker.ip(), router, 1, &ping)));
    worker.until("a refusal", |frame| matches!(frame, Seen::Icmp { kind: 3, code: 13, .. }));
    // It answers for its address, and for none of its others.
    worker.asks_for(network.uplink.tenant_ip());
    worker.asks_for(router);
    let seen =
        worker.until("the router's ARP answer", |frame| matches!(frame, Seen::Arp { request: false, .. }));
    assert_eq!(seen, [Seen::Arp { request: false, sender: (worker.router(), router), target: worker.ip() }]);
}
