//! Attacks that are covered by other tests.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::attack::Attacker;

use Attacker::{HostPod, Neighbour, OtherNode, Pod, User};

/// An attack, and the test that covers it.
pub struct Elsewhere {
    pub id: &'static str,
    pub who: Attacker,
    pub what: &'static str,
    pub hook: &'static str,
    pub reason: &'static str,
    /// The name of the file or directory in `tests/tests`, without extension, and the function.
    pub test: (&'static str, &'static str),
}

impl Elsewhere {
    /// Fails unless the test exists and is not ignored.
    pub fn is_tested(&self) -> Result<()> {
        let (file, function) = self.test;
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        let (alone, main) = (
            tests.join(format!("{file}.rs")),
            tests.join(file).join("main.rs"),
        );
        let text = fs::read_to_string(&alone).or_else(|_| fs::read_to_string(&main));
        let text = text.with_context(|| format!("there is no {file}"))?;
        ensure!(
            text.contains(&format!("#[test]\nfn {function}() ")),
            "{file} has no test {function}"
        );
        Ok(())
    }
}

const fn row(
    id: &'static str,
    who: Attacker,
    what: &'static str,
    (hook, reason): (&'static str, &'static str),
    test: (&'static str, &'static str),
) -> Elsewhere {
    Elsewhere {
        id,
        who,
        what,
        hook,
        reason,
        test,
    }
}

