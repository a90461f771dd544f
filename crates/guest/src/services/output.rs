//! A program's output, of both kinds, in one log.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

use super::children::{AfterLeader, Child, Children};
use super::log::RotatingLog;
use crate::lock;

/// Starts a program without input and with its output in one pipe.
///
/// # Errors
/// The program could not be started.
pub fn spawn(
    children: &Arc<Children>,
    mut program: Command,
    after_leader: AfterLeader,
) -> io::Result<(Child, pipe::Receiver)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let second: OwnedFd = write.try_clone()?;
    program.stdin(Stdio::null()).stdout(write).stderr(second);
    let (child, _) = children.spawn(&mut program, after_leader)?;
    // The program's ends of the pipe must not stay open here, or its end would never be seen.
    drop(program);
    Ok((child, pipe::Receiver::from_owned_fd(read)?))
}

/// Appends output to a log until nobody can write any more.
pub async fn keep(mut output: pipe::Receiver, log: Arc<Mutex<RotatingLog>>) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(count) = output.read(&mut buffer).await
        && count > 0
    {
        // A log that cannot be written is no reason to stop a program.
        let _ = lock(&log).append(&buffer[..count]);
    }
}
