//! The meaning of the product: a packet, who is at its two ends, and the tables, to a verdict.
//!
//! Each packet has one judge. What a process of this node sends is judged at its socket, by its
//! cgroup ([`sent_by_process`]); what comes from a pod at the pod's interface, whatever source
//! address it bears, and what comes from outside at the uplink, by source address
//! ([`arrived_on_wire`]). Two more looks catch what address translation hides from the judge:
//! [`delivered`] at the receiving socket and [`forwarded`] at the uplink that a packet leaves by.
//! They may deny, but what they let pass has been counted already.
//!
//! "The SYN decides": a packet that opens must match a path from its sender to its receiver, one
//! that follows must match a path in either direction. So a path taken out of the policy dies with
//! the next packet, and there is no table of connections. Only UDP has a memory, for replies.

use crate::{
    addr::Ip,
    packet::{Packet, Phase, Ports, Shape, Space},
    tables::{FlowKey, Memory, NOBODY, Party, Place, Role, Settings, Tables},
    verdict::{Denial, Direction, Reason, Verdict, counter},
};

/// The two ends of a packet.
#[derive(Debug, Clone, Copy)]
struct Ends {
    /// Who sends, by the best that is known at the hook.
    from: Party,
    /// Who receives, likewise.
    to: Party,
    /// Who is declared at the source address: where the endpoint of a reply is looked up.
    src: Party,
    /// Who is declared at the destination address: where the endpoint is looked up.
    dst: Party,
}

/// A packet that entered by an interface, judged before any address translation.
///
/// Behind a pod's interface is a pod, whatever source address it bears. Only where a component has an
/// address of its own among the pods (DNS, an agent), `is_at_home` is asked whether this node would
/// send to that address by this very interface; it is given who that would be.
pub fn arrived_on_wire<T: Tables>(
    tables: &T,
    role: Role,
    packet: &Packet,
    is_at_home: impl FnOnce(Party) -> bool,
) -> Verdict {
    let Some(settings) = tables.settings() else {
        return Verdict::HOLE;
    };
    if packet.src.is_loopback() || packet.dst.is_loopback() {
        return denied(settings, Reason::LoopbackOffLo);
    }
    let src = tables.place(&packet.src);
    if is_forged_on_wire(role, src, &packet.src) {
        return denied(settings, Reason::ForgedSource);
    }
    let from = if matches!(role, Role::Pod) && src.is(Place::NAMED) && is_at_home(src.party) {
        src.party
    } else {
        sender_on_wire(settings, role, src)
    };
    let dst = tables.place(&packet.dst).party;
    let ends = Ends {
        from,
        to: dst,
        src: src_on_wire(settings, role, src),
        dst,
    };
    let verdict = decide(tables, settings, ends, packet);
    match role {
        Role::Uplink => verdict,
        Role::Pod => answered(tables, settings, verdict, packet),
        // Nobody declared it, so what is not guarded is judged where a socket of this node receives it.
        Role::Undeclared | Role::Loopback => only_guarded(verdict),
    }
}

/// What a pod answers to a connection whose destination was translated to its address (NodePort, hostPort, load
/// balancers): it is a reply of what was let in under the address that the client knows, and goes back before it is
/// translated again. That lifts nothing that is said of a guarded endpoint.
fn answered<T: Tables>(
    tables: &T,
    settings: &Settings,
    verdict: Verdict,
    packet: &Packet,
) -> Verdict {
    let may_answer = verdict.is_denied()
        && !verdict.is_guarded_denial()
        && matches!(packet.shape, Shape::Flow)
        && matches!(packet.ports.phase, Phase::Following | Phase::Datagram);
    if !may_answer {
        return verdict;
    }
    match tables.translated(settings, &flow(packet).back()) {
        Some(path) => Verdict::path(path).back(),
        None => verdict,
    }
}

/// A packet of a socket in another network namespace, which leaves by an interface of this one: a pod has a macvlan, an
/// ipvlan or a VLAN of it. It is known by its process's cgroup, and has no address of a node.
pub fn sent_from_elsewhere<T: Tables>(tables: &T, sender: Party, packet: &Packet) -> Verdict {
    let Some(settings) = tables.settings() else {
        return Verdict::HOLE;
    };
    if packet.src.is_loopback() || packet.dst.is_loopback() {
        return denied(settings, Reason::LoopbackOffLo);
    }
    let src = tables.place(&packet.src);
    if src.is(Place::OWN | Place::OTHER_NODE) {
        return denied(settings, Reason::ForgedSource);
    }
    // What nobody declared is no process of the node, where its network is another.
    let from = if u32::from(sender) == settings.undeclared_process {
        settings.pods as Party
    } else {
        sender
    };
    let dst = tables.place(&packet.dst).party;
    let ends = Ends {
        from,
        to: dst,
        src: src.party,
        dst,
    };
    decide(tables, settings, ends, packet)
}

