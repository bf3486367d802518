//! Network interfaces of this network namespace, as the kernel lists them by netlink.
//! (`/sys/class/net` shows those of the namespace in which it was mounted, which may be another.)

use enforcer_common::tables::Role;
use futures_util::{StreamExt as _, TryStreamExt as _};
use rtnetlink::{
    Handle, MulticastGroup,
    packet_core::NetlinkMessage,
    packet_route::{
        RouteNetlinkMessage,
        link::{InfoPortKind, LinkAttribute, LinkInfo, LinkMessage},
    },
    sys::SocketAddr,
};

use super::KernelError;

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The kind of its link layer (`ARPHRD_…`).
    pub layer: u16,
    /// The index of its controller, such as the bridge that it is a port of.
    pub controller: Option<u32>,
    /// It is a port of a bridge, a bond or a team: whatever arrives through it counts as the
    /// controller's before any protocol sees it.
    pub is_port: bool,
    /// It has its role only as the bridge of pods' interfaces.
    pub controls_pods: bool,
    /// This namespace's number for the network namespace of its other end, if it has one elsewhere (a veth pair).
    pub peer_namespace: Option<i32>,
}

impl Link {
    /// Whether it is the loopback interface.
    pub fn is_loopback(&self) -> bool {
        self.layer == libc::ARPHRD_LOOPBACK
    }

    /// One of its roles, as programs look it up.
    pub(super) fn role_word(&self, role: Role) -> u32 {
        match self.has_ethernet_header() {
            true => role as u32,
            false => role as u32 | Role::NO_LINK_HEADER,
        }
    }

    /// Whether its packets begin with an Ethernet header; on lo, that header is all zeros.
    pub fn has_ethernet_header(&self) -> bool {
        self.is_loopback() || self.layer == libc::ARPHRD_ETHER
    }
}

/// Lists interfaces, and reports when one appears, disappears or changes.
pub struct LinkEvents {
    handle: Handle,
    messages:
        futures_util::stream::BoxStream<'static, (NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
}

impl LinkEvents {
    /// Subscribes. Must be called within a runtime, which drives the connection.
    ///
    /// # Errors
    ///
    /// The kernel provides no netlink socket.
    pub fn open() -> Result<Self, KernelError> {
        let (connection, handle, messages) =
            rtnetlink::new_multicast_connection(&[MulticastGroup::Link])
                .map_err(|error| KernelError::Links(error.to_string()))?;
        tokio::spawn(connection);
        Ok(Self {
            handle,
            messages: messages.boxed(),
        })
    }

    /// All interfaces.
    ///
    /// # Errors
    ///
    /// The kernel does not answer.
    pub async fn list(&self) -> Result<Vec<Link>, KernelError> {
        let links: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|error| KernelError::Links(error.to_string()))?;
        Ok(links.into_iter().filter_map(link).collect())
    }

    /// Waits for a change. Never completes without one.
    pub async fn changed(&mut self) {
        if self.messages.next().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

fn link(message: LinkMessage) -> Option<Link> {
    let mut name = None;
    let mut controller = None;
    let mut is_port = false;
    let mut peer_namespace = None;
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(value) => name = Some(value),
            LinkAttribute::Controller(index) if index != 0 => controller = Some(index),
            LinkAttribute::LinkNetNsId(number) => peer_namespace = Some(number),
            LinkAttribute::LinkInfo(infos) => {
                is_port = infos.iter().any(|info| {
                    matches!(
                        info,
                        LinkInfo::PortKind(
                            InfoPortKind::Bridge | InfoPortKind::Bond | InfoPortKind::Team
                        )
                    )
                });
            }
            _ => {}
        }
    }
    let layer = u16::from(message.header.link_layer_type);
    Some(Link {
        index: message.header.index,
        name: name?,
        layer,
        controller,
        is_port,
        controls_pods: false,
        peer_namespace,
    })
}
