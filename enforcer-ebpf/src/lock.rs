//! The lock `tls: Required`: on such a path, a connection whose client does not begin with a TLS
//! ClientHello is denied. What may stand where is in [`enforcer_common::tls`]; here is where a stream
//! begins, and whether it is under way already.
//!
//! A TCP socket of this node knows both by itself, so there is nothing to forget or to overflow. What is
//! forwarded is followed in a bounded table by the interface that the client is behind: there the
//! client's packets come in before, and the answers go out after, any address translation. The
//! server's acceptance says where the stream begins, so a client that sends several SYNs gains nothing.
//! Data with a SYN (Fast Open) would make that ambiguous: it does not go through this node, and TCP tries
//! again without.
//!
//! Connections that are older than the programs are let be where they are forwarded; at a socket they
//! are under way already.

use core::ptr;

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock, bpf_tcp_sock},
    helpers::generated::bpf_tcp_sock as bpf_tcp_sock_helper,
};
use enforcer_common::{
    decide,
    packet::{Packet, Segment},
    record::Hook,
    tables::FlowKey,
    tls::{self, Answer, HELLO, Lock, Stream, stage},
    verdict::{Direction, Verdict},
};

use crate::{
    maps::{accept_tls, follow_tls_stream, tls_accepted, tls_stream},
    skb::Skb,
    socket,
};

// include/net/tcp_states.h
const TCP_LISTEN: u32 = 10;

/// Which way a packet goes at a socket.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum SocketDirection {
    /// Out of it.
    Sent = 0,
    /// Into it.
    Received = 1,
}

impl SocketDirection {
    /// The hook where it does.
    pub const fn hook(self) -> Hook {
        match self {
            Self::Sent => Hook::CgroupEgress,
            Self::Received => Hook::CgroupIngress,
        }
    }
}

/// The lock at a socket of this node, for what it sends or receives. `is_cut`: whether it has been broken before.
#[inline(always)]
pub fn at_socket(
    direction: SocketDirection,
    skb: Skb,
    packet: &Packet,
    verdict: Verdict,
    is_cut: bool,
) -> Lock {
    Lock::from_number(enforcer_lock(
        skb.as_ptr(),
        packet,
        verdict.word(),
        direction as u32,
        is_cut.into(),
    ))
}

/// The number of the lock for it. A global function, which the verifier goes through once and by itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn enforcer_lock(
    skb: *mut __sk_buff,
    packet: *const Packet,
    verdict: u32,
    direction: u32,
    cut: u32,
) -> u32 {
    // SAFETY: null or a whole packet, as the verifier has made sure of every caller.
    let Some(packet) = (unsafe { packet.as_ref() }) else {
        return Lock::Broken as u32;
    };
    let skb = Skb::from_ptr(skb);
    let sk = skb.full_socket();
    let (verdict, cut) = (zerocopy::transmute!(verdict), cut != 0);
    let lock = if direction == SocketDirection::Sent as u32 {
        sent(skb, sk, packet, verdict, cut)
    } else {
        received(skb, sk, packet, verdict, cut)
    };
    lock as u32
}

/// What a socket sends.
#[inline(always)]
fn sent(skb: Skb, sk: *mut bpf_sock, packet: &Packet, verdict: Verdict, cut: bool) -> Lock {
    let segment = &packet.segment;
    let tcp = tcp_socket(sk);
    if tcp.is_null() {
        // The kernel's own answers carry no payload, and whoever crafts segments speaks no TLS.
        return injected(segment);
    }
    match verdict.direction() {
        Direction::Reply => {
            if segment.is_syn_ack() {
                accept_tls(&decide::flow_of(packet, Direction::Reply), segment.ack);
            }
            if has_received_hello(tcp) {
                Lock::Open
            } else {
                Lock::holds_if(segment.is_empty())
            }
        }
        Direction::Forward => {
            if has_sent_hello(tcp) {
                Lock::Open
            } else if segment.is_syn() && tls::is_multipath(&skb, packet) {
                Lock::Multipath
            } else if segment.is_empty() {
                Lock::holds_if(!segment.is_urgent())
            } else {
                if cut {
                    return Lock::Cut;
                }
                let first = if segment.is_syn() {
                    segment.start()
                } else {
                    first_sent(tcp)
                };
                Lock::holds_if(tls::may_follow(&skb, segment, first))
            }
        }
    }
}

