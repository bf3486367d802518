//! The hooks on `connect`, `sendmsg` and `bind`: a denied call fails at once.
//!
//! They see addresses before any translation. The packets of a call that they allow are judged again; in dry-run only a
//! `bind`, which sends no packet, is reported from here.

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_sock,
    helpers::generated::{bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id},
    programs::{SockAddrContext, SockContext},
};
use enforcer_common::{
    addr::Ip,
    decide,
    mark::PacketMark,
    packet::PortKind,
    record::Hook,
    tables::{Party, Tables as _},
    vantage::Vantage,
    verdict::Verdict,
};

use crate::{
    maps::Active,
    report::{Report, Subject},
    socket,
};

const PASS: i32 = 1;
const REFUSE: i32 = 0;

const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const IPPROTO_UDPLITE: u32 = 136;
const IPPROTO_MPTCP: u32 = 262;

/// The address of an IPv4 call.
pub fn ipv4(ctx: &SockAddrContext) -> Ip {
    // SAFETY: the context is valid while the program runs; the field is in network byte order.
    Ip::v4(unsafe { (*ctx.sock_addr).user_ip4 }.to_ne_bytes())
}

/// The address of an IPv6 call.
pub fn ipv6(ctx: &SockAddrContext) -> Ip {
    // SAFETY: as above. The verifier wants each word read by itself.
    let words = unsafe {
        let ctx = &*ctx.sock_addr;
        [
            ctx.user_ip6[0],
            ctx.user_ip6[1],
            ctx.user_ip6[2],
            ctx.user_ip6[3],
        ]
    };
    of_words(words)
}

/// An address from words in network byte order.
fn of_words(words: [u32; 4]) -> Ip {
    let mut bytes = [0; 16];
    for (part, word) in bytes.chunks_exact_mut(4).zip(words) {
        part.copy_from_slice(&word.to_ne_bytes());
    }
    Ip(bytes)
}

/// `connect` and `sendmsg`.
pub fn connecting(ctx: &SockAddrContext, dst: Ip, hook: Hook) -> i32 {
    let sk = socket_of(ctx);
    socket::ensure_owner(ctx, sk);
    let Some((port_kind, port)) = endpoint(ctx) else {
        return PASS;
    };
    if !socket::is_host(ctx) {
        return PASS;
    }
    let active = Active::now();
    let generation = active.generation();
    if generation.settings().is_none() {
        return REFUSE;
    }
    let by = enforcer_caller(active.word()) as Party;
    let verdict = decide::connecting(&generation, by, &dst, port_kind, port);
    if verdict.is_denied() || verdict.is_tls_path() {
        // Its packets may be reported.
        socket::record_owner(ctx, sk);
    }
    if !decide::fails_at_once(verdict, port_kind) {
        return PASS;
    }
    Call {
        active,
        by,
        hook,
        addr: dst,
        port_kind,
        port,
        sk,
    }
    .report(verdict)
}

/// `bind`.
pub fn binding(ctx: &SockAddrContext, addr: Ip) -> i32 {
    let sk = socket_of(ctx);
    socket::ensure_owner(ctx, sk);
    let Some((port_kind, port)) = endpoint(ctx) else {
        return PASS;
    };
    if !socket::is_host(ctx) {
        return PASS;
    }
    if port == 0 {
        socket::set_any_port(sk);
        return PASS;
    }
    holding(ctx, sk, addr, port_kind, port)
}

/// After `bind` to port 0: judges the port that the kernel chose. It may be a component's, as a process can set the range
/// to choose from (`IP_LOCAL_PORT_RANGE`, Linux 6.3). A denial releases it.
pub fn bound(ctx: &SockContext, addr: Ip) -> i32 {
    let sk = ctx.sock;
    if !socket::take_any_port(sk) {
        return PASS;
    }
    // SAFETY: the context is valid while the program runs.
    let (protocol, port) = unsafe { ((*sk).protocol, (*sk).src_port) };
    let Some(port_kind) = port_kind_of(protocol) else {
        return PASS;
    };
    // In host byte order.
    holding(ctx, sk, addr, port_kind, port as u16)
}

