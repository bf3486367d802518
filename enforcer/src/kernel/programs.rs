//! The object with the kernel programs, and the programs' names.

use enforcer_common::record::Hook;

/// The programs for interfaces: for ingress, for egress, and for ingress of lo.
pub(super) const TC: [&str; 3] = ["enforcer_tc_in", "enforcer_tc_out", "enforcer_lo_in"];
/// The one below that handles `setsockopt`.
pub(super) const SETSOCKOPT: &str = "enforcer_setopt";
/// The programs for the cgroup root, in the order of attachment: sockets are stamped before any
/// program relies on the stamp.
pub(super) const CGROUP: [&str; 12] = [
    "enforcer_sock",
    "enforcer_conn4",
    "enforcer_conn6",
    "enforcer_send4",
    "enforcer_send6",
    "enforcer_bind4",
    "enforcer_bind6",
    "enforcer_bound4",
    "enforcer_bound6",
    SETSOCKOPT,
    "enforcer_skb_out",
    "enforcer_skb_in",
];

/// The attach types of programs at an interface, by TCX: numbers of `enum bpf_attach_type`.
pub(super) const TCX_INGRESS: u32 = 46;
pub(super) const TCX_EGRESS: u32 = 47;

/// The attach type of a program at a cgroup: its number of `enum bpf_attach_type` in
/// include/uapi/linux/bpf.h.
pub(super) fn attach_type(name: &str) -> Option<u32> {
    Some(match name {
        "enforcer_skb_in" => 0,
        "enforcer_skb_out" => 1,
        "enforcer_sock" => 2,
        "enforcer_bind4" => 8,
        "enforcer_bind6" => 9,
        "enforcer_conn4" => 10,
        "enforcer_conn6" => 11,
        "enforcer_bound4" => 12,
        "enforcer_bound6" => 13,
        "enforcer_send4" => 14,
        "enforcer_send6" => 15,
        SETSOCKOPT => 22,
        _ => return None,
    })
}

/// The program for security modules, which not every kernel loads.
pub(super) const LSM: &str = "enforcer_lsm_opt";

/// Where a program is attached. IPv4 and IPv6 variants share a hook, and so does a program that
/// replaces another.
pub(super) fn hook(program: &str) -> Hook {
    match program {
        "enforcer_tc_in" | "enforcer_lo_in" => Hook::TcIngress,
        "enforcer_tc_out" => Hook::TcEgress,
        "enforcer_conn4" | "enforcer_conn6" => Hook::Connect,
        "enforcer_send4" | "enforcer_send6" => Hook::Sendmsg,
        "enforcer_bind4" | "enforcer_bind6" | "enforcer_bound4" | "enforcer_bound6" => Hook::Bind,
        "enforcer_skb_out" => Hook::CgroupEgress,
        "enforcer_skb_in" => Hook::CgroupIngress,
        SETSOCKOPT | LSM => Hook::Setsockopt,
        _ => Hook::SockCreate,
    }
}

pub(super) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/enforcer"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_has_its_hook() {
        let names = TC.into_iter().chain(CGROUP).chain([LSM]);
        let stamps: Vec<_> = names
            .filter(|name| hook(name) == Hook::SockCreate)
            .collect();
        assert_eq!(stamps, ["enforcer_sock"]);
    }
}
