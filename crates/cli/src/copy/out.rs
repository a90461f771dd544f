//! Out of a machine.

use std::path::Path;

use indicatif::ProgressBar;
use mvm_protocol::control::{CopyDirection, CopyNote};
use mvm_transfer::{Counts, Permissions, Pieces, Source, Target, pieces_to, unpack};
use tokio::io::{AsyncRead, AsyncWriteExt as _};

use super::{Done, Ended, Missed, Said, Side, There, next, open, refused, signaled};
use crate::client::Client;
use crate::failure::Failure;
use crate::progress;

/// Copies out of a machine.
pub(super) async fn copy_out(client: &Client, there: &There, to: Side) -> Result<Option<Done>, Ended> {
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
    use mvm_protocol::record::{self, Record};

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
}
