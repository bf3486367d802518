//! "Drop all other connectivity" on every node of a cluster: what a healthy cluster needs works,
//! what operators commonly forget has a named path, and removing a path has the documented symptom.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use enforcer_tests::arrivals::Arrivals;
use enforcer_tests::packet::{Content, Forged};
use enforcer_tests::patience::patient;
use enforcer_tests::plan::{
    CP1, CP2, CP3, DNS_SERVICE, INFRA, LB, LOOPBACK, NODE_LOCAL_DNS, OUT, POD_B, Party, VIP, W1,
    W2, WEBHOOK_SERVICE, port,
};
use enforcer_tests::probe::{Dns, Hold, Serve, Sniff};
use enforcer_tests::product::{Agent, PolicyText};
use enforcer_tests::{Builder, Lab, Outcome, Workload, cluster};

const OPTIONS: [&str; 3] = ["load-balancer", "node-local-dns", "insecure-port"];

fn drop_policy() -> PolicyText {
    PolicyText {
        options: OPTIONS.to_vec(),
        other_traffic: "Drop",
        ..PolicyText::default()
    }
}

fn without(path: &'static str) -> PolicyText {
    PolicyText {
        disable: vec![path],
        ..drop_policy()
    }
}

fn builder() -> Builder {
    Lab::builder().full().cluster().services()
}

fn page(workload: &Workload, at: SocketAddr) -> Result<bool> {
    Ok(workload.curl(&format!("https://{at}/"), None)?.ok())
}

/// Removing a path denies what it allowed, and restoring it allows that again: on all nodes, in one
/// swap.
fn breaks_without(
    lab: &Lab,
    agents: &[Agent],
    path: &'static str,
    works: impl Fn() -> Result<bool>,
) -> Result<()> {
    ensure!(works()?, "with path {path} it does not work");
    for agent in agents {
        agent.replace_policy(lab, &without(path))?;
    }
    ensure!(!works()?, "it works without path {path}");
    for agent in agents {
        agent.replace_policy(lab, &drop_policy())?;
    }
    ensure!(works()?, "with path {path} again it does not work");
    Ok(())
}

/// Writes keys into etcd for a while. Returns how many, and which failed.
fn load(lab: &Lab, how_long: Duration) -> Result<(u32, Vec<String>)> {
    let client = lab.certs().apiserver_etcd_client();
    let deadline = Instant::now() + how_long;
    let (mut puts, mut errors) = (0, Vec::new());
    while Instant::now() < deadline {
        for node in [CP1, CP2, CP3] {
            puts += 1;
            let (key, at) = (format!("key-{puts}"), node.at(port::ETCD_CLIENT));
            let put = lab.static_pod(node.name, "apiserver").etcdctl(
                at,
                Some(client),
                ["put", &key, "x"],
            )?;
            if !put.ok() {
                errors.push(format!("{key} at {at}: {put}"));
            }
        }
    }
    Ok((puts, errors))
}

