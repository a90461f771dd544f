//! What is reached by name, and who may ask for names.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::Duration;

use mvm_model::{Egress, HostName};
use mvm_network::{ResolverSockets, TenantNetwork};

use crate::frames::Seen;
use crate::lab::{Answer, Lab, METADATA, Machine, PRIVATE, PUBLIC, WAIT, expected, only, port, run, within};

const LONG: Duration = Duration::from_secs(600);

fn name(text: &str) -> HostName {
    HostName::new(text).unwrap()
}

#[test]
fn a_name_opens_the_addresses_that_were_told_for_it() {
    let lab = Lab::new();
    lab.serve_who();
    let _listeners: Vec<TcpListener> =
        within(&lab.world, || [443, 444].map(|port| TcpListener::bind((PUBLIC, port)).unwrap()).into());
    let network = lab.tenant(31);
    let start =
        |offset, rule: &str| Machine::start(&lab, &network, port(&network, offset, true, only(&[rule])));
    let (by_port, whole) = (start(3, "a.example.org:443"), start(4, "a.example.org"));
    let (other, none) = (start(5, "b.example.org"), Machine::worker(&lab, &network, 6));
    let all = [&by_port, &whole, &other, &none];
    for machine in all {
        assert_eq!(machine.connects((PUBLIC, 443)), Answer::Refused, "before anybody asked");
    }
    let told = [PUBLIC, PRIVATE, METADATA, network.uplink.host_ip()];
    lab.networks.let_reach(&network, &name("a.example.org"), &told, LONG).unwrap();
    assert_eq!(by_port.connects((PUBLIC, 443)), Answer::From(PUBLIC));
    assert_eq!(by_port.connects((PUBLIC, 444)), Answer::Refused);
    assert_eq!(by_port.asks_who(PUBLIC), Answer::Refused);
    assert_eq!(whole.connects((PUBLIC, 444)), Answer::From(PUBLIC));
    assert!(matches!(whole.asks_who(PUBLIC), Answer::From(_)));
    for closed in [PRIVATE, METADATA, network.uplink.host_ip()] {
        assert_eq!(whole.asks_who(closed), Answer::Refused, "{closed}: a name does not lead there");
    }
    for machine in [&other, &none] {
        assert_eq!(machine.connects((PUBLIC, 443)), Answer::Refused, "another name, or none");
    }
    assert_eq!(lab.networks.verify(&[expected(&network, &all)]).unwrap(), []);
    // Another agent repairs the network, and what was told goes on.
    lab.restarted().ensure(&network).unwrap();
    assert_eq!(whole.connects((PUBLIC, 444)), Answer::From(PUBLIC));
}

#[test]
fn what_began_goes_on_when_the_name_s_time_is_over_and_ends_with_the_rule() {
    let lab = Lab::new();
    lab.serve_who();
    let _listener = within(&lab.world, || TcpListener::bind((PUBLIC, 443)).unwrap());
    let network = lab.tenant(32);
    let rules = ["a.example.org", "b.example.org"];
    let mut worker = Machine::start(&lab, &network, port(&network, 3, true, only(&rules)));
    let tell =
        |lifetime| lab.networks.let_reach(&network, &name("a.example.org"), &[PUBLIC], lifetime).unwrap();
    tell(Duration::from_secs(1));
    // Told again, it stays as long as was said last.
    tell(Duration::from_secs(4));
    std::thread::sleep(Duration::from_millis(1500));
    assert!(matches!(worker.asks_who(PUBLIC), Answer::From(_)));
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(worker.connects((PUBLIC, 443)), Answer::Refused, "a connection that begins now");
    assert!(matches!(worker.asks_who(PUBLIC), Answer::From(_)), "the flow that began before");
    worker.port.egress = only(&["b.example.org", "a.example.org:443"]);
    lab.networks.admit(&network, &worker.port).unwrap();
    assert_eq!(worker.asks_who(PUBLIC), Answer::Refused, "another port than is named now");
    worker.port.egress = only(&["a.example.org"]);
    lab.networks.admit(&network, &worker.port).unwrap();
    assert!(matches!(worker.asks_who(PUBLIC), Answer::From(_)));
    worker.port.egress = only(&["b.example.org"]);
    lab.networks.admit(&network, &worker.port).unwrap();
    assert_eq!(worker.asks_who(PUBLIC), Answer::Refused, "a name that is not there any more");
}

#[test]
fn what_was_told_outlasts_a_machine_that_sleeps_and_nothing_longer() {
    let lab = Lab::new();
    lab.serve_who();
    let network = lab.tenant(33);
    let start = || Machine::start(&lab, &network, port(&network, 3, true, only(&["a.example.org"])));
    let worker = start();
    lab.networks.let_reach(&network, &name("a.example.org"), &[PUBLIC], LONG).unwrap();
    let spec = worker.port.clone();
    drop(worker);
    lab.networks.detach(&network, &spec).unwrap();
    assert_eq!(lab.networks.verify(&[expected(&network, &[])]).unwrap(), [], "a set alone lets nobody in");
    lab.networks.ensure(&network).unwrap();
    let worker = start();
    assert!(matches!(worker.asks_who(PUBLIC), Answer::From(_)), "as it woke");
    drop(worker);
    lab.networks.detach(&network, &spec).unwrap();
    let inside = lab.inside(&network);
    let sets = || lab.nft(&inside, "list sets ip");
    run(&[
        "ip",
        "netns",
        "exec",
        &inside,
        "sh",
        "-c",
        "nft flush set ip mvm $(nft list sets ip | grep -o 'name_[0-9a-f]*')",
    ]);
    assert!(sets().contains("name_"));
    lab.networks.ensure(&network).unwrap();
    assert!(!sets().contains("name_"), "{}", sets());
}

