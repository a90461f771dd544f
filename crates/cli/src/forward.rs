//! `mvm instance forward`: ports of this host that lead into a machine.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use clap::Args;
use mvm_model::InstanceState;
use mvm_protocol::api::{ForwardRequest, InstanceInfo};
use mvm_protocol::record::{self, Record};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::address::InstanceAddress;
use crate::client::Client;
use crate::connection::Connection;
use crate::exec::tell_woken;
use crate::failure::Failure;

/// Bytes that are carried at once.
const PIECE: usize = 32 << 10;

/// Let ports of this host lead to ports in it, until Ctrl-C
///
/// Listens on 127.0.0.1 and connects to 127.0.0.1 in the machine, so what listens there only for the machine itself is
/// reached too. The first connection to a machine that sleeps wakes it; while one is open, it does not go to sleep by
/// itself, and after that the next one wakes it again.
#[derive(Debug, Args)]
pub struct Forward {
    /// The instance, as alice/workers/i-0000002a, alice/workers/i-00, or alice/workers if it has only one
    instance: InstanceAddress,
    /// 8080:80 leads port 8080 here to port 80 there, 80 the same one, :80 a free one; an address in front is listened on in
    /// place of 127.0.0.1, as 0.0.0.0:8080:80
    #[arg(required = true, value_name = "[ADDRESS:][PORT:]PORT")]
    ports: Vec<PortPair>,
}

/// A port here and one there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PortPair {
    here: SocketAddr,
    there: u16,
}

impl FromStr for PortPair {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "write 8080:80, 80, :80, or an address in front, as 0.0.0.0:8080:80".to_owned();
        let (rest, there) = text.rsplit_once(':').unwrap_or((text, text));
        let there = there.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        let (address, here) = rest.rsplit_once(':').unwrap_or(("127.0.0.1", rest));
        let address = address.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(address);
        let address: IpAddr = match address {
            "localhost" => Ipv4Addr::LOCALHOST.into(),
            address => address.parse().map_err(|_| wrong())?,
        };
        let here = if here.is_empty() { 0 } else { here.parse().map_err(|_| wrong())? };
        Ok(Self { here: SocketAddr::new(address, here), there })
    }
}

impl fmt::Display for PortPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} leads to port {}", self.here, self.there)
    }
}

/// A port that is listened on, and where it leads.
struct Listening {
    listener: TcpListener,
    ports: PortPair,
}

/// What all connections have in common.
struct Way {
    client: Client,
    instance: InstanceAddress,
}

impl Forward {
    /// Runs the command. Ends by a signal only.
    ///
    /// # Errors
    /// A port cannot be listened on, or the machine is none that can be woken.
    pub async fn run(self, connection: &Connection) -> Result<u8, Failure> {
        let client = connection.agent().await?;
        let info: InstanceInfo = client.get(&self.instance.path()).await?;
        let summary = info.summary;
        // That one, whatever the name comes to mean meanwhile.
        let instance = InstanceAddress::of(&summary.tenant, &summary.pool, summary.id);
        match summary.state {
            InstanceState::Running | InstanceState::Warm | InstanceState::Sleeping => {}
            state => {
                let why = format!("{instance} is {state}: `mvm instance start {instance}` makes it run");
                return Err(Failure::NotDone(why));
            }
        }
        let mut listening = Vec::new();
        for ports in self.ports {
            listening.push(Listening::bind(ports).await?);
        }
        for Listening { ports, .. } in &listening {
            eprintln!("{ports} of {instance}");
        }
        let way = Arc::new(Way { client, instance });
        let accepting = listening.into_iter().map(|listening| listening.accept(Arc::clone(&way)));
        futures::future::join_all(accepting).await;
        Ok(0)
    }
}

impl Listening {
    async fn bind(mut ports: PortPair) -> Result<Self, Failure> {
        let failed = |error: io::Error| {
            let help = match error.kind() {
                io::ErrorKind::AddrInUse => {
                    "; `ss -ltnp` names who has it, `:80` in place of `8080:80` takes a free one"
                }
                _ => "",
            };
            Failure::NotDone(format!("cannot listen on {}: {error}{help}", ports.here))
        };
        let listener = TcpListener::bind(ports.here).await.map_err(failed)?;
        ports.here = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, ports })
    }

    async fn accept(self, way: Arc<Way>) {
        loop {
            match self.listener.accept().await {
                Ok((connection, _)) => {
                    let (way, there) = (Arc::clone(&way), self.ports.there);
                    tokio::spawn(async move {
                        if let Err(failure) = way.carry(connection, there).await {
                            eprintln!("a connection to port {there} failed: {failure}");
                        }
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: that passes.
                    eprintln!("a connection was not taken: {error}");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Way {
    /// Carries one connection; one that cannot be carried is closed.
    async fn carry(&self, connection: TcpStream, port: u16) -> Result<(), Failure> {
        let path = format!("{}/forward", self.instance.path());
        let (stream, woken) = self.client.upgrade(&path, &ForwardRequest { port }).await?;
        if let Some(millis) = woken {
            tell_woken(&self.instance.to_string(), millis);
        }
        connection.set_nodelay(true).map_err(|error| Failure::io("cannot set up a connection", error))?;
        let (from_guest, to_guest) = tokio::io::split(stream);
        let (from_here, to_here) = connection.into_split();
        let broke = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Failure::NotDone("its other end was cut off".to_owned()),
            _ => Failure::NotDone(error.to_string()),
        };
        tokio::try_join!(send(from_here, to_guest), receive(from_guest, to_here)).map(drop).map_err(broke)
    }
}

/// Carries what is written here into the machine, and the end of it.
async fn send(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        match from.read(&mut buffer).await? {
            0 => return record::write(&mut to, &Record::Eof).await,
            count => record::write(&mut to, &Record::Stdin(buffer[..count].to_vec())).await?,
        }
    }
}

/// Carries what comes out of the machine, and the end of it.
async fn receive(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    loop {
        match record::read(&mut from).await.map_err(io::Error::other)? {
            Some(Record::Stdout(bytes)) => to.write_all(&bytes).await?,
            Some(Record::Eof) => return to.shutdown().await,
            Some(_) => {}
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_written_as_for_kubectl_and_docker() {
        let read = |text: &str| text.parse::<PortPair>().map(|pair| (pair.here.to_string(), pair.there));
        for (text, here, there) in [
            ("8080:80", "127.0.0.1:8080", 80),
            ("80", "127.0.0.1:80", 80),
            (":80", "127.0.0.1:0", 80),
            ("0.0.0.0:8080:80", "0.0.0.0:8080", 80),
            ("localhost:8080:80", "127.0.0.1:8080", 80),
            ("[::1]:8080:80", "[::1]:8080", 80),
            ("127.0.0.1::80", "127.0.0.1:0", 80),
        ] {
            assert_eq!(read(text), Ok((here.to_owned(), there)), "{text}");
        }
        for wrong in ["", "x", "8080:", "8080:0", "70000:80", "example.org:1:2", "1:2:3", "::"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
