//! What a worker cannot do.

use mvm_harness::{Lab, NOWHERE, forms, has_in_memory, holders};

use crate::alice::{ALICE, ELSEWHERE, GATEWAY, KNOWN, OUTSIDE, Outside, alice, vmm};
use crate::probe::{Listener, Machine, PORT};

/// Alice's worker: of two that one whose name is hers.
const WORKER: &str = "alice/alice";
/// Another user of the tenant, to Telegram.
const BOB: i64 = 778;
/// Where a worker takes updates from its gateway.
const WEBHOOK: u16 = 8787;
/// Another tenant.
const CAROL: &str = r#"
[tenant]
id = "carol"
[[pools]]
id = "workers"
image = "python"
vcpus = 1
mem_mib = 192
desired_running = 1
spares = 0
"#;

/// Asks something by HTTP from inside the worker, and gives status and body, or why there is none.
const ASK: &str = r#"
import sys, json, urllib.request, urllib.error
method, url, headers, body = json.loads(sys.argv[1])
request = urllib.request.Request(url, body.encode() if body else None, headers, method=method)
try:
    answer = urllib.request.urlopen(request, timeout=10)
    print(answer.status, answer.read().decode(errors="replace"))
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode(errors="replace"))
except OSError as error:
    print("no answer:", error)
"#;

struct Worker<'a> {
    lab: &'a Lab,
    gateway: String,
    token: String,
}

impl Worker<'_> {
    fn new(lab: &Lab) -> Worker<'_> {
        let token = lab.exec(WORKER, &["/bin/cat", "/run/secrets/openclaw/OPENCLAW_GATEWAY_TOKEN"]);
        Worker { lab, gateway: lab.info(GATEWAY)["ip"].as_str().unwrap().to_owned(), token }
    }

    fn ask(&self, method: &str, url: &str, headers: &[(&str, &str)], body: &str) -> String {
        let headers: std::collections::BTreeMap<_, _> = headers.iter().copied().collect();
        let asked = serde_json::json!([method, url, headers, body]).to_string();
        self.lab.exec(WORKER, &["/usr/bin/python3", "-c", ASK, &asked])
    }

    fn bot(&self, method: &str, body: &str) -> String {
        let url = format!("http://{}:8788/telegram/bot1:{}/{method}", self.gateway, self.token.trim());
        self.ask("POST", &url, &[("Content-Type", "application/json")], body)
    }
}

fn awake() -> (Lab, Outside) {
    let (lab, outside, _) = alice(&format!("{KNOWN}[[users]]\nname = \"bob\"\ntelegram = {BOB}\n"));
    outside.talk(ALICE, "wake up");
    (lab, outside)
}

