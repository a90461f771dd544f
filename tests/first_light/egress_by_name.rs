//! What machines reach by name: what the resolver at `.1` told them, at the port that is named, and no other name at all.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, UdpSocket};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use mvm_harness::{Lab, Namespace, Value, json};

use crate::outside::{Outside, SERVER};
use crate::probe::Machine;

/// What `allowed.test` and `other.test` are.
const ALLOWED: &str = "198.51.100.7";
const OTHER: &str = "198.51.100.8";
/// What `inside.test` says it is.
const INSIDE: &str = "192.168.77.7";
const PORT: u16 = 8080;
const OTHER_PORT: u16 = 8081;

/// Asks for a name as it is sent, with a code of 0 to 5, and as programs do.
const ASK: &str = r#"
import json, socket, struct, sys, time
router = open("/etc/resolv.conf").read().split()[1]
def asked(name, kind):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    question = struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", kind, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(20)
        udp.connect((router, 53))
        udp.send(question)
        try:
            answer = udp.recv(2048)
        except OSError as error:
            return str(error.errno)
    _, flags, _, answers, _, _ = struct.unpack(">6H", answer[:12])
    return [flags & 15, answers]
def found(name):
    try:
        return socket.gethostbyname(name)
    except socket.gaierror:
        return None
begun = time.monotonic()
name = sys.argv[1]
told = {"A": asked(name, 1), "AAAA": asked(name, 28), "found": found(name)}
told["quick"] = time.monotonic() - begun < 15
print(json.dumps(told))
"#;

/// The resolver of the outside; what it is asked for.
fn resolver(at: &Namespace) -> Arc<Mutex<Vec<String>>> {
    let socket = at.inside(|| UdpSocket::bind((SERVER, 53)).unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&asked);
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let mut message = Message::from_vec(&buffer[..length]).unwrap().into_response();
            let query = message.queries[0].clone();
            assert_eq!(query.query_type(), RecordType::A);
            let name = query.name().to_ascii();
            let address = match name.as_str() {
                "allowed.test." => Some(ALLOWED),
                "other.test." => Some(OTHER),
                "inside.test." => Some(INSIDE),
                _ => None,
            };
            noted.lock().unwrap().push(name);
            match address {
                Some(address) => {
                    let address: Ipv4Addr = address.parse().unwrap();
                    message.add_answer(Record::from_rdata(query.name().clone(), 300, RData::A(A(address))));
                }
                None => message.metadata.response_code = ResponseCode::NXDomain,
            }
            socket.send_to(&message.to_vec().unwrap(), from).unwrap();
        }
    });
    asked
}

const MANIFEST: &str = r#"
[tenant]
id = "alice"
[[pools]]
id = "named"
image = "python"
vcpus = 1
mem_mib = 192
desired_running = 1
egress = ["allowed.test:8080", "inside.test", "missing.test:443"]
[[pools]]
id = "closed"
image = "python"
vcpus = 1
mem_mib = 192
desired_running = 1
"#;

fn ask(lab: &Lab, machine: &Machine, name: &str) -> Value {
    let told: Value =
        serde_json::from_str(&lab.exec(&machine.address, &["python3", "-c", ASK, name])).unwrap();
    assert_eq!(told["quick"], true, "{name}: {told}");
    told
}

/// Whether an address is reached by TCP.
fn connects(lab: &Lab, machine: &Machine, address: &str, port: u16) -> bool {
    let outcome = machine.grope(lab, "by name", &[(address, address, port)]);
    match outcome[address]["tcp"].as_str() {
        "ok" => true,
        "ECONNREFUSED" => false,
        other => panic!("{address}: {other}"),
    }
}

/// Something else that listens where a tenant's machines ask for names.
struct Held(Child);

fn hold_resolver_of(lab: &Lab, machine: &Machine) -> Held {
    let hold = "import socket, sys\nheld = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
                held.bind((sys.argv[1], 53))\nprint('held', flush=True)\nsys.stdin.read()";
    let inside = format!("--net=/run/netns/{}", lab.namespaces()[0]);
    let mut command = lab.host().command("nsenter");
    command.args([&inside, "--", "python3", "-c", hold, &machine.router().0]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "held");
    Held(child)
}

impl Held {
    fn let_go(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success());
    }
}

/// It is said by whoever looks, and once in the log however often it is tried.
#[track_caller]
fn assert_nobody_answers(lab: &Lab) {
    let status = lab.json(&["status", "alice"]);
    let what = status["troubles"][0]["what"].as_str().unwrap_or_else(|| panic!("{status}"));
    assert!(what.contains("names are not answered") && what.contains("in use"), "{what}");
    assert_eq!(lab.json(&["status"])["deployments"][0]["troubles"], 1);
    let output = lab.try_mvm(&["net", "verify"]);
    let found = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.code() == Some(1) && found.contains("resolver of tenant alice"), "{found}");
    let failed = lab.deploy_fails(MANIFEST);
    assert!(failed.contains("names cannot be answered") && failed.contains("it is tried again"), "{failed}");
    std::thread::sleep(Duration::from_secs(4));
    let log = std::fs::read_to_string(lab.log()).unwrap();
    assert_eq!(log.matches("listen for names at").count(), 1, "{log}");
}

