//! The resolvers of the host, which are asked for the names that machines may reach.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RData};
use mvm_model::HostName;

/// An answer holds at least so long, as each takes time to be let in, and a machine that was told it has to get there.
pub(super) const SHORTEST: Duration = Duration::from_secs(30);
/// And at most so long, whatever it says.
pub(super) const LONGEST: Duration = Duration::from_secs(3600);
/// That there is no answer may change soon.
const LONGEST_NEGATIVE: Duration = Duration::from_secs(60);
/// Per try; machines give up after some seconds.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Addresses of one name: more are of no use to anybody.
const MAX_ADDRESSES: usize = 32;
/// Answers that are kept.
const CACHE: u64 = 4096;
/// Where the host's resolvers are written.
const SYSTEM: &str = "/etc/resolv.conf";

/// The host's resolvers, or those that the agent was given instead.
#[derive(Debug)]
pub struct Upstream {
    given: Vec<SocketAddr>,
    current: Mutex<Option<Current>>,
}

struct Current {
    /// Of the file it was made from.
    changed: Option<SystemTime>,
    resolver: TokioResolver,
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current").field("changed", &self.changed).finish_non_exhaustive()
    }
}

/// What there is of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Addresses, and for how long they are the name's.
    Addresses(Vec<Ipv4Addr>, Duration),
    /// It has no IPv4 address.
    Nothing,
    /// There is no such name.
    NoName,
}

/// A name could not be looked up.
#[derive(Debug, thiserror::Error)]
#[error("{name} could not be looked up: {why}")]
pub struct LookupFailed {
    name: HostName,
    why: String,
}

impl Upstream {
    /// Asks the resolvers that are given or, where none is, those of /etc/resolv.conf.
    pub fn new(given: Vec<SocketAddr>) -> Self {
        Self { given, current: Mutex::default() }
    }

    /// Looks up a name's IPv4 addresses, aliases followed. Answers are kept for their time.
    ///
    /// # Errors
    /// Where no resolver answers.
    pub async fn look_up(&self, name: &HostName) -> Result<Found, LookupFailed> {
        let failed =
            |error: &dyn std::fmt::Display| LookupFailed { name: name.clone(), why: error.to_string() };
        let mut whole = Name::from_ascii(name.as_str()).map_err(|error| failed(&error))?;
        // Else it would be tried in the host's search domains.
        whole.set_fqdn(true);
        let resolver = self.resolver().map_err(|error| failed(&error))?;
        let found = match resolver.ipv4_lookup(whole).await {
            Ok(found) => found,
            Err(error) if error.is_nx_domain() => return Ok(Found::NoName),
            Err(error) if error.is_no_records_found() => return Ok(Found::Nothing),
            Err(error) => return Err(failed(&error)),
        };
        let addresses = found.answers().iter().filter_map(|record| match &record.data {
            RData::A(address) => Some(address.0),
            _ => None,
        });
        let addresses: Vec<Ipv4Addr> = addresses.take(MAX_ADDRESSES).collect();
        let left = found.valid_until().saturating_duration_since(Instant::now());
        Ok(if addresses.is_empty() {
            Found::Nothing
        } else {
            Found::Addresses(addresses, left.clamp(SHORTEST, LONGEST))
        })
    }

    /// The resolver of now: the host's file changes as it moves between networks.
    fn resolver(&self) -> Result<TokioResolver, NetError> {
        let changed = match self.given.is_empty() {
            true => Path::new(SYSTEM).metadata().and_then(|file| file.modified()).ok(),
            false => None,
        };
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = current.as_ref().filter(|current| current.changed == changed) {
            return Ok(current.resolver.clone());
        }
        let resolver = self.make()?;
        *current = Some(Current { changed, resolver: resolver.clone() });
        Ok(resolver)
    }

    fn make(&self) -> Result<TokioResolver, NetError> {
        let mut builder = if self.given.is_empty() {
            TokioResolver::builder_tokio()?
        } else {
            let servers = self.given.iter().map(server).collect();
            let config = ResolverConfig::from_name_servers(servers);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        };
        settle(builder.options_mut());
        builder.build()
    }
}

