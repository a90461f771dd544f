use mvm_network::Expected;

use crate::lab::{Lab, Machine, expected, only, port, run};

#[test]
fn a_fitting_host_has_no_problems_and_an_overlap_is_named() {
    let lab = Lab::new();
    let missing = || -> Vec<_> { lab.networks.preflight().into_iter().filter(|r| r.is_missing()).collect() };
    assert_eq!(missing(), []);
    run(&["ip", "-n", &lab.host, "route", "add", "10.241.0.0/16", "via", "203.0.113.1"]);
    let problems = missing();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].found.contains("10.241.0.0/16 (route on eth0)"), "{problems:?}");
    run(&["ip", "-n", &lab.host, "route", "add", "169.254.0.0/16", "dev", "eth0"]);
    assert_eq!(missing().len(), 2);
}

/// Each is a way to break a network, what the finding has to name, and whether making it again repairs it.
#[test]
fn everything_broken_is_found_and_repaired() {
    let lab = Lab::new();
    let network = lab.tenant(60);
    let gateway = Machine::gateway(&lab, &network, 3);
    let worker = Machine::start(&lab, &network, port(&network, 4, true, only(&["192.0.2.0/24:443"])));
    let expected = [expected(&network, &[&gateway, &worker])];
    assert_eq!(lab.networks.verify(&expected).unwrap(), []);

    let inside = lab.inside(&network);
    let (host, tag) = (lab.host.clone(), lab.networks.tag().clone());
    let (link, table) = (tag.host_link(network.net_id), tag.table());
    let in_tenant = |command: &str| ("tenant", command.to_owned());
    let on_host = |command: String| ("host", command);
    let ways = [
        (in_tenant("ip link set tn60i4 type bridge_slave isolated off"), "port flags of tap tn60i4"),
        (in_tenant("ip link set tn60i4 type bridge_slave learning on"), "port flags of tap tn60i4"),
        (in_tenant("ip link set tn60i4 nomaster"), "bridge of tap tn60i4"),
        (in_tenant("ip link set tn60i4 down"), "tap tn60i4 up"),
        (in_tenant("bridge fdb del 02:6d:00:3c:00:04 dev tn60i4 master"), "address behind tap tn60i4"),
        (in_tenant("ip link set br-tenant-60 down"), "link br-tenant-60 up"),
        (in_tenant("ip addr add 10.240.61.1/24 dev br-tenant-60"), "addresses of link br-tenant-60"),
        (in_tenant("ip addr flush dev br-tenant-60"), "addresses of link br-tenant-60"),
        (in_tenant("ip link set br-tenant-60 address 02:00:00:00:00:01"), "address of link br-tenant-60"),
        (in_tenant("ip route replace default via 10.240.60.3"), "default route"),
        (
            in_tenant("sysctl -qw net.ipv4.conf.br-tenant-60.forwarding=0"),
            "ipv4/conf/br-tenant-60/forwarding",
        ),
        (in_tenant("sysctl -qw net.ipv4.conf.all.send_redirects=1"), "ipv4/conf/all/send_redirects"),
        (in_tenant("sysctl -qw net.ipv4.conf.uplink.rp_filter=0"), "ipv4/conf/uplink/rp_filter"),
        (in_tenant("nft delete table netdev tn60i4"), "netdev tn60i4"),
        (in_tenant("nft flush chain netdev tn60i4 ingress"), "chain netdev tn60i4 ingress"),
        (in_tenant("nft insert rule netdev tn60i4 ingress accept"), "chain netdev tn60i4 ingress"),
        (in_tenant("nft add rule ip mvm machine_4 accept"), "chain ip mvm machine_4"),
        (in_tenant("nft flush map ip mvm egress"), "map ip mvm egress"),
        (in_tenant("nft insert rule ip mvm forward accept"), "chain ip mvm forward"),
        (in_tenant("nft delete element ip mvm special { 10.0.0.0/8 }"), "set ip mvm special"),
        (in_tenant("nft flush chain ip mvm postrouting"), "chain ip mvm postrouting"),
        (in_tenant("ip link delete uplink"), "link uplink"),
        (on_host(format!("ip link set {link} down")), "link mv-"),
        (on_host(format!("ip addr flush dev {link}")), "addresses of link mv-"),
        (on_host(format!("nft insert rule inet {table} from_tenant accept")), "from_tenant"),
        (on_host(format!("nft flush set inet {table} pairs")), "pairs"),
        (on_host(format!("nft delete table inet {table}")), "table inet"),
        (on_host("sysctl -qw net.ipv4.conf.eth0.forwarding=0".to_owned()), "ipv4/conf/eth0/forwarding"),
        (on_host(format!("sysctl -qw net.ipv4.conf.{link}.forwarding=0")), "forwarding"),
    ];
    for ((place, command), named) in ways {
        let namespace = if place == "tenant" { &inside } else { &host };
        let mut arguments = vec!["ip", "netns", "exec", namespace];
        arguments.extend(command.split(' '));
        run(&arguments);
        let findings = lab.networks.verify(&expected).unwrap();
        assert!(
            findings.iter().any(|f| f.object.contains(named) && !f.remedy.is_empty()),
            "{command}: {findings:#?}"
        );
        lab.networks.ensure(&network).unwrap();
        for machine in [&gateway, &worker] {
            lab.networks.admit(&network, &machine.port).unwrap();
        }
        assert_eq!(lab.networks.verify(&expected).unwrap(), [], "after repairing `{command}`");
    }
    gateway.say(&worker, b"still here");
    worker.hears(b"still here");
}

#[test]
fn what_nobody_expects_is_found() {
    let lab = Lab::new();
    let (network, forgotten) = (lab.tenant(61), lab.tenant(62));
    let worker = Machine::worker(&lab, &network, 3);
    let stray = Machine::worker(&lab, &network, 4);
    run(&["ip", "netns", "exec", &lab.inside(&network), "nft", "add", "table", "ip", "foreign"]);
    let objects: Vec<String> = lab
        .networks
        .verify(&[expected(&network, &[&worker])])
        .unwrap()
        .into_iter()
        .map(|f| f.object)
        .collect();
    let inside = lab.inside(&network);
    for named in [
        format!("namespace {}", lab.inside(&forgotten)),
        format!("link {}", lab.networks.tag().host_link(forgotten.net_id)),
        format!("link tn61i4 in {inside}"),
        format!("nft chain netdev tn61i4 ingress in {inside}"),
        format!("nft chain ip mvm machine_4 in {inside}"),
        format!("nft table ip foreign in {inside}"),
        format!("nft set inet {} pairs in the host's namespace", lab.networks.tag().table()),
    ] {
        assert!(objects.contains(&named), "{named} is not among {objects:#?}");
    }
    drop(stray);
}

#[test]
fn a_machine_without_a_tap_is_one_finding() {
    let lab = Lab::new();
    let network = lab.tenant(63);
    let worker = Machine::worker(&lab, &network, 3);
    let expected = [expected(&network, &[&worker])];
    drop(worker);
    let findings = lab.networks.verify(&expected).unwrap();
    assert_eq!(findings.len(), 1, "{findings:#?}");
    assert!(findings[0].object.starts_with("tap tn63i3"));
    let absent = lab.plan(64);
    let findings =
        lab.networks.verify(&[expected[0].clone(), Expected { network: absent, ports: vec![] }]).unwrap();
    assert!(
        findings.iter().any(|f| f.object == format!("namespace {}", lab.inside(&absent))),
        "{findings:#?}"
    );
}
