//! What a policy does to connections that were open before it came into force.
//!
//! The kernel judges packets and not connections, so an open connection is cut if a packet of it is denied, in either
//! direction. Since its packets may also match a path in either direction, a connection can survive under a policy that
//! would not let it be opened again; the two effects are distinguished.

use std::net::SocketAddr;

use enforcer_common::{
    addr::Ip,
    decide,
    judge::judge,
    packet::{Packet, Phase, PortKind, Ports},
    record::Hook,
    tables::{Party, Role},
    vantage::{Entered, Kind, Origin, Vantage, View},
    verdict::{Denial, Outcome, Reason, Verdict},
};

use crate::{
    advice::{Advice, Denied, advise},
    cases::{Target, What},
    catalogue::Catalogue,
    compile::{Compiled, Simulator},
    explain::meant,
    model::Policy,
    vocabulary::{Vocabulary, Word},
};

/// A TCP connection, or a pair of addresses between which a connected UDP socket sends, as one end sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection<'a> {
    /// TCP or UDP.
    pub port_kind: PortKind,
    /// The end that was looked at.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// Which end opened it.
    pub opener: End,
    /// Where the local end is.
    pub seat: Seat<'a>,
}

/// An end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The one that was looked at.
    Local,
    /// The other one.
    Remote,
}

/// Where the end is that was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seat<'a> {
    /// A socket in the node's network namespace.
    Node {
        /// The cgroup of its process, below the node's cgroup root.
        cgroup: &'a str,
        /// The role of the interface that leads to the other end; [`Role::Loopback`] if the other end is on this node, too.
        toward: Role,
    },
    /// A socket in another network namespace, behind an interface of the node that has this role.
    Behind(Role),
}

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// Its packets are dropped.
    Cut,
    /// It goes on, and cannot be opened again.
    NotReopened,
}

impl Vocabulary for Effect {
    const TITLE: &'static str = "Effect";
    const ABOUT: &'static str = "What a policy does to a connection that is open already.";
    const WORDS: &'static [Self] = &[Self::Cut, Self::NotReopened];

    fn word(self) -> &'static str {
        match self {
            Self::Cut => "cut",
            Self::NotReopened => "notReopened",
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Cut => "its packets are dropped",
            Self::NotReopened => {
                "its packets pass, but it cannot be opened again once it has ended"
            }
        }
    }

    fn spoken(self) -> &'static str {
        match self {
            Self::Cut => "would be cut",
            Self::NotReopened => "would stay open, but could not be opened again",
        }
    }
}

/// Why a connection would be cut, or could not be opened again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What becomes of it.
    pub effect: Word<Effect>,
    /// The reason of the denial.
    pub reason: Reason,
    /// The hook that denies it first.
    pub hook: Hook,
    /// The components that its opener counts as.
    pub senders: Vec<String>,
    /// The declared endpoints that it leads to, as `component:port`.
    pub endpoints: Vec<String>,
    /// Documented paths that would allow it.
    pub advice: Vec<Advice>,
}

/// What becomes of an open connection under the policy, in the mode that it was compiled for; `None` if it stays and could be
/// opened again.
///
/// Where address translation stands between the two ends, the connection is judged at the addresses that its own socket has.
pub fn refusal(
    policy: &Policy,
    compiled: &Compiled,
    connection: &Connection<'_>,
) -> Option<Refusal> {
    let (effect, (reason, hook)) = verdict(compiled, connection)?;
    let tables = Simulator::new(compiled);
    let (opener, server) = connection.in_order();
    let sender = sender(&tables, connection);
    let target = Target {
        address: server.ip(),
        what: match connection.port_kind {
            PortKind::Udp => What::Udp(server.port()),
            _ => What::Tcp(server.port()),
        },
    };
    let server_is_here = match (connection.seat, connection.opener) {
        (Seat::Node { toward, .. }, End::Local) => toward == Role::Loopback,
        (Seat::Node { .. }, End::Remote) => true,
        (Seat::Behind(_), _) => false,
    };
    let meant = meant(&tables, target, server_is_here);
    let name = |names: &[Vec<String>]| {
        let found = meant.and_then(|(target, _)| names.get(usize::from(target)));
        found.cloned().unwrap_or_default()
    };
    let senders = compiled.party_names.get(usize::from(sender));
    let senders = senders.cloned().unwrap_or_default();
    let advice = meant.map(|(_, number)| {
        let denied = Denied {
            senders: &senders,
            endpoints: &name(&compiled.target_endpoints),
            number,
            destination: Some(server.ip()),
            source_port: Some(opener.port()),
        };
        advise(policy, Catalogue::builtin(), &denied)
    });
    Some(Refusal {
        effect: effect.into(),
        reason,
        hook,
        endpoints: name(&compiled.target_names),
        senders,
        advice: advice.unwrap_or_default(),
    })
}

