//! A host, a world, and machines that are nothing but their taps.

use std::collections::VecDeque;
use std::fs::File;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use mvm_model::{Egress, MacAddr, NetId};
use mvm_network::{Expected, Networks, PortSpec, TenantNetwork, choose_uplink};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::frames::{BROADCAST, Seen, arp, ethernet, read, tcp, udp};

/// The host's address in the world.
pub const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// A server of the world with a public address.
pub const PUBLIC: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
/// One with a private address.
pub const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 9);
/// One where clouds have their metadata.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The port on which the world tells who asked.
pub const WHO: u16 = 4000;

/// How long to wait for what has to come, before the test fails.
pub const WAIT: Duration = Duration::from_secs(20);
/// `struct virtio_net_hdr`, before every frame of a tap with IFF_VNET_HDR.
const VNET_HEADER: usize = 10;

pub struct Lab {
    pub host: String,
    pub world: String,
    pub networks: Networks,
    others: Mutex<Vec<String>>,
}

impl Lab {
    pub fn new() -> Self {
        let id = random_id();
        let (host, world) = (format!("lab-{id}-host"), format!("lab-{id}-world"));
        for name in [&host, &world] {
            run(&["ip", "netns", "add", name]);
            run(&["ip", "-n", name, "link", "set", "lo", "up"]);
        }
        run(&["ip", "-n", &host, "link", "add", "eth0", "type", "veth", "peer", "eth0", "netns", &world]);
        for (name, address) in [(&host, "203.0.113.2/24"), (&world, "203.0.113.1/24")] {
            run(&["ip", "-n", name, "addr", "add", address, "dev", "eth0"]);
            run(&["ip", "-n", name, "link", "set", "eth0", "up"]);
        }
        run(&["ip", "-n", &host, "route", "add", "default", "via", "203.0.113.1"]);
        for address in [PUBLIC, PRIVATE, METADATA] {
            run(&["ip", "-n", &world, "addr", "add", &format!("{address}/32"), "dev", "lo"]);
        }
        let networks = within(&host, || Networks::open(random_id().parse().unwrap()).unwrap());
        Self { host, world, networks, others: Mutex::default() }
    }

    /// One more namespace, for somebody else.
    pub fn namespace(&self, who: &str) -> String {
        let name = format!("{}-{who}", self.host);
        self.others.lock().unwrap().push(name.clone());
        run(&["ip", "netns", "add", &name]);
        name
    }

    /// Another agent on the same host.
    pub fn another_agent(&self) -> Networks {
        within(&self.host, || Networks::open(random_id().parse().unwrap()).unwrap())
    }

    /// The same agent, started again.
    pub fn restarted(&self) -> Networks {
        let tag = self.networks.tag().clone();
        within(&self.host, || Networks::open(tag).unwrap())
    }

    pub fn plan(&self, net_id: u64) -> TenantNetwork {
        let net_id = NetId::new(net_id).unwrap();
        let uplink = choose_uplink(&self.networks.taken_networks().unwrap()).unwrap();
        TenantNetwork { net_id, subnet: net_id.default_subnet(), uplink }
    }

    pub fn tenant(&self, net_id: u64) -> TenantNetwork {
        let network = self.plan(net_id);
        self.networks.ensure(&network).unwrap();
        network
    }

    pub fn inside(&self, network: &TenantNetwork) -> String {
        self.networks.tag().namespace(network.net_id)
    }

    /// Answers datagrams to every address of the world with the address that they came from.
    pub fn serve_who(&self) {
        for address in [PUBLIC, PRIVATE, METADATA] {
            self.serve_in(&self.world, address);
        }
    }

