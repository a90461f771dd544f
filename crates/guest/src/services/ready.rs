//! Whether a service is ready.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use mvm_model::service::{HttpCheck, Readiness};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use super::account::Account;
use super::children::{AfterLeader, Children, Exit};
use super::gateway_service;

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// For services that do not say.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest status line that is read, in bytes.
const STATUS_LINE: u64 = 1024;

/// When a service counts as ready.
#[derive(Debug, Clone)]
pub enum Check {
    /// When it runs.
    Running,
    /// When the gateway says that it listens.
    Gateway,
    /// When its recipe's conditions hold, all of them.
    Recipe(Readiness),
}

/// The pauses between attempts: short ones first, since most services are ready soon.
pub fn pauses() -> impl Iterator<Item = Duration> {
    std::iter::successors(Some(FIRST_PAUSE), |pause| Some((*pause * 3 / 2).min(LONGEST_PAUSE)))
}

impl Check {
    /// How long the start may take.
    pub fn timeout(&self) -> Duration {
        match self {
            Check::Recipe(readiness) => Duration::from_secs(readiness.timeout_seconds.into()),
            Check::Running | Check::Gateway => DEFAULT_TIMEOUT,
        }
    }

    /// Tries once. The reason is for people.
    ///
    /// # Errors
    /// What does not hold yet.
    pub async fn attempt(&self, account: &Account, children: &Arc<Children>) -> Result<(), String> {
        match tokio::time::timeout(ATTEMPT, self.hold(account, children)).await {
            Ok(result) => result,
            Err(_) => Err(format!("its readiness check took more than {} s", ATTEMPT.as_secs())),
        }
    }

    async fn hold(&self, account: &Account, children: &Arc<Children>) -> Result<(), String> {
        match self {
            Check::Running => Ok(()),
            Check::Gateway => gateway_service::listens(),
            Check::Recipe(readiness) => {
                if let Some(tcp) = &readiness.tcp {
                    accepts(tcp.port).await?;
                }
                if let Some(http) = &readiness.http {
                    answers(http).await?;
                }
                match &readiness.command {
                    Some(command) => succeeds(command, account, children).await,
                    None => Ok(()),
                }
            }
        }
    }
}

async fn connect(port: u16) -> Result<TcpStream, String> {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.map_err(|error| format!("port {port}: {error}"))
}

async fn accepts(port: u16) -> Result<(), String> {
    connect(port).await.map(drop)
}

async fn answers(check: &HttpCheck) -> Result<(), String> {
    let stream = connect(check.port).await?;
    let named = |what: String| format!("GET {} on port {}: {what}", check.path, check.port);
    let status = request(stream, &check.path).await.map_err(|error| named(error.to_string()))?;
    if is_success(&status) { Ok(()) } else { Err(named(status.trim_end().to_owned())) }
}

async fn request(mut stream: TcpStream, path: &str) -> io::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut status = String::new();
    BufReader::new(stream.take(STATUS_LINE)).read_line(&mut status).await?;
    Ok(status)
}

/// Whether a status line says 2xx.
fn is_success(status_line: &str) -> bool {
    let mut words = status_line.split_ascii_whitespace();
    words.next().is_some_and(|version| version.starts_with("HTTP/1."))
        && words.next().is_some_and(|code| code.len() == 3 && code.starts_with('2'))
}

async fn succeeds(command: &[String], account: &Account, children: &Arc<Children>) -> Result<(), String> {
    let mut program = account.command(command).map_err(|error| error.to_string())?;
    let null = std::process::Stdio::null;
    program.stdin(null()).stdout(null()).stderr(null());
    let (mut child, _) = children
        .spawn(&mut program, AfterLeader::Kill)
        .map_err(|error| format!("starting {}: {error}", command.join(" ")))?;
    match child.wait().await {
        Exit::Code(0) => Ok(()),
        exit => Err(format!("{} {exit}", command.join(" "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_2xx_is_success() {
        assert!(is_success("HTTP/1.1 200 OK\r\n"));
        assert!(is_success("HTTP/1.0 204\r\n"));
        for line in ["", "HTTP/1.1", "HTTP/1.1 503 Busy", "HTTP/1.1 2000 x", "SSH-2.0 200"] {
            assert!(!is_success(line), "{line}");
        }
    }

    #[test]
    fn pauses_grow_to_their_limit() {
        let pauses: Vec<_> = pauses().take(20).collect();
        assert!(pauses.is_sorted());
        assert_eq!((pauses[0], pauses[19]), (FIRST_PAUSE, LONGEST_PAUSE));
    }
}