#[test]
fn etcd_elects_loses_a_member_and_serves_for_a_minute() -> Result<()> {
    let mut lab = builder().build()?;
    let (before, errors) = load(&lab, Duration::from_secs(5))?;
    ensure!(
        before > 10 && errors.is_empty(),
        "without the product: {errors:?}"
    );
    let agents = Agent::on_all(&lab, &drop_policy())?;
    let client = lab.certs().apiserver_etcd_client().clone();

    // All connections are new: a leader is elected under the policy.
    for member in [CP1, CP2, CP3] {
        lab.stop_etcd(member.name)?;
    }
    lab.start_all_etcd()?;
    let (puts, errors) = load(&lab, Duration::from_secs(60))?;
    println!("{puts} puts in a minute, {} errors", errors.len());
    ensure!(puts > 100 && errors.is_empty(), "{errors:?}");

    lab.stop_etcd("cp3")?;
    let put = |key: &str| {
        let at = CP1.at(port::ETCD_CLIENT);
        lab.apiserver()
            .etcdctl(at, Some(&client), ["put", key, "1"])
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while !put("while-one-is-gone")?.ok() {
        ensure!(
            Instant::now() < deadline,
            "two members of three take nothing"
        );
    }
    lab.start_etcd("cp3")?;
    let got = lab.static_pod("cp3", "apiserver").etcdctl(
        CP3.at(port::ETCD_CLIENT),
        Some(&client),
        ["get", "while-one-is-gone"],
    )?;
    ensure!(got.checked()?.stdout.contains("while-one-is-gone"));
    for agent in &agents {
        let reported: Vec<_> = agent.events()?;
        let about_etcd = |port: Option<u16>| port == Some(2379) || port == Some(2380);
        let wrong: Vec<_> = reported
            .iter()
            .filter(|event| about_etcd(event.port))
            .collect();
        ensure!(wrong.is_empty(), "{wrong:#?}");
    }
    lab.close()
}

#[test]
fn connections_older_than_the_policy_continue() -> Result<()> {
    let lab = builder().build()?;
    let pod = lab.pod("pod-c");
    let held = [
        pod.hold(Hold::to(lab.pod("pod-b").party().at(port::ECHO)))?,
        pod.hold(Hold::to(lab.pod("pod-a").party().at6(port::ECHO)))?,
        lab.kubelet("w2")
            .hold(Hold::to(pod.party().at(port::ECHO)))?,
    ];
    let agents = Agent::on_all(&lab, &drop_policy())?;
    for held in &held {
        let answers = held.answers();
        let deadline = Instant::now() + patient(Duration::from_secs(5));
        while held.answers() == answers {
            ensure!(Instant::now() < deadline, "a connection of before ended");
            thread::sleep(Duration::from_millis(20));
        }
    }
    drop(agents);
    lab.close()
}

#[test]
fn the_own_address_and_the_balancer_are_reached_from_everywhere() -> Result<()> {
    let lab = builder().build()?;
    lab.claim(&CP1, &VIP)?;
    let agents = Agent::on_all(&lab, &drop_policy())?;
    let secure = |party: &Party| party.at(port::APISERVER);
    let client = lab.certs().apiserver_etcd_client();
    // The apiserver to the local etcd by the node's address, over lo; etcd to itself.
    let put =
        lab.apiserver()
            .etcdctl(CP1.at(port::ETCD_CLIENT), Some(client), ["put", "a", "1"])?;
    put.checked()?;
    ensure!(lab.etcd().connect(CP1.at(port::ETCD_CLIENT))?.worked());
    ensure!(
        page(&lab.kubelet("cp1"), secure(&CP1))?,
        "kubelet to the local apiserver"
    );
    // The hairpin: the node that has the shared address uses it, and so do the others.
    for (who, what) in [
        (lab.kubelet("cp1"), &VIP),
        (lab.kubelet("w1"), &VIP),
        (lab.kubelet("cp1"), &LB),
        (lab.pod("pod-a").clone(), &VIP),
        (lab.pod("pod-c").clone(), &LB),
        (lab.login("admin"), &LB),
    ] {
        ensure!(
            page(&who, secure(what))?,
            "{} to {}",
            who.party().name,
            what.name
        );
    }
    let at = secure(&VIP);
    ensure!(
        !page(&lab.controller_manager(), at)?,
        "the controller manager uses the shared address"
    );
    agents[0].event(|event| event.endpoint.as_deref() == Some("load-balancer:api"))?;
    ensure!(
        !page(&lab.neighbour(), at)?,
        "a stranger uses the shared address"
    );
    agents[0]
        .event(|event| event.source.as_deref() == Some("10.77.0.99") && event.port == Some(6443))?;
    drop(agents);
    lab.close()
}

#[test]
fn large_transfers_discover_the_path_mtu() -> Result<()> {
    let lab = Lab::builder().cluster().build()?;
    let pod = lab.pod("pod-b").clone();
    let _server = pod.serve(Serve {
        tcp: pod.party().both(port::WEBHOOK).to_vec(),
        ..Serve::default()
    })?;
    let agents = Agent::on_all(&lab, &drop_policy())?;
    lab.shrink(&POD_B, 1300)?;
    for at in pod.party().both(port::WEBHOOK) {
        let reported = Forged {
            source: SocketAddr::new(W1.like(at.ip()), 0),
            destination: SocketAddr::new(CP1.like(at.ip()), 0),
            content: Content::Message(3),
        };
        let reported = Arrivals::like(&lab.login("cp1"), &reported)?;
        // The interface's MTU is larger than the path's: without ICMP, the transfer would hang.
        let transfer = lab.apiserver().transfer(at, 200_000)?;
        ensure!(
            transfer.outcome == Outcome::Answered && transfer.count == 200_000,
            "{at}: {transfer:?}"
        );
        ensure!(
            reported.so_far()? > 0,
            "{at}: nobody had to be reported how narrow it is"
        );
    }
    // The ICMP errors were judged by the packets that they quote.
    let (forward, reply) = agents[0].path_packets("apiserver-to-webhook")?;
    ensure!(forward > 10 && reply > 10, "{forward} {reply}");
    drop(agents);
    lab.close()
}

#[test]
fn pods_talk_through_the_tunnel_and_nobody_else_does() -> Result<()> {
    let lab = Lab::builder().full().vxlan().services().build()?;
    let tunnels =
        |agents: &[Agent]| -> Result<u64> { Ok(agents[4].path_packets("node-to-node")?.0) };
    let agents = Agent::on_all(&lab, &drop_policy())?;
    let [a, b] = ["pod-a", "pod-b"].map(|name| lab.pod(name).clone());
    let c = lab.pod("pod-c").party().both(port::ECHO);
    let before = tunnels(&agents)?;
    for at in c {
        ensure!(
            a.ask(at, "x")?.outcome == Outcome::Answered,
            "pod to pod by {at}"
        );
    }
    ensure!(
        tunnels(&agents)? > before,
        "no packet went by the tunnel's path"
    );
    ensure!(b.dns(Dns::name(DNS_SERVICE.at(port::DNS), cluster::KNOWN_NAME))? == Outcome::Answered);
    ensure!(
        a.dns(Dns::name(DNS_SERVICE.at6(port::DNS), cluster::OUTSIDE_NAME))? == Outcome::Answered
    );
    let webhook = format!("https://{}/", WEBHOOK_SERVICE.at(port::SERVICE));
    ensure!(
        lab.apiserver().curl(&webhook, None)?.ok(),
        "apiserver to the webhook"
    );
    // An outsider and a pod send into the tunnel: a packet from pod-a to pod-c, encapsulated in
    // VXLAN.
    let watch = lab.pod("pod-c").sniff(Sniff {
        interface: "eth0".to_owned(),
        port: Some(4444),
        ..Sniff::default()
    })?;
    let inner = Forged {
        source: a.party().at(4444),
        destination: lab.pod("pod-c").party().at(4444),
        content: Content::udp("smuggled"),
    };
    let header = [0x08, 0, 0, 0, 0, 0, 77, 0];
    let end = enforcer_tests::plan::tunnel_end(&W2).mac;
    let payload = [&header[..], &inner.frame([2; 6], end)?].concat();
    for (who, reason) in [(lab.neighbour(), "NoPath"), (b.clone(), "NoPath")] {
        who.forge(&Forged {
            source: who.party().at(4789),
            destination: W2.at(4789),
            content: Content::Udp {
                payload: payload.clone(),
            },
        })?;
        let judge = if who.party().name == "out" {
            &agents[4]
        } else {
            &agents[3]
        };
        let source = who.party().v4.to_string();
        judge.event(|event| {
            event.reason == reason
                && event.source.as_deref() == Some(&source)
                && event.endpoint.as_deref() == Some("overlay:tunnel")
        })?;
    }
    ensure!(
        watch.frames().is_empty(),
        "a smuggled packet reached the pod"
    );
    breaks_without(&lab, &agents, "node-to-node", || {
        Ok(a.connect(lab.pod("pod-c").party().at(port::ECHO))?.worked())
    })?;
    drop(agents);
    lab.close()
}

#[test]
fn commonly_forgotten_paths_exist_and_break_what_is_documented() -> Result<()> {
    let lab = builder().build()?;
    let agents = Agent::on_all(&lab, &drop_policy())?;
    let api = lab.apiserver();
    let pod = lab.pod("pod-c").clone();
    let kubelet = |party: &Party| party.at(port::KUBELET);
    breaks_without(&lab, &agents, "apiserver-to-kubelet", || {
        // On all nodes, including control-plane nodes, and from a node to itself.
        let all = [kubelet(&W1), kubelet(&CP1), kubelet(&CP2)];
        let pages: Result<Vec<bool>> = all.into_iter().map(|at| page(&api, at)).collect();
        Ok(pages?.iter().all(|works| *works))
    })?;
    breaks_without(&lab, &agents, "etcd-to-etcd", || {
        let there = lab
            .etcd_on("cp1")
            .connect(CP2.at(port::ETCD_PEER))?
            .worked();
        Ok(there
            && lab
                .etcd_on("cp2")
                .connect(CP1.at(port::ETCD_PEER))?
                .worked())
    })?;
    breaks_without(&lab, &agents, "apiserver-to-webhook", || {
        page(&api, WEBHOOK_SERVICE.at(port::SERVICE))
    })?;
    let aggregated = lab.pod("webhook").party().at(port::AGGREGATED);
    ensure!(
        page(&api, aggregated)?,
        "an aggregated API server at a port that is not 443"
    );
    breaks_without(&lab, &agents, "kubelet-probes", || {
        Ok(lab
            .kubelet("w2")
            .connect(pod.party().at(port::INSECURE))?
            .worked())
    })?;
    // Port 8080 is guarded only at the apiserver.
    let cache = |port| SocketAddr::new(NODE_LOCAL_DNS.into(), port);
    breaks_without(&lab, &agents, "node-local-dns-health", || {
        Ok(lab.kubelet("cp1").connect(cache(port::INSECURE))?.worked())
    })?;
    breaks_without(&lab, &agents, "node-local-dns", || {
        Ok(pod.dns(Dns::name(cache(port::DNS), cluster::KNOWN_NAME))? == Outcome::Answered)
    })?;
    breaks_without(&lab, &agents, "dns", || {
        let long = |tcp| Dns {
            tcp,
            text: true,
            ..Dns::name(DNS_SERVICE.at(port::DNS), cluster::LONG_NAME)
        };
        // For pods it is one more pod, which `pod-to-pod` allows.
        let node = lab.daemon("w2", "chrony");
        let udp = node.dns(long(false))? == Outcome::Truncated;
        Ok(udp && node.dns(long(true))? == Outcome::Answered)
    })?;
    breaks_without(&lab, &agents, "node-local-dns-upstream", || {
        let server = DNS_SERVICE.at(port::DNS);
        let tcp = Dns {
            tcp: true,
            ..Dns::name(server, cluster::KNOWN_NAME)
        };
        Ok(lab.static_pod("w2", "node-local-dns").dns(tcp)? == Outcome::Answered)
    })?;
    let asked = AtomicU32::new(0);
    breaks_without(&lab, &agents, "dns-upstream", || {
        let name = format!("n{}.outside.lab", asked.fetch_add(1, Ordering::Relaxed));
        Ok(pod.dns(Dns::name(DNS_SERVICE.at(port::DNS), &name))? == Outcome::Answered)
    })?;
    breaks_without(&lab, &agents, "ntp", || {
        Ok(lab
            .daemon("w1", "chrony")
            .udp(INFRA.at(port::NTP))?
            .worked())
    })?;
    breaks_without(&lab, &agents, "kube-proxy-health", || {
        Ok(lab.login("lb").connect(W1.at(port::KUBE_PROXY))?.worked())
    })?;
    for (path, at) in [
        ("etcd-metrics", port::ETCD_METRICS),
        ("kubelet-local", port::KUBELET_HEALTH),
        ("controller-manager-serving", port::CONTROLLER_MANAGER),
        ("scheduler-serving", port::SCHEDULER),
    ] {
        breaks_without(&lab, &agents, path, || {
            Ok(lab.kubelet("cp1").connect(LOOPBACK.at(at))?.worked())
        })
        .with_context(|| path)?;
    }
    breaks_without(&lab, &agents, "admin-to-node", || {
        Ok(lab.login("admin").connect(W2.at(port::SSH))?.worked())
    })?;
    breaks_without(&lab, &agents, "node-to-cloud-metadata", || {
        let at = SocketAddr::new(enforcer_tests::plan::METADATA.into(), port::HTTP);
        Ok(lab.kubelet("w1").connect(at)?.worked())
    })?;
    breaks_without(&lab, &agents, "node-to-registry", || {
        page(&lab.daemon("w1", "containerd"), INFRA.at(port::SERVICE))
    })?;
    drop(agents);
    lab.close()
}

/// Sends a packet that is not answered, and returns whether it arrives.
fn arrives(from: &Workload, at: &Workload, hop: Option<[u8; 6]>, packet: &Forged) -> Result<bool> {
    let watch = Arrivals::like(at, packet)?;
    match hop {
        Some(hop) => from.forge_to(hop, packet)?,
        None => from.raw(packet)?,
    };
    let deadline = Instant::now() + Duration::from_millis(400);
    while watch.so_far()? == 0 {
        if Instant::now() > deadline {
            return Ok(false);
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(true)
}

#[test]
fn protocols_without_replies_arrive() -> Result<()> {
    let lab = builder().build()?;
    let agents = Agent::on_all(&lab, &drop_policy())?;
    let to = |source: &Party, destination: IpAddr, content| Forged {
        source: SocketAddr::new(source.like(destination), 0),
        destination: SocketAddr::new(destination, 0),
        content,
    };
    let group = IpAddr::V4(Ipv4Addr::new(224, 0, 0, 18));
    let group_mac = [0x01, 0, 0x5e, 0, 0, 18];
    let [cp1, out] = [lab.daemon("cp1", "keepalived"), lab.neighbour()];
    let there = lab.login("cp2");
    let vrrp = |from: &Party| to(from, group, Content::Protocol(112));
    breaks_without(&lab, &agents, "vrrp", || {
        arrives(&cp1, &there, Some(group_mac), &vrrp(&CP1))
    })?;
    ensure!(
        !arrives(&out, &there, Some(group_mac), &vrrp(&OUT))?,
        "a stranger speaks VRRP"
    );
    let w1 = lab.login("w1");
    for (path, number) in [("node-to-node", 4), ("cni-to-cni", 50)] {
        let packet = |from: &Party| to(from, W1.v4.into(), Content::Protocol(number));
        breaks_without(&lab, &agents, path, || {
            arrives(&lab.daemon("w2", "plug-in"), &w1, None, &packet(&W2))
        })?;
        ensure!(
            !arrives(&out, &w1, None, &packet(&OUT))?,
            "a stranger sends protocol {number}"
        );
    }
    // DHCP, whose reply comes from another address than the one that the request went to.
    let answer = Forged {
        // Not from the servers' port: that would be the answer to the client's own answer.
        source: OUT.at(port::ECHO),
        destination: W1.at(port::DHCP_CLIENT),
        content: Content::udp("offer"),
    };
    breaks_without(&lab, &agents, "dhcp-answer", || {
        arrives(&out, &w1, None, &answer)
    })?;
    drop(agents);
    lab.close()
}

#[test]
fn neighbours_are_found_again() -> Result<()> {
    let lab = Lab::builder().full().cluster().build()?;
    let agents = Agent::on_all(&lab, &drop_policy())?;
    let admin = lab.login("admin");
    let forget = || -> Result<()> {
        for host in ["w1", "admin"] {
            lab.forget_neighbours(host)?;
        }
        Ok(())
    };
    breaks_without(&lab, &agents, "arp", || {
        forget()?;
        Ok(admin.ping(W1.v4.into())?.worked())
    })?;
    breaks_without(&lab, &agents, "neighbour-discovery", || {
        forget()?;
        Ok(admin.ping(W1.v6.into())?.worked())
    })?;
    drop(agents);
    lab.close()
}

#[test]
fn a_pod_that_takes_the_address_of_another_is_just_a_pod() -> Result<()> {
    let lab = builder().build()?;
    let policy = PolicyText {
        options: vec!["monitoring"],
        ..drop_policy()
    };
    let [monitor, thief] = ["monitor", "pod-b"].map(|name| lab.pod(name).clone());
    let to = W1.at(port::KUBELET);
    let forged = Forged {
        source: monitor.party().at(40_000),
        destination: to,
        content: Content::SYN,
    };
    let counted = Arrivals::like(&lab.login("w1"), &forged)?;
    thief.forge(&forged)?;
    thread::sleep(Duration::from_millis(100));
    ensure!(
        counted.so_far()? > 0,
        "without a policy the forged packet does not arrive"
    );
    let agent = Agent::start(&lab, "w1", &policy)?;
    ensure!(page(&monitor, to)?, "monitoring does not reach the kubelet");
    ensure!(page(&monitor, W1.at6(port::KUBELET))?, "nor over IPv6");
    let before = counted.so_far()?;
    thief.forge(&forged)?;
    let source = monitor.party().v4.to_string();
    let event = agent.event(|event| event.source.as_deref() == Some(&source))?;
    ensure!(
        event.reason == "NoPath" && event.subject.name == "cali-pod-b",
        "{event:?}"
    );
    ensure!(counted.so_far()? == before, "the forged packet arrives");
    lab.close()
}

#[test]
fn joining_nodes_and_node_ports_are_one_option_each() -> Result<()> {
    let lab = builder().build()?;
    let agents = Agent::on_all(&lab, &drop_policy())?;
    let stranger = lab.neighbour();
    let join = || page(&stranger, CP1.at(port::APISERVER));
    let udp = || Ok::<bool, anyhow::Error>(stranger.udp(W2.at(port::NODE_PORT))?.worked());
    ensure!(!join()? && !udp()?, "closed without the options");
    let opened = PolicyText {
        options: ["joining-nodes", "node-ports"].into(),
        ..drop_policy()
    };
    for agent in &agents {
        agent.replace_policy(&lab, &opened)?;
    }
    ensure!(join()?, "a node that joins is not let in");
    ensure!(udp()?, "a node port over UDP, before and after translation");
    ensure!(!stranger.connect(CP1.at(port::ETCD_CLIENT))?.worked());
    drop(agents);
    lab.close()
}

/// What a missing path would drop is one line in dry-run: replies and later packets are not
/// reported.
#[test]
fn in_dry_run_a_missing_path_is_one_line() -> Result<()> {
    let lab = Lab::builder().build()?;
    let (w1, from) = (lab.login("w1"), lab.neighbour());
    let at = W1.at(9999);
    let _server = w1.serve(Serve {
        tcp: vec![at],
        udp: vec![at],
        ..Serve::default()
    })?;
    let policy = PolicyText {
        mode: "DryRun",
        other_traffic: "Drop",
        ..PolicyText::default()
    };
    let agent = Agent::start(&lab, "w1", &policy)?;
    for _ in 0..3 {
        ensure!(from.connect(at)?.worked(), "TCP is dropped");
        let asked = from.udp(at)?;
        ensure!(asked == Outcome::Answered, "UDP: {asked:?}");
    }
    // Both are reported for the request, as often as it was sent.
    let tcp = agent.event(|event| event.port == Some(9999) && event.count >= 3)?;
    ensure!(
        tcp.verdict == "wouldDeny" && tcp.reason == "OtherTraffic",
        "{tcp:?}"
    );
    let here = |event: &&enforcer_tests::product::Event| {
        event.port.is_some_and(|port| port == 9999 || port > 30_000)
    };
    let events = agent.events()?;
    let reported: Vec<_> = events.iter().filter(here).collect();
    ensure!(
        reported.len() == 2 && reported.iter().all(|event| event.port == Some(9999)),
        "{reported:#?}"
    );
    Ok(())
}