#[test]
fn a_name_leads_to_what_it_is_while_it_is_asked_for_and_no_further() {
    let mut lab = Lab::without_agent();
    let outside = Outside::new(&lab, &[ALLOWED, OTHER, INSIDE]);
    outside.serve(PORT);
    outside.serve(OTHER_PORT);
    let asked = resolver(outside.namespace());
    let environment = [("MVM_RESOLVER", SERVER)];
    lab.start_agent_with(&environment);
    lab.deploy(MANIFEST);
    let [named, closed] =
        ["named", "closed"].map(|pool| Machine::of_pool(&lab, &format!("alice/{pool}")).remove(0));

    assert!(!connects(&lab, &named, ALLOWED, PORT), "before it was asked for");
    let told = ask(&lab, &named, "allowed.test");
    assert_eq!((&told["A"], &told["AAAA"]), (&Value::from(vec![0, 1]), &Value::from(vec![0, 0])), "{told}");
    assert_eq!(told["found"], ALLOWED);
    assert!(connects(&lab, &named, ALLOWED, PORT));
    assert!(!connects(&lab, &named, ALLOWED, OTHER_PORT), "another port");
    assert!(!connects(&lab, &named, OTHER, PORT), "another address");
    assert!(!connects(&lab, &closed, ALLOWED, PORT), "another pool");
    // A name of somebody who would like to get inside.
    let told = ask(&lab, &named, "inside.test");
    assert_eq!((&told["A"], &told["found"]), (&Value::from(vec![0, 0]), &Value::Null), "{told}");
    assert!(!connects(&lab, &named, INSIDE, PORT));
    assert_eq!(ask(&lab, &named, "missing.test")["A"], Value::from(vec![3, 0]));
    for refused in ["other.test", "secret.allowed.test", "test"] {
        let told = ask(&lab, &named, refused);
        assert_eq!(
            (&told["A"], &told["AAAA"]),
            (&Value::from(vec![5, 0]), &Value::from(vec![5, 0])),
            "{refused}"
        );
    }
    let told = ask(&lab, &closed, "allowed.test");
    assert!(told["A"].is_string() && told["found"].is_null(), "there is no resolver for it: {told}");
    let of_the_names = ["allowed.test.", "inside.test.", "missing.test."];
    assert!(asked.lock().unwrap().iter().all(|name| of_the_names.contains(&name.as_str())), "{asked:?}");
    assert!(lab.mvm(&["net", "verify"]).contains("as they should be"));

    // What was told outlasts an agent and a sleep, and can be asked for again.
    lab.stop_agent();
    let held = hold_resolver_of(&lab, &named);
    lab.start_agent_with(&environment);
    assert!(connects(&lab, &named, ALLOWED, PORT));
    assert_nobody_answers(&lab);
    held.let_go();
    lab.wait_for("it is opened after all", || lab.try_mvm(&["net", "verify"]).status.success());
    assert_eq!(lab.json(&["status", "alice"])["troubles"], json!([]));
    assert_eq!(ask(&lab, &named, "allowed.test")["found"], ALLOWED);
    lab.mvm(&["instance", "sleep", &named.address]);
    assert!(lab.mvm(&["net", "verify"]).contains("as they should be"));
    lab.mvm(&["instance", "wake", &named.address]);
    assert!(connects(&lab, &named, ALLOWED, PORT));
    assert_eq!(ask(&lab, &named, "allowed.test")["found"], ALLOWED);

    let changed = lab.mvm(&["pool", "update", "alice/named", "--egress", "Other.test:8080"]);
    assert!(changed.contains("egress changed"), "{changed}");
    assert!(!connects(&lab, &named, ALLOWED, PORT), "a name that is not there any more");
    assert_eq!(ask(&lab, &named, "allowed.test")["A"], Value::from(vec![5, 0]));
    assert_eq!(ask(&lab, &named, "other.test")["found"], OTHER);
    assert!(connects(&lab, &named, OTHER, PORT));
    lab.mvm(&["pool", "update", "alice/named", "--egress", "none"]);
    assert!(ask(&lab, &named, "other.test")["A"].is_string());
    assert!(lab.mvm(&["net", "verify"]).contains("as they should be"));
    lab.mvm(&["tenant", "destroy", "alice", "--force"]);
    assert_eq!(lab.namespaces(), Vec::<String>::new());
}
