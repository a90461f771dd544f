//! Port 53: what machines ask of the host, in order and out of order.

use mvm_harness::{Echo, Lab, Value, json};

const GATEWAY: &str = "alice/gateways";
const WORKER: &str = "alice/workers";

/// What scripts in machines begin with: connections to the host, whose frames they make themselves.
const PRELUDE: &str = r#"
import json, socket, struct, sys
class Stream:
    def __init__(self):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(90)
        self.socket.connect("/run/mvm/host.sock")
    def send(self, data):
        try:
            self.socket.sendall(data)
        except OSError:
            pass
    def frame(self, data):
        self.send(struct.pack(">I", len(data)) + data)
    def exactly(self, count):
        data = b""
        while len(data) < count:
            try:
                more = self.socket.recv(count - len(data))
            except ConnectionResetError:
                more = b""
            if not more:
                return None
            data += more
        return data
    def read(self):
        "The next answer; None where the stream has ended."
        head = self.exactly(4)
        body = head and self.exactly(struct.unpack(">I", head)[0])
        return body and json.loads(body)
    def ask(self, request):
        self.frame(json.dumps(request).encode())
        return self.read()
    def end(self):
        self.socket.shutdown(socket.SHUT_WR)
def say(value):
    print(json.dumps(value))
arguments = [json.loads(text) for text in sys.argv[1:]]
"#;

/// Runs a script after [`PRELUDE`] in a machine; what it says. Its arguments are JSON.
fn script(lab: &Lab, machine: &str, body: &str, arguments: &[&Value]) -> Value {
    let program = format!("{PRELUDE}\n{body}");
    let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    let mut command = vec!["python3", "-S", "-c", &program];
    command.extend(arguments.iter().map(String::as_str));
    let said = lab.exec(machine, &command);
    said.trim().parse::<Value>().unwrap_or_else(|error| panic!("{error}: {said}"))
}

/// Sends each request on a stream of its own; the answers.
fn ask_each(lab: &Lab, machine: &str, requests: &Value) -> Vec<Value> {
    let body = "say([Stream().ask(request) for request in arguments[0]])";
    script(lab, machine, body, &[requests]).as_array().unwrap().clone()
}

/// Alice: a gateway that has Python, and a worker.
fn alice(more: &str) -> String {
    Echo { gateway_keys: "image = \"python\"", more, ..Echo::default() }.manifest()
}

/// A pool of Alice whose machine begins asleep.
const SLEEPERS: &str = r#"
[[pools]]
id = "sleepers"
image = "python"
vcpus = 1
mem_mib = 192
desired_sleeping = 1
"#;

/// Bob: a machine that sleeps.
const BOB: &str = r#"
[tenant]
id = "bob"
[[pools]]
id = "workers"
image = "python"
vcpus = 1
mem_mib = 192
desired_sleeping = 1
"#;

/// The id of a pool's one instance.
fn id_of(lab: &Lab, pool: &str) -> String {
    lab.info(pool)["id"].as_str().unwrap().to_owned()
}

#[track_caller]
fn assert_all_errors(answers: &[Value]) {
    for (index, answer) in answers.iter().enumerate() {
        assert!(answer["Error"]["message"].is_string(), "answer {index} is no Error: {answer}");
    }
}

