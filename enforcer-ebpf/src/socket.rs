//! The state that is kept on sockets: the owner, the network namespace, and verdicts.

use core::ptr;

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_map_type, bpf_sock,
    },
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid,
        generated::{bpf_get_netns_cookie, bpf_sk_storage_get},
    },
    macros::btf_map,
    programs::SockContext,
};
use enforcer_common::record::{SocketState, netns};

use crate::skb::Skb;

/// Cookie of the network namespace that the agent enforces in. Set before loading.
#[unsafe(no_mangle)]
static HOST_NETNS: u64 = 0;
/// 1 if `bpf_get_netns_cookie` can be called from `cgroup_skb` (in 6.18, but not in 6.1 and 6.12).
/// Set before loading, so that the verifier never sees the call where it is not allowed.
#[unsafe(no_mangle)]
static SKB_NETNS: u32 = 0;

// include/linux/net.h
const SOCK_RAW: u32 = 3;
// include/net/tcp_states.h
const TCP_TIME_WAIT: u32 = 6;
const TCP_NEW_SYN_RECV: u32 = 12;

/// Socket storage that children of a listener inherit (`BPF_F_CLONE`); `aya_ebpf`'s own can not.
#[repr(C)]
struct InheritedStorage {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const SocketState,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: the fields are type information for the loader and are never read.
unsafe impl Sync for InheritedStorage {}

#[btf_map]
static SOCKETS: InheritedStorage = InheritedStorage {
    r#type: ptr::null(),
    key: ptr::null(),
    value: ptr::null(),
    max_entries: ptr::null(),
    map_flags: ptr::null(),
};

/// Whether a socket is a full one: neither a request socket nor in TIME_WAIT.
#[inline(always)]
pub fn is_full(sk: *mut bpf_sock) -> bool {
    if sk.is_null() {
        return false;
    }
    // As `sk_fullsock` in include/net/sock.h.
    // SAFETY: not null, and a plain field that every socket has.
    let state = unsafe { (*sk).state };
    !matches!(state, TCP_TIME_WAIT | TCP_NEW_SYN_RECV)
}

/// The state of a socket; null if there is none. It lives as long as the socket, which outlives the program's run. Two CPUs
/// may write at once; every field is a word, and each is checked against the others.
pub fn state(sk: *mut bpf_sock) -> *mut SocketState {
    storage(sk, 0)
}

/// The same, created if there is none yet. The kernel zeroes it. Null without a socket, or without memory. Creating it, and
/// freeing it with its socket, takes longer than judging some packets, so it is not created for every socket.
pub fn state_made(sk: *mut bpf_sock) -> *mut SocketState {
    storage(sk, BPF_SK_STORAGE_GET_F_CREATE)
}

#[inline(always)]
fn storage(sk: *mut bpf_sock, flags: u32) -> *mut SocketState {
    if sk.is_null() {
        return ptr::null_mut();
    }
    let map = ptr::from_ref(&SOCKETS).cast_mut().cast();
    // SAFETY: a socket that the callers got from the kernel, and not null; the helper checks that it is a full one.
    unsafe { bpf_sk_storage_get(map, sk.cast(), ptr::null_mut(), flags.into()) }.cast()
}

/// Records the owner of a socket. Only for hooks that run in the context of the process.
pub fn record_owner<C: EbpfContext>(ctx: &C, sk: *mut bpf_sock) {
    let state = state_made(sk);
    if state.is_null() {
        return;
    }
    // SAFETY: see `state`.
    unsafe {
        (*state).netns = netns_of(ctx);
        (*state).pid = (bpf_get_current_pid_tgid() >> 32) as u32;
        (*state).comm = bpf_get_current_comm().unwrap_or([0; 16]);
    }
}

/// Records that a socket is being bound to a port that the kernel chooses.
pub fn set_any_port(sk: *mut bpf_sock) {
    let state = state_made(sk);
    if !state.is_null() {
        // SAFETY: see `state`.
        unsafe { (*state).any_port = 1 };
    }
}

/// Whether it was; returns true only once.
pub fn take_any_port(sk: *mut bpf_sock) -> bool {
    let state = state(sk);
    if state.is_null() {
        return false;
    }
    // SAFETY: see `state`.
    unsafe {
        let was_set = (*state).any_port != 0;
        (*state).any_port = 0;
        was_set
    }
}

/// `sock_create`: records the owner, and never refuses.
pub fn created(ctx: &SockContext) -> i32 {
    // Raw sockets pass no other hook in the context of their process. For other sockets this is not needed if the network
    // namespace of packets is known: their owner is recorded when they are denied.
    // SAFETY: the context is valid while the program runs.
    if !netns_is_known() || unsafe { (*ctx.sock).type_ } == SOCK_RAW {
        record_owner(ctx, ctx.sock);
    }
    1
}

/// Records the owner of a socket, and so its network namespace, before it sends, if the namespace of packets is not known:
/// `sock_create` has not seen sockets that are older than the programs or that the kernel creates (MPTCP).
#[inline(always)]
pub fn ensure_owner<C: EbpfContext>(ctx: &C, sk: *mut bpf_sock) {
    if !netns_is_known() {
        record_owner(ctx, sk);
    }
}

/// Whether the context's network namespace is the one that the agent enforces in.
pub fn is_host<C: EbpfContext>(ctx: &C) -> bool {
    netns_of(ctx) == netns::HOST
}

/// The same for the socket of an skb. One whose namespace is not known counts as the host's, which is the strictest case.
pub fn skb_is_host(skb: Skb, state: *mut SocketState) -> bool {
    if netns_is_known() {
        return cookie(skb.as_ptr().cast()) == host();
    }
    // SAFETY: see `state`.
    state.is_null() || unsafe { (*state).netns } != netns::OTHER
}

/// Whether an skb's socket, which is a full one, belongs to another network namespace than the interface by which it leaves.
/// If the namespace of packets is not known and the socket has no state, it is older than the programs or the kernel's own:
/// then it counts as one of this namespace, whose packets have been judged.
#[inline(always)]
pub fn is_elsewhere(skb: Skb, sk: *mut bpf_sock) -> bool {
    if netns_is_known() {
        return cookie(skb.as_ptr().cast()) != host();
    }
    let state = state(sk);
    // SAFETY: see `state`.
    !state.is_null() && unsafe { (*state).netns } == netns::OTHER
}

/// Whether the network namespace of a packet's socket can be read.
#[inline(always)]
pub fn netns_is_known() -> bool {
    // SAFETY: a plain read of a constant that the loader has set.
    unsafe { ptr::read_volatile(&raw const SKB_NETNS) != 0 }
}

fn netns_of<C: EbpfContext>(ctx: &C) -> u32 {
    if cookie(ctx.as_ptr()) == host() {
        netns::HOST
    } else {
        netns::OTHER
    }
}

fn cookie(ctx: *mut core::ffi::c_void) -> u64 {
    // SAFETY: the helper takes the program's own context.
    unsafe { bpf_get_netns_cookie(ctx) }
}

/// The cookie of the network namespace that the agent enforces in.
pub fn host() -> u64 {
    // SAFETY: a plain read of a constant that the loader has set.
    unsafe { ptr::read_volatile(&raw const HOST_NETNS) }
}