/// What a socket receives.
#[inline(always)]
fn received(skb: Skb, sk: *mut bpf_sock, packet: &Packet, verdict: Verdict, cut: bool) -> Lock {
    let segment = &packet.segment;
    let tcp = tcp_socket(sk);
    if tcp.is_null() {
        // A raw socket gets a copy.
        return Lock::Holds;
    }
    match verdict.direction() {
        Direction::Forward => {
            if has_received_hello(tcp) {
                return Lock::Open;
            }
            if segment.is_syn() && tls::is_multipath(&skb, packet) {
                return Lock::Multipath;
            }
            if segment.is_empty() {
                return Lock::holds_if(!segment.is_urgent());
            }
            if cut {
                return Lock::Cut;
            }
            // SAFETY: a full socket, whose plain fields the verifier lets programs read.
            let listens = unsafe { (*sk).state == TCP_LISTEN };
            let first = if segment.is_syn() {
                segment.start()
            } else if listens {
                // The last packet of the handshake may bring the first bytes; who accepted it is no
                // full socket yet.
                match tls_accepted(&decide::flow_of(packet, Direction::Forward)) {
                    Some(first) => first,
                    None => return Lock::Broken,
                }
            } else {
                first_received(tcp)
            };
            Lock::holds_if(tls::may_follow(&skb, segment, first))
        }
        Direction::Reply => {
            if has_sent_hello(tcp) {
                return Lock::Open;
            }
            match tls::answer(segment, first_sent(tcp)) {
                Answer::Waits | Answer::Heard => Lock::Holds,
                Answer::Early => Lock::Broken,
            }
        }
    }
}

/// What a packet socket injects: no TCP, so no TLS.
pub fn injected(segment: &Segment) -> Lock {
    Lock::holds_if(segment.is_empty())
}

/// What comes in by an interface from a client behind it. Where a socket of this node is to receive
/// it, that one decides.
#[inline(never)]
pub fn entered(skb: Skb, packet: &Packet) -> Lock {
    let segment = &packet.segment;
    if segment.is_empty() && !segment.is_syn() && !segment.is_urgent() {
        return Lock::Holds;
    }
    // What is looked at now must be what arrives.
    if !skb.own(segment.from.wrapping_add(HELLO)) {
        return Lock::Broken;
    }
    if segment.is_syn() {
        if tls::is_multipath(&skb, packet) {
            return Lock::Multipath;
        }
        return Lock::holds_if(tls::may_follow(&skb, segment, segment.start()));
    }
    let flow = decide::flow_of(packet, Direction::Forward);
    let Some(Stream { first, stage }) = read(&flow) else {
        return Lock::Holds;
    };
    match stage {
        stage::OPEN => Lock::holds_if(tls::may_follow(&skb, segment, first)),
        stage::CUT => Lock::Cut,
        _ => Lock::Holds,
    }
}

/// Whether what a full socket sends may be of the first bytes for a server that is to hear TLS, in memory that its process can
/// still write.
#[inline(always)]
pub fn is_to_be_seen_again(skb: Skb, sk: *mut bpf_sock) -> bool {
    // What comes later has been asked about nothing but its path.
    if !skb.is_shared_within(u32::MAX) {
        return false;
    }
    // SAFETY: a socket, and not null, which is what the helper asks for; null where it is not TCP's.
    let tcp = unsafe { bpf_tcp_sock_helper(sk) };
    if tcp.is_null() || has_sent_hello(tcp) {
        return false;
    }
    let state = socket::state(sk);
    // SAFETY: what is kept lives as long as its socket.
    !state.is_null() && unsafe { (*state).client != 0 }
}

