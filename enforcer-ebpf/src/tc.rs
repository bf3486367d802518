//! The TC hooks.

use core::ptr;

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC},
    programs::TcContext,
};
use enforcer_common::{
    decide,
    mark::PacketMark,
    memo::Asker,
    packet::Packet,
    parse::Start,
    record::Hook,
    tables::Role,
    verdict::{Direction, Reason, Verdict, counter},
};

use crate::{
    cgroup_skb,
    lock::{self, Lock, Way},
    maps::{self, Active},
    memo::{self, Found},
    report::{Report, Subject, count, is_of_cut},
    skb::{self, Skb},
    socket,
};

// include/linux/socket.h
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// The next program, or the stack, has its say: we never override somebody else's filter.
const PASS: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT;

/// What comes in by an interface other than lo.
pub fn ingress(ctx: &TcContext) -> i32 {
    let skb = Skb::of(ctx);
    // A copy of what this node sends to many was judged at its socket, and begins with no link header.
    if skb.is_looped_back() {
        return PASS;
    }
    let active = Active::now();
    let (role, start) = interface(skb.ifindex());
    let mut packet = skb::room();
    if let Err(reason) = skb.read_owned(start, &mut packet) {
        return arrived_unread(skb, active, role, reason);
    }
    let asker = Asker {
        hook: Hook::TcIngress,
        manner: role as u8,
        who: skb.ifindex(),
    };
    let found = memo::verdict::<true>(asker, active, &packet, || {
        Found::of(enforcer_arrived(
            skb.as_ptr(),
            active.word(),
            role as u32,
            &packet,
        ))
    });
    let allowed = found.verdict();
    let verdict = if !allowed.is_denied()
        && is_checksum_asked_about(role)
        && skb.has_checksum_elsewhere(Some(&packet))
    {
        skb.set_mark(PacketMark::JUDGED.told());
        decide::refused(&active.generation(), Reason::ChecksumElsewhere)
    } else if lock::is_asked(allowed, &packet) && is_forward(allowed) {
        let lock = lock::entered(skb, &packet);
        let verdict = lock.verdict(active, allowed);
        if is_of_cut(Hook::TcIngress, lock, verdict) {
            return DROP;
        }
        entered(skb, lock, verdict, &packet, found);
        verdict
    } else {
        skb.set_mark(PacketMark::from_word(found.note()));
        if found.is_recalled() && allowed.is_denied() {
            // If it is to be told, it has been counted where it was found.
            count(Hook::TcIngress, counter::of(allowed));
            return action(allowed);
        }
        allowed
    };
    if verdict.is_recorded() {
        told::<true>(skb, active, verdict, Some(&packet));
    } else if !is_counted_later(role, verdict) {
        count(Hook::TcIngress, counter::of(verdict));
    }
    action(verdict)
}

/// Whether what has come in by an interface is asked there whether a checksum is still to be written into it. What comes by an
/// uplink is asked when it leaves, as nobody writes that before: for most of it there is nothing to ask, and asking is a call.
const fn is_checksum_asked_about(role: Role) -> bool {
    !matches!(role, Role::Uplink)
}

/// What comes in by an interface that nobody declared is counted where it is judged in full.
fn is_counted_later(role: Role, verdict: Verdict) -> bool {
    matches!(role, Role::Undeclared) && !verdict.is_denied()
}

/// Likewise what could not be read.
#[inline(never)]
fn arrived_unread(skb: Skb, active: Active, role: Role, reason: Reason) -> i32 {
    let generation = active.generation();
    let mut verdict = decide::unreadable_on_wire(&generation, role, reason);
    // What is not read now must not become something that would have been.
    if !verdict.is_denied() && is_checksum_asked_about(role) && skb.has_checksum_elsewhere(None) {
        verdict = decide::refused(&generation, Reason::ChecksumElsewhere);
    }
    skb.set_mark(if verdict.is_denied() {
        PacketMark::JUDGED.told()
    } else {
        PacketMark::JUDGED
    });
    if !is_counted_later(role, verdict) {
        told::<true>(skb, active, verdict, None);
    }
    action(verdict)
}

