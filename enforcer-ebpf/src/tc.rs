//! The TC hooks.

use core::ptr;

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC},
    programs::TcContext,
};
use enforcer_common::{
    decide,
    judge::{self, Examined, examine, judge_unreadable, report},
    mark::PacketMark,
    packet::Packet,
    parse::Start,
    record::Hook,
    tables::{Party, Role},
    tls::Lock,
    vantage::{Kind, Origin, Vantage, View},
    verdict::{Reason, Verdict, counter},
};

use crate::{
    cache::{self, CachedVerdict},
    cgroup_skb,
    lock::{self, SocketDirection},
    maps::{self, Active},
    report::{Report, Subject, count},
    skb::{self, Skb},
    socket,
};

// include/linux/socket.h
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// Continues with the next program or the network stack: filters of others are never overridden.
const PASS: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT;

/// What comes in by an interface other than lo.
pub fn ingress(ctx: &TcContext) -> i32 {
    let skb = Skb::of(ctx);
    // This node's own copy of a multicast or broadcast was judged at its socket, and has no link header.
    if skb.is_looped_back() {
        return PASS;
    }
    let active = Active::now();
    let interface = skb.ifindex();
    let (role, start) = role_and_start(interface, active);
    let vantage = Vantage::new(View::Arrived { role, interface });
    let mut packet = skb::room();
    if let Err(reason) = skb.read_owned(start, &mut packet) {
        // Reported from here and not from that function, as stack frames add up.
        let unread = Unread(arrived_unread(skb, active, vantage, reason));
        if unread.is_reported() {
            report_at::<true>(skb, active, vantage, unread.verdict(), None);
        }
        return action(unread.verdict());
    }
    let found = cache::verdict::<true>(vantage, active, &packet, || {
        CachedVerdict::of(enforcer_arrived(
            skb.as_ptr(),
            active.word(),
            vantage.word(),
            &packet,
        ))
    });
    let Examined {
        verdict,
        mark,
        lock,
    } = examine(
        &active.generation(),
        vantage,
        PacketMark::NONE,
        found.judgement(),
        Some(&packet),
        || skb.has_checksum_elsewhere(Some(&packet)),
        || lock::entered(skb, &packet),
    );
    if lock == Lock::Broken && !verdict.passes() {
        lock::cut(&packet);
    }
    skb.set_mark(mark);
    if found.is_recalled() && found.verdict().is_denied() {
        // A denial that is recorded has been counted in the cache entry.
        count(counter::of(verdict));
        return action(verdict);
    }
    match report(vantage, PacketMark::NONE, verdict, lock) {
        judge::Report::Nothing => {}
        judge::Report::Cut => count(counter::CUT),
        judge::Report::Verdict if verdict.is_recorded() => {
            report_at::<true>(skb, active, vantage, verdict, Some(&packet));
        }
        judge::Report::Verdict => count(counter::of(verdict)),
    }
    action(verdict)
}

/// A verdict on a packet that could not be parsed, and whether it is reported there, packed into a word: functions that are
/// not inlined can return that.
struct Unread(u64);

impl Unread {
    const REPORTED: u64 = 1 << 32;

    const fn word(verdict: Verdict, is_reported: bool) -> u64 {
        verdict.word() as u64 | if is_reported { Self::REPORTED } else { 0 }
    }

    fn verdict(&self) -> Verdict {
        zerocopy::transmute!(self.0 as u32)
    }

    const fn is_reported(&self) -> bool {
        self.0 & Self::REPORTED != 0
    }
}

/// The word of an [`Unread`] for a packet that has arrived.
#[inline(never)]
fn arrived_unread(skb: Skb, active: Active, vantage: Vantage, reason: Reason) -> u64 {
    let vantage = Vantage::from_word(Kind::Arrived, vantage.word());
    let generation = active.generation();
    let Examined { verdict, mark, .. } = examine(
        &generation,
        vantage,
        PacketMark::NONE,
        judge_unreadable(&generation, vantage, PacketMark::NONE, reason),
        None,
        // What is not read now must not become something that would have been.
        || skb.has_checksum_elsewhere(None),
        || Lock::Open,
    );
    skb.set_mark(mark);
    let report = report(vantage, PacketMark::NONE, verdict, Lock::Open);
    Unread::word(verdict, report != judge::Report::Nothing)
}

