//! What a whole cluster has beyond etcd, apiservers and kubelets. Each server runs in the network
//! namespace and the cgroup that it would have on a real node.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Context, Result};

use crate::attempt::Server;
use crate::lab::Lab;
use crate::plan::{
    self, DNS_SERVICE, INFRA, LB, LOOPBACK, METADATA, NODE_LOCAL_DNS, OUT, Party, W1, W2, port,
};
use crate::probe::{Serve, TunnelAgent, TunnelServer};
use crate::process::Running;
use crate::servers::{self, Nginx, wait_for_listener};
use crate::workload::Workload;
use crate::{ssh, tools};

/// A cluster name that the DNS server answers itself, with [`plan::POD_A`]'s addresses.
pub const KNOWN_NAME: &str = "known.cluster.lab";
/// A name whose answer does not fit into a datagram.
pub const LONG_NAME: &str = "long.cluster.lab";
/// A name that only the resolver outside of the cluster knows, like every other one below
/// `outside.lab`. A server that waits for an answer does not repeat the query for the same name.
pub const OUTSIDE_NAME: &str = "www.outside.lab";

/// Servers that live as long as the lab.
#[derive(Debug, Default)]
pub struct Started {
    /// Real servers.
    pub running: Vec<Running>,
    /// Listeners that stand in for components.
    pub listening: Vec<Server>,
}

/// Starts all of them.
pub fn start(lab: &Lab) -> Result<Started> {
    let mut started = Started::default();
    for node in lab.topology().control_plane {
        start_control_plane(lab, node, &mut started)?;
    }
    ssh::prepare(lab).context("failed to prepare SSH")?;
    for node in lab.topology().nodes {
        start_node(lab, node, &mut started)?;
    }
    start_dns(lab, &mut started).context("failed to start DNS")?;
    start_pods(lab, &mut started)?;
    start_infrastructure(lab, &mut started)?;
    Ok(started)
}

fn start_control_plane(lab: &Lab, node: &Party, started: &mut Started) -> Result<()> {
    let certs = lab.certs();
    for (name, port) in [
        ("controller-manager", port::CONTROLLER_MANAGER),
        ("scheduler", port::SCHEDULER),
        ("cloud-controller-manager", port::CLOUD_CONTROLLER_MANAGER),
    ] {
        let workload = lab.static_pod(node.name, name);
        let at = LOOPBACK.at(port);
        let server = Nginx {
            says: name,
            listen: vec![format!("{at} ssl")],
            identity: certs.apiserver(),
        };
        let mut running = server.start(&workload, lab.directory())?;
        wait_for_listener(&mut running, &workload, at)?;
        started.running.push(running);
    }
    // An etcd as two old articles show it, and the port where nodes of some distributions join.
    for (workload, tcp) in [
        (lab.etcd_on(node.name), LOOPBACK.at(port::HTTP)),
        (lab.daemon(node.name, "join"), node.at(port::JOIN)),
    ] {
        started.listening.push(workload.serve(Serve {
            tcp: vec![tcp],
            ..Serve::default()
        })?);
    }
    Ok(())
}

fn start_node(lab: &Lab, node: &Party, started: &mut Started) -> Result<()> {
    let proxy = Serve {
        tcp: [
            node.both(port::KUBE_PROXY),
            LOOPBACK.both(port::KUBE_PROXY_METRICS),
        ]
        .concat(),
        say: Some("kube-proxy".to_owned()),
        ..Serve::default()
    };
    let runtime = Serve {
        tcp: vec![LOOPBACK.at(port::STREAMING)],
        say: Some("containerd".to_owned()),
        ..Serve::default()
    };
    let bird = Serve {
        tcp: node.both(port::BGP).to_vec(),
        ..Serve::default()
    };
    let dhclient = Serve {
        udp: node.both(port::DHCP_CLIENT).to_vec(),
        ..Serve::default()
    };
    for (name, serve) in [
        ("kube-proxy", proxy),
        ("containerd", runtime),
        ("bird", bird),
        ("dhclient", dhclient),
    ] {
        started
            .listening
            .push(lab.daemon(node.name, name).serve(serve)?);
    }
    started.running.push(ssh::start(lab, node)?);
    Ok(())
}