    pub fn serve_in(&self, namespace: &str, address: Ipv4Addr) {
        let socket = within(namespace, || UdpSocket::bind((address, WHO)).unwrap());
        // Ends with the test's process.
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(from.ip().to_string().as_bytes(), from);
            }
        });
    }

    pub fn setting(&self, key: &str) -> String {
        within(&self.host, || {
            std::fs::read_to_string(format!("/proc/sys/net/{key}")).unwrap().trim().to_owned()
        })
    }

    pub fn set(&self, namespace: &str, key: &str, value: &str) {
        within(namespace, || std::fs::write(format!("/proc/sys/net/{key}"), value).unwrap());
    }

    pub fn nft(&self, namespace: &str, command: &str) -> String {
        let mut arguments = vec!["ip", "netns", "exec", namespace, "nft"];
        arguments.extend(command.split(' '));
        run(&arguments)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let removed = self.networks.remove_all();
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        for name in [&self.host, &self.world].into_iter().chain(others.iter()) {
            let _ = Command::new("ip").args(["netns", "delete", name]).status();
        }
        if !std::thread::panicking() {
            removed.unwrap();
        }
    }
}

fn random_id() -> String {
    let mut bytes = [0; 3];
    getrandom::fill(&mut bytes).unwrap();
    bytes.map(|byte| format!("{byte:02x}")).concat()
}

