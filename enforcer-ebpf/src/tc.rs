//! The TC hooks.

use core::ptr;

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC},
    programs::TcContext,
};
use enforcer_common::{
    decide, limits,
    memo::Asker,
    packet::Packet,
    parse::Start,
    record::Hook,
    tables::{Party, Role},
    verdict::{Direction, Reason, Verdict, counter},
};

use crate::{
    cgroup_skb,
    lock::{self, Lock},
    maps::{self, Active},
    memo::{self, Found},
    report::{Report, Subject, count},
    skb::{self, Skb},
    socket,
};

/// Family of a packet socket.
const AF_PACKET: u32 = 17;

/// In the note on a packet: dry-run let it pass and has told so already.
pub const TOLD: u32 = 1 << 15;
/// In the note on a packet: its source address is the pod's own, and the low bits say who that is.
pub const KNOWN: u32 = 1 << 14;
/// In the note on a packet: it brings data with a SYN, and its path asks for TLS.
const FAST_OPEN: u32 = 1 << 13;
const PARTY: u32 = limits::MAX_PARTIES - 1;

// The note has 16 bits.
const _: () = assert!(limits::MAX_PARTIES.is_power_of_two() && PARTY < FAST_OPEN);

/// The next program, or the stack, has its say: we never override somebody else's filter.
const PASS: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT;

/// What comes in by an uplink or from a pod.
pub fn ingress(ctx: &TcContext) -> i32 {
    let skb = Skb::of(ctx);
    let active = Active::now();
    let (role, start) = interface(skb.ifindex());
    let mut packet = skb::room();
    if let Err(reason) = skb.read(start, &mut packet) {
        let verdict = decide::unreadable(&active.generation(), reason);
        skb.set_note(if verdict.is_denied() { TOLD } else { 0 });
        told::<true>(skb, active, verdict, None);
        return action(verdict);
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
    let verdict = if lock::is_asked(allowed, &packet) && is_forward(allowed) {
        entered(skb, active, &packet, found)
    } else {
        skb.set_note(found.note().into());
        if found.is_recalled() {
            // If it is to be told, it has been counted where it was found.
            count(Hook::TcIngress, counter::of(allowed));
            return action(allowed);
        }
        allowed
    };
    if verdict.is_recorded() {
        told::<true>(skb, active, verdict, Some(&packet));
    } else {
        count(Hook::TcIngress, counter::of(verdict));
    }
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
    let mut note = 0;
    let verdict = decide::arrived_on_wire(&generation, Role::from_word(role), packet, |party| {
        let at_home = skb.is_route_back(&packet.src, &packet.dst);
        if at_home {
            note = KNOWN | (u32::from(party) & PARTY);
        }
        at_home
    });
    if verdict.is_denied() {
        note |= TOLD;
    }
    Found::new(&generation, verdict, note as u16).word()
}

/// The verdict with the lock of its path in mind, on what has entered from a client.
#[inline(always)]
fn entered(skb: Skb, active: Active, packet: &Packet, allowed: Found) -> Verdict {
    let mut note = u32::from(allowed.note());
    if packet.segment.is_syn() && !packet.segment.is_empty() {
        note |= FAST_OPEN;
    }
    let lock = lock::entered(skb, packet);
    let verdict = lock.verdict(active, allowed.verdict());
    if lock == Lock::Broken && !verdict.passes() {
        lock::cut(packet);
    }
    if verdict.is_denied() {
        note |= TOLD;
    }
    skb.set_note(note);
    verdict
}

/// What goes out: frames of packet sockets, and what was forwarded. Packets of other sockets had
/// their judge in `cgroup_skb`.
pub fn egress(ctx: &TcContext) -> i32 {
    let skb = Skb::of(ctx);
    let sk = skb.socket();
    if !socket::is_full(sk) {
        return if skb.entered_by() == 0 {
            PASS
        } else {
            forwarded(skb)
        };
    }
    // SAFETY: not null, and a plain field that every socket has.
    if unsafe { (*sk).family } == AF_PACKET {
        injected(skb)
    } else {
        PASS
    }
}

// Each way out on a stack frame of its own, as only one of them is taken.
#[inline(never)]
fn injected(skb: Skb) -> i32 {
    let active = Active::now();
    let (role, start) = interface(skb.ifindex());
    let mut packet = skb::room();
    if let Err(reason) = skb.read_in_full(start, &mut packet) {
        let verdict = decide::unreadable(&active.generation(), reason);
        told_of_process(skb, active, verdict, None);
        return action(verdict);
    }
    let on_lo = matches!(role, Role::Loopback);
    let allowed = cgroup_skb::sent_by(skb.party(active), on_lo, active, &packet);
    let verdict = if lock::is_asked(allowed, &packet) {
        lock::injected(&packet.segment).verdict(active, allowed)
    } else {
        allowed
    };
    told_of_process(skb, active, verdict, Some(&packet));
    action(verdict)
}

/// Likewise, of a process that has sent from a packet socket.
#[inline(never)]
fn told_of_process(skb: Skb, active: Active, verdict: Verdict, packet: Option<&Packet>) {
    Report {
        active,
        hook: Hook::TcEgress,
        subject: Subject::Cgroup(skb.cgroup()),
        ifindex: skb.ifindex(),
        state: ptr::null_mut(),
    }
    .packet(verdict, packet);
}

#[inline(never)]
fn forwarded(skb: Skb) -> i32 {
    let (entered, _) = interface(skb.entered_by());
    if matches!(entered, Role::Undeclared | Role::Loopback) {
        return PASS;
    }
    let active = Active::now();
    let (_, start) = interface(skb.ifindex());
    // What can not be read was denied where it came in.
    let mut packet = skb::room();
    if skb.read(start, &mut packet).is_err() {
        return PASS;
    }
    let note = skb.note();
    let asker = Asker {
        hook: Hook::TcEgress,
        manner: entered as u8,
        who: note & (KNOWN | PARTY),
    };
    let verdict = memo::verdict::<false>(asker, active, &packet, || {
        Found::of(enforcer_left(active.word(), entered as u32, note, &packet))
    })
    .verdict();
    let verdict = if note & FAST_OPEN != 0 && !verdict.is_denied() {
        decide::not_tls(&active.generation(), verdict, Reason::FastOpenThrough)
    } else if lock::is_asked(verdict, &packet) && !is_forward(verdict) {
        lock::returned(&packet).verdict(active, verdict)
    } else {
        verdict
    };
    if !verdict.is_denied() || (verdict.passes() && note & TOLD != 0) {
        return PASS;
    }
    told::<false>(skb, active, verdict, Some(&packet));
    action(verdict)
}

/// The word of [`Found`] about what leaves after it was forwarded. Global, too.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn enforcer_left(
    active: u32,
    entered: u32,
    note: u32,
    packet: *const Packet,
) -> u64 {
    // SAFETY: as above.
    let Some(packet) = (unsafe { packet.as_ref() }) else {
        return Found::HOLE;
    };
    let generation = Active::of(active).generation();
    let known = (note & KNOWN != 0).then_some((note & PARTY) as Party);
    let verdict = decide::forwarded(&generation, Role::from_word(entered), known, packet);
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
        subject: Subject::Interface(subject),
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
