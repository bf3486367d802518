//! The lab itself, without the product: what a policy will deny works here, and the lab removes
//! what it creates.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use enforcer_tests::arrivals::Arrivals;
use enforcer_tests::packet::{Content, Forged};
use enforcer_tests::plan::{
    CP1, LOOPBACK, NODE_LOCAL_DNS, OUT, POD_A, POD_B, Party, SERVICE, W1, port,
};
use enforcer_tests::probe::{Connect, Hold, Serve, Sniff, Udp};
use enforcer_tests::servers::{self, expect_answer, expect_page};
use enforcer_tests::sweep::{LabId, sweep, traces};
use enforcer_tests::{Lab, Outcome, Workload, net, tools};

const SOON: Duration = Duration::from_millis(700);

/// The party's addresses of both families, so that everything is tried twice.
fn both(party: &Party, port: u16) -> [SocketAddr; 2] {
    party.both(port)
}

fn expect(workload: &Workload, to: SocketAddr, wanted: Outcome) -> Result<()> {
    let outcome = workload.connect(to)?;
    ensure!(
        outcome == wanted,
        "{} to {to}: {outcome:?}, not {wanted:?}",
        workload.party().name
    );
    Ok(())
}

#[test]
fn a_full_lab_is_up_within_seconds() -> Result<()> {
    let started = Instant::now();
    let lab = Lab::builder().full().build()?;
    let took = started.elapsed();
    println!("a full lab took {took:?}");
    // Three seconds on an idle machine; other tests run in parallel.
    ensure!(took < Duration::from_secs(12), "a full lab took {took:?}");
    lab.close()
}

#[test]
fn everybody_reaches_etcd_with_the_stolen_certificate() -> Result<()> {
    let lab = Lab::builder().etcd().build()?;
    let client = lab.certs().apiserver_etcd_client();
    let intruders = [
        lab.pod("pod-a").clone(),
        lab.pod("pod-b").clone(),
        lab.hostnet("cp1"),
        lab.hostnet("w1"),
        lab.login("w1"),
        lab.neighbour(),
        lab.apiserver(),
    ];
    for workload in &intruders {
        for endpoint in both(&CP1, port::ETCD_CLIENT) {
            workload
                .etcdctl(endpoint, Some(client), ["put", "x", "1"])?
                .checked()?;
            let got = workload
                .etcdctl(endpoint, Some(client), ["get", "x"])?
                .checked()?;
            ensure!(got.stdout == "x\n1\n", "etcd says {:?}", got.stdout);
        }
        for endpoint in both(&CP1, port::ETCD_PEER) {
            expect(workload, endpoint, Outcome::Connected)?;
        }
    }
    // Without the certificate, etcd refuses by itself.
    let refused = lab
        .pod("pod-a")
        .etcdctl(CP1.at(port::ETCD_CLIENT), None, ["get", "x"])?;
    ensure!(!refused.ok(), "etcd answers without a certificate");
    Ok(())
}

#[test]
fn etcd_watches_and_saves_a_snapshot() -> Result<()> {
    let lab = Lab::builder().etcd().build()?;
    let workload = lab.apiserver();
    for endpoint in [LOOPBACK.at(port::ETCD_CLIENT), CP1.at(port::ETCD_CLIENT)] {
        servers::watch_and_save(&lab, &workload, endpoint)?;
    }
    // Not zero: with other labs running, the kernel sometimes retransmits without need.
    let segments = workload.namespace().tcp_segments()?;
    ensure!(
        segments.sent > 100 && segments.again * 50 < segments.sent,
        "{segments:?}"
    );
    Ok(())
}