/// What comes in by lo. All of it has left by lo and was judged there, or before that at its socket, and carries a mark that
/// says so. A frame without a mark was handed to lo past every hook (`PACKET_QDISC_BYPASS`, a ring of `AF_XDP`).
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
    let verdict = decide::refused(&active.generation(), Reason::BypassesHooks);
    let interface = skb.ifindex();
    let (role, start) = role_and_start(interface, active);
    let vantage = Vantage::new(View::Arrived { role, interface });
    let mut packet = skb::room();
    let read = skb.read_owned(start, &mut packet);
    report_at::<true>(
        skb,
        active,
        vantage,
        verdict,
        read.is_ok().then_some(&packet),
    );
    action(verdict)
}

/// The word of a [`CachedVerdict`] for a packet that has arrived and was parsed. A global function, which the verifier checks
/// once and separately.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn enforcer_arrived(
    skb: *mut __sk_buff,
    active: u32,
    vantage: u64,
    packet: *const Packet,
) -> u64 {
    // SAFETY: null or a whole packet, as the verifier has made sure of every caller.
    let Some(packet) = (unsafe { packet.as_ref() }) else {
        return CachedVerdict::UNSET;
    };
    let skb = Skb::from_ptr(skb);
    let generation = Active::of(active).generation();
    let vantage = Vantage::from_word(Kind::Arrived, vantage);
    let judged = judge::judge(&generation, vantage, packet, || {
        skb.is_route_back(&packet.src, &packet.dst)
    });
    CachedVerdict::new(&generation, judged).word()
}

/// What leaves by an interface: frames of packet sockets, and forwarded packets. Packets of other sockets were judged in
/// `cgroup_skb`.
pub fn egress(ctx: &TcContext) -> i32 {
    let skb = Skb::of(ctx);
    let sk = skb.socket();
    // Once for the packet, as everywhere: what is asked below is of one generation.
    let active = Active::now();
    let role = Role::from_word(maps::role(skb.ifindex(), active));
    let on_lo = matches!(role, Role::Loopback);
    if !socket::is_full(sk) {
        if skb.entered_by() != 0 {
            return if matches!(role, Role::Undeclared) {
                forwarded_anywhere(skb, active)
            } else {
                forwarded(skb, active)
            };
        }
        if on_lo {
            skb.set_mark(PacketMark::JUDGED);
        }
        return PASS;
    }
    // Lo belongs to one network namespace, and so do the sockets that send by it.
    let elsewhere = !on_lo && socket::is_elsewhere(skb, sk);
    // A packet socket, or the queue of a macvtap device: senders of frames without a network layer that calls `cgroup_skb`.
    // SAFETY: not null, and a plain field that every socket has.
    let raw = !matches!(unsafe { (*sk).family }, AF_INET | AF_INET6);
    if raw || elsewhere {
        return injected(
            skb,
            active,
            role,
            u32::from(raw) | u32::from(elsewhere) << 1,
        );
    }
    if lock::needs_recheck(skb, sk) {
        let code = recheck_sent(skb, active);
        if code != PASS {
            return code;
        }
    }
    if on_lo {
        skb.set_mark(PacketMark::JUDGED);
    }
    PASS
}

/// Checks once more what a socket of this node sends first to a server whose path requires TLS: its process may have changed
/// the bytes (of a file that it sends) since they were checked at the socket, and can not any more here.
#[inline(never)]
fn recheck_sent(skb: Skb, active: Active) -> i32 {
    let (role, start) = role_and_start(skb.ifindex(), active);
    let vantage = Vantage::new(View::Sent {
        sender: skb.party(active),
        origin: Origin::Socket,
        on_lo: matches!(role, Role::Loopback),
    });
    let mut packet = skb::room();
    // Its socket's hook could parse it. If this fails now, memory is short, and the packet does not count as a ClientHello.
    if skb.read_owned(start, &mut packet).is_ok()
        && lock::recheck_sent(skb, &packet) != Lock::Broken
    {
        return PASS;
    }
    let verdict = decide::not_tls(&active.generation(), Verdict::OTHER, Reason::NotTls);
    report_injected(skb, active, vantage, verdict, Some(&packet));
    action(verdict)
}

