//! A terminal with `mvm` on it, driven by a test.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::{Lab, PATIENCE};

/// A command of `mvm` that has a terminal to itself.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    outside: File,
    inside: File,
    output: Receiver<Vec<u8>>,
    /// What came, and was not waited for yet.
    seen: String,
}

impl Terminal {
    /// Runs it on a new terminal of so many columns and rows.
    pub fn open(lab: &Lab, arguments: &[&str], size: (u16, u16)) -> Self {
        let outside: OwnedFd =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&outside).unwrap();
        unlockpt(&outside).unwrap();
        let name = ptsname(&outside, Vec::new()).unwrap();
        let inside = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        let outside = File::from(outside);
        set_size(&outside, size);
        let mvm = lab.command();
        // It makes the terminal the command's own, so that signals come from it.
        let mut on_terminal = Command::new("setsid");
        on_terminal.arg("--ctty").arg(mvm.get_program()).args(mvm.get_args()).args(arguments);
        on_terminal.envs(mvm.get_envs().filter_map(|(name, value)| Some((name, value?))));
        on_terminal.env("TERM", "xterm-256color");
        let end = || inside.try_clone().unwrap();
        let child = on_terminal.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let (sender, output) = channel();
        let mut reader = outside.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count) = reader.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { child, outside, inside, output, seen: String::new() }
    }

    /// Types something; Enter is `\r`.
    pub fn type_in(&mut self, text: &str) {
        self.outside.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until this is on it, after what was waited for before.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        let begun = Instant::now();
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            let left = PATIENCE.saturating_sub(begun.elapsed());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => panic!("waited in vain for {text:?}; on the terminal is {:?}", self.seen),
            }
        }
    }

    /// Changes its size.
    pub fn resize(&self, columns: u16, rows: u16) {
        set_size(&self.outside, (columns, rows));
    }

    /// Waits for the command's end; its exit code.
    #[track_caller]
    pub fn end(&mut self) -> i32 {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap();
            }
            if begun.elapsed() > PATIENCE {
                self.kill();
                panic!("it does not end; on the terminal is {:?}", self.seen);
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Whether keys are passed on as they are.
    pub fn is_raw(&self) -> bool {
        !tcgetattr(&self.inside).unwrap().local_modes.contains(LocalModes::ICANON)
    }

    /// Ends the command by SIGKILL.
    pub fn kill(&mut self) {
        // What made the terminal its own has become the command.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.kill();
    }
}

fn set_size(terminal: &File, (columns, rows): (u16, u16)) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).unwrap();
}
