//! The `cgroup_skb` hooks: what local sockets send and receive.

use core::ptr;

use aya_ebpf::{bindings::bpf_sock, programs::SkBuffContext};
use enforcer_common::{
    decide,
    packet::Packet,
    parse::Start,
    record::{Hook, SocketState},
    tables::{NOBODY, Party, Role, Settings, Tables as _},
    verdict::{Verdict, counter},
};

use crate::{
    lock::{self, Lock},
    maps::{Generation, INTERFACES},
    report::{Report, Subject, count},
    skb::Skb,
    socket,
    tc::{KNOWN, TOLD},
};

const PASS: i32 = 1;
const DROP: i32 = 0;

const IPPROTO_TCP: u32 = 6;
const SOCK_STREAM: u32 = 1;
const SOCK_RAW: u32 = 3;
// include/net/tcp_states.h
const TCP_ESTABLISHED: u32 = 1;
const TCP_FIN_WAIT1: u32 = 4;
const TCP_FIN_WAIT2: u32 = 5;
const TCP_CLOSE_WAIT: u32 = 8;
const TCP_LAST_ACK: u32 = 9;
const TCP_CLOSING: u32 = 11;

/// What a socket sends.
pub fn egress(ctx: &SkBuffContext) -> i32 {
    let skb = Skb::of(ctx);
    let sk = skb.full_socket();
    let state = socket::state(sk);
    if !socket::skb_is_host(skb, state) {
        return PASS;
    }
    let generation = Generation::active();
    let Some(settings) = generation.settings() else {
        return DROP;
    };
    let connected = Connected::of(sk, state);
    if connected.is_same()
        && let Some(kept) = SocketState::counter(
            // SAFETY: what is kept lives as long as its socket.
            unsafe { (*state).egress },
            settings.generation,
        )
    {
        count(kept);
        count(counter::KEPT_VERDICTS);
        return PASS;
    }
    let mut packet = Packet::EMPTY;
    let read = skb.parse_into(Start::Ip, &mut packet);
    let on_lo = matches!(role(skb.ifindex()), (Role::Loopback, _));
    let allowed = match read {
        Ok(()) => {
            let sender = sender(skb, sk, generation, settings, packet.opens());
            decide::sent_by_process(&generation, sender, on_lo, &packet)
        }
        Err(reason) => decide::unreadable(&generation, reason),
    };
    let lock = if lock::is_asked(allowed, &packet) {
        lock::sent(skb, sk, &packet, allowed, connected.is_cut())
    } else {
        Lock::Open
    };
    let verdict = lock.verdict(&generation, allowed);
    let report = Report {
        hook: Hook::CgroupEgress,
        subject: Subject::Cgroup(skb.cgroup()),
        ifindex: skb.ifindex(),
        state,
    };
    report.packet(&generation, verdict, read.is_ok().then_some(&packet));
    if connected.is_one() {
        if lock == Lock::Broken && !verdict.passes() {
            connected.cut();
        } else if lock == Lock::Open && !verdict.is_denied() {
            let kept = SocketState::kept(settings.generation, counter::of(verdict));
            // SAFETY: what is kept lives as long as its socket.
            unsafe { (*connected.renewed()).egress = kept };
        }
    }
    action(verdict)
}

/// What a socket receives.
pub fn ingress(ctx: &SkBuffContext) -> i32 {
    let skb = Skb::of(ctx);
    let sk = skb.full_socket();
    let state = socket::state(sk);
    if !socket::skb_is_host(skb, state) {
        return PASS;
    }
    let generation = Generation::active();
    let Some(settings) = generation.settings() else {
        return DROP;
    };
    let (mut role, mut judged) = role(skb.ifindex());
    // Read once: the address of a field of the context must not be kept for later.
    let note = skb.note();
    if note & KNOWN != 0 && judged {
        // A pod whose address is its own: that tells who it is.
        role = Role::Uplink;
    } else if skb.is_looped_back() {
        // A multicast or broadcast of this node itself, judged at its sender's socket as by lo.
        (role, judged) = (Role::Loopback, true);
    }
    let connected = Connected::of(sk, state);
    if connected.is_same()
        && let Some(kept) = SocketState::counter(
            // SAFETY: what is kept lives as long as its socket.
            unsafe { (*state).ingress },
            settings.generation,
        )
    {
        if !judged {
            count(kept);
        }
        return PASS;
    }
    let mut packet = Packet::EMPTY;
    let read = skb.parse_into(Start::Ip, &mut packet);
    let receiver = skb.party(generation, settings);
    let allowed = match read {
        Ok(()) => decide::delivered(&generation, role, judged, receiver, &packet),
        Err(reason) => decide::unreadable(&generation, reason),
    };
    let lock = if lock::is_asked(allowed, &packet) {
        lock::received(skb, sk, &packet, allowed, connected.is_cut())
    } else {
        Lock::Open
    };
    let verdict = lock.verdict(&generation, allowed);
    if !is_told_elsewhere(note, role, judged, verdict) {
        let report = Report {
            hook: Hook::CgroupIngress,
            subject: Subject::Interface(skb.ifindex()),
            ifindex: skb.ifindex(),
            state: ptr::null_mut(),
        };
        report.packet(&generation, verdict, read.is_ok().then_some(&packet));
    }
    if connected.is_one() {
        if lock == Lock::Broken && !verdict.passes() {
            connected.cut();
        } else if lock == Lock::Open && !verdict.is_denied() {
            let kept = SocketState::kept(settings.generation, counter::of(verdict));
            // SAFETY: what is kept lives as long as its socket.
            unsafe { (*connected.renewed()).ingress = kept };
        }
    }
    action(verdict)
}

