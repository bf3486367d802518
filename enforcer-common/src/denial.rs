//! The sender of a denied packet and the endpoint that it addressed: what a record says about a denial besides its reason.
//! Both are stored with the generation that denied, so that they need not be derived later, under another policy or when
//! the sender is gone.

use crate::{
    decide::receiver_at,
    judge::{sender_by_cgroup, sender_by_entry, sender_on_wire, src_on_wire},
    mark::PacketMark,
    packet::PortKind,
    record::{Hook, NO_TARGET, RecordKey},
    tables::{NOBODY, Party, Role, Tables},
    vantage::{Vantage, View},
    verdict::Reason,
};

/// The sender of the denial with that key. `vantage` is where it was judged; calls of processes count as
/// [sent](View::Sent). `mark` is the mark on the packet after it was judged at ingress; elsewhere it is not used.
#[inline(always)]
pub fn sender<T: Tables>(tables: &T, vantage: Vantage, mark: PacketMark, key: &RecordKey) -> Party {
    let Some(settings) = tables.settings() else {
        return NOBODY;
    };
    let src = tables.address_info(key.packet_src());
    match vantage.view() {
        View::Arrived {
            role: role @ Role::Pod,
            ..
        } if mark.is_from_known_pod() => sender_by_entry(settings, mark.entered(role), src),
        View::Arrived { role, .. } => sender_on_wire(settings, role, src),
        View::Left { entered, .. } => sender_by_entry(settings, entered, src),
        View::Sent { sender, origin, .. } => sender_by_cgroup(settings, sender, origin),
        // The process that holds a component's port is reported, not the client that connects to the component.
        View::Received { receiver, .. } if key.reason == Reason::ForeignListener.code() => receiver,
        View::Received {
            role: Role::Loopback,
            ..
        } => settings.local as Party,
        View::Received { role, .. } => sender_on_wire(settings, role, src),
    }
}

/// The set of endpoints that was addressed. [`NO_TARGET`] where there is no port.
#[inline(always)]
pub fn target<T: Tables>(tables: &T, vantage: Vantage, key: &RecordKey) -> u16 {
    let Some(port_kind) = PortKind::from_code(key.port_kind) else {
        return NO_TARGET;
    };
    let target = party_at(tables, vantage, key, port_kind).and_then(|at| {
        let class = tables.class(port_kind, key.port)?;
        tables.target(tables.settings()?, at, class)
    });
    target.unwrap_or(NO_TARGET)
}

/// The party at the address where the endpoint is looked up.
#[inline(always)]
fn party_at<T: Tables>(
    tables: &T,
    vantage: Vantage,
    key: &RecordKey,
    port_kind: PortKind,
) -> Option<Party> {
    let settings = tables.settings()?;
    let is_bind = key.hook == Hook::Bind as u8;
    if is_bind && key.dst.is_unspecified() {
        return Some(settings.own as Party);
    }
    let dst = if key.dst.is_unspecified() {
        key.dst.this_host()
    } else {
        key.dst
    };
    let info = tables.address_info(&dst);
    let is_reply = key.reply != 0;
    let (is_here, role) = match vantage.view() {
        View::Sent { on_lo, .. } => (on_lo || is_bind, Role::Uplink),
        View::Received { role, .. } => (matches!(role, Role::Loopback) || !is_reply, role),
        View::Arrived { role, .. } => (false, role),
        View::Left { .. } => (false, Role::Uplink),
    };
    if is_here {
        let port = (port_kind, key.port);
        return Some(receiver_at(tables, settings, &dst, info, port));
    }
    // The endpoint of a reply is at its source address, and a node's source address is not trusted everywhere.
    Some(if is_reply {
        src_on_wire(settings, role, info)
    } else {
        info.party
    })
}
