//! Exec and Logs: programs and logs as records.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use mvm_protocol::Stream;
use mvm_protocol::record::{self, Record};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};

use super::session::say_goodbye;
use crate::error::{Doing as _, Result};
use crate::machine::Machine;
use crate::services::account::Account;
use crate::services::children::{AfterLeader, Child};

/// What one read takes of a program's output: as much as a pipe holds.
const READ_SIZE: usize = 64 * 1024;
/// How often it is looked whether the host is still there while a program does not read its input.
const PROBE: Duration = Duration::from_secs(1);

/// A program that was started for the host.
pub(super) struct Running {
    child: Child,
    stdin: pipe::Sender,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
}

/// Starts a program as a user.
pub(super) fn start(
    machine: &Arc<Machine>,
    command: &[String],
    environment: BTreeMap<String, String>,
    user: Option<&str>,
) -> Result<Running> {
    let account = Account::find(&machine.services.users, user)?;
    let mut program = account.command(command)?;
    program.envs(environment).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    spawn(machine, program).doing(format_args!("starting {}", command.join(" ")))
}

fn spawn(machine: &Arc<Machine>, mut program: Command) -> std::io::Result<Running> {
    let (child, mut pipes) = machine.children.spawn(&mut program, AfterLeader::Leave)?;
    let missing = || std::io::Error::other("the program has no pipes");
    Ok(Running {
        child,
        stdin: pipe::Sender::from_owned_fd(pipes.stdin.take().ok_or_else(missing)?.into())?,
        stdout: pipe::Receiver::from_owned_fd(pipes.stdout.take().ok_or_else(missing)?.into())?,
        stderr: pipe::Receiver::from_owned_fd(pipes.stderr.take().ok_or_else(missing)?.into())?,
    })
}

impl Running {
    /// Carries records both ways until the program has ended and all its output is sent. When the stream ends before,
    /// or this is dropped, the program is killed with its process group.
    pub(super) async fn serve(self, stream: Stream) {
        let Running { mut child, stdin, stdout, stderr } = self;
        let (mut input, mut output) = tokio::io::split(stream);
        let finished = {
            let (ended, end) = watch::channel(false);
            let (records, mut queue) = mpsc::channel(2);
            let exit = async {
                let exit = child.wait().await;
                ended.send_replace(true);
                exit
            };
            let program = async {
                let both = async {
                    tokio::join!(
                        collect(stdout, Record::Stdout, records.clone(), end.clone()),
                        collect(stderr, Record::Stderr, records.clone(), end.clone()),
                    )
                };
                let (exit, _) = tokio::join!(exit, both);
                // Fails only when nobody listens any more.
                let _ = records.send(Record::Exit(exit.code())).await;
                let _ = records.send(Record::Eof).await;
            };
            let send = async {
                while let Some(record) = queue.recv().await {
                    let last = record == Record::Eof;
                    if record::write(&mut output, &record).await.is_err() || last {
                        return last;
                    }
                }
                false
            };
            tokio::select! {
                sent = send => sent,
                () = async { program.await; std::future::pending().await } => false,
                () = feed(&mut input, stdin, &records) => false,
            }
        };
        if finished {
            say_goodbye(&mut input.unsplit(output)).await;
        }
    }
}

/// Sends output until its end, or until nothing is left of it after the program has ended: what
/// still holds the pipe then is not the program.
async fn collect(
    mut from: pipe::Receiver,
    kind: fn(Vec<u8>) -> Record,
    to: mpsc::Sender<Record>,
    mut ended: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; READ_SIZE];
    loop {
        let count = if *ended.borrow_and_update() {
            // Read as it is: the runtime may not have heard yet that there is something.
            rustix::io::read(&from, &mut buffer).map_err(Into::into)
        } else {
            tokio::select! {
                count = from.read(&mut buffer) => count,
                _ = ended.changed() => continue,
            }
        };
        match count {
            Ok(count) if count > 0 => {
                if to.send(kind(buffer[..count].to_vec())).await.is_err() {
                    return;
                }
            }
            _ => return,
        }
    }
}

/// Gives the program its input. Returns when the host is gone.
async fn feed(input: &mut ReadHalf<Stream>, stdin: pipe::Sender, records: &mpsc::Sender<Record>) {
    let mut stdin = Some(stdin);
    loop {
        match record::read(input).await {
            Ok(Some(Record::Stdin(bytes))) => {
                if let Some(pipe) = &mut stdin
                    && write_patiently(pipe, &bytes, records).await.is_err()
                {
                    stdin = None;
                }
            }
            Ok(Some(Record::Eof)) => stdin = None,
            // There is no terminal whose size could change.
            Ok(Some(Record::Resize(..))) => {}
            Ok(Some(_) | None) | Err(_) => return,
        }
    }
}

/// Writes to a program that may not read for long. Meanwhile nobody reads the stream and would see its end, so
/// nothing is sent from time to time: it fails when the host is gone.
async fn write_patiently(
    pipe: &mut pipe::Sender,
    bytes: &[u8],
    records: &mpsc::Sender<Record>,
) -> std::io::Result<()> {
    let write = pipe.write_all(bytes);
    tokio::pin!(write);
    loop {
        tokio::select! {
            written = &mut write => return written,
            () = tokio::time::sleep(PROBE) => {
                // What cannot be sent ends the program elsewhere.
                let _ = records.send(Record::Stdout(Vec::new())).await;
            }
        }
    }
}

/// Sends a log as it is now.
pub(super) async fn send_log(mut stream: Stream, log: Vec<u8>) {
    for record in [Record::Stdout(log), Record::Eof] {
        if record::write(&mut stream, &record).await.is_err() {
            return;
        }
    }
    say_goodbye(&mut stream).await;
}