/// A reason, and the hook that gives it.
type Refused = (Reason, Hook);

fn verdict(compiled: &Compiled, connection: &Connection<'_>) -> Option<(Effect, Refused)> {
    if connection.port_kind == PortKind::Udp {
        // Which end of a connected UDP socket sent first is unknown.
        return [End::Local, End::Remote]
            .map(|opener| {
                let connection = Connection {
                    opener,
                    ..*connection
                };
                passage(compiled, &connection, Phase::Datagram)
            })
            .into_iter()
            .reduce(Option::and)
            .flatten()
            .map(|refused| (Effect::Cut, refused));
    }
    if let Some(refused) = passage(compiled, connection, Phase::Following) {
        return Some((Effect::Cut, refused));
    }
    let refused = passage(compiled, connection, Phase::Opening)?;
    Some((Effect::NotReopened, refused))
}

/// The first denial on the way of a connection's packets.
fn passage(compiled: &Compiled, connection: &Connection<'_>, phase: Phase) -> Option<Refused> {
    let tables = Simulator::new(compiled);
    if let (Phase::Opening, End::Local, Seat::Node { cgroup, .. }) =
        (phase, connection.opener, connection.seat)
    {
        let by = tables.party_of_cgroup(cgroup);
        let (to, number) = (Ip::from(connection.remote.ip()), connection.remote.port());
        let call = decide::connecting(&tables, by, &to, connection.port_kind, number);
        if decide::fails_at_once(call, connection.port_kind)
            && let Some(reason) = reason(call)
        {
            return Some((reason, Hook::Connect));
        }
    }
    let ends = match connection.opener {
        End::Local => [End::Local, End::Remote],
        End::Remote => [End::Remote, End::Local],
    };
    // A SYN is judged in its own direction only.
    let ends = match phase {
        Phase::Opening => ends.iter().take(1),
        _ => ends.iter().take(2),
    };
    let (local, remote) = (connection.local, connection.remote);
    for from in ends {
        let (source, destination) = match from {
            End::Local => (local, remote),
            End::Remote => (remote, local),
        };
        let ports = Ports {
            phase,
            kind: connection.port_kind,
            source: source.port(),
            destination: destination.port(),
        };
        let packet = Packet::flow(source.ip().into(), destination.ip().into(), ports);
        for vantage in vantages(&tables, connection.seat, *from) {
            // The socket's own address is the one that its interface leads to.
            let judged = judge(&tables, vantage, &packet, || true);
            if let Some(reason) = reason(judged.verdict) {
                return Some((reason, hook(vantage)));
            }
        }
    }
    None
}

/// Where the node judges what one end sends.
fn vantages(tables: &Simulator<'_>, seat: Seat<'_>, from: End) -> Vec<Vantage> {
    // The interface's index does not matter here: `judge` gets the result of the route lookup.
    let arrived = |role| Vantage::new(View::Arrived { role, interface: 0 });
    match (seat, from) {
        (Seat::Node { cgroup, toward }, End::Local) => vec![Vantage::new(View::Sent {
            sender: tables.party_of_cgroup(cgroup),
            origin: Origin::Socket,
            on_lo: toward == Role::Loopback,
        })],
        (Seat::Node { cgroup, toward }, End::Remote) => {
            let received = Vantage::new(View::Received {
                receiver: tables.party_of_cgroup(cgroup),
                role: toward,
                judged: true,
            });
            match toward {
                Role::Loopback => vec![received],
                role => vec![arrived(role), received],
            }
        }
        (Seat::Behind(role), End::Local) => vec![arrived(role)],
        // Where it comes in is not known, and where it leaves only guarded endpoints are looked at.
        (Seat::Behind(_), End::Remote) => Vec::new(),
    }
}

