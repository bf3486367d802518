//! The hook on `setsockopt`: options that let a socket bypass all other hooks.
//!
//! A packet socket with `PACKET_QDISC_BYPASS` hands its frames to the driver, and an `AF_XDP` socket puts them there itself;
//! neither passes TC egress, and on lo even the sender's cgroup is lost. Such frames are denied where they come in by lo
//! ([`crate::tc::looped`]).

use aya_ebpf::{helpers::generated::bpf_get_current_cgroup_id, programs::SockoptContext};
use enforcer_common::{
    decide,
    mark::PacketMark,
    record::{Hook, SocketState},
    tables::{Party, Tables as _},
    vantage::Vantage,
    verdict::Reason,
};

use crate::{
    maps::Active,
    report::{Report, Subject},
    sock_addr, socket,
};

const PASS: i32 = 1;
const REFUSE: i32 = 0;

// include/linux/socket.h, include/uapi/linux/if_packet.h, include/uapi/linux/if_xdp.h
pub const SOL_PACKET: i32 = 263;
const PACKET_QDISC_BYPASS: i32 = 20;
const SOL_XDP: i32 = 283;
const XDP_TX_RING: i32 = 3;
/// An option that does not exist: the agent sets it to probe whether [`crate::lsm`] is called.
pub const PROBE: i32 = 0x656e_6672;

/// Called for every option of every socket; all but two pass.
pub fn setting(ctx: &SockoptContext) -> i32 {
    // SAFETY: the context is valid while the program runs, and the verifier lets programs write this
    // field. 0 leaves the value to the kernel as the caller gave it: one longer than a page, as
    // iptables has it, would be refused otherwise before 6.4.
    let (level, option) = unsafe {
        (*ctx.sockopt).optlen = 0;
        ((*ctx.sockopt).level, (*ctx.sockopt).optname)
    };
    // What leaves another network namespace is judged where it enters this one.
    if !is_around(level, option) || !socket::is_host(ctx) {
        return PASS;
    }
    // SAFETY: the context is valid while the program runs, and this hook has a full socket.
    let sk = unsafe { (*ctx.sockopt).__bindgen_anon_1.sk };
    socket::record_owner(ctx, sk);
    if refuses_around(socket::state(sk)) {
        REFUSE
    } else {
        PASS
    }
}

/// Whether an option lets a socket send past every hook.
pub fn is_around(level: i32, option: i32) -> bool {
    matches!(
        (level, option),
        (SOL_PACKET, PACKET_QDISC_BYPASS) | (SOL_XDP, XDP_TX_RING)
    )
}

/// Reports that a process of this node sets such an option, and returns whether it is refused. `state` is the state of the
/// socket; null if that is not known.
pub fn refuses_around(state: *mut SocketState) -> bool {
    let active = Active::now();
    let generation = active.generation();
    if generation.settings().is_none() {
        return true;
    }
    let verdict = decide::refused(&generation, Reason::BypassesHooks);
    let by = sock_addr::enforcer_caller(active.word()) as Party;
    let report = Report {
        active,
        hook: Hook::Setsockopt,
        // SAFETY: the helper takes nothing.
        subject: Subject::cgroup(unsafe { bpf_get_current_cgroup_id() }),
        vantage: Vantage::of_call(by),
        mark: PacketMark::NONE,
        state,
    };
    report.packet(verdict, None);
    !verdict.passes()
}
