//! Between tenants, and between the workers of one, nothing passes.

use std::collections::BTreeMap;

use mvm_harness::{Lab, Value};

use crate::probe::{Listener, Machine, Outcome};

/// A tenant whose machines may reach whatever is public: what stops them here is not their egress.
fn tenant(id: &str, workers: u32) -> String {
    format!(
        r#"
[tenant]
id = "{id}"
[[pools]]
id = "gateways"
role = "gateway"
image = "python"
vcpus = 1
mem_mib = 192
desired_running = 1
egress = "any"
[[pools]]
id = "workers"
image = "python"
vcpus = 1
mem_mib = 192
desired_running = {workers}
egress = "any"
"#
    )
}

/// Whom a machine must not reach, and whom it may.
struct Sides<'a> {
    strangers: Vec<&'a Machine>,
    friends: Vec<&'a Machine>,
}

fn sides<'a>(me: &Machine, all: &'a [Machine]) -> Sides<'a> {
    let others = all.iter().filter(|other| other.address != me.address);
    let (friends, strangers) = others.partition(|other| may_reach(me, other));
    Sides { strangers, friends }
}

fn may_reach(one: &Machine, other: &Machine) -> bool {
    one.tenant == other.tenant && (one.is_gateway || other.is_gateway)
}

/// Does something in every machine at once.
fn everywhere(all: &[Machine], act: impl Fn(&Machine) + Sync) {
    std::thread::scope(|scope| {
        let threads: Vec<_> = all.iter().map(|machine| scope.spawn(|| act(machine))).collect();
        for thread in threads {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
}

fn assert_all_ok(me: &Machine, outcomes: &BTreeMap<String, Outcome>) {
    for (other, outcome) in outcomes {
        assert!(outcome.values().all(|how| how == "ok"), "{} to {other}: {outcome:?}", me.address);
    }
}

/// No answer to anything, and no connection that hangs.
fn assert_none_ok(me: &Machine, how: &str, outcomes: &BTreeMap<String, Outcome>) {
    for (other, outcome) in outcomes {
        assert!(outcome.values().all(|how| how != "ok"), "{} {how} to {other}: {outcome:?}", me.address);
        assert!(
            matches!(outcome["tcp"].as_str(), "ECONNREFUSED" | "EHOSTUNREACH"),
            "{} {how} to {other} is not refused: {outcome:?}",
            me.address
        );
    }
}

/// As itself: friends answer, strangers do not, directly and by the router, and no forged frame helps.
fn as_itself(lab: &Lab, me: &Machine, all: &[Machine]) {
    let Sides { strangers, friends } = sides(me, all);
    assert_all_ok(me, &me.reach_machines(lab, "friend", &friends));
    assert_none_ok(me, "directly", &me.grope_for(lab, "directly", &strangers));

    let (router, _) = me.router();
    let routes = |verb: &str| -> String {
        strangers.iter().map(|s| format!("ip route {verb} {} via {router} && ", s.ip)).collect()
    };
    me.shell(lab, &(routes("add") + "true"));
    let by_router = me.reach_machines(lab, "by the router", &strangers);
    for (stranger, outcome) in &by_router {
        let refused = ["tcp ECONNREFUSED", "udp EHOSTUNREACH", "icmp EHOSTUNREACH"].map(str::to_owned);
        let found = ["tcp", "udp", "icmp"].map(|protocol| format!("{protocol} {}", outcome[protocol]));
        assert_eq!(found, refused, "{} by the router to {stranger}", me.address);
    }
    me.shell(lab, &(routes("del") + "true"));

    let gateways: Vec<_> = friends.iter().filter(|friend| friend.is_gateway).copied().collect();
    assert!(me.forge(lab, &strangers, &gateways) as usize > 100 * strangers.len());
}

/// With another's addresses, taken inside the machine.
fn as_another(lab: &Lab, me: &Machine, all: &[Machine]) {
    let Sides { strangers, friends } = sides(me, all);
    let gateway = friends.iter().find(|friend| friend.is_gateway);
    for victim in strangers.iter().chain(gateway) {
        let (router, _) = me.router();
        let become_other = |from: &Machine, to: &Machine| {
            let Machine { ip, mac, .. } = to;
            format!(
                "ip link set eth0 down && ip link set eth0 address {mac} && ip addr del {}/24 dev eth0 && \
                 ip addr add {ip}/24 dev eth0 && ip link set eth0 up && \
                 (ip route add {router} dev eth0 2>/dev/null; ip route add default via {router})",
                from.ip
            )
        };
        me.shell(lab, &become_other(me, victim));
        let targets: Vec<&Machine> = strangers.iter().copied().filter(|s| s.ip != victim.ip).collect();
        let how = format!("as {}", victim.address);
        assert_none_ok(me, &how, &me.grope_for(lab, &how, &targets));
        me.shell(lab, &become_other(victim, me));
    }
}

/// Something that was sent to somebody, as its mark says.
struct Sent {
    by: Machine,
    to: String,
    how: String,
}

/// What came in at each machine.
type Seen = Vec<(Machine, Vec<Sent>)>;

/// What listeners saw that they must not see.
fn strayed(seen: &Seen) -> Vec<String> {
    let foreign = seen.iter().flat_map(|(receiver, all)| {
        let of_others = all.iter().filter(|sent| sent.by.address != receiver.address);
        of_others.filter(|sent| !may_reach(&sent.by, receiver)).map(move |sent| (receiver, sent))
    });
    let told = foreign.map(|(receiver, Sent { by, to, how })| {
        format!("{} saw what {} sent to {to} ({how})", receiver.address, by.address)
    });
    told.collect()
}

fn seen(lab: &Lab, all: &[Machine], listeners: Vec<Listener>) -> Seen {
    let sender = |address: &str| all.iter().find(|machine| machine.address == address).unwrap().clone();
    let of_one = |listener: Listener| {
        let (receiver, marks) = listener.seen(lab);
        (receiver, marks.into_iter().map(|(by, to, how)| Sent { by: sender(&by), to, how }).collect())
    };
    listeners.into_iter().map(of_one).collect()
}

#[test]
fn between_tenants_and_between_workers_no_packet_passes() {
    let mut lab = Lab::new();
    lab.deploy(&tenant("alice", 2));
    lab.deploy(&tenant("bob", 1));
    let pools = ["alice/gateways", "alice/workers", "bob/gateways", "bob/workers"];
    let all: Vec<Machine> = pools.iter().flat_map(|pool| Machine::of_pool(&lab, pool)).collect();
    assert_eq!(all.len(), 5);
    assert_eq!(findings(&lab), Vec::<String>::new());

    let listeners = Listener::start_all(&lab, &all);
    everywhere(&all, |me| as_itself(&lab, me, &all));
    everywhere(&all, |me| as_another(&lab, me, &all));
    // Each has its own addresses again, so what follows says that everybody still sends and sees.
    everywhere(&all, |me| assert_all_ok(me, &me.reach_machines(&lab, "again", &sides(me, &all).friends)));
    let marks = seen(&lab, &all, listeners);
    assert_eq!(strayed(&marks), Vec::<String>::new());
    for (receiver, marks) in &marks {
        for friend in sides(receiver, &all).friends {
            for how in ["friend-tcp", "friend-udp", "friend-icmp", "again-tcp", "again-udp", "again-icmp"] {
                let came = marks.iter().any(|sent| {
                    (&sent.by.address, &sent.to, sent.how.as_str())
                        == (&friend.address, &receiver.address, how)
                });
                assert!(came, "{} did not see {how} of {}", receiver.address, friend.address);
            }
        }
    }
    assert_eq!(findings(&lab), Vec::<String>::new());

    without_protection(&mut lab, &all);
}

/// Without each protection the same frames do arrive; `net verify` names what is missing; a new agent mends it.
fn without_protection(lab: &mut Lab, all: &[Machine]) {
    let workers: Vec<Machine> =
        all.iter().filter(|machine| machine.tenant == "alice" && !machine.is_gateway).cloned().collect();
    let inside = format!("/run/netns/mvm-{}-t0", lab.tag());
    let run = |command: &str| {
        let net = format!("--net={inside}");
        let arguments: Vec<&str> = [net.as_str(), "--"].into_iter().chain(command.split(' ')).collect();
        lab.host().run("nsenter", &arguments);
    };
    for worker in &workers {
        run(&format!("nft delete table netdev {}", worker.tap()));
        run(&format!("bridge link set dev {} isolated off", worker.tap()));
    }
    run("nft insert rule ip mvm forward accept");
    let found = findings(lab);
    for worker in &workers {
        for part in
            [format!("nft table netdev {}", worker.tap()), format!("port flags of tap {}", worker.tap())]
        {
            assert!(found.iter().any(|object| object.contains(&part)), "{part} is not in {found:#?}");
        }
    }
    assert!(found.iter().any(|object| object.contains("chain ip mvm forward")), "{found:#?}");

    let (one, other) = (&workers[0], &workers[1]);
    let listeners = Listener::start_all(lab, &workers);
    one.forge(lab, &[other], &[]);
    let marks = seen(lab, all, listeners);
    let arrived = strayed(&marks);
    let own = &one.address;
    for how in [
        format!("to-{}-as-{own}-{own}-udp", other.address),
        format!("to-{}-as-{own}-router-tcp", other.address),
        format!("to-all-as-router-{}-icmp", other.address),
        format!("to-router-as-{own}-{own}-udp"),
        format!("to-{}-as-{own}-experimental", other.address),
        format!("to-all-as-{own}-router-arp2",),
    ] {
        assert!(arrived.iter().any(|line| line.contains(&how)), "{how} is not in {arrived:#?}");
    }

    lab.stop_agent();
    lab.start_agent();
    lab.wait_for("everything is repaired", || findings(lab).is_empty());
    let listeners = Listener::start_all(lab, &workers);
    one.forge(lab, &[other], &[]);
    assert_eq!(strayed(&seen(lab, all, listeners)), Vec::<String>::new());
}

/// What `net verify` finds; its exit code says whether there is any.
fn findings(lab: &Lab) -> Vec<String> {
    let output = lab.try_mvm(&["net", "verify", "-o", "json"]);
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let objects: Vec<String> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| finding["object"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(output.status.code(), Some(i32::from(!objects.is_empty())), "{objects:?}");
    objects
}
