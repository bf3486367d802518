//! Computes the verdict from a packet, the parties at its two ends, and the tables. How the parties are found depends on
//! where the packet is seen, see [`crate::judge`]; calls (`connect`, `bind`) are decided completely here.
//!
//! "The SYN decides": a packet that opens a connection must match a path from its sender to its receiver, and a packet
//! that follows must match a path in either direction. So a path that is removed from the policy is closed for the next
//! packet, and there is no connection table. Only UDP flows are remembered, for their replies.

use crate::{
    addr::Ip,
    packet::{Packet, Phase, PortKind, Ports, Shape},
    tables::{AddressInfo, FlowKey, Memory, Party, Settings, Tables},
    verdict::{Denial, Direction, Reason, Verdict},
};

/// The two ends of a packet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends {
    /// The sender, as precisely as the hook knows it.
    pub from: Party,
    /// The receiver, as precisely as the hook knows it.
    pub to: Party,
    /// The party declared at the source address, where the endpoint of a reply is looked up.
    pub src: Party,
    /// The party declared at the destination address, where the endpoint is looked up.
    pub dst: Party,
}

/// The party at an address at which a socket of this node receives. It counts as an address of this node even if it is not
/// declared (a second one) or declared as something else (the bridge's address among the pods, a shared one, that of a DNS
/// cache): sockets that listen on every address are reached there, too. Only a port that a component declares there, and
/// not just as one of every port, belongs to that component.
pub fn received_at<T: Tables>(
    tables: &T,
    settings: &Settings,
    dst: &Ip,
    port_kind: PortKind,
    number: u16,
) -> Party {
    let info = tables.address_info(dst);
    receiver_at(tables, settings, dst, info, (port_kind, number))
}

/// The same for an address that has been looked up already.
#[inline(always)]
pub(crate) fn receiver_at<T: Tables>(
    tables: &T,
    settings: &Settings,
    dst: &Ip,
    info: AddressInfo,
    (port_kind, number): (PortKind, u16),
) -> Party {
    if info.is(AddressInfo::OWN) || dst.is_loopback() {
        return info.party;
    }
    let declared = !info.is(AddressInfo::POD)
        && tables
            .class(port_kind, number)
            .is_some_and(|class| tables.declares(settings, info.party, class));
    if declared {
        info.party
    } else {
        settings.own as Party
    }
}

/// The verdict for a process that connects or sends a datagram to an address. It is made before any address translation,
/// so that the call fails at once; the packets are judged separately.
pub fn connecting<T: Tables>(
    tables: &T,
    by: Party,
    dst: &Ip,
    port_kind: PortKind,
    number: u16,
) -> Verdict {
    let Some(settings) = tables.settings() else {
        return Verdict::UNSET;
    };
    let dst = if dst.is_unspecified() {
        dst.this_host()
    } else {
        *dst
    };
    let at = tables.address_info(&dst).party;
    toward(
        tables,
        settings,
        &Approach {
            from: by,
            at,
            port_kind,
            number,
        },
    )
}

/// Whether `connect` and `sendmsg` fail at once with a verdict. In dry-run the packets are reported instead. For a UDP
/// socket, only calls to declared endpoints fail, and the rest is left to its packets: programs connect UDP sockets just to
/// learn their source address, and replies need the memory of flows.
pub const fn fails_at_once(verdict: Verdict, port_kind: PortKind) -> bool {
    let is_refused = match port_kind {
        PortKind::Tcp => verdict.is_denied(),
        PortKind::Udp => verdict.is_guarded_denial(),
        PortKind::Icmp | PortKind::Icmp6 | PortKind::Protocol | PortKind::Arp => false,
    };
    is_refused && !verdict.passes()
}

/// The verdict for a process that binds an address. A socket bound there receives what is sent to this node, whatever the
/// address is declared as (see [`received_at`]): an undeclared one, a link-local one, one that the node will only get later.
pub fn binding<T: Tables>(
    tables: &T,
    by: Party,
    addr: &Ip,
    port_kind: PortKind,
    number: u16,
) -> Verdict {
    let Some(settings) = tables.settings() else {
        return Verdict::UNSET;
    };
    let at = if addr.is_unspecified() {
        // A wildcard stands for every address of this node, so also for those that are not loopback addresses.
        settings.own as Party
    } else {
        received_at(tables, settings, addr, port_kind, number)
    };
    let entry = tables
        .class(port_kind, number)
        .and_then(|class| tables.target(settings, at, class))
        .and_then(|target| tables.bind_entry(settings, by, target));
    entry.unwrap_or_else(|| denied(settings, Reason::NoPolicy))
}

