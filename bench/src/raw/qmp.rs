//! QMP by hand: one command at a time, over a socket that blocks.

use std::io::{BufRead, BufReader, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

use crate::Result;

/// No command takes so long.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at something that takes a millisecond.
const SOON: Duration = Duration::from_micros(300);

/// A VMM's monitor.
#[derive(Debug)]
pub struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Monitor {
    /// Over a connected socket; nothing is said yet.
    pub fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Waits until the VMM is up, and begins.
    pub fn greet(&mut self) -> Result<()> {
        let greeting = self.line()?;
        if greeting.get("QMP").is_none() {
            return Err(format!("no greeting but {greeting}").into());
        }
        self.ask("qmp_capabilities", json!({})).map(drop)
    }

    /// Runs a command.
    pub fn ask(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.stream.get_mut().write_all(&encode(command, &arguments))?;
        self.answer(command)
    }

    /// Runs a command that takes a descriptor.
    pub fn ask_with(&mut self, command: &str, arguments: Value, descriptor: BorrowedFd<'_>) -> Result<Value> {
        let bytes = encode(command, &arguments);
        let descriptors = [descriptor];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err("no room for a descriptor".into());
        }
        let socket = self.stream.get_ref().as_fd();
        let sent = sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::empty())?;
        self.stream.get_mut().write_all(&bytes[sent..])?;
        self.answer(command)
    }

    /// Loads device state from a descriptor and waits until it is in.
    pub fn load_devices(&mut self, state: BorrowedFd<'_>) -> Result<()> {
        self.ask("migrate-set-parameters", json!({ "announce-rounds": 0 }))?;
        self.ask_with("getfd", json!({ "fdname": "state" }), state)?;
        self.ask("migrate-incoming", json!({ "uri": "fd:state" }))?;
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let answer = self.ask("query-migrate", json!({}))?;
            match answer["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => return Err(format!("device state: {answer}").into()),
                _ => std::thread::sleep(SOON),
            }
        }
        Err("loading the device state takes too long".into())
    }

    fn answer(&mut self, command: &str) -> Result<Value> {
        loop {
            let mut line = self.line()?;
            if let Some(error) = line.get("error") {
                return Err(format!("{command}: {error}").into());
            }
            // Events come in between.
            if let Some(answer) = line.get_mut("return") {
                return Ok(answer.take());
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err("the VMM has closed its monitor".into());
        }
        Ok(serde_json::from_str(&line)?)
    }
}

fn encode(command: &str, arguments: &Value) -> Vec<u8> {
    format!("{}\n", json!({ "execute": command, "arguments": arguments })).into_bytes()
}
