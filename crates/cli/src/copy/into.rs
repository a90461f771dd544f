//! Into a machine.

use std::io;

use indicatif::ProgressBar;
use mvm_protocol::control::{Copied, CopyDirection, CopyNote};
use mvm_protocol::record::{self, Record};
use mvm_transfer::{LeftOut, Source, pieces_from};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};

use super::{Done, Ended, Missed, Said, Side, There, next, open, refused, signaled};
use crate::client::Client;
use crate::failure::Failure;
use crate::progress;

/// Bytes of standard input that are sent at once.
const PIECE: usize = 64 << 10;

/// Copies into a machine.
pub(super) async fn copy_in(client: &Client, from: Side, there: &There) -> Result<Option<Done>, Ended> {
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
