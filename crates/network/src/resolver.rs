//! The sockets at which a tenant's machines ask for names.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};

use crate::{Error, Result, TenantNetwork};

/// Where machines ask.
pub(crate) const PORT: u16 = 53;

/// The sockets of a tenant's resolver, not blocking. They stay in the tenant's namespace, wherever they are used.
#[derive(Debug)]
pub struct ResolverSockets {
    /// For most questions.
    pub udp: UdpSocket,
    /// For those whose answer is long.
    pub tcp: TcpListener,
}

/// Makes both, on a thread in the tenant's namespace.
pub(crate) fn open(network: &TenantNetwork) -> Result<ResolverSockets> {
    let address: Ipv4Addr = network.subnet.bridge_ip();
    let at = SocketAddrV4::new(address, PORT);
    let open = || {
        let (udp, tcp) = (UdpSocket::bind(at)?, TcpListener::bind(at)?);
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        Ok(ResolverSockets { udp, tcp })
    };
    open().map_err(Error::kernel(format!("listen for names at {at} in the tenant's namespace")))
}
