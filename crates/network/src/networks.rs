//! An agent's networks: making, changing and removing them.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::Ipv4Net;
use mvm_model::{HostName, NetId, Requirement};
use serde::{Deserialize, Serialize};

use crate::names::waiting_tap;
use crate::namespace::Namespace;
use crate::resolver::{self, ResolverSockets};
use crate::verify::{Expected, Finding};
use crate::{Error, NodeTag, PortSpec, Result, TenantNetwork, connect, host, preflight, tenant, verify};

/// The networks of the agent with one tag, on the host whose namespace it was opened in. Acts on different tenants may
/// run at once; those on one tenant's network or machine come one after the other, which is the caller's to see to.
#[derive(Debug)]
pub struct Networks {
    tag: NodeTag,
    host: Namespace,
    /// The host's table and forwarding are shared by all tenants: one at a time. In it, the links whose forwarding
    /// has been seen to and recorded since this was opened, so that a waking machine need not wait for it.
    host_side: Mutex<BTreeSet<String>>,
}

/// What there is of a tenant's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leftover {
    /// The tenant's number.
    pub net_id: NetId,
    /// Whether its namespace exists.
    pub namespace: bool,
    /// Whether the host's end of its uplink, or an entry for it in the host's table, exists.
    pub host_side: bool,
}

impl Networks {
    /// Takes the calling thread's namespace as the host's, for all that is done later. Makes nothing.
    pub fn open(tag: NodeTag) -> Result<Self> {
        Ok(Self { tag, host: Namespace::current()?, host_side: Mutex::default() })
    }

    /// The agent's tag.
    pub fn tag(&self) -> &NodeTag {
        &self.tag
    }

    /// What networks need of this host, each tried.
    pub fn preflight(&self) -> Vec<Requirement> {
        preflight::check(&self.tag, &self.host)
    }

    /// The host's addresses and routes (default routes aside), for [`crate::choose_uplink`].
    pub fn taken_networks(&self) -> Result<Vec<Ipv4Net>> {
        self.host.run(|| Ok(host::taken()?.into_iter().map(|taken| taken.net).collect()))
    }

    /// Makes a tenant's network, or repairs what is missing or different. Running machines are not disturbed.
    ///
    /// # Errors
    /// [`Error::UplinkTaken`] where the uplink has to be made again and now overlaps something of the host's.
    pub fn ensure(&self, network: &TenantNetwork) -> Result<()> {
        self.host.run(|| host::check_uplink(&self.tag, network))?;
        let name = self.tag.namespace(network.net_id);
        let inside = match Namespace::open(&name)? {
            Some(inside) => inside,
            None => self.host.run(|| Namespace::create(&name))?,
        };
        inside.run(|| tenant::ensure_inside(network))?;
        {
            let _one_at_a_time = self.lock_host_side();
            self.host.run(|| host::ensure(&self.tag, network, &inside))?;
        }
        inside.run(|| tenant::ensure_uplink(network))?;
        tracing::debug!(net_id = %network.net_id, namespace = name, "tenant network is in place");
        Ok(())
    }

    /// Makes a machine's tap and puts it on the bridge: [`Self::open_tap`] and [`Self::admit`].
    pub fn attach(&self, network: &TenantNetwork, port: &PortSpec) -> Result<OwnedFd> {
        let fd = self.open_tap(network, port.offset)?;
        self.admit(network, port)?;
        Ok(fd)
    }

    /// Makes a machine's tap, to be handed to its VMM (`IFF_TAP|IFF_NO_PI|IFF_VNET_HDR`, non-blocking). It is down
    /// and of no bridge until [`Self::admit`], and gone when its last descriptor is closed. Takes well under a
    /// millisecond.
    ///
    /// # Errors
    /// [`Error::TapBusy`] where a machine still holds it.
    pub fn open_tap(&self, network: &TenantNetwork, offset: u16) -> Result<OwnedFd> {
        let inside = self.inside(network)?;
        inside.run(|| tenant::open_tap(network, offset, inside.name()))
    }

    /// Makes a tap ahead of the machine that it will be of, known by a number of the caller's: down, of no bridge, and gone when
    /// its last descriptor is closed.
    pub fn open_waiting_tap(&self, network: &TenantNetwork, number: u32) -> Result<OwnedFd> {
        let inside = self.inside(network)?;
        inside.run(|| tenant::open_named_tap(waiting_tap(number), inside.name()))
    }

    /// Makes a tap that was made ahead the one of the machine at this offset. It stays down until [`Self::admit`].
    ///
    /// # Errors
    /// [`Error::NoTap`] where its VMM has ended.
    pub fn assign_tap(&self, network: &TenantNetwork, number: u32, offset: u16) -> Result<()> {
        let inside = self.inside(network)?;
        inside.run(|| tenant::assign_tap(network, &waiting_tap(number), offset, inside.name()))
    }

