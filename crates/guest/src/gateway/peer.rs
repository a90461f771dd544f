//! Who is at the other end of a connection.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use mvm_protocol::proxy::{self, Preface, ProxyError};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Whose word about the sender of a message counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrustedProxy {
    /// The one at this address.
    Address(Ipv4Addr),
    /// The machine's default route: the `.1` of its tenant, from where published ports are served.
    DefaultRoute,
}

impl TrustedProxy {
    /// Its address. Asked for each header, as the route may come later than the gateway.
    pub fn address(self) -> Option<Ipv4Addr> {
        match self {
            TrustedProxy::Address(address) => Some(address),
            TrustedProxy::DefaultRoute => default_route(&std::fs::read_to_string("/proc/net/route").ok()?),
        }
    }
}

/// The gateway of the first default route in the text of `/proc/net/route`.
fn default_route(text: &str) -> Option<Ipv4Addr> {
    text.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (destination, gateway) = (fields.next()?, fields.next()?);
        let gateway = u32::from_str_radix(gateway, 16).ok()?;
        // The kernel prints the four bytes of the address as a number of its own byte order.
        (destination == "00000000" && gateway != 0).then(|| Ipv4Addr::from(gateway.to_ne_bytes()))
    })
}

/// Why a connection is closed before its first request.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    /// A header from someone who may not send one.
    #[error("a PROXY header from {0}, which is not trusted with one")]
    Untrusted(Ipv4Addr),
    /// A header that is not taken.
    #[error(transparent)]
    Header(#[from] ProxyError),
    /// The connection broke or ended inside a header.
    #[error("the connection broke before its first request: {0}")]
    Io(#[from] io::Error),
}

/// A connection whose sender is known.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Identified {
    /// Who sends.
    pub(super) source: SocketAddrV4,
    /// What was read beyond a header and belongs to the first request.
    pub(super) first_bytes: Vec<u8>,
}

/// Reads as much of a connection from `peer` as is needed to know who sends.
///
/// # Errors
/// [`PeerError`]: the connection is to be closed.
pub(super) async fn identify<R: AsyncRead + Unpin>(
    stream: &mut R,
    peer: SocketAddrV4,
    trusted: TrustedProxy,
) -> Result<Identified, PeerError> {
    let mut bytes = Vec::with_capacity(proxy::MAX_HEADER);
    loop {
        match proxy::parse(&bytes)? {
            Preface::Absent => return Ok(Identified { source: peer, first_bytes: bytes }),
            Preface::Header { .. } if trusted.address() != Some(*peer.ip()) => {
                return Err(PeerError::Untrusted(*peer.ip()));
            }
            Preface::Header { length, endpoints } => {
                let source = endpoints.map_or(peer, |endpoints| endpoints.source);
                return Ok(Identified { source, first_bytes: bytes.split_off(length) });
            }
            Preface::Incomplete => {}
        }
        // A header that is incomplete is shorter than its limit, so there is always room to read into.
        let mut rest = (&mut *stream).take((proxy::MAX_HEADER - bytes.len()) as u64);
        if rest.read_buf(&mut bytes).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

/// What a client sends first that knows before that HTTP/2 is spoken here (RFC 9113, 3.4).
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// As much of a first request is read at once.
const FIRST_READ: usize = 2048;

/// Whether the bytes that come first are those of HTTP/2. Reads on until that is certain, into `first_bytes`.
///
/// # Errors
/// The stream's.
pub(super) async fn begins_with_http2<R: AsyncRead + Unpin>(
    stream: &mut R,
    first_bytes: &mut Vec<u8>,
) -> io::Result<bool> {
    loop {
        let have = first_bytes.len().min(HTTP2.len());
        if first_bytes[..have] != HTTP2[..have] {
            return Ok(false);
        }
        if have == HTTP2.len() {
            return Ok(true);
        }
        first_bytes.reserve(FIRST_READ);
        if stream.read_buf(first_bytes).await? == 0 {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_route_is_read_from_the_kernels_table() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t0000F00A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            eth0\t00000000\t0100F00A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        #[cfg(target_endian = "little")]
        assert_eq!(default_route(table), Some(Ipv4Addr::new(10, 240, 0, 1)));
        assert_eq!(default_route(table.lines().next().unwrap()), None);
    }

    const TRUSTED: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 1);

    async fn from(peer: Ipv4Addr, bytes: &[u8]) -> Result<Identified, PeerError> {
        let peer = SocketAddrV4::new(peer, 5);
        // In two parts, as a network may bring them.
        let (first, second) = bytes.split_at(bytes.len() / 2);
        identify(&mut first.chain(second), peer, TrustedProxy::Address(TRUSTED)).await
    }

    #[tokio::test]
    async fn a_header_counts_only_from_the_trusted_proxy() {
        let source = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 9), 40000);
        let header = proxy::encode(source, SocketAddrV4::new(TRUSTED, 80));
        let wire = [&header[..], b"GET /"].concat();
        let identified = from(TRUSTED, &wire).await.unwrap();
        assert_eq!(identified, Identified { source, first_bytes: b"GET /".to_vec() });
        let other = Ipv4Addr::new(10, 240, 0, 9);
        assert!(matches!(from(other, &wire).await, Err(PeerError::Untrusted(ip)) if ip == other));
        assert!(matches!(from(TRUSTED, &header[..20]).await, Err(PeerError::Io(_))));
    }

    #[tokio::test]
    async fn without_a_header_the_peer_is_the_source() {
        for peer in [TRUSTED, Ipv4Addr::new(10, 240, 0, 9)] {
            let identified = from(peer, b"\r\nGET / HTTP/1.1").await.unwrap();
            assert_eq!(*identified.source.ip(), peer);
            // What it did not need to read is still to come.
            assert_eq!(identified.first_bytes, b"\r\nGET / ");
        }
    }

    #[tokio::test]
    async fn http_2_is_known_by_its_first_bytes() {
        let found = async |first: &[u8], then: &[u8]| {
            let mut first_bytes = first.to_vec();
            let found = begins_with_http2(&mut &*then, &mut first_bytes).await.unwrap();
            assert_eq!(first_bytes, [first, then].concat());
            found
        };
        for cut in 0..=HTTP2.len() {
            let (first, then) = HTTP2.split_at(cut);
            assert!(found(first, then).await, "{cut}");
        }
        assert!(found(HTTP2, b"").await);
        assert!(!found(b"", b"PRI / HTTP/1.1\r\n").await);
        assert!(!found(b"", b"PRI").await);
        assert!(!found(b"", b"").await);
    }
}
