//! A whole cluster in the lab, without the product: everything that the policies are about works
//! here.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use enforcer_tests::arrivals::Arrivals;
use enforcer_tests::packet::{Content, Forged};
use enforcer_tests::plan::{
    self, CP1, CP2, CP3, DNS_SERVICE, INFRA, LB, LOOPBACK, NODE_LOCAL_DNS, OUT, Party, SERVICE,
    VIP, W1, W2, WEBHOOK_SERVICE, port,
};
use enforcer_tests::probe::{Dns, Serve, Sniff};
use enforcer_tests::servers::{expect_answer, expect_page};
use enforcer_tests::sweep::{LabId, sweep, traces};
use enforcer_tests::{Lab, Outcome, Workload, cluster, ssh, tools};

fn secure(at: SocketAddr) -> String {
    format!("https://{at}/")
}

fn expect(workload: &Workload, to: SocketAddr, wanted: Outcome) -> Result<()> {
    let outcome = workload.connect(to)?;
    let who = workload.party().name;
    ensure!(outcome == wanted, "{who} to {to}: {outcome}, not {wanted}");
    Ok(())
}

#[test]
fn a_cluster_works() -> Result<()> {
    let started = Instant::now();
    let mut lab = Lab::builder().full().cluster().services().build()?;
    let took = started.elapsed();
    println!("a cluster took {took:?}");
    // Three seconds on an idle machine; other tests run in parallel.
    ensure!(took < Duration::from_secs(20), "a cluster took {took:?}");
    the_control_plane_answers(&lab).context("the control plane")?;
    services_lead_where_they_should(&lab).context("services")?;
    names_are_known(&lab).context("names")?;
    administrators_log_in(&lab).context("SSH")?;
    konnectivity_leads_to_kubelets(&lab).context("konnectivity")?;
    the_floating_address_is_where_it_was_claimed(&lab).context("the floating address")?;
    datagrams_and_raw_packets_arrive(&lab).context("datagrams and raw packets")?;
    a_member_of_etcd_goes_and_comes_back(&mut lab).context("etcd")?;
    lab.close()
}

fn the_control_plane_answers(lab: &Lab) -> Result<()> {
    for node in lab.topology().control_plane {
        let workload = lab.login(node.name);
        for (name, port) in [
            ("controller-manager", port::CONTROLLER_MANAGER),
            ("scheduler", port::SCHEDULER),
        ] {
            expect_page(&workload, &secure(LOOPBACK.at(port)), name)?;
            expect(&lab.neighbour(), node.at(port), Outcome::Refused)?;
        }
        let health = format!("http://{}/health", LOOPBACK.at(port::ETCD_METRICS));
        workload.curl(&health, None)?.checked()?;
        for at in node.both(port::APISERVER) {
            expect_page(lab.pod("pod-c"), &secure(at), "apiserver")?;
        }
    }
    for node in lab.topology().nodes {
        let workload = lab.login(node.name);
        for at in node.both(port::KUBELET) {
            expect_page(&lab.apiserver(), &secure(at), "kubelet")?;
        }
        for at in node.both(port::KUBE_PROXY) {
            expect_answer(&lab.login("lb"), at, "kube-proxy")?;
        }
        expect_answer(
            &workload,
            LOOPBACK.at(port::KUBE_PROXY_METRICS),
            "kube-proxy",
        )?;
        expect_answer(&workload, LOOPBACK.at(port::STREAMING), "containerd")?;
        let health = format!("http://{}/", LOOPBACK.at(port::KUBELET_HEALTH));
        expect_page(&workload, &health, "kubelet")?;
    }
    Ok(())
}

fn services_lead_where_they_should(lab: &Lab) -> Result<()> {
    for workload in [lab.pod("pod-a").clone(), lab.login("w2"), lab.login("cp3")] {
        for at in SERVICE.both(port::SERVICE) {
            expect_page(&workload, &secure(at), "apiserver")?;
        }
        for at in WEBHOOK_SERVICE.both(port::SERVICE) {
            expect_page(&workload, &secure(at), "webhook")?;
        }
    }
    let webhook = plan::WEBHOOK.party;
    for port in [port::WEBHOOK, port::SERVICE, port::AGGREGATED] {
        expect_page(&lab.apiserver(), &secure(webhook.at(port)), "webhook")?;
    }
    for at in LB.both(port::APISERVER) {
        for workload in [lab.kubelet("w1"), lab.login("admin"), lab.login("cp2")] {
            expect_page(&workload, &secure(at), "apiserver")?;
        }
    }
    let node_port = lab.neighbour().ask(CP1.at(port::NODE_PORT), "x")?;
    ensure!(node_port.answer.as_deref() == Some("pod-b"));
    ensure!(lab.neighbour().udp(W2.at(port::NODE_PORT))? == Outcome::Answered);
    Ok(())
}