    /// Puts an existing tap on the bridge, its source checks and egress first; of one that is there already, replaces
    /// rules and flags that differ without disturbing the machine. This is also how a new agent adopts a running
    /// machine, and how changed egress comes into force. Takes 5 to 15 ms, most of it waiting
    /// for the kernel: a machine can be launched meanwhile, as long as its link goes up only afterwards.
    ///
    /// # Errors
    /// [`Error::NoTap`] where the machine has ended and taken its tap along.
    pub fn admit(&self, network: &TenantNetwork, port: &PortSpec) -> Result<()> {
        if network.subnet.offset_of(port.ip).is_none() && port.ip != builder_ip(network) {
            return Err(Error::NotInSubnet { ip: port.ip, subnet: network.subnet.net() });
        }
        let inside = self.inside(network)?;
        self.forward_towards(port)?;
        inside.run(|| tenant::admit(network, port, inside.name()))
    }

    /// Takes a machine's tap and rules away, or what is left of them; nothing to do where the network is gone.
    pub fn detach(&self, network: &TenantNetwork, port: &PortSpec) -> Result<()> {
        match Namespace::open(&self.tag.namespace(network.net_id))? {
            Some(inside) => inside.run(|| tenant::detach(network, port)),
            None => Ok(()),
        }
    }

    /// Removes a tenant's network with everything in it; with the last one also what mvm set on the host.
    pub fn remove(&self, net_id: NetId) -> Result<()> {
        let name = self.tag.namespace(net_id);
        if let Some(inside) = Namespace::open(&name)? {
            inside.run(tenant::delete_links)?;
        }
        Namespace::delete(&name)?;
        let mut settled = self.lock_host_side();
        settled.clear();
        self.host.run(|| host::remove(&self.tag, net_id))
    }

    /// Removes everything that carries the agent's tag.
    pub fn remove_all(&self) -> Result<()> {
        for leftover in self.list()? {
            self.remove(leftover.net_id)?;
        }
        // An agent that was ended between two steps can leave a table without tenants.
        let _one_at_a_time = self.lock_host_side();
        self.host.run(|| host::remove_unused_table(&self.tag))
    }

    /// Every tenant network of which there is anything, lowest number first.
    pub fn list(&self) -> Result<Vec<Leftover>> {
        let names = Namespace::names()?;
        let namespaces: BTreeSet<NetId> =
            names.iter().filter_map(|name| self.tag.net_id_of_namespace(name)).collect();
        let present = self.host.run(|| host::present(&self.tag))?;
        let on_host: BTreeSet<NetId> =
            present.links.into_iter().chain(present.pairs.iter().map(|(net_id, _)| *net_id)).collect();
        let leftover = |net_id: &NetId| Leftover {
            net_id: *net_id,
            namespace: namespaces.contains(net_id),
            host_side: on_host.contains(net_id),
        };
        Ok(namespaces.union(&on_host).map(leftover).collect())
    }

    /// Compares what is there with what should be. Changes nothing.
    pub fn verify(&self, expected: &[Expected]) -> Result<Vec<Finding>> {
        verify::verify(&self.tag, &self.host, expected)
    }

    /// Compares what is inside one tenant's namespace, and nothing of the host's side. Changes nothing.
    pub fn verify_tenant(&self, expected: &Expected) -> Result<Vec<Finding>> {
        verify::verify_tenant(&self.tag, expected)
    }

    /// Connects to a machine from inside the tenant's namespace, from `.1`: for published ports. The stream can be
    /// used from anywhere afterwards.
    pub async fn connect(
        &self,
        network: &TenantNetwork,
        address: Ipv4Addr,
        port: u16,
    ) -> Result<tokio::net::TcpStream> {
        connect::connect(self.inside(network)?, network.subnet.bridge_ip(), address, port).await
    }

    /// Makes the sockets of a tenant's resolver, at port 53 of `.1`. The kernel lets only machines that reach something by name
    /// ask there. They are to be closed before the network is removed, which they would keep alive.
    pub fn open_resolver(&self, network: &TenantNetwork) -> Result<ResolverSockets> {
        self.inside(network)?.run(|| resolver::open(network))
    }

    /// Lets the tenant's machines whose egress has this name reach these addresses for so long, those aside that no name opens.
    /// Takes some 10 ms.
    pub fn let_reach(
        &self,
        network: &TenantNetwork,
        name: &HostName,
        addresses: &[Ipv4Addr],
        lifetime: Duration,
    ) -> Result<()> {
        self.inside(network)?.run(|| tenant::let_reach(name, addresses, lifetime))
    }

    fn forward_towards(&self, port: &PortSpec) -> Result<()> {
        let mut settled = self.lock_host_side();
        let known = &mut *settled;
        self.host.run(|| {
            let towards = host::links_towards(&port.egress)?;
            if !towards.is_subset(known) || !host::all_forward(&towards)? {
                host::switch_on(&self.tag, &towards)?;
                known.extend(towards);
            }
            Ok(())
        })
    }

    fn inside(&self, network: &TenantNetwork) -> Result<Namespace> {
        let namespace = self.tag.namespace(network.net_id);
        Namespace::open(&namespace)?.ok_or(Error::NoNetwork { net_id: network.net_id, namespace })
    }

    fn lock_host_side(&self) -> MutexGuard<'_, BTreeSet<String>> {
        // What a panic left half done, the next act repairs.
        self.host_side.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn builder_ip(network: &TenantNetwork) -> Ipv4Addr {
    let base = u32::from(network.subnet.net().network());
    Ipv4Addr::from_bits(base + u32::from(mvm_model::network::BUILDER_OFFSET))
}
