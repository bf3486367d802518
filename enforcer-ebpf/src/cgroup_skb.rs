//! The `cgroup_skb` hooks: what local sockets send and receive.

use core::ptr;

use aya_ebpf::{bindings::bpf_sock, programs::SkBuffContext};
use enforcer_common::{
    judge::{self, Examined, Judgement, examine, judge_unreadable, report},
    mark::PacketMark,
    packet::{Packet, PortKind},
    parse::Start,
    record::{Hook, SocketState},
    tables::{Party, Role, Tables as _},
    tls::Lock,
    vantage::{Kind, Origin, Vantage, View},
    verdict::{Direction, Reason, Verdict, counter},
};

use crate::{
    cache::{self, CachedVerdict},
    lock::{self, SocketDirection},
    maps::{self, Active},
    report::{Report, Subject, count},
    skb::{self, Skb},
    socket,
};

const PASS: i32 = 1;
const DROP: i32 = 0;

// include/linux/netdevice.h: the same in every network namespace.
const LOOPBACK_IFINDEX: u32 = 1;

const IPPROTO_TCP: u32 = 6;
const SOCK_STREAM: u32 = 1;
const SOCK_RAW: u32 = 3;
// include/net/tcp_states.h
const TCP_ESTABLISHED: u32 = 1;
const TCP_FIN_WAIT1: u32 = 4;
const TCP_FIN_WAIT2: u32 = 5;
const TCP_CLOSE: u32 = 7;
const TCP_CLOSE_WAIT: u32 = 8;
const TCP_LAST_ACK: u32 = 9;
const TCP_CLOSING: u32 = 11;

/// What a socket sends.
pub fn egress(ctx: &SkBuffContext) -> i32 {
    let skb = Skb::of(ctx);
    let sk = skb.socket();
    let state = state(sk);
    let active = Active::now();
    let connected = Connected::of(sk, state);
    // Verdicts are kept only on sockets of this network namespace.
    if connected.is_same()
        && let Some(kept) = SocketState::number(
            // SAFETY: what is kept lives as long as its socket.
            unsafe { (*state).egress },
            active.epoch(),
        )
    {
        count(kept);
        return PASS;
    }
    if !socket::skb_is_host(skb, state) {
        return PASS;
    }
    let on_lo = skb.ifindex() == LOOPBACK_IFINDEX;
    let mut packet = skb::room();
    if let Err(reason) = skb.read(Start::Ip, &mut packet) {
        let sender = skb.party(active);
        let vantage = Vantage::new(View::Sent {
            sender,
            origin: Origin::Socket,
            on_lo,
        });
        let Judgement { verdict, .. } =
            judge_unreadable(&active.generation(), vantage, PacketMark::NONE, reason);
        // Reported from here and not from a separate function, as stack frames add up.
        report_sent(skb, active, vantage, verdict, None);
        return action(verdict);
    }
    let vantage = Vantage::new(View::Sent {
        sender: skb.party(active),
        // A packet that opens nothing may be a reply by the kernel itself.
        origin: if packet.opens() {
            Origin::Socket
        } else {
            origin(skb, sk)
        },
        on_lo,
    });
    let judged = cache::verdict::<true>(vantage, active, &packet, || {
        CachedVerdict::of(enforcer_sent(active.word(), vantage.word(), &packet))
    })
    .judgement();
    let connected = connected.with_state(skb, judged.verdict, &packet);
    let Examined { verdict, lock, .. } = examine(
        &active.generation(),
        vantage,
        PacketMark::NONE,
        judged,
        Some(&packet),
        || false,
        || {
            lock::at_socket(
                SocketDirection::Sent,
                skb,
                &packet,
                judged.verdict,
                connected.is_cut(),
            )
        },
    );
    match report(vantage, PacketMark::NONE, verdict, lock) {
        judge::Report::Nothing => {}
        judge::Report::Cut => {
            count(counter::CUT);
            return DROP;
        }
        judge::Report::Verdict if verdict.is_recorded() => {
            report_sent(skb, active, vantage, verdict, Some(&packet));
        }
        judge::Report::Verdict => count(counter::of(verdict)),
    }
    connected.keep(SocketDirection::Sent, lock, active, verdict);
    action(verdict)
}

/// The judgement on a packet that a process sends by other means than a socket of this network namespace.
pub fn judged(active: Active, vantage: Vantage, packet: &Packet) -> Judgement {
    CachedVerdict::of(enforcer_sent(active.word(), vantage.word(), packet)).judgement()
}

