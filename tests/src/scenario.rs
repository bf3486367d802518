//! The table of connections that the demo shows and the tests check: who attempts what, and the
//! path or the reason that a policy has to name.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;

use crate::plan::{CP1, LOOPBACK, NODE_LOCAL_DNS, Party, SERVICE, W1, port};
use crate::product::Event;
use crate::{Lab, Workload};

/// What is attempted.
#[derive(Debug, Clone)]
pub enum Try {
    /// A TCP connection.
    Connect(SocketAddr),
    /// A page over TLS, with the apiserver's own certificate for etcd.
    Etcd(SocketAddr),
    /// A page, over TLS or not.
    Page(&'static str, SocketAddr),
    /// Binding a TCP address.
    Bind(SocketAddr),
}

/// The policy's expected verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Allowed by this path.
    Path(&'static str),
    /// No declared endpoint: allowed as other traffic.
    Other,
    /// Denied for this reason.
    Denied(&'static str),
}

/// One connection.
#[derive(Debug, Clone)]
pub struct Row {
    /// A description of the sender.
    pub who: &'static str,
    /// A description of the target.
    pub what: &'static str,
    /// The sender.
    pub workload: Workload,
    /// The attempt itself.
    pub attempt: Try,
    /// The expected verdict.
    pub expected: Expected,
    /// The node whose agent gives it.
    pub judge: &'static str,
    /// The sender as an argument of `explain --from`.
    pub from: String,
}

/// How an attempt ended.
#[derive(Debug, Clone)]
pub struct Tried {
    /// Whether it got through.
    pub worked: bool,
    /// A short description.
    pub how: String,
}

impl Try {
    /// The address that it targets.
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Connect(at) | Self::Etcd(at) | Self::Page(_, at) | Self::Bind(at) => *at,
        }
    }
}

impl Row {
    /// The row's description.
    pub fn name(&self) -> String {
        format!("{} to {} ({})", self.who, self.what, self.attempt.address())
    }

    /// Whether a denial belongs to this row: the same destination and the same sender.
    pub fn is_about(&self, event: &Event) -> bool {
        let at = self.attempt.address();
        if event.destination.as_deref() != Some(&at.ip().to_string())
            || event.port != Some(at.port())
        {
            return false;
        }
        let cgroup = self.from.strip_prefix("cgroup:");
        match cgroup {
            Some(cgroup) => event.subject.kind == "cgroup" && event.subject.name.contains(cgroup),
            None => {
                self.workload.party().like(at.ip()).to_string()
                    == event.source.clone().unwrap_or_default()
            }
        }
    }

    /// Makes the attempt.
    pub fn run(&self, lab: &Lab) -> Result<Tried> {
        let outcome = match &self.attempt {
            Try::Connect(at) => self.workload.connect(*at)?,
            Try::Bind(at) => self.workload.bind(*at)?,
            Try::Etcd(at) => {
                let client = lab.certs().apiserver_etcd_client();
                let page = self
                    .workload
                    .curl(&format!("https://{at}/health"), Some(client))?;
                return Ok(Tried::page(page.ok(), page.code()));
            }
            Try::Page(scheme, at) => {
                let page = self.workload.curl(&format!("{scheme}://{at}/"), None)?;
                return Ok(Tried::page(page.ok(), page.code()));
            }
        };
        Ok(Tried {
            worked: outcome.worked(),
            how: outcome.to_string(),
        })
    }
}

impl Tried {
    /// curl's own exit codes: 7 is a connection that was refused or forbidden, 28 a time-out.
    fn page(worked: bool, code: Option<i32>) -> Self {
        let how = match code {
            Some(0) => "answered".to_owned(),
            Some(7) => "refused".to_owned(),
            Some(28) => "timeout".to_owned(),
            code => format!("curl {code:?}"),
        };
        Self { worked, how }
    }
}

