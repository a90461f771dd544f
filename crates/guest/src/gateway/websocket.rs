//! As much of WebSocket (RFC 6455) as it takes to end a conversation that is not one's own: where frames end, and the
//! frame that closes.

/// The machine has gone to sleep or is stopped: connect again, which wakes it. "Service Restart" in IANA's registry.
pub(super) const SERVICE_RESTART: u16 = 1012;
/// The gateway itself ends.
pub(super) const GOING_AWAY: u16 = 1001;

/// First byte of a frame that closes, whole in itself.
const CLOSE: u8 = 0x88;
const OPCODE: u8 = 0x0f;
const MASKED: u8 = 0x80;
/// Two bytes, a length of eight, a mask of four.
const LONGEST_HEAD: usize = 14;

/// Follows the frames of one direction.
#[derive(Debug, Default)]
pub(super) struct Frames {
    head: [u8; LONGEST_HEAD],
    /// How much of a head has come.
    have: usize,
    /// How much of a payload is still to come.
    payload: u64,
    closed: bool,
}

impl Frames {
    /// The next bytes of the direction.
    pub(super) fn pass(&mut self, mut bytes: &[u8]) {
        while let Some((&first, rest)) = bytes.split_first() {
            if self.payload > 0 {
                let here = usize::try_from(self.payload).unwrap_or(usize::MAX).min(bytes.len());
                self.payload -= here as u64;
                bytes = &bytes[here..];
                continue;
            }
            self.head[self.have] = first;
            self.have += 1;
            bytes = rest;
            if let Some(payload) = payload_after(&self.head[..self.have]) {
                self.payload = payload;
                self.have = 0;
                self.closed |= self.head[0] & OPCODE == CLOSE & OPCODE;
            }
        }
    }

    /// Whether a frame may begin here: none is under way, and none has closed the direction.
    pub(super) fn may_begin(&self) -> bool {
        self.at_boundary() && !self.closed
    }

    /// Whether no frame is under way.
    pub(super) fn at_boundary(&self) -> bool {
        self.have == 0 && self.payload == 0
    }
}

/// The length of the payload after a whole head; `None` where more of the head is to come.
fn payload_after(head: &[u8]) -> Option<u64> {
    let &[_, second, ref rest @ ..] = head else { return None };
    let mask = if second & MASKED == 0 { 0 } else { 4 };
    let (length, bytes) = match second & !MASKED {
        126 => (u64::from(u16::from_be_bytes(*rest.first_chunk()?)), 2),
        127 => (u64::from_be_bytes(*rest.first_chunk()?), 8),
        short => (u64::from(short), 0),
    };
    (rest.len() == bytes + mask).then_some(length)
}

/// The frame by which a server closes. `reason` is at most 123 bytes long.
pub(super) fn close(code: u16, reason: &str) -> Vec<u8> {
    let mut frame = vec![CLOSE, 0];
    frame.extend_from_slice(&code.to_be_bytes());
    frame.extend(reason.bytes().take(123));
    frame[1] = (frame.len() - 2) as u8;
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_close_frame_is_whole_and_ends_its_direction() {
        let frame = close(SERVICE_RESTART, "asleep");
        assert_eq!(frame, b"\x88\x08\x03\xf4asleep");
        let mut frames = Frames::default();
        frames.pass(b"\x81\x02hi");
        assert!(frames.may_begin());
        frames.pass(&frame);
        assert!(frames.at_boundary() && !frames.may_begin());
        assert_eq!(close(1001, &"x".repeat(200)).len(), 127);
    }

    /// A frame, encoded another way than `Frames` reads it: by how long its payload is.
    fn frame(opcode: u8, masked: bool, payload: usize) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut bytes = vec![opcode];
        match payload {
            0..=125 => bytes.push(mask | payload as u8),
            126..=0xffff => {
                bytes.push(mask | 126);
                bytes.extend_from_slice(&(payload as u16).to_be_bytes());
            }
            _ => {
                bytes.push(mask | 127);
                bytes.extend_from_slice(&(payload as u64).to_be_bytes());
            }
        }
        bytes.resize(bytes.len() + if masked { 4 } else { 0 } + payload, 0x88);
        bytes
    }

    proptest! {
        #[test]
        fn boundaries_are_found_wherever_the_bytes_are_parted(
            kinds in proptest::collection::vec((0u8..3, any::<bool>(), prop_oneof![
                0usize..4, 120usize..130, 65_530usize..65_540,
            ]), 1..6),
            chunk in 1usize..5000,
        ) {
            let mut frames = Frames::default();
            let mut ends = vec![0];
            let mut wire = Vec::new();
            for (opcode, masked, payload) in kinds {
                wire.extend(frame(0x80 | opcode, masked, payload));
                ends.push(wire.len());
            }
            let mut at = 0;
            for part in wire.chunks(chunk) {
                frames.pass(part);
                at += part.len();
                prop_assert_eq!(frames.may_begin(), ends.contains(&at), "after {} bytes", at);
            }
        }

        #[test]
        fn no_bytes_do_harm(parts: Vec<Vec<u8>>) {
            let mut frames = Frames::default();
            parts.iter().for_each(|part| frames.pass(part));
        }
    }
}
