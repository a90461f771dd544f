//! `mvm instance exec`: a program in a machine, with its streams and its exit code.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::pending;
use std::io;

use clap::Args;
use mvm_protocol::api::ExecRequest;
use mvm_protocol::record::{self, Record};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};

use crate::address::InstanceAddress;
use crate::connection::Connection;
use crate::failure::Failure;

/// As a shell says that a signal ended a program.
const SIGNALED: u8 = 128;
/// Bytes of standard input sent at once.
const PIECE: usize = 32 << 10;

/// Run a program in it; exits as the program does
///
/// Standard input, output and error are the program's; it gets no terminal. Exits as the program does (128 and the
/// signal's number where a signal ended it), or with 125 where mvm itself failed. When this command is ended, the
/// program in the machine is ended too.
#[derive(Debug, Args)]
pub struct Exec {
    /// The instance, as alice/workers/i-0000002a, alice/workers/i-00, or alice/workers if it has only one
    instance: InstanceAddress,
    /// Add to the program's environment; may be repeated
    #[arg(short, long = "env", value_name = "KEY=VALUE", value_parser = variable)]
    environment: Vec<(String, String)>,
    /// Run it as this user of the machine [default: root]
    #[arg(short, long, value_name = "NAME")]
    user: Option<String>,
    /// The program and its arguments; no shell in between
    #[arg(trailing_var_arg = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

impl Exec {
    /// Runs the program; its exit code.
    ///
    /// # Errors
    /// [`Failure::Exec`]: whatever kept mvm from running it or from seeing its end.
    pub async fn run(self, connection: &Connection) -> Result<u8, Failure> {
        self.attached(connection).await.map_err(|failure| Failure::Exec(Box::new(failure)))
    }

    async fn attached(self, connection: &Connection) -> Result<u8, Failure> {
        let path = format!("{}/exec", self.instance.path());
        let environment: BTreeMap<_, _> = self.environment.into_iter().collect();
        let request = ExecRequest { command: self.command, environment, user: self.user };
        let client = connection.agent().await?;
        let unwatched = |error| Failure::io("cannot watch for signals", error);
        let mut interrupt = signal(SignalKind::interrupt()).map_err(unwatched)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(unwatched)?;
        let program = async {
            let stream = client.upgrade(&path, &request).await?;
            let (mut out, mut err) = (tokio::io::stdout(), tokio::io::stderr());
            attach(stream, tokio::io::stdin(), &mut out, &mut err).await.map_err(|error| match error {
                Detached::Output(error) => Failure::io("cannot write what the program wrote", error),
                Detached::Stream(why) => client.broken(why),
            })
        };
        // Dropping the stream is what ends the program in the machine.
        tokio::select! {
            code = program => code,
            _ = interrupt.recv() => Ok(SIGNALED + 2),
            _ = terminate.recv() => Ok(SIGNALED + 15),
        }
    }
}

/// Why a program's end was not seen.
#[derive(Debug)]
enum Detached {
    /// What it wrote could not be written here.
    Output(io::Error),
    /// The connection broke.
    Stream(String),
}

/// Connects a stream of records with the three standard streams until the program has ended; its exit code.
async fn attach<S, I, O, E>(stream: S, stdin: I, stdout: &mut O, stderr: &mut E) -> Result<u8, Detached>
where
    S: AsyncRead + AsyncWrite,
    I: AsyncRead + Unpin,
    O: AsyncWrite + Unpin,
    E: AsyncWrite + Unpin,
{
    let (mut from_program, mut to_program) = tokio::io::split(stream);
    tokio::select! {
        code = receive(&mut from_program, stdout, stderr) => code,
        never = send(stdin, &mut to_program) => match never {},
    }
}

/// Sends standard input up to its end. A program that does not read it, or has ended, is no mistake.
async fn send<I, W>(mut stdin: I, to_program: &mut W) -> Infallible
where
    I: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; PIECE];
    loop {
        let record = match stdin.read(&mut buffer).await {
            Ok(0) | Err(_) => Record::Eof,
            Ok(length) => Record::Stdin(buffer[..length].to_vec()),
        };
        let sent = record::write(to_program, &record).await;
        if sent.is_err() || record == Record::Eof {
            return pending().await;
        }
    }
}

async fn receive<R, O, E>(from_program: &mut R, stdout: &mut O, stderr: &mut E) -> Result<u8, Detached>
where
    R: AsyncRead + Unpin,
    O: AsyncWrite + Unpin,
    E: AsyncWrite + Unpin,
{
    loop {
        match record::read(from_program).await {
            Ok(Some(Record::Stdout(bytes))) => write(stdout, &bytes).await?,
            Ok(Some(Record::Stderr(bytes))) => write(stderr, &bytes).await?,
            // A process's exit code is its lowest byte, here as there.
            Ok(Some(Record::Exit(code))) => return Ok(code.to_le_bytes()[0]),
            Ok(Some(Record::Eof | Record::Resize(..))) => {}
            Ok(Some(Record::Stdin(_))) => return Err(Detached::Stream("it sent input".to_owned())),
            Ok(None) => return Err(Detached::Stream("it stopped before the program's end".to_owned())),
            Err(error) => return Err(Detached::Stream(error.to_string())),
        }
    }
}

async fn write<W: AsyncWrite + Unpin>(to: &mut W, bytes: &[u8]) -> Result<(), Detached> {
    to.write_all(bytes).await.map_err(Detached::Output)?;
    to.flush().await.map_err(Detached::Output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{DuplexStream, duplex};

    async fn said_by(mut program: DuplexStream, records: Vec<Record>) -> DuplexStream {
        for record in records {
            record::write(&mut program, &record).await.unwrap();
        }
        program
    }

    #[tokio::test]
    async fn streams_stay_apart_and_the_exit_code_is_the_programs() {
        let (here, there) = duplex(64);
        let records = vec![
            Record::Stdout(b"a".to_vec()),
            Record::Stderr(b"b".to_vec()),
            Record::Stdout(b"c".to_vec()),
            Record::Eof,
            Record::Exit(137),
        ];
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let (code, _there) =
            tokio::join!(attach(here, tokio::io::empty(), &mut out, &mut err), said_by(there, records));
        assert_eq!((code.unwrap(), out.as_slice(), err.as_slice()), (137, &b"ac"[..], &b"b"[..]));
    }

    #[tokio::test]
    async fn input_ends_with_eof_and_the_program_goes_on() {
        let (here, mut there) = duplex(64);
        let program = async {
            let mut input = Vec::new();
            while let Some(Record::Stdin(bytes)) = record::read(&mut there).await.unwrap() {
                input.extend(bytes);
            }
            record::write(&mut there, &Record::Exit(i32::try_from(input.len()).unwrap())).await.unwrap();
        };
        let stdin = &[7; 200][..];
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let (code, ()) = tokio::join!(attach(here, stdin, &mut out, &mut err), program);
        assert_eq!(code.unwrap(), 200);
    }

    #[tokio::test]
    async fn an_end_without_an_exit_code_is_a_failure() {
        let (here, there) = duplex(64);
        drop(said_by(there, vec![Record::Stdout(b"a".to_vec())]).await);
        let result = attach(here, tokio::io::empty(), &mut Vec::new(), &mut Vec::new()).await;
        assert!(matches!(result, Err(Detached::Stream(_))), "{result:?}");
    }
}