#[test]
fn the_apiserver_answers_where_it_should() -> Result<()> {
    let mut lab = Lab::builder().apiserver().build()?;
    for workload in [
        lab.controller_manager(),
        lab.scheduler(),
        lab.hostnet("cp1"),
    ] {
        for at in both(&LOOPBACK, port::INSECURE) {
            expect_page(&workload, &format!("http://{at}/"), "apiserver")?;
        }
    }
    let everybody = [
        lab.pod("pod-a").clone(),
        lab.pod("pod-b").clone(),
        lab.hostnet("cp1"),
        lab.hostnet("w1"),
        lab.login("w1"),
        lab.login("cp1"),
    ];
    for workload in &everybody {
        for at in both(&CP1, port::APISERVER)
            .into_iter()
            .chain(both(&SERVICE, port::SERVICE))
        {
            expect_page(workload, &format!("https://{at}/"), "apiserver")?;
        }
        for at in both(&CP1, port::INSECURE) {
            expect(workload, at, Outcome::Refused)?;
        }
    }
    lab.expose_insecure_port()?;
    for workload in everybody.iter().chain([&lab.neighbour()]) {
        for at in both(&CP1, port::INSECURE) {
            expect_page(workload, &format!("http://{at}/"), "exposed")?;
        }
    }
    Ok(())
}

#[test]
fn kubelets_answer_on_both_nodes() -> Result<()> {
    let lab = Lab::builder().kubelets().build()?;
    for workload in [
        lab.pod("pod-a").clone(),
        lab.pod("pod-b").clone(),
        lab.apiserver(),
    ] {
        for at in lab
            .topology()
            .nodes
            .iter()
            .flat_map(|node| both(node, port::KUBELET))
        {
            expect_page(&workload, &format!("https://{at}/"), "kubelet")?;
        }
    }
    Ok(())
}

#[test]
fn bystanders_answer_with_their_names() -> Result<()> {
    let lab = Lab::builder().bystanders().build()?;
    for pod in [POD_A, POD_B] {
        let (workload, name) = (lab.pod(pod.party.name), pod.party.name);
        for port in [port::INSECURE, port::ETCD_CLIENT] {
            for at in both(&LOOPBACK, port) {
                expect_answer(workload, at, name)?;
            }
        }
        for at in both(&pod.party, port::INSECURE) {
            expect_answer(&lab.neighbour(), at, name)?;
            expect_answer(&lab.login("cp1"), at, name)?;
        }
    }
    let dns = SocketAddr::new(NODE_LOCAL_DNS.into(), port::INSECURE);
    expect_answer(lab.pod("pod-a"), dns, "node-local-dns")?;
    expect_answer(&lab.login("w1"), dns, "node-local-dns")?;
    for at in both(&W1, port::INSECURE) {
        expect_answer(lab.pod("pod-a"), at, "worker")?;
        expect_answer(&lab.neighbour(), at, "worker")?;
    }
    for at in [CP1, W1, OUT]
        .iter()
        .flat_map(|host| both(host, port::ECHO))
    {
        expect_answer(&lab.login("cp1"), at, "who is there?")?;
    }
    Ok(())
}

#[test]
fn datagrams_are_answered_for_every_way_of_sending() -> Result<()> {
    let lab = Lab::builder().bystanders().build()?;
    let workload = lab.pod("pod-a");
    for to in both(&W1, port::ECHO) {
        let elsewhere = both(&OUT, port::ECHO)[usize::from(to.is_ipv6())];
        let methods = [
            Udp::to(to),
            Udp {
                connected: true,
                ..Udp::to(to)
            },
            Udp {
                but_connect: Some(elsewhere),
                no_answer: true,
                ..Udp::to(to)
            },
            Udp {
                mapped: true,
                ..Udp::to(to)
            },
            Udp {
                mapped: true,
                connected: true,
                ..Udp::to(to)
            },
        ];
        for method in methods {
            let report = workload.udp_with(method.clone())?;
            ensure!(report.outcome.worked(), "{method:?}: {report:?}");
        }
        let nobody = Udp {
            connected: true,
            ..Udp::to(SocketAddr::new(to.ip(), 9))
        };
        let refused = workload.udp_with(nobody)?.outcome;
        ensure!(refused == Outcome::Refused, "{refused:?}");
    }
    Ok(())
}