/// What comes in by lo. All of it has gone out by lo, where it was judged, or at its socket before: each frame bears a mark that
/// says so. A frame without one was handed to lo past every hook (`PACKET_QDISC_BYPASS`, a ring of `AF_XDP`).
pub fn looped(ctx: &TcContext) -> i32 {
    let skb = Skb::of(ctx);
    if skb.mark().is_judged() || skb.is_looped_back() {
        return PASS;
    }
    unseen(skb)
}

#[inline(never)]
fn unseen(skb: Skb) -> i32 {
    let active = Active::now();
    let verdict = decide::refused(&active.generation(), Reason::AroundHooks);
    let (_, start) = interface(skb.ifindex());
    let mut packet = skb::room();
    let read = skb.read_owned(start, &mut packet);
    told::<true>(skb, active, verdict, read.is_ok().then_some(&packet));
    action(verdict)
}

/// The word of [`Found`] about what has arrived and could be read, with a note for those who look at it later. A
/// global function, which the verifier goes through once and by itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn enforcer_arrived(
    skb: *mut __sk_buff,
    active: u32,
    role: u32,
    packet: *const Packet,
) -> u64 {
    // SAFETY: null or a whole packet, as the verifier has made sure of every caller.
    let Some(packet) = (unsafe { packet.as_ref() }) else {
        return Found::HOLE;
    };
    let skb = Skb::from_ptr(skb);
    let generation = Active::of(active).generation();
    let mut mark = PacketMark::JUDGED;
    let role = Role::from_word(role);
    let verdict = decide::arrived_on_wire(&generation, role, packet, |party| {
        let at_home = skb.is_route_back(&packet.src, &packet.dst);
        if at_home {
            mark = PacketMark::from_known_pod(party);
        }
        at_home
    });
    if matches!(role, Role::Uplink) {
        mark = mark.let_in_by(verdict);
    }
    if verdict.is_denied() {
        mark = mark.told();
    }
    Found::new(&generation, verdict, mark.word()).word()
}

/// Marks what has entered from a client on a path that asks for TLS, and cuts it off if it is none.
#[inline(always)]
fn entered(skb: Skb, lock: Lock, verdict: Verdict, packet: &Packet, allowed: Found) {
    let mut mark = PacketMark::from_word(allowed.note());
    if packet.segment.is_syn() && !packet.segment.is_empty() {
        mark = mark.with_fast_open();
    }
    if lock == Lock::Broken && !verdict.passes() {
        lock::cut(packet);
    }
    if verdict.is_denied() {
        mark = mark.told();
    }
    skb.set_mark(mark);
}

/// What goes out: frames of packet sockets, and what was forwarded. Packets of other sockets had
/// their judge in `cgroup_skb`.
pub fn egress(ctx: &TcContext) -> i32 {
    let skb = Skb::of(ctx);
    let sk = skb.socket();
    let role = Role::from_word(maps::role(skb.ifindex()));
    let on_lo = matches!(role, Role::Loopback);
    if !socket::is_full(sk) {
        if skb.entered_by() != 0 {
            return if matches!(role, Role::Undeclared) {
                forwarded_anywhere(skb)
            } else {
                forwarded(skb)
            };
        }
        if on_lo {
            skb.set_mark(PacketMark::JUDGED);
        }
        return PASS;
    }
    // Lo belongs to one network namespace, and so do the sockets that send by it.
    let elsewhere = !on_lo && socket::is_elsewhere(skb, sk);
    // A packet socket, a macvtap device's queue: whatever makes frames without a network layer that asks `cgroup_skb`.
    // SAFETY: not null, and a plain field that every socket has.
    let raw = !matches!(unsafe { (*sk).family }, AF_INET | AF_INET6);
    if raw || elsewhere {
        return injected(skb, role, u32::from(raw) | u32::from(elsewhere) << 1);
    }
    if lock::is_to_be_seen_again(skb, sk) {
        let code = sent_again(skb);
        if code != PASS {
            return code;
        }
    }
    if on_lo {
        skb.set_mark(PacketMark::JUDGED);
    }
    PASS
}

