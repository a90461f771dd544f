//! A tenant's resolver at its sockets: how much is taken at once, and from whom.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mvm_host::ResolverSockets;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::question::{Kind, Question, Reply};

/// Questions by datagram that are being answered at once, of all machines of a tenant. The kernel keeps some more.
const QUESTIONS: usize = 256;
/// And of one machine; one more fails.
const QUESTIONS_OF_ONE: u32 = 32;
/// Connections at once, of all machines of a tenant.
const CONNECTIONS: usize = 64;
/// And of one machine; one more is closed.
const CONNECTIONS_OF_ONE: u32 = 4;
/// How long a connection may be idle.
const IDLE: Duration = Duration::from_secs(10);
/// The longest question: a name, and what is said beside it.
const LONGEST: usize = 4096;

/// Questions of one machine by connection in each [`WINDOW`]; as many as the kernel lets in by datagram.
const QUESTIONS_IN_WINDOW: u32 = 200;
const WINDOW: Duration = Duration::from_secs(1);

/// What is asked of each machine that is being served.
#[derive(Debug, Clone, Default)]
struct Busy(Arc<Mutex<HashMap<Ipv4Addr, u32>>>);

/// One that is being served.
#[derive(Debug)]
struct Place {
    busy: Busy,
    who: Ipv4Addr,
}

impl Busy {
    fn enter(&self, who: Ipv4Addr, most: u32) -> Option<Place> {
        let mut busy = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = busy.entry(who).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Place { busy: self.clone(), who })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut busy = self.busy.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = busy.get_mut(&self.who) {
            *count -= 1;
            if *count == 0 {
                busy.remove(&self.who);
            }
        }
    }
}

/// Answers a tenant's machines, by datagrams and connections, as `decide` says. Ends with the task it runs in, or where the
/// sockets are of no use.
pub async fn serve<F, D>(sockets: ResolverSockets, decide: D) -> io::Result<()>
where
    D: Fn(Ipv4Addr, Kind) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    let (udp, tcp) = (UdpSocket::from_std(sockets.udp)?, TcpListener::from_std(sockets.tcp)?);
    let ended = tokio::join!(by_datagram(Arc::new(udp), decide.clone()), by_connection(tcp, decide));
    match ended {}
}

/// What a question is answered with, without asking where that is clear.
async fn reply<F: Future<Output = Reply>>(question: &Question, decided: impl FnOnce(Kind) -> F) -> Reply {
    match question.kind() {
        Kind::Malformed => Reply::Malformed,
        Kind::NotSupported => Reply::NotSupported,
        Kind::Elsewhere => Reply::Refused,
        asked => decided(asked.clone()).await,
    }
}

async fn by_datagram<F, D>(socket: Arc<UdpSocket>, decide: D) -> std::convert::Infallible
where
    D: Fn(Ipv4Addr, Kind) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    let (mut answering, busy) = (JoinSet::new(), Busy::default());
    let mut buffer = [0; LONGEST];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer), if answering.len() < QUESTIONS => received,
            Some(_) = answering.join_next() => continue,
        };
        let (length, from) = match received {
            Ok((length, SocketAddr::V4(from))) => (length, from),
            Ok(_) => continue,
            Err(error) => {
                // That an answer did not arrive, most likely: the machine has ended.
                tracing::debug!(%error, "a question could not be received");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let Some(question) = Question::read(&buffer[..length]) else { continue };
        let place = busy.enter(*from.ip(), QUESTIONS_OF_ONE);
        let (socket, decide) = (Arc::clone(&socket), decide.clone());
        answering.spawn(async move {
            let reply = match &place {
                Some(place) => reply(&question, |asked| decide(place.who, asked)).await,
                None => Reply::Failed,
            };
            if let Some(bytes) = question.answer(&reply, question.datagram()) {
                // Whoever asked may be gone.
                let _ = socket.send_to(&bytes, from).await;
            }
        });
    }
}

