//! An answer that comes bit by bit.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

use crate::client::Client;
use crate::failure::Failure;

/// An answer's body while it arrives.
pub struct Lines {
    client: Client,
    body: Incoming,
    rest: BytesMut,
}

impl Lines {
    /// Reads this body.
    pub fn new(client: Client, body: Incoming) -> Self {
        Self { client, body, rest: BytesMut::new() }
    }

    /// What has arrived next; `None` at its end.
    ///
    /// # Errors
    /// If the connection breaks.
    pub async fn piece(&mut self) -> Result<Option<Bytes>, Failure> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|error| self.client.broken(error))?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// The next line's value; `None` at the end.
    ///
    /// # Errors
    /// If the connection breaks, or a line is not what it should be.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Failure> {
        loop {
            if let Some(line) = take_line(&mut self.rest) {
                let value = serde_json::from_slice(&line).map_err(|error| self.client.broken(error))?;
                return Ok(Some(value));
            }
            match self.piece().await? {
                Some(piece) => self.rest.extend_from_slice(&piece),
                None if self.rest.is_empty() => return Ok(None),
                None => return Err(self.client.broken("it stopped in the middle of a line")),
            }
        }
    }
}

/// The first whole line that is not empty.
fn take_line(buffer: &mut BytesMut) -> Option<BytesMut> {
    loop {
        let end = buffer.iter().position(|byte| *byte == b'\n')?;
        let mut line = buffer.split_to(end + 1);
        line.truncate(end);
        if !line.is_empty() {
            return Some(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lines_come_out_whole_however_they_arrive(
            lines in prop::collection::vec("[a-z]{1,9}", 0..6),
            cuts in prop::collection::vec(1usize..7, 1..40),
        ) {
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            let mut left = text.as_bytes();
            let (mut buffer, mut found) = (BytesMut::new(), Vec::new());
            for cut in cuts.iter().cycle() {
                if left.is_empty() { break }
                let (piece, rest) = left.split_at((*cut).min(left.len()));
                buffer.extend_from_slice(piece);
                left = rest;
                while let Some(line) = take_line(&mut buffer) {
                    found.push(String::from_utf8(line.to_vec()).unwrap());
                }
            }
            prop_assert_eq!(found, lines);
            prop_assert!(buffer.is_empty());
        }
    }
}
