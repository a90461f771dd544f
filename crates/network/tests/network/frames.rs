//! Building and reading the few kinds of frames that the tests need.

use std::net::Ipv4Addr;

use mvm_model::MacAddr;

pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

/// What arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    Arp { request: bool, sender: (MacAddr, Ipv4Addr), target: Ipv4Addr },
    Udp { from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: Vec<u8> },
    Tcp { from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), flags: u8 },
    Icmp { from: Ipv4Addr, kind: u8, code: u8 },
    Other(Vec<u8>),
}

pub fn ethernet(to: MacAddr, from: MacAddr, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to.0[..], &from.0, &kind.to_be_bytes(), payload].concat()
}

/// An ARP packet: `operation` 1 asks, 2 answers.
pub fn arp(operation: u8, sender: (MacAddr, Ipv4Addr), target: (MacAddr, Ipv4Addr)) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    [&head[..], &sender.0.0, &sender.1.octets(), &target.0.0, &target.1.octets()].concat()
}

pub fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let mut header = vec![0x45, 0, length[0], length[1], 0, 1, 0x40, 0, 64, protocol, 0, 0];
    header.extend(from.octets());
    header.extend(to.octets());
    let sum = checksum(&header).to_be_bytes();
    header[10..12].copy_from_slice(&sum);
    [header, payload.to_vec()].concat()
}

pub fn udp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    // A checksum of zero is none.
    let header = [from.1.to_be_bytes(), to.1.to_be_bytes(), length.to_be_bytes(), [0, 0]].concat();
    ipv4(from.0, to.0, 17, &[&header, payload].concat())
}

pub fn tcp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), flags: u8) -> Vec<u8> {
    let mut segment = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let pseudo = [&from.0.octets()[..], &to.0.octets(), &[0, 6, 0, 20], &segment].concat();
    let sum = checksum(&pseudo).to_be_bytes();
    segment[16..18].copy_from_slice(&sum);
    ipv4(from.0, to.0, 6, &segment)
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | c.get(1).map_or(0, |b| u32::from(*b))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

pub fn read(frame: &[u8]) -> Seen {
    parse(frame).unwrap_or_else(|| Seen::Other(frame.to_vec()))
}

fn parse(frame: &[u8]) -> Option<Seen> {
    let body = frame.get(14..)?;
    match frame.get(12..14)? {
        [0x08, 0x06] => Some(Seen::Arp {
            request: *body.get(7)? == 1,
            sender: (MacAddr(body.get(8..14)?.try_into().ok()?), address(body, 14)?),
            target: address(body, 24)?,
        }),
        [0x08, 0x00] => {
            let (from, to) = (address(body, 12)?, address(body, 16)?);
            let length = usize::from(port(body, 2)?);
            let inner = body.get(usize::from(body.first()? & 0x0f) * 4..length)?;
            match body.get(9)? {
                1 => Some(Seen::Icmp { from, kind: *inner.first()?, code: *inner.get(1)? }),
                6 => Some(Seen::Tcp {
                    from: (from, port(inner, 0)?),
                    to: (to, port(inner, 2)?),
                    flags: *inner.get(13)?,
                }),
                17 => Some(Seen::Udp {
                    from: (from, port(inner, 0)?),
                    to: (to, port(inner, 2)?),
                    payload: inner.get(8..)?.to_vec(),
                }),
                _ => None,
            }
        }
        _ => None,
    }
}

fn address(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?))
}

fn port(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
