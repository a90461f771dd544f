//! How a session begins over a channel that may still hold bytes of an earlier one.
//!
//! The host sends a preamble, [`MAGIC`] and a fresh nonce; the guest drops whatever came before and answers
//! with the same; from there on both speak yamux, the host as its client. The guest cannot trust the
//! channel to tell it when a session ends (a snapshot is taken in the middle of one), so its [`Intake`] follows the frames of
//! yamux and takes a preamble at any frame boundary. Where the guest stands inside a frame that was never completed, the
//! host's filler (longer than any frame it sends) carries it over the end; see [`begin`].

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// First bytes of a preamble. The first one is no version of yamux, so a preamble is never a frame.
pub const MAGIC: [u8; 16] = *b"\xf5mvm-session-1\r\n";
/// Length of a preamble: [`MAGIC`] and the nonce.
pub const PREAMBLE: usize = 32;
/// The longest body of a frame that either side sends.
pub const MAX_BODY: usize = 16 * 1024;

const HEADER: usize = 12;
/// How long the host waits for the echo before it sends filler and another preamble.
const ECHO_TIMEOUT: Duration = Duration::from_millis(500);

/// What makes one beginning different from any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nonce(pub [u8; 16]);

impl Nonce {
    /// The preamble, and its echo, with this nonce.
    pub fn preamble(self) -> [u8; PREAMBLE] {
        let mut bytes = [0; PREAMBLE];
        bytes[..16].copy_from_slice(&MAGIC);
        bytes[16..].copy_from_slice(&self.0);
        bytes
    }

    fn fresh() -> std::io::Result<Self> {
        let mut bytes = [0; 16];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        Ok(Self(bytes))
    }
}

/// What the guest is to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Intake {
    /// A session begins: drop the earlier one, echo the nonce.
    Begin(Nonce),
    /// Bytes of the session.
    Data(Vec<u8>),
    /// These were no frames: the session is over.
    Broken,
}

/// The guest's end of a channel: cuts what arrives into sessions. Holds no I/O.
#[derive(Debug, Default)]
pub struct IntakeReader {
    state: State,
    /// The start of a preamble or frame header that is not complete yet.
    partial: Vec<u8>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    /// No session: every byte is skipped until a preamble.
    #[default]
    Scanning,
    /// In a session, before a frame's header or a preamble.
    Boundary,
    /// In a session, this many bytes before the end of a frame.
    Body(usize),
}

impl IntakeReader {
    /// Takes bytes as they arrived and says what they mean, in order.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Vec<Intake> {
        let mut out = Vec::new();
        while !bytes.is_empty() {
            bytes = match self.state {
                State::Scanning => self.scan(bytes, &mut out),
                State::Boundary => self.boundary(bytes, &mut out),
                State::Body(left) => {
                    let (body, rest) = bytes.split_at(left.min(bytes.len()));
                    push_data(&mut out, body);
                    self.state =
                        if left > body.len() { State::Body(left - body.len()) } else { State::Boundary };
                    rest
                }
            };
        }
        out
    }

    fn scan<'a>(&mut self, bytes: &'a [u8], out: &mut Vec<Intake>) -> &'a [u8] {
        let (&byte, rest) = bytes.split_first().unwrap_or((&0, &[]));
        self.partial.push(byte);
        // Keep the longest tail that may still become a preamble.
        while !is_preamble_start(&self.partial) {
            self.partial.remove(0);
        }
        self.complete_preamble(out);
        rest
    }

    fn boundary<'a>(&mut self, bytes: &'a [u8], out: &mut Vec<Intake>) -> &'a [u8] {
        let (&byte, rest) = bytes.split_first().unwrap_or((&0, &[]));
        self.partial.push(byte);
        if is_preamble_start(&self.partial) {
            self.complete_preamble(out);
        } else if !is_header_start(&self.partial) {
            self.state = State::Scanning;
            out.push(Intake::Broken);
            while !is_preamble_start(&self.partial) {
                self.partial.remove(0);
            }
        } else if let &[_, kind, _, _, _, _, _, _, a, b, c, d] = self.partial.as_slice() {
            let length = u32::from_be_bytes([a, b, c, d]) as usize;
            push_data(out, &self.partial);
            self.partial.clear();
            self.state = match (kind, length) {
                (0, 1..) => State::Body(length),
                _ => State::Boundary,
            };
        }
        rest
    }

    fn complete_preamble(&mut self, out: &mut Vec<Intake>) {
        if self.partial.len() == PREAMBLE {
            let mut nonce = [0; 16];
            nonce.copy_from_slice(&self.partial[16..]);
            out.push(Intake::Begin(Nonce(nonce)));
            self.partial.clear();
            self.state = State::Boundary;
        }
    }
}

fn push_data(out: &mut Vec<Intake>, bytes: &[u8]) {
    match out.last_mut() {
        Some(Intake::Data(data)) => data.extend_from_slice(bytes),
        _ => out.push(Intake::Data(bytes.to_vec())),
    }
}

fn is_preamble_start(bytes: &[u8]) -> bool {
    bytes.iter().zip(MAGIC).all(|(a, b)| *a == b)
}

/// Version 0, one of four types, and a body that this protocol's host would send.
fn is_header_start(bytes: &[u8]) -> bool {
    let version = bytes.first().is_none_or(|v| *v == 0);
    let kind = bytes.get(1).is_none_or(|k| *k <= 3);
    let body = match bytes {
        &[_, 0, _, _, _, _, _, _, a, b, c, d] => u32::from_be_bytes([a, b, c, d]) as usize <= MAX_BODY,
        _ => bytes.len() <= HEADER,
    };
    version && kind && body
}

