//! Links, addresses, routes and bridge ports, by rtnetlink in the calling thread's namespace.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::Ipv4Net;
use mvm_model::MacAddr;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth,
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::{Error, Result};

/// A link as it really is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: Option<MacAddr>,
    pub(crate) up: bool,
    /// The index of the bridge that it is a port of.
    pub(crate) bridge: Option<u32>,
    pub(crate) port: PortFlags,
}

/// How a bridge treats one of its ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct PortFlags {
    /// It reaches only ports that are not isolated.
    pub(crate) isolated: bool,
    /// The bridge learns addresses from its frames.
    pub(crate) learning: bool,
    /// Frames to unknown addresses are sent to it.
    pub(crate) flood: bool,
    /// Multicast frames are sent to it.
    pub(crate) multicast_flood: bool,
    /// Frames may be sent back out of the port that they came from.
    pub(crate) hairpin: bool,
}

/// A network that the kernel knows a way to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    /// The destination; /0 is the default route.
    pub(crate) net: Ipv4Net,
    pub(crate) gateway: Option<Ipv4Addr>,
    /// The links it leaves by.
    pub(crate) links: Vec<u32>,
}

/// A socket to the kernel's routing tables. It belongs to the namespace of the thread that opened it.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens one in the calling thread's namespace.
    pub(crate) fn open() -> Result<Self> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        Ok(Self { socket: open().map_err(Error::kernel("open a netlink socket"))?, sequence: 0 })
    }

    /// Every link.
    pub(crate) fn links(&mut self) -> Result<Vec<Link>> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.exchange(request, NLM_F_DUMP).map_err(Error::kernel("list links"))?;
        Ok(answers.into_iter().filter_map(link_of).collect())
    }

    /// The link of this name.
    pub(crate) fn link(&mut self, name: &str) -> Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.exchange(RouteNetlinkMessage::GetLink(message), 0) {
            Ok(answers) => Ok(answers.into_iter().find_map(link_of)),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(None),
            Err(source) => Err(Error::Kernel { action: format!("look for link {name}"), source }),
        }
    }

    /// Creates a bridge without spanning tree or multicast snooping; down.
    pub(crate) fn create_bridge(&mut self, name: &str, mac: MacAddr) -> Result<()> {
        let bridge = vec![
            InfoBridge::StpState(BridgeStpState::Disabled),
            InfoBridge::ForwardDelay(0),
            InfoBridge::MulticastSnooping(false),
        ];
        let mut message = named(name);
        message.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(bridge)),
        ]));
        self.create(message, format!("create bridge {name}"))
    }

    /// Creates a pair of links, the peer in another namespace; both down.
    pub(crate) fn create_veth(
        &mut self,
        name: &str,
        peer: &str,
        peer_namespace: BorrowedFd<'_>,
    ) -> Result<()> {
        let mut peer_message = named(peer);
        peer_message.attributes.push(LinkAttribute::NetNsFd(peer_namespace.as_raw_fd()));
        let mut message = named(name);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer_message))),
        ]));
        self.create(message, format!("create link {name}"))
    }

    fn create(&mut self, message: LinkMessage, action: String) -> Result<()> {
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        self.exchange(RouteNetlinkMessage::NewLink(message), flags).map_err(Error::kernel(action))?;
        Ok(())
    }

    /// Deletes a link; a veth takes its peer along.
    pub(crate) fn delete_link(&mut self, link: &Link) -> Result<()> {
        let action = format!("delete link {}", link.name);
        self.exchange(RouteNetlinkMessage::DelLink(indexed(link.index)), NLM_F_ACK)
            .map_err(Error::kernel(action))?;
        Ok(())
    }

    /// Sets a link up or down.
    pub(crate) fn set_up(&mut self, link: &Link, up: bool) -> Result<()> {
        let mut message = indexed(link.index);
        message.header.change_mask = LinkFlags::Up;
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        self.change(message, format!("set {} {}", link.name, if up { "up" } else { "down" }))
    }

    /// Gives a link that is down another name.
    pub(crate) fn rename(&mut self, link: &Link, name: &str) -> Result<()> {
        let mut message = indexed(link.index);
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.change(message, format!("rename {} to {name}", link.name))
    }

    /// Gives a link this MAC address.
    pub(crate) fn set_mac(&mut self, link: &Link, mac: MacAddr) -> Result<()> {
        let mut message = indexed(link.index);
        message.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
        self.change(message, format!("set the address of {}", link.name))
    }

    /// Makes a link a port of a bridge.
    pub(crate) fn join_bridge(&mut self, link: &Link, bridge: &Link) -> Result<()> {
        let mut message = indexed(link.index);
        message.attributes.push(LinkAttribute::Controller(bridge.index));
        self.change(message, format!("make {} a port of {}", link.name, bridge.name))
    }

    /// Sets how its bridge treats a port.
    pub(crate) fn set_port(&mut self, link: &Link, flags: PortFlags) -> Result<()> {
        let port = vec![
            InfoBridgePort::Isolated(flags.isolated),
            InfoBridgePort::Learning(flags.learning),
            InfoBridgePort::UnicastFlood(flags.flood),
            InfoBridgePort::MulticastFlood(flags.multicast_flood),
            InfoBridgePort::HairpinMode(flags.hairpin),
        ];
        let mut message = indexed(link.index);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(port)),
        ]));
        self.change(message, format!("set the port flags of {}", link.name))
    }

    fn change(&mut self, message: LinkMessage, action: String) -> Result<()> {
        self.exchange(RouteNetlinkMessage::NewLink(message), NLM_F_ACK).map_err(Error::kernel(action))?;
        Ok(())
    }

    /// Tells the bridge that this address is behind this port, for good.
    pub(crate) fn pin_mac(&mut self, port: &Link, mac: MacAddr) -> Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = port.index;
        // What `bridge fdb … static` sets.
        message.header.state = NeighbourState::Noarp;
        message.header.flags = NeighbourFlags::Controller;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        let action = format!("pin {mac} to {}", port.name);
        self.exchange(RouteNetlinkMessage::NewNeighbour(message), flags).map_err(Error::kernel(action))?;
        Ok(())
    }

    /// Every address that a bridge has pinned or learnt behind a port, with the port's index.
    pub(crate) fn forwarding_entries(&mut self) -> Result<Vec<(u32, MacAddr)>> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        let request = RouteNetlinkMessage::GetNeighbour(message);
        let answers = self.exchange(request, NLM_F_DUMP).map_err(Error::kernel("list forwarding entries"))?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| {
                let RouteNetlinkMessage::NewNeighbour(entry) = answer else { return None };
                let mac = entry.attributes.iter().find_map(|attribute| match attribute {
                    NeighbourAttribute::LinkLayerAddress(bytes) => mac_of(bytes),
                    _ => None,
                })?;
                Some((entry.header.ifindex, mac))
            })
            .collect())
    }

    /// Every IPv4 address with its prefix, and the index of its link.
    pub(crate) fn addresses(&mut self) -> Result<Vec<(u32, Ipv4Net)>> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        let request = RouteNetlinkMessage::GetAddress(message);
        let answers = self.exchange(request, NLM_F_DUMP).map_err(Error::kernel("list addresses"))?;
        Ok(answers.into_iter().filter_map(address_of).collect())
    }

    /// Gives a link an address.
    pub(crate) fn add_address(&mut self, link: &Link, address: Ipv4Net) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = address.prefix_len();
        message.header.index = link.index;
        message.attributes.push(AddressAttribute::Local(IpAddr::V4(address.addr())));
        message.attributes.push(AddressAttribute::Address(IpAddr::V4(address.addr())));
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        let action = format!("give {} the address {address}", link.name);
        self.exchange(RouteNetlinkMessage::NewAddress(message), flags).map_err(Error::kernel(action))?;
        Ok(())
    }

    /// Takes an address from a link.
    pub(crate) fn delete_address(&mut self, link: &Link, address: Ipv4Net) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = address.prefix_len();
        message.header.index = link.index;
        message.attributes.push(AddressAttribute::Local(IpAddr::V4(address.addr())));
        let action = format!("take the address {address} from {}", link.name);
        self.exchange(RouteNetlinkMessage::DelAddress(message), NLM_F_ACK).map_err(Error::kernel(action))?;
        Ok(())
    }

    /// Every IPv4 route of every table.
    pub(crate) fn routes(&mut self) -> Result<Vec<Route>> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        let request = RouteNetlinkMessage::GetRoute(message);
        let answers = self.exchange(request, NLM_F_DUMP).map_err(Error::kernel("list routes"))?;
        Ok(answers.into_iter().filter_map(route_of).collect())
    }

    /// Sets the default route.
    pub(crate) fn set_default_route(&mut self, gateway: Ipv4Addr, link: &Link) -> Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
        message.attributes.push(RouteAttribute::Oif(link.index));
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        let action = format!("set the default route by {}", link.name);
        self.exchange(RouteNetlinkMessage::NewRoute(message), flags).map_err(Error::kernel(action))?;
        Ok(())
    }

    /// Sends a request and collects the answers up to the acknowledgement, the end of a dump or the one answer.
    fn exchange(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(request));
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let answer =
                    NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                let length = usize::try_from(answer.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    _ => {}
                }
            }
            if flags & (NLM_F_DUMP | NLM_F_ACK) == 0 && !answers.is_empty() {
                return Ok(answers);
            }
        }
    }
}

fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

fn indexed(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

fn mac_of(bytes: &[u8]) -> Option<MacAddr> {
    Some(MacAddr(bytes.try_into().ok()?))
}

fn link_of(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        up: message.header.flags.contains(LinkFlags::Up),
        bridge: None,
        port: PortFlags::default(),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(bytes) => link.mac = mac_of(&bytes),
            LinkAttribute::Controller(index) => link.bridge = Some(index),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::PortData(InfoPortData::BridgePort(port)) = info {
                        link.port = port_of(&port);
                    }
                }
            }
            _ => {}
        }
    }
    Some(link)
}

fn port_of(attributes: &[InfoBridgePort]) -> PortFlags {
    let mut port = PortFlags::default();
    for attribute in attributes {
        match attribute {
            InfoBridgePort::Isolated(on) => port.isolated = *on,
            InfoBridgePort::Learning(on) => port.learning = *on,
            InfoBridgePort::UnicastFlood(on) => port.flood = *on,
            InfoBridgePort::MulticastFlood(on) => port.multicast_flood = *on,
            InfoBridgePort::HairpinMode(on) => port.hairpin = *on,
            _ => {}
        }
    }
    port
}

fn address_of(message: RouteNetlinkMessage) -> Option<(u32, Ipv4Net)> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(ip)) => Some(*ip),
        _ => None,
    })?;
    Some((message.header.index, Ipv4Net::new(local, message.header.prefix_len).ok()?))
}

fn route_of(message: RouteNetlinkMessage) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    let mut destination = Ipv4Addr::UNSPECIFIED;
    let mut gateway = None;
    let mut links = Vec::new();
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => destination = ip,
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => gateway = Some(ip),
            RouteAttribute::Oif(index) => links.push(index),
            RouteAttribute::MultiPath(hops) => links.extend(hops.iter().map(|hop| hop.interface_index)),
            _ => {}
        }
    }
    let net = Ipv4Net::new(destination, message.header.destination_prefix_length).ok()?;
    Some(Route { net, gateway, links })
}
