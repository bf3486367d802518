//! Which interface leads to an address, as the kernel's routing table of this network namespace says, and which number this
//! namespace has for another.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures_util::{StreamExt as _, pin_mut};
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        nsid::{NsidAttribute, NsidMessage},
        route::{RouteAttribute, RouteMessage},
    },
};

use super::{KernelError, netns::OtherNamespace};

/// Asks the kernel for routes, and remembers its answers.
pub struct Routes {
    handle: Handle,
    known: HashMap<IpAddr, Option<u32>>,
}

impl Routes {
    /// Must be called within a runtime, which drives the connection.
    ///
    /// # Errors
    ///
    /// The kernel gives no netlink socket.
    pub fn open() -> Result<Self, KernelError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|error| KernelError::Links(error.to_string()))?;
        tokio::spawn(connection);
        Ok(Self {
            handle,
            known: HashMap::new(),
        })
    }

    /// The index of the interface that leads to an address; `None` where there is no route. For an address of this namespace
    /// itself it is that of lo.
    pub async fn interface_to(&mut self, address: IpAddr) -> Option<u32> {
        if let Some(known) = self.known.get(&address) {
            return *known;
        }
        let asked = match address {
            IpAddr::V4(address) => question_v4(address),
            IpAddr::V6(address) => question_v6(address),
        };
        let answers = self.handle.route().get(asked).execute();
        pin_mut!(answers);
        let found = match answers.next().await {
            Some(Ok(route)) => route.attributes.iter().find_map(|attribute| {
                let RouteAttribute::Oif(index) = attribute else {
                    return None;
                };
                Some(*index)
            }),
            _ => None,
        };
        self.known.insert(address, found);
        found
    }

    /// The number that this namespace has for another one, as in [`Link::peer_namespace`](super::Link::peer_namespace); `None`
    /// if no interface has led there yet.
    pub async fn number_of(&self, namespace: &OtherNamespace) -> Option<i32> {
        let mut question = NsidMessage::default();
        question
            .attributes
            .push(NsidAttribute::Fd(namespace.descriptor()));
        let mut question = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(question));
        question.header.flags = NLM_F_REQUEST;
        let mut answers = self.handle.clone().request(question).ok()?;
        let answer = answers.next().await?;
        let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(answer)) = answer.payload
        else {
            return None;
        };
        let number = answer.attributes.into_iter().find_map(|attribute| {
            let NsidAttribute::Id(number) = attribute else {
                return None;
            };
            Some(number)
        });
        number.filter(|number| *number >= 0)
    }
}

fn question_v4(address: Ipv4Addr) -> RouteMessage {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(address, 32)
        .build()
}

fn question_v6(address: Ipv6Addr) -> RouteMessage {
    RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(address, 128)
        .build()
}