/// The cluster's DNS, its upstream, and the caches in front of it.
fn start_dns(lab: &Lab, started: &mut Started) -> Result<()> {
    let outside = lab.daemon(INFRA.name, "resolver");
    let dns = lab.pod(plan::DNS.party.name).clone();
    let record = "--address=/outside.lab/192.0.2.80".to_owned();
    let up = vec![record];
    started
        .running
        .push(dnsmasq(&outside, &outside.party().both(port::DNS), &up)?);
    let pod = plan::POD_A.party;
    let long = "x".repeat(250);
    let mut own = vec![
        format!("--host-record={KNOWN_NAME},{},{}", pod.v4, pod.v6),
        format!("--server={}", INFRA.v4),
    ];
    own.extend((0..8).map(|i| format!("--txt-record={LONG_NAME},{i}{long}")));
    started
        .running
        .push(dnsmasq(&dns, &dns.party().both(port::DNS), &own)?);
    started.listening.push(dns.serve(Serve {
        tcp: dns.party().both(port::DNS_METRICS).to_vec(),
        say: Some("metrics".to_owned()),
        ..Serve::default()
    })?);
    for node in lab.topology().nodes {
        let workload = lab.static_pod(node.name, "node-local-dns");
        let at = SocketAddr::new(NODE_LOCAL_DNS.into(), port::DNS);
        let upstream = vec![format!("--server={}", DNS_SERVICE.v4)];
        started.running.push(dnsmasq(&workload, &[at], &upstream)?);
    }
    Ok(())
}

fn dnsmasq(workload: &Workload, at: &[SocketAddr], more: &[String]) -> Result<Running> {
    let listen = at.iter().map(|at| format!("--listen-address={}", at.ip()));
    let mut running = workload
        .command("dnsmasq")?
        .args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-hosts",
            "--no-resolv",
            "--bind-interfaces",
            "--user=root",
            "--group=root",
            "--pid-file=",
            // A cache would answer a repeated query itself.
            "--cache-size=0",
        ])
        .args(listen)
        .args(more)
        .spawn()?;
    let first = at.first().context("dnsmasq listens nowhere")?;
    wait_for_listener(&mut running, workload, *first)?;
    Ok(running)
}

fn start_pods(lab: &Lab, started: &mut Started) -> Result<()> {
    let workload = lab.pod(plan::WEBHOOK.party.name);
    let listen = [port::WEBHOOK, port::SERVICE, port::AGGREGATED]
        .map(|port| format!("[::]:{port} ssl ipv6only=off"));
    let server = Nginx {
        says: "webhook",
        listen: listen.to_vec(),
        identity: lab.certs().webhook(),
    };
    let mut running = server.start(workload, lab.directory())?;
    wait_for_listener(&mut running, workload, workload.party().at(port::WEBHOOK))?;
    started.running.push(running);
    Ok(())
}