#[test]
fn a_worker_speaks_in_its_own_chat_by_few_methods_and_knows_no_key() {
    let (lab, outside) = awake();
    let worker = Worker::new(&lab);
    let before = outside.bot.calls().len();
    for (method, body) in [
        ("sendMessage", r#"{"chat_id": 778, "text": "psst"}"#),
        ("sendMessage", r#"{"chat_id": "@everyone", "text": "psst"}"#),
        ("sendMessage", r#"{"chat_id": 777, "chat_id": 778, "text": "psst"}"#),
        ("forwardMessage", r#"{"chat_id": 777, "from_chat_id": 778, "message_id": 1}"#),
        ("sendMessage", r#"{"text": "psst"}"#),
        ("getUpdates", "{}"),
        ("logOut", "{}"),
        ("setMyName", r#"{"name": "mallory"}"#),
        ("banChatMember", r#"{"chat_id": 777, "user_id": 777}"#),
    ] {
        let answer = worker.bot(method, body);
        assert!(answer.starts_with('4'), "{method} {body}: {answer}");
    }
    let made: Vec<_> = outside.bot.calls()[before..].iter().map(|call| call.method.clone()).collect();
    assert!(made.iter().all(|method| method == "getUpdates"), "none of it reached the Bot API: {made:?}");
    assert!(worker.bot("setWebhook", r#"{"url": "https://example.com"}"#).starts_with("200"));
    assert_eq!(outside.bot.mistakes(), [""; 0], "the gateway answers that itself");
    assert!(worker.bot("sendMessage", r#"{"chat_id": 777, "text": "mine"}"#).starts_with("200"));

    // Nor with another's token, nor from elsewhere.
    let other = format!("http://{}:8788/telegram/bot1:{}/getMe", worker.gateway, "A".repeat(43));
    assert!(worker.ask("POST", &other, &[], "{}").starts_with("40"));
    let key = ("x-api-key", worker.token.trim());
    let models = format!("http://{}:8788/anthropic/v1/models", worker.gateway);
    let version = ("anthropic-version", "2023-06-01");
    assert!(worker.ask("GET", &models, &[key, version], "").starts_with("200"));
    assert!(worker.ask("GET", &models, &[("x-api-key", "wrong"), version], "").starts_with("40"));

    let pid = vmm(&lab, WORKER);
    let instances = lab.data_dir().join("instances").join(lab.info(WORKER)["id"].as_str().unwrap());
    for secret in [&outside.bot_token, &outside.model_key] {
        assert!(!has_in_memory(&lab, pid, &forms(secret)));
        assert_eq!(holders(&lab, &forms(secret), std::slice::from_ref(&instances)), NOWHERE);
    }
    assert!(has_in_memory(&lab, pid, &[worker.token.trim().to_owned()]), "the search finds what is there");
}

#[test]
fn a_worker_reaches_the_gateway_and_nothing_else() {
    let (lab, outside) = awake();
    let worker = Worker::new(&lab);
    let bridge = {
        let ip: std::net::Ipv4Addr = worker.gateway.parse().unwrap();
        let [a, b, c, _] = ip.octets();
        format!("{a}.{b}.{c}.1")
    };
    for target in [
        format!("http://{OUTSIDE}:8081/"),
        format!("http://{OUTSIDE}:8082/"),
        format!("http://{ELSEWHERE}/"),
        "http://203.0.113.1/".to_owned(),
        format!("http://{bridge}/"),
        "http://169.254.169.254/".to_owned(),
    ] {
        let answer = worker.ask("GET", &target, &[], "");
        assert!(answer.starts_with("no answer"), "{target}: {answer}");
    }
    // Nor has it the gateway fetch for it.
    let heard = outside.namespace().inside(|| std::net::TcpListener::bind((ELSEWHERE, 80)).unwrap());
    heard.set_nonblocking(true).unwrap();
    let key = ("x-api-key", worker.token.trim());
    let elsewhere = format!("{ELSEWHERE}:80");
    for (path, headers) in [
        (format!("/anthropic@{elsewhere}/v1/models"), vec![key]),
        (format!("/anthropic/v1/models?url=http://{elsewhere}/"), vec![key]),
        ("/anthropic/v1/models".to_owned(), vec![key, ("Host", elsewhere.as_str())]),
        (format!("/anthropic//{elsewhere}/v1/models"), vec![key]),
        (format!("/telegram/file/bot1:{}/..%2F..%2F{elsewhere}", worker.token.trim()), vec![]),
        (format!("/telegram/file/bot1:{}/photos/file_1.jpg", worker.token.trim()), vec![]),
    ] {
        let url = format!("http://{}:8788{path}", worker.gateway);
        worker.ask("GET", &url, &headers, "");
    }
    let absolute = "import socket, sys\nc = socket.create_connection((sys.argv[1], 8788), 5)\n\
                    c.sendall(b'GET http://' + sys.argv[2].encode() + b'/ HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n')\nprint(c.recv(99))";
    lab.exec(WORKER, &["/usr/bin/python3", "-c", absolute, &worker.gateway, &elsewhere]);
    assert!(heard.accept().is_err(), "nobody came there");
    others_are_out_of_reach(&lab, &outside);
}

/// Another worker of the tenant, one of another tenant, and the host: all of them listen, and hear nothing of her.
fn others_are_out_of_reach(lab: &Lab, outside: &Outside) {
    outside.talk(BOB, "wake up");
    lab.deploy(CAROL);
    let id = lab.info(WORKER)["id"].as_str().unwrap().to_owned();
    let workers = Machine::of_pool(lab, "alice/workers").into_iter();
    let (hers, mut others): (Vec<_>, Vec<_>) = workers.partition(|worker| worker.address.ends_with(&id));
    others.extend(Machine::of_pool(lab, "carol/workers"));
    let ([hers], [bobs, carols]) = (hers.as_slice(), others.as_slice()) else {
        panic!("{hers:?} {others:?}")
    };

    let host = lab.host().inside(|| std::net::TcpListener::bind(("0.0.0.0", PORT)).unwrap());
    host.set_nonblocking(true).unwrap();
    let listeners = Listener::start_all(lab, &others);
    let open = others.iter().map(|other| (other.address.as_str(), other.ip.as_str(), PORT));
    for (target, at) in others.iter().zip(open.clone()) {
        let itself = target.reach(lab, "itself", &[at]);
        assert!(itself[at.0].values().all(|how| how == "ok"), "{itself:?}");
    }
    let mut tries: Vec<_> = open.collect();
    tries.push(("bob's webhook", &bobs.ip, WEBHOOK));
    for (target, outcome) in hers.grope(lab, "directly", &tries) {
        assert!(outcome.values().all(|how| how != "ok"), "{target}: {outcome:?}");
        // A connection that nobody answers would be silence.
        let refused = matches!(outcome["tcp"].as_str(), "ECONNREFUSED" | "EHOSTUNREACH");
        assert!(refused, "{target}: {outcome:?}");
    }
    let (mine, carols_router) = (hers.router().0, carols.router().0);
    let hosts = ["203.0.113.1", &mine, &carols_router].map(|ip| (ip, ip, PORT));
    for (target, outcome) in hers.grope(lab, "directly", &hosts) {
        assert!(outcome.values().all(|how| how != "ok"), "{target}: {outcome:?}");
    }
    let gateways = Machine::of_pool(lab, GATEWAY);
    assert!(hers.forge(lab, &[bobs, carols], &[&gateways[0]]) > 0);
    assert!(host.accept().is_err(), "nobody came there");

    // What his gateway brings to that webhook, bob's worker hears.
    let brought = ("gateway", "bob", "update");
    outside.talk(BOB, "<<gateway|bob|update>>");
    for listener in listeners {
        let (listener, heard) = listener.seen(lab);
        let came =
            |(by, to, how): &(String, String, String)| (by.as_str(), to.as_str(), how.as_str()) == brought;
        assert_eq!(heard.iter().any(came), listener.address == bobs.address, "{listener:?}: {heard:?}");
        assert!(heard.iter().all(came), "{} heard {heard:?}", listener.address);
    }
}
