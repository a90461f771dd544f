//! What is outside of mvm's host: a namespace with servers, and the host's default route to it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mvm_harness::{Lab, Namespace};

/// The host's own address on the link to the outside.
pub const HOST: &str = "203.0.113.1";
/// The first of the outside's addresses.
pub const SERVER: &str = "203.0.113.2";

/// The outside, and what reached its servers.
pub struct Outside {
    namespace: Namespace,
    addresses: Vec<String>,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Outside {
    /// Joins the lab's host with an outside that has these addresses besides [`SERVER`].
    pub fn new(lab: &Lab, addresses: &[&str]) -> Self {
        let namespace = Namespace::new(&format!("{}-out", lab.host().name()));
        let net = |ip: &str| format!("{ip}/24");
        lab.host().join(("out0", &net(HOST)), &namespace, ("eth0", &net(SERVER)));
        lab.host().run("ip", &["route", "add", "default", "via", SERVER]);
        namespace.run("ip", &["link", "set", "lo", "up"]);
        namespace.run("ip", &["route", "add", "default", "via", HOST]);
        for address in addresses {
            namespace.run("ip", &["addr", "add", &format!("{address}/32"), "dev", "lo"]);
        }
        let addresses = addresses.iter().chain(&[SERVER]).map(|&address| address.to_owned()).collect();
        Self { namespace, addresses, heard: Arc::default() }
    }

    /// Answers on a port with what it is sent, by TCP and UDP, at every address of the outside.
    pub fn serve(&self, port: u16) {
        for address in &self.addresses {
            serve(&self.namespace, address, port, &self.heard);
        }
    }

    /// Where it is.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// What came in so far; forgets it.
    pub fn heard(&self) -> Vec<String> {
        std::mem::take(&mut self.heard.lock().unwrap())
    }
}

/// Answers on a port of an address with what it is sent.
pub fn serve(namespace: &Namespace, address: &str, port: u16, heard: &Arc<Mutex<Vec<String>>>) {
    let tcp = namespace.inside(|| TcpListener::bind((address, port)).unwrap());
    let udp = namespace.inside(|| UdpSocket::bind((address, port)).unwrap());
    let (by_tcp, by_udp) = (Arc::clone(heard), Arc::clone(heard));
    std::thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            let heard = Arc::clone(&by_tcp);
            std::thread::spawn(move || echo(&mut stream, &heard));
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, sender)) = udp.recv_from(&mut buffer) {
            note(&by_udp, &buffer[..length]);
            // Whoever asked may be gone.
            let _ = udp.send_to(&buffer[..length], sender);
        }
    });
}

fn echo(stream: &mut TcpStream, heard: &Mutex<Vec<String>>) {
    let mut buffer = [0; 2048];
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    // A connection alone is heard too.
    note(heard, b"a connection");
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        note(heard, &buffer[..length]);
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

fn note(heard: &Mutex<Vec<String>>, bytes: &[u8]) {
    heard.lock().unwrap().push(String::from_utf8_lossy(bytes).into_owned());
}
