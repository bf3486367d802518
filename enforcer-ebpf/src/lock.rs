//! The TLS check of `tls: Required` (the *lock*): on such a path, a connection whose client does not begin with a TLS
//! ClientHello is denied. [`enforcer_common::tls`] says which bytes are allowed; this module finds where a stream begins,
//! and whether its beginning is over already.
//!
//! A TCP socket of this node knows both itself, so there is no state to evict. A forwarded connection is tracked in a
//! bounded table at the interface of its client: there the client's packets come in before any address translation, and the
//! replies leave after it. The server's SYN-ACK says where the stream begins, so a client that sends several SYNs gains
//! nothing. Data with a SYN (Fast Open) would make that ambiguous: it is not forwarded, and TCP retries without.
//!
//! A forwarded connection that was opened before the programs were attached is not checked; at a socket, the beginning of
//! such a connection is over already.

use core::ptr;

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock, bpf_tcp_sock},
    helpers::generated::bpf_tcp_sock as bpf_tcp_sock_helper,
};
use enforcer_common::{
    decide,
    packet::{Packet, Segment},
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

/// The direction of a packet at a socket.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum SocketDirection {
    /// The socket sends it.
    Sent = 0,
    /// The socket receives it.
    Received = 1,
}

/// The TLS check at a socket of this node, for what it sends or receives. `is_cut` says that the connection has failed the
/// check before.
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

/// The same, returning the number of the [`Lock`]. A global function, which the verifier checks once and separately.
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
        // The kernel's own replies carry no payload, and crafted segments are not TLS.
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
                // The last packet of the handshake may bring the first bytes, while the accepted connection is not a full
                // socket yet.
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

/// What a packet socket injects. It is not a TCP connection of the kernel's, so it can not be TLS.
pub fn injected(segment: &Segment) -> Lock {
    Lock::holds_if(segment.is_empty())
}

/// What comes in by an interface from a client behind it. If a socket of this node receives it, it is checked there.
#[inline(never)]
pub fn entered(skb: Skb, packet: &Packet) -> Lock {
    let segment = &packet.segment;
    if segment.is_empty() && !segment.is_syn() && !segment.is_urgent() {
        return Lock::Holds;
    }
    // The bytes that are checked now must be those that arrive.
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

/// Whether what a full socket sends may be among the first bytes for a server whose path requires TLS, and in memory that
/// its process can still write.
#[inline(always)]
pub fn needs_recheck(skb: Skb, sk: *mut bpf_sock) -> bool {
    // Only bytes outside of the head can still be written.
    if !skb.is_shared_within(u32::MAX) {
        return false;
    }
    // SAFETY: a socket and not null, as the helper requires; it returns null for a socket that is not TCP.
    let tcp = unsafe { bpf_tcp_sock_helper(sk) };
    if tcp.is_null() || has_sent_hello(tcp) {
        return false;
    }
    let state = socket::state(sk);
    // SAFETY: what is kept lives as long as its socket.
    !state.is_null() && unsafe { (*state).client != 0 }
}

/// Checks what such a socket sends once more.
#[inline(always)]
pub fn recheck_sent(skb: Skb, packet: &Packet) -> Lock {
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

/// What leaves by an interface to a client behind it.
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
    // SAFETY: a full socket, as the helper requires.
    unsafe { bpf_tcp_sock_helper(sk) }
}

/// Sequence number of the first byte that this socket received.
fn first_received(tcp: *mut bpf_tcp_sock) -> u32 {
    // SAFETY: not null, and plain fields.
    unsafe { (*tcp).rcv_nxt.wrapping_sub((*tcp).bytes_received as u32) }
}

/// Whether the socket has received the bytes that are checked.
fn has_received_hello(tcp: *mut bpf_tcp_sock) -> bool {
    // SAFETY: as above.
    unsafe { (*tcp).bytes_received >= u64::from(HELLO) }
}

/// Sequence number of the first byte that this socket, which opened the connection, sent. The acknowledged bytes include
/// its SYN.
fn first_sent(tcp: *mut bpf_tcp_sock) -> u32 {
    // SAFETY: as above.
    unsafe {
        (*tcp)
            .snd_una
            .wrapping_sub((*tcp).bytes_acked as u32)
            .wrapping_add(1)
    }
}

/// Whether the peer has acknowledged the bytes that are checked, and the SYN.
fn has_sent_hello(tcp: *mut bpf_tcp_sock) -> bool {
    // SAFETY: as above.
    unsafe { (*tcp).bytes_acked > u64::from(HELLO) }
}