#[test]
fn only_a_gateway_may_ask_and_only_about_its_own_tenant() {
    let lab = Lab::new();
    lab.deploy(&alice(SLEEPERS));
    lab.deploy(BOB);
    let (sleeper, bob) = (id_of(&lab, "alice/sleepers"), id_of(&lab, "bob/workers"));
    let about = |kind: &str, tenant: &str, pool: &str, id: &str| json!({ kind: { "tenant_id": tenant, "pool_id": pool, "instance_id": id } });
    let hold = |selector: Value| json!({ "Hold": { "pool_id": "sleepers", "instance_selector": selector } });
    let events = |kind: &str| lab.events("alice", kind);
    let asleep = |pool: &str| (lab.state(pool), lab.info(pool)["generation"].clone());
    let before = [asleep("alice/sleepers"), asleep("bob/workers")];
    assert!(before.iter().all(|(state, _)| state == "sleeping"));

    // From a worker: nothing, not even about its own tenant.
    let requests = json!([
        about("WakeInstance", "alice", "sleepers", &sleeper),
        about("QueryInstanceStatus", "alice", "sleepers", &sleeper),
        hold("any".into()),
    ]);
    assert_all_errors(&ask_each(&lab, WORKER, &requests));
    let denied = events("HostRequestDenied");
    assert_eq!(denied.len(), 3, "{denied:?}");
    let worker = lab.instances(WORKER).remove(0);
    assert!(denied.iter().all(|entry| entry["subject"] == worker.as_str()), "{denied:?}");

    // From a gateway about another tenant, whatever it says whose machine that is.
    let requests = json!([
        about("WakeInstance", "bob", "workers", &bob),
        about("QueryInstanceStatus", "bob", "workers", &bob),
        about("WakeInstance", "alice", "workers", &bob),
        about("QueryInstanceStatus", "alice", "sleepers", &bob),
        hold(json!({ "by_instance": bob })),
        hold(json!({ "by_ip": lab.info("bob/workers")["ip"] })),
    ]);
    let answers = ask_each(&lab, GATEWAY, &requests);
    assert_all_errors(&answers);
    let denied = events("HostRequestDenied");
    assert_eq!(denied.len(), 3 + 6, "{denied:?}");
    let gateway = lab.instances(GATEWAY).remove(0);
    assert!(denied[3..].iter().all(|entry| entry["subject"] == gateway.as_str()), "{denied:?}");
    // Nor does it learn which machines another tenant has.
    let nobody = about("WakeInstance", "alice", "workers", "i-00000000");
    let nobody = ask_each(&lab, GATEWAY, &json!([nobody])).remove(0);
    let unnamed = |answer: &Value, id: &str| answer["Error"]["message"].as_str().unwrap().replace(id, "<id>");
    assert_eq!(unnamed(&answers[2], &bob), unnamed(&nobody, "i-00000000"));

    assert_eq!([asleep("alice/sleepers"), asleep("bob/workers")], before, "nothing was woken");
    assert_eq!(lab.events("bob", "InstanceWoken").len() + events("InstanceWoken").len(), 0);
    let as_service = ["instance", "exec", "--user", "echo", WORKER, "--", "python3", "-c", PRELUDE_CONNECT];
    assert!(!lab.try_mvm(&as_service).status.success(), "the socket is for root only");

    // What it may ask is answered.
    let requests = json!([
        about("QueryInstanceStatus", "alice", "sleepers", &sleeper),
        about("WakeInstance", "alice", "sleepers", &sleeper),
        about("QueryInstanceStatus", "alice", "sleepers", &sleeper),
        hold("any".into()),
    ]);
    let answers = ask_each(&lab, GATEWAY, &requests);
    let ip = &lab.info("alice/sleepers")["ip"];
    let status = |state: &str| json!({ "InstanceStatus": { "status": state, "guest_ip": ip } });
    assert_eq!(answers[0], status("sleeping"));
    assert_eq!(answers[1]["WakeResult"]["success"], true);
    assert_eq!(answers[2], status("running"));
    let generation = lab.info("alice/sleepers")["generation"].as_u64().unwrap();
    let held = json!({ "Held": { "instance_id": sleeper, "guest_ip": ip, "generation": generation } });
    assert_eq!(answers[3], held);

    // A Hold that was lost is given again in the same run only, and wakes nobody.
    let again = |generation: u64| json!([{ "Hold": { "pool_id": "sleepers", "instance_selector": { "by_instance": sleeper }, "only_if_generation": generation } }]);
    assert_eq!(ask_each(&lab, GATEWAY, &again(generation)), [held]);
    assert_all_errors(&ask_each(&lab, GATEWAY, &again(generation - 1)));
    lab.mvm(&["instance", "sleep", "alice/sleepers"]);
    assert_all_errors(&ask_each(&lab, GATEWAY, &again(generation)));
    assert_eq!(lab.state("alice/sleepers"), "sleeping");
    assert_eq!(events("HostRequestDenied").len(), 9);
    assert_eq!(events("InstanceWoken").len(), 1);
}

const PRELUDE_CONNECT: &str = "import socket; socket.socket(socket.AF_UNIX).connect('/run/mvm/host.sock')";

/// Bad frames, each on a stream of its own, while a Hold on another stream stays. Says how each stream ended, and what
/// the Hold's stream and a new one answer.
const BAD_FRAMES: &str = r#"
query, hold = arguments
held = Stream()
said = {"held": held.ask(hold)}
stream = Stream()
said["unknown"] = [stream.ask({"Dance": {}}), stream.ask("Dance"), stream.ask([1]), stream.ask(query)]
known = next(iter(query))
said["extra"] = Stream().ask({known: dict(query[known], colour="red")})
bad = {
    "garbage": struct.pack(">I", 5) + b"\xff{]}\x00",
    "empty": struct.pack(">I", 0),
    "oversized": struct.pack(">I", 256 * 1024 + 1) + b" " * 1024,
    "huge": b"\xff" * 4096,
}
for name, data in bad.items():
    stream = Stream()
    before = stream.ask(query)
    stream.send(data)
    said[name] = [before, stream.read()]