fn server(address: &SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

fn settle(options: &mut ResolverOpts) {
    options.use_hosts_file = ResolveHosts::Never;
    options.cache_size = CACHE;
    options.timeout = TIMEOUT;
    options.attempts = 2;
    options.positive_min_ttl = Some(SHORTEST);
    options.positive_max_ttl = Some(LONGEST);
    options.negative_max_ttl = Some(LONGEST_NEGATIVE);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hickory_resolver::proto::op::{Message, ResponseCode};
    use hickory_resolver::proto::rr::rdata::{A, CNAME};
    use hickory_resolver::proto::rr::{Record, RecordType};
    use tokio::net::UdpSocket;

    use super::*;

    /// A resolver that knows some names, and what it was asked.
    async fn server() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (address, asked) = (socket.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let noted = Arc::clone(&asked);
        tokio::spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let mut message = Message::from_vec(&buffer[..length]).unwrap().into_response();
                let name = message.queries[0].name().clone();
                assert_eq!(message.queries[0].query_type(), RecordType::A);
                noted.lock().unwrap().push(name.to_ascii());
                let a = |name: &Name, ttl, last| {
                    Record::from_rdata(name.clone(), ttl, RData::A(A::new(198, 51, 100, last)))
                };
                match name.to_ascii().as_str() {
                    "short.example.org." => drop(message.add_answer(a(&name, 1, 7))),
                    "long.example.org." => {
                        message.add_answers([a(&name, 1_000_000, 7), a(&name, 1_000_000, 8)]);
                    }
                    "alias.example.org." => {
                        let real = Name::from_ascii("real.example.net.").unwrap();
                        let alias = Record::from_rdata(name, 600, RData::CNAME(CNAME(real.clone())));
                        message.add_answers([alias, a(&real, 300, 9)]);
                    }
                    "empty.example.org." => {}
                    "broken.example.org." => message.metadata.response_code = ResponseCode::ServFail,
                    _ => message.metadata.response_code = ResponseCode::NXDomain,
                }
                socket.send_to(&message.to_vec().unwrap(), from).await.unwrap();
            }
        });
        (address, asked)
    }

    fn name(text: &str) -> HostName {
        HostName::new(text).unwrap()
    }

    #[tokio::test]
    async fn names_are_looked_up_at_the_resolvers_that_are_given() {
        let (address, asked) = server().await;
        let upstream = Upstream::new(vec![address]);
        let found = |text: &str| {
            let name = name(text);
            let upstream = &upstream;
            async move { upstream.look_up(&name).await.unwrap() }
        };
        let last = |number| Ipv4Addr::new(198, 51, 100, number);
        assert_eq!(found("short.example.org").await, Found::Addresses(vec![last(7)], SHORTEST));
        let Found::Addresses(mut addresses, ttl) = found("long.example.org").await else {
            panic!("no addresses")
        };
        addresses.sort();
        assert_eq!(addresses, [last(7), last(8)]);
        assert!(ttl <= LONGEST && ttl > LONGEST - Duration::from_secs(10), "{ttl:?}");
        let Found::Addresses(addresses, ttl) = found("alias.example.org").await else {
            panic!("no addresses")
        };
        assert!(addresses == [last(9)] && ttl <= Duration::from_secs(300), "{addresses:?} {ttl:?}");
        assert_eq!(found("empty.example.org").await, Found::Nothing);
        assert_eq!(found("missing.example.org").await, Found::NoName);
        let before = asked.lock().unwrap().len();
        assert_eq!(found("short.example.org").await, Found::Addresses(vec![last(7)], SHORTEST));
        assert_eq!(asked.lock().unwrap().len(), before, "kept, whatever its own time was");
        assert!(asked.lock().unwrap().iter().all(|name| name.ends_with(".example.org.")), "{asked:?}");
    }

    #[tokio::test]
    async fn a_resolver_that_fails_is_an_error_and_another_is_asked() {
        let (address, _) = server().await;
        let broken = Upstream::new(vec![address]).look_up(&name("broken.example.org")).await.unwrap_err();
        assert!(broken.to_string().contains("broken.example.org could not be looked up"), "{broken}");
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let both = Upstream::new(vec![silent, address]);
        assert!(matches!(both.look_up(&name("short.example.org")).await, Ok(Found::Addresses(..))));
    }
}
