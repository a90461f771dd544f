//! Frames: 4 bytes big-endian length, then JSON of at most [`MAX_FRAME`] bytes.

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest JSON text of a frame, in bytes.
pub const MAX_FRAME: usize = 256 * 1024;

/// Why a frame could not be read or written. All but [`FrameError::Message`] end the stream.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other side announced or would be sent too much.
    #[error("a frame of {0} bytes is over the limit of {MAX_FRAME}")]
    TooLong(usize),
    /// The stream ended inside a frame, or broke.
    #[error("the stream broke inside a frame: {0}")]
    Io(#[from] std::io::Error),
    /// Not JSON at all.
    #[error("a frame is not JSON: {0}")]
    NotJson(serde_json::Error),
    /// JSON, but no message that is known here: answered with `Error`, the stream goes on.
    #[error("not a message of this protocol: {0}")]
    Message(serde_json::Error),
}

/// Reads one message; `None` where the stream ended between frames.
///
/// # Errors
/// [`FrameError`]; after [`FrameError::Message`] the stream is still in step.
pub async fn read<T, R>(reader: &mut R) -> Result<Option<T>, FrameError>
where
    T: DeserializeOwned,
    R: AsyncRead + Unpin,
{
    let mut length = [0; 4];
    if reader.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    reader.read_exact(&mut length[1..]).await?;
    let length = announced(length)?;
    // The length is the other side's word: memory grows with what arrives, not with what is announced.
    let mut text = Vec::new();
    if reader.take(length as u64).read_to_end(&mut text).await? < length {
        return Err(FrameError::Io(std::io::ErrorKind::UnexpectedEof.into()));
    }
    message(&text).map(Some)
}

/// Takes the first message off the front of `bytes`; `None` where it has not come to its end yet. For readers that
/// may be stopped in the middle of one.
///
/// # Errors
/// [`FrameError`]; after [`FrameError::Message`] the rest is still in step.
pub fn take<T: DeserializeOwned>(bytes: &mut Vec<u8>) -> Result<Option<T>, FrameError> {
    let Some((length, rest)) = bytes.split_first_chunk() else { return Ok(None) };
    let length = announced(*length)?;
    let Some(text) = rest.get(..length) else { return Ok(None) };
    let taken = message(text);
    bytes.drain(..4 + length);
    taken.map(Some)
}

fn announced(length: [u8; 4]) -> Result<usize, FrameError> {
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_FRAME { Err(FrameError::TooLong(length)) } else { Ok(length) }
}

fn message<T: DeserializeOwned>(text: &[u8]) -> Result<T, FrameError> {
    let value: serde_json::Value = serde_json::from_slice(text).map_err(FrameError::NotJson)?;
    serde_json::from_value(value).map_err(FrameError::Message)
}

/// Writes one message and flushes.
///
/// # Errors
/// [`FrameError::TooLong`] before anything is written, or the stream's own.
pub async fn write<T, W>(writer: &mut W, message: &T) -> Result<(), FrameError>
where
    T: Serialize,
    W: AsyncWrite + Unpin,
{
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message).map_err(FrameError::NotJson)?;
    let length = bytes.len() - 4;
    match u32::try_from(length) {
        Ok(prefix) if length <= MAX_FRAME => bytes[..4].copy_from_slice(&prefix.to_be_bytes()),
        _ => return Err(FrameError::TooLong(length)),
    }
    writer.write_all(&bytes).await?;
    writer.flush().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::GuestRequest;
    use proptest::prelude::*;

    fn read_now(bytes: &[u8]) -> Result<Option<GuestRequest>, FrameError> {
        let mut reader = bytes;
        futures::executor::block_on(read(&mut reader))
    }

    #[test]
    fn what_is_written_is_read() {
        let mut wire = Vec::new();
        futures::executor::block_on(write(&mut wire, &GuestRequest::Ping)).unwrap();
        assert_eq!(wire, b"\0\0\0\x06\"Ping\"");
        assert!(matches!(read_now(&wire), Ok(Some(GuestRequest::Ping))));
        assert!(matches!(read_now(&[]), Ok(None)));
    }

    #[test]
    fn each_kind_of_bad_frame_is_told_apart() {
        assert!(matches!(read_now(&[0, 4, 0, 1]), Err(FrameError::TooLong(0x40001))));
        assert!(matches!(read_now(&[0, 0, 0, 6, b'"']), Err(FrameError::Io(_))));
        assert!(matches!(read_now(&[0, 0]), Err(FrameError::Io(_))));
        assert!(matches!(read_now(b"\0\0\0\x02{]"), Err(FrameError::NotJson(_))));
        assert!(matches!(read_now(b"\0\0\0\x06\"Pang\""), Err(FrameError::Message(_))));
    }

    #[test]
    fn a_message_that_is_too_long_is_not_begun() {
        let mut wire = Vec::new();
        let long = "x".repeat(MAX_FRAME);
        let error = futures::executor::block_on(write(&mut wire, &long));
        assert!(matches!(error, Err(FrameError::TooLong(_))));
        assert!(wire.is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_or_refused(bytes: Vec<u8>) {
            let _ = read_now(&bytes);
            let _ = take::<GuestRequest>(&mut bytes.clone());
        }

        #[test]
        fn messages_are_taken_wherever_the_bytes_are_parted(cut in 0usize..=22) {
            let wire = b"\0\0\0\x06\"Ping\"\0\0\0\x08\"Dance\" ";
            let (first, second) = wire.split_at(cut);
            let (mut bytes, mut taken) = (Vec::new(), Vec::new());
            for part in [first, second] {
                bytes.extend_from_slice(part);
                loop {
                    match take::<GuestRequest>(&mut bytes) {
                        Ok(None) => break,
                        Ok(Some(request)) => taken.push(request == GuestRequest::Ping),
                        Err(error) => taken.push(!matches!(error, FrameError::Message(_))),
                    }
                }
            }
            prop_assert_eq!((taken, bytes.len()), (vec![true, false], 0));
        }
    }
}
