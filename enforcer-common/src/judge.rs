//! Evaluates a packet from a [`Vantage`]: the verdict, the mark that the packet carries from there on, and whether it is
//! reported there. Hooks fetch bytes and identity, call these functions, and do what they say.
//!
//! Each packet has one judge. A packet from a process of this node is judged at its socket, by its cgroup; a packet from a
//! pod at the pod's interface, whatever its source address is; and a packet from outside at the uplink, by source address.
//! Two more checks catch what address translation hides from that judge: at the receiving socket, and at the interface by
//! which a forwarded packet leaves. They only deny; the packets that they allow have been counted before.
//!
//! ```text
//! judge (who sends, the tables) → verdict → examine (checksums, locks) → verdict → report
//! ```
//!
//! The first step is cached; the second looks at the individual packet.

use crate::{
    addr::Ip,
    decide::{Ends, decide, denied, flow, not_tls, only_guarded, received_at, refused, unreadable},
    mark::PacketMark,
    packet::{Packet, Phase, Ports, Shape},
    tables::{AddressInfo, Memory, NOBODY, Party, Role, Settings, Tables},
    tls::Lock,
    vantage::{Entered, Origin, Vantage, View},
    verdict::{Direction, Reason, Verdict, counter},
};

/// What was decided about a packet at a vantage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judgement {
    /// The verdict.
    pub verdict: Verdict,
    /// What later hooks need to know.
    pub mark: PacketMark,
}

/// What a hook reports of a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// Nothing, because another hook reports the packet.
    Nothing,
    /// Only the counter for packets of connections that were cut off. The denial was reported when the connection was cut.
    Cut,
    /// The verdict's counter, and a record where [`Verdict::is_recorded`] says so.
    Verdict,
}

/// Judges a packet. `is_route_back` is called for a packet from a pod whose source address belongs to a component: it says
/// whether this node routes that address to the interface that the packet came in by.
#[inline(always)]
pub fn judge<T: Tables>(
    tables: &T,
    vantage: Vantage,
    packet: &Packet,
    is_route_back: impl FnOnce() -> bool,
) -> Judgement {
    let verdict = match vantage.view() {
        View::Arrived { role, interface: _ } => {
            return arrived(tables, role, packet, is_route_back);
        }
        View::Left { entered, to_pod } => left(tables, entered, to_pod, packet),
        View::Sent {
            sender,
            origin: Origin::OtherNamespace,
            on_lo: _,
        } => sent_from_other_namespace(tables, sender, packet),
        View::Sent {
            sender,
            origin,
            on_lo,
        } => sent(tables, sender, origin, on_lo, packet),
        View::Received {
            receiver,
            role,
            judged,
        } => received(tables, role, judged, receiver, packet),
    };
    let mark = match vantage.view() {
        // It comes in again on lo, where packets without a mark are dropped.
        View::Sent { on_lo: true, .. } => PacketMark::JUDGED,
        _ => PacketMark::NONE,
    };
    Judgement { verdict, mark }
}

/// Judges a packet that could not be parsed. `mark` is what the packet carries.
pub fn judge_unreadable<T: Tables>(
    tables: &T,
    vantage: Vantage,
    mark: PacketMark,
    reason: Reason,
) -> Judgement {
    let verdict = match vantage.view() {
        // At an undeclared interface, only guarded endpoints are protected.
        View::Arrived {
            role: Role::Undeclared,
            ..
        } => only_guarded(unreadable(tables, reason)),
        // It was judged where it came in, unless nothing is attached there, as with the ports of a bridge.
        View::Left { .. } if mark.is_judged() => Verdict::OTHER,
        View::Left { .. } => only_guarded(unreadable(tables, reason)),
        View::Arrived { .. } | View::Sent { .. } | View::Received { .. } => {
            unreadable(tables, reason)
        }
    };
    let mark = match vantage.view() {
        View::Arrived { .. } if verdict.is_denied() => PacketMark::JUDGED.reported(),
        View::Arrived { .. } | View::Sent { on_lo: true, .. } => PacketMark::JUDGED,
        View::Left { .. } | View::Sent { .. } | View::Received { .. } => PacketMark::NONE,
    };
    Judgement { verdict, mark }
}

