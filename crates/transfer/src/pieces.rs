//! Between what blocks and what must not: a few pieces of bytes that wait, and no more.

use std::io::{self, Read, Write};

use tokio::sync::mpsc;

/// How many pieces may wait for whoever is slower.
const WAITING: usize = 2;
/// How large a piece becomes before it is handed on.
const PIECE: usize = 64 * 1024;

/// The end that does not block, of a stream that is read by what blocks.
#[derive(Debug)]
pub struct Pieces(mpsc::Sender<Vec<u8>>);

impl Pieces {
    /// Hands on bytes; fails when nobody reads them any more.
    ///
    /// # Errors
    /// As said.
    pub async fn send(&self, bytes: Vec<u8>) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.0.send(bytes).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// Says that this was all. Dropped without it, the stream counts as broken.
    pub async fn end(self) {
        // Fails where nobody reads, who then has no use for it.
        let _ = self.0.send(Vec::new()).await;
    }
}

/// A stream for what blocks to read.
pub fn pieces_to() -> (Pieces, PieceReader) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Pieces(sender), PieceReader { pieces: receiver, current: Vec::new(), at: 0, ended: false })
}

/// A stream for what blocks to write.
pub fn pieces_from() -> (PieceWriter, mpsc::Receiver<Vec<u8>>) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (PieceWriter { pieces: sender, waiting: Vec::with_capacity(PIECE) }, receiver)
}

/// Reads what comes piece by piece. Blocks.
#[derive(Debug)]
pub struct PieceReader {
    pieces: mpsc::Receiver<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    ended: bool,
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.current.len() && !self.ended {
            let next = self.pieces.blocking_recv();
            self.current = next.ok_or_else(|| io::Error::other("the connection ended in the middle"))?;
            self.at = 0;
            self.ended = self.current.is_empty();
        }
        let count = buffer.len().min(self.current.len() - self.at);
        buffer[..count].copy_from_slice(&self.current[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// Hands on what is written in pieces. Blocks. What was written last goes with a flush.
#[derive(Debug)]
pub struct PieceWriter {
    pieces: mpsc::Sender<Vec<u8>>,
    waiting: Vec<u8>,
}

impl Write for PieceWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(PIECE - self.waiting.len());
        self.waiting.extend_from_slice(&bytes[..count]);
        if self.waiting.len() == PIECE {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.waiting, Vec::with_capacity(PIECE));
        self.pieces.blocking_send(piece).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in_and_an_end_is_not_a_break() {
        let (mut writer, mut out) = pieces_from();
        let sent: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
        let expected = sent.clone();
        let writing = std::thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.flush().unwrap();
        });
        let (into, mut reader) = pieces_to();
        let carrying = std::thread::spawn(move || {
            while let Some(piece) = out.blocking_recv() {
                into.0.blocking_send(piece).unwrap();
            }
            into.0.blocking_send(Vec::new()).unwrap();
        });
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        assert_eq!(got, expected);
        writing.join().unwrap();
        carrying.join().unwrap();

        let (broken, mut reader) = pieces_to();
        drop(broken);
        assert!(reader.read(&mut [0]).is_err());
    }
}