fn hook(vantage: Vantage) -> Hook {
    if vantage.is(Kind::Arrived) {
        Hook::TcIngress
    } else if vantage.is(Kind::Sent) {
        Hook::CgroupEgress
    } else {
        Hook::CgroupIngress
    }
}

fn reason(verdict: Verdict) -> Option<Reason> {
    match verdict.outcome() {
        // A denial in dry-run passes: the policy's, or that of the paths to one endpoint.
        Outcome::Denied(Denial { reason, .. }) if !verdict.passes() => Some(reason),
        _ => None,
    }
}

/// The party of the end that opened it.
fn sender(tables: &Simulator<'_>, connection: &Connection<'_>) -> Party {
    let (opener, server) = connection.in_order();
    let role = match (connection.seat, connection.opener) {
        (Seat::Node { cgroup, .. }, End::Local) => return tables.party_of_cgroup(cgroup),
        (Seat::Node { toward, .. }, End::Remote) => toward,
        (Seat::Behind(role), End::Local) => role,
        (Seat::Behind(_), End::Remote) => Role::Uplink,
    };
    let by_address = |address: Ip| {
        use enforcer_common::tables::Tables as _;
        tables.address_info(&address).party
    };
    if role != Role::Pod {
        return by_address(opener.ip().into());
    }
    let ports = Ports {
        phase: Phase::Following,
        kind: connection.port_kind,
        source: opener.port(),
        destination: server.port(),
    };
    let packet = Packet::flow(opener.ip().into(), server.ip().into(), ports);
    let vantage = Vantage::new(View::Arrived { role, interface: 0 });
    match judge(tables, vantage, &packet, || true).mark.entered(role) {
        Entered::FromKnownPod(known) => known,
        // A party number, which the kernel stores as a wider word.
        Entered::ByUplink(_) | Entered::FromPod => tables.compiled().settings.pods as Party,
    }
}

