//! `docs/threat-model.md`: what people wrote, and the table that the run makes.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::Result;

use crate::attack::{Attack, Attacker, Others};
use crate::elsewhere;
use crate::limits::Limit;

/// The whole document. `held` are the attacks that this run saw succeed without a policy and fail
/// with one.
pub fn text(rows: &[Attack], held: &BTreeSet<&str>, limits: &[Limit]) -> Result<String> {
    let mut text = String::from(HEAD);
    for who in Attacker::ALL {
        table(&mut text, who, rows, held)?;
    }
    text.push_str(LIMITS);
    writeln!(
        text,
        "| attack | who, and what it does | what it gains, and what helps |"
    )?;
    writeln!(text, "|---|---|---|")?;
    for limit in limits {
        let who = limit.who;
        let (id, what, therefore) = (limit.id, limit.what, limit.therefore);
        writeln!(text, "| `{id}` | a {who} {what} | {therefore} |")?;
    }
    text.push_str(FURTHER_LIMITS);
    Ok(text)
}

fn table(text: &mut String, who: Attacker, rows: &[Attack], held: &BTreeSet<&str>) -> Result<()> {
    writeln!(text, "\n### {}\n\n{}\n", heading(who), about(who))?;
    writeln!(
        text,
        "| attack | what it does | stopped at | reason | held |"
    )?;
    writeln!(text, "|---|---|---|---|---|")?;
    for row in rows.iter().filter(|row| row.who == who) {
        let mark = if held.contains(row.id) { "✓" } else { "✗" };
        let what = match row.others {
            Others::Allow => row.what.to_owned(),
            Others::Drop => format!("{}; under `otherTraffic: Drop`", row.what),
        };
        writeln!(
            text,
            "| `{}` | {what} | {} | {} | {mark} |",
            row.id, row.hook, row.reason
        )?;
    }
    for row in elsewhere::rows().iter().filter(|row| row.who == who) {
        let (file, function) = row.test;
        writeln!(
            text,
            "| `{}` | {} | {} | {} | `{file}`: `{function}` |",
            row.id, row.what, row.hook, row.reason
        )?;
    }
    Ok(())
}

const fn heading(who: Attacker) -> &'static str {
    match who {
        Attacker::Pod => "A pod that may forge packets",
        Attacker::HostPod => "A pod with hostNetwork",
        Attacker::User => "A local process without any privilege",
        Attacker::Neighbour => "A neighbour on the segment",
        Attacker::OtherNode => "Another node",
        Attacker::World => "The world",
    }
}

const fn about(who: Attacker) -> &'static str {
    match who {
        Attacker::Pod => {
            "It has `CAP_NET_RAW`, as container runtimes give it, in a network namespace of its own. It is known by its\n\
             interface, so that no source address gains it anything."
        }
        Attacker::HostPod => {
            "It has the node's addresses and, with `CAP_NET_RAW`, raw and packet sockets there. It is known by its cgroup."
        }
        Attacker::User => "Anybody who may run a program on the node. It is known by its cgroup.",
        Attacker::Neighbour => {
            "A machine that can put frames onto the wire of an uplink. It is known by the source address it uses; see\n\
             what is not defended."
        }
        Attacker::OtherNode => {
            "A member of the cluster on which nothing is enforced, or which somebody has taken over. From here it is known\n\
             by its address: it may what that node's components may, and no more."
        }
        Attacker::World => "Anybody who can send packets to a node. Known by the source address.",
    }
}

const HEAD: &str = "\
# Threat model

Who attacks, what each of them tries, what stops it, and what is not defended. The tables are made by the tests
(`tests/tests/attacks`). A ✓ is from the run itself: in a lab with real servers, the very same connection or packet
reached its aim without a policy (a server told that it heard the bytes, or a counter behind the TC hook saw the
packet), and under the policy it did not, and the agent told it as dropped, at this hook, for this reason. Where a test
elsewhere holds an attack, it is named; each of those shows what works, too. What is not said to be under
`otherTraffic: Drop` was tried under `Allow`, which denies less.

The aim of an attacker is a declared endpoint that no path leads him to: etcd, the apiserver's insecure port, a kubelet,
a tunnel of the pod network. Broken, odd and random packets of every kind are also compared, by the million, between an
evaluator that is plain to see, the compiled tables and the kernel programs (`tests/tests/oracle`).

## Attacks
";

const LIMITS: &str = "
## What is not defended

Each of these was tried by the run, too, and reached its aim under the policy:

";

const FURTHER_LIMITS: &str = "
And these, which no test can show or which need none:

- **Root on the node**, in the node's own namespaces: whoever may load kernel programs may remove these. The same goes for
  `CAP_BPF` with `CAP_NET_ADMIN`, and for a container that can leave its cgroup.
- **`CAP_NET_ADMIN` in the node's network namespace**: it can create interfaces, change routes and translate addresses. What
  comes in by an interface that no policy declares is known by its source address alone, and never as a node.
- **The agent's end.** Nothing is pinned yet: when the agent stops, for whatever reason, the programs go with it. Filters at
  clsact stay if it is killed, and enforce without the others; `enforcer detach` removes them.
