//! Situations of real clusters, on the wire. What a policy says about these and others is in
//! `tests/situations`. Each denial is first shown to work without a policy.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use enforcer_tests::arrivals::Arrivals;
use enforcer_tests::cgroup::static_pod_slice;
use enforcer_tests::craft::Crafted;
use enforcer_tests::plan::{CP1, POD_A, POD_GATEWAY_MAC, Party, SERVICE_NETWORKS, VIP, W1, port};
use enforcer_tests::probe::Serve;
use enforcer_tests::product::{Agent, PolicyText};
use enforcer_tests::{Lab, Outcome, Workload, net};

/// Some service's address.
const CLUSTER_IP: Party = Party {
    name: "service",
    v4: Ipv4Addr::new(10, 96, 44, 4),
    v6: Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0x44),
    mac: [0; 6],
};
const SYN: u8 = 0x02;

/// An inventory of the lab with one text replaced.
fn edited(lab: &Lab, from: &str, to: &str) -> Result<String> {
    let inventory = lab.inventory_yaml();
    ensure!(inventory.contains(from), "no `{from}` in {inventory}");
    Ok(inventory.replace(from, to))
}

/// A server that listens on all addresses of a workload, in both families.
fn everywhere(workload: &Workload, port: u16) -> Result<enforcer_tests::Server> {
    workload.serve(Serve {
        tcp: vec![SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)],
        ..Serve::default()
    })
}