/// Begins a session as the host: sends a preamble and reads up to its echo. Without an echo it sends filler that
/// carries the guest over the end of any frame, and another preamble, until the caller gives up.
///
/// # Errors
/// Those of the channel; the end of it is `UnexpectedEof`.
pub async fn begin<T: AsyncRead + AsyncWrite + Unpin>(channel: &mut T) -> std::io::Result<()> {
    let mut nonce = Nonce::fresh()?;
    channel.write_all(&nonce.preamble()).await?;
    loop {
        match tokio::time::timeout(ECHO_TIMEOUT, read_echo(channel, nonce)).await {
            Ok(done) => return done,
            Err(_) => {
                nonce = Nonce::fresh()?;
                channel.write_all(&vec![0xff; MAX_BODY + HEADER]).await?;
                channel.write_all(&nonce.preamble()).await?;
            }
        }
    }
}

async fn read_echo<T: AsyncRead + Unpin>(channel: &mut T, nonce: Nonce) -> std::io::Result<()> {
    let wanted = nonce.preamble();
    let mut window = std::collections::VecDeque::with_capacity(PREAMBLE);
    let mut byte = [0];
    // Byte by byte: not one byte behind the echo may be taken. The caller's channel is buffered.
    loop {
        channel.read_exact(&mut byte).await?;
        if window.len() == PREAMBLE {
            window.pop_front();
        }
        window.push_back(byte[0]);
        if window.iter().eq(wanted.iter()) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 0, 0, 0, 0, 0, 1];
        bytes.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
        bytes.extend(body);
        bytes
    }

    fn feed_in_pieces(reader: &mut IntakeReader, bytes: &[u8], size: usize) -> Vec<Intake> {
        let mut all: Vec<Intake> = Vec::new();
        for intake in bytes.chunks(size).flat_map(|piece| reader.feed(piece)) {
            match intake {
                Intake::Data(bytes) => push_data(&mut all, &bytes),
                other => all.push(other),
            }
        }
        all
    }

    #[test]
    fn a_preamble_inside_a_body_is_data() {
        let nonce = Nonce([9; 16]);
        let body = frame(&Nonce([1; 16]).preamble());
        let bytes = [&nonce.preamble()[..], &body].concat();
        let got = IntakeReader::default().feed(&bytes);
        assert_eq!(got, [Intake::Begin(nonce), Intake::Data(body)]);
    }

    #[test]
    fn filler_carries_over_a_frame_that_was_never_completed() {
        for missing in [1, 100, MAX_BODY] {
            let mut reader = IntakeReader::default();
            reader.feed(&Nonce([1; 16]).preamble());
            let mut cut = frame(&vec![0; MAX_BODY]);
            cut.truncate(cut.len() - missing);
            reader.feed(&cut);
            let second = Nonce([2; 16]);
            reader.feed(&vec![0xff; MAX_BODY + HEADER]);
            assert_eq!(reader.feed(&second.preamble()), [Intake::Begin(second)], "{missing} bytes missing");
        }
    }

    #[test]
    fn garbage_in_a_session_breaks_it_once() {
        let mut reader = IntakeReader::default();
        reader.feed(&Nonce([1; 16]).preamble());
        assert_eq!(reader.feed(b"garbage, and more of it"), [Intake::Broken]);
        assert_eq!(reader.feed(b"still garbage"), []);
    }

    proptest! {
        #[test]
        fn a_session_begins_after_any_garbage(garbage: Vec<u8>, nonce: [u8; 16], size in 1usize..40) {
            let mut reader = IntakeReader::default();
            let bytes = [&garbage[..], &Nonce(nonce).preamble()].concat();
            let got = feed_in_pieces(&mut reader, &bytes, size);
            prop_assert_eq!(got, vec![Intake::Begin(Nonce(nonce))]);
        }

        #[test]
        fn data_comes_through_whole_however_it_is_cut(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..6),
            size in 1usize..50,
        ) {
            let frames: Vec<u8> = bodies.iter().flat_map(|body| frame(body)).collect();
            let nonce = Nonce([3; 16]);
            let bytes = [&nonce.preamble()[..], &frames].concat();
            let got = feed_in_pieces(&mut IntakeReader::default(), &bytes, size);
            prop_assert_eq!(got, vec![Intake::Begin(nonce), Intake::Data(frames)]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_host_gets_through_to_a_guest_in_the_middle_of_a_frame() {
        let (mut host, mut guest) = tokio::io::duplex(1 << 20);
        let guest = tokio::spawn(async move {
            let mut reader = IntakeReader::default();
            reader.feed(&Nonce([1; 16]).preamble());
            reader.feed(&frame(&[0; 5000])[..100]);
            let mut buffer = [0; 4096];
            loop {
                let n = guest.read(&mut buffer).await.unwrap();
                for intake in reader.feed(&buffer[..n]) {
                    if let Intake::Begin(nonce) = intake {
                        guest.write_all(b"leftover").await.unwrap();
                        guest.write_all(&nonce.preamble()).await.unwrap();
                        guest.write_all(b"first").await.unwrap();
                        return guest;
                    }
                }
            }
        });
        begin(&mut host).await.unwrap();
        let mut first = [0; 5];
        host.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"first");
        guest.await.unwrap();
    }
}