/// What a socket of this node sends first to a server that is to hear TLS: its socket was asked about bytes that its process
/// may have changed since (a file that it sends), so they are looked at where that is over.
#[inline(never)]
fn sent_again(skb: Skb) -> i32 {
    let active = Active::now();
    let (_, start) = interface(skb.ifindex());
    let mut packet = skb::room();
    // Its socket's hook has read it: what can not be read now has no memory to be read in, and is no ClientHello.
    if skb.read_owned(start, &mut packet).is_ok() && lock::sent_again(skb, &packet) != Lock::Broken
    {
        return PASS;
    }
    let verdict = decide::not_tls(&active.generation(), Verdict::OTHER, Reason::NotTls);
    told_of_process(skb, active, verdict, Some(&packet));
    action(verdict)
}

// Each way out on a stack frame of its own, as only one of them is taken.
/// What a process sends as frames (1 in `how`), or by a socket of another network namespace (2), or both.
#[inline(never)]
fn injected(skb: Skb, role: Role, how: u32) -> i32 {
    let (raw, elsewhere) = (how & 1 != 0, how & 2 != 0);
    let active = Active::now();
    let (_, start) = interface(skb.ifindex());
    let mut packet = skb::room();
    if let Err(reason) = skb.read_owned(start, &mut packet) {
        let generation = active.generation();
        let mut verdict = decide::unreadable(&generation, reason);
        if !verdict.is_denied() && skb.has_checksum_elsewhere(None) {
            verdict = decide::refused(&generation, Reason::ChecksumElsewhere);
        }
        told_of_process(skb, active, verdict, None);
        return left(skb, role, verdict);
    }
    let on_lo = matches!(role, Role::Loopback);
    let sender = skb.party(active);
    if !raw && cgroup_skb::is_kernels_own(skb, active, sender, &packet) {
        return PASS;
    }
    let allowed = if elsewhere {
        cgroup_skb::sent_from_elsewhere(sender, active, &packet)
    } else {
        cgroup_skb::sent_by(sender, on_lo, active, &packet)
    };
    let verdict = if !allowed.is_denied() && skb.has_checksum_elsewhere(Some(&packet)) {
        decide::refused(&active.generation(), Reason::ChecksumElsewhere)
    } else if !raw {
        lock::at_socket(Way::Sent, skb, &packet, allowed, || false).verdict(active, allowed)
    } else if lock::is_asked(allowed, &packet) {
        lock::injected(&packet.segment).verdict(active, allowed)
    } else {
        allowed
    };
    told_of_process(skb, active, verdict, Some(&packet));
    left(skb, role, verdict)
}

/// Lets a frame go or not, with its mark where it comes in again.
#[inline(always)]
fn left(skb: Skb, role: Role, verdict: Verdict) -> i32 {
    if matches!(role, Role::Loopback) {
        skb.set_mark(PacketMark::JUDGED);
    }
    action(verdict)
}

/// Likewise, of a process that has sent from a packet socket.
#[inline(never)]
fn told_of_process(skb: Skb, active: Active, verdict: Verdict, packet: Option<&Packet>) {
    Report {
        active,
        hook: Hook::TcEgress,
        subject: Subject::cgroup(skb.cgroup()),
        ifindex: skb.ifindex(),
        state: ptr::null_mut(),
    }
    .packet(verdict, packet);
}

#[inline(never)]
fn forwarded(skb: Skb) -> i32 {
    let mark = skb.mark();
    // Within another network namespace it is somebody else's to say, or nobody's.
    skb.set_mark(PacketMark::NONE);
    let (entered, _) = interface(skb.entered_by());
    let is_complete = mark.is_judged() && is_checksum_asked_about(entered);
    let active = Active::now();
    let (role, start) = interface(skb.ifindex());
    let mut packet = skb::room();
    if let Err(reason) = skb.read_owned(start, &mut packet) {
        return left_unread(skb, active, reason, mark.is_judged(), is_complete);
    }
    let manner = entered as u8 | u8::from(matches!(role, Role::Pod)) << 2;
    let asker = Asker {
        hook: Hook::TcEgress,
        manner,
        who: mark.of_entry().into(),
    };
    let verdict = memo::verdict::<false>(asker, active, &packet, || {
        Found::of(enforcer_left(
            active.word(),
            manner.into(),
            mark.word().into(),
            &packet,
        ))
    })
    .verdict();
    let verdict = if mark.is_fast_open() && !verdict.is_denied() {
        decide::not_tls(&active.generation(), verdict, Reason::FastOpenThrough)
    } else if lock::is_asked(verdict, &packet) && !is_forward(verdict) {
        let lock = lock::returned(&packet);
        let verdict = lock.verdict(active, verdict);
        if is_of_cut(Hook::TcEgress, lock, verdict) {
            return DROP;
        }
        verdict
    } else {
        verdict
    };
    let verdict =
        if !verdict.is_denied() && !is_complete && skb.has_checksum_elsewhere(Some(&packet)) {
            decide::refused(&active.generation(), Reason::ChecksumElsewhere)
        } else {
            verdict
        };
    if !verdict.is_denied() || (verdict.passes() && mark.is_told()) {
        return PASS;
    }
    told::<false>(skb, active, verdict, Some(&packet));
    action(verdict)
}