/// The verdict for a packet that fails the TLS check of its path, see [`crate::tls`]. `allowed` is the verdict of the path
/// itself.
pub fn not_tls<T: Tables>(tables: &T, allowed: Verdict, reason: Reason) -> Verdict {
    let Some(settings) = tables.settings() else {
        return Verdict::UNSET;
    };
    let dry_run = settings.dry_run | settings.tls_dry_run != 0;
    let denied = Verdict::denied(reason, dry_run, true);
    match allowed.direction() {
        Direction::Forward => denied,
        Direction::Reply => denied.back(),
    }
}

/// The flow that a packet belongs to, in the direction in which its connection was opened.
pub fn flow_of(packet: &Packet, direction: Direction) -> FlowKey {
    let there = flow(packet);
    match direction {
        Direction::Forward => there,
        Direction::Reply => there.back(),
    }
}

/// The verdict for what is denied to every sender: to enable a send path that bypasses all hooks or to use one
/// ([`Reason::BypassesHooks`]), and to have a checksum written over bytes that were judged ([`Reason::ChecksumElsewhere`]).
pub fn refused<T: Tables>(tables: &T, reason: Reason) -> Verdict {
    let Some(settings) = tables.settings() else {
        return Verdict::UNSET;
    };
    denied(settings, reason)
}

/// The verdict for a packet that could not be parsed.
pub fn unreadable<T: Tables>(tables: &T, reason: Reason) -> Verdict {
    match (tables.settings(), reason) {
        (None, _) => Verdict::UNSET,
        (Some(settings), Reason::UnknownProtocol) if settings.other.is_denied() => {
            settings.other.because(Reason::UnknownProtocol)
        }
        (Some(settings), Reason::UnknownProtocol) => settings.other,
        (Some(settings), reason) => denied(settings, reason),
    }
}

#[inline(always)]
pub(crate) fn decide<T: Tables>(
    tables: &T,
    settings: &Settings,
    ends: Ends,
    packet: &Packet,
) -> Verdict {
    match packet.shape {
        Shape::Flow => decide_flow(tables, settings, ends, packet),
        Shape::LaterFragment => decide_later_fragment(tables, settings, ends.from, ends.to),
        Shape::IcmpErrorAstray => denied(settings, Reason::IcmpBadQuote),
        Shape::IcmpError | Shape::IcmpErrorLaterFragment => decide_quote(tables, settings, packet),
    }
}

#[inline(always)]
fn decide_flow<T: Tables>(tables: &T, settings: &Settings, ends: Ends, packet: &Packet) -> Verdict {
    let Ports {
        kind: port_kind,
        source,
        destination,
        phase,
    } = packet.ports;
    // Each direction is looked up at one place in the code only, because the lookup is inlined.
    let forward = if matches!(phase, Phase::Answer) {
        Verdict::UNSET
    } else {
        let approach = Approach {
            from: ends.from,
            at: ends.dst,
            port_kind,
            number: destination,
        };
        toward(tables, settings, &approach)
    };
    if matches!(phase, Phase::Opening) {
        return forward;
    }
    if matches!(phase, Phase::Datagram) && forward.is_path() {
        tables.remember(&flow(packet), Memory::Allowed);
        return forward;
    }
    let approach = Approach {
        from: ends.to,
        at: ends.src,
        port_kind,
        number: source,
    };
    let back = toward(tables, settings, &approach).back();
    match phase {
        Phase::Opening => forward,
        Phase::Answer => back,
        Phase::Following => either(forward, back),
        Phase::Datagram => datagram(tables, packet, forward, back),
    }
}

/// The verdict for a datagram that no forward path allows. The memory only says that it is a reply. Whether replies may
/// still pass is up to the policy, and the denial of a guarded endpoint takes precedence, as it does for TCP.
#[inline(always)]
fn datagram<T: Tables>(tables: &T, packet: &Packet, forward: Verdict, back: Verdict) -> Verdict {
    if !forward.is_guarded_denial() && (back.is_path() || (back.is_denied() && back.passes())) {
        match tables.remembered(&flow(packet).back()) {
            Some(Memory::Allowed) if back.is_path() => return back,
            Some(Memory::WouldDeny) if back.is_denied() => return back,
            _ => {}
        }
    }
    if forward.is_denied() && forward.passes() {
        tables.remember(&flow(packet), Memory::WouldDeny);
    }
    forward
}

