//! The `cgroup_skb` hooks: what local sockets send and receive.

use aya_ebpf::{bindings::bpf_sock, programs::SkBuffContext};
use enforcer_common::{
    decide,
    packet::Packet,
    parse::{Start, parse_into},
    record::{Hook, SocketState},
    tables::{NOBODY, Party, Role, Settings, Tables as _},
    verdict::{Verdict, counter},
};

use crate::{
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
    let state = sk.and_then(socket::state);
    if !socket::skb_is_host(skb, state.as_deref()) {
        return PASS;
    }
    let generation = Generation::active();
    let Some(settings) = generation.settings() else {
        return DROP;
    };
    let ends = sk.and_then(Ends::of);
    if let (Some(ends), Some(state)) = (&ends, state.as_deref())
        && ends.are_those_of(state)
        && let Some(kept) = SocketState::counter(state.egress, settings.generation)
    {
        count(kept);
        count(counter::KEPT_VERDICTS);
        return PASS;
    }
    let mut packet = Packet::EMPTY;
    let read = parse_into(&skb, Start::Ip, &mut packet);
    let on_lo = matches!(role(skb.ifindex()), (Role::Loopback, _));
    let verdict = match read {
        Ok(()) => {
            let sender = sender(skb, sk, generation, settings, packet.opens());
            decide::sent_by_process(&generation, sender, on_lo, &packet)
        }
        Err(reason) => decide::unreadable(&generation, reason),
    };
    let report = Report {
        hook: Hook::CgroupEgress,
        subject: Subject::Cgroup(skb.cgroup()),
        ifindex: skb.ifindex(),
        state: state.as_deref(),
    };
    report.packet(&generation, verdict, read.is_ok().then_some(&packet));
    if let (Some(ends), Some(state)) = (ends, state)
        && !verdict.is_denied()
    {
        ends.put(state).egress = SocketState::kept(settings.generation, counter::of(verdict));
    }
    action(verdict)
}

/// What a socket receives.
pub fn ingress(ctx: &SkBuffContext) -> i32 {
    let skb = Skb::of(ctx);
    let sk = skb.full_socket();
    let state = sk.and_then(socket::state);
    if !socket::skb_is_host(skb, state.as_deref()) {
        return PASS;
    }
    let generation = Generation::active();
    let Some(settings) = generation.settings() else {
        return DROP;
    };
    let (mut role, judged) = role(skb.ifindex());
    if skb.note() & KNOWN != 0 && judged {
        // A pod whose address is its own: that tells who it is.
        role = Role::Uplink;
    }
    let ends = sk.and_then(Ends::of);
    if let (Some(ends), Some(state)) = (&ends, state.as_deref())
        && ends.are_those_of(state)
        && let Some(kept) = SocketState::counter(state.ingress, settings.generation)
    {
        if !judged {
            count(kept);
        }
        return PASS;
    }
    let mut packet = Packet::EMPTY;
    let read = parse_into(&skb, Start::Ip, &mut packet);
    let receiver = skb.party(generation, settings);
    let verdict = match read {
        Ok(()) => decide::delivered(&generation, role, judged, receiver, &packet),
        Err(reason) => decide::unreadable(&generation, reason),
    };
    if is_told_elsewhere(skb, role, judged, verdict) {
        return action(verdict);
    }
    let report = Report {
        hook: Hook::CgroupIngress,
        subject: Subject::Interface(skb.ifindex()),
        ifindex: skb.ifindex(),
        state: None,
    };
    report.packet(&generation, verdict, read.is_ok().then_some(&packet));
    action_and_keep(verdict, ends, state, settings)
}

fn action_and_keep(
    verdict: Verdict,
    ends: Option<Ends>,
    state: Option<&'static mut SocketState>,
    settings: &Settings,
) -> i32 {
    if let (Some(ends), Some(state)) = (ends, state)
        && !verdict.is_denied()
    {
        ends.put(state).ingress = SocketState::kept(settings.generation, counter::of(verdict));
    }
    action(verdict)
}

/// What was judged where it came in, or at its sender's socket, has been counted there.
fn is_told_elsewhere(skb: Skb, role: Role, judged: bool, verdict: Verdict) -> bool {
    if !verdict.is_denied() {
        return judged;
    }
    verdict.passes() && (matches!(role, Role::Loopback) || skb.note() & TOLD != 0)
}

/// The kernel answers for sockets that are no more (resets, TIME_WAIT) from a raw TCP socket of its
/// own, which is nobody's process: such a segment has for its sender whoever is at its address. It
/// opens nothing. A process's own raw socket is known by its cgroup.
fn sender(
    skb: Skb,
    sk: Option<*mut bpf_sock>,
    generation: Generation,
    settings: &Settings,
    opens: bool,
) -> Party {
    let party = skb.party(generation, settings);
    if u32::from(party) != settings.undeclared_process || opens {
        return party;
    }
    match sk {
        // SAFETY: a full socket, whose plain fields the verifier lets programs read.
        Some(sk) if unsafe { (*sk).type_ == SOCK_RAW && (*sk).protocol == IPPROTO_TCP } => {
            settings.local as Party
        }
        Some(_) => party,
        None => NOBODY,
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

/// Both ends of a connected TCP socket. A verdict is kept for those only: a listener and an
/// unconnected UDP socket have many peers, and what is in TIME_WAIT or half open is no full socket.
struct Ends {
    local_port: u32,
    remote_port: u32,
    local_addr: [u32; 4],
    remote_addr: [u32; 4],
}

impl Ends {
    fn of(sk: *mut bpf_sock) -> Option<Self> {
        // SAFETY: a full socket, whose plain fields the verifier lets programs read, one by one.
        unsafe {
            if (*sk).protocol != IPPROTO_TCP || (*sk).type_ != SOCK_STREAM {
                return None;
            }
            match (*sk).state {
                TCP_ESTABLISHED | TCP_FIN_WAIT1 | TCP_FIN_WAIT2 | TCP_CLOSE_WAIT | TCP_LAST_ACK
                | TCP_CLOSING => {}
                _ => return None,
            }
            Some(Self {
                local_port: (*sk).src_port,
                remote_port: u32::from((*sk).dst_port),
                // For a socket of the other family the words hold something else, but always the
                // same for the same ends: good enough to compare, and never used for more.
                local_addr: [
                    (*sk).src_ip4,
                    (*sk).src_ip6[1],
                    (*sk).src_ip6[2],
                    (*sk).src_ip6[3],
                ],
                remote_addr: [
                    (*sk).dst_ip4,
                    (*sk).dst_ip6[1],
                    (*sk).dst_ip6[2],
                    (*sk).dst_ip6[3],
                ],
            })
        }
    }

    fn are_those_of(&self, state: &SocketState) -> bool {
        state.local_port == self.local_port
            && state.remote_port == self.remote_port
            && state.local_addr == self.local_addr
            && state.remote_addr == self.remote_addr
    }

    /// Makes the state one for these ends.
    fn put(self, state: &'static mut SocketState) -> &'static mut SocketState {
        if !self.are_those_of(state) {
            state.egress = 0;
            state.ingress = 0;
            state.local_port = self.local_port;
            state.remote_port = self.remote_port;
            state.local_addr = self.local_addr;
            state.remote_addr = self.remote_addr;
        }
        state
    }
}
