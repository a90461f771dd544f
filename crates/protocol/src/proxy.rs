//! PROXY protocol, version 2: how the agent tells a gateway who is really at the other end of a connection.
//!
//! A published port's connection begins with one header of 28 bytes for TCP over IPv4; other senders may
//! say `LOCAL` (a connection of the proxy's own) and append extension fields, which are skipped. Everything
//! else is refused. Format: <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>, section 2.2.

use std::net::{Ipv4Addr, SocketAddrV4};

/// What a header begins with. No HTTP request does.
pub const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The longest header that is taken, in bytes: what the specification lets a receiver expect in one segment.
pub const MAX_HEADER: usize = 536;

/// Signature, version and command, family and transport, length of the rest.
const FIXED: usize = 16;
/// Two addresses and two ports of IPv4.
const ADDRESSES: usize = 12;
const VERSION_2: u8 = 0x20;
const LOCAL: u8 = 0x0;
const PROXY: u8 = 0x1;
const TCP_OVER_IPV4: u8 = 0x11;

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preface {
    /// The beginning of a header; more bytes are needed to tell.
    Incomplete,
    /// Not a header: all bytes are the connection's own.
    Absent,
    /// A header.
    Header {
        /// How many bytes it has; what follows is the connection's own.
        length: usize,
        /// Who connected to what; `None` where the proxy speaks for itself.
        endpoints: Option<Endpoints>,
    },
}

/// The two ends of the connection that is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoints {
    /// Who connected.
    pub source: SocketAddrV4,
    /// What it connected to.
    pub destination: SocketAddrV4,
}

/// A header that begins well and is not one that is taken here. The connection is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// Another version or command.
    #[error("a PROXY header of version and command {0:#04x}: only version 2 with LOCAL or PROXY is taken")]
    Command(u8),
    /// Another family or transport.
    #[error("a PROXY header for family and transport {0:#04x}: only TCP over IPv4 (0x11) is taken")]
    Family(u8),
    /// More than [`MAX_HEADER`], or less than two addresses need.
    #[error("a PROXY header of {0} bytes: at least 28 with addresses, and at most {MAX_HEADER}, are taken")]
    Length(usize),
}

/// The header for a connection from `source` to `destination`.
pub fn encode(source: SocketAddrV4, destination: SocketAddrV4) -> Vec<u8> {
    let mut header = Vec::with_capacity(FIXED + ADDRESSES);
    header.extend(SIGNATURE);
    header.extend([VERSION_2 | PROXY, TCP_OVER_IPV4, 0, ADDRESSES as u8]);
    header.extend(source.ip().octets());
    header.extend(destination.ip().octets());
    header.extend(source.port().to_be_bytes());
    header.extend(destination.port().to_be_bytes());
    header
}

