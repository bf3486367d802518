//! The `cgroup_skb` hooks: what local sockets send and receive.

use core::ptr;

use aya_ebpf::{bindings::bpf_sock, programs::SkBuffContext};
use enforcer_common::{
    decide,
    mark::PacketMark,
    memo::Asker,
    packet::{Packet, Space},
    parse::Start,
    record::{Hook, SocketState},
    tables::{NOBODY, Party, Role, Tables as _},
    verdict::{Direction, Reason, Verdict, counter},
};

use crate::{
    lock::{self, Lock, Way},
    maps::{self, Active},
    memo::{self, Found},
    report::{Report, Subject, count, is_of_cut},
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
    // Kept on sockets of this network namespace alone.
    if connected.is_same()
        && let Some(kept) = SocketState::number(
            // SAFETY: what is kept lives as long as its socket.
            unsafe { (*state).egress },
            active.epoch(),
        )
    {
        count(Hook::CgroupEgress, kept);
        return PASS;
    }
    if !socket::skb_is_host(skb, state) {
        return PASS;
    }
    let mut packet = skb::room();
    if let Err(reason) = skb.read(Start::Ip, &mut packet) {
        let verdict = decide::unreadable(&active.generation(), reason);
        told_of_sender(skb, active, verdict, None);
        return action(verdict);
    }
    let allowed = sent(skb, sk, active, &packet);
    let connected = connected.with_place(skb, allowed, &packet);
    let lock = lock::at_socket(Way::Sent, skb, &packet, allowed, || connected.is_cut());
    let verdict = lock.verdict(active, allowed);
    if is_of_cut(Hook::CgroupEgress, lock, verdict) {
        return DROP;
    }
    if verdict.is_recorded() {
        told_of_sender(skb, active, verdict, Some(&packet));
    } else {
        count(Hook::CgroupEgress, counter::of(verdict));
    }
    connected.keep(Way::Sent, lock, active, verdict);
    action(verdict)
}

/// The verdict on what a socket sends and could be read.
#[inline(always)]
fn sent(skb: Skb, sk: *mut bpf_sock, active: Active, packet: &Packet) -> Verdict {
    let on_lo = skb.ifindex() == LOOPBACK_IFINDEX;
    // What opens nothing may be the kernel's own answer.
    let kernel = if packet.opens() {
        Kernel::No
    } else {
        Kernel::of(skb, sk)
    };
    let party = u32::from(skb.party(active));
    let asker = Asker {
        hook: Hook::CgroupEgress,
        manner: u8::from(on_lo) | (kernel as u8) << 1,
        who: party,
    };
    memo::verdict::<true>(asker, active, packet, || {
        Found::of(enforcer_sent(
            active.word(),
            asker.manner.into(),
            party,
            packet,
        ))
    })
    .verdict()
}

/// The verdict on what a process sends in another way than by a socket that makes packets.
pub fn sent_by(sender: Party, on_lo: bool, active: Active, packet: &Packet) -> Verdict {
    let manner = u32::from(on_lo) | (Kernel::No as u32) << 1;
    Found::of(enforcer_sent(active.word(), manner, sender.into(), packet)).verdict()
}

/// The verdict on what a process sends by a socket of another network namespace.
pub fn sent_from_elsewhere(sender: Party, active: Active, packet: &Packet) -> Verdict {
    Found::of(enforcer_sent(
        active.word(),
        ELSEWHERE,
        sender.into(),
        packet,
    ))
    .verdict()
}

/// In place of how a packet was sent: by a socket of another network namespace.
const ELSEWHERE: u32 = 1 << 3;

/// The word of [`Found`] about it. A global function, which the verifier goes through once and by itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn enforcer_sent(
    active: u32,
    manner: u32,
    party: u32,
    packet: *const Packet,
) -> u64 {
    // SAFETY: null or a whole packet, as the verifier has made sure of every caller.
    let Some(packet) = (unsafe { packet.as_ref() }) else {
        return Found::HOLE;
    };
    let generation = Active::of(active).generation();
    let Some(settings) = generation.settings() else {
        return Found::HOLE;
    };
    if manner == ELSEWHERE {
        let verdict = decide::sent_from_elsewhere(&generation, party as Party, packet);
        return Found::new(&generation, verdict, 0).word();
    }
    let (on_lo, kernel) = (manner & 1 != 0, manner >> 1);
    let sender = if party != settings.undeclared_process {
        party
    } else if kernel == Kernel::Raw as u32 {
        settings.local
    } else if kernel == Kernel::NoSocket as u32 {
        NOBODY.into()
    } else {
        party
    };
    let verdict = decide::sent_by_process(&generation, sender as Party, on_lo, packet);
    Found::new(&generation, verdict, 0).word()
}