/// One family of a party's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// A party's address and a port.
    pub const fn of(self, party: &Party, port: u16) -> SocketAddr {
        match self {
            Self::V4 => party.at(port),
            Self::V6 => party.at6(port),
        }
    }

    fn wildcard(self, port: u16) -> SocketAddr {
        match self {
            Self::V4 => SocketAddr::new(IpAddr::from([0; 4]), port),
            Self::V6 => SocketAddr::new(IpAddr::from([0; 16]), port),
        }
    }
}

/// Senders of the lab, for both the lab and `explain`.
struct Senders<'a> {
    lab: &'a Lab,
    family: Family,
}

impl Senders<'_> {
    fn row(&self, who: &'static str, what: &'static str, attempt: Try, expected: Expected) -> Row {
        let lab = self.lab;
        let process = |workload: Workload, node: &'static str, cgroup: &str| {
            (workload, node, format!("cgroup:/{cgroup}"))
        };
        let remote = |workload: Workload, party: &Party| {
            let from = format!("address:{}", self.family.of(party, 0).ip());
            (workload, "cp1", from)
        };
        let slice = |name: &str| crate::cgroup::static_pod_slice(name);
        let pod = |name: &str, node| {
            let workload = lab.pod(name).clone();
            let from = format!("pod:{}", self.family.of(workload.party(), 0).ip());
            (workload, node, from)
        };
        let (workload, judge, from) = match who {
            "pod on cp1" => pod("pod-a", "cp1"),
            "pod on w1" => pod("pod-b", "w1"),
            "hostNetwork pod on cp1" => {
                process(lab.hostnet("cp1"), "cp1", "kubepods.slice/hostnet")
            }
            "hostNetwork pod on w1" => process(lab.hostnet("w1"), "w1", "kubepods.slice/hostnet"),
            "daemon on w1" => process(lab.login("w1"), "w1", "system.slice/sshd.service"),
            "apiserver" => process(lab.apiserver(), "cp1", &slice("apiserver")),
            "controller-manager" => process(
                lab.controller_manager(),
                "cp1",
                &slice("controller-manager"),
            ),
            "scheduler" => process(lab.scheduler(), "cp1", &slice("scheduler")),
            "kubelet on w1" => process(lab.kubelet("w1"), "w1", "system.slice/kubelet.service"),
            "etcd" => process(lab.etcd(), "cp1", "system.slice/etcd.service"),
            _ => remote(lab.neighbour(), &crate::plan::OUT),
        };
        Row {
            who,
            what,
            workload,
            attempt,
            expected,
            judge,
            from,
        }
    }
}

