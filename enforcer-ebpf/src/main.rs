//! The kernel programs: entry points that fetch bytes and identity, get the verdict from `enforcer-common`, count it and
//! return it. There is no policy in here.

#![no_std]
#![no_main]
// One instruction that `core` does not offer, see `report::count`.
#![feature(asm_experimental_arch)]
#![expect(
    missing_docs,
    reason = "the program macros lose the doc comments below"
)]

mod cache;
mod cgroup_skb;
mod lock;
mod log;
mod lsm;
mod maps;
mod report;
mod skb;
mod sock_addr;
mod socket;
mod sockopt;
mod tc;

use aya_ebpf::{
    macros::{cgroup_skb, cgroup_sock, cgroup_sock_addr, cgroup_sockopt, classifier, lsm},
    programs::{
        LsmContext, SkBuffContext, SockAddrContext, SockContext, SockoptContext, TcContext,
    },
};
use enforcer_common::record::Hook;

/// TC ingress of an interface other than lo.
#[classifier]
pub fn enforcer_tc_in(ctx: TcContext) -> i32 {
    log::returned(&ctx, "enforcer_tc_in", tc::ingress(&ctx))
}

/// TC ingress of lo.
#[classifier]
pub fn enforcer_lo_in(ctx: TcContext) -> i32 {
    log::returned(&ctx, "enforcer_lo_in", tc::looped(&ctx))
}

/// TC egress of an interface, lo among them.
#[classifier]
pub fn enforcer_tc_out(ctx: TcContext) -> i32 {
    log::returned(&ctx, "enforcer_tc_out", tc::egress(&ctx))
}

/// A packet leaves a socket.
#[cgroup_skb]
pub fn enforcer_skb_out(ctx: SkBuffContext) -> i32 {
    log::returned(&ctx, "enforcer_skb_out", cgroup_skb::egress(&ctx))
}

/// A packet is handed to a socket.
#[cgroup_skb]
pub fn enforcer_skb_in(ctx: SkBuffContext) -> i32 {
    log::returned(&ctx, "enforcer_skb_in", cgroup_skb::ingress(&ctx))
}

/// A socket is created: records its process and its network namespace.
#[cgroup_sock(sock_create)]
pub fn enforcer_sock(ctx: SockContext) -> i32 {
    log::returned(&ctx, "enforcer_sock", socket::created(&ctx))
}

/// `connect` on an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub fn enforcer_conn4(ctx: SockAddrContext) -> i32 {
    log::returned(
        &ctx,
        "enforcer_conn4",
        sock_addr::connecting(&ctx, sock_addr::ipv4(&ctx), Hook::Connect),
    )
}

/// `connect` on an IPv6 socket, to an IPv4-mapped address too.
#[cgroup_sock_addr(connect6)]
pub fn enforcer_conn6(ctx: SockAddrContext) -> i32 {
    log::returned(
        &ctx,
        "enforcer_conn6",
        sock_addr::connecting(&ctx, sock_addr::ipv6(&ctx), Hook::Connect),
    )
}

/// `sendto` or `sendmsg` with an address, on a UDP socket for IPv4.
#[cgroup_sock_addr(sendmsg4)]
pub fn enforcer_send4(ctx: SockAddrContext) -> i32 {
    log::returned(
        &ctx,
        "enforcer_send4",
        sock_addr::connecting(&ctx, sock_addr::ipv4(&ctx), Hook::Sendmsg),
    )
}

/// `sendto` or `sendmsg` with an address, on a UDP socket for IPv6.
#[cgroup_sock_addr(sendmsg6)]
pub fn enforcer_send6(ctx: SockAddrContext) -> i32 {
    log::returned(
        &ctx,
        "enforcer_send6",
        sock_addr::connecting(&ctx, sock_addr::ipv6(&ctx), Hook::Sendmsg),
    )
}

/// `bind` to an IPv4 address.
#[cgroup_sock_addr(bind4)]
pub fn enforcer_bind4(ctx: SockAddrContext) -> i32 {
    log::returned(
        &ctx,
        "enforcer_bind4",
        sock_addr::binding(&ctx, sock_addr::ipv4(&ctx)),
    )
}

/// `bind` to an IPv6 address.
#[cgroup_sock_addr(bind6)]
pub fn enforcer_bind6(ctx: SockAddrContext) -> i32 {
    log::returned(
        &ctx,
        "enforcer_bind6",
        sock_addr::binding(&ctx, sock_addr::ipv6(&ctx)),
    )
}

/// After a `bind` to an IPv4 address: the port is known, even if the kernel chose it.
#[cgroup_sock(post_bind4)]
pub fn enforcer_bound4(ctx: SockContext) -> i32 {
    log::returned(
        &ctx,
        "enforcer_bound4",
        sock_addr::bound(&ctx, sock_addr::bound_ipv4(&ctx)),
    )
}

/// The same for an IPv6 address.
#[cgroup_sock(post_bind6)]
pub fn enforcer_bound6(ctx: SockContext) -> i32 {
    log::returned(
        &ctx,
        "enforcer_bound6",
        sock_addr::bound(&ctx, sock_addr::bound_ipv6(&ctx)),
    )
}

/// `setsockopt`: options that make a socket bypass all hooks above.
#[cgroup_sockopt(setsockopt)]
pub fn enforcer_setopt(ctx: SockoptContext) -> i32 {
    log::returned(&ctx, "enforcer_setopt", sockopt::setting(&ctx))
}

/// The same as an LSM hook, where the kernel has it: it also sees calls that the cgroup hook does not.
#[lsm(hook = "socket_setsockopt")]
pub fn enforcer_lsm_opt(ctx: LsmContext) -> i32 {
    log::returned(&ctx, "enforcer_lsm_opt", lsm::setting(&ctx))
}

/// Never reached: the verifier refuses a program that could reach an endless loop.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Helpers such as `bpf_sk_storage_get` require a licence compatible with the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