/// Sends a question from a machine; whether it came, from its address, and was answered.
fn asks(machine: &Machine, sockets: &ResolverSockets, network: &TenantNetwork) -> Answer {
    let router = network.subnet.bridge_ip();
    machine.send_udp((router, 53), b"question");
    let mut buffer = [0; 64];
    let udp: &UdpSocket = &sockets.udp;
    udp.set_nonblocking(false).unwrap();
    udp.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    if let Ok((length, from)) = udp.recv_from(&mut buffer) {
        assert_eq!((&buffer[..length], from.ip()), (&b"question"[..], machine.ip().into()));
        udp.send_to(b"answer", from).unwrap();
    }
    let seen = machine.until("an answer", |frame| {
        matches!(frame, Seen::Udp { from, .. } if *from == (router, 53))
            || matches!(frame, Seen::Icmp { kind: 3, .. })
    });
    match seen.last() {
        Some(Seen::Udp { .. }) => Answer::From(router),
        _ => Answer::Refused,
    }
}

#[test]
fn only_machines_that_reach_something_by_name_may_ask() {
    let lab = Lab::new();
    let (network, neighbour) = (lab.tenant(34), lab.tenant(35));
    let sockets = lab.networks.open_resolver(&network).unwrap();
    let router: Ipv4Addr = network.subnet.bridge_ip();
    let by_name = only(&["a.example.org:443", "192.0.2.0/24"]);
    let mut asker = Machine::start(&lab, &network, port(&network, 3, true, by_name.clone()));
    let others = [Egress::Any, Egress::None, only(&["10.240.34.0/24"])];
    let others = [4, 5, 6]
        .into_iter()
        .zip(others)
        .map(|(n, egress)| Machine::start(&lab, &network, port(&network, n, true, egress)));
    let others: Vec<Machine> = others.collect();
    assert_eq!(asks(&asker, &sockets, &network), Answer::From(router));
    assert_eq!(asker.connects((router, 53)), Answer::From(router));
    assert_eq!(asker.connects((router, 54)), Answer::Refused);
    assert_eq!(asker.connects((network.uplink.tenant_ip(), 53)), Answer::Refused);
    for other in &others {
        assert_eq!(asks(other, &sockets, &network), Answer::Refused);
        assert_eq!(other.connects((router, 53)), Answer::Refused);
    }
    // Somebody else's resolver.
    let stranger = Machine::start(&lab, &neighbour, port(&neighbour, 3, true, by_name));
    assert_eq!(stranger.connects((router, 53)), Answer::Refused);
    let mut machines: Vec<&Machine> = others.iter().collect();
    machines.push(&asker);
    let expectations = [expected(&network, &machines), expected(&neighbour, &[&stranger])];
    assert_eq!(lab.networks.verify(&expectations).unwrap(), []);
    let flush = "nft flush set ip mvm asking";
    run(&[&["ip", "netns", "exec", &lab.inside(&network)], &flush.split(' ').collect::<Vec<_>>()[..]]
        .concat());
    let findings = lab.networks.verify(&expectations).unwrap();
    assert!(findings.iter().any(|f| f.object.contains("set ip mvm asking")), "{findings:?}");
    lab.networks.admit(&network, &asker.port).unwrap();
    assert_eq!(lab.networks.verify(&expectations).unwrap(), []);

    asker.port.egress = Egress::None;
    lab.networks.admit(&network, &asker.port).unwrap();
    assert_eq!(asks(&asker, &sockets, &network), Answer::Refused, "the flow that began before, too");
}

#[test]
fn a_flood_of_questions_is_cut_off_and_the_neighbour_s_are_not() {
    let lab = Lab::new();
    let network = lab.tenant(36);
    let sockets = lab.networks.open_resolver(&network).unwrap();
    let start =
        |offset| Machine::start(&lab, &network, port(&network, offset, true, only(&["a.example.org"])));
    let (flooding, quiet) = (start(3), start(4));
    let router = network.subnet.bridge_ip();
    for _ in 0..5000 {
        flooding.send_udp((router, 53), b"flood");
    }
    sockets.udp.set_nonblocking(false).unwrap();
    sockets.udp.set_read_timeout(Some(WAIT.min(Duration::from_millis(300)))).unwrap();
    let mut buffer = [0; 64];
    let mut came = 0;
    while sockets.udp.recv_from(&mut buffer).is_ok() {
        came += 1;
    }
    assert!((100..1500).contains(&came), "{came} of 5000");
    assert_eq!(asks(&quiet, &sockets, &network), Answer::From(router));
}