/// Runs a program, which has to succeed.
pub fn run(arguments: &[&str]) -> String {
    let output = Command::new(arguments[0]).args(&arguments[1..]).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs on a thread in a named namespace.
pub fn within<T: Send>(namespace: &str, act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let act = || {
            let file = File::open(format!("/run/netns/{namespace}")).unwrap();
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(LinkNameSpaceType::Network))
                .unwrap();
            act()
        };
        scope.spawn(act).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

pub fn port(network: &TenantNetwork, offset: u16, isolated: bool, egress: Egress) -> PortSpec {
    let ip = network.subnet.machine_ip(offset).unwrap();
    PortSpec { offset, mac: network.net_id.mac(offset), ip, isolated, egress }
}

pub fn only(rules: &[&str]) -> Egress {
    Egress::Only(rules.iter().map(|rule| rule.parse().unwrap()).collect())
}

pub fn expected(network: &TenantNetwork, machines: &[&Machine]) -> Expected {
    Expected { network: *network, ports: machines.iter().map(|machine| machine.port.clone()).collect() }
}

/// A machine: its tap, and no more wit than to answer ARP requests for its address.
pub struct Machine {
    pub port: PortSpec,
    pub network: TenantNetwork,
    pub tap: OwnedFd,
    arrived: Mutex<VecDeque<Seen>>,
}

impl Machine {
    pub fn start(lab: &Lab, network: &TenantNetwork, port: PortSpec) -> Self {
        let tap = lab.networks.attach(network, &port).unwrap();
        Self { port, network: *network, tap, arrived: Mutex::new(VecDeque::new()) }
    }

    pub fn worker(lab: &Lab, network: &TenantNetwork, offset: u16) -> Self {
        Self::start(lab, network, port(network, offset, true, Egress::None))
    }

    pub fn gateway(lab: &Lab, network: &TenantNetwork, offset: u16) -> Self {
        Self::start(lab, network, port(network, offset, false, Egress::None))
    }

    pub fn mac(&self) -> MacAddr {
        self.port.mac
    }

    pub fn ip(&self) -> Ipv4Addr {
        self.port.ip
    }

    /// The MAC address of `.1`.
    pub fn router(&self) -> MacAddr {
        self.network.net_id.mac(1)
    }

    pub fn send(&self, frame: &[u8]) {
        let bytes = [&[0; VNET_HEADER], frame].concat();
        assert_eq!(rustix::io::write(&self.tap, &bytes).unwrap(), bytes.len());
    }

    /// A datagram to a peer on the bridge, honestly.
    pub fn say(&self, peer: &Self, payload: &[u8]) {
        let packet = udp((self.ip(), 7), (peer.ip(), 7), payload);
        self.send(&ethernet(peer.mac(), self.mac(), 0x0800, &packet));
    }

    /// A datagram by way of `.1`.
    pub fn send_udp(&self, to: (Ipv4Addr, u16), payload: &[u8]) {
        self.send(&ethernet(self.router(), self.mac(), 0x0800, &udp((self.ip(), 5000), to, payload)));
    }

    /// A segment by way of `.1`.
    pub fn send_tcp(&self, to: (Ipv4Addr, u16), flags: u8) {
        self.send(&ethernet(self.router(), self.mac(), 0x0800, &tcp((self.ip(), 5001), to, flags)));
    }

    /// Waits for a frame; what arrived before it is returned with it, in order.
    pub fn until(&self, what: &str, wanted: impl Fn(&Seen) -> bool) -> Vec<Seen> {
        let mut seen = Vec::new();
        loop {
            let next = self.arrived.lock().unwrap().pop_front();
            let Some(frame) = next.or_else(|| self.receive()) else {
                panic!("{what} did not arrive, but {seen:?}")
            };
            let found = wanted(&frame);
            seen.push(frame);
            if found {
                return seen;
            }
        }
    }

    /// Waits for this payload; what else arrived before it.
    pub fn hears(&self, payload: &[u8]) -> Vec<Seen> {
        let text = String::from_utf8_lossy(payload);
        let mut seen =
            self.until(&text, |frame| matches!(frame, Seen::Udp { payload: found, .. } if found == payload));
        seen.pop();
        seen
    }

    /// Who the world says asks, when asked at this address.
    pub fn asks_who(&self, address: Ipv4Addr) -> Answer {
        self.send_udp((address, WHO), b"who");
        let seen = self.until("an answer", |frame| match frame {
            Seen::Udp { from, .. } => *from == (address, WHO),
            Seen::Icmp { kind, .. } => *kind == 3,
            _ => false,
        });
        match seen.last() {
            Some(Seen::Udp { payload, .. }) => {
                Answer::From(String::from_utf8_lossy(payload).parse().unwrap())
            }
            // Communication administratively prohibited.
            Some(Seen::Icmp { code: 13, .. }) => Answer::Refused,
            other => panic!("unexpected answer {other:?}"),
        }
    }

    /// What a connection attempt is answered with.
    pub fn connects(&self, to: (Ipv4Addr, u16)) -> Answer {
        use crate::frames::{ACK, RST, SYN};
        self.send_tcp(to, SYN);
        let seen = self.until("an answer", |frame| matches!(frame, Seen::Tcp { from, .. } if *from == to));
        match seen.last() {
            Some(Seen::Tcp { flags, .. }) if flags & RST != 0 => Answer::Refused,
            Some(Seen::Tcp { flags, .. }) if *flags == SYN | ACK => Answer::From(to.0),
            other => panic!("unexpected answer {other:?}"),
        }
    }

    fn receive(&self) -> Option<Seen> {
        loop {
            let mut waiting = [PollFd::new(&self.tap, PollFlags::IN)];
            let timeout = WAIT.try_into().unwrap();
            if poll(&mut waiting, Some(&timeout)).unwrap() == 0 {
                return None;
            }
            let mut buffer = [0; 4096];
            let Ok(length) = rustix::io::read(&self.tap, &mut buffer[..]) else { continue };
            let frame = read(&buffer[VNET_HEADER..length]);
            match &frame {
                Seen::Arp { request: true, sender, target } if *target == self.ip() => {
                    let answer = arp(2, (self.mac(), self.ip()), *sender);
                    self.send(&ethernet(sender.0, self.mac(), 0x0806, &answer));
                }
                _ => return Some(frame),
            }
        }
    }

    /// Asks for the MAC address of an address, of everybody.
    pub fn asks_for(&self, address: Ipv4Addr) {
        let question = arp(1, (self.mac(), self.ip()), (MacAddr([0; 6]), address));
        self.send(&ethernet(BROADCAST, self.mac(), 0x0806, &question));
    }
}

#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// Answered; by (or, of `asks_who`, as) this address.
    From(Ipv4Addr),
    Refused,
}
