//! `mvm instance cp`: files into a machine and out of it.

mod into;
mod out;

use std::convert::Infallible;
use std::path::PathBuf;

use clap::Args;
use mvm_protocol::api::CopyRequest;
use mvm_protocol::control::{CopyDirection, CopyNote};
use mvm_protocol::record::{self, Record};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::address::InstanceAddress;
use crate::client::Client;
use crate::connection::Connection;
use crate::exec::tell_woken;
use crate::failure::Failure;
use crate::interrupt;
use crate::output::Output;
use crate::view;

/// As a shell says that a signal ended a program.
const SIGNALED: u8 = 128;

/// Copy files into it or out of it
///
/// One of both is in a machine, as alice/workers:/data/x, the other here, or - for a tar archive on standard input or
/// output. Folders are copied with everything in them, symbolic links as links. A folder that is there gets the copy into
/// it by its name, or, with /. behind what is copied, what is in it; other names are those of the copy. What is copied into a
/// machine belongs to root there, what is copied out to whoever runs this. A machine that sleeps is woken.
#[derive(Debug, Args)]
pub struct Copy {
    /// What is copied
    #[arg(value_name = "FROM")]
    from: Side,
    /// Where to
    #[arg(value_name = "TO")]
    to: Side,
    /// How to write the result
    #[command(flatten)]
    output: Output,
}

/// One end of a copy.
#[derive(Debug, Clone)]
enum Side {
    Here(PathBuf),
    /// `-`
    Stream,
    There(There),
}

/// A path in a machine.
#[derive(Debug, Clone)]
struct There {
    instance: InstanceAddress,
    path: String,
}

impl std::str::FromStr for Side {
    type Err = String;
    /// As docker has it: what begins with `/` or `.`, or has no colon, is here.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "-" {
            return Ok(Side::Stream);
        }
        if text.is_empty() {
            return Err("an empty path".to_owned());
        }
        let split = text.split_once(':').filter(|_| !text.starts_with(['/', '.']));
        let Some((instance, path)) = split else { return Ok(Side::Here(text.into())) };
        let instance = instance
            .parse()
            .map_err(|error| format!("{error}; a file here with a colon in its name is written ./{text}"))?;
        if path.is_empty() {
            return Err(format!("which path in {instance}? As {instance}:/data"));
        }
        Ok(Side::There(There { instance, path: format!("/{}", path.trim_start_matches('/')) }))
    }
}

/// What was copied, as a result.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "Copied"))]
pub struct Done {
    /// Where from, as it was named.
    from: String,
    /// Where to, as it was named.
    to: String,
    /// Files that were copied.
    files: u64,
    /// Folders that were made.
    folders: u64,
    /// Links that were made.
    links: u64,
    /// What the files hold.
    bytes: u64,
}

/// Why a copy ended early.
enum Ended {
    Failed(Failure),
    /// By a signal.
    Signal(u8),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Ended::Failed(failure)
    }
}

impl From<mvm_transfer::Error> for Ended {
    fn from(error: mvm_transfer::Error) -> Self {
        Ended::Failed(refused(error))
    }
}

fn refused(error: impl std::fmt::Display) -> Failure {
    Failure::NotDone(error.to_string())
}

impl Copy {
    /// Runs the command; its exit code.
    ///
    /// # Errors
    /// Not everything was copied.
    pub async fn run(self, connection: &Connection) -> Result<u8, Failure> {
        let client = connection.agent().await?;
        let copied = match (self.from, self.to) {
            (Side::There(from), to @ (Side::Here(_) | Side::Stream)) => {
                out::copy_out(&client, &from, to).await
            }
            (from @ (Side::Here(_) | Side::Stream), Side::There(to)) => {
                into::copy_in(&client, from, &to).await
            }
            _ => {
                let how = "one of both must be in a machine, as alice/workers:/data/x, and the other here";
                return Err(Failure::Usage(how.to_owned()));
            }
        };
        match copied {
            Ok(Some(done)) => self.output.show(&done, |done| {
                let files = if done.files == 1 { "file" } else { "files" };
                format!("copied {} {files} ({}) to {}", done.files, view::bytes(done.bytes), done.to)
            })?,
            Ok(None) => {}
            Err(Ended::Signal(number)) => return Ok(SIGNALED + number),
            Err(Ended::Failed(failure)) => return Err(failure),
        }
        Ok(0)
    }
}

/// A signal that ends the copy.
async fn signaled() -> Result<Infallible, Ended> {
    Err(Ended::Signal(interrupt::signaled().await?))
}

/// Opens the stream of a copy.
async fn open(
    client: &Client,
    there: &There,
    direction: CopyDirection,
) -> Result<impl AsyncRead + AsyncWrite + use<>, Failure> {
    let request = CopyRequest { path: there.path.clone(), direction };
    let (stream, woken) = client.upgrade(&format!("{}/copy", there.instance.path()), &request).await?;
    if let Some(millis) = woken {
        tell_woken(&there.instance.to_string(), millis);
    }
    Ok(stream)
}

/// What is not copied makes a copy of everything else a failed one.
struct Missed(u64);

impl Missed {
    fn note(&mut self, what: &str) {
        eprintln!("left out: {what}");
        self.0 += 1;
    }

    fn none(&self) -> Result<(), Failure> {
        let are = "left out, being no files, folders or symbolic links; everything else was copied";
        match self.0 {
            0 => Ok(()),
            1 => Err(refused(format!("1 thing was {are}"))),
            count => Err(refused(format!("{count} things were {are}"))),
        }
    }
}

/// What comes from the machine.
enum Said {
    Archive(Vec<u8>),
    ArchiveEnds,
    Note(CopyNote),
    Ended(i32),
}

async fn next<R: AsyncRead + Unpin>(client: &Client, from_guest: &mut R) -> Result<Said, Failure> {
    let cut_off = "the copy was cut off: the machine went to sleep or ended, or the agent did";
    Ok(match record::read(from_guest).await {
        Ok(Some(Record::Stdout(piece))) => Said::Archive(piece),
        Ok(Some(Record::Eof)) => Said::ArchiveEnds,
        Ok(Some(Record::Exit(code))) => Said::Ended(code),
        Ok(Some(Record::Stderr(note))) => {
            Said::Note(serde_json::from_slice(&note).map_err(|error| client.broken(error))?)
        }
        Ok(Some(_)) => return Err(client.broken("it sent what does not belong to a copy")),
        Ok(None) | Err(record::RecordError::Io(_)) => return Err(refused(cut_off)),
        Err(error) => return Err(client.broken(error)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Result<String, String> {
        text.parse().map(|side| match side {
            Side::Here(path) => format!("here {}", path.display()),
            Side::Stream => "stream".to_owned(),
            Side::There(There { instance, path }) => format!("{instance} {path}"),
        })
    }

    #[test]
    fn what_has_a_colon_is_there_unless_it_looks_like_a_path() {
        for (text, expected) in [
            ("-", "stream"),
            ("folder", "here folder"),
            ("./a:b", "here ./a:b"),
            ("/a:b", "here /a:b"),
            ("alice/workers", "here alice/workers"),
            ("alice/workers:/data/x", "alice/workers /data/x"),
            ("alice/workers:data/x", "alice/workers /data/x"),
            ("alice/workers/i-00:/a:b", "alice/workers/i-00 /a:b"),
        ] {
            assert_eq!(shown(text), Ok(expected.to_owned()), "{text}");
        }
        for wrong in ["", "alice:/x", "a:b", "alice/workers:"] {
            assert!(shown(wrong).is_err(), "{wrong}");
        }
    }
}
