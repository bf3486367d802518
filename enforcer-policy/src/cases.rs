//! A policy's own tests: `NAME.cases.yaml` beside a policy, kind `PathCases`. Each row is a connection, or a port to
//! bind, as one node sees it, and the verdict that the policy must give.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::error::{Location, PolicyErrors, Problem, Report, list, quote};
use crate::model::Policy;
use crate::read::limits::{LIMITS, Limits};
use crate::read::scope::{Scope, choice};
use crate::read::source::{
    AT_VALUES, CaseSource, Document, ExpectSource, PathCasesSpec, SenderSource, Spec,
};
use crate::read::{components, scalar, yaml};
use crate::span::{SourceText, Span, Spanned};

/// One document of kind `PathCases`.
#[derive(Debug, Clone)]
pub struct PathCases {
    /// `metadata.name`.
    pub name: String,
    /// Its file; every [`Span`] in here is a location in it.
    pub source: Arc<SourceText>,
    /// The node that judges.
    pub node: Spanned<String>,
    /// The cases, at least one, with unique names.
    pub cases: Vec<Case>,
}

/// One case.
#[derive(Debug, Clone)]
pub struct Case {
    /// Its name: what it is about.
    pub name: Spanned<String>,
    /// The sender.
    pub from: Sender,
    /// What the sender attempts.
    pub attempt: Attempt,
    /// The location of `to` or `bind`.
    pub attempt_span: Span,
    /// Whether the node has the address itself, if the case says so.
    pub at: Option<At>,
    /// The verdict.
    pub expect: Expect,
    /// Why the verdict must be this one.
    pub because: Option<String>,
}

/// The sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sender {
    /// A packet that enters by a pod's interface with this source address, forged or not.
    Pod(IpAddr),
    /// A process of the node, in the host's network namespace.
    Process {
        /// Its cgroup, absolute below the cgroup2 mount.
        cgroup: String,
        /// The source address that it uses; `None`: the one that routing selects.
        address: Option<IpAddr>,
    },
    /// A packet that arrives on an uplink with this source address.
    Remote(IpAddr),
}

/// What the sender attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// To open a connection, or to send the first packet.
    Send(Target),
    /// To bind a port.
    Bind(Target),
}

/// A destination: an address, and a port, message type or protocol there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The address.
    pub address: IpAddr,
    /// The port, message type or protocol.
    pub what: What,
}

/// Who has an address, if the policy does not say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// The node that judges: what its sockets receive at that address counts as the node's.
    ThisNode,
    /// Another host.
    Elsewhere,
}

/// A port, a message type or a protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A TCP port.
    Tcp(u16),
    /// A UDP port.
    Udp(u16),
    /// An ICMP message of this type; `echo` on an IPv4 address is 8.
    Icmp(u8),
    /// An ICMPv6 message of this type; `echo` on an IPv6 address is 128.
    Icmp6(u8),
    /// Another IP protocol.
    Protocol(u8),
    /// Address resolution.
    Arp,
}

/// The expected verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// Allowed by the path of this name.
    Path(Spanned<String>),
    /// Not a guarded endpoint, and `otherTraffic: Allow`.
    OtherTraffic,
    /// Denied.
    Denied {
        /// The reason by its name.
        reason: Spanned<String>,
        /// The endpoint at which it was denied: component and port.
        endpoint: Option<Spanned<(String, String)>>,
    },
}

/// Reads texts of cases.
pub fn from_texts(sources: &[SourceText]) -> Result<Vec<PathCases>, PolicyErrors> {
    from_texts_within(sources, &LIMITS)
}

/// The same, with other limits.
pub(crate) fn from_texts_within(
    sources: &[SourceText],
    limits: &Limits,
) -> Result<Vec<PathCases>, PolicyErrors> {
    let mut report = Report::new(sources);
    let mut found = Vec::new();
    for (file, source) in sources.iter().enumerate() {
        // Each document keeps the whole text, which is shown with a failing case.
        let text = Arc::new(source.clone());
        for mut document in yaml::documents(source, file, limits, &mut report) {
            yaml::check_object(&document, file, &mut report);
            limits.check(&mut document, file, &mut report);
            found.extend(read(&text, file, document, &mut report));
        }
    }
    if found.is_empty() && !sources.is_empty() && report.is_clean() {
        yaml::no_document(&mut report);
    }
    report.finish(Some(found))
}