for name, data in {"cut": struct.pack(">I", 100) + b'{"Hold', "cut in its length": b"\0\0"}.items():
    stream = Stream()
    stream.send(data)
    stream.end()
    said[name] = stream.read()
longest = json.dumps(query).encode()
stream = Stream()
stream.frame(longest + b" " * (256 * 1024 - len(longest)))
said["longest"] = stream.read()
held.socket.settimeout(0.5)
try:
    said["hold ended"] = held.socket.recv(1) == b""
except TimeoutError:
    said["hold ended"] = False
said["new"] = Stream().ask(query)
say(said)
"#;

#[test]
fn a_bad_frame_ends_its_stream_and_nothing_else() {
    let lab = Lab::new();
    lab.deploy(&alice(""));
    let worker = lab.info(WORKER);
    let query = json!({ "QueryInstanceStatus": { "tenant_id": "alice", "pool_id": "workers", "instance_id": worker["id"] } });
    let hold = json!({ "Hold": { "pool_id": "workers", "instance_selector": "any" } });
    let said = script(&lab, GATEWAY, BAD_FRAMES, &[&query, &hold]);
    let status = json!({ "InstanceStatus": { "status": "running", "guest_ip": worker["ip"] } });
    assert_eq!(said["held"]["Held"]["instance_id"], worker["id"]);
    let unknown = said["unknown"].as_array().unwrap();
    assert_all_errors(&unknown[..3]);
    assert_eq!(unknown[3], status, "the stream goes on after an unknown variant");
    assert_eq!(said["extra"], status, "unknown fields are ignored");
    for bad in ["garbage", "empty", "oversized", "huge"] {
        assert_eq!(said[bad], json!([status, null]), "{bad}");
    }
    assert_eq!((&said["cut"], &said["cut in its length"]), (&Value::Null, &Value::Null));
    assert_eq!(said["longest"], status, "a frame of just the longest length is taken");
    assert_eq!(said["hold ended"], false, "another stream was touched: {said}");
    assert_eq!(said["new"], status);
    lab.wait_for("the Hold ended with its stream", || lab.info(WORKER)["holds"] == 0);
    assert_eq!(lab.get(8080, "/hello").status, 200);
}

/// Opens streams that all stay open, asks twice on each, and says how many were served and how the others ended.
const MANY_STREAMS: &str = r#"
request, = arguments
streams = [Stream() for _ in range(530)]
for stream in streams:
    stream.frame(json.dumps(request).encode())
first = [stream.read() for stream in streams]
served = [stream for stream, answer in zip(streams, first) if answer and "too many" not in json.dumps(answer)]
refused = [(stream, answer) for stream, answer in zip(streams, first) if stream not in served]
said = {
    "served": len(served),
    "refused with": sorted({json.dumps(answer) for _, answer in refused}),
    "refused ended": all(stream.read() is None for stream, _ in refused),
    "served go on": all(stream.ask(request) is not None for stream in served),
}
for stream in streams:
    stream.socket.close()
say(said)
"#;

#[test]
fn a_machine_with_too_many_streams_is_refused_at_once_and_recovers() {
    let lab = Lab::new();
    lab.deploy(&alice(""));
    let query = json!({ "QueryInstanceStatus": { "tenant_id": "alice", "pool_id": "workers", "instance_id": id_of(&lab, WORKER) } });
    for (machine, streams) in [(WORKER, 48), (GATEWAY, 496)] {
        let said = script(&lab, machine, MANY_STREAMS, &[&query]);
        assert_eq!(said["served"], streams, "{machine}: {said}");
        assert_eq!(said["served go on"], true, "{machine}: {said}");
        assert_eq!(said["refused ended"], true, "{machine}: {said}");
        let refused = said["refused with"].as_array().unwrap();
        assert!(refused.len() == 1 && refused[0].as_str().unwrap().contains("Error"), "{machine}: {said}");
        let again = ask_each(&lab, machine, &json!([query])).remove(0);
        assert!(!again.is_null(), "{machine} recovers");
        assert!(!again.to_string().contains("too many"), "{machine} recovers: {again}");
    }
    assert_eq!(lab.get(8080, "/hello").status, 200);
}