/// The load balancer, and what is outside of the cluster: time, images, DHCP.
fn start_infrastructure(lab: &Lab, started: &mut Started) -> Result<()> {
    let workload = lab.daemon(LB.name, "lb");
    let mut running = start_balancer(lab, &workload)?;
    wait_for_listener(&mut running, &workload, LB.at(port::APISERVER))?;
    started.running.push(running);
    let workload = lab.daemon(INFRA.name, "infra");
    let registry = Nginx {
        says: "registry",
        listen: INFRA
            .both(port::SERVICE)
            .map(|at| format!("{at} ssl"))
            .to_vec(),
        identity: lab.certs().apiserver(),
    };
    let mut running = registry.start(&workload, lab.directory())?;
    wait_for_listener(&mut running, &workload, INFRA.at(port::SERVICE))?;
    started.running.push(running);
    started.listening.push(workload.serve(Serve {
        tcp: vec![SocketAddr::new(METADATA.into(), port::HTTP)],
        udp: [INFRA.both(port::NTP), INFRA.both(port::DHCP_SERVER)].concat(),
        ..Serve::default()
    })?);
    // A host outside with servers of all kinds.
    started
        .listening
        .push(lab.daemon(OUT.name, "web").serve(Serve {
            tcp: [OUT.both(port::SERVICE), OUT.both(port::WEBHOOK)].concat(),
            ..Serve::default()
        })?);
    let agent = lab.pod(plan::AGENT.party.name);
    started.listening.push(agent.serve(Serve {
        tcp: agent.party().both(port::KONNECTIVITY_AGENT_HEALTH).to_vec(),
        ..Serve::default()
    })?);
    Ok(())
}

/// nginx at layer 4: it passes TLS through unchanged, with its own address as the source.
fn start_balancer(lab: &Lab, workload: &Workload) -> Result<Running> {
    let own = lab.directory().join("balancer");
    fs::create_dir_all(&own).with_context(|| format!("failed to make {}", own.display()))?;
    let servers: String = lab
        .topology()
        .control_plane
        .iter()
        .map(|node| format!("    server {};\n", node.at(port::APISERVER)))
        .collect();
    let module = tools::nginx_module("ngx_stream_module.so")?;
    let text = format!(
        "daemon off;
master_process off;
load_module {module};
pid {own}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 512; }}
stream {{
  upstream apiservers {{
{servers}  }}
  server {{ listen {v4}; listen {v6}; proxy_pass apiservers; proxy_connect_timeout 1s; }}
}}
",
        module = module.display(),
        own = own.display(),
        v4 = LB.at(port::APISERVER),
        v6 = LB.at6(port::APISERVER),
    );
    servers::run_nginx(workload, &own, &text)
}

/// Starts a konnectivity server on a control-plane node, and an agent that connects to it and
/// forwards to `target`. Without TLS, as the protocol in the tunnel does not matter here.
pub fn start_tunnel(
    lab: &Lab,
    node: &Party,
    agent: &Workload,
    target: SocketAddr,
) -> Result<[Server; 2]> {
    let server = start_tunnel_server(lab, node)?;
    let agent = agent.tunnel_agent(TunnelAgent {
        server: node.at(port::KONNECTIVITY_AGENTS),
        target,
    })?;
    Ok([server, agent])
}

/// Konnectivity as in a real cluster: a server on each control-plane node, and agents that connect
/// to all of them, on `w1` in the node's network namespace and on `w2` in a pod. Each agent
/// forwards to the kubelet of its node.
pub fn start_konnectivity(lab: &Lab) -> Result<Vec<Server>> {
    let agents = [
        (lab.static_pod(W1.name, "konnectivity-agent"), W1),
        (lab.pod(plan::AGENT.party.name).clone(), W2),
    ];
    let mut started = Vec::new();
    for node in lab.topology().control_plane {
        started.push(start_tunnel_server(lab, node)?);
        for (agent, home) in &agents {
            started.push(agent.tunnel_agent(TunnelAgent {
                server: node.at(port::KONNECTIVITY_AGENTS),
                target: home.at(port::KUBELET),
            })?);
        }
    }
    Ok(started)
}

fn start_tunnel_server(lab: &Lab, node: &Party) -> Result<Server> {
    let workload = lab.static_pod(node.name, "konnectivity-server");
    workload.tunnel_server(TunnelServer {
        frontend: vec![LOOPBACK.at(port::KONNECTIVITY)],
        agents: vec![node.at(port::KONNECTIVITY_AGENTS)],
        health: [
            LOOPBACK.at(port::KONNECTIVITY_HEALTH),
            LOOPBACK.at(port::KONNECTIVITY_ADMIN),
        ]
        .to_vec(),
    })
}