/// The word of a [`CachedVerdict`] for a packet that is sent. A global function, which the verifier checks once and
/// separately.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn enforcer_sent(active: u32, vantage: u64, packet: *const Packet) -> u64 {
    // SAFETY: null or a whole packet, as the verifier has made sure of every caller.
    let Some(packet) = (unsafe { packet.as_ref() }) else {
        return CachedVerdict::UNSET;
    };
    let generation = Active::of(active).generation();
    let vantage = Vantage::from_word(Kind::Sent, vantage);
    let judged = judge::judge(&generation, vantage, packet, || false);
    CachedVerdict::new(&generation, judged).word()
}

/// What a socket receives.
pub fn ingress(ctx: &SkBuffContext) -> i32 {
    let skb = Skb::of(ctx);
    let sk = skb.socket();
    let state = state(sk);
    let active = Active::now();
    let (mut role, mut judged) = role(skb.ifindex(), active);
    // Read only once: the address of a field of the context must not be kept for later.
    let mark = skb.mark();
    if mark.is_from_known_pod() && judged {
        // A pod whose source address is verified: the address identifies the sender.
        role = Role::Uplink;
    } else if skb.is_looped_back() {
        // A multicast or broadcast of this node itself, which was judged at its sender's socket, like a packet on lo.
        (role, judged) = (Role::Loopback, true);
    }
    let connected = Connected::of(sk, state);
    if connected.is_same()
        && let Some(kept) = SocketState::number(
            // SAFETY: what is kept lives as long as its socket.
            unsafe { (*state).ingress },
            active.epoch(),
        )
    {
        if !judged {
            count(kept);
        }
        return PASS;
    }
    if !socket::skb_is_host(skb, state) {
        return PASS;
    }
    let mut packet = skb::room();
    if let Err(reason) = skb.read(Start::Ip, &mut packet) {
        let vantage = Vantage::new(View::Received {
            receiver: skb.party(active),
            role,
            judged,
        });
        let Judgement { verdict, .. } =
            judge_unreadable(&active.generation(), vantage, mark, reason);
        if report(vantage, mark, verdict, Lock::Open) != judge::Report::Nothing {
            report_received(skb, active, vantage, verdict, None);
        }
        return action(verdict);
    }
    let vantage = Vantage::new(View::Received {
        receiver: skb.party(active),
        role,
        judged,
    });
    let judged = cache::verdict::<true>(vantage, active, &packet, || {
        CachedVerdict::of(enforcer_received(active.word(), vantage.word(), &packet))
    })
    .judgement();
    let connected = connected.with_state(skb, judged.verdict, &packet);
    let Examined { verdict, lock, .. } = examine(
        &active.generation(),
        vantage,
        mark,
        judged,
        Some(&packet),
        || false,
        || {
            lock::at_socket(
                SocketDirection::Received,
                skb,
                &packet,
                judged.verdict,
                connected.is_cut(),
            )
        },
    );
    match report(vantage, mark, verdict, lock) {
        judge::Report::Nothing => {}
        judge::Report::Cut => {
            count(counter::CUT);
            return DROP;
        }
        judge::Report::Verdict if verdict.is_recorded() => {
            report_received(skb, active, vantage, verdict, Some(&packet));
        }
        judge::Report::Verdict => count(counter::of(verdict)),
    }
    connected.keep(SocketDirection::Received, lock, active, verdict);
    action(verdict)
}

/// The same for a packet that a socket receives.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn enforcer_received(active: u32, vantage: u64, packet: *const Packet) -> u64 {
    // SAFETY: as above.
    let Some(packet) = (unsafe { packet.as_ref() }) else {
        return CachedVerdict::UNSET;
    };
    let generation = Active::of(active).generation();
    let vantage = Vantage::from_word(Kind::Received, vantage);
    let judged = judge::judge(&generation, vantage, packet, || false);
    CachedVerdict::new(&generation, judged).word()
}

/// Counts a verdict on what a socket sends, and keeps a record of a denial. Not inlined, to have its own stack frame.
#[inline(never)]
fn report_sent(
    skb: Skb,
    active: Active,
    vantage: Vantage,
    verdict: Verdict,
    packet: Option<&Packet>,
) {
    Report {
        active,
        hook: Hook::CgroupEgress,
        subject: Subject::cgroup(skb.cgroup()),
        vantage,
        mark: PacketMark::NONE,
        state: socket::state(skb.socket()),
    }
    .packet(verdict, packet);
}

/// The same for what a socket receives.
#[inline(never)]
fn report_received(
    skb: Skb,
    active: Active,
    vantage: Vantage,
    verdict: Verdict,
    packet: Option<&Packet>,
) {
    // The process that holds a component's port is reported, not the client that connects to the component.
    let subject = match counter::reason(counter::of(verdict)) {
        Some(Reason::ForeignListener) => Subject::cgroup(skb.cgroup()),
        _ => Subject::interface(skb.ifindex()),
    };
    Report {
        active,
        hook: Hook::CgroupIngress,
        subject,
        vantage,
        mark: PacketMark::NONE,
        state: ptr::null_mut(),
    }
    .packet(verdict, packet);
}