/// A judgement after a look at the packet itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Examined {
    /// The final verdict.
    pub verdict: Verdict,
    /// What later hooks need to know.
    pub mark: PacketMark,
    /// The result of the TLS check of its path.
    pub lock: Lock,
}

/// Checks what no cached verdict can know, if the packet is allowed so far: whether a checksum offload would overwrite
/// bytes that the verdict depends on, and whether the packet passes the TLS check of its path. `carried` is the mark on the
/// packet; `packet` is `None` if it could not be parsed.
#[inline(always)]
pub fn examine<T: Tables>(
    tables: &T,
    vantage: Vantage,
    carried: PacketMark,
    judged: Judgement,
    packet: Option<&Packet>,
    has_checksum_elsewhere: impl FnOnce() -> bool,
    lock: impl FnOnce() -> Lock,
) -> Examined {
    let Judgement { verdict, mark } = judged;
    let mut examined = Examined {
        verdict,
        mark,
        lock: Lock::Open,
    };
    if verdict.is_denied() {
        return examined;
    }
    // Before the TLS check, which must see the final bytes.
    if checks_checksum(vantage, carried) && has_checksum_elsewhere() {
        examined.verdict = refused(tables, Reason::ChecksumElsewhere);
    } else if matches!(vantage.view(), View::Left { .. }) && carried.is_fast_open() {
        examined.verdict = not_tls(tables, verdict, Reason::FastOpenThrough);
    } else if let Some(packet) = packet
        && checks_lock(vantage, verdict, packet)
    {
        if matches!(vantage.view(), View::Arrived { .. })
            && packet.segment.is_syn()
            && !packet.segment.is_empty()
        {
            examined.mark = mark.with_fast_open();
        }
        examined.lock = lock();
        examined.verdict = examined.lock.verdict(tables, verdict);
    }
    if matches!(vantage.view(), View::Arrived { .. }) && examined.verdict.is_denied() {
        examined.mark = examined.mark.reported();
    }
    examined
}

/// Whether this vantage checks for a checksum offload: ingress does, except at an uplink, because the kernel completes the
/// checksum only when the packet leaves, and the check is a helper call that locally delivered packets need not pay for;
/// egress does if no earlier hook has.
pub const fn checks_checksum(vantage: Vantage, carried: PacketMark) -> bool {
    match vantage.view() {
        View::Arrived { role, .. } => !matches!(role, Role::Uplink),
        View::Left { entered, .. } => {
            !carried.is_judged() || matches!(entered, Entered::ByUplink(_))
        }
        View::Sent { origin, .. } => origin.is_judged_by_tc(),
        View::Received { .. } => false,
    }
}

/// Whether the TLS check of the path runs at this vantage. At interfaces it runs on the client's side only: ingress checks
/// what the client sends, egress what the client receives.
pub const fn checks_lock(vantage: Vantage, verdict: Verdict, packet: &Packet) -> bool {
    if !verdict.is_tls_path() || !matches!(packet.shape, Shape::Flow) {
        return false;
    }
    match vantage.view() {
        View::Arrived { .. } => matches!(verdict.direction(), Direction::Forward),
        View::Left { .. } => matches!(verdict.direction(), Direction::Reply),
        View::Sent { .. } | View::Received { .. } => true,
    }
}