#[rustfmt::skip]
pub fn rows() -> Vec<Elsewhere> {
    let (tc, enforcement) = ("tc/ingress", "enforcement");
    vec![
        row("plaintext", Pod, "sends plaintext where the path requires TLS, from the first byte or from a later one", ("tc/ingress, cgroup/ingress, cgroup/egress", "NotTls"), ("tls", "plaintext_is_cut_off_on_every_route")),
        row("plaintext-out-of-order", Pod, "the same in segments that are lost, sent again and out of order", ("tc/ingress, cgroup/ingress", "NotTls"), ("tls", "a_client_hello_passes_out_of_order_and_retransmitted")),
        row("plaintext-with-syn", Pod, "the same with the SYN (TCP Fast Open)", ("tc/ingress, tc/egress", "NotTls, FastOpenThrough"), ("tls", "data_with_the_syn_is_checked_too")),
        row("plain-server", OtherNode, "sends data first, as no TLS server does, where the path requires TLS", ("cgroup/egress, tc/egress", "NotTls"), ("tls", "a_server_that_speaks_first_is_no_tls_server")),
        row("insecure-port", User, "connects to the apiserver's insecure port over loopback", ("cgroup/connect", "WrongProcess"), ("table", "the_table_holds_for_ipv4")),
        row("take-a-port", HostPod, "binds a component's port, or a loopback port on every address", ("cgroup/bind", "BindForeignPort, BindNotLoopback"), (enforcement, "ports_cannot_be_taken_by_other_processes")),
        row("node-address", HostPod, "has the node's address and connects to etcd, also with a stolen certificate", ("cgroup/connect", "WrongProcess"), ("table", "the_table_holds_for_ipv6")),
        row("packet-on-uplink", HostPod, "injects a frame on the uplink by a packet socket, or sends by a raw one", ("tc/egress, cgroup/egress", "NoPath"), (enforcement, "an_injected_frame_is_known_by_its_cgroup")),
        row("older-connection", HostPod, "continues a connection that is older than the policy", ("cgroup/egress", "WrongProcess"), (enforcement, "connections_older_than_the_policy_continue_if_it_allows_them")),
        row("udp-ways", HostPod, "sends datagrams by every method to a port of the user's own inventory", ("cgroup/connect, cgroup/sendmsg", "WrongProcess"), (enforcement, "a_denied_udp_path_is_refused_by_every_method_of_sending_and_replies_pass")),
        row("any-cgroup", HostPod, "starts while a static pod restarts, to pass for it", ("cgroup/connect", "WrongProcess"), ("identity", "a_restarted_static_pod_is_recognized_at_once")),
        row("stolen-certificate", Pod, "connects to etcd, with a stolen certificate", (tc, "NoPath"), ("table", "the_table_holds_for_ipv4")),
        row("forged-node", Pod, "sends from the address of its node, of another node, or of any other host", (tc, "ForgedSource"), (enforcement, "a_forged_source_reaches_nothing")),
        row("forged-pod", Pod, "sends from the address of another pod that has more rights", (tc, "NoPath"), ("drop", "a_pod_that_takes_the_address_of_another_is_just_a_pod")),
        row("service", Pod, "uses a service address whose backend is etcd", ("cgroup/ingress, tc/egress", "NoPath"), (enforcement, "address_translation_does_not_bypass_the_policy")),
        row("masqueraded", Pod, "hides behind its node's address on the way to another node", (tc, "NoPath"), (enforcement, "a_pod_behind_its_nodes_address_is_still_a_pod")),
        row("undeclared-address", Pod, "reaches the kubelet by an undeclared address of the node", ("cgroup/ingress", "NoPath"), (enforcement, "an_undeclared_address_of_the_node_is_guarded_like_the_others")),
        row("shared-address", Pod, "reaches the kubelet by an address of the node that is declared for another component (node-local DNS, a load balancer)", ("cgroup/ingress", "NoPath"), (enforcement, "a_node_address_declared_for_another_component_is_guarded_too")),
        row("flood", Pod, "floods, to hide another attack among the reports", (tc, "NoPath"), (enforcement, "counts_are_exact_under_a_flood")),
        row("forged-tunnel", Pod, "sends into the tunnel between nodes", (tc, "NoPath"), ("drop", "pods_talk_through_the_tunnel_and_nobody_else_does")),
        row("loopback-from-wire", Neighbour, "sends to 127.0.0.1 over the wire, while `route_localnet` is set (CVE-2020-8558)", (tc, "LoopbackOffLo"), ("table", "the_table_holds_for_ipv4")),
        row("vrrp", Neighbour, "sends VRRP or IPIP to a node, under `otherTraffic: Drop`", (tc, "OtherTraffic, NoPath"), ("drop", "protocols_without_replies_arrive")),
        row("changing-frame", HostPod, "changes a frame while it is sent, from memory shared with the kernel (`PACKET_TX_RING`): an open port at one time, a guarded one at another; a pod does it, too", ("tc/egress, tc/ingress", "WrongProcess, NoPath"), ("changing", "frames_are_judged_as_they_arrive")),
        row("changing-page", Pod, "sends plaintext that was a ClientHello when it was checked: from a file (`sendfile`), through a pipe (`vmsplice`), from memory (`MSG_ZEROCOPY`)", ("tc/ingress, tc/egress, cgroup/ingress, cgroup/egress", "NotTls"), ("changing", "a_client_hello_cannot_change_after_its_check")),
        row("urgent-data", Pod, "sends a ClientHello as urgent data (`MSG_OOB`), which no application reads, and plaintext behind it", ("tc/ingress, cgroup/ingress, cgroup/egress", "NotTls"), ("lock", "urgent_bytes_are_not_what_the_application_reads")),
        row("urgent-byte", Pod, "makes one byte of a ClientHello urgent", ("tc/ingress, cgroup/ingress, cgroup/egress", "NotTls"), ("lock", "an_urgent_byte_does_not_count_as_data")),
        row("urgent-ahead", Pod, "points to urgent data ahead, from segments with nothing in them", ("tc/ingress, cgroup/ingress, tc/egress", "NotTls"), ("lock", "an_urgent_pointer_ahead_of_its_segment_is_followed")),
        row("urgent-within", Pod, "points to urgent data within a ClientHello", ("tc/ingress, cgroup/ingress, tc/egress", "NotTls"), ("lock", "a_client_hello_with_an_urgent_pointer_is_refused")),
        row("multipath-tls", Pod, "uses multipath TCP where the path requires TLS: its peer discards bytes without a mapping", ("tc/ingress, cgroup/egress", "MultipathTls"), ("lock", "multipath_tcp_falls_back_where_tls_is_required")),
        row("multipath-join-tls", Pod, "joins a multipath connection where the path requires TLS (`MP_JOIN`)", (tc, "MultipathTls"), ("lock", "joining_a_multipath_connection_is_refused_where_tls_is_required")),
        row("kept-verdict", User, "reconnects a socket that has sent its ClientHello to another address, which differs in its first four bytes only", ("cgroup/egress", "NotTls"), ("lock", "a_kept_verdict_does_not_apply_to_another_address")),
        row("asked-by-itself", HostPod, "sends a UDP request from a guarded port, so that what comes there next is a reply; a pod does it, too, with an accomplice on the segment", ("cgroup/egress, tc/ingress", "NoPath, WrongProcess"), ("replies", "a_udp_request_opens_no_guarded_port")),
        row("unasked-visitor", Pod, "replies to a client of a node port that never connected, or connected from another port, under `otherTraffic: Drop`", (tc, "OtherTraffic"), ("replies", "connections_translated_to_a_pod_are_answered")),
        row("squatter", HostPod, "takes a component's port without binding it: by a range of ports that holds this one only (`IP_LOCAL_PORT_RANGE`), or by listening", ("cgroup/bind, cgroup/ingress", "BindForeignPort, ForeignListener"), ("squatters", "a_port_taken_without_bind_receives_nothing")),
        row("unguarded-node", OtherNode, "is taken over: its daemons, its pods with hostNetwork, its pods", (tc, "NoPath, LoopbackOnly"), (enforcement, "one_node_defends_itself")),
    ]
}
