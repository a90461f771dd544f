//! Connections from inside a tenant's namespace.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, socket_with};
use tokio::net::{TcpSocket, TcpStream};

use crate::namespace::Namespace;
use crate::{Error, Result};

/// Connects from `source` to a machine. The socket is made on a thread inside; connecting happens on the runtime.
pub(crate) async fn connect(
    inside: Namespace,
    source: Ipv4Addr,
    address: Ipv4Addr,
    port: u16,
) -> Result<TcpStream> {
    let target = SocketAddrV4::new(address, port);
    let made = tokio::task::spawn_blocking(move || inside.run(|| open_socket(source)));
    let socket = match made.await {
        Ok(socket) => socket?,
        Err(ended) => return Err(Error::kernel("open a socket on a thread")(ended.into())),
    };
    let socket = TcpSocket::from_std_stream(socket.into());
    socket.connect(SocketAddr::V4(target)).await.map_err(Error::kernel(format!("connect to {target}")))
}

fn open_socket(source: Ipv4Addr) -> Result<OwnedFd> {
    let open = || {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, Some(ipproto::TCP))?;
        bind(&socket, &SocketAddrV4::new(source, 0))?;
        Ok(socket)
    };
    open().map_err(|error: rustix::io::Errno| {
        Error::kernel("open a socket in the tenant's namespace")(error.into())
    })
}