/// What to count and record of a verdict at a vantage, so that each packet is reported once. `carried` is the mark that the
/// packet had when it reached the hook.
pub const fn report(vantage: Vantage, carried: PacketMark, verdict: Verdict, lock: Lock) -> Report {
    if matches!(lock, Lock::Cut) && !verdict.passes() {
        return Report::Cut;
    }
    let is_elsewhere = match vantage.view() {
        // It is counted at the receiving socket, where it is judged in full.
        View::Arrived { role, .. } => matches!(role, Role::Undeclared) && !verdict.is_denied(),
        View::Left { .. } => !verdict.is_denied() || (verdict.passes() && carried.is_reported()),
        View::Sent { .. } => false,
        View::Received { judged, .. } if !verdict.is_denied() => judged,
        // In dry-run, the denial was reported at ingress or at the sender's socket already.
        View::Received { role, .. } => {
            verdict.passes() && (matches!(role, Role::Loopback) || carried.is_reported())
        }
    };
    if is_elsewhere {
        Report::Nothing
    } else {
        Report::Verdict
    }
}

/// A packet that entered by an interface, judged before any address translation.
///
/// What comes in by a pod's interface is sent by a pod, whatever its source address is. Only if the source address is that
/// of a component among the pods (DNS, an agent), the route back is looked up to verify it.
#[inline(always)]
fn arrived<T: Tables>(
    tables: &T,
    role: Role,
    packet: &Packet,
    is_route_back: impl FnOnce() -> bool,
) -> Judgement {
    let judged = |verdict: Verdict, mark: PacketMark| Judgement {
        verdict,
        mark: if verdict.is_denied() {
            mark.reported()
        } else {
            mark
        },
    };
    let denied = |reason| {
        let verdict = refused(tables, reason);
        judged(verdict, PacketMark::JUDGED)
    };
    let Some(settings) = tables.settings() else {
        return judged(Verdict::UNSET, PacketMark::JUDGED);
    };
    if packet.src.is_loopback() || packet.dst.is_loopback() {
        return denied(Reason::LoopbackOffLo);
    }
    let src = tables.address_info(&packet.src);
    if is_forged_on_wire(role, src, &packet.src) {
        return denied(Reason::ForgedSource);
    }
    let mut mark = PacketMark::JUDGED;
    let from = if matches!(role, Role::Pod) && src.is(AddressInfo::NAMED) && is_route_back() {
        mark = PacketMark::from_known_pod(src.party);
        src.party
    } else {
        sender_on_wire(settings, role, src)
    };
    let dst = tables.address_info(&packet.dst).party;
    let ends = Ends {
        from,
        to: dst,
        src: src_on_wire(settings, role, src),
        dst,
    };
    let verdict = decide(tables, settings, ends, packet);
    match role {
        Role::Uplink => judged(verdict, mark.let_in_by(verdict)),
        Role::Pod => judged(answered(tables, settings, verdict, packet), mark),
        // The interface is not declared: packets to other than guarded endpoints are judged at the receiving socket.
        Role::Undeclared | Role::Loopback => judged(only_guarded(verdict), mark),
    }
}

/// The verdict for a pod's reply on a connection whose destination was translated to the pod's address (NodePort,
/// hostPort, load balancers). The connection was allowed under the address that the client knows, and the reply is judged
/// before it is translated back. Denials at guarded endpoints stay as they are.
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

/// A packet of a socket in another network namespace that leaves by an interface of this one: a pod has a macvlan, an
/// ipvlan or a VLAN on top of it. The sender is known by its process's cgroup, and must not use an address of a node.
#[inline(always)]
fn sent_from_other_namespace<T: Tables>(tables: &T, sender: Party, packet: &Packet) -> Verdict {
    let Some(settings) = tables.settings() else {
        return Verdict::UNSET;
    };
    if packet.src.is_loopback() || packet.dst.is_loopback() {
        return denied(settings, Reason::LoopbackOffLo);
    }
    let src = tables.address_info(&packet.src);
    if src.is(AddressInfo::OWN | AddressInfo::OTHER_NODE) {
        return denied(settings, Reason::ForgedSource);
    }
    let from = sender_by_cgroup(settings, sender, Origin::OtherNamespace);
    let dst = tables.address_info(&packet.dst).party;
    let ends = Ends {
        from,
        to: dst,
        src: src.party,
        dst,
    };
    decide(tables, settings, ends, packet)
}