/// The origin of a packet that opens nothing. The kernel replies for closed sockets (resets) from a raw TCP socket of its
/// own.
fn origin(skb: Skb, sk: *mut bpf_sock) -> Origin {
    if !socket::is_full(sk) {
        return Origin::NoSocket;
    }
    // The kernel's socket is never connected, and reading a socket's type takes a call.
    // SAFETY: not null, and a plain field.
    if unsafe { (*sk).state } != TCP_CLOSE {
        return Origin::Socket;
    }
    let sk = skb.full_socket();
    // SAFETY: a full socket, whose plain fields the verifier lets programs read.
    if !sk.is_null() && unsafe { (*sk).type_ == SOCK_RAW && (*sk).protocol == IPPROTO_TCP } {
        Origin::KernelSocket
    } else {
        Origin::Socket
    }
}

/// Whether a packet that waited for its next hop was sent by the kernel itself (a reset, an ICMP message). The sockets that
/// it uses serve all network namespaces in turn (`sock_net_set` in tcp_v4_send_reset, net/ipv4/tcp_ipv4.c, and in
/// net/ipv4/icmp.c), so by then they may be assigned to another namespace. They are in no declared cgroup, and open nothing.
#[inline(always)]
pub fn is_kernels_own(skb: Skb, active: Active, sender: Party, packet: &Packet) -> bool {
    let generation = active.generation();
    let is_undeclared = generation
        .settings()
        .is_some_and(|settings| settings.undeclared_process == u32::from(sender));
    if packet.opens() || !is_undeclared {
        return false;
    }
    let sk = skb.full_socket();
    // SAFETY: a full socket, whose plain fields the verifier lets programs read.
    !sk.is_null() && unsafe { (*sk).type_ == SOCK_RAW && (*sk).state == TCP_CLOSE }
}

/// The role of an interface, and whether its packets are judged at ingress.
fn role(ifindex: u32, active: Active) -> (Role, bool) {
    let role = Role::from_word(maps::role(ifindex, active));
    (role, !matches!(role, Role::Undeclared))
}

fn action(verdict: Verdict) -> i32 {
    if verdict.passes() { PASS } else { DROP }
}

/// The state of a packet's socket; null if there is none, or none is needed.
#[inline(always)]
fn state(sk: *mut bpf_sock) -> *mut SocketState {
    if socket::netns_is_known() && !is_open(sk) {
        return ptr::null_mut();
    }
    socket::state(sk)
}

/// Whether a socket is in a state in which TCP has a connection. Sockets of other protocols, such as UDP, may be in such a
/// state, too.
#[inline(always)]
fn is_open(sk: *mut bpf_sock) -> bool {
    if sk.is_null() {
        return false;
    }
    // SAFETY: not null, and a plain field that every socket has.
    let state = unsafe { (*sk).state };
    matches!(
        state,
        TCP_ESTABLISHED
            | TCP_FIN_WAIT1
            | TCP_FIN_WAIT2
            | TCP_CLOSE_WAIT
            | TCP_LAST_ACK
            | TCP_CLOSING
    )
}

/// Whether a full socket is TCP's.
#[inline(always)]
fn is_tcp(sk: *mut bpf_sock) -> bool {
    // SAFETY: a full socket, whose plain fields the verifier lets programs read.
    !sk.is_null() && unsafe { (*sk).protocol == IPPROTO_TCP && (*sk).type_ == SOCK_STREAM }
}

/// A connected TCP socket and its state; null for any other socket. Verdicts are kept only for these: a listener and an
/// unconnected UDP socket have many peers, and a socket in TIME_WAIT or half open is not a full socket.
///
/// Nothing is copied from the socket before it is needed: the stack of a program is small.
#[derive(Clone, Copy)]
struct Connected {
    sk: *mut bpf_sock,
    state: *mut SocketState,
}

impl Connected {
    /// A socket with a kept verdict is connected TCP; one that only has a state may be of another protocol.
    #[inline(always)]
    fn of(sk: *mut bpf_sock, state: *mut SocketState) -> Self {
        let state = if is_open(sk) { state } else { ptr::null_mut() };
        Self { sk, state }
    }