#[test]
fn outcomes_have_their_names() -> Result<()> {
    let lab = Lab::builder().bystanders().build()?;
    let host = lab.login("cp1");
    let nowhere: SocketAddr = "10.77.0.200:80".parse()?;
    let bind_taken = host.bind(CP1.at(port::ECHO))?;
    ensure!(bind_taken == Outcome::AddrInUse, "{bind_taken:?}");
    let bind_foreign = host.bind(W1.at(1234))?;
    ensure!(
        bind_foreign == Outcome::AddrNotAvailable,
        "{bind_foreign:?}"
    );
    let privileged = host.as_user(65534).bind(CP1.at(80))?;
    ensure!(
        matches!(privileged, Outcome::Eacces | Outcome::Bound),
        "{privileged:?}"
    );
    let raw = host.as_user(65534).ping(IpAddr::V4(W1.v4))?;
    ensure!(raw == Outcome::Eperm, "{raw:?}");
    expect(&host, nowhere, Outcome::Timeout)?;
    expect(&host, CP1.at(1), Outcome::Refused)?;
    for to in [IpAddr::V4(W1.v4), IpAddr::V6(W1.v6)] {
        for workload in [&host, lab.pod("pod-a"), &lab.neighbour()] {
            let outcome = workload.ping(to)?;
            ensure!(outcome == Outcome::Answered, "ping {to}: {outcome:?}");
        }
    }
    let mapped = Connect {
        mapped: true,
        ..Connect::to(W1.at(port::ECHO))
    };
    ensure!(host.connect_with(mapped)?.outcome == Outcome::Connected);
    Ok(())
}

#[test]
fn the_neighbour_reaches_loopback_when_route_localnet_is_set() -> Result<()> {
    let lab = Lab::builder().apiserver().build()?;
    lab.expose_loopback()?;
    // A real connection, in both directions, over the wire.
    let at = LOOPBACK.at(port::INSECURE);
    expect_page(&lab.neighbour(), &format!("http://{at}/"), "apiserver")
}

#[test]
fn a_neighbours_frame_to_loopback_arrives() -> Result<()> {
    let lab = Lab::builder().build()?;
    let addresses = both(&LOOPBACK, 5555).to_vec();
    let server = lab.apiserver().serve(Serve {
        udp: addresses,
        ..Serve::default()
    })?;
    let mut packet = Forged {
        source: OUT.at(4444),
        destination: LOOPBACK.at(5555),
        content: Content::udp("before"),
    };
    lab.neighbour().forge_to(CP1.mac, &packet)?;
    lab.expose_loopback()?;
    packet.content = Content::udp("after");
    lab.neighbour().forge_to(CP1.mac, &packet)?;
    ensure!(server.hears("after", SOON), "{:?}", server.heard());
    ensure!(server.heard().len() == 1, "route_localnet was set before");
    // IPv6 has no such setting: the kernel never takes ::1 from the wire.
    let (source, destination) = (OUT.at6(4444), LOOPBACK.at6(5555));
    let content = Content::udp("never");
    lab.neighbour().forge_to(
        CP1.mac,
        &Forged {
            source,
            destination,
            content,
        },
    )?;
    ensure!(
        !server.hears("never", SOON),
        "the kernel took ::1 from the wire"
    );
    Ok(())
}

#[test]
fn forged_packets_reach_udp_listeners() -> Result<()> {
    let lab = Lab::builder().bystanders().build()?;
    let victims = [("echo-cp1", CP1), ("echo-w1", W1)];
    for (text, workload) in [("a", lab.pod("pod-a")), ("b", lab.pod("pod-b"))] {
        for (name, victim) in &victims {
            // The control plane's own address, and one of a host that is not in the cluster.
            for source in [CP1, OUT] {
                let pairs = both(&source, 4444)
                    .into_iter()
                    .zip(both(victim, port::ECHO));
                for (source, destination) in pairs {
                    let text = format!("{text} {source}");
                    let content = Content::udp(&text);
                    let report = workload.forge(&Forged {
                        source,
                        destination,
                        content,
                    })?;
                    ensure!(report.outcome == Outcome::Sent, "{report:?}");
                    let heard = lab.bystander(name).hears(&text, SOON);
                    ensure!(
                        heard,
                        "{name} did not hear {text} from {}",
                        workload.party().name
                    );
                }
            }
        }
    }
    Ok(())
}

