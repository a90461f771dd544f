//! Machines that try to reach one another and others, and tell what came of it: `probe.py`, run inside them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout};

use mvm_harness::{Lab, Value, json};

const PROBE: &str = include_str!("probe.py");
/// Where listeners answer.
pub const PORT: u16 = 7000;

/// A machine with Python, and its place in the network.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Its whole address.
    pub address: String,
    pub tenant: String,
    pub is_gateway: bool,
    pub ip: String,
    pub mac: String,
}

/// What came of trying one address, by protocol: `ok`, an error's name, or `silence`.
pub type Outcome = BTreeMap<String, String>;

impl Machine {
    /// Every instance of a pool.
    pub fn of_pool(lab: &Lab, pool: &str) -> Vec<Machine> {
        lab.instances(pool).into_iter().map(|address| Machine::new(lab, address)).collect()
    }

    fn new(lab: &Lab, address: String) -> Self {
        let info = lab.info(&address);
        let text = |key: &str| info[key].as_str().unwrap().to_owned();
        Self {
            tenant: text("tenant"),
            is_gateway: info["role"] == "gateway",
            ip: text("ip"),
            mac: text("mac"),
            address,
        }
    }

    /// The name of its tap, in its tenant's namespace.
    pub fn tap(&self) -> String {
        let bytes: Vec<u16> = self.mac.split(':').map(|b| u16::from_str_radix(b, 16).unwrap()).collect();
        format!("tn{}i{}", bytes[2] * 256 + bytes[3], bytes[4] * 256 + bytes[5])
    }

    /// The bridge, which is everyone's router: address and Ethernet address.
    pub fn router(&self) -> (String, String) {
        let net = self.ip.rsplit_once('.').unwrap().0;
        (format!("{net}.1"), format!("{}:00:01", &self.mac[..11]))
    }

    fn json(&self) -> Value {
        json!({"name": self.address, "ip": self.ip, "mac": self.mac})
    }

    /// Tries addresses, each with a name and a port, until all have answered or refused; each attempt carries a mark that
    /// says `how`.
    pub fn reach(&self, lab: &Lab, how: &str, tries: &[(&str, &str, u16)]) -> BTreeMap<String, Outcome> {
        self.try_reaching(lab, how, tries, "all")
    }

    fn try_reaching(
        &self,
        lab: &Lab,
        how: &str,
        tries: &[(&str, &str, u16)],
        until: &str,
    ) -> BTreeMap<String, Outcome> {
        let tries: Vec<Value> = tries
            .iter()
            .map(|(name, ip, port)| json!([name, ip, port, format!("<<{}|{name}|{how}>>", self.address)]))
            .collect();
        let text = lab.exec(
            &self.address,
            &["python3", "-c", PROBE, "reach", &json!(tries).to_string(), &json!(until).to_string()],
        );
        serde_json::from_str(&text).unwrap()
    }

    /// Tries other machines, which answer or refuse.
    pub fn reach_machines(&self, lab: &Lab, how: &str, others: &[&Machine]) -> BTreeMap<String, Outcome> {
        self.try_reaching(lab, how, &listening(others), "all")
    }

    /// Tries other machines, which are hardly there.
    pub fn grope_for(&self, lab: &Lab, how: &str, others: &[&Machine]) -> BTreeMap<String, Outcome> {
        self.grope(lab, how, &listening(others))
    }

    /// Tries addresses until all have answered or refused by TCP.
    pub fn grope(&self, lab: &Lab, how: &str, tries: &[(&str, &str, u16)]) -> BTreeMap<String, Outcome> {
        self.try_reaching(lab, how, tries, "tcp")
    }

    /// Sends whatever frame might slip through to others; how many there were.
    pub fn forge(&self, lab: &Lab, targets: &[&Machine], claims: &[&Machine]) -> u32 {
        let all = |machines: &[&Machine]| machines.iter().map(|machine| machine.json()).collect::<Vec<_>>();
        let (ip, mac) = self.router();
        let spec = json!({
            "me": self.json(),
            "targets": all(targets),
            "others": all(claims),
            "router": {"name": "router", "ip": ip, "mac": mac},
        });
        let sent = lab.exec(&self.address, &["python3", "-c", PROBE, "forge", &spec.to_string()]);
        sent.trim().parse().unwrap()
    }

    /// Runs a shell script in it.
    pub fn shell(&self, lab: &Lab, script: &str) -> String {
        lab.exec(&self.address, &["sh", "-c", script])
    }
}

fn listening<'a>(machines: &[&'a Machine]) -> Vec<(&'a str, &'a str, u16)> {
    machines.iter().map(|machine| (machine.address.as_str(), machine.ip.as_str(), PORT)).collect()
}

/// A machine that answers and watches its wire.
#[derive(Debug)]
pub struct Listener {
    machine: Machine,
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Listener {
    /// Starts one in each machine, and waits until they watch.
    pub fn start_all(lab: &Lab, machines: &[Machine]) -> Vec<Listener> {
        let mut listeners: Vec<Listener> = machines
            .iter()
            .map(|machine| {
                let command = ["instance", "exec", &machine.address, "--", "python3", "-c", PROBE, "listen"];
                let mut child = lab.mvm_beside(&command);
                let output = BufReader::new(child.stdout.take().unwrap());
                Listener { machine: machine.clone(), child, output }
            })
            .collect();
        for listener in &mut listeners {
            let mut line = String::new();
            listener.output.read_line(&mut line).unwrap();
            assert_eq!(line.trim(), "listening", "{}", listener.machine.address);
        }
        listeners
    }

    /// Ends it; the marks that came in, as sender, target and how.
    pub fn seen(mut self, lab: &Lab) -> (Machine, BTreeSet<(String, String, String)>) {
        self.machine.shell(lab, "touch /tmp/stop");
        let mut text = String::new();
        self.output.read_to_string(&mut text).unwrap();
        assert!(self.child.wait().unwrap().success());
        let marks: Vec<String> = serde_json::from_str(&text).unwrap();
        let parts = |mark: String| {
            let inside = mark.trim_matches(['<', '>']).to_owned();
            let mut parts = inside.splitn(3, '|').map(str::to_owned);
            (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap())
        };
        (self.machine, marks.into_iter().map(parts).collect())
    }
}