/// Whether the calling process may hold a port at an address.
#[inline(always)]
fn holding<C: EbpfContext>(
    ctx: &C,
    sk: *mut bpf_sock,
    addr: Ip,
    port_kind: PortKind,
    port: u16,
) -> i32 {
    let active = Active::now();
    let generation = active.generation();
    if generation.settings().is_none() {
        return REFUSE;
    }
    let by = enforcer_caller(active.word()) as Party;
    let verdict = decide::binding(&generation, by, &addr, port_kind, port);
    if !verdict.is_denied() {
        return PASS;
    }
    socket::record_owner(ctx, sk);
    Call {
        active,
        by,
        hook: Hook::Bind,
        addr,
        port_kind,
        port,
        sk,
    }
    .report(verdict)
}

/// The address that an IPv4 socket is bound to.
pub fn bound_ipv4(ctx: &SockContext) -> Ip {
    // SAFETY: the context is valid while the program runs; the field is in network byte order.
    Ip::v4(unsafe { (*ctx.sock).src_ip4 }.to_ne_bytes())
}

/// The address that an IPv6 socket is bound to.
pub fn bound_ipv6(ctx: &SockContext) -> Ip {
    // SAFETY: as above. The verifier wants each word read by itself.
    let words = unsafe {
        let sk = &*ctx.sock;
        [sk.src_ip6[0], sk.src_ip6[1], sk.src_ip6[2], sk.src_ip6[3]]
    };
    of_words(words)
}

/// A call that is denied.
struct Call {
    active: Active,
    by: Party,
    hook: Hook,
    addr: Ip,
    port_kind: PortKind,
    port: u16,
    sk: *mut bpf_sock,
}

impl Call {
    /// Reports it. The caller gets EPERM unless it is dry-run.
    fn report(&self, verdict: Verdict) -> i32 {
        // SAFETY: the helper takes nothing.
        let subject = Subject::cgroup(unsafe { bpf_get_current_cgroup_id() });
        let state = socket::state(self.sk);
        let report = Report {
            active: self.active,
            hook: self.hook,
            subject,
            vantage: Vantage::of_call(self.by),
            mark: PacketMark::NONE,
            state,
        };
        report.call(verdict, self.addr, (self.port_kind, self.port));
        if verdict.passes() { PASS } else { REFUSE }
    }
}

/// The port of the call, if its protocol is one whose ports are judged.
fn endpoint(ctx: &SockAddrContext) -> Option<(PortKind, u16)> {
    // SAFETY: the context is valid while the program runs.
    let (protocol, port) = unsafe { ((*ctx.sock_addr).protocol, (*ctx.sock_addr).user_port) };
    // In network byte order, in the low half.
    Some((port_kind_of(protocol)?, u16::from_be(port as u16)))
}

fn port_kind_of(protocol: u32) -> Option<PortKind> {
    Some(match protocol {
        // An MPTCP socket's subflows are TCP.
        IPPROTO_TCP | IPPROTO_MPTCP => PortKind::Tcp,
        IPPROTO_UDP | IPPROTO_UDPLITE => PortKind::Udp,
        _ => return None,
    })
}

fn socket_of(ctx: &SockAddrContext) -> *mut bpf_sock {
    // SAFETY: the context is valid while the program runs, and a sock_addr hook has a full socket.
    unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk }
}

/// The party of the calling process: that of the deepest declared cgroup above it. A global function, which the verifier
/// checks once and separately.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn enforcer_caller(active: u32) -> u32 {
    // SAFETY: the helper takes nothing.
    let own = unsafe { bpf_get_current_cgroup_id() };
    // SAFETY: the helper takes any level, and returns 0 for a level that does not exist.
    let above = |level: u32| unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) };
    Active::of(active).party(own, above).into()
}