#[test]
fn forged_segments_are_counted_and_seen() -> Result<()> {
    let lab = Lab::builder().bystanders().build()?;
    let pod = lab.pod("pod-b");
    for (source, destination) in both(&W1, 4444).into_iter().zip(both(&CP1, port::ECHO)) {
        let host = lab.login("cp1");
        let arrivals = Arrivals::count(&host, source.ip(), destination)?;
        let watch = Sniff {
            port: Some(4444),
            ..Sniff::default()
        };
        let sniffer = host.sniff(Sniff {
            interface: "eth0".to_owned(),
            ..watch
        })?;
        pod.forge(&Forged {
            source,
            destination,
            content: Content::SYN,
        })?;
        let answer = sniffer.wait_for(|frame| frame.outgoing && frame.flags == "SA", SOON);
        ensure!(
            answer.is_some(),
            "no answer to {source}: {:?}",
            sniffer.frames()
        );
        ensure!(
            arrivals.so_far()? >= 1,
            "the SYN from {source} was not counted"
        );
    }
    Ok(())
}

#[test]
fn raw_sockets_and_loopback_frames_arrive() -> Result<()> {
    let lab = Lab::builder().bystanders().build()?;
    let host = lab.login("cp1");
    for (source, destination) in both(&CP1, 4445).into_iter().zip(both(&W1, port::ECHO)) {
        let text = format!("raw {source}");
        let packet = Forged {
            source,
            destination,
            content: Content::udp(&text),
        };
        ensure!(host.raw(&packet)?.outcome == Outcome::Sent);
        ensure!(
            lab.bystander("echo-w1").hears(&text, SOON),
            "{text} did not arrive"
        );
    }
    // A frame put on lo by hand has no route, so the kernel treats 127.0.0.1 as a martian unless
    // route_localnet is set.
    lab.expose_loopback()?;
    let server = host.serve(Serve {
        udp: both(&LOOPBACK, 5555).to_vec(),
        ..Serve::default()
    })?;
    for (source, destination) in both(&LOOPBACK, 4446).into_iter().zip(both(&LOOPBACK, 5555)) {
        let text = format!("lo {source}");
        let packet = Forged {
            source,
            destination,
            content: Content::udp(&text),
        };
        let report = lab.hostnet("cp1").forge(&packet)?;
        ensure!(report.outcome == Outcome::Sent, "{report:?}");
        ensure!(server.hears(&text, SOON), "{text} did not arrive");
    }
    Ok(())
}

#[test]
fn a_held_connection_ends_when_its_server_does() -> Result<()> {
    let lab = Lab::builder().apiserver().build()?;
    let server = lab.etcd().serve(Serve {
        tcp: both(&CP1, port::ETCD_CLIENT).to_vec(),
        ..Serve::default()
    })?;
    let held = lab.pod("pod-b").hold(Hold::to(CP1.at(port::ETCD_CLIENT)))?;
    let http = lab
        .scheduler()
        .hold(Hold::http(LOOPBACK.at(port::INSECURE)))?;
    ensure!(held.is_alive() && http.is_alive());
    drop(server);
    let end = held.wait_for_end(Duration::from_secs(3))?;
    ensure!(
        matches!(end.outcome, Outcome::Closed | Outcome::Reset),
        "{end:?}"
    );
    ensure!(http.is_alive());
    Ok(())
}

