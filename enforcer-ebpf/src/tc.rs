//! The TC hooks.

use core::ptr;

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    programs::TcContext,
};
use enforcer_common::{
    decide, limits,
    packet::Packet,
    parse::Start,
    record::Hook,
    tables::{NOBODY, Party, Role, Tables as _},
    verdict::{Direction, Reason, Verdict},
};

use crate::{
    lock::{self, Lock},
    maps::{Generation, INTERFACES},
    report::{Report, Subject},
    skb::Skb,
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
    let generation = Generation::active();
    let (role, start) = interface(skb.ifindex());
    let mut packet = Packet::EMPTY;
    let read = skb.parse_into(start, &mut packet);
    let mut note = 0;
    let verdict = match read {
        Ok(()) => decide::arrived_on_wire(&generation, role, &packet, |party| {
            let at_home = skb.is_route_back(&packet.src, &packet.dst);
            if at_home {
                note = KNOWN | (u32::from(party) & PARTY);
            }
            at_home
        }),
        Err(reason) => decide::unreadable(&generation, reason),
    };
    let verdict = if lock::is_asked(verdict, &packet) && is_forward(verdict) {
        if packet.segment.is_syn() && !packet.segment.is_empty() {
            note |= FAST_OPEN;
        }
        let lock = lock::entered(skb, &packet);
        let with_lock = lock.verdict(&generation, verdict);
        if lock == Lock::Broken && !with_lock.passes() {
            lock::cut(&packet);
        }
        with_lock
    } else {
        verdict
    };
    if verdict.is_denied() {
        note |= TOLD;
    }
    skb.set_note(note);
    let subject = Subject::Interface(skb.ifindex());
    Report {
        hook: Hook::TcIngress,
        subject,
        ifindex: skb.ifindex(),
        state: ptr::null_mut(),
    }
    .packet(&generation, verdict, read.is_ok().then_some(&packet));
    action(verdict)
}

/// What goes out: frames of packet sockets, and what was forwarded. Packets of other sockets had
/// their judge in `cgroup_skb`.
pub fn egress(ctx: &TcContext) -> i32 {
    let skb = Skb::of(ctx);
    let sk = skb.full_socket();
    if sk.is_null() {
        return if skb.entered_by() == 0 {
            PASS
        } else {
            forwarded(skb)
        };
    }
    // SAFETY: a full socket, whose plain fields the verifier lets programs read.
    if unsafe { (*sk).family } == AF_PACKET {
        injected(skb)
    } else {
        PASS
    }
}

fn injected(skb: Skb) -> i32 {
    let generation = Generation::active();
    let (role, start) = interface(skb.ifindex());
    let mut packet = Packet::EMPTY;
    let read = skb.parse_into(start, &mut packet);
    let sender = match generation.settings() {
        Some(settings) => skb.party(generation, settings),
        None => NOBODY,
    };
    let verdict = match read {
        Ok(()) => {
            decide::sent_by_process(&generation, sender, matches!(role, Role::Loopback), &packet)
        }
        Err(reason) => decide::unreadable(&generation, reason),
    };
    let verdict = if lock::is_asked(verdict, &packet) {
        lock::injected(&packet.segment).verdict(&generation, verdict)
    } else {
        verdict
    };
    let subject = Subject::Cgroup(skb.cgroup());
    Report {
        hook: Hook::TcEgress,
        subject,
        ifindex: skb.ifindex(),
        state: ptr::null_mut(),
    }
    .packet(&generation, verdict, read.is_ok().then_some(&packet));
    action(verdict)
}

fn forwarded(skb: Skb) -> i32 {
    let (entered, _) = interface(skb.entered_by());
    if matches!(entered, Role::Undeclared | Role::Loopback) {
        return PASS;
    }
    let generation = Generation::active();
    let (_, start) = interface(skb.ifindex());
    // What can not be read was denied where it came in.
    let mut packet = Packet::EMPTY;
    if skb.parse_into(start, &mut packet).is_err() {
        return PASS;
    }
    let note = skb.note();
    let known = (note & KNOWN != 0).then_some((note & PARTY) as Party);
    let verdict = decide::forwarded(&generation, entered, known, &packet);
    let verdict = if note & FAST_OPEN != 0 && !verdict.is_denied() {
        decide::not_tls(&generation, verdict, Reason::FastOpenThrough)
    } else if lock::is_asked(verdict, &packet) && !is_forward(verdict) {
        lock::returned(&packet).verdict(&generation, verdict)
    } else {
        verdict
    };
    if !verdict.is_denied() || (verdict.passes() && note & TOLD != 0) {
        return PASS;
    }
    let subject = Subject::Interface(skb.entered_by());
    Report {
        hook: Hook::TcEgress,
        subject,
        ifindex: skb.ifindex(),
        state: ptr::null_mut(),
    }
    .packet(&generation, verdict, Some(&packet));
    action(verdict)
}

/// The role of an interface, and where its packets begin.
fn interface(ifindex: u32) -> (Role, Start) {
    // SAFETY: the value is copied at once; a role that changes meanwhile is the old or the new one.
    let word = unsafe { INTERFACES.get(ifindex) }.copied().unwrap_or(0);
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
