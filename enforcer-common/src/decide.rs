//! A packet, who is at its two ends, and the tables, to a verdict. Who that is depends on where the packet is seen, see
//! [`crate::judge`]; calls (`connect`, `bind`) are decided here whole.
//!
//! "The SYN decides": a packet that opens must match a path from its sender to its receiver, one
//! that follows must match a path in either direction. So a path taken out of the policy dies with
//! the next packet, and there is no table of connections. Only UDP has a memory, for replies.

use crate::{
    addr::Ip,
    packet::{Packet, Phase, PortKind, Ports, Shape},
    tables::{AddressInfo, FlowKey, Memory, Party, Settings, Tables},
    verdict::{Denial, Direction, Reason, Verdict},
};

/// The two ends of a packet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends {
    /// Who sends, by the best that is known at the hook.
    pub from: Party,
    /// Who receives, likewise.
    pub to: Party,
    /// Who is declared at the source address: where the endpoint of a reply is looked up.
    pub src: Party,
    /// Who is declared at the destination address: where the endpoint is looked up.
    pub dst: Party,
}

/// Who is at an address that a socket of this node receives at. So it is an address of this node,
/// though nobody declared it (a second one), or though it is declared as something else's (the bridge's
/// among the pods, a shared one, the one of a DNS cache): what listens on every address is reached there,
/// too. Only a port that is declared there, and not just as one of all, is that of whoever declares it.
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

/// The same of an address whose place is known.
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

/// A process asks to connect to, or sends a datagram to, an address. Judged before any address
/// translation, so that a denial is an error at once; packets are judged on their own.
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

/// Whether `connect` and `sendmsg` fail at once with a verdict. In dry-run the packets tell. What is no declared endpoint is
/// left to the packets of a UDP socket: programs connect them just to learn which source address they would get, and replies
/// need the memory of flows.
pub const fn fails_at_once(verdict: Verdict, port_kind: PortKind) -> bool {
    let is_refused = match port_kind {
        PortKind::Tcp => verdict.is_denied(),
        PortKind::Udp => verdict.is_guarded_denial(),
        PortKind::Icmp | PortKind::Icmp6 | PortKind::Protocol | PortKind::Arp => false,
    };
    is_refused && !verdict.passes()
}

/// A process asks to bind an address. Whatever it is declared as, what is bound there receives what comes for this node,
/// as [`received_at`] says: an address that nobody declared, one of a link, one that the node is yet to get.
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
        // A wildcard is every address of this node, so also those that are no loopback address.
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

/// The verdict for what breaks the lock of a path that asks for TLS, see [`crate::tls`]. `allowed` is
/// what the path itself says.
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

/// The flow that a packet belongs to, as its connection was opened.
pub fn flow_of(packet: &Packet, direction: Direction) -> FlowKey {
    let there = flow(packet);
    match direction {
        Direction::Forward => there,
        Direction::Reply => there.back(),
    }
}

/// The verdict for what nobody may do: ask for a way to send that no hook sees, come by one
/// ([`Reason::BypassesHooks`]), or have a checksum written over what was judged ([`Reason::ChecksumElsewhere`]).
pub fn refused<T: Tables>(tables: &T, reason: Reason) -> Verdict {
    let Some(settings) = tables.settings() else {
        return Verdict::UNSET;
    };
    denied(settings, reason)
}

/// The verdict for what could not be read.
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
    // Each way at one place in the code, as it is inlined there.
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

/// A datagram that is on no path itself. The memory says that it is a reply, and no more: whether replies may still pass is
/// for the policy to say, and what is said of a guarded port comes first, as for TCP.
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

/// The flow that a packet belongs to, as it goes.
pub fn flow(packet: &Packet) -> FlowKey {
    FlowKey {
        src: packet.src,
        dst: packet.dst,
        source: packet.ports.source,
        destination: packet.ports.destination,
        port_kind: packet.ports.kind as u32,
    }
}

/// A path in either direction allows. But what is said of a guarded endpoint comes first: where one
/// end is etcd's port and a pod the other, a path from anybody on that node to any port of pods does
/// not make it a reply.
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

/// Whoever was at the ends of the quoted packet is known by address only.
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
    // The error itself goes back, whichever way the quoted packet went.
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

/// Somebody and what he is after. By reference, as BPF functions take five words at most.
struct Approach {
    /// The sender.
    from: Party,
    /// Who is declared at the address.
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

/// What was judged already is denied here for a declared endpoint only.
pub(crate) fn only_guarded(verdict: Verdict) -> Verdict {
    if verdict.is_denied() && !verdict.is_guarded_denial() {
        Verdict::OTHER
    } else {
        verdict
    }
}

/// Whether what was denied is the answer on a connection, as far as its packet shows: both ways of one that was open before are
/// told as one. Guarded denials say by themselves which way they go.
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