// Each case of egress has a stack frame of its own, as only one of them is taken.
/// What a process sends as frames (1 in `how`), or by a socket of another network namespace (2), or both.
#[inline(never)]
fn injected(skb: Skb, active: Active, role: Role, how: u32) -> i32 {
    let (raw, elsewhere) = (how & 1 != 0, how & 2 != 0);
    let (_, start) = role_and_start(skb.ifindex(), active);
    let vantage = Vantage::new(View::Sent {
        sender: skb.party(active),
        origin: if elsewhere {
            Origin::OtherNamespace
        } else {
            Origin::Frames
        },
        on_lo: matches!(role, Role::Loopback),
    });
    let mut packet = skb::room();
    if let Err(reason) = skb.read_owned(start, &mut packet) {
        let unread = Unread(injected_unread(skb, active, vantage, reason));
        report_injected(skb, active, vantage, unread.verdict(), None);
        return action(unread.verdict());
    }
    if !raw && cgroup_skb::is_kernels_own(skb, active, vantage.number() as Party, &packet) {
        return PASS;
    }
    let judged = cgroup_skb::judged(active, vantage, &packet);
    let Examined { verdict, mark, .. } = examine(
        &active.generation(),
        vantage,
        PacketMark::NONE,
        judged,
        Some(&packet),
        || skb.has_checksum_elsewhere(Some(&packet)),
        || {
            if raw {
                lock::injected(&packet.segment)
            } else {
                lock::at_socket(SocketDirection::Sent, skb, &packet, judged.verdict, false)
            }
        },
    );
    report_injected(skb, active, vantage, verdict, Some(&packet));
    skb.set_mark(mark);
    action(verdict)
}

/// The word of an [`Unread`] for such a packet.
#[inline(never)]
fn injected_unread(skb: Skb, active: Active, vantage: Vantage, reason: Reason) -> u64 {
    let generation = active.generation();
    let vantage = Vantage::from_word(Kind::Sent, vantage.word());
    let Examined { verdict, mark, .. } = examine(
        &generation,
        vantage,
        PacketMark::NONE,
        judge_unreadable(&generation, vantage, PacketMark::NONE, reason),
        None,
        || skb.has_checksum_elsewhere(None),
        || Lock::Open,
    );
    skb.set_mark(mark);
    Unread::word(verdict, true)
}

/// Counts a verdict on what a process has sent, and keeps a record of a denial. Not inlined, to have its own stack frame.
#[inline(never)]
fn report_injected(
    skb: Skb,
    active: Active,
    vantage: Vantage,
    verdict: Verdict,
    packet: Option<&Packet>,
) {
    Report {
        active,
        hook: Hook::TcEgress,
        subject: Subject::cgroup(skb.cgroup()),
        vantage,
        mark: PacketMark::NONE,
        state: ptr::null_mut(),
    }
    .packet(verdict, packet);
}

#[inline(never)]
fn forwarded(skb: Skb, active: Active) -> i32 {
    let carried = skb.mark();
    // The mark has no meaning in another network namespace.
    skb.set_mark(PacketMark::NONE);
    let (entered, _) = role_and_start(skb.entered_by(), active);
    let (role, start) = role_and_start(skb.ifindex(), active);
    let vantage = Vantage::new(View::Left {
        entered: carried.entered(entered),
        to_pod: matches!(role, Role::Pod),
    });
    let mut packet = skb::room();
    if let Err(reason) = skb.read_owned(start, &mut packet) {
        let unread = Unread(left_unread(skb, active, vantage, carried, reason));
        if unread.is_reported() {
            report_at::<false>(skb, active, vantage, unread.verdict(), None);
        }
        return action(unread.verdict());
    }
    let judged = cache::verdict::<false>(vantage, active, &packet, || {
        CachedVerdict::of(enforcer_left(active.word(), vantage.word(), &packet))
    })
    .judgement();
    let Examined { verdict, lock, .. } = examine(
        &active.generation(),
        vantage,
        carried,
        judged,
        Some(&packet),
        || skb.has_checksum_elsewhere(Some(&packet)),
        || lock::returned(&packet),
    );
    match report(vantage, carried, verdict, lock) {
        judge::Report::Nothing => {}
        judge::Report::Cut => count(counter::CUT),
        judge::Report::Verdict => report_at::<false>(skb, active, vantage, verdict, Some(&packet)),
    }
    action(verdict)
}