impl Connection<'_> {
    /// The end that opened it, and the other one.
    pub const fn in_order(&self) -> (SocketAddr, SocketAddr) {
        match self.opener {
            End::Local => (self.local, self.remote),
            End::Remote => (self.remote, self.local),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::{
        SourceText,
        compile::{PathNumbers, compile},
        from_texts,
        model::Mode,
    };

    const ETCD: &str = "/kubepods.slice/etcd";
    const APISERVER: &str = "/kubepods.slice/apiserver";
    const OTHER: &str = "/system.slice/other.service";

    fn policy(other_traffic: &str) -> Policy {
        let text = format!(
            "\
apiVersion: enforcer.dev/v1alpha1
kind: Inventory
metadata: {{ name: test }}
spec:
  nodes:
    cp1: {{ addresses: [10.0.0.11], roles: [control-plane] }}
    w1: {{ addresses: [10.0.0.21], roles: [worker] }}
  podNetworks: [10.244.0.0/16]
  serviceNetworks: [10.96.0.0/16]
  components:
    apiserver:
      partOf: [node]
      runsOn: [control-plane]
      guard: true
      cgroups: ['{APISERVER}']
      ports: {{ secure: 6443/tcp }}
    etcd:
      partOf: [node]
      runsOn: [control-plane]
      guard: true
      cgroups: ['{ETCD}']
      ports: {{ client: 2379/tcp }}
    metrics:
      outside: true
      addresses: [192.0.2.7]
      ports: {{ statsd: 8125/udp }}
---
apiVersion: enforcer.dev/v1alpha1
kind: PathPolicy
metadata: {{ name: test }}
spec:
  profile: control-plane-stacked-etcd
  mode: DryRun
  otherTraffic: {other_traffic}
  paths:
    - {{ name: store, from: [apiserver], to: etcd:client, because: of it }}
    - {{ name: statsd, from: [etcd], to: metrics:statsd, because: of it }}
"
        );
        let source = SourceText {
            name: "p.yaml".to_owned(),
            text,
        };
        from_texts(&[source]).unwrap_or_else(|errors| panic!("{errors}"))
    }

    fn compiled(policy: &Policy) -> Compiled {
        compile(
            policy,
            "cp1",
            Some(Mode::Enforce),
            &mut PathNumbers::default(),
        )
        .unwrap()
    }

    fn tcp(local: &str, remote: &str, opener: End, seat: Seat<'static>) -> Connection<'static> {
        Connection {
            port_kind: PortKind::Tcp,
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
            opener,
            seat,
        }
    }

    const fn on_node(cgroup: &'static str, toward: Role) -> Seat<'static> {
        Seat::Node { cgroup, toward }
    }

    #[test]
    fn what_a_path_allows_stays() {
        let policy = policy("Allow");
        let compiled = compiled(&policy);
        let client = on_node(APISERVER, Role::Loopback);
        let server = on_node(ETCD, Role::Loopback);
        for connection in [
            tcp("10.0.0.11:40000", "10.0.0.11:2379", End::Local, client),
            tcp("10.0.0.11:2379", "10.0.0.11:40000", End::Remote, server),
        ] {
            assert_eq!(refusal(&policy, &compiled, &connection), None);
        }
    }

    #[test]
    fn others_are_cut_from_a_guarded_endpoint_wherever_they_are() {
        let policy = policy("Allow");
        let compiled = compiled(&policy);
        let here = on_node(OTHER, Role::Loopback);
        let etcd = |role| on_node(ETCD, role);
        for (connection, hook, reason) in [
            (
                tcp("10.0.0.11:40000", "10.0.0.11:2379", End::Local, here),
                Hook::CgroupEgress,
                // Its address is the API server's, too.
                Reason::WrongProcess,
            ),
            (
                tcp(
                    "10.0.0.11:2379",
                    "10.244.1.5:40000",
                    End::Remote,
                    etcd(Role::Pod),
                ),
                Hook::TcIngress,
                Reason::NoPath,
            ),
            (
                tcp(
                    "10.0.0.11:2379",
                    "10.0.0.21:40000",
                    End::Remote,
                    etcd(Role::Uplink),
                ),
                Hook::TcIngress,
                Reason::NoPath,
            ),
            (
                tcp(
                    "10.244.1.5:40000",
                    "10.0.0.11:2379",
                    End::Local,
                    Seat::Behind(Role::Pod),
                ),
                Hook::TcIngress,
                Reason::NoPath,
            ),
        ] {
            let found = refusal(&policy, &compiled, &connection).unwrap();
            assert_eq!(found.effect, Effect::Cut, "{connection:?}");
            assert_eq!((found.reason, found.hook), (reason, hook), "{connection:?}");
            assert!(
                found.endpoints.contains(&"etcd:client".to_owned()),
                "{found:?}"
            );
        }
    }

    #[test]
    fn a_denial_in_dry_run_cuts_nothing() {
        let policy = policy("Allow");
        let from_pod = tcp(
            "10.244.1.5:40000",
            "10.0.0.11:2379",
            End::Local,
            Seat::Behind(Role::Pod),
        );
        let compiled_for = |policy: &Policy, mode| {
            compile(policy, "cp1", mode, &mut PathNumbers::default()).unwrap()
        };
        assert_eq!(
            refusal(&policy, &compiled_for(&policy, None), &from_pod),
            None
        );
        let mut only_there = policy;
        for path in &mut only_there.paths {
            path.mode = Some(Mode::DryRun);
        }
        let enforced = compiled_for(&only_there, Some(Mode::Enforce));
        assert_eq!(refusal(&only_there, &enforced, &from_pod), None);
    }

    #[test]
    fn other_traffic_is_cut_only_where_it_is_dropped() {
        let ssh = tcp(
            "10.0.0.11:22",
            "192.0.2.9:50000",
            End::Remote,
            on_node("/system.slice/ssh.service", Role::Uplink),
        );
        let allowing = policy("Allow");
        assert_eq!(refusal(&allowing, &compiled(&allowing), &ssh), None);
        let dropping = policy("Drop");
        let found = refusal(&dropping, &compiled(&dropping), &ssh).unwrap();
        assert_eq!(found.effect, Effect::Cut);
        assert_eq!(found.hook, Hook::TcIngress);
    }

    /// Opened from the end that no path begins at, it matches the path of the other direction as long as it is open.
    #[test]
    fn a_connection_may_outlive_what_would_open_it() {
        let policy = policy("Allow");
        let compiled = compiled(&policy);
        let from_port = tcp(
            "10.0.0.11:2379",
            "10.0.0.11:6443",
            End::Local,
            on_node(ETCD, Role::Loopback),
        );
        let found = refusal(&policy, &compiled, &from_port).unwrap();
        assert_eq!(found.effect, Effect::NotReopened, "{found:?}");
        assert_eq!(found.endpoints, ["apiserver:secure"]);
    }

    #[test]
    fn a_connected_udp_socket_stays_if_either_end_may_have_begun() {
        let policy = policy("Drop");
        let compiled = compiled(&policy);
        let udp = |cgroup| Connection {
            port_kind: PortKind::Udp,
            local: "10.0.0.11:40000".parse().unwrap(),
            remote: "192.0.2.7:8125".parse().unwrap(),
            opener: End::Local,
            seat: on_node(cgroup, Role::Uplink),
        };
        assert_eq!(refusal(&policy, &compiled, &udp(ETCD)), None);
        let found = refusal(&policy, &compiled, &udp(OTHER)).unwrap();
        assert_eq!(found.effect, Effect::Cut);
    }

    /// Of every shipped policy, no connection that one of its cases allows is cut.
    #[test]
    fn no_case_that_is_allowed_is_cut() {
        use crate::{
            cases::{Attempt, Sender},
            explain::explain,
        };
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
        let mut looked_at = 0;
        for entry in fs::read_dir(directory).unwrap() {
            let file = entry.unwrap().path();
            let name = file.file_name().unwrap().to_str().unwrap();
            let Some(name) = name.strip_suffix(".cases.yaml") else {
                continue;
            };
            if name.ends_with(".drop") {
                continue;
            }
            let read = |file: &Path| SourceText {
                name: file.display().to_string(),
                text: fs::read_to_string(file).unwrap(),
            };
            let policy = from_texts(&[read(&file.with_file_name(format!("{name}.yaml")))]).unwrap();
            for cases in crate::cases::from_texts(&[read(&file)]).unwrap() {
                let node = &cases.node.value;
                let compiled = compile(
                    &policy,
                    node,
                    Some(Mode::Enforce),
                    &mut PathNumbers::default(),
                )
                .unwrap();
                for case in &cases.cases {
                    let (Attempt::Send(to), Sender::Pod(source)) = (case.attempt, &case.from)
                    else {
                        continue;
                    };
                    let What::Tcp(port) = to.what else { continue };
                    let explained =
                        explain(&policy, &compiled, &case.from, case.attempt, case.at).unwrap();
                    let connection = Connection {
                        port_kind: PortKind::Tcp,
                        local: SocketAddr::new(*source, 40_000),
                        remote: SocketAddr::new(to.address, port),
                        opener: End::Local,
                        seat: Seat::Behind(Role::Pod),
                    };
                    let found = refusal(&policy, &compiled, &connection);
                    if explained.hook == Hook::TcIngress {
                        assert_eq!(
                            found.is_none(),
                            explained.is_allowed(),
                            "{case:?}: {found:?}"
                        );
                        looked_at += 1;
                    }
                }
            }
        }
        assert!(looked_at > 10, "{looked_at} cases");
    }
}
