//! Copy: files as a tar archive in records.

use std::ffi::OsStr;
use std::path::Path;

use mvm_protocol::Stream;
use mvm_protocol::control::{Copied, CopyDirection, CopyNote};
use mvm_protocol::record::{self, Record};
use mvm_transfer::{Counts, Permissions, Pieces, Source, Target, pieces_from, pieces_to, unpack};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::task::spawn_blocking;

use super::session::say_goodbye;

/// A copy that was found possible.
pub(super) enum Copy {
    In(Target),
    Out(Source),
}

/// Looks where a copy goes, or what it is of. Blocks.
pub(super) fn start(path: &str, direction: CopyDirection) -> Result<Copy, String> {
    if !path.starts_with('/') {
        return Err(format!("{path} does not begin with a /, as a path in a machine does"));
    }
    let path = Path::new(path);
    let found = match direction {
        CopyDirection::Out => Source::find(path).map(Copy::Out),
        CopyDirection::In { what } => match what {
            Copied::File(name) => Target::find(path, Some(OsStr::new(&name)), false),
            Copied::Folder(name) => Target::find(path, name.as_deref().map(OsStr::new), true),
            Copied::Archive => Target::for_archive(path),
        }
        .map(Copy::In),
    };
    found.map_err(|error| error.to_string())
}

impl Copy {
    /// Copies. When the stream ends before, so does the copy, and nothing that is half written is left.
    pub(super) async fn serve(self, stream: Stream) {
        let (mut input, mut output) = tokio::io::split(stream);
        let copied = match self {
            Copy::In(target) => receive(target, &mut input).await,
            Copy::Out(source) => send(source, &mut output).await,
        };
        let Some(copied) = copied else { return };
        let code = if copied.is_ok() { 0 } else { 1 };
        let last = match copied {
            Ok(done) => done,
            Err(message) => Some(CopyNote::Failed { message }),
        };
        let sent = async {
            if let Some(note) = last {
                say(&mut output, &note).await?;
            }
            record::write(&mut output, &Record::Exit(code)).await?;
            record::write(&mut output, &Record::Eof).await
        };
        if sent.await.is_ok() {
            say_goodbye(&mut input.unsplit(output)).await;
        }
    }
}

/// What a copy came to; nothing where the host is gone.
type Outcome = Option<Result<Option<CopyNote>, String>>;

async fn receive(target: Target, input: &mut ReadHalf<Stream>) -> Outcome {
    let (pieces, archive) = pieces_to();
    let unpacking = spawn_blocking(move || {
        let counts = unpack(&target, archive, Permissions::All)?;
        target.flush()?;
        Ok::<_, mvm_transfer::Error>((target.path(), counts))
    });
    tokio::pin!(unpacking);
    let unpacked = tokio::select! {
        unpacked = &mut unpacking => unpacked,
        fed = feed(input, pieces) => match fed {
            Ok(()) => unpacking.await,
            Err(_) => {
                // It ends by itself, and removes what is not whole.
                let _ = unpacking.await;
                return None;
            }
        }
    };
    Some(match unpacked {
        Ok(Ok((path, Counts { files, folders, links, bytes }))) => {
            let path = path.display().to_string();
            Ok(Some(CopyNote::Done { path, files, folders, links, bytes }))
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(ended) => Err(ended.to_string()),
    })
}

/// Hands on the archive up to its end.
async fn feed(input: &mut ReadHalf<Stream>, pieces: Pieces) -> std::io::Result<()> {
    loop {
        match record::read(input).await.map_err(std::io::Error::other)? {
            Some(Record::Stdin(bytes)) => {
                if pieces.send(bytes).await.is_err() {
                    // Whoever unpacks has ended, and says why.
                    return Ok(());
                }
            }
            Some(Record::Eof) => {
                pieces.end().await;
                return Ok(());
            }
            Some(_) => {}
            None => return Err(std::io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

async fn send(source: Source, output: &mut WriteHalf<Stream>) -> Outcome {
    // Takes its time where there is much: whoever asked knows by now that it goes on.
    let measured = source.clone();
    let bytes = match spawn_blocking(move || measured.measure()).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => return Some(Err(error.to_string())),
        Err(ended) => return Some(Err(ended.to_string())),
    };
    say(output, &CopyNote::Begins { is_folder: source.is_folder(), bytes }).await.ok()?;
    let (archive, mut pieces) = pieces_from();
    let packing = spawn_blocking(move || source.pack(archive));
    while let Some(piece) = pieces.recv().await {
        // Dropped, the pieces end who packs.
        record::write(output, &Record::Stdout(piece)).await.ok()?;
    }
    let left_out = match packing.await {
        Ok(Ok(left_out)) => left_out,
        Ok(Err(error)) => return Some(Err(error.to_string())),
        Err(ended) => return Some(Err(ended.to_string())),
    };
    record::write(output, &Record::Eof).await.ok()?;
    for left in left_out {
        let what = format!("{} {}", left.kind, left.path.display());
        say(output, &CopyNote::LeftOut { what }).await.ok()?;
    }
    Some(Ok(None))
}

async fn say(output: &mut WriteHalf<Stream>, note: &CopyNote) -> std::io::Result<()> {
    let text = serde_json::to_vec(note).map_err(std::io::Error::other)?;
    record::write(output, &Record::Stderr(text)).await
}