/// What is forwarded and could not be read. If it was judged nowhere: as where nobody declared the interface that it came in by.
#[inline(never)]
fn left_unread(
    skb: Skb,
    active: Active,
    reason: Reason,
    is_judged: bool,
    is_complete: bool,
) -> i32 {
    let generation = active.generation();
    let mut verdict = if is_judged {
        Verdict::OTHER
    } else {
        decide::unreadable_on_wire(&generation, Role::Undeclared, reason)
    };
    // What is not read now must not become something that would have been.
    if !verdict.is_denied() && !is_complete && skb.has_checksum_elsewhere(None) {
        verdict = decide::refused(&generation, Reason::ChecksumElsewhere);
    }
    if verdict.is_denied() {
        told::<false>(skb, active, verdict, None);
    }
    action(verdict)
}

/// What is forwarded by an interface that nobody declared: judged where it came in, but for a checksum that an uplink's packet
/// is still to get.
#[inline(never)]
fn forwarded_anywhere(skb: Skb) -> i32 {
    let (entered, _) = interface(skb.entered_by());
    if is_checksum_asked_about(entered) || !skb.waits_for_checksum() {
        return PASS;
    }
    let active = Active::now();
    let (_, start) = interface(skb.ifindex());
    let mut packet = skb::room();
    let read = skb.read_owned(start, &mut packet);
    let packet = read.is_ok().then_some(&packet);
    if !skb.has_checksum_elsewhere(packet) {
        return PASS;
    }
    let verdict = decide::refused(&active.generation(), Reason::ChecksumElsewhere);
    told::<false>(skb, active, verdict, packet);
    action(verdict)
}

/// The word of [`Found`] about what leaves after it was forwarded. Global, too.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn enforcer_left(active: u32, manner: u32, mark: u32, packet: *const Packet) -> u64 {
    // SAFETY: as above.
    let Some(packet) = (unsafe { packet.as_ref() }) else {
        return Found::HOLE;
    };
    let generation = Active::of(active).generation();
    let entered = PacketMark::from_word(mark as u16).entered(Role::from_word(manner));
    let verdict = decide::forwarded(&generation, entered, manner & 4 != 0, packet);
    Found::new(&generation, verdict, 0).word()
}

/// Counts a verdict at an interface, and keeps a record of a denial. `ENTERED` tells ingress, where a packet is
/// on the interface that it came in by, from egress. On a stack frame of its own.
#[inline(never)]
fn told<const ENTERED: bool>(skb: Skb, active: Active, verdict: Verdict, packet: Option<&Packet>) {
    let (hook, subject) = if ENTERED {
        (Hook::TcIngress, skb.ifindex())
    } else {
        (Hook::TcEgress, skb.entered_by())
    };
    Report {
        active,
        hook,
        subject: Subject::interface(subject),
        ifindex: skb.ifindex(),
        state: ptr::null_mut(),
    }
    .packet(verdict, packet);
}

/// The role of an interface, and where its packets begin.
fn interface(ifindex: u32) -> (Role, Start) {
    let word = maps::role(ifindex);
    let start = if word & Role::NO_LINK_HEADER != 0 {
        Start::Ip
    } else {
        Start::Ethernet
    };
    (Role::from_word(word), start)
}

/// Whether a packet goes along its path, and not back.
fn is_forward(verdict: Verdict) -> bool {
    matches!(verdict.direction(), Direction::Forward)
}

fn action(verdict: Verdict) -> i32 {
    if verdict.passes() { PASS } else { DROP }
}
