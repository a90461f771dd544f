//! `mvm status`: a deployment and the node on a page, and the page that stays on the screen.

use std::io::{BufRead as _, BufReader};

use mvm_harness::{Lab, Terminal, Value, echo, kill};

use crate::shell::{MANIFEST, POOL};

const WORKERS: &str = "alice/workers";

/// What is wrong, each with what helps.
fn troubles(status: &Value) -> Vec<(String, String)> {
    let all = status["troubles"].as_array().unwrap().iter();
    all.map(|t| (t["what"].as_str().unwrap().to_owned(), t["remedy"].as_str().unwrap().to_owned())).collect()
}

fn status(lab: &Lab) -> Value {
    lab.json(&["status", "alice"])
}

/// The status of the only machine of a pool.
fn machine(status: &Value, pool: &str) -> Value {
    status["machines"].as_array().unwrap().iter().find(|machine| machine["pool"] == pool).unwrap().clone()
}

#[test]
fn a_deployment_is_told_with_its_messages_and_wakes_and_what_is_wrong() {
    let mut lab = Lab::new();
    lab.deploy(&echo("alice"));
    let new = status(&lab);
    assert_eq!(troubles(&new), []);
    assert_eq!(
        (new["ports"][0]["port"].as_u64(), new["ports"][0]["open"].as_bool()),
        (Some(8080), Some(true))
    );
    assert_eq!(new["subnet"], lab.json(&["tenant", "info", "alice"])["subnet"]);
    assert_eq!(new["wakes"]["count"], 0);
    assert!(new["last_message"].is_null(), "{new}");

    // A message to a machine that runs, and one that wakes it.
    assert_eq!(lab.get(8080, "/").status, 200);
    let first = machine(&status(&lab), "workers")["last_message_ms"].as_u64().unwrap();
    lab.mvm(&["instance", "sleep", WORKERS]);
    assert_eq!(lab.get(8080, "/").status, 200);
    let woken = status(&lab);
    let worker = machine(&woken, "workers");
    let second = worker["last_message_ms"].as_u64().unwrap();
    assert!(second > first, "{worker}");
    assert!(woken["last_message"]["at_ms"].as_u64().unwrap() >= second);
    assert_eq!(worker["last_start"], lab.info(WORKERS)["last_start"]);
    let wakes = &woken["wakes"];
    assert_eq!((wakes["count"].as_u64(), wakes["for_messages"].as_u64()), (Some(1), Some(1)), "{wakes}");
    let took = worker["last_start"]["total_ms"].as_f64().unwrap();
    assert!((wakes["median_ms"].as_f64().unwrap() - took).abs() <= 0.5, "{wakes}: {took}");
    lab.mvm(&["instance", "sleep", WORKERS]);
    lab.mvm(&["instance", "wake", WORKERS]);
    let wakes = &status(&lab)["wakes"];
    assert_eq!((wakes["count"].as_u64(), wakes["for_messages"].as_u64()), (Some(2), Some(1)), "{wakes}");

    // What woke a machine is known to the next agent, too. Meanwhile somebody else has taken the port.
    lab.kill_agent();
    let taken = lab.host().inside(|| std::net::TcpListener::bind("127.0.0.1:8080").unwrap());
    lab.start_agent();
    lab.settle();
    let later = status(&lab);
    assert!(machine(&later, "workers")["last_message_ms"].as_u64() >= Some(second - 1000), "{later}");
    assert_eq!(later["wakes"]["count"], 2);
    let (what, remedy) = &troubles(&later)[0];
    assert!(
        what.contains("127.0.0.1:8080 is not published") && remedy.contains("ss -ltnp"),
        "{what}: {remedy}"
    );
    drop(taken);

    // A machine that failed, one that was stopped, and a network that was changed behind the agent's back.
    kill(u32::try_from(lab.info(WORKERS)["pid"].as_u64().unwrap()).unwrap());
    lab.wait_for("it has failed", || lab.state(WORKERS) == "failed");
    lab.mvm(&["instance", "stop", "alice/gateways"]);
    let namespace = lab.namespaces().remove(0);
    lab.host().run("ip", &["-n", &namespace, "link", "set", "br-tenant-0", "down"]);
    let found = troubles(&status(&lab));
    let about = |text: &str| {
        let found = found.iter().find(|(what, _)| what.contains(text));
        found.unwrap_or_else(|| panic!("{text}: {found:?}")).1.clone()
    };
    let worker = lab.instances(WORKERS).remove(0);
    assert!(about(&format!("{worker} has failed: ")).contains(&format!("mvm instance start {worker}")));
    assert!(about("messages to alice/gateways are refused").contains("mvm instance start alice/gateways/i-"));
    about("link br-tenant-0 up");

    let page = lab.mvm(&["connect", "alice"]);
    for said in
        ["WRONG", "has failed: ", "→ the next message starts it", "(not open)", "2 in the last 24 hours"]
    {
        assert!(page.contains(said), "{said}: {page}");
    }
    let node = lab.json(&["status"]);
    assert_eq!(node["instances"], lab.json(&["node", "info"])["instances"]);
    let line = &node["deployments"][0];
    assert_eq!(
        (line["tenant"].as_str(), line["troubles"].as_u64() >= Some(2)),
        (Some("alice"), true),
        "{line}"
    );
    assert!(lab.mvm(&["status"]).contains("`mvm status alice` says what is wrong there"));
    assert!(lab.mvm_fails(&["status", "bob"]).contains("there is no tenant `bob`"));
}

#[test]
fn a_page_stays_on_the_screen_until_it_is_ended_and_the_terminal_is_as_before() {
    let mut lab = Lab::new();
    lab.deploy(MANIFEST);
    let mut watching = Terminal::open(&lab, &["status", "alice", "--watch"], (110, 40));
    watching.wait_for("\x1b[?1049h");
    watching.wait_for("1 running");
    watching.wait_for("nothing is wrong");
    assert!(watching.is_raw());
    lab.mvm(&["instance", "sleep", POOL]);
    watching.wait_for("1 sleeping");
    // It fits the terminal at once, whatever becomes of that.
    watching.resize(80, 6);
    watching.wait_for("more lines: make the terminal larger");
    watching.resize(110, 40);
    watching.wait_for("nothing is wrong");
    // An agent that goes is said, and one that comes back is found.
    lab.stop_agent();
    watching.wait_for("no agent answers");
    lab.start_agent();
    watching.wait_for("1 sleeping");
    watching.type_in("q");
    watching.wait_for("\x1b[?1049l");
    assert_eq!(watching.end(), 0);
    assert!(!watching.is_raw());

    let mut node = Terminal::open(&lab, &["status", "--watch"], (110, 40));
    node.wait_for("1 sleeping");
    node.type_in("\x03");
    node.wait_for("\x1b[?1049l");
    assert_eq!((node.end(), node.is_raw()), (0, false));

    // Programs get a line each time; people need a terminal.
    let mut lines = lab.mvm_beside(&["status", "alice", "--watch", "-o", "json"]);
    let mut pages = BufReader::new(lines.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let page: Value = pages.next().unwrap().unwrap().parse().unwrap();
        assert_eq!(page["instances"]["sleeping"], 1);
    }
    drop(pages);
    assert!(lines.wait().unwrap().success(), "it ends with its reader");
    assert!(lab.mvm_fails(&["status", "--watch"]).contains("-o json"));
    lab.stop_agent();
    assert!(lab.mvm_fails(&["status"]).contains("mvm agent serve"), "it starts none");
}