impl PathCases {
    /// Checks the names in the cases against a policy, and the reasons against the known ones.
    pub fn check(&self, policy: &Policy, reasons: &[&str]) -> Result<(), PolicyErrors> {
        let sources = std::slice::from_ref(&*self.source);
        let mut report = Report::new(sources);
        let mut scope = Scope {
            file: 0,
            report: &mut report,
        };
        if policy.node(&self.node.value).is_none() {
            let nodes = policy.nodes.iter().map(|node| node.name.as_str());
            unknown(&mut scope, "no node is called", &self.node, nodes);
        }
        let names: HashSet<&str> = policy.paths.iter().map(|path| path.name.as_str()).collect();
        for case in &self.cases {
            match &case.expect {
                Expect::OtherTraffic => {}
                Expect::Path(path) => {
                    if !names.contains(path.value.as_str()) {
                        let paths = policy.paths.iter().map(|path| path.name.as_str());
                        unknown(&mut scope, "the policy has no path", path, paths);
                    }
                }
                Expect::Denied { reason, endpoint } => {
                    if !reasons.contains(&reason.value.as_str()) {
                        let reasons = reasons.iter().copied();
                        unknown(&mut scope, "no reason is called", reason, reasons);
                    }
                    if let Some(endpoint) = endpoint {
                        check_endpoint(&mut scope, endpoint, policy);
                    }
                }
            }
        }
        report.finish(Some(()))
    }
}

fn unknown<'a>(
    scope: &mut Scope<'_, '_>,
    message: &str,
    written: &Spanned<String>,
    known: impl Iterator<Item = &'a str>,
) {
    scope.error(written.span, || {
        let message = format!("{message} {}", quote(&written.value));
        Problem::unknown(message, &written.value, known)
    });
}

fn check_endpoint(
    scope: &mut Scope<'_, '_>,
    endpoint: &Spanned<(String, String)>,
    policy: &Policy,
) {
    let (component, port) = &endpoint.value;
    match policy.component(component) {
        None => {
            scope.error(endpoint.span, || {
                components::unknown(component, &policy.components)
            });
        }
        Some(known) if known.port(port).is_none() => {
            scope.error(endpoint.span, || components::unknown_port(port, known));
        }
        Some(_) => {}
    }
}

fn read(
    source: &Arc<SourceText>,
    file: usize,
    document: Document,
    report: &mut Report<'_>,
) -> Option<PathCases> {
    let start = document
        .kind
        .as_ref()
        .map_or(document.spec_span, |kind| kind.span);
    let spec: Spanned<PathCasesSpec> = match document.spec {
        Spec::PathCases(spec) => spec,
        Spec::Inventory(_) | Spec::PathPolicy(_) | Spec::Catalogue(_) => {
            report.error(Location { file, span: start }, || {
                Problem::new(
                    "a file of cases holds nothing but PathCases",
                    "pass the policy itself with -p",
                )
            });
            return None;
        }
        Spec::Missing | Spec::BeforeKind | Spec::UnknownKind => return None,
    };
    let mut scope = Scope { file, report };
    if spec.value.cases.is_empty() {
        scope.error(document.spec_span, || {
            Problem::new("there are no cases", "write `cases:` with at least one")
        });
    }
    scope.ok(
        spec.value.node.span,
        scalar::node_name(&spec.value.node.value),
    );
    let mut names = HashSet::new();
    let mut cases = Vec::new();
    for case in spec.value.cases {
        let name = case.value.name.clone();
        if name.value.trim().is_empty() {
            scope.error(name.span, || {
                Problem::new("the name is empty", "write what it is about")
            });
        } else if !names.insert(name.value.clone()) {
            scope.error(name.span, || {
                let message = format!("a second case is called {}", quote(&name.value));
                Problem::new(message, "choose another name")
            });
        }
        cases.extend(read_case(&mut scope, case));
    }
    let name = document
        .metadata
        .map(|metadata| metadata.value.name.value)
        .unwrap_or_default();
    Some(PathCases {
        name,
        source: Arc::clone(source),
        node: spec.value.node,
        cases,
    })
}