/// All rows for one family. The lab is a full one with [`Lab::expose_insecure_port`] and
/// [`Lab::expose_loopback`].
pub fn rows(lab: &Lab, family: Family) -> Vec<Row> {
    use Expected::{Denied, Other, Path};
    let senders = Senders { lab, family };
    let row = |who, what, attempt, expected| senders.row(who, what, attempt, expected);
    let at = |party: &Party, port| family.of(party, port);
    let insecure = || Try::Page("http", at(&CP1, port::INSECURE));
    let insecure_lo = || Try::Page("http", at(&LOOPBACK, port::INSECURE));
    let etcd = || Try::Etcd(at(&CP1, port::ETCD_CLIENT));
    let peer = || Try::Connect(at(&CP1, port::ETCD_PEER));
    let secure = || Try::Page("https", at(&CP1, port::APISERVER));
    let service = || Try::Page("https", at(&SERVICE, port::SERVICE));
    let kubelet = |party: &Party| Try::Page("https", at(party, port::KUBELET));
    let mut rows = vec![
        row(
            "neighbour",
            "insecure port, node address",
            insecure(),
            Denied("LoopbackOnly"),
        ),
        row(
            "pod on cp1",
            "insecure port, node address",
            insecure(),
            Denied("LoopbackOnly"),
        ),
        row(
            "daemon on w1",
            "insecure port, node address",
            insecure(),
            Denied("LoopbackOnly"),
        ),
        row(
            "hostNetwork pod on cp1",
            "insecure port, node address",
            insecure(),
            Denied("LoopbackOnly"),
        ),
        row(
            "hostNetwork pod on cp1",
            "insecure port, loopback",
            insecure_lo(),
            Denied("WrongProcess"),
        ),
        row(
            "controller-manager",
            "insecure port, loopback",
            insecure_lo(),
            Path("insecure-port"),
        ),
        row(
            "scheduler",
            "insecure port, loopback",
            insecure_lo(),
            Path("insecure-port"),
        ),
        row(
            "scheduler",
            "binds 10259 on every address",
            Try::Bind(family.wildcard(10259)),
            Denied("BindNotLoopback"),
        ),
        row(
            "pod on cp1",
            "etcd, stolen certificate",
            etcd(),
            Denied("NoPath"),
        ),
        row(
            "pod on w1",
            "etcd, stolen certificate",
            etcd(),
            Denied("NoPath"),
        ),
        row(
            "hostNetwork pod on cp1",
            "etcd, stolen certificate",
            etcd(),
            Denied("WrongProcess"),
        ),
        row(
            "hostNetwork pod on w1",
            "etcd, stolen certificate",
            etcd(),
            Denied("NoPath"),
        ),
        row(
            "daemon on w1",
            "etcd, stolen certificate",
            etcd(),
            Denied("NoPath"),
        ),
        row(
            "neighbour",
            "etcd, stolen certificate",
            etcd(),
            Denied("NoPath"),
        ),
        row("pod on cp1", "etcd peer port", peer(), Denied("NoPath")),
        row(
            "hostNetwork pod on cp1",
            "etcd peer port",
            peer(),
            Denied("WrongProcess"),
        ),
        row("daemon on w1", "etcd peer port", peer(), Denied("NoPath")),
        row(
            "apiserver",
            "etcd, node address",
            etcd(),
            Path("apiserver-to-etcd"),
        ),
        row("etcd", "etcd peer port", peer(), Path("etcd-to-etcd")),
        row(
            "pod on cp1",
            "apiserver",
            secure(),
            Path("pod-to-apiserver"),
        ),
        row(
            "pod on w1",
            "apiserver, service address",
            service(),
            Path("pod-to-apiserver"),
        ),
        row(
            "hostNetwork pod on w1",
            "apiserver",
            secure(),
            Path("pod-to-apiserver"),
        ),
        row(
            "kubelet on w1",
            "apiserver",
            secure(),
            Path("kubelet-to-apiserver"),
        ),
        row(
            "pod on cp1",
            "kubelet of cp1",
            kubelet(&CP1),
            Denied("NoPath"),
        ),
        row("pod on w1", "kubelet of w1", kubelet(&W1), Denied("NoPath")),
        row(
            "apiserver",
            "kubelet of w1",
            kubelet(&W1),
            Path("apiserver-to-kubelet"),
        ),
        row(
            "apiserver",
            "kubelet of cp1",
            kubelet(&CP1),
            Path("apiserver-to-kubelet"),
        ),
        row(
            "daemon on w1",
            "8080 on a worker",
            Try::Connect(at(&W1, port::INSECURE)),
            Other,
        ),
    ];
    if family == Family::V4 {
        // IPv6 has no route_localnet: the kernel itself never takes ::1 from the wire.
        rows.push(row(
            "neighbour",
            "127.0.0.1:8080, route_localnet",
            insecure_lo(),
            Denied("LoopbackOffLo"),
        ));
        let lo = Try::Etcd(LOOPBACK.at(port::ETCD_CLIENT));
        rows.push(row(
            "apiserver",
            "etcd, loopback",
            lo,
            Path("apiserver-to-etcd"),
        ));
        let dns = Try::Connect(SocketAddr::new(NODE_LOCAL_DNS.into(), port::INSECURE));
        rows.push(row(
            "pod on cp1",
            "node-local DNS 169.254.20.10:8080",
            dns,
            Other,
        ));
    }
    rows
}