/// With IPVS (`kube-ipvs0`) or kube-router (`kube-dummy-if`), a node has every service's address,
/// and what listens on all addresses is reachable there: kubernetes/kubernetes#72236.
#[test]
fn a_service_address_on_the_node_exposes_no_port_of_the_node() -> Result<()> {
    let lab = Lab::builder().apiserver().kubelets().build()?;
    lab.claim(&CP1, &CLUSTER_IP)?;
    let out = lab.host("out").namespace().name();
    let [v4, v6] = CLUSTER_IP.both(0).map(|at| at.ip());
    net::ip(
        Some(out),
        &format!(
            "route add {v4} via {}\nroute add {v6} via {}\n",
            CP1.v4, CP1.v6
        ),
    )?;
    let _etcd = everywhere(&lab.etcd(), port::ETCD_CLIENT)?;
    let (pod, host, neighbour) = (
        lab.pod("pod-a").clone(),
        lab.hostnet("cp1"),
        lab.neighbour(),
    );
    let attempts = [
        ("a pod", &pod, port::KUBELET, "NoPath", "kubelet:api"),
        (
            "a hostNetwork pod",
            &host,
            port::KUBELET,
            "WrongProcess",
            "kubelet:api",
        ),
        (
            "a neighbour",
            &neighbour,
            port::KUBELET,
            "NoPath",
            "kubelet:api",
        ),
        (
            "a neighbour",
            &neighbour,
            port::APISERVER,
            "NoPath",
            "apiserver:secure",
        ),
        ("a pod", &pod, port::ETCD_CLIENT, "NoPath", "etcd:client"),
        (
            "a hostNetwork pod",
            &host,
            port::ETCD_CLIENT,
            "WrongProcess",
            "etcd:client",
        ),
    ];
    for (who, workload, port, ..) in attempts {
        for to in CLUSTER_IP.both(port) {
            let outcome = workload.connect(to)?;
            ensure!(outcome.worked(), "twin: {who} to {to}: {outcome}");
        }
    }
    let [services, services6] = SERVICE_NETWORKS;
    let networks = format!("  serviceNetworks: [\"{services}\", \"{services6}\"]\n  components:");
    let policy = PolicyText {
        inventory: Some(edited(&lab, "  components:", &networks)?),
        ..PolicyText::default()
    };
    let agent = Agent::start(&lab, "cp1", &policy)?;
    let mut failures = Vec::new();
    for (who, workload, port, reason, endpoint) in attempts {
        for to in CLUSTER_IP.both(port) {
            let outcome = workload.connect(to)?;
            let ip = Some(to.ip().to_string());
            let reported = agent.event(|event| {
                event.destination == ip
                    && event.port == Some(port)
                    && event.reason == reason
                    && event.endpoint.as_deref() == Some(endpoint)
            });
            if outcome.worked() || reported.is_err() {
                failures.push(format!(
                    "{who} to {to}: {outcome}, reported: {}",
                    reported.is_ok()
                ));
            }
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    // A sender that may use the node's own address may use this one.
    for to in CLUSTER_IP.both(port::KUBELET) {
        let outcome = lab.apiserver().connect(to)?;
        ensure!(outcome.worked(), "the apiserver to {to}: {outcome}");
    }
    agent.stop()?.checked()?;
    lab.close()
}

/// keepalived's check script queries the apiserver here and at the shared address; if that is
/// refused, every node gives up the address: kubernetes/kubeadm PR #2102.
#[test]
fn keepalived_may_check_the_apiserver_and_no_more() -> Result<()> {
    let lab = Lab::builder().apiserver().build()?;
    lab.claim(&CP1, &VIP)?;
    let _etcd = everywhere(&lab.etcd(), port::ETCD_CLIENT)?;
    let keepalived = lab.daemon("cp1", "keepalived");
    let asked = [
        CP1.at(0),
        VIP.at(0),
        VIP.at6(0),
        enforcer_tests::plan::LOOPBACK.at(0),
    ]
    .map(|at| SocketAddr::new(at.ip(), port::APISERVER));
    let etcd = CP1.at(port::ETCD_CLIENT);
    for to in asked.into_iter().chain([etcd]) {
        let outcome = keepalived.connect(to)?;
        ensure!(outcome.worked(), "twin: {to}: {outcome}");
    }
    let components = format!(
        "    load-balancer: {{ addresses: [\"{}\", \"{}\"] }}\n    \
         keepalived: {{ cgroups: [\"/system.slice/keepalived.service\"] }}\n",
        VIP.v4, VIP.v6
    );
    let policy = PolicyText {
        options: vec!["load-balancer"],
        inventory: Some(lab.inventory_yaml() + &components),
        ..PolicyText::default()
    };
    let agent = Agent::start(&lab, "cp1", &policy)?;
    for to in asked {
        let outcome = keepalived.connect(to)?;
        ensure!(outcome.worked(), "{to}: {outcome}, {:#?}", agent.events()?);
    }
    ensure!(agent.path_packets("keepalived-to-apiserver")?.0 > 0);
    let outcome = keepalived.connect(etcd)?;
    ensure!(outcome == Outcome::Eperm, "{outcome}");
    agent.event(|event| {
        event.reason == "WrongProcess" && event.endpoint.as_deref() == Some("etcd:client")
    })?;
    agent.stop()?.checked()?;
    lab.close()
}

/// A glob for monitoring matches the apiserver's own cgroup, too. The narrower pattern wins:
/// k0sproject/k0s#6277.
#[test]
fn a_glob_does_not_claim_the_apiservers_cgroup() -> Result<()> {
    let lab = Lab::builder().kubelets().build()?;
    let _etcd = everywhere(&lab.etcd(), port::ETCD_CLIENT)?;
    let (etcd, kubelet) = (CP1.at(port::ETCD_CLIENT), CP1.at(port::KUBELET));
    let (apiserver, monitor) = (lab.apiserver(), lab.static_pod("cp1", "prometheus"));
    for (workload, to) in [(&apiserver, etcd), (&monitor, etcd), (&monitor, kubelet)] {
        let outcome = workload.connect(to)?;
        ensure!(outcome.worked(), "twin: {to}: {outcome}");
    }
    let glob = format!("cgroups: [\"/{}\"]", static_pod_slice("*"));
    let inventory = lab.inventory().with("monitoring", &glob);
    let policy = PolicyText {
        options: vec!["monitoring"],
        inventory: Some(inventory.yaml()),
        ..PolicyText::default()
    };
    let agent = Agent::start(&lab, "cp1", &policy)?;
    let outcome = apiserver.connect(etcd)?;
    ensure!(
        outcome.worked(),
        "the apiserver: {outcome}, {:#?}",
        agent.events()?
    );
    ensure!(agent.path_packets("apiserver-to-etcd")?.0 > 0);
    let outcome = monitor.connect(kubelet)?;
    ensure!(
        outcome.worked(),
        "monitoring: {outcome}, {:#?}",
        agent.events()?
    );
    ensure!(agent.path_packets("monitoring-to-kubelet")?.0 > 0);
    let outcome = monitor.connect(etcd)?;
    ensure!(outcome == Outcome::Eperm, "monitoring to etcd: {outcome}");
    agent.event(|event| event.reason == "WrongProcess")?;
    // Without a pattern of its own, it is one of those that the glob matches.
    let inventory = lab.inventory().with("monitoring", &glob);
    let inventory = inventory.with("apiserver", "cgroups: [/elsewhere]");
    let wide = PolicyText {
        inventory: Some(inventory.yaml()),
        ..policy
    };
    agent.replace_policy(&lab, &wide)?;
    let outcome = apiserver.connect(etcd)?;
    ensure!(
        outcome == Outcome::Eperm,
        "the glob does not match it: {outcome}"
    );
    agent.stop()?.checked()?;
    lab.close()
}

/// The uplinks' glob matches pods' interfaces, too, as `en*` matches `eni0123`: those are pods',
/// whatever address is forged there. aws/amazon-vpc-cni-k8s#1159.
#[test]
fn an_interface_matched_by_both_globs_is_a_pods() -> Result<()> {
    let lab = Lab::builder().build()?;
    let pod = lab.pod("pod-a");
    let frame = |mark: u16| {
        let packet = Crafted::tcp(W1.at(49_000), CP1.at(port::APISERVER), mark, SYN, b"");
        packet.frame(POD_A.party.mac, POD_GATEWAY_MAC)
    };
    let at = lab.login("cp1");
    let arrived = |mark: u16| -> Result<u64> {
        let arrivals = Arrivals::matching(&at, &format!("m{mark}"), &format!("ip id {mark}"))?;
        pod.inject("eth0", &[frame(mark)])?;
        thread::sleep(Duration::from_millis(100));
        arrivals.so_far()
    };
    ensure!(arrived(700)? == 1, "twin");
    let policy = |globs: &str| -> Result<PolicyText> {
        Ok(PolicyText {
            inventory: Some(edited(
                &lab,
                "uplinks: [eth0]",
                &format!("uplinks: [{globs}]"),
            )?),
            ..PolicyText::default()
        })
    };
    let agent = Agent::start(&lab, "cp1", &policy("eth0, \"ca*\"")?)?;
    ensure!(arrived(701)? == 0, "a forged SYN arrives");
    let interface = POD_A.host_interface();
    agent.event(|event| event.reason == "ForgedSource" && event.subject.name == interface)?;
    let status = agent.status()?;
    let mut here = status["attachments"].as_array().into_iter().flatten();
    ensure!(
        here.any(|a| a["where"] == *interface && a["role"] == "pod"),
        "{status:#}"
    );
    // If neither is narrower, the policy is refused, and what is in force stays.
    agent.write_policy(&policy("eth0, \"*pod-a\"")?.yaml(&lab))?;
    let mut reported = String::new();
    for _ in 0..100 {
        let status = agent.status()?;
        reported = status["lastError"].as_str().unwrap_or_default().to_owned();
        if !reported.is_empty() {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    ensure!(
        reported.contains("*pod-a") && reported.contains("cali*"),
        "{reported}"
    );
    ensure!(arrived(702)? == 0, "a forged SYN arrives");
    agent.stop()?.checked()?;
    lab.close()
}
