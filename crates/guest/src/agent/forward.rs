//! Forward: a connection to a port of this machine's loopback, as records.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use mvm_protocol::Stream;
use mvm_protocol::record::{self, Record};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::session::say_goodbye;
use crate::error::{Doing as _, Result};

/// What one read takes.
const READ_SIZE: usize = 32 * 1024;

/// How long a service may take to accept a connection: one whose queue is full does not even say that it is.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Connects to a port.
pub(super) async fn connect(port: u16, within: Duration) -> Result<TcpStream> {
    let connected = timeout(within, TcpStream::connect((Ipv4Addr::LOCALHOST, port))).await;
    let connected = connected.unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("the service has not accepted in {within:?}")))
    });
    let server = connected.doing(format_args!("connecting to 127.0.0.1:{port} in the machine"))?;
    server.set_nodelay(true).doing("setting up a connection")?;
    Ok(server)
}

/// Carries bytes until both directions have ended, each in its own time.
pub(super) async fn serve(stream: Stream, server: TcpStream) {
    let (mut input, mut output) = tokio::io::split(stream);
    let (mut from_server, mut to_server) = server.into_split();
    let both =
        async { tokio::try_join!(send(&mut input, &mut to_server), receive(&mut from_server, &mut output)) };
    // Where one breaks, so does the other: dropped, the stream and the connection are reset.
    if both.await.is_ok() {
        say_goodbye(&mut input.unsplit(output)).await;
    }
}

async fn send(input: &mut ReadHalf<Stream>, to_server: &mut OwnedWriteHalf) -> std::io::Result<()> {
    loop {
        match record::read(input).await.map_err(std::io::Error::other)? {
            Some(Record::Stdin(bytes)) => to_server.write_all(&bytes).await?,
            Some(Record::Eof) => return to_server.shutdown().await,
            Some(_) => {}
            None => return Err(std::io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

async fn receive(from_server: &mut OwnedReadHalf, output: &mut WriteHalf<Stream>) -> std::io::Result<()> {
    let mut buffer = vec![0; READ_SIZE];
    loop {
        match from_server.read(&mut buffer).await? {
            0 => return record::write(output, &Record::Eof).await,
            count => record::write(output, &Record::Stdout(buffer[..count].to_vec())).await?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_service_that_does_not_accept_is_not_waited_for_without_end() {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let listener = socket.listen(1).unwrap();
        let port = listener.local_addr().unwrap().port();
        let within = Duration::from_millis(300);
        let mut waiting = Vec::new();
        let full = loop {
            match connect(port, within).await {
                Ok(connection) => waiting.push(connection),
                Err(error) => break error.to_string(),
            }
        };
        assert!(full.ends_with("the service has not accepted in 300ms"), "{full}");
    }
}