/// What a socket receives.
pub fn ingress(ctx: &SkBuffContext) -> i32 {
    let skb = Skb::of(ctx);
    let sk = skb.socket();
    let state = state(sk);
    let active = Active::now();
    let (mut role, mut judged) = role(skb.ifindex());
    // Read once: the address of a field of the context must not be kept for later.
    let mark = skb.mark();
    if mark.is_from_known_pod() && judged {
        // A pod whose address is its own: that tells who it is.
        role = Role::Uplink;
    } else if skb.is_looped_back() {
        // A multicast or broadcast of this node itself, judged at its sender's socket as by lo.
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
            count(Hook::CgroupIngress, kept);
        }
        return PASS;
    }
    if !socket::skb_is_host(skb, state) {
        return PASS;
    }
    let mut packet = skb::room();
    if let Err(reason) = skb.read(Start::Ip, &mut packet) {
        let verdict = decide::unreadable(&active.generation(), reason);
        if !is_told_elsewhere(mark, role, judged, verdict) {
            told_at_receiver(skb, active, verdict, None);
        }
        return action(verdict);
    }
    let allowed = delivered(skb, active, (role, judged), &packet);
    let connected = connected.with_place(skb, allowed, &packet);
    let lock = lock::at_socket(Way::Received, skb, &packet, allowed, || connected.is_cut());
    let verdict = lock.verdict(active, allowed);
    if is_of_cut(Hook::CgroupIngress, lock, verdict) {
        return DROP;
    }
    if is_told_elsewhere(mark, role, judged, verdict) {
        // Counted there, too.
    } else if !verdict.is_recorded() {
        count(Hook::CgroupIngress, counter::of(verdict));
    } else {
        told_at_receiver(skb, active, verdict, Some(&packet));
    }
    connected.keep(Way::Received, lock, active, verdict);
    action(verdict)
}

/// The verdict on what a socket receives and could be read.
#[inline(always)]
fn delivered(skb: Skb, active: Active, (role, judged): (Role, bool), packet: &Packet) -> Verdict {
    let receiver = u32::from(skb.party(active));
    let asker = Asker {
        hook: Hook::CgroupIngress,
        manner: role as u8 | u8::from(judged) << 2,
        who: receiver,
    };
    memo::verdict::<true>(asker, active, packet, || {
        Found::of(enforcer_delivered(
            active.word(),
            asker.manner.into(),
            receiver,
            packet,
        ))
    })
    .verdict()
}

/// Likewise about what a socket receives.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn enforcer_delivered(
    active: u32,
    manner: u32,
    receiver: u32,
    packet: *const Packet,
) -> u64 {
    // SAFETY: as above.
    let Some(packet) = (unsafe { packet.as_ref() }) else {
        return Found::HOLE;
    };
    let generation = Active::of(active).generation();
    let (role, judged) = (Role::from_word(manner & 3), manner & 4 != 0);
    let verdict = decide::delivered(&generation, role, judged, receiver as Party, packet);
    Found::new(&generation, verdict, 0).word()
}

/// Counts a verdict on what a socket sends, and keeps a record of a denial. On a stack frame of its own.
#[inline(never)]
fn told_of_sender(skb: Skb, active: Active, verdict: Verdict, packet: Option<&Packet>) {
    Report {
        active,
        hook: Hook::CgroupEgress,
        subject: Subject::cgroup(skb.cgroup()),
        ifindex: skb.ifindex(),
        state: socket::state(skb.socket()),
    }
    .packet(verdict, packet);
}

/// Likewise of what a socket receives.
#[inline(never)]
fn told_at_receiver(skb: Skb, active: Active, verdict: Verdict, packet: Option<&Packet>) {
    // Whoever holds a component's port is told, and not who came for the component.
    let subject = match counter::reason(counter::of(verdict)) {
        Some(Reason::ForeignListener) => Subject::cgroup(skb.cgroup()),
        _ => Subject::interface(skb.ifindex()),
    };
    Report {
        active,
        hook: Hook::CgroupIngress,
        subject,
        ifindex: skb.ifindex(),
        state: ptr::null_mut(),
    }
    .packet(verdict, packet);
}

/// What was judged where it came in, or at its sender's socket, has been counted there.
fn is_told_elsewhere(mark: PacketMark, role: Role, judged: bool, verdict: Verdict) -> bool {
    if !verdict.is_denied() {
        return judged;
    }
    verdict.passes() && (matches!(role, Role::Loopback) || mark.is_told())
}

