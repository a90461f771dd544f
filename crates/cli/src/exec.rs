//! `mvm instance exec` and `shell`: a program in a machine, with its streams or a terminal, and its exit code.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::pending;
use std::io::{self, IsTerminal as _};
use std::task::Poll;

use clap::Args;
use futures::{Stream, StreamExt as _};
use mvm_protocol::api::ExecRequest;
use mvm_protocol::record::{self, Record};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};

use crate::address::InstanceAddress;
use crate::connection::Connection;
use crate::failure::Failure;
use crate::terminal;

/// As a shell says that a signal ended a program.
const SIGNALED: u8 = 128;
/// Bytes of standard input sent at once.
const PIECE: usize = 32 << 10;

/// Run a program in it; exits as the program does
///
/// Standard output and error are the program's, and so is standard input where it is a file or a pipe, or with -i. Exits
/// as the program does (128 and the signal's number where a signal ended it), or with 125 where mvm itself failed. When
/// this command is ended, the program in the machine is ended too. A machine that sleeps is woken.
#[derive(Debug, Args)]
pub struct Exec {
    /// The instance, as alice/workers/i-0000002a, alice/workers/i-00, or alice/workers if it has only one
    instance: InstanceAddress,
    /// Pass on what is typed here
    #[arg(short, long)]
    interactive: bool,
    /// Run it on a terminal of its own; with -i, as if it ran here
    #[arg(short, long)]
    tty: bool,
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

/// Open a shell in it
///
/// The same as `mvm instance exec -it` with the machine's bash, or its sh where it has none. A machine that sleeps is woken.
#[derive(Debug, Args)]
pub struct Shell {
    /// The instance, as alice/workers/i-0000002a, alice/workers/i-00, or alice/workers if it has only one
    instance: InstanceAddress,
    /// As this user of the machine [default: root]
    #[arg(short, long, value_name = "NAME")]
    user: Option<String>,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

impl Shell {
    /// Runs the shell; its exit code.
    ///
    /// # Errors
    /// As [`Exec::run`], or there is no terminal here.
    pub async fn run(self, connection: &Connection) -> Result<u8, Failure> {
        if !io::stdin().is_terminal() {
            let why = "standard input is no terminal; run a program with `mvm instance exec`";
            let failure = Failure::io("cannot open a shell", io::Error::other(why));
            return Err(Failure::Exec(Box::new(failure)));
        }
        let script = "if command -v bash >/dev/null; then exec bash -l; else exec sh -l; fi";
        let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let Self { instance, user } = self;
        let exec = Exec { instance, interactive: true, tty: true, environment: Vec::new(), user, command };
        exec.run(connection).await
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
        let mut environment: BTreeMap<_, _> = self.environment.into_iter().collect();
        let terminal = self.tty.then(terminal::size);
        if let (true, Ok(kind)) = (self.tty, std::env::var("TERM")) {
            environment.entry("TERM".to_owned()).or_insert(kind);
        }
        let request = ExecRequest { command: self.command, environment, user: self.user, terminal };
        let client = connection.agent().await?;
        let unwatched = |error| Failure::io("cannot watch for signals", error);
        let mut interrupt = signal(SignalKind::interrupt()).map_err(unwatched)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(unwatched)?;
        let reads = self.interactive || !io::stdin().is_terminal();
        let is_passed_on = self.tty && reads;
        let instance = self.instance.to_string();
        let program = async {
            let (stream, woken) = client.upgrade(&path, &request).await?;
            if let Some(millis) = woken {
                tell_woken(&instance, millis);
            }
            let _raw = if is_passed_on { terminal::raw()? } else { None };
            let (mut out, mut err) = (tokio::io::stdout(), tokio::io::stderr());
            let input = input(reads.then(tokio::io::stdin), self.tty)?;
            attach(stream, input, &mut out, &mut err).await.map_err(|error| match error {
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

/// Tells whoever wanted to work in a machine that it slept: a message for people, beside what a program writes.
pub fn tell_woken(instance: &str, millis: u64) {
    eprintln!("{instance} was asleep and was woken in {millis} ms");
}

/// Standard input up to its end.
fn pieces<I: AsyncRead + Unpin>(stdin: I) -> impl Stream<Item = Record> {
    futures::stream::unfold(Some(stdin), |stdin| async {
        let mut stdin = stdin?;
        let mut buffer = vec![0; PIECE];
        match stdin.read(&mut buffer).await {
            Ok(0) | Err(_) => Some((Record::Eof, None)),
            Ok(length) => {
                buffer.truncate(length);
                Some((Record::Stdin(buffer), Some(stdin)))
            }
        }
    })
}

/// What goes to the program: standard input up to its end, and, on a terminal, each new size of the one here.
fn input<I>(stdin: Option<I>, is_terminal: bool) -> Result<impl Stream<Item = Record> + Unpin, Failure>
where
    I: AsyncRead + Unpin + 'static,
{
    let typed = match stdin {
        Some(stdin) => pieces(stdin).boxed_local(),
        // On a terminal the end of input would be typed.
        None if is_terminal => futures::stream::pending().boxed_local(),
        None => futures::stream::iter([Record::Eof]).boxed_local(),
    };
    let mut resized = match is_terminal {
        true => Some(
            signal(SignalKind::window_change())
                .map_err(|error| Failure::io("cannot watch for signals", error))?,
        ),
        false => None,
    };
    let sizes = futures::stream::poll_fn(move |cx| match &mut resized {
        Some(signal) => signal.poll_recv(cx),
        None => Poll::Ready(None),
    });
    let sizes = sizes.map(|()| {
        let size = terminal::size();
        Record::Resize(size.columns, size.rows)
    });
    Ok(Box::pin(futures::stream::select(typed, sizes)))
}

/// Why a program's end was not seen.
#[derive(Debug)]
pub enum Detached {
    /// What it wrote could not be written here.
    Output(io::Error),
    /// The connection broke.
    Stream(String),
}

/// Connects a stream of records with the three standard streams until the program has ended; its exit code.
async fn attach<S, I, O, E>(stream: S, input: I, stdout: &mut O, stderr: &mut E) -> Result<u8, Detached>
where
    S: AsyncRead + AsyncWrite,
    I: Stream<Item = Record> + Unpin,
    O: AsyncWrite + Unpin,
    E: AsyncWrite + Unpin,
{
    let (mut from_program, mut to_program) = tokio::io::split(stream);
    tokio::select! {
        code = receive(&mut from_program, stdout, stderr) => code,
        never = send(input, &mut to_program) => match never {},
    }
}

/// Sends what is for the program. One that does not read it, or has ended, is no mistake.
async fn send<I, W>(mut input: I, to_program: &mut W) -> Infallible
where
    I: Stream<Item = Record> + Unpin,
    W: AsyncWrite + Unpin,
{
    while let Some(record) = input.next().await {
        if record::write(to_program, &record).await.is_err() {
            break;
        }
    }
    pending().await
}

/// Writes what a program writes until it has ended; its exit code.
pub async fn receive<R, O, E>(from_program: &mut R, stdout: &mut O, stderr: &mut E) -> Result<u8, Detached>
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
        let (code, _there) = tokio::join!(
            attach(here, input(Some(tokio::io::empty()), false).unwrap(), &mut out, &mut err),
            said_by(there, records)
        );
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
        let (code, ()) =
            tokio::join!(attach(here, input(Some(stdin), false).unwrap(), &mut out, &mut err), program);
        assert_eq!(code.unwrap(), 200);
    }

    #[tokio::test]
    async fn an_end_without_an_exit_code_is_a_failure() {
        let (here, there) = duplex(64);
        drop(said_by(there, vec![Record::Stdout(b"a".to_vec())]).await);
        let result =
            attach(here, input(Some(tokio::io::empty()), false).unwrap(), &mut Vec::new(), &mut Vec::new())
                .await;
        assert!(matches!(result, Err(Detached::Stream(_))), "{result:?}");
    }
}