    /// With a state, if it is a connected TCP socket and a state is worth it: there is one already, the path requires TLS,
    /// or the connection is long enough to pay for creating one, which a sampled segment indicates.
    #[inline(always)]
    fn with_state(self, skb: Skb, verdict: Verdict, packet: &Packet) -> Self {
        let is_worth_it = || {
            matches!(packet.ports.kind, PortKind::Tcp)
                && (verdict.is_tls_path() || packet.segment.is_sampled())
        };
        if !is_open(self.sk) || (self.state.is_null() && !is_worth_it()) {
            return Self::NONE;
        }
        let sk = skb.full_socket();
        if !is_tcp(sk) {
            return Self::NONE;
        }
        let state = socket::state_made(sk);
        Self { sk, state }
    }

    const NONE: Self = Self {
        sk: ptr::null_mut(),
        state: ptr::null_mut(),
    };

    /// Whether there are a socket and a state: neither pointer is null.
    fn is_one(self) -> bool {
        !self.sk.is_null() && !self.state.is_null()
    }

    /// Whether the state is for the two ends that the socket has now.
    ///
    /// The words of both address families are compared: those of the other family hold something else, but always the same
    /// for the same ends.
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
                && (*state).local_addr[0] == (*sk).src_ip6[0]
                && (*state).local_addr[1] == (*sk).src_ip6[1]
                && (*state).local_addr[2] == (*sk).src_ip6[2]
                && (*state).local_addr[3] == (*sk).src_ip6[3]
                && (*state).local_addr[4] == (*sk).src_ip4
                && (*state).remote_addr[0] == (*sk).dst_ip6[0]
                && (*state).remote_addr[1] == (*sk).dst_ip6[1]
                && (*state).remote_addr[2] == (*sk).dst_ip6[2]
                && (*state).remote_addr[3] == (*sk).dst_ip6[3]
                && (*state).remote_addr[4] == (*sk).dst_ip4
        }
    }

    /// The state, reset if it was for other ends.
    #[inline(always)]
    fn renewed(self) -> *mut SocketState {
        let Self { sk, state } = self;
        if !self.is_same() {
            // SAFETY: as above.
            unsafe {
                (*state).egress = 0;
                (*state).ingress = 0;
                (*state).cut = 0;
                (*state).client = 0;
                (*state).local_port = (*sk).src_port;
                (*state).remote_port = u32::from((*sk).dst_port);
                (*state).local_addr[0] = (*sk).src_ip6[0];
                (*state).local_addr[1] = (*sk).src_ip6[1];
                (*state).local_addr[2] = (*sk).src_ip6[2];
                (*state).local_addr[3] = (*sk).src_ip6[3];
                (*state).local_addr[4] = (*sk).src_ip4;
                (*state).remote_addr[0] = (*sk).dst_ip6[0];
                (*state).remote_addr[1] = (*sk).dst_ip6[1];
                (*state).remote_addr[2] = (*sk).dst_ip6[2];
                (*state).remote_addr[3] = (*sk).dst_ip6[3];
                (*state).remote_addr[4] = (*sk).dst_ip4;
            }
        }
        state
    }

    /// Stores the result for the next packets: the verdict if it allows and needs no more checks, or that the connection has
    /// failed the TLS check.
    #[inline(always)]
    fn keep(self, direction: SocketDirection, lock: Lock, active: Active, verdict: Verdict) {
        if !self.is_one() {
            return;
        }
        if lock == Lock::Broken && !verdict.passes() {
            self.cut();
        } else if lock == Lock::Open && !verdict.is_denied() {
            let kept = SocketState::kept(active.epoch(), counter::of(verdict));
            self.keep_verdict(direction, kept);
        } else if lock == Lock::Holds
            && direction == SocketDirection::Sent
            && matches!(verdict.direction(), Direction::Forward)
        {
            self.begin_client();
        }
    }

    /// From now on, what this socket sends is checked once more at TC egress: its server's path requires TLS.
    fn begin_client(self) {
        // SAFETY: what is kept lives as long as its socket.
        unsafe { (*self.renewed()).client = 1 };
    }

    #[inline(never)]
    fn keep_verdict(self, direction: SocketDirection, kept: u64) {
        let state = self.renewed();
        // SAFETY: what is kept lives as long as its socket.
        unsafe {
            match direction {
                SocketDirection::Sent => (*state).egress = kept,
                SocketDirection::Received => (*state).ingress = kept,
            }
        }
        count(counter::KEPT_VERDICTS);
    }

    /// Whether the connection has failed the TLS check.
    #[inline(never)]
    fn is_cut(self) -> bool {
        // SAFETY: as above.
        self.is_same() && unsafe { (*self.state).cut != 0 }
    }

    /// Cuts the connection off.
    fn cut(self) {
        // SAFETY: as above.
        unsafe { (*self.renewed()).cut = 1 };
    }
}