/// The flow that a packet belongs to, in the packet's own direction.
pub fn flow(packet: &Packet) -> FlowKey {
    FlowKey {
        src: packet.src,
        dst: packet.dst,
        source: packet.ports.source,
        destination: packet.ports.destination,
        port_kind: packet.ports.kind as u32,
    }
}

/// A path in either direction allows. But verdicts about a guarded endpoint take precedence: where one end is etcd's port
/// and the other a pod, a path from anything on that node to any port of pods does not make the packet a reply.
fn either(forward: Verdict, back: Verdict) -> Verdict {
    if forward.is_guarded_path() || back.is_guarded_path() {
        return if forward.is_guarded_path() {
            forward
        } else {
            back
        };
    }
    if forward.is_guarded_denial() || back.is_guarded_denial() {
        return if forward.is_guarded_denial() {
            forward
        } else {
            back
        };
    }
    if back.is_path() && !forward.is_path() {
        back
    } else {
        forward
    }
}

#[inline(never)]
fn decide_later_fragment<T: Tables>(
    tables: &T,
    settings: &Settings,
    from: Party,
    to: Party,
) -> Verdict {
    if tables.related(settings, from, to) || tables.related(settings, to, from) {
        Verdict::LATER_FRAGMENT
    } else {
        denied(settings, Reason::FragmentWithoutPath)
    }
}

/// Judges an ICMP error by the packet that it quotes, whose two ends are known by address only.
#[inline(never)]
fn decide_quote<T: Tables>(tables: &T, settings: &Settings, packet: &Packet) -> Verdict {
    let sender = tables.address_info(&packet.dst).party;
    let receiver = tables.address_info(&packet.quoted_dst).party;
    if matches!(packet.shape, Shape::IcmpErrorLaterFragment) {
        return decide_later_fragment(tables, settings, sender, receiver);
    }
    let Ports {
        kind: port_kind,
        source,
        destination,
        ..
    } = packet.ports;
    let there = Approach {
        from: sender,
        at: receiver,
        port_kind,
        number: destination,
    };
    let back = Approach {
        from: receiver,
        at: sender,
        port_kind,
        number: source,
    };
    // The error itself is a reply, in whichever direction the quoted packet went.
    let quoted = either(
        toward(tables, settings, &there),
        toward(tables, settings, &back),
    )
    .back();
    if quoted.is_guarded_denial() {
        quoted.because(Reason::IcmpQuotesDenied)
    } else {
        quoted
    }
}

/// A sender and the endpoint that it addresses. Passed by reference, as BPF functions take five words at most.
struct Approach {
    /// The sender.
    from: Party,
    /// The party declared at the address.
    at: Party,
    port_kind: PortKind,
    number: u16,
}

#[inline(always)]
fn toward<T: Tables>(tables: &T, settings: &Settings, approach: &Approach) -> Verdict {
    let &Approach {
        from,
        at,
        port_kind,
        number,
    } = approach;
    let entry = tables
        .class(port_kind, number)
        .and_then(|class| tables.target(settings, at, class))
        .and_then(|target| tables.entry(settings, from, target));
    entry.unwrap_or_else(|| denied(settings, Reason::NoPolicy))
}

/// The verdict at a hook that comes after the packet's judge: it denies only at declared endpoints.
pub(crate) fn only_guarded(verdict: Verdict) -> Verdict {
    if verdict.is_denied() && !verdict.is_guarded_denial() {
        Verdict::OTHER
    } else {
        verdict
    }
}

/// Whether the denied packet is a reply on its connection, as far as the packet shows. With that, both directions of a
/// connection that was open before are reported as one. Guarded denials know their direction already.
pub const fn is_answer(denial: Denial, packet: &Packet) -> bool {
    let Ports {
        phase,
        kind: port_kind,
        source,
        destination,
    } = packet.ports;
    !denial.guarded
        && matches!(denial.direction, Direction::Forward)
        && matches!(packet.shape, Shape::Flow)
        && matches!(phase, Phase::Following)
        && matches!(port_kind, PortKind::Tcp)
        // Servers have the smaller numbers.
        && (packet.segment.is_syn_ack() || source < destination)
}

pub(crate) fn denied(settings: &Settings, reason: Reason) -> Verdict {
    Verdict::denied(reason, settings.dry_run != 0, true)
}