fn read_case(scope: &mut Scope<'_, '_>, case: Spanned<CaseSource>) -> Option<Case> {
    let CaseSource {
        name,
        from,
        to,
        bind,
        at,
        expect,
        because,
    } = case.value;
    let sender = read_sender(scope, &from);
    let attempt = read_attempt(scope, name.span, to, bind);
    let expect = read_expect(scope, expect);
    let at = at.and_then(|text| {
        choice(scope, "at", &text, AT_VALUES, |text| match text {
            "ThisNode" => Some(At::ThisNode),
            "Elsewhere" => Some(At::Elsewhere),
            _ => None,
        })
    });
    let (from_span, (from, (attempt, attempt_span), expect)) =
        (from.span, (sender?, attempt?, expect?));
    if matches!(attempt, Attempt::Bind(_)) && !matches!(from, Sender::Process { .. }) {
        scope.error(from_span, || {
            Problem::new(
                "only a process of this node can bind a port here",
                "write `from: { cgroup: /path }`",
            )
        });
    }
    let source = match &from {
        Sender::Pod(address) | Sender::Remote(address) => Some(*address),
        Sender::Process { address, .. } => *address,
    };
    if let (Attempt::Send(target), Some(source)) = (&attempt, source)
        && source.is_ipv4() != target.address.is_ipv4()
    {
        scope.error(attempt_span, || {
            Problem::new(
                format!(
                    "{source} can not send to {}: one is IPv4 and one IPv6",
                    target.address
                ),
                "write two addresses of one family",
            )
        });
    }
    let because = because.map(|because| because.value.trim().to_owned());
    Some(Case {
        name,
        from,
        attempt,
        attempt_span,
        at,
        expect,
        because,
    })
}

fn read_sender(scope: &mut Scope<'_, '_>, from: &Spanned<SenderSource>) -> Option<Sender> {
    match &from.value {
        SenderSource {
            pod: Some(pod),
            cgroup: None,
            address: None,
        } => scope
            .ok(pod.span, scalar::address(&pod.value))
            .map(Sender::Pod),
        SenderSource {
            pod: None,
            cgroup: Some(cgroup),
            address,
        } => {
            scope.ok(cgroup.span, scalar::cgroup(&cgroup.value))?;
            let address = match address {
                Some(text) => Some(scope.ok(text.span, scalar::address(&text.value))?),
                None => None,
            };
            Some(Sender::Process {
                cgroup: cgroup.value.clone(),
                address,
            })
        }
        SenderSource {
            pod: None,
            cgroup: None,
            address: Some(address),
        } => scope
            .ok(address.span, scalar::address(&address.value))
            .map(Sender::Remote),
        _ => {
            scope.error(from.span, || {
                Problem::new(
                    "a case has one sender",
                    "write one of `{ pod: IP }`, `{ cgroup: /path }` and `{ address: IP }`; with `cgroup`, \
                     `address` is the source address",
                )
            });
            None
        }
    }
}

fn read_attempt(
    scope: &mut Scope<'_, '_>,
    case: Span,
    to: Option<Spanned<String>>,
    bind: Option<Spanned<String>>,
) -> Option<(Attempt, Span)> {
    match (to, bind) {
        (Some(to), None) => {
            let target = scope.ok(to.span, target(&to.value))?;
            Some((Attempt::Send(target), to.span))
        }
        (None, Some(bind)) => {
            let target = scope.ok(bind.span, target(&bind.value))?;
            if !matches!(target.what, What::Tcp(_) | What::Udp(_)) {
                scope.error(bind.span, || {
                    Problem::new(
                        "what is bound is a TCP or UDP port",
                        "write `0.0.0.0:8080/tcp`",
                    )
                });
            }
            Some((Attempt::Bind(target), bind.span))
        }
        (_, bind) => {
            scope.error(bind.map_or(case, |bind| bind.span), || {
                Problem::new("a case tries one thing", "write `to`, or `bind`")
            });
            None
        }
    }
}

fn read_expect(scope: &mut Scope<'_, '_>, expect: Spanned<ExpectSource>) -> Option<Expect> {
    match expect.value {
        ExpectSource {
            allowed: Some(path),
            denied: None,
            endpoint: None,
        } => {
            if path.value == OTHER_TRAFFIC {
                return Some(Expect::OtherTraffic);
            }
            scope.ok(path.span, scalar::name(&path.value, "path"))?;
            Some(Expect::Path(path))
        }
        ExpectSource {
            allowed: None,
            denied: Some(reason),
            endpoint,
        } => {
            let endpoint = match endpoint {
                Some(text) => {
                    let (component, port) = scope.ok(text.span, scalar::endpoint(&text.value))?;
                    let value = (component.to_owned(), port.to_owned());
                    Some(Spanned {
                        value,
                        span: text.span,
                    })
                }
                None => None,
            };
            Some(Expect::Denied { reason, endpoint })
        }
        _ => {
            scope.error(expect.span, || {
                Problem::new(
                    "a case expects one verdict",
                    "write one of `{ allowed: PATH }`, `{ allowed: otherTraffic }` and `{ denied: REASON }`; \
                     `endpoint` goes with `denied`",
                )
            });
            None
        }
    }
}

