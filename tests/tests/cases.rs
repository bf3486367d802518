//! Runs every `policies/NAME.cases.yaml` through the loaded kernel programs: packets by
//! `BPF_PROG_TEST_RUN`, binds by binding. The library's tests run the same files through the
//! decision in userspace.
//!
//! Then random packets are compared with the decision in userspace: the kernel programs must decide
//! the same, and count it under the same reason or path.
//!
//! Takes no arguments. It creates a network namespace and a cgroup of its own and moves into them.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use enforcer::kernel::{Kernel, TcMode, apply::NewPolicy, cgroups, trial::Trial};
use enforcer_common::judge::judge;
use enforcer_common::packet::Packet;
use enforcer_common::parse::{Start, parse};
use enforcer_common::tables::Role;
use enforcer_common::vantage::{Vantage, View};
use enforcer_common::verdict::{Direction, Reason, Verdict, counter};
use enforcer_common::{decide, tls};
use enforcer_policy::cases::{Attempt, Case, Expect, Sender, Target, What};
use enforcer_policy::compile::{Compiled, PathNumbers, Simulator, compile};
use enforcer_policy::model::{Mode, Policy};
use enforcer_tests::cgroup::OwnTree;
use enforcer_tests::packet::{Content, Forged};
use enforcer_tests::random::{self, Random};
use enforcer_tests::sandbox::{ip, link};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};