/// A packet of a process of this node: from a socket, or injected by a packet socket. `on_lo` says
/// that it goes out by the loopback interface.
// Into its caller's stack frame, as `delivered`.
#[inline(always)]
pub fn sent_by_process<T: Tables>(
    tables: &T,
    sender: Party,
    on_lo: bool,
    packet: &Packet,
) -> Verdict {
    let Some(settings) = tables.settings() else {
        return Verdict::HOLE;
    };
    if !on_lo && (packet.src.is_loopback() || packet.dst.is_loopback()) {
        return denied(settings, Reason::LoopbackOffLo);
    }
    let src = tables.place(&packet.src);
    if src.is(Place::OTHER_NODE) {
        return denied(settings, Reason::ForgedSource);
    }
    let Ports {
        space,
        source,
        destination,
        ..
    } = packet.ports;
    // What goes out by lo comes in by it: both addresses are of this node, whatever they are declared
    // as. Whose socket is at the other end is not known here; `delivered` knows.
    let (to, src, dst) = if on_lo {
        (
            settings.local as Party,
            received_at(tables, settings, &packet.src, space, source),
            received_at(tables, settings, &packet.dst, space, destination),
        )
    } else {
        let dst = tables.place(&packet.dst).party;
        (dst, src.party, dst)
    };
    decide(
        tables,
        settings,
        Ends {
            from: sender,
            to,
            src,
            dst,
        },
        packet,
    )
}

/// A packet that is handed to a socket of this node, after all address translation and reassembly.
/// `judged` says that it was judged where it came in.
// Into its caller's stack frame: the kernel allows 512 bytes for a chain of calls, in steps of 32.
#[inline(always)]
pub fn delivered<T: Tables>(
    tables: &T,
    role: Role,
    judged: bool,
    receiver: Party,
    packet: &Packet,
) -> Verdict {
    let Some(settings) = tables.settings() else {
        return Verdict::HOLE;
    };
    let src = tables.place(&packet.src);
    let from = if matches!(role, Role::Loopback) {
        settings.local as Party
    } else {
        if packet.src.is_loopback() || packet.dst.is_loopback() {
            return denied(settings, Reason::LoopbackOffLo);
        }
        // What this node sends to itself goes by lo, so this came from elsewhere, in a tunnel perhaps.
        if src.is(Place::OWN) {
            return denied(settings, Reason::ForgedSource);
        }
        sender_on_wire(settings, role, src)
    };
    let dst = received_at(
        tables,
        settings,
        &packet.dst,
        packet.ports.space,
        packet.ports.destination,
    );
    let ends = Ends {
        from,
        to: receiver,
        src: src_on_wire(settings, role, src),
        dst,
    };
    let verdict = decide(tables, settings, ends, packet);
    if verdict.is_guarded_path()
        && matches!(verdict.direction(), Direction::Forward)
        && matches!(packet.shape, Shape::Flow)
        && let Some(foreign) = held_by_another(tables, settings, receiver, dst, packet.ports)
    {
        return foreign;
    }
    if judged {
        only_guarded(verdict)
    } else {
        verdict
    }
}

/// The denial of what a component's port receives, where the socket there is another's: it was bound before the agent
/// came, or by a call that binds no number (`listen` alone, a range of ephemeral ports of its own).
// A call of its own, as few packets open something.
#[inline(always)]
fn held_by_another<T: Tables>(
    tables: &T,
    settings: &Settings,
    receiver: Party,
    at: Party,
    ports: Ports,
) -> Option<Verdict> {
    let entry = tables
        .class(ports.space, ports.destination)
        .and_then(|class| tables.target(settings, at, class))
        .and_then(|target| tables.bind_entry(settings, receiver, target))?;
    let is_foreign =
        entry.is_denied() && counter::reason(counter::of(entry)) == Some(Reason::BindForeignPort);
    is_foreign.then(|| entry.because(Reason::ForeignListener))
}