/// The kernel answers for sockets that are no more (resets, TIME_WAIT) from a raw TCP socket of its
/// own, which is nobody's process: such a segment has for its sender whoever is at its address. It
/// opens nothing. A process's own raw socket is known by its cgroup.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kernel {
    No = 0,
    Raw = 1,
    NoSocket = 2,
}

impl Kernel {
    fn of(skb: Skb, sk: *mut bpf_sock) -> Self {
        if !socket::is_full(sk) {
            return Self::NoSocket;
        }
        // That socket of the kernel's is never connected, and asking for its type is a call.
        // SAFETY: not null, and a plain field.
        if unsafe { (*sk).state } != TCP_CLOSE {
            return Self::No;
        }
        let sk = skb.full_socket();
        // SAFETY: a full socket, whose plain fields the verifier lets programs read.
        if !sk.is_null() && unsafe { (*sk).type_ == SOCK_RAW && (*sk).protocol == IPPROTO_TCP } {
            Self::Raw
        } else {
            Self::No
        }
    }
}

/// Whether a packet that waited for its next hop is an answer of the kernel's own (a reset, an ICMP message). The sockets that it
/// answers by serve all network namespaces in turn (`sock_net_set` in tcp_v4_send_reset, net/ipv4/tcp_ipv4.c, and in
/// net/ipv4/icmp.c), so by then they may be said to be of another. They are in no declared cgroup, and open nothing.
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

/// The role of an interface and whether its packets have been judged where they came in.
fn role(ifindex: u32) -> (Role, bool) {
    let role = Role::from_word(maps::role(ifindex));
    (role, !matches!(role, Role::Undeclared))
}

fn action(verdict: Verdict) -> i32 {
    if verdict.passes() { PASS } else { DROP }
}

/// What is kept on a packet's socket; null if there is nothing, or nothing that is needed.
#[inline(always)]
fn state(sk: *mut bpf_sock) -> *mut SocketState {
    if socket::netns_is_told() && !is_open(sk) {
        return ptr::null_mut();
    }
    socket::state(sk)
}

/// Whether a socket is in a state in which TCP has a connection. Others, of UDP for one, may be in such a
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
    /// What has a verdict is one; what else has a state may be a socket of another protocol.
    #[inline(always)]
    fn of(sk: *mut bpf_sock, state: *mut SocketState) -> Self {
        let state = if is_open(sk) { state } else { ptr::null_mut() };
        Self { sk, state }
    }

    /// With a place for what is to be kept, if it is one and keeping is worth it: there is a place, the connection
    /// has a lock, or it goes on for longer than it takes to make one, which a segment in so many stands for.
    #[inline(always)]
    fn with_place(self, skb: Skb, verdict: Verdict, packet: &Packet) -> Self {
        let is_worth_it = || {
            matches!(packet.ports.space, Space::Tcp)
                && (verdict.is_tls_path() || packet.segment.is_one_of_many())
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

    /// Whether it is one: then neither pointer is null.
    fn is_one(self) -> bool {
        !self.sk.is_null() && !self.state.is_null()
    }

    /// Whether what is kept is about the two ends that the socket has now.
    ///
    /// The words for both families are compared: of a socket of one, those of the other hold something else, but always
    /// the same for the same ends.
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

    /// Keeps for the next packet that goes this way what this one has shown: that its path is open to it for good, or that
    /// the connection has broken its lock.
    #[inline(always)]
    fn keep(self, way: Way, lock: Lock, active: Active, verdict: Verdict) {
        if !self.is_one() {
            return;
        }
        if lock == Lock::Broken && !verdict.passes() {
            self.cut();
        } else if lock == Lock::Open && !verdict.is_denied() {
            let kept = SocketState::kept(active.epoch(), counter::of(verdict));
            self.keep_verdict(way, kept);
        } else if lock == Lock::Holds
            && way == Way::Sent
            && matches!(verdict.direction(), Direction::Forward)
        {
            self.begin_client();
        }
    }

    /// What this socket sends to a server that is to hear TLS is looked at once more on its way out.
    fn begin_client(self) {
        // SAFETY: what is kept lives as long as its socket.
        unsafe { (*self.renewed()).client = 1 };
    }

    #[inline(never)]
    fn keep_verdict(self, way: Way, kept: u64) {
        let state = self.renewed();
        // SAFETY: what is kept lives as long as its socket.
        unsafe {
            match way {
                Way::Sent => (*state).egress = kept,
                Way::Received => (*state).ingress = kept,
            }
        }
        count(way.hook(), counter::KEPT_VERDICTS);
    }

    /// Whether the connection has broken its lock.
    #[inline(never)]
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
