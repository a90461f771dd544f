//! A tenant of OpenClaw, and the services outside that it uses.

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use mvm_fakes::{BotApi, BotCall, ModelApi};
use mvm_harness::{Lab, Namespace, checkout, fresh};
use serde_json::Value;

/// Where the services outside are.
pub const OUTSIDE: &str = "198.51.100.7";
/// Another address out there, which nobody names.
pub const ELSEWHERE: &str = "198.51.100.8";
/// Alice to Telegram.
pub const ALICE: i64 = 777;
/// Her worker.
pub const WORKER: &str = "alice/workers";
/// The gateway.
pub const GATEWAY: &str = "alice/gateways";
/// How long an answer may take on a busy host.
pub const ANSWERED: Duration = Duration::from_secs(180);

/// What is outside of mvm's host.
pub struct Outside {
    pub bot: BotApi,
    pub model: ModelApi,
    pub bot_token: String,
    pub model_key: String,
    namespace: Namespace,
}

impl Outside {
    /// Joins a lab's host with an outside in which the services are.
    pub fn new(lab: &Lab) -> Self {
        let namespace = Namespace::new(&format!("{}-out", lab.host().name()));
        lab.host().join(("out0", "203.0.113.1/24"), &namespace, ("eth0", "203.0.113.2/24"));
        lab.host().run("ip", &["route", "add", "default", "via", "203.0.113.2"]);
        namespace.run("ip", &["link", "set", "lo", "up"]);
        namespace.run("ip", &["route", "add", "default", "via", "203.0.113.1"]);
        for address in [OUTSIDE, ELSEWHERE] {
            namespace.run("ip", &["addr", "add", &format!("{address}/32"), "dev", "lo"]);
        }
        let listen = |port: u16| namespace.inside(|| TcpListener::bind((OUTSIDE, port)).unwrap());
        let (bot_token, model_key) = (format!("123456:{}", fresh()), format!("sk-ant-{}", fresh()));
        let bot = BotApi::start(listen(8081), &bot_token).unwrap();
        let model = ModelApi::start(listen(8082), &model_key).unwrap();
        Self { bot, model, bot_token, model_key, namespace }
    }

    /// Its namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// A deploy.toml with the secrets' files, and more; machines are as small as the stand-in needs them.
    pub fn config(&self, lab: &Lab, more: &str) -> PathBuf {
        let workers = "[overrides.workers]\nvcpus = 1\nmem_mib = 256\ndata_disk_mib = 64\n";
        self.config_with_workers(lab, &format!("{workers}{more}"))
    }

    /// The same where `more` says how large workers are.
    pub fn config_with_workers(&self, lab: &Lab, more: &str) -> PathBuf {
        let bot = lab.file("telegram.token", &self.bot_token);
        let key = lab.file("anthropic.key", &self.model_key);
        let text = format!(
            "[secrets]\nanthropic_key = {{ file = {key:?} }}\ntelegram_token = {{ file = {bot:?} }}\n\
             [endpoints]\ntelegram = \"{}\"\nanthropic = \"{}\"\n\
             [overrides.gateways]\nvcpus = 1\nmem_mib = 256\ndata_disk_mib = 64\n{more}",
            self.bot.url(),
            self.model.url(),
        );
        lab.file("deploy.toml", &text)
    }

    /// What was said to a person, in order.
    pub fn said(&self, person: i64) -> Vec<BotCall> {
        let mut calls = self.bot.calls_of("sendMessage");
        calls.retain(|call| call.chat_id() == Some(person));
        calls
    }

    /// Says something and waits until that was answered.
    #[track_caller]
    pub fn talk(&self, person: i64, text: &str) {
        self.bot.push_message(person, text);
        self.wait_for_answer(person, text);
    }

    /// Waits until a person was told something that has this in it.
    #[track_caller]
    pub fn wait_for_answer(&self, person: i64, text: &str) {
        self.wait_for_answer_within(ANSWERED, person, text);
    }

    /// The same with another patience.
    #[track_caller]
    pub fn wait_for_answer_within(&self, patience: Duration, person: i64, text: &str) {
        let told = |call: &BotCall| {
            call.method == "sendMessage" && call.chat_id() == Some(person) && call.text().contains(text)
        };
        if let Err(calls) = self.bot.wait_for(|calls| calls.iter().any(told), patience) {
            let calls: Vec<_> =
                calls.iter().map(|call| (&call.method, call.chat_id(), call.text())).collect();
            panic!("{text:?} was not answered: {calls:?}; mistakes: {:?}", self.bot.mistakes());
        }
    }
}

/// The recipe of the stand-in.
pub fn standin() -> String {
    checkout().join("tests/openclaw/worker").canonicalize().unwrap().display().to_string()
}

/// A lab with alice's tenant, and with more in her deploy.toml.
pub fn alice(more: &str) -> (Lab, Outside, String) {
    let lab = Lab::new();
    let outside = Outside::new(&lab);
    let config = outside.config(&lab, more);
    let printed =
        lab.mvm(&["new", "openclaw", "alice", "--config", config.to_str().unwrap(), "--image", &standin()]);
    (lab, outside, printed)
}

/// Whom the gateway knows as alice, from the beginning.
pub const KNOWN: &str = "[[users]]\nname = \"alice\"\ntelegram = 777\n";

/// Puts a machine to sleep.
pub fn sleep(lab: &Lab, instance: &str) {
    lab.mvm(&["instance", "sleep", instance]);
    assert_eq!(lab.state(instance), "sleeping");
}

/// A machine's VMM.
pub fn vmm(lab: &Lab, instance: &str) -> u32 {
    u32::try_from(lab.info(instance)["pid"].as_u64().unwrap()).unwrap()
}

/// What a worker has taken, as lines of `<update_id> <chat> <text>`.
pub fn taken(lab: &Lab) -> Vec<String> {
    let log = lab.exec(WORKER, &["/bin/cat", "/data/openclaw/updates.log"]);
    log.lines().map(str::to_owned).collect()
}

/// How often a machine woke so far.
pub fn wakes(lab: &Lab, instance: &str) -> usize {
    let id = lab.info(instance)["id"].as_str().unwrap().to_owned();
    let of_it = |event: &Value| event["subject"].as_str().is_some_and(|subject| subject.ends_with(&id));
    lab.events("alice", "InstanceWoken").into_iter().filter(of_it).count()
}