/// Who is at an address that a socket of this node receives at. So it is an address of this node,
/// though nobody declared it (a second one), or though it is declared as something else's (the bridge's
/// among the pods, a shared one, the one of a DNS cache): what listens on every address is reached there,
/// too. Only a port that is declared there, and not just as one of all, is that of whoever declares it.
pub fn received_at<T: Tables>(
    tables: &T,
    settings: &Settings,
    dst: &Ip,
    space: Space,
    number: u16,
) -> Party {
    let place = tables.place(dst);
    if place.is(Place::OWN) || dst.is_loopback() {
        return place.party;
    }
    let declared = !place.is(Place::POD)
        && tables
            .class(space, number)
            .is_some_and(|class| tables.declares(settings, place.party, class));
    if declared {
        place.party
    } else {
        settings.own as Party
    }
}

/// How a packet that leaves this node has come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entered {
    /// By an uplink, and on this path if one allowed it there.
    ByUplink(Option<u16>),
    /// From a pod, of which it is known who it is.
    FromKnownPod(Party),
    /// In any other way: from a pod, by an interface that nobody declared, by lo, or by one of another network
    /// namespace. That is the strict side: a pod's, whatever address it bears.
    FromPod,
}

/// A packet that leaves this node after it was forwarded, perhaps with translated addresses. `to_pod` says that it goes
/// out by a pod's interface.
pub fn forwarded<T: Tables>(
    tables: &T,
    entered: Entered,
    to_pod: bool,
    packet: &Packet,
) -> Verdict {
    let Some(settings) = tables.settings() else {
        return Verdict::HOLE;
    };
    let src = tables.place(&packet.src);
    let from = match entered {
        Entered::FromKnownPod(known) => known,
        Entered::FromPod => settings.pods as Party,
        // Source translation has hidden who sends. It is nobody of this node: those have sockets.
        Entered::ByUplink(_) if src.is(Place::OWN) => NOBODY,
        Entered::ByUplink(_) => src.party,
    };
    let dst = tables.place(&packet.dst).party;
    let is_node = src.is(Place::OWN | Place::OTHER_NODE);
    let src = match entered {
        // It is a pod's all the same: nothing that a node may answer.
        Entered::FromPod | Entered::FromKnownPod(_) if is_node => settings.pods as Party,
        _ => src.party,
    };
    let ends = Ends {
        from,
        to: dst,
        src,
        dst,
    };
    let judged = decide(tables, settings, ends, packet);
    let verdict = only_guarded(judged);
    if verdict.is_denied() || !matches!(packet.shape, Shape::Flow) {
        return verdict;
    }
    // A path let it in, and none leads from its sender to where it goes now: its destination was translated.
    if let Entered::ByUplink(Some(path)) = entered
        && to_pod
        && judged.is_denied()
    {
        tables.remember_translated(settings, &flow(packet), path);
    }
    // The answer will come to the addresses that it leaves with.
    if matches!(packet.ports.phase, Phase::Datagram) {
        tables.remember(&flow(packet), Memory::Allowed);
    }
    verdict
}

/// A process asks to connect to, or sends a datagram to, an address. Judged before any address
/// translation, so that a denial is an error at once; packets are judged on their own.
pub fn connecting<T: Tables>(
    tables: &T,
    by: Party,
    dst: &Ip,
    space: Space,
    number: u16,
) -> Verdict {
    let Some(settings) = tables.settings() else {
        return Verdict::HOLE;
    };
    let dst = if dst.is_unspecified() {
        dst.this_host()
    } else {
        *dst
    };
    let at = tables.place(&dst).party;
    toward(
        tables,
        settings,
        &Approach {
            from: by,
            at,
            space,
            number,
        },
    )
}

/// A process asks to bind an address. Whatever it is declared as, what is bound there receives what comes for this node,
/// as [`received_at`] says: an address that nobody declared, one of a link, one that the node is yet to get.
pub fn binding<T: Tables>(tables: &T, by: Party, addr: &Ip, space: Space, number: u16) -> Verdict {
    let Some(settings) = tables.settings() else {
        return Verdict::HOLE;
    };
    let at = if addr.is_unspecified() {
        // A wildcard is every address of this node, so also those that are no loopback address.
        settings.own as Party
    } else {
        received_at(tables, settings, addr, space, number)
    };
    let entry = tables
        .class(space, number)
        .and_then(|class| tables.target(settings, at, class))
        .and_then(|target| tables.bind_entry(settings, by, target));
    entry.unwrap_or_else(|| denied(settings, Reason::NoPolicy))
}