/// Tells what `bytes`, all that a connection has brought so far, begin with.
///
/// # Errors
/// [`ProxyError`] as soon as the bytes are a header that is not taken.
pub fn parse(bytes: &[u8]) -> Result<Preface, ProxyError> {
    let signature = &SIGNATURE[..bytes.len().min(SIGNATURE.len())];
    if !bytes.starts_with(signature) {
        return Ok(Preface::Absent);
    }
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED>() else {
        return Ok(Preface::Incomplete);
    };
    let [.., command, family, high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    let total = FIXED + length;
    let local = match command ^ VERSION_2 {
        LOCAL => true,
        PROXY => false,
        _ => return Err(ProxyError::Command(command)),
    };
    if !local && family != TCP_OVER_IPV4 {
        return Err(ProxyError::Family(family));
    }
    if total > MAX_HEADER || (!local && length < ADDRESSES) {
        return Err(ProxyError::Length(total));
    }
    match rest.get(..length) {
        None => Ok(Preface::Incomplete),
        Some(_) if local => Ok(Preface::Header { length: total, endpoints: None }),
        Some(body) => Ok(Preface::Header { length: total, endpoints: endpoints(body) }),
    }
}

fn endpoints(body: &[u8]) -> Option<Endpoints> {
    let &[a, b, c, d, e, f, g, h, i, j, k, l] = body.first_chunk::<ADDRESSES>()?;
    Some(Endpoints {
        source: SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([i, j])),
        destination: SocketAddrV4::new(Ipv4Addr::new(e, f, g, h), u16::from_be_bytes([k, l])),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SOURCE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 9), 40000);
    const DESTINATION: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 240, 0, 3), 8080);

    fn changed(at: usize, to: u8) -> Vec<u8> {
        let mut header = encode(SOURCE, DESTINATION);
        header[at] = to;
        header
    }

    #[test]
    fn a_header_is_what_the_specification_says() {
        let wire = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xcb\0\x71\x09\x0a\xf0\0\x03\x9c\x40\x1f\x90";
        assert_eq!(encode(SOURCE, DESTINATION), wire);
    }

    #[test]
    fn local_connections_have_no_endpoints_and_extensions_are_skipped() {
        let local = [&SIGNATURE[..], &[0x20, 0, 0, 3, 1, 2, 3]].concat();
        assert_eq!(parse(&local), Ok(Preface::Header { length: 19, endpoints: None }));
        let mut extended = changed(15, 15);
        assert_eq!(parse(&extended), Ok(Preface::Incomplete));
        extended.extend([4, 0, 0]);
        let endpoints = Some(Endpoints { source: SOURCE, destination: DESTINATION });
        assert_eq!(parse(&extended), Ok(Preface::Header { length: 31, endpoints }));
    }

    #[test]
    fn what_is_not_taken_is_refused_before_its_end_has_come() {
        assert_eq!(parse(&changed(12, 0x11)), Err(ProxyError::Command(0x11)));
        assert_eq!(parse(&changed(12, 0x22)), Err(ProxyError::Command(0x22)));
        assert_eq!(parse(&changed(13, 0x21)), Err(ProxyError::Family(0x21)));
        assert_eq!(parse(&changed(15, 11)), Err(ProxyError::Length(27)));
        assert_eq!(parse(&changed(14, 4)[..FIXED]), Err(ProxyError::Length(FIXED + 0x40c)));
    }

    #[test]
    fn requests_and_other_bytes_are_not_headers() {
        assert_eq!(parse(b""), Ok(Preface::Incomplete));
        assert_eq!(parse(b"\r\n"), Ok(Preface::Incomplete));
        assert_eq!(parse(b"G"), Ok(Preface::Absent));
        assert_eq!(parse(b"\r\nGET / HTTP/1.1\r\n"), Ok(Preface::Absent));
        assert_eq!(parse(b"PROXY TCP4 203.0.113.9 10.240.0.3 1 2\r\n"), Ok(Preface::Absent));
    }

    fn address() -> impl Strategy<Value = SocketAddrV4> {
        any::<(u32, u16)>().prop_map(|(ip, port)| SocketAddrV4::new(Ipv4Addr::from_bits(ip), port))
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_whatever_follows(source in address(), destination in address(), after: Vec<u8>) {
            let mut wire = encode(source, destination);
            let length = wire.len();
            for short in 0..length {
                prop_assert_eq!(parse(&wire[..short]), Ok(Preface::Incomplete));
            }
            wire.extend(after);
            let endpoints = Some(Endpoints { source, destination });
            prop_assert_eq!(parse(&wire), Ok(Preface::Header { length, endpoints }));
        }

        /// More bytes never change what was already decided, and no header is over the limit.
        #[test]
        fn a_decision_stands(valid in prop::bool::ANY, bytes: Vec<u8>) {
            let bytes = if valid { [&SIGNATURE[..], &bytes].concat() } else { bytes };
            let mut decided = None;
            for end in 0..=bytes.len() {
                let now = parse(&bytes[..end]);
                if let Some(earlier) = decided {
                    prop_assert_eq!(now, earlier);
                } else if now != Ok(Preface::Incomplete) {
                    decided = Some(now);
                }
                if let Ok(Preface::Header { length, .. }) = now {
                    prop_assert!(length <= end && length <= MAX_HEADER);
                }
            }
            if bytes.len() >= MAX_HEADER {
                prop_assert!(decided.is_some());
            }
        }
    }
}