fn names_are_known(lab: &Lab) -> Result<()> {
    let pod = lab.pod("pod-c");
    let cache = SocketAddr::new(NODE_LOCAL_DNS.into(), port::DNS);
    let [service, service6] = DNS_SERVICE.both(port::DNS);
    for server in [service, service6, cache] {
        for (name, tcp) in [
            (cluster::KNOWN_NAME, false),
            (cluster::KNOWN_NAME, true),
            (cluster::OUTSIDE_NAME, false),
        ] {
            let question = Dns {
                tcp,
                ..Dns::name(server, name)
            };
            let asked = pod.dns(question)?;
            let how = format!("{name} at {server}, tcp {tcp}: {asked}");
            ensure!(asked == Outcome::Answered, "{how}");
        }
        let long = Dns {
            text: true,
            ..Dns::name(server, cluster::LONG_NAME)
        };
        ensure!(pod.dns(long.clone())? == Outcome::Truncated, "{server}");
        let whole = pod.dns(Dns { tcp: true, ..long })?;
        ensure!(whole == Outcome::Answered, "{server}: {whole}");
    }
    for at in plan::DNS.party.both(port::DNS_METRICS) {
        expect_answer(&lab.login("metrics"), at, "metrics")?;
    }
    Ok(())
}

fn administrators_log_in(lab: &Lab) -> Result<()> {
    let admin = lab.login("admin");
    for to in [CP2.at(port::SSH), W2.at6(port::SSH)] {
        let there = ssh::run(lab, &admin, to, "cat /proc/self/cgroup; exit 7")?;
        ensure!(there.code() == Some(7), "{there}");
        let cgroup = "/system.slice/ssh.service";
        ensure!(there.stdout.trim_end().ends_with(cgroup), "{there}");
    }
    let stranger = ssh::run_as_stranger(lab, &admin, W1.at(port::SSH), "true")?;
    ensure!(!stranger.ok(), "a key that no server knows opens the door");
    Ok(())
}

fn konnectivity_leads_to_kubelets(lab: &Lab) -> Result<()> {
    let url = secure(LOOPBACK.at(port::KONNECTIVITY));
    let agent = lab.static_pod("w1", "konnectivity-agent");
    let ends = cluster::start_tunnel(lab, &CP1, &agent, W1.at(port::KUBELET))?;
    expect_page(&lab.apiserver(), &url, "kubelet")?;
    drop(ends);
    let ends = cluster::start_konnectivity(lab)?;
    for node in lab.topology().control_plane {
        let api = lab.static_pod(node.name, "apiserver");
        // More connections than an agent keeps waiting.
        for _ in 0..12 {
            expect_page(&api, &url, "kubelet")?;
        }
        for port in [port::KONNECTIVITY_ADMIN, port::KONNECTIVITY_HEALTH] {
            expect(&api, LOOPBACK.at(port), Outcome::Connected)?;
        }
    }
    drop(ends);
    expect(
        &lab.apiserver(),
        LOOPBACK.at(port::KONNECTIVITY),
        Outcome::Refused,
    )
}

fn the_floating_address_is_where_it_was_claimed(lab: &Lab) -> Result<()> {
    lab.claim(&CP1, &VIP)?;
    for at in VIP.both(port::APISERVER) {
        for workload in [lab.kubelet("cp1"), lab.kubelet("w2"), lab.login("admin")] {
            expect_page(&workload, &secure(at), "apiserver")?;
        }
    }
    Ok(())
}