#[test]
fn a_masqueraded_pod_has_its_nodes_address() -> Result<()> {
    let lab = Lab::builder().bystanders().build()?;
    lab.masquerade_pods()?;
    for (to, node) in both(&CP1, port::ECHO).into_iter().zip(both(&W1, 0)) {
        lab.pod("pod-b").ask(to, "masked")?;
        let heard = lab
            .bystander("echo-cp1")
            .wait_for(
                |heard| heard.at == to && heard.data.as_deref() == Some("masked"),
                SOON,
            )
            .context("nothing arrived")?;
        ensure!(heard.from.ip() == node.ip(), "{heard:?}");
    }
    Ok(())
}

#[test]
fn processes_are_in_their_cgroup_and_namespace() -> Result<()> {
    let lab = Lab::builder().build()?;
    for (workload, cgroup) in [
        (lab.hostnet("cp1"), "cp1/kubepods.slice/hostnet"),
        (lab.pod("pod-b").clone(), "w1/kubepods.slice/pod-b"),
    ] {
        let own = workload
            .run("cat", ["/proc/self/cgroup"])?
            .checked()?
            .stdout;
        let wanted = format!("0::/{}/{cgroup}", lab.id().lab_name());
        ensure!(
            own.lines().any(|line| line == wanted),
            "{own} does not hold {wanted}"
        );
    }
    // A host sees its own interfaces and no other host's pinned programs.
    let workload = lab.login("cp1");
    let listing = workload
        .run("ls", ["/sys/class/net", "/sys/fs/bpf", "/run"])?
        .checked()?
        .stdout;
    // The kernel itself puts iterators with this suffix into every bpffs.
    let own: Vec<_> = listing
        .split_whitespace()
        .filter(|word| !word.ends_with(".debug"))
        .collect();
    let wanted = "/run: /sys/class/net: cali-pod-a eth0 lo nodelocaldns /sys/fs/bpf:";
    ensure!(own.join(" ") == wanted, "{listing}");
    // And what one process leaves there, the next one finds.
    workload
        .run("mkdir", ["/sys/fs/bpf/enforcer", "/run/enforcer"])?
        .checked()?;
    lab.hostnet("cp1")
        .run("ls", ["/sys/fs/bpf/enforcer", "/run/enforcer"])?
        .checked()?;
    let elsewhere = lab.login("w1").run("ls", ["/run/enforcer"])?;
    ensure!(!elsewhere.ok(), "w1 sees what cp1 has in /run");
    Ok(())
}

#[test]
fn labs_live_side_by_side_and_leave_nothing() -> Result<()> {
    let (one, two) = (
        Lab::builder().etcd().build()?,
        Lab::builder().etcd().build()?,
    );
    let client = one.certs().apiserver_etcd_client();
    let endpoint = CP1.at(port::ETCD_CLIENT);
    one.apiserver()
        .etcdctl(endpoint, Some(client), ["put", "whose", "one"])?
        .checked()?;
    let other = two.certs().apiserver_etcd_client();
    let got = two
        .apiserver()
        .etcdctl(endpoint, Some(other), ["get", "whose"])?
        .checked()?;
    ensure!(got.stdout.is_empty(), "the labs share an etcd");
    let id = *one.id();
    ensure!(!traces(&id)?.is_empty());
    let orphan = one.login("w1").command("sleep")?.arg("1000").spawn()?;
    one.close()?;
    let left = traces(&id)?;
    ensure!(left.is_empty(), "{left:?} is left");
    ensure!(
        !orphan.finish(Duration::ZERO)?.ok(),
        "a process outlived its lab"
    );
    ensure!(
        two.apiserver()
            .etcdctl(endpoint, Some(other), ["get", "x"])?
            .ok()
    );
    Ok(())
}