/// A packet of a process of this node: from a socket, or injected by a packet socket. `on_lo` says that it leaves by the
/// loopback interface.
// Inlined to use its caller's stack frame, like `received`.
#[inline(always)]
fn sent<T: Tables>(
    tables: &T,
    sender: Party,
    origin: Origin,
    on_lo: bool,
    packet: &Packet,
) -> Verdict {
    let Some(settings) = tables.settings() else {
        return Verdict::UNSET;
    };
    let sender = sender_by_cgroup(settings, sender, origin);
    if !on_lo && (packet.src.is_loopback() || packet.dst.is_loopback()) {
        return denied(settings, Reason::LoopbackOffLo);
    }
    let src = tables.address_info(&packet.src);
    if src.is(AddressInfo::OTHER_NODE) {
        return denied(settings, Reason::ForgedSource);
    }
    let Ports {
        kind: port_kind,
        source,
        destination,
        ..
    } = packet.ports;
    // A packet that leaves by lo comes in by lo: both addresses belong to this node, whatever they are declared as. The
    // socket at the other end is not known here, but in `received`.
    let (to, src, dst) = if on_lo {
        (
            settings.local as Party,
            received_at(tables, settings, &packet.src, port_kind, source),
            received_at(tables, settings, &packet.dst, port_kind, destination),
        )
    } else {
        let dst = tables.address_info(&packet.dst).party;
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

/// A packet that is handed to a socket of this node, after all address translation and reassembly. `judged` says that it
/// was judged at ingress.
// Inlined to use its caller's stack frame: the kernel allows 512 bytes for a chain of calls, in steps of 32.
#[inline(always)]
fn received<T: Tables>(
    tables: &T,
    role: Role,
    judged: bool,
    receiver: Party,
    packet: &Packet,
) -> Verdict {
    let Some(settings) = tables.settings() else {
        return Verdict::UNSET;
    };
    let src = tables.address_info(&packet.src);
    let from = if matches!(role, Role::Loopback) {
        settings.local as Party
    } else {
        if packet.src.is_loopback() || packet.dst.is_loopback() {
            return denied(settings, Reason::LoopbackOffLo);
        }
        // This node's packets to itself use lo, so this one came from elsewhere, perhaps in a tunnel.
        if src.is(AddressInfo::OWN) {
            return denied(settings, Reason::ForgedSource);
        }
        sender_on_wire(settings, role, src)
    };
    let dst = received_at(
        tables,
        settings,
        &packet.dst,
        packet.ports.kind,
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

/// The denial of a packet to a component's port if the socket there belongs to another process: it was bound before the
/// agent started, or by a call that names no port (`listen` alone, a private range of ephemeral ports).
// Not inlined, as few packets open a connection.
#[inline(always)]
fn held_by_another<T: Tables>(
    tables: &T,
    settings: &Settings,
    receiver: Party,
    at: Party,
    ports: Ports,
) -> Option<Verdict> {
    let entry = tables
        .class(ports.kind, ports.destination)
        .and_then(|class| tables.target(settings, at, class))
        .and_then(|target| tables.bind_entry(settings, receiver, target))?;
    let is_foreign =
        entry.is_denied() && counter::reason(counter::of(entry)) == Some(Reason::BindForeignPort);
    is_foreign.then(|| entry.because(Reason::ForeignListener))
}

/// A packet that leaves this node after it was forwarded, perhaps with translated addresses. `to_pod` says that it leaves
/// by a pod's interface.
#[inline(always)]
fn left<T: Tables>(tables: &T, entered: Entered, to_pod: bool, packet: &Packet) -> Verdict {
    let Some(settings) = tables.settings() else {
        return Verdict::UNSET;
    };
    let src = tables.address_info(&packet.src);
    let from = sender_by_entry(settings, entered, src);
    let dst = tables.address_info(&packet.dst).party;
    let is_node = src.is(AddressInfo::OWN | AddressInfo::OTHER_NODE);
    let src = match entered {
        // It counts as a pod's packet nevertheless, and not as a reply of a node.
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
    // A path allowed it at ingress, and none leads from its sender to its destination now: so that was translated.
    if let Entered::ByUplink(Some(path)) = entered
        && to_pod
        && judged.is_denied()
    {
        tables.remember_translated(settings, &flow(packet), path);
    }
    // Replies will be sent to the addresses that it leaves with.
    if matches!(packet.ports.phase, Phase::Datagram) {
        tables.remember(&flow(packet), Memory::Allowed);
    }
    verdict
}

/// The sender of a packet from a socket of this network namespace or of one on top of it. The raw socket of a process is
/// known by its cgroup.
pub(crate) const fn sender_by_cgroup(settings: &Settings, cgroup: Party, origin: Origin) -> Party {
    if cgroup as u32 != settings.undeclared_process {
        return cgroup;
    }
    match origin {
        Origin::KernelSocket => settings.local as Party,
        Origin::NoSocket => NOBODY,
        // An undeclared cgroup in another network namespace does not count as a process of the node.
        Origin::OtherNamespace => settings.pods as Party,
        Origin::Socket | Origin::Frames => cgroup,
    }
}

/// The sender of a forwarded packet.
pub(crate) const fn sender_by_entry(
    settings: &Settings,
    entered: Entered,
    src: AddressInfo,
) -> Party {
    match entered {
        Entered::FromKnownPod(known) => known,
        Entered::FromPod => settings.pods as Party,
        // Source translation hides the sender. It is not a process of this node: those have sockets.
        Entered::ByUplink(_) if src.is(AddressInfo::OWN) => NOBODY,
        Entered::ByUplink(_) => src.party,
    }
}

/// The sender of a packet that came in by an interface.
pub(crate) fn sender_on_wire(settings: &Settings, role: Role, src: AddressInfo) -> Party {
    match role {
        Role::Pod => settings.pods as Party,
        Role::Loopback | Role::Uplink | Role::Undeclared => src_on_wire(settings, role, src),
    }
}

/// The party at a source address. A node's address is trusted where the node's packets come in. At an undeclared interface
/// it may be used by a new pod whose interface the agent has not seen yet.
pub(crate) fn src_on_wire(settings: &Settings, role: Role, src: AddressInfo) -> Party {
    if matches!(role, Role::Undeclared) && src.is(AddressInfo::OWN | AddressInfo::OTHER_NODE) {
        settings.pods as Party
    } else {
        src.party
    }
}

/// Whether a source address can not be valid at an interface. A pod sends from a pod's address or a link-local one, and
/// never from one that a node has among the pods (its bridge, its tunnel); nothing outside sends from an address of this
/// node. ARP probes and DHCP have the unspecified address.
fn is_forged_on_wire(role: Role, src: AddressInfo, addr: &Ip) -> bool {
    match role {
        Role::Pod if src.is(AddressInfo::OWN | AddressInfo::OTHER_NODE) => true,
        Role::Pod => !src.is(AddressInfo::POD) && !addr.is_link_local() && !addr.is_unspecified(),
        Role::Uplink => src.is(AddressInfo::OWN),
        Role::Loopback | Role::Undeclared => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{packet::PortKind, tables::FlowKey};

    /// A policy that allows everything, so that only the checks beyond it matter.
    struct Open(Settings);

    impl Open {
        const fn new() -> Self {
            Self(Settings {
                generation: 1,
                dry_run: 0,
                tls_dry_run: 0,
                classes: 1,
                targets: 1,
                parties: 1,
                undeclared_process: 7,
                local: 8,
                own: 0,
                pods: 9,
                v4_buckets: 0,
                v6_buckets: 0,
                networks: 0,
                other: Verdict::OTHER,
            })
        }
    }

    impl Tables for Open {
        fn settings(&self) -> Option<&Settings> {
            Some(&self.0)
        }
        fn address_info(&self, _: &Ip) -> AddressInfo {
            AddressInfo::UNKNOWN
        }
        fn class(&self, _: PortKind, _: u16) -> Option<u16> {
            Some(0)
        }
        fn target(&self, _: &Settings, _: Party, _: u16) -> Option<u16> {
            Some(0)
        }
        fn declares(&self, _: &Settings, _: Party, _: u16) -> bool {
            false
        }
        // The path's number is that of the party that counts as the sender.
        fn entry(&self, _: &Settings, from: Party, _: u16) -> Option<Verdict> {
            Some(Verdict::path(from).to_guarded().with_tls())
        }
        fn bind_entry(&self, _: &Settings, _: Party, _: u16) -> Option<Verdict> {
            Some(Verdict::OTHER)
        }
        fn related(&self, _: &Settings, _: Party, _: Party) -> bool {
            true
        }
        fn remembered(&self, _: &FlowKey) -> Option<Memory> {
            None
        }
        fn remember(&self, _: &FlowKey, _: Memory) {}
        fn translated(&self, _: &Settings, _: &FlowKey) -> Option<u16> {
            None
        }
        fn remember_translated(&self, _: &Settings, _: &FlowKey, _: u16) {}
    }

    fn packet(phase: Phase) -> Packet {
        let ports = Ports {
            phase,
            kind: PortKind::Tcp,
            source: 40_000,
            destination: 443,
        };
        Packet::flow(Ip::v4([10, 0, 0, 1]), Ip::v4([10, 0, 0, 2]), ports)
    }

    const fn sent(sender: Party, origin: Origin) -> Vantage {
        let on_lo = false;
        Vantage::new(View::Sent {
            sender,
            origin,
            on_lo,
        })
    }

    const fn arrived_by(role: Role) -> Vantage {
        Vantage::new(View::Arrived { role, interface: 3 })
    }

    const fn left_after(entered: Entered) -> Vantage {
        let to_pod = false;
        Vantage::new(View::Left { entered, to_pod })
    }

    const fn received_by(role: Role, judged: bool) -> Vantage {
        Vantage::new(View::Received {
            receiver: 4,
            role,
            judged,
        })
    }

    #[test]
    fn what_the_kernel_sends_by_itself_is_nobodys_process() {
        let tables = Open::new();
        let from = |sender, origin| {
            let packet = packet(Phase::Following);
            let judged = judge(&tables, sent(sender, origin), &packet, || false);
            judged.verdict.forward_path()
        };
        assert_eq!(from(5, Origin::KernelSocket), Some(5), "a declared one");
        assert_eq!(from(7, Origin::Socket), Some(7));
        assert_eq!(from(7, Origin::Frames), Some(7));
        assert_eq!(from(7, Origin::KernelSocket), Some(8));
        assert_eq!(from(7, Origin::NoSocket), Some(NOBODY));
        assert_eq!(from(7, Origin::OtherNamespace), Some(9), "a pod");
    }

    /// Which checks an allowed packet goes through, and in which order.
    #[test]
    fn a_checksum_is_checked_before_a_lock_and_once() {
        let tables = Open::new();
        let allowed = Judgement {
            verdict: Verdict::path(1).with_tls(),
            mark: PacketMark::JUDGED,
        };
        let checked = |vantage, carried, elsewhere: bool| {
            let calls = core::cell::Cell::new((0, 0));
            let examined = examine(
                &tables,
                vantage,
                carried,
                allowed,
                Some(&packet(Phase::Following)),
                || {
                    calls.set((calls.get().0 + 1, calls.get().1));
                    elsewhere
                },
                || {
                    calls.set((calls.get().0, calls.get().1 + 1));
                    Lock::Broken
                },
            );
            (calls.get(), counter::reason(counter::of(examined.verdict)))
        };
        let none = PacketMark::NONE;
        let judged = PacketMark::JUDGED;
        let elsewhere = Some(Reason::ChecksumElsewhere);
        let not_tls = Some(Reason::NotTls);
        for (vantage, carried, once) in [
            (arrived_by(Role::Pod), none, (1, 0)),
            (arrived_by(Role::Undeclared), none, (1, 0)),
            (sent(5, Origin::Frames), none, (1, 0)),
            (sent(5, Origin::OtherNamespace), none, (1, 0)),
            (left_after(Entered::ByUplink(None)), judged, (1, 0)),
            (left_after(Entered::FromPod), none, (1, 0)),
        ] {
            assert_eq!(
                checked(vantage, carried, true),
                (once, elsewhere),
                "{vantage:?}"
            );
        }
        for (vantage, carried) in [
            (arrived_by(Role::Uplink), none),
            (sent(5, Origin::Socket), none),
            (received_by(Role::Uplink, true), judged),
        ] {
            assert_eq!(
                checked(vantage, carried, true),
                ((0, 1), not_tls),
                "{vantage:?}"
            );
        }
        // It was checked where the pod's packet came in; and the client is not behind this interface.
        let from_pod = left_after(Entered::FromPod);
        assert_eq!(checked(from_pod, judged, true), ((0, 0), None));
        let (calls, reason) = checked(from_pod, judged.with_fast_open(), true);
        assert_eq!((calls, reason), ((0, 0), Some(Reason::FastOpenThrough)));
    }

    /// A UDP socket may be connected just to learn its own address; replies need the memory.
    #[test]
    fn calls_fail_at_once_for_tcp_and_for_what_is_guarded() {
        use crate::decide::fails_at_once;
        let guarded = Verdict::denied(Reason::NoPath, false, true);
        let other = Verdict::denied(Reason::OtherTraffic, false, false);
        let would_deny = Verdict::denied(Reason::NoPath, true, true);
        for (verdict, tcp, udp) in [
            (guarded, true, true),
            (other, true, false),
            (would_deny, false, false),
            (Verdict::path(1), false, false),
            (Verdict::OTHER, false, false),
        ] {
            assert_eq!(fails_at_once(verdict, PortKind::Tcp), tcp, "{verdict:?}");
            assert_eq!(fails_at_once(verdict, PortKind::Udp), udp, "{verdict:?}");
        }
    }

    #[test]
    fn a_packet_is_reported_once() {
        let (path, other) = (Verdict::path(1), Verdict::OTHER);
        let dropped = Verdict::denied(Reason::NoPath, false, true);
        let would_drop = Verdict::denied(Reason::NoPath, true, true);
        let (none, judged) = (PacketMark::NONE, PacketMark::JUDGED);
        let told = judged.reported();
        let from_pod = left_after(Entered::FromPod);
        for (vantage, carried, verdict, is_reported) in [
            (arrived_by(Role::Uplink), none, path, true),
            (arrived_by(Role::Pod), none, other, true),
            (arrived_by(Role::Undeclared), none, other, false),
            (arrived_by(Role::Undeclared), none, would_drop, true),
            (from_pod, judged, path, false),
            (from_pod, judged, dropped, true),
            (from_pod, judged, would_drop, true),
            (from_pod, told, would_drop, false),
            (from_pod, told, dropped, true),
            (sent(5, Origin::Socket), none, path, true),
            (received_by(Role::Uplink, true), judged, path, false),
            (received_by(Role::Undeclared, false), judged, path, true),
            (received_by(Role::Uplink, true), judged, would_drop, true),
            (received_by(Role::Uplink, true), told, would_drop, false),
            (received_by(Role::Uplink, true), told, dropped, true),
            (received_by(Role::Loopback, true), none, would_drop, false),
            (received_by(Role::Loopback, true), none, dropped, true),
        ] {
            let expected = if is_reported {
                Report::Verdict
            } else {
                Report::Nothing
            };
            let found = report(vantage, carried, verdict, Lock::Open);
            assert_eq!(found, expected, "{vantage:?} {carried:?} {verdict:?}");
        }
        let cut = |verdict| report(sent(5, Origin::Socket), none, verdict, Lock::Cut);
        assert_eq!(cut(dropped), Report::Cut);
        assert_eq!(cut(would_drop), Report::Verdict);
    }
}