fn datagrams_and_raw_packets_arrive(lab: &Lab) -> Result<()> {
    let node = lab.daemon("w1", "chrony");
    for port in [port::NTP, port::DHCP_SERVER] {
        for at in INFRA.both(port) {
            let asked = node.udp(at)?;
            ensure!(asked == Outcome::Answered, "{at}: {asked}");
        }
    }
    let at = |party: &Party| party.at(0);
    let group: SocketAddr = "224.0.0.18:0".parse()?;
    let everybody = [0xff; 6];
    let offer = Content::udp("offer");
    for (hop, source, destination, content) in [
        (
            Some([1, 0, 0x5e, 0, 0, 18]),
            at(&CP1),
            group,
            Content::Protocol(112),
        ),
        (None, at(&CP1), at(&CP2), Content::Protocol(4)),
        (None, at(&CP1), at(&CP2), Content::Protocol(50)),
        (
            Some(everybody),
            OUT.at(67),
            "255.255.255.255:68".parse()?,
            offer,
        ),
    ] {
        let sender = match source.ip() == OUT.v4 {
            true => lab.neighbour(),
            false => lab.daemon("cp1", "keepalived"),
        };
        let packet = Forged {
            source,
            destination,
            content,
        };
        let arrivals = Arrivals::like(&lab.login("cp2"), &packet)?;
        match hop {
            Some(hop) => sender.forge_to(hop, &packet)?,
            None => sender.raw(&packet)?,
        };
        let deadline = Instant::now() + Duration::from_secs(1);
        while arrivals.so_far()? == 0 {
            ensure!(Instant::now() < deadline, "{packet:?} did not arrive");
            thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}

fn a_member_of_etcd_goes_and_comes_back(lab: &mut Lab) -> Result<()> {
    let client = lab.certs().apiserver_etcd_client().clone();
    for member in lab.topology().control_plane {
        for at in member.both(port::ETCD_CLIENT) {
            lab.apiserver()
                .etcdctl(at, Some(&client), ["put", "x", "1"])?
                .checked()?;
        }
    }
    let without = lab
        .apiserver()
        .etcdctl(CP3.at(port::ETCD_CLIENT), None, ["get", "x"])?;
    ensure!(!without.ok(), "etcd answers without a certificate");
    lab.stop_etcd("cp2")?;
    let put = |key: &'static str| {
        let at = CP1.at(port::ETCD_CLIENT);
        lab.apiserver()
            .etcdctl(at, Some(&client), ["put", key, "1"])
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while !put("two-are-enough")?.ok() {
        ensure!(
            Instant::now() < deadline,
            "two members of three take nothing"
        );
    }
    lab.start_etcd("cp2")?;
    let got = lab.apiserver().etcdctl(
        CP2.at(port::ETCD_CLIENT),
        Some(&client),
        ["get", "", "--prefix"],
    )?;
    let got = got.checked()?.stdout;
    // What it kept, and what it missed.
    ensure!(got.contains("x\n1\n") && got.contains("two-are-enough\n1\n"));
    Ok(())
}

#[test]
fn pods_talk_through_the_tunnel() -> Result<()> {
    let lab = Lab::builder().vxlan().build()?;
    let [a, c] = ["pod-a", "pod-c"].map(|name| lab.pod(name).clone());
    let _server = c.serve(Serve {
        tcp: c.party().both(port::ECHO).to_vec(),
        ..Serve::default()
    })?;
    let sniffer = lab.login("w2").sniff(Sniff {
        interface: "eth0".to_owned(),
        ..Sniff::default()
    })?;
    for to in c.party().both(port::ECHO) {
        for workload in [&a, &lab.login("cp1"), &lab.login("w2")] {
            expect(workload, to, Outcome::Connected)?;
        }
        // Larger than the tunnel's MTU.
        let all = a.transfer(to, 300_000)?;
        ensure!(all.outcome == Outcome::Answered, "{to}: {all:?}");
    }
    let frames = sniffer.frames();
    let inside = |frame: &enforcer_tests::probe::Frame| frame.to.port() == 4789;
    ensure!(frames.iter().any(inside), "no packet was in a tunnel");
    let outside = frames
        .iter()
        .find(|frame| frame.protocol == "tcp" && frame.to.port() == port::ECHO);
    ensure!(outside.is_none(), "past the tunnel: {outside:?}");
    let own = lab
        .login("w2")
        .run("ip", ["addr", "show", plan::VXLAN_DEVICE])?;
    let own = own.checked()?.stdout;
    for part in ["mtu 1450", "inet 10.78.5.1/32", "inet6 fd78:5::1/128"] {
        ensure!(own.contains(part), "{part} is not in {own}");
    }
    lab.close()
}

/// The lab for interactive use is killed: the next lab sweeps what it leaves.
#[test]
fn a_dead_owners_cluster_is_swept() -> Result<()> {
    let mut owner = Command::new(env!("CARGO_BIN_EXE_enforcer-lab"))
        .args(["--cluster"])
        .env(
            tools::PROGRAMS_VARIABLE,
            tools::probe()?.path.parent().context("no directory")?,
        )
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = owner.stdout.take().context("no pipe")?;
    let mut lines = BufReader::new(stdout).lines();
    let first = lines.next().context("the lab says nothing")??;
    let id: LabId = first
        .split(' ')
        .nth(1)
        .context("the lab tells no id")?
        .parse()?;
    let many = traces(&id)?.len();
    ensure!(many >= 19, "{:?}", traces(&id)?);
    owner.kill()?;
    owner.wait()?;
    sweep()?;
    let left = traces(&id)?;
    ensure!(left.is_empty(), "{left:?} is left");
    Ok(())
}

#[test]
fn the_inventory_describes_the_cluster() -> Result<()> {
    let lab = Lab::builder().vxlan().build()?;
    let text = lab.inventory_yaml();
    for part in [
        "addresses: [\"10.77.0.22\", \"fd77::22\", \"10.78.5.1\", \"fd78:5::1\"]",
        "uplinks: [eth0, vxlan.lab]",
        "podNetworks: [\"10.78.4.0/24\", \"fd78:4::/64\"]",
        "serviceNetworks: [\"10.96.0.0/16\", \"fd96::/112\"]",
        "\"dns:dns\": [\"10.96.0.10:53\", \"[fd96::10]:53\"]",
        "ssh-server: { cgroups: [\"/system.slice/ssh.service\"] }",
        "admin: { addresses: [\"10.77.0.60\", \"fd77::60\"] }",
    ] {
        ensure!(text.contains(part), "{part} is not in\n{text}");
    }
    let without = lab.inventory().without("admin").yaml();
    ensure!(!without.contains("admin:"), "{without}");
    let small = Lab::builder().build()?.inventory_yaml();
    ensure!(!small.contains("serviceNetworks"), "{small}");
    lab.close()
}