/// `10.0.0.11:2379/tcp`, `[fd00::11]:53/udp`, `10.0.0.11 echo`, `fd00::11 135/icmpv6`.
pub fn target(text: &str) -> Result<Target, Problem> {
    let wrong = || {
        Problem::new(
            format!("{} is no target", quote(text)),
            format!(
                "write {}",
                list(&["10.0.0.11:2379/tcp", "[fd00::11]:53/udp", "10.0.0.11 echo"])
            ),
        )
    };
    if let Some((address, what)) = text.split_once(' ') {
        let address = scalar::address(address)?;
        return Ok(Target {
            address,
            what: message(address, what.trim())?,
        });
    }
    let (socket, protocol) = text.rsplit_once('/').ok_or_else(wrong)?;
    let socket: SocketAddr = socket.parse().map_err(|_| wrong())?;
    // A mapped address would mean an IPv4 packet, and the grammar has only one form for that.
    let address = scalar::address(&socket.ip().to_string())?;
    let port = scalar::port_number(&socket.port().to_string())?;
    let what = match protocol {
        "tcp" => What::Tcp(port),
        "udp" => What::Udp(port),
        _ => return Err(wrong()),
    };
    Ok(Target { address, what })
}

fn message(address: IpAddr, what: &str) -> Result<What, Problem> {
    let found = match what.rsplit_once('/') {
        None if what == "echo" && address.is_ipv4() => What::Icmp(8),
        None if what == "echo" => What::Icmp6(128),
        None if what == "arp" => What::Arp,
        Some((kind, "icmp")) => What::Icmp(scalar::byte(kind)?),
        Some((kind, "icmpv6")) => What::Icmp6(scalar::byte(kind)?),
        Some((number, "ip")) => match scalar::ip_protocol(number)? {
            crate::model::PortMatch::Protocol(number) => What::Protocol(number),
            _ => return Err(Problem::new("no protocol", "write its number: `112/ip`")),
        },
        _ => {
            return Err(Problem::new(
                format!("{} is nothing that an address has", quote(what)),
                "write `echo`, `3/icmp`, `135/icmpv6`, `112/ip` or `arp` after the address, or `ADDRESS:PORT/tcp`",
            ));
        }
    };
    let v4_only = matches!(found, What::Icmp(_) | What::Arp);
    let v6_only = matches!(found, What::Icmp6(_));
    if (v4_only && address.is_ipv6()) || (v6_only && address.is_ipv4()) {
        return Err(Problem::new(
            format!("{} does not go with {address}", quote(what)),
            "`icmp` and `arp` are of IPv4, `icmpv6` is of IPv6",
        ));
    }
    Ok(found)
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, what } = *self;
        match what {
            What::Tcp(port) => write!(f, "{}/tcp", SocketAddr::new(address, port)),
            What::Udp(port) => write!(f, "{}/udp", SocketAddr::new(address, port)),
            What::Icmp(8) | What::Icmp6(128) => write!(f, "{address} echo"),
            What::Icmp(kind) => write!(f, "{address} {kind}/icmp"),
            What::Icmp6(kind) => write!(f, "{address} {kind}/icmpv6"),
            What::Protocol(number) => write!(f, "{address} {number}/ip"),
            What::Arp => write!(f, "{address} arp"),
        }
    }
}

impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(address) => write!(f, "pod {address}"),
            Self::Process {
                cgroup,
                address: None,
            } => write!(f, "cgroup {cgroup}"),
            Self::Process {
                cgroup,
                address: Some(address),
            } => {
                write!(f, "cgroup {cgroup} from {address}")
            }
            Self::Remote(address) => write!(f, "address {address}"),
        }
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "allowed: {}", path.value),
            Self::OtherTraffic => write!(f, "allowed: {OTHER_TRAFFIC}"),
            Self::Denied {
                reason,
                endpoint: None,
            } => write!(f, "denied: {}", reason.value),
            Self::Denied {
                reason,
                endpoint: Some(endpoint),
            } => {
                let (component, port) = &endpoint.value;
                write!(f, "denied: {} ({component}:{port})", reason.value)
            }
        }
    }
}

const OTHER_TRAFFIC: &str = "otherTraffic";