#[test]
fn a_dead_owners_lab_is_swept_and_a_living_ones_is_not() -> Result<()> {
    let living = Lab::builder().build()?;
    let mut owner = Command::new(tools::probe()?.path)
        .arg("keep-lab")
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    let stdout = owner.stdout.take().context("no pipe")?;
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line)?;
    let id: LabId = line.trim().parse()?;
    ensure!(traces(&id)?.len() >= 7, "{:?}", traces(&id)?);
    sweep()?;
    ensure!(traces(&id)?.len() >= 7, "a living owner's lab was swept");
    owner.kill()?;
    // Not waited for yet: a zombie counts as dead. The kill itself takes a moment, though.
    let deadline = Instant::now() + Duration::from_secs(5);
    while id.owner_lives() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    sweep()?;
    let left = traces(&id)?;
    ensure!(left.is_empty(), "{left:?} is left");
    owner.wait()?;
    ensure!(living.login("cp1").run("true", [""; 0])?.ok());
    ensure!(
        traces(living.id())?.len() >= 7,
        "a living owner's lab was swept"
    );
    Ok(())
}

#[test]
fn nobody_but_root_builds_a_lab() -> Result<()> {
    let lab = Lab::builder().build()?;
    let program = lab.directory().join("lab-probe");
    let ran = lab.login("out").as_user(65534).run(program, ["keep-lab"])?;
    ensure!(!ran.ok() && ran.stdout.contains("run it as root"), "{ran}");
    Ok(())
}

#[test]
fn a_person_gets_in_with_the_shell_line() -> Result<()> {
    let lab = Lab::builder().build()?;
    for (workload, wanted) in [
        (lab.hostnet("w1"), "w1/kubepods.slice/hostnet"),
        (lab.pod("pod-a").clone(), "cp1/kubepods.slice/pod-a"),
    ] {
        let script = format!(
            "echo 'cat /proc/self/cgroup; ls /run' | {}",
            workload.shell_line()
        );
        let output = Command::new("sh").args(["-c", &script]).output()?;
        let printed = String::from_utf8(output.stdout)?;
        ensure!(printed.contains(wanted), "{script} says {printed:?}");
        let complaint = String::from_utf8(output.stderr)?;
        ensure!(output.status.success(), "{script}: {complaint}");
    }
    Ok(())
}

#[test]
fn the_inventory_names_this_lab() -> Result<()> {
    let lab = Lab::builder().build()?;
    let text = lab.inventory_yaml();
    for part in [
        "kind: Inventory".to_owned(),
        format!("cgroupRoot: \"/{}/cp1\"", lab.id().lab_name()),
        "addresses: [\"10.77.0.21\", \"fd77::21\"]".to_owned(),
        "\"apiserver:secure\": [\"10.96.0.1:443\", \"[fd96::1]:443\"]".to_owned(),
        "-podapiserver.slice".to_owned(),
    ] {
        ensure!(text.contains(&part), "{part} is not in\n{text}");
    }
    println!("{text}");
    Ok(())
}

#[test]
fn path_mtu_discovery_works_towards_a_pod() -> Result<()> {
    let lab = Lab::builder().build()?;
    let pod = lab.pod("pod-b");
    let _server = pod.serve(Serve {
        tcp: pod.party().both(port::ECHO).to_vec(),
        ..Serve::default()
    })?;
    lab.shrink(&POD_B, 1300)?;
    let (host, much) = (lab.login("cp1"), 300_000);
    let home = lab.host("w1").namespace().name().to_owned();
    net::nft(
        &home,
        "table inet silent { chain out { type filter hook output priority 0;
           icmp type destination-unreachable drop
           icmpv6 type packet-too-big drop
         }\n}\n",
    )?;
    for to in both(pod.party(), port::ECHO) {
        let stuck = host.transfer(to, much)?;
        ensure!(stuck.outcome == Outcome::Timeout, "{to}: {stuck:?}");
    }
    net::nft(&home, "delete table inet silent\n")?;
    for to in both(pod.party(), port::ECHO) {
        let all = host.transfer(to, much)?;
        ensure!(all.outcome == Outcome::Answered, "{to}: {all:?}");
        ensure!(all.count == much as u64, "{to}: {all:?}");
        let route = host.run("ip", ["route", "get", &to.ip().to_string()])?;
        ensure!(route.checked()?.stdout.contains("mtu 1300"), "{to}");
    }
    lab.close()
}