/// The verdict for what breaks the lock of a path that asks for TLS, see [`crate::tls`]. `allowed` is
/// what the path itself says.
pub fn not_tls<T: Tables>(tables: &T, allowed: Verdict, reason: Reason) -> Verdict {
    let Some(settings) = tables.settings() else {
        return Verdict::HOLE;
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
/// ([`Reason::AroundHooks`]), or have a checksum written over what was judged ([`Reason::ChecksumElsewhere`]).
pub fn refused<T: Tables>(tables: &T, reason: Reason) -> Verdict {
    let Some(settings) = tables.settings() else {
        return Verdict::HOLE;
    };
    denied(settings, reason)
}

/// The same for what came in by an interface. Where nobody declared that, it is denied only for what it does to a guarded
/// endpoint, or may do.
pub fn unreadable_on_wire<T: Tables>(tables: &T, role: Role, reason: Reason) -> Verdict {
    let verdict = unreadable(tables, reason);
    if matches!(role, Role::Undeclared) {
        only_guarded(verdict)
    } else {
        verdict
    }
}

/// The verdict for what could not be read.
pub fn unreadable<T: Tables>(tables: &T, reason: Reason) -> Verdict {
    match (tables.settings(), reason) {
        (None, _) => Verdict::HOLE,
        (Some(settings), Reason::UnknownProtocol) if settings.other.is_denied() => {
            settings.other.because(Reason::UnknownProtocol)
        }
        (Some(settings), Reason::UnknownProtocol) => settings.other,
        (Some(settings), reason) => denied(settings, reason),
    }
}

fn sender_on_wire(settings: &Settings, role: Role, src: Place) -> Party {
    match role {
        Role::Pod => settings.pods as Party,
        Role::Loopback | Role::Uplink | Role::Undeclared => src_on_wire(settings, role, src),
    }
}

/// Who is at a source address. A node's is believed where its packets come in. Elsewhere it may be a new pod's, whose interface
/// nobody has looked at yet.
fn src_on_wire(settings: &Settings, role: Role, src: Place) -> Party {
    if matches!(role, Role::Undeclared) && src.is(Place::OWN | Place::OTHER_NODE) {
        settings.pods as Party
    } else {
        src.party
    }
}

/// A pod sends from a pod's address or from one that is good on its link only, and never from one
/// that a node has among the pods (its bridge, its tunnel); nobody outside sends from an address of
/// this node. ARP probes and DHCP come from nobody yet.
fn is_forged_on_wire(role: Role, src: Place, addr: &Ip) -> bool {
    match role {
        Role::Pod if src.is(Place::OWN | Place::OTHER_NODE) => true,
        Role::Pod => !src.is(Place::POD) && !addr.is_link_local() && !addr.is_unspecified(),
        Role::Uplink => src.is(Place::OWN),
        Role::Loopback | Role::Undeclared => false,
    }
}

#[inline(always)]
fn decide<T: Tables>(tables: &T, settings: &Settings, ends: Ends, packet: &Packet) -> Verdict {
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
        space,
        source,
        destination,
        phase,
    } = packet.ports;
    // Each way at one place in the code, as it is inlined there.
    let forward = if matches!(phase, Phase::Answer) {
        Verdict::HOLE
    } else {
        let approach = Approach {
            from: ends.from,
            at: ends.dst,
            space,
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
        space,
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
        space: packet.ports.space as u32,
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
    let sender = tables.place(&packet.dst).party;
    let receiver = tables.place(&packet.quoted_dst).party;
    if matches!(packet.shape, Shape::IcmpErrorLaterFragment) {
        return decide_later_fragment(tables, settings, sender, receiver);
    }
    let Ports {
        space,
        source,
        destination,
        ..
    } = packet.ports;
    let there = Approach {
        from: sender,
        at: receiver,
        space,
        number: destination,
    };
    let back = Approach {
        from: receiver,
        at: sender,
        space,
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
    space: Space,
    number: u16,
}

#[inline(always)]
fn toward<T: Tables>(tables: &T, settings: &Settings, approach: &Approach) -> Verdict {
    let &Approach {
        from,
        at,
        space,
        number,
    } = approach;
    let entry = tables
        .class(space, number)
        .and_then(|class| tables.target(settings, at, class))
        .and_then(|target| tables.entry(settings, from, target));
    entry.unwrap_or_else(|| denied(settings, Reason::NoPolicy))
}

/// What was judged already is denied here for a declared endpoint only.
fn only_guarded(verdict: Verdict) -> Verdict {
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
        space,
        source,
        destination,
    } = packet.ports;
    !denial.guarded
        && matches!(denial.direction, Direction::Forward)
        && matches!(packet.shape, Shape::Flow)
        && matches!(phase, Phase::Following)
        && matches!(space, Space::Tcp)
        // Servers have the smaller numbers.
        && (packet.segment.is_syn_ack() || source < destination)
}

fn denied(settings: &Settings, reason: Reason) -> Verdict {
    Verdict::denied(reason, settings.dry_run != 0, true)
}
