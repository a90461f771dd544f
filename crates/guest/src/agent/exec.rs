//! Exec: a program as records.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use mvm_protocol::Stream;
use mvm_protocol::control::TerminalSize;
use mvm_protocol::record::{self, Record};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};

use super::session::say_goodbye;
use super::terminal::Terminal;
use crate::error::{Doing as _, Result};
use crate::machine::Machine;
use crate::services::account::Account;
use crate::services::children::{AfterLeader, Child};

/// What one read takes of a program's output: as much as a pipe holds.
const READ_SIZE: usize = 64 * 1024;
/// What a terminal was given before its program ended comes out within this.
const LINGER: Duration = Duration::from_millis(200);
/// Ctrl-D, which is the end of input at the beginning of a line.
const END_OF_TRANSMISSION: u8 = 4;
/// How often it is looked whether the host is still there while a program does not read its input.
const PROBE: Duration = Duration::from_secs(1);

/// A program that was started for the host.
pub(super) struct Running {
    child: Child,
    stdin: pipe::Sender,
    stdout: pipe::Receiver,
    /// None on a terminal, which has one stream for all output.
    stderr: Option<pipe::Receiver>,
    terminal: Option<Terminal>,
}

/// What the host asks for.
pub(super) struct Program {
    pub(super) command: Vec<String>,
    pub(super) environment: BTreeMap<String, String>,
    pub(super) user: Option<String>,
    pub(super) terminal: Option<TerminalSize>,
}

/// Starts a program as a user.
pub(super) fn start(machine: &Arc<Machine>, program: Program) -> Result<Running> {
    let Program { command, environment, user, terminal } = program;
    let account = Account::find(&machine.services.users, user.as_deref())?;
    let doing = format!("starting {}", command.join(" "));
    let Some(size) = terminal else {
        let mut program = account.command(&command)?;
        program.envs(environment).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        return spawn(machine, program).doing(doing);
    };
    let mut program = account.command_without_group(&command)?;
    program.envs(environment);
    spawn_on_terminal(machine, program, size, account.uid).doing(doing)
}

fn spawn(machine: &Arc<Machine>, mut program: Command) -> std::io::Result<Running> {
    let (child, mut pipes) = machine.children.spawn(&mut program, AfterLeader::Leave)?;
    let missing = || std::io::Error::other("the program has no pipes");
    Ok(Running {
        child,
        stdin: pipe::Sender::from_owned_fd(pipes.stdin.take().ok_or_else(missing)?.into())?,
        stdout: pipe::Receiver::from_owned_fd(pipes.stdout.take().ok_or_else(missing)?.into())?,
        stderr: Some(pipe::Receiver::from_owned_fd(pipes.stderr.take().ok_or_else(missing)?.into())?),
        terminal: None,
    })
}

fn spawn_on_terminal(
    machine: &Arc<Machine>,
    mut program: Command,
    size: TerminalSize,
    owner: u32,
) -> std::io::Result<Running> {
    let (terminal, inside) = Terminal::open(size, owner)?;
    program.stdin(inside.try_clone()?).stdout(inside.try_clone()?).stderr(inside);
    crate::sys::lead_session_on_terminal(&mut program);
    let (child, _) = machine.children.spawn(&mut program, AfterLeader::Leave)?;
    // The program's ends are the command's: while they are open here, the terminal's end is never seen.
    drop(program);
    Ok(Running {
        child,
        stdin: terminal.writer()?,
        stdout: terminal.reader()?,
        stderr: None,
        terminal: Some(terminal),
    })
}

impl Running {
    /// Carries records both ways until the program has ended and all its output is sent. When the stream ends before,
    /// or this is dropped, the program is killed with its process group.
    pub(super) async fn serve(self, stream: Stream) {
        let Running { mut child, stdin, stdout, stderr, terminal } = self;
        let linger = terminal.as_ref().map(|_| LINGER);
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
                    let errors = async {
                        if let Some(stderr) = stderr {
                            collect(stderr, Record::Stderr, records.clone(), end.clone(), None).await;
                        }
                    };
                    let output = collect(stdout, Record::Stdout, records.clone(), end.clone(), linger);
                    tokio::join!(output, errors)
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
                () = feed(&mut input, stdin, terminal.as_ref(), &records) => false,
            }
        };
        if finished {
            say_goodbye(&mut input.unsplit(output)).await;
        }
    }
}

/// Sends output until its end, or until nothing is left of it after the program has ended: what
/// still holds the pipe then is not the program. A terminal passes on what it was given a little later.
async fn collect(
    mut from: pipe::Receiver,
    kind: fn(Vec<u8>) -> Record,
    to: mpsc::Sender<Record>,
    mut ended: watch::Receiver<bool>,
    linger: Option<Duration>,
) {
    let mut buffer = vec![0; READ_SIZE];
    loop {
        let has_ended = *ended.borrow_and_update();
        let count = if let (true, Some(linger)) = (has_ended, linger) {
            let read = tokio::time::timeout(linger, from.read(&mut buffer)).await;
            read.unwrap_or(Ok(0))
        } else if has_ended {
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
async fn feed(
    input: &mut ReadHalf<Stream>,
    stdin: pipe::Sender,
    terminal: Option<&Terminal>,
    records: &mpsc::Sender<Record>,
) {
    let mut stdin = Some(stdin);
    let mut at_line_start = true;
    loop {
        match record::read(input).await {
            Ok(Some(Record::Stdin(bytes))) => {
                at_line_start = bytes.last().map_or(at_line_start, |last| *last == b'\n');
                if let Some(pipe) = &mut stdin
                    && write_patiently(pipe, &bytes, records).await.is_err()
                {
                    stdin = None;
                }
            }
            Ok(Some(Record::Eof)) => {
                // A terminal has no end but the one that is typed.
                if let (Some(pipe), Some(_)) = (&mut stdin, terminal) {
                    // In the middle of a line the first one only hands on what there is of it.
                    let typed = [END_OF_TRANSMISSION; 2];
                    let count = if at_line_start { 1 } else { 2 };
                    let _ = write_patiently(pipe, &typed[..count], records).await;
                }
                stdin = None;
            }
            Ok(Some(Record::Resize(columns, rows))) => {
                if let Some(terminal) = terminal {
                    terminal.resize(TerminalSize { columns, rows });
                }
            }
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