async fn by_connection<F, D>(listener: TcpListener, decide: D) -> std::convert::Infallible
where
    D: Fn(Ipv4Addr, Kind) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    let (mut connections, busy) = (JoinSet::new(), Busy::default());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, who) = match accepted {
            Ok((stream, from)) => match from.ip() {
                IpAddr::V4(who) => (stream, who),
                IpAddr::V6(_) => continue,
            },
            Err(error) => {
                // Out of descriptors, most likely: that passes.
                tracing::warn!(%error, "a connection to a resolver could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(place) = busy.enter(who, CONNECTIONS_OF_ONE) else { continue };
        let decide = decide.clone();
        connections.spawn(async move {
            // Whole: held until the connection ends.
            let place = place;
            if let Err(error) = answer_on(stream, |asked| decide(place.who, asked)).await {
                tracing::debug!(%error, %who, "a connection to a resolver ended");
            }
        });
    }
}

/// Answers on a connection, one question after the other, until it is closed, idle, or says what is no question.
async fn answer_on<F: Future<Output = Reply>>(
    mut stream: TcpStream,
    decide: impl Fn(Kind) -> F,
) -> io::Result<()> {
    let (mut asked, mut window) = (0, Instant::now());
    loop {
        let Some(question) = tokio::time::timeout(IDLE, receive(&mut stream)).await?? else { return Ok(()) };
        if window.elapsed() >= WINDOW {
            (asked, window) = (0, Instant::now());
        }
        asked += 1;
        if asked > QUESTIONS_IN_WINDOW / CONNECTIONS_OF_ONE {
            // Whoever asks so fast is answered more slowly.
            tokio::time::sleep_until(window + WINDOW).await;
        }
        let reply = reply(&question, &decide).await;
        let Some(bytes) = question.answer(&reply, usize::from(u16::MAX)) else { return Ok(()) };
        let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes();
        tokio::time::timeout(IDLE, stream.write_all(&[&length[..], &bytes].concat())).await??;
    }
}

async fn receive(stream: &mut TcpStream) -> io::Result<Option<Question>> {
    let length = match stream.read_u16().await {
        Ok(length) => usize::from(length),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > LONGEST {
        return Ok(None);
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(Question::read(&bytes))
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::op::{Message, Query, ResponseCode};
    use hickory_resolver::proto::rr::{Name, RecordType};

    use super::*;

    const ME: Ipv4Addr = Ipv4Addr::LOCALHOST;

    /// A resolver that knows one name and never comes to an end with another.
    async fn start() -> (SocketAddr, SocketAddr) {
        let udp = std::net::UdpSocket::bind((ME, 0)).unwrap();
        let tcp = std::net::TcpListener::bind((ME, 0)).unwrap();
        udp.set_nonblocking(true).unwrap();
        tcp.set_nonblocking(true).unwrap();
        let addresses = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
        let decide = |who, asked| async move {
            assert_eq!(who, ME);
            match asked {
                Kind::Addresses(name) if name.as_str() == "many.example.org" => {
                    Reply::Addresses(vec![Ipv4Addr::new(198, 51, 100, 7); 32], Duration::from_secs(30))
                }
                Kind::Addresses(name) if name.as_str() == "slow.example.org" => std::future::pending().await,
                _ => Reply::Refused,
            }
        };
        tokio::spawn(serve(ResolverSockets { udp, tcp }, decide));
        addresses
    }

    fn question(name: &str) -> Vec<u8> {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        message.to_vec().unwrap()
    }

    async fn ask(socket: &UdpSocket, name: &str) -> Message {
        socket.send(&question(name)).await.unwrap();
        let mut buffer = [0; 2048];
        let length = tokio::time::timeout(IDLE, socket.recv(&mut buffer)).await.unwrap().unwrap();
        Message::from_vec(&buffer[..length]).unwrap()
    }

    async fn ask_by_connection(stream: &mut TcpStream, name: &str) -> io::Result<Message> {
        let question = question(name);
        let length = u16::try_from(question.len()).unwrap().to_be_bytes();
        stream.write_all(&[&length[..], &question].concat()).await?;
        let mut answer = vec![0; stream.read_u16().await?.into()];
        stream.read_exact(&mut answer).await?;
        Ok(Message::from_vec(&answer).unwrap())
    }

    #[tokio::test]
    async fn what_is_too_long_for_a_datagram_is_asked_for_by_connection() {
        let (udp, tcp) = start().await;
        let socket = UdpSocket::bind((ME, 0)).await.unwrap();
        socket.connect(udp).await.unwrap();
        assert!(ask(&socket, "many.example.org.").await.metadata.truncation);
        assert_eq!(ask(&socket, "other.example.org.").await.metadata.response_code, ResponseCode::Refused);
        socket.send(b"no question at all").await.unwrap();
        assert_eq!(ask(&socket, "localhost.").await.metadata.response_code, ResponseCode::Refused);
        let mut stream = TcpStream::connect(tcp).await.unwrap();
        for _ in 0..2 {
            assert_eq!(ask_by_connection(&mut stream, "many.example.org.").await.unwrap().answers.len(), 32);
        }
    }

    #[tokio::test]
    async fn one_machine_has_so_many_questions_and_connections_at_once() {
        let (udp, tcp) = start().await;
        let socket = UdpSocket::bind((ME, 0)).await.unwrap();
        socket.connect(udp).await.unwrap();
        for _ in 0..QUESTIONS_OF_ONE {
            socket.send(&question("slow.example.org.")).await.unwrap();
        }
        assert_eq!(ask(&socket, "many.example.org.").await.metadata.response_code, ResponseCode::ServFail);
        let mut streams = Vec::new();
        for _ in 0..CONNECTIONS_OF_ONE {
            let mut stream = TcpStream::connect(tcp).await.unwrap();
            ask_by_connection(&mut stream, "many.example.org.").await.unwrap();
            streams.push(stream);
        }
        let mut one_more = TcpStream::connect(tcp).await.unwrap();
        ask_by_connection(&mut one_more, "many.example.org.").await.unwrap_err();
        drop(streams.pop());
        let again = || async {
            let mut stream = TcpStream::connect(tcp).await.unwrap();
            ask_by_connection(&mut stream, "many.example.org.").await
        };
        let begun = tokio::time::Instant::now();
        while again().await.is_err() {
            assert!(begun.elapsed() < IDLE, "a place is free again");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
