//! `mvm instance cp`: files into a machine and out of it.

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::ProgressBar;
use mvm_protocol::api::CopyRequest;
use mvm_protocol::control::{Copied, CopyDirection, CopyNote};
use mvm_protocol::record::{self, Record};
use mvm_transfer::{Counts, LeftOut, Permissions, Pieces, Source, Target};
use mvm_transfer::{pieces_from, pieces_to, unpack};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::signal::unix::{SignalKind, signal};

use crate::address::InstanceAddress;
use crate::client::Client;
use crate::connection::Connection;
use crate::exec::tell_woken;
use crate::failure::Failure;
use crate::output::Output;
use crate::progress;
use crate::view;

/// As a shell says that a signal ended a program.
const SIGNALED: u8 = 128;
/// Bytes of standard input that are sent at once.
const PIECE: usize = 64 << 10;

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
struct Done {
    from: String,
    to: String,
    files: u64,
    folders: u64,
    links: u64,
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
            (Side::There(from), to @ (Side::Here(_) | Side::Stream)) => copy_out(&client, &from, to).await,
            (from @ (Side::Here(_) | Side::Stream), Side::There(to)) => copy_in(&client, from, &to).await,
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
    let watch = |kind| signal(kind).map_err(|error| Failure::io("cannot watch for signals", error));
    let (mut interrupt, mut terminate) = (watch(SignalKind::interrupt())?, watch(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => Err(Ended::Signal(2)),
        _ = terminate.recv() => Err(Ended::Signal(15)),
    }
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

/// Copies into a machine.
async fn copy_in(client: &Client, from: Side, there: &There) -> Result<Option<Done>, Ended> {
    let (what, source) = match &from {
        Side::Here(path) => {
            let source = Source::find(path)?;
            let name = source.name().map(|name| {
                name.to_str()
                    .map(str::to_owned)
                    .ok_or_else(|| refused("a name that is no text cannot be sent"))
            });
            let name = name.transpose()?;
            match (source.is_folder(), name) {
                (false, Some(name)) => (Copied::File(name), Some(source)),
                (_, name) => (Copied::Folder(name), Some(source)),
            }
        }
        _ => (Copied::Archive, None),
    };
    let total = source.as_ref().map(Source::measure).transpose()?;
    let stream = open(client, there, CopyDirection::In { what }).await?;
    let bar = progress::bytes(&there.instance.to_string(), total);
    let (mut from_guest, mut to_guest) = tokio::io::split(stream);
    let mut missed = Missed(0);
    let copied = async {
        let result = result(client, &mut from_guest);
        tokio::pin!(result);
        let sending = async {
            match source {
                Some(source) => send(source, &mut to_guest, &bar, &mut missed).await,
                None => send_input(&mut to_guest, &bar).await,
            }
        };
        tokio::select! {
            ended = &mut result => ended,
            sent = sending => match sent {
                // What the machine does not take any more it says why of.
                Ok(()) | Err(Unsent::NotTaken) => result.await,
                Err(Unsent::Failed(failure)) => Err(failure),
            },
        }
    };
    let copied = tokio::select! {
        copied = copied => copied.map_err(Ended::Failed),
        ended = signaled() => ended.map(|never| match never {}),
    };
    bar.finish_and_clear();
    let note = copied?;
    let CopyNote::Done { path, files, folders, links, bytes } = note else {
        return Err(client.broken("it did not say what was copied").into());
    };
    missed.none()?;
    let from = match from {
        Side::Here(path) => path.display().to_string(),
        _ => "-".to_owned(),
    };
    let to = format!("{}:{path}", there.instance);
    Ok(Some(Done { from, to, files, folders, links, bytes }))
}

/// Why not everything was sent.
enum Unsent {
    /// The stream does not take it.
    NotTaken,
    /// It cannot be read here.
    Failed(Failure),
}

impl From<io::Error> for Unsent {
    fn from(_: io::Error) -> Self {
        Unsent::NotTaken
    }
}

async fn send<W: AsyncWrite + Unpin>(
    source: Source,
    to_guest: &mut W,
    bar: &ProgressBar,
    missed: &mut Missed,
) -> Result<(), Unsent> {
    let (archive, mut pieces) = pieces_from();
    let packing = tokio::task::spawn_blocking(move || source.pack(archive));
    while let Some(piece) = pieces.recv().await {
        let length = piece.len() as u64;
        record::write(to_guest, &Record::Stdin(piece)).await?;
        bar.inc(length);
    }
    let packed = packing.await.map_err(|ended| Unsent::Failed(refused(ended)))?;
    for LeftOut { path, kind } in packed.map_err(|error| Unsent::Failed(refused(error)))? {
        missed.note(&format!("{kind} {}", path.display()));
    }
    Ok(record::write(to_guest, &Record::Eof).await?)
}

async fn send_input<W: AsyncWrite + Unpin>(to_guest: &mut W, bar: &ProgressBar) -> Result<(), Unsent> {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; PIECE];
    loop {
        let count = stdin
            .read(&mut buffer)
            .await
            .map_err(|error| Unsent::Failed(Failure::io("cannot read standard input", error)))?;
        if count == 0 {
            return Ok(record::write(to_guest, &Record::Eof).await?);
        }
        record::write(to_guest, &Record::Stdin(buffer[..count].to_vec())).await?;
        bar.inc(count as u64);
    }
}

/// What a machine says at the end of a copy into it.
async fn result<R: AsyncRead + Unpin>(client: &Client, from_guest: &mut R) -> Result<CopyNote, Failure> {
    let mut last = None;
    loop {
        match next(client, from_guest).await? {
            Said::Note(CopyNote::Failed { message }) => return Err(refused(message)),
            Said::Note(note) => last = Some(note),
            Said::Ended(0) => return last.ok_or_else(|| client.broken("it did not say what was copied")),
            Said::Ended(_) => return Err(client.broken("the copy failed, and it did not say why")),
            Said::Archive(_) | Said::ArchiveEnds => {}
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

/// Copies out of a machine.
async fn copy_out(client: &Client, there: &There, to: Side) -> Result<Option<Done>, Ended> {
    let mut stream = Box::pin(open(client, there, CopyDirection::Out).await?);
    let (is_folder, total) = match next(client, &mut stream).await? {
        Said::Note(CopyNote::Begins { is_folder, bytes }) => (is_folder, bytes),
        Said::Note(CopyNote::Failed { message }) => return Err(refused(message).into()),
        _ => return Err(client.broken("it did not say what it copies").into()),
    };
    let bar = progress::bytes(&there.instance.to_string(), Some(total));
    let path = match to {
        Side::Here(path) => path,
        _ => {
            let mut sink = Sink::Output(tokio::io::stdout());
            let carried = carry_or_signal(client, &mut stream, &mut sink, &bar).await;
            bar.finish_and_clear();
            return carried.map(|()| None);
        }
    };
    // By the name that was asked for: what the machine calls it does not matter.
    let target = Target::find(&path, Source::name_of(Path::new(&there.path)), is_folder)?;
    let to = target.path().display().to_string();
    let landed = land(client, &mut stream, target, &bar).await;
    bar.finish_and_clear();
    let Counts { files, folders, links, bytes } = landed?;
    let from = format!("{}:{}", there.instance, there.path);
    Ok(Some(Done { from, to, files, folders, links, bytes }))
}

/// Unpacks what comes from a machine.
async fn land<R: AsyncRead + Unpin>(
    client: &Client,
    from_guest: &mut R,
    target: Target,
    bar: &ProgressBar,
) -> Result<Counts, Ended> {
    let (pieces, archive) = pieces_to();
    // What a machine says is no reason to let programs run as somebody else here.
    let unpacking = tokio::task::spawn_blocking(move || unpack(&target, archive, Permissions::Plain));
    let mut sink = Sink::Pieces(Some(pieces));
    let carried = carry_or_signal(client, from_guest, &mut sink, bar).await;
    // Without it, what is not whole goes.
    drop(sink);
    let unpacked = unpacking.await.map_err(|ended| Ended::Failed(refused(ended)))?;
    match (carried, unpacked) {
        (Ok(()), unpacked) => Ok(unpacked?),
        (Err(Ended::Failed(Failure::Io { .. })), Err(error)) => {
            // Nobody took it any more, and this is why.
            Err(error.into())
        }
        (Err(ended), _) => Err(ended),
    }
}

async fn carry_or_signal<R: AsyncRead + Unpin>(
    client: &Client,
    from_guest: &mut R,
    sink: &mut Sink,
    bar: &ProgressBar,
) -> Result<(), Ended> {
    tokio::select! {
        carried = carry(client, from_guest, sink, bar) => carried.map_err(Ended::Failed),
        ended = signaled() => ended.map(|never| match never {}),
    }
}

/// Where an archive goes here.
enum Sink {
    Pieces(Option<Pieces>),
    Output(tokio::io::Stdout),
}

/// Carries an archive to where it goes, up to the machine's word that it was all.
async fn carry<R: AsyncRead + Unpin>(
    client: &Client,
    from_guest: &mut R,
    sink: &mut Sink,
    bar: &ProgressBar,
) -> Result<(), Failure> {
    let mut missed = Missed(0);
    let unwritable = |error| Failure::io("cannot write to standard output", error);
    loop {
        match next(client, from_guest).await? {
            Said::Archive(piece) => {
                let length = piece.len() as u64;
                match sink {
                    Sink::Pieces(Some(pieces)) => {
                        pieces.send(piece).await.map_err(|error| Failure::io("cannot go on", error))?;
                    }
                    Sink::Pieces(None) => return Err(client.broken("it went on after the end")),
                    Sink::Output(stdout) => stdout.write_all(&piece).await.map_err(unwritable)?,
                }
                bar.inc(length);
            }
            Said::ArchiveEnds => match sink {
                Sink::Pieces(pieces) => {
                    if let Some(pieces) = pieces.take() {
                        pieces.end().await;
                    }
                }
                Sink::Output(stdout) => stdout.flush().await.map_err(unwritable)?,
            },
            Said::Note(CopyNote::LeftOut { what }) => missed.note(&what),
            Said::Note(CopyNote::Failed { message }) => return Err(refused(message)),
            Said::Note(_) => {}
            Said::Ended(0) => return missed.none(),
            Said::Ended(_) => return Err(client.broken("the copy failed, and it did not say why")),
        }
    }
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

    /// What a machine sends that does not run mvm's own guest any more.
    async fn landed(archive: Vec<u8>, code: i32, to: &Path) -> Result<Counts, Ended> {
        let (mut here, mut there) = tokio::io::duplex(64);
        let sending = tokio::spawn(async move {
            for said in [Record::Stdout(archive), Record::Eof, Record::Exit(code)] {
                // It may have been refused already.
                let _ = record::write(&mut there, &said).await;
            }
        });
        let target = Target::find(to, Some("asked".as_ref()), true).unwrap();
        let client = Client::new("/nowhere".into());
        let landed = land(&client, &mut here, target, &ProgressBar::hidden()).await;
        drop(here);
        sending.await.unwrap();
        landed
    }

    #[tokio::test]
    async fn a_machine_can_neither_choose_names_here_nor_tell_half_for_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (to, source) = (folder.path().join("to"), folder.path().join("source"));
        std::fs::create_dir(&to).unwrap();
        std::fs::create_dir(&source).unwrap();
        std::fs::write(source.join("file"), vec![7; 5000]).unwrap();
        let mut archive = Vec::new();
        Source::find(&source).unwrap().pack(&mut archive).unwrap();

        assert!(landed(archive[..3000].to_vec(), 0, &to).await.is_err(), "half of it");
        assert!(landed(archive.clone(), 1, &to).await.is_err(), "it says that it failed");
        let escaping = String::from_utf8_lossy(&archive).replace("source/file", "s/../../fil").into_bytes();
        assert!(landed(escaping, 0, &to).await.is_err());
        let counts = landed(archive, 0, &to).await.unwrap_or_else(|_| panic!("refused"));
        assert_eq!((counts.files, counts.bytes), (1, 5000));
        assert_eq!(std::fs::read(to.join("asked/file")).unwrap(), vec![7; 5000]);
        let here = |path: &Path| std::fs::read_dir(path).unwrap().count();
        assert_eq!((here(folder.path()), here(&to), here(&to.join("asked"))), (2, 1, 1));
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