/// What was judged where it came in, or at its sender's socket, has been counted there.
fn is_told_elsewhere(note: u32, role: Role, judged: bool, verdict: Verdict) -> bool {
    if !verdict.is_denied() {
        return judged;
    }
    verdict.passes() && (matches!(role, Role::Loopback) || note & TOLD != 0)
}

/// The kernel answers for sockets that are no more (resets, TIME_WAIT) from a raw TCP socket of its
/// own, which is nobody's process: such a segment has for its sender whoever is at its address. It
/// opens nothing. A process's own raw socket is known by its cgroup.
fn sender(
    skb: Skb,
    sk: *mut bpf_sock,
    generation: Generation,
    settings: &Settings,
    opens: bool,
) -> Party {
    let party = skb.party(generation, settings);
    if u32::from(party) != settings.undeclared_process || opens {
        return party;
    }
    if sk.is_null() {
        return NOBODY;
    }
    // SAFETY: a full socket, whose plain fields the verifier lets programs read.
    if unsafe { (*sk).type_ == SOCK_RAW && (*sk).protocol == IPPROTO_TCP } {
        settings.local as Party
    } else {
        party
    }
}

/// The role of an interface and whether its packets have been judged where they came in.
fn role(ifindex: u32) -> (Role, bool) {
    // SAFETY: the value is copied at once; a role that changes meanwhile is the old or the new one.
    let word = unsafe { INTERFACES.get(ifindex) }.copied().unwrap_or(0);
    let role = Role::from_word(word);
    (role, !matches!(role, Role::Undeclared))
}

fn action(verdict: Verdict) -> i32 {
    if verdict.passes() { PASS } else { DROP }
}

/// A connected TCP socket, and what is kept on it; null for any other. A verdict is kept for those only: a listener and an
/// unconnected UDP socket have many peers, and what is in TIME_WAIT or half open is no full socket.
///
/// Nothing is copied from the socket before it has to be: the stack of a program is small.
#[derive(Clone, Copy)]
struct Connected {
    sk: *mut bpf_sock,
    state: *mut SocketState,
}

impl Connected {
    fn of(sk: *mut bpf_sock, state: *mut SocketState) -> Self {
        let none = Self {
            sk,
            state: ptr::null_mut(),
        };
        if sk.is_null() {
            return none;
        }
        // SAFETY: a full socket, whose plain fields the verifier lets programs read.
        unsafe {
            if (*sk).protocol != IPPROTO_TCP || (*sk).type_ != SOCK_STREAM {
                return none;
            }
            match (*sk).state {
                TCP_ESTABLISHED | TCP_FIN_WAIT1 | TCP_FIN_WAIT2 | TCP_CLOSE_WAIT | TCP_LAST_ACK
                | TCP_CLOSING => Self { sk, state },
                _ => none,
            }
        }
    }

    /// Whether it is one: then neither pointer is null.
    fn is_one(self) -> bool {
        !self.sk.is_null() && !self.state.is_null()
    }

    /// Whether what is kept is about the two ends that the socket has now.
    ///
    /// Of a socket of the other family the words hold something else, but always the same for the
    /// same ends: good enough to compare, and never used for more.
    #[inline(always)]
    fn is_same(self) -> bool {
        let Self { sk, state } = self;
        if !self.is_one() {
            return false;
        }
        // SAFETY: as above, one field after the other; the state lives as long as its socket.
        unsafe {
            (*state).local_port == (*sk).src_port
                && (*state).remote_port == u32::from((*sk).dst_port)
                && (*state).local_addr[0] == (*sk).src_ip4
                && (*state).local_addr[1] == (*sk).src_ip6[1]
                && (*state).local_addr[2] == (*sk).src_ip6[2]
                && (*state).local_addr[3] == (*sk).src_ip6[3]
                && (*state).remote_addr[0] == (*sk).dst_ip4
                && (*state).remote_addr[1] == (*sk).dst_ip6[1]
                && (*state).remote_addr[2] == (*sk).dst_ip6[2]
                && (*state).remote_addr[3] == (*sk).dst_ip6[3]
        }
    }

    /// What is kept, made one for these ends.
    #[inline(always)]
    fn renewed(self) -> *mut SocketState {
        let Self { sk, state } = self;
        if !self.is_same() {
            // SAFETY: as above.
            unsafe {
                (*state).egress = 0;
                (*state).ingress = 0;
                (*state).cut = 0;
                (*state).local_port = (*sk).src_port;
                (*state).remote_port = u32::from((*sk).dst_port);
                (*state).local_addr[0] = (*sk).src_ip4;
                (*state).local_addr[1] = (*sk).src_ip6[1];
                (*state).local_addr[2] = (*sk).src_ip6[2];
                (*state).local_addr[3] = (*sk).src_ip6[3];
                (*state).remote_addr[0] = (*sk).dst_ip4;
                (*state).remote_addr[1] = (*sk).dst_ip6[1];
                (*state).remote_addr[2] = (*sk).dst_ip6[2];
                (*state).remote_addr[3] = (*sk).dst_ip6[3];
            }
        }
        state
    }

    /// Whether the connection has broken its lock.
    fn is_cut(self) -> bool {
        // SAFETY: as above.
        self.is_same() && unsafe { (*self.state).cut != 0 }
    }

    /// Cuts it off.
    fn cut(self) {
        // SAFETY: as above.
        unsafe { (*self.renewed()).cut = 1 };
    }
}