- **Sockets older than the attachment.** They are judged from then on by the next packet. On kernels where a program cannot
  ask for a socket's network namespace (before 6.18), nobody knows in which one they are: they count as the node's own.
  For what the node itself sends and receives that is the strict side. It is not for a pod with a macvlan, an ipvlan or a
  VLAN of an uplink: there its older sockets, and its packet sockets of any age, are told from the node's by their cgroup
  only, so that a process of such a pod in no declared cgroup counts as a process of the node.
- **Ports that were taken before the agent started.** The call is not asked about again. What arrives there for a component is
  denied (`ForeignListener`), `enforcer status` names who holds the port, and the component cannot bind it until that
  process ends. The same goes for `listen` without `bind`: no hook sees it, so the port is taken and nothing reaches it.
- **What is behind a bridge.** Pods are told from each other by their interface, and one with an address of its own by the
  route to it. Behind a bridge all pods of the node are one, and may take each other's addresses.
- **Interfaces that no policy declares.** Every interface has programs. At one that is not declared, a packet is denied what a
  guarded endpoint denies to its source address, and a node's address counts as a pod's; what is not guarded is judged
  where a socket of this node receives it. Tunnels arriving there are judged before they are unpacked. What a bridge or
  a bond forwards between its own ports is not looked at. Declare uplinks and pod interfaces: only then does a source
  address prove a node, and the interface a pod.
- **A pod with a macvlan or a VLAN of an uplink, `CAP_NET_ADMIN` in its own namespace, and an accomplice on the segment**: a
  packet that the accomplice sent it may be rewritten and sent on by an interface with the same index as the uplink,
  and is then judged as what had come in there. Nothing tells a program in which namespace a packet without a
  socket was forwarded.
- **Addresses of other nodes that nobody declared**: a process with this node's address may there what this node's components
  may, as its own agent does not know whose address that is. `otherTraffic: Drop` drops it.
- **Frames that bypass every hook** (`PACKET_QDISC_BYPASS`, a ring of `AF_XDP`), by sockets that are older than the attachment;
  or that asked for it by a 32-bit system call, which the kernel hides from cgroup programs (`int 0x80`, x32, a ring of
  `io_uring` that a 32-bit process made). On lo they are dropped (`BypassesHooks`). On an uplink nothing on this node sees
  them; the node that receives them judges them by this node's address. It takes `CAP_NET_RAW` in the node's namespace.
  Where the kernel has BPF among its security modules (`CONFIG_BPF_LSM`, and `bpf` in `lsm=`), every call is seen and
  refused; `enforcer status` says which is the case. Otherwise boot with `ia32_emulation=0` (Linux 6.7).
- **A hostNetwork pod on another node that runs no `enforcer`.** From here it has that node's address, and may what that
  node's components may.
- **A neighbour that takes another's address for good** (ARP, neighbour discovery): under `Allow` nothing looks at it but
  for this node's own addresses, and under `Drop` the paths `arp` and `neighbour-discovery` are from everybody.
- **What stands in a connection** that is allowed, beyond the first bytes where TLS is asked for: two ends that agree on it
  say what they like after a ClientHello. What is forwarded is followed in a table of 65,536 connections; what is older than
  the agent, or fell out of it, is let be there, and looked at where a node's own socket receives it.
- **What a component does for others**: an apiserver that proxies, a socket that its maker hands to another process (a socket
  keeps the cgroup of who made it).
- **Unix sockets**, the container runtime's among them: they are files, or abstract names of a network namespace, and no
  network.
- **A raw TCP socket that is not connected, of a process in no declared cgroup.** The kernel's own resets come from such a
  one, and are no process's; so segments without SYN pass from there as if they were anybody's on the node. They open
  nothing, and it takes `CAP_NET_RAW`. A pod's cgroup is declared.
- **The apiserver, etcd, the controller-manager, the scheduler and the kubelet without a declared cgroup**: any process of the
  node in no declared cgroup may be one. `enforcer check` and `enforcer status` say which, and what that opens. Other
  components are off until their cgroup is declared.
- **Sockets that systemd binds** (`ssh.socket`, process 1 in `/init.scope`) may hold any component's port: they are bound for a
  unit that is yet to start, and it takes root to make one.
- **Time between a cgroup and its name**: a restarted unit is nobody for some milliseconds, and denied. This can not be used
  to be taken for somebody.
- **Tunnels other than VXLAN, Geneve and IPIP** (GRE, IPv6 in IP, IP in IPv6): under `Allow` they are other traffic, and what
  a tunnel device unpacks is judged at that device by its inner source address.
- **Replies that are remembered.** A UDP reply passes for 180 seconds after the last packet of whoever asked, and never to a
  guarded port. Under `Drop`, what a pod answers to a connection whose destination was translated to it (NodePort,
  hostPort) passes as long as the same policy is in force; after a change of policy, from the visitor's next packet on.
- **A denial of service** against the node itself: packets that are dropped cost time; counters stay exact, and the records
  of distinct denials are bounded.
";
