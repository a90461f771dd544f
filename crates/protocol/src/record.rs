//! Records: what a stream carries after `Started`. 1 byte kind, 4 bytes big-endian length, raw bytes.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest record, in bytes.
pub const MAX_RECORD: usize = 256 * 1024;

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// Bytes for the process (0).
    Stdin(Vec<u8>),
    /// Bytes from the process (1).
    Stdout(Vec<u8>),
    /// Bytes from the process's standard error (2).
    Stderr(Vec<u8>),
    /// The terminal's new size, columns and rows (3).
    Resize(u16, u16),
    /// The process ended with this code; 128 and the signal's number where a signal ended it (4).
    Exit(i32),
    /// No more bytes in this direction (5).
    Eof,
}

/// A record that is not one.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The stream ended inside a record, or broke.
    #[error("the stream broke inside a record: {0}")]
    Io(#[from] std::io::Error),
    /// An unknown kind, or a length that does not fit it.
    #[error("a record of kind {kind} with {length} bytes does not exist")]
    Malformed {
        /// Its first byte.
        kind: u8,
        /// The length it announced.
        length: usize,
    },
}

/// Reads one record; `None` where the stream ended between records.
///
/// # Errors
/// [`RecordError`]; the stream is of no use afterwards.
pub async fn read<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Option<Record>, RecordError> {
    let mut header = [0; 5];
    if reader.read(&mut header[..1]).await? == 0 {
        return Ok(None);
    }
    reader.read_exact(&mut header[1..]).await?;
    let [kind, a, b, c, d] = header;
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    let fits = match kind {
        0..=2 => length <= MAX_RECORD,
        3 | 4 => length == 4,
        5 => length == 0,
        _ => false,
    };
    if !fits {
        return Err(RecordError::Malformed { kind, length });
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await?;
    Ok(Some(match (kind, body.as_slice()) {
        (0, _) => Record::Stdin(body),
        (1, _) => Record::Stdout(body),
        (2, _) => Record::Stderr(body),
        (3, &[a, b, c, d]) => Record::Resize(u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])),
        (4, &[a, b, c, d]) => Record::Exit(i32::from_be_bytes([a, b, c, d])),
        _ => Record::Eof,
    }))
}

/// Writes one record and flushes. Bytes beyond [`MAX_RECORD`] go into further records.
///
/// # Errors
/// The stream's own.
pub async fn write<W: AsyncWrite + Unpin>(writer: &mut W, record: &Record) -> std::io::Result<()> {
    let resize;
    let exit;
    let (kind, body): (u8, &[u8]) = match record {
        Record::Stdin(bytes) => (0, bytes),
        Record::Stdout(bytes) => (1, bytes),
        Record::Stderr(bytes) => (2, bytes),
        Record::Resize(columns, rows) => {
            let [a, b] = columns.to_be_bytes();
            let [c, d] = rows.to_be_bytes();
            resize = [a, b, c, d];
            (3, &resize)
        }
        Record::Exit(code) => {
            exit = code.to_be_bytes();
            (4, &exit)
        }
        Record::Eof => (5, &[]),
    };
    if body.is_empty() {
        write_one(writer, kind, body).await?;
    }
    for part in body.chunks(MAX_RECORD) {
        write_one(writer, kind, part).await?;
    }
    writer.flush().await
}

async fn write_one<W: AsyncWrite + Unpin>(writer: &mut W, kind: u8, body: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(body.len()).map_err(std::io::Error::other)?;
    let mut header = [kind, 0, 0, 0, 0];
    header[1..].copy_from_slice(&length.to_be_bytes());
    writer.write_all(&header).await?;
    writer.write_all(body).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;
    use proptest::prelude::*;

    fn records() -> impl Strategy<Value = Record> {
        prop_oneof![
            any::<Vec<u8>>().prop_map(Record::Stdin),
            any::<Vec<u8>>().prop_map(Record::Stdout),
            any::<Vec<u8>>().prop_map(Record::Stderr),
            any::<(u16, u16)>().prop_map(|(c, r)| Record::Resize(c, r)),
            any::<i32>().prop_map(Record::Exit),
            Just(Record::Eof),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(sent in prop::collection::vec(records(), 0..8)) {
            let mut wire = Vec::new();
            for record in &sent {
                block_on(write(&mut wire, record)).unwrap();
            }
            let mut reader = wire.as_slice();
            for record in sent {
                prop_assert_eq!(block_on(read(&mut reader)).unwrap(), Some(record));
            }
            prop_assert_eq!(block_on(read(&mut reader)).unwrap(), None);
        }

        #[test]
        fn any_bytes_are_taken_or_refused(bytes: Vec<u8>) {
            let _ = block_on(read(&mut bytes.as_slice()));
        }
    }

    #[test]
    fn long_output_is_split() {
        let mut wire = Vec::new();
        block_on(write(&mut wire, &Record::Stdout(vec![7; MAX_RECORD + 1]))).unwrap();
        let mut reader = wire.as_slice();
        let first = block_on(read(&mut reader)).unwrap();
        assert_eq!(first, Some(Record::Stdout(vec![7; MAX_RECORD])));
        assert_eq!(block_on(read(&mut reader)).unwrap(), Some(Record::Stdout(vec![7])));
    }
}
