//! A program's terminal: the kernel's pseudoterminal, of which the program has one end and the host the other.

use std::io;
use std::os::fd::OwnedFd;

use mvm_protocol::control::TerminalSize;
use rustix::fs::{Gid, Mode, OFlags, Uid, fchown, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::net::unix::pipe;

use crate::console::say;

/// The host's end.
pub(super) struct Terminal(OwnedFd);

impl Terminal {
    /// A new terminal of this size, and the end for a program of this user.
    pub(super) fn open(size: TerminalSize, owner: u32) -> io::Result<(Self, OwnedFd)> {
        let outside = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&outside)?;
        unlockpt(&outside)?;
        let name = ptsname(&outside, Vec::new())?;
        let inside = open(&name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
        fchown(&inside, Some(Uid::from_raw(owner)), None::<Gid>)?;
        rustix::io::ioctl_fionbio(&outside, true)?;
        let terminal = Self(outside);
        terminal.set_size(size)?;
        Ok((terminal, inside))
    }

    /// Changes its size; the programs on it are told by the kernel.
    pub(super) fn resize(&self, size: TerminalSize) {
        if let Err(error) = self.set_size(size) {
            say(format_args!("resizing a terminal: {error}"));
        }
    }

    fn set_size(&self, size: TerminalSize) -> io::Result<()> {
        let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(&self.0, size)?)
    }

    /// For what the program is to read. Not a pipe, but read and written as one.
    pub(super) fn writer(&self) -> io::Result<pipe::Sender> {
        pipe::Sender::from_owned_fd_unchecked(self.0.try_clone()?)
    }

    /// For what it writes.
    pub(super) fn reader(&self) -> io::Result<pipe::Receiver> {
        pipe::Receiver::from_owned_fd_unchecked(self.0.try_clone()?)
    }
}