fn main() -> ExitCode {
    match run() {
        Ok((passed, failed)) => {
            let verdict = if failed == 0 { "ok" } else { "FAILED" };
            println!(
                "\ntest result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out"
            );
            if failed == 0 {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(usize, usize)> {
    // For the table of kernels.
    let kernel = Kernel::load(None, false)?;
    for feature in kernel.features() {
        println!("feature: {feature}");
    }
    for (program, instructions) in kernel.verified_instructions() {
        println!("verifier: {program} {instructions}");
    }
    drop(kernel);
    let (mut passed, mut failed) = (0, 0);
    for policy_file in policies()? {
        let (drop, file) = policy_file;
        let policy = shipped(&file, drop)?;
        let extension = if drop {
            "drop.cases.yaml"
        } else {
            "cases.yaml"
        };
        for cases in enforcer::files::load_cases(&[file.with_extension(extension)])? {
            let mut bench = Bench::new(&policy, &cases.node.value)?;
            for case in &cases.cases {
                match bench.run(case) {
                    Ok(()) => passed += 1,
                    Err(error) => {
                        failed += 1;
                        println!(
                            "test {}: {} ... FAILED\n  {error:#}",
                            cases.name, case.name.value
                        );
                    }
                }
            }
        }
    }
    ensure!(passed + failed > 0, "there are no cases");
    for drop in [false, true] {
        match random_packets_agree(drop) {
            Ok(()) => passed += 1,
            Err(error) => {
                failed += 1;
                println!("test random packets, drop: {drop} ... FAILED\n  {error:#}");
            }
        }
    }
    Ok((passed, failed))
}

/// How many random packets to try, unless the environment sets another number (an emulated machine
/// is slow).
const RANDOM_PACKETS: usize = 6000;

/// A pod that is also another component, and is behind the interface; and one that is elsewhere.
const NAMED: [&str; 2] = ["10.244.0.9", "10.244.0.10"];

fn random_packets_agree(drop: bool) -> Result<()> {
    let file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/control-plane-stacked-etcd.yaml");
    let mut texts = enforcer::files::read_sources(&[file])?;
    let components = format!(
        "\n  components:\n    dns: {{ addresses: [{}] }}\n    monitoring: {{ addresses: [{}] }}\n",
        NAMED[0], NAMED[1]
    );
    let text = &mut texts[0].text;
    *text = text
        .replacen("\n  components:\n", &components, 1)
        .replace("options: [", "options: [monitoring, ");
    if drop {
        *text = text.replace("otherTraffic: Allow", "otherTraffic: Drop");
    }
    let policy = enforcer_policy::from_texts(&texts)?;
    let mut bench = Bench::new(&policy, "cp1")?;
    ip(&format!("route add {}/32 dev cali0", NAMED[0]))?;
    let lives_there: IpAddr = NAMED[0].parse()?;
    let compiled = bench.compiled.clone();
    let tables = Simulator::new(&compiled);
    let mut random = Random::new(random::seed()?);
    let mut outcomes = std::collections::BTreeMap::new();
    let packets = match std::env::var("ENFORCER_CASES_PACKETS") {
        Ok(number) => number
            .parse()
            .context("ENFORCER_CASES_PACKETS is no number")?,
        Err(_) => RANDOM_PACKETS,
    };
    for round in 0..packets {
        let frame = random_frame(&mut random);
        let (role, interface) = if random.below(2) == 0 {
            (Role::Pod, bench.pod)
        } else {
            (Role::Uplink, bench.uplink)
        };
        let verdict = match parse(&frame[..], Start::Ethernet) {
            Ok(packet) => {
                let vantage = Vantage::new(View::Arrived { role, interface });
                let judged = judge(&tables, vantage, &packet, || {
                    IpAddr::from(packet.src) == lives_there
                });
                with_tls_lock(&tables, judged.verdict, &frame, &packet)
            }
            Err(reason) => decide::unreadable(&tables, reason),
        };
        let before = bench.kernel.counters(compiled.paths.len())?;
        let passed = bench.kernel.try_frame(Trial::Arrives, &frame, interface)?;
        let after = bench.kernel.counters(compiled.paths.len())?;
        let index = counter::of(verdict);
        ensure!(
            passed == verdict.passes() && after.get(index) == before.get(index) + 1,
            "packet {round}: userspace says {verdict:?}, the kernel passes: {passed}; {frame:02x?}"
        );
        *outcomes.entry(index).or_insert(0) += 1;
    }
    // A test that sees only one outcome proves nothing.
    ensure!(outcomes.len() >= 12, "only {outcomes:?}");
    println!(
        "{packets} random packets, no difference, {} outcomes",
        outcomes.len()
    );
    Ok(())
}

/// The verdict after the TLS check of a path that requires TLS: there is no open stream here, so
/// only data with a SYN is checked.
fn with_tls_lock(
    tables: &Simulator<'_>,
    allowed: Verdict,
    frame: &[u8],
    packet: &Packet,
) -> Verdict {
    let segment = &packet.segment;
    let looked_at =
        allowed.is_tls_path() && allowed.direction() == Direction::Forward && segment.is_syn();
    if looked_at && tls::is_multipath(frame, packet) {
        decide::not_tls(tables, allowed, Reason::MultipathTls)
    } else if looked_at && !tls::may_follow(frame, segment, segment.start()) {
        decide::not_tls(tables, allowed, Reason::NotTls)
    } else {
        allowed
    }
}

/// Nothing, random bytes, or the beginning of a ClientHello.
fn random_payload(random: &mut Random) -> Vec<u8> {
    let hello = [22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3, 0, 0, 0, 0, 0];
    match random.below(3) {
        0 => vec![0; random.below(40)],
        1 => hello[..random.below(hello.len())].to_vec(),
        _ => Vec::new(),
    }
}

/// A frame with addresses and ports of the policy, more or less malformed.
fn random_frame(random: &mut Random) -> Vec<u8> {
    const V4: [&str; 14] = [
        NAMED[0],
        NAMED[1],
        "10.96.0.10",
        "10.0.0.5",
        "169.254.169.254",
        "10.0.0.11",
        "10.0.0.21",
        "10.244.1.5",
        "10.96.0.1",
        "192.0.2.7",
        "203.0.113.9",
        "127.0.0.1",
        "169.254.20.10",
        "10.0.0.99",
    ];
    const V6: [&str; 7] = [
        "fd00::11",
        "fd00::21",
        "fd01::5",
        "fd10::1",
        "2001:db8::9",
        "::1",
        "fe80::1",
    ];
    const PORTS: [u16; 14] = [
        2379, 2380, 2381, 6443, 443, 8080, 10250, 10255, 40_000, 53, 4789, 123, 67, 68,
    ];
    let pool: &[&str] = if random.below(2) == 0 { &V4 } else { &V6 };
    let mut address = || {
        pool[random.below(pool.len())]
            .parse()
            .unwrap_or(IpAddr::from([0; 4]))
    };
    let (source, destination) = (address(), address());
    let content = match random.below(8) {
        0..=3 => Content::Tcp {
            flags: random.below(256) as u8,
            payload: random_payload(random),
        },
        4 | 5 => Content::udp("random"),
        6 => Content::Message(random.below(256) as u8),
        _ => Content::Protocol(112),
    };
    let source = SocketAddr::new(source, *random.pick(&PORTS));
    let destination = SocketAddr::new(destination, *random.pick(&PORTS));
    let content_is_other = matches!(content, Content::Protocol(_));
    let packet = Forged {
        source,
        destination,
        content,
    };
    let mut frame = packet.frame([2; 6], [4; 6]).unwrap_or_else(|_| vec![0; 60]);
    if content_is_other {
        // Invalid extension headers and fragments, tunnels, protocols without ports.
        let at = if source.is_ipv4() { 14 + 9 } else { 14 + 6 };
        frame[at] = *random.pick(&[0, 4, 43, 44, 47, 50, 51, 60, 112, 132, 135]);
    }
    // The kernel runs no program on shorter frames.
    let shortest = if source.is_ipv4() { 34 } else { 54 };
    if random.below(4) == 0 {
        frame.truncate(shortest + random.below(frame.len() - shortest + 1));
    }
    for _ in 0..*random.pick(&[0, 0, 0, 1, 2]) {
        // The link header stays: another one would change the minimum length.
        let at = 14 + random.below(frame.len() - 14);
        frame[at] = random.below(256) as u8;
    }
    frame
}

/// A shipped policy, unchanged or with all other traffic dropped.
fn shipped(file: &Path, drop: bool) -> Result<Policy> {
    let mut texts = enforcer::files::read_sources(&[file.to_owned()])?;
    if drop {
        for source in &mut texts {
            source.text = source
                .text
                .replace("otherTraffic: Allow", "otherTraffic: Drop");
        }
    }
    Ok(enforcer_policy::from_texts(&texts)?)
}

/// The shipped policies, and for each whether all other traffic is dropped.
fn policies() -> Result<Vec<(bool, PathBuf)>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
    let mut found: Vec<PathBuf> = fs::read_dir(&directory)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.with_extension("cases.yaml").is_file())
        .collect();
    found.sort();
    Ok([false, true]
        .into_iter()
        .flat_map(|drop| found.iter().map(move |file| (drop, file.clone())))
        .collect())
}

/// A node that exists only for its programs.
struct Bench {
    kernel: Kernel,
    compiled: Compiled,
    root: OwnTree,
    uplink: u32,
    pod: u32,
    addresses: Vec<IpAddr>,
}

impl Bench {
    fn new(policy: &Policy, node: &str) -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET).context("a network namespace needs root")?;
        let addresses = policy.node(node).context("no such node")?.addresses.clone();
        for line in [
            "link set lo up",
            "link add eth0 type veth peer name peer0",
            "link add cali0 type veth peer name peer1",
            "link set peer1 up",
            "link set cali0 up",
        ] {
            ip(line)?;
        }
        // A node forwards for its pods.
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("failed to forward")?;
        for address in &addresses {
            let prefix = if address.is_ipv4() { 32 } else { 128 };
            ip(&format!("addr add {address}/{prefix} dev lo nodad"))
                .or_else(|_| ip(&format!("addr add {address}/{prefix} dev lo")))?;
        }
        let root = OwnTree::create("cases")?;
        let compiled = compile(
            policy,
            node,
            Some(Mode::Enforce),
            &mut PathNumbers::default(),
        )?;
        for rule in &compiled.cgroups {
            root.make(&rule.pattern.replace('*', "x"))?;
        }
        let known = cgroups::resolve(root.directory(), &compiled.cgroups);
        let ids: Vec<_> = known.iter().map(|known| (known.id, known.party)).collect();
        let mut kernel = Kernel::load(None, false)?;
        let new = NewPolicy {
            compiled: &compiled,
            numbers: &PathNumbers::default(),
            name: "cases",
            roles: &[],
        };
        kernel.apply(new, &ids, None)?;
        kernel.attach_cgroup(root.directory())?;
        let links = [
            (link("lo", libc::ARPHRD_LOOPBACK)?, Role::Loopback),
            (link("eth0", libc::ARPHRD_ETHER)?, Role::Uplink),
            (link("cali0", libc::ARPHRD_ETHER)?, Role::Pod),
        ];
        kernel.attach_interfaces(&links, TcMode::Auto)?;
        let (uplink, pod) = (links[1].0.index, links[2].0.index);
        Ok(Self {
            kernel,
            compiled,
            root,
            uplink,
            pod,
            addresses,
        })
    }

    fn run(&mut self, case: &Case) -> Result<()> {
        let paths = self.compiled.paths.len();
        let before = self.kernel.counters(paths)?;
        let passed = self.attempt(case)?;
        let after = self.kernel.counters(paths)?;
        let moved = |index: u32| after.get(index) > before.get(index);
        let (pass, index) = match &case.expect {
            Expect::Path(name) => {
                let number = self
                    .compiled
                    .paths
                    .iter()
                    .find(|(_, known)| **known == name.value);
                let (number, _) = number.context("the policy has no such path")?;
                (true, counter::of_path(*number, Direction::Forward))
            }
            Expect::OtherTraffic => (true, counter::OTHER),
            Expect::Denied { reason, .. } => {
                let found = Reason::ALL
                    .into_iter()
                    .find(|known| known.name() == reason.value);
                let found = found.context("no such reason")?;
                (false, counter::of_reason(found, false))
            }
        };
        // An allowed bind is not a packet, and is not counted.
        let counted = matches!((&case.attempt, pass), (Attempt::Bind(_), true)) || moved(index);
        let reasons: Vec<_> = Reason::ALL
            .into_iter()
            .filter(|reason| moved(counter::of_reason(*reason, false)))
            .collect();
        ensure!(
            passed == pass && counted,
            "expected {}, the kernel {} it; denials counted: {reasons:?}",
            case.expect,
            if passed { "passes" } else { "drops" }
        );
        Ok(())
    }

    fn attempt(&mut self, case: &Case) -> Result<bool> {
        match (&case.from, case.attempt) {
            (Sender::Pod(source), Attempt::Send(to)) => {
                let frame = frame(*source, to)?;
                Ok(self.kernel.try_frame(Trial::Arrives, &frame, self.pod)?)
            }
            (Sender::Remote(source), Attempt::Send(to)) => {
                let frame = frame(*source, to)?;
                Ok(self.kernel.try_frame(Trial::Arrives, &frame, self.uplink)?)
            }
            (Sender::Process { cgroup, address }, Attempt::Send(to)) => {
                self.root.enter(cgroup)?;
                let local = to.address.is_loopback() || self.addresses.contains(&to.address);
                let source = address.or_else(|| self.source_for(to.address));
                let frame = frame(source.context("no address of this family")?, to)?;
                let interface = if local {
                    if_nametoindex("lo")?
                } else {
                    self.uplink
                };
                Ok(self.kernel.try_frame(Trial::Sent, &frame, interface)?)
            }
            (Sender::Process { cgroup, .. }, Attempt::Bind(at)) => {
                self.root.enter(cgroup)?;
                bind(at)
            }
            (sender, Attempt::Bind(_)) => bail!("{sender} cannot bind"),
        }
    }

    fn source_for(&self, destination: IpAddr) -> Option<IpAddr> {
        if destination.is_loopback() {
            return Some(destination);
        }
        self.addresses
            .iter()
            .copied()
            .find(|own| own.is_ipv4() == destination.is_ipv4())
    }
}