/// The word of an [`Unread`] for a forwarded packet.
#[inline(never)]
fn left_unread(
    skb: Skb,
    active: Active,
    vantage: Vantage,
    carried: PacketMark,
    reason: Reason,
) -> u64 {
    let generation = active.generation();
    let vantage = Vantage::from_word(Kind::Left, vantage.word());
    let Examined { verdict, .. } = examine(
        &generation,
        vantage,
        carried,
        judge_unreadable(&generation, vantage, carried, reason),
        None,
        // What is not read now must not become something that would have been.
        || skb.has_checksum_elsewhere(None),
        || Lock::Open,
    );
    let report = report(vantage, carried, verdict, Lock::Open);
    Unread::word(verdict, report != judge::Report::Nothing)
}

/// What is forwarded to an undeclared interface. It was judged at ingress, except for a checksum that is still to be written
/// into a packet from an uplink.
#[inline(never)]
fn forwarded_anywhere(skb: Skb, active: Active) -> i32 {
    let carried = skb.mark();
    let (entered, _) = role_and_start(skb.entered_by(), active);
    if !carried.is_judged() || !matches!(entered, Role::Uplink) || !skb.waits_for_checksum() {
        return PASS;
    }
    let (_, start) = role_and_start(skb.ifindex(), active);
    let vantage = Vantage::new(View::Left {
        entered: carried.entered(entered),
        to_pod: false,
    });
    let mut packet = skb::room();
    let read = skb.read_owned(start, &mut packet);
    let packet = read.is_ok().then_some(&packet);
    if !skb.has_checksum_elsewhere(packet) {
        return PASS;
    }
    let verdict = decide::refused(&active.generation(), Reason::ChecksumElsewhere);
    report_at::<false>(skb, active, vantage, verdict, packet);
    action(verdict)
}

/// The word of a [`CachedVerdict`] for a forwarded packet. Global, too.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn enforcer_left(active: u32, vantage: u64, packet: *const Packet) -> u64 {
    // SAFETY: as above.
    let Some(packet) = (unsafe { packet.as_ref() }) else {
        return CachedVerdict::UNSET;
    };
    let generation = Active::of(active).generation();
    let vantage = Vantage::from_word(Kind::Left, vantage);
    let judged = judge::judge(&generation, vantage, packet, || false);
    CachedVerdict::new(&generation, judged).word()
}

/// Counts a verdict at an interface, and keeps a record of a denial. `ENTERED` is true at ingress and false at egress. Not
/// inlined, to have its own stack frame.
#[inline(never)]
fn report_at<const ENTERED: bool>(
    skb: Skb,
    active: Active,
    vantage: Vantage,
    verdict: Verdict,
    packet: Option<&Packet>,
) {
    let (hook, subject, mark) = if ENTERED {
        (Hook::TcIngress, skb.ifindex(), skb.mark())
    } else {
        (Hook::TcEgress, skb.entered_by(), PacketMark::NONE)
    };
    Report {
        active,
        hook,
        subject: Subject::interface(subject),
        vantage,
        mark,
        state: ptr::null_mut(),
    }
    .packet(verdict, packet);
}

/// The role of an interface, and the header that its packets begin with.
fn role_and_start(ifindex: u32, active: Active) -> (Role, Start) {
    let word = maps::role(ifindex, active);
    let start = if word & Role::NO_LINK_HEADER != 0 {
        Start::Ip
    } else {
        Start::Ethernet
    };
    (Role::from_word(word), start)
}

fn action(verdict: Verdict) -> i32 {
    if verdict.passes() { PASS } else { DROP }
}