/// What it sends, looked at once more.
#[inline(always)]
pub fn sent_again(skb: Skb, packet: &Packet) -> Lock {
    let segment = &packet.segment;
    if segment.is_empty() {
        return Lock::Holds;
    }
    if !skb.own(segment.from.wrapping_add(HELLO)) {
        return Lock::Broken;
    }
    let tcp = tcp_socket(skb.full_socket());
    if tcp.is_null() {
        return Lock::Holds;
    }
    let first = if segment.is_syn() {
        segment.start()
    } else {
        first_sent(tcp)
    };
    Lock::holds_if(tls::may_follow(&skb, segment, first))
}

/// What goes out by an interface to a client behind it.
#[inline(never)]
pub fn returned(packet: &Packet) -> Lock {
    let segment = &packet.segment;
    let flow = decide::flow_of(packet, Direction::Reply);
    if segment.is_syn_ack() {
        let (first, stage) = (segment.ack, stage::OPEN);
        follow_tls_stream(&flow, &Stream { first, stage });
        return Lock::holds_if(segment.is_empty());
    }
    let Some(Stream { first, stage }) = read(&flow) else {
        return Lock::Holds;
    };
    match stage {
        stage::OPEN => match tls::answer(segment, first) {
            Answer::Waits => Lock::Holds,
            Answer::Early => Lock::Broken,
            Answer::Heard => {
                set_stage(&flow, stage::HEARD);
                Lock::Holds
            }
        },
        stage::CUT if segment.is_empty() => Lock::Holds,
        stage::CUT => Lock::Cut,
        _ => Lock::Holds,
    }
}

/// Cuts off a connection that comes in by an interface.
#[inline(never)]
pub fn cut(packet: &Packet) {
    set_stage(&decide::flow_of(packet, Direction::Forward), stage::CUT);
}

fn read(flow: &FlowKey) -> Option<Stream> {
    // SAFETY: a value of the map, which stays in place while the program runs; copied at once. Only its
    // second word is ever changed.
    tls_stream(flow).map(|stream| unsafe { *stream })
}

fn set_stage(flow: &FlowKey, stage: u32) {
    if let Some(stream) = tls_stream(flow) {
        // SAFETY: as above.
        unsafe { (*stream).stage = stage };
    }
}

/// The TCP side of a full socket; null if there is none.
fn tcp_socket(sk: *mut bpf_sock) -> *mut bpf_tcp_sock {
    if sk.is_null() {
        return ptr::null_mut();
    }
    // SAFETY: a full socket, which is what the helper asks for.
    unsafe { bpf_tcp_sock_helper(sk) }
}

/// Sequence number of the first byte that this socket received.
fn first_received(tcp: *mut bpf_tcp_sock) -> u32 {
    // SAFETY: not null, and plain fields.
    unsafe { (*tcp).rcv_nxt.wrapping_sub((*tcp).bytes_received as u32) }
}

/// Whether the socket has the bytes that are looked at.
fn has_received_hello(tcp: *mut bpf_tcp_sock) -> bool {
    // SAFETY: as above.
    unsafe { (*tcp).bytes_received >= u64::from(HELLO) }
}

/// Sequence number of the first byte that this socket, which opened the connection, sent. Its SYN
/// is counted among what was acknowledged.
fn first_sent(tcp: *mut bpf_tcp_sock) -> u32 {
    // SAFETY: as above.
    unsafe {
        (*tcp)
            .snd_una
            .wrapping_sub((*tcp).bytes_acked as u32)
            .wrapping_add(1)
    }
}

/// Whether the peer has acknowledged the bytes that are looked at, and the SYN.
fn has_sent_hello(tcp: *mut bpf_tcp_sock) -> bool {
    // SAFETY: as above.
    unsafe { (*tcp).bytes_acked > u64::from(HELLO) }
}