fn bind(at: Target) -> Result<bool> {
    let result = match at.what {
        What::Tcp(port) => TcpListener::bind(SocketAddr::new(at.address, port)).map(drop),
        What::Udp(port) => UdpSocket::bind(SocketAddr::new(at.address, port)).map(drop),
        _ => bail!("only ports can be bound"),
    };
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(error).context("the bind fails for another reason"),
    }
}

fn frame(source: IpAddr, to: Target) -> Result<Vec<u8>> {
    let (port, content) = match to.what {
        What::Tcp(port) => (port, Content::SYN),
        What::Udp(port) => (port, Content::udp("case")),
        What::Icmp(kind) | What::Icmp6(kind) => (0, Content::Message(kind)),
        What::Protocol(number) => (0, Content::Protocol(number)),
        What::Arp => return arp(source, to.address),
    };
    let source = SocketAddr::new(source, 40_000);
    let destination = SocketAddr::new(to.address, port);
    Forged {
        source,
        destination,
        content,
    }
    .frame([2; 6], [4; 6])
}

fn arp(source: IpAddr, target: IpAddr) -> Result<Vec<u8>> {
    let (IpAddr::V4(source), IpAddr::V4(target)) = (source, target) else {
        bail!("ARP is for IPv4");
    };
    let head = [0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1];
    Ok([
        &[0xff; 6][..],
        &[2; 6],
        &head,
        &[2; 6],
        &source.octets(),
        &[0; 6],
        &target.octets(),
    ]
    .concat())
}
