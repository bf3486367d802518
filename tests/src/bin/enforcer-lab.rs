//! The lab for interactive use: builds it, prints how to get in, and removes it at the end.

use std::fs;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use enforcer_tests::{Lab, Workload, plan::OUT};
use nix::sys::signal::{SigSet, Signal};

/// Builds a small cluster on this machine and keeps it until Ctrl-C
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Hosts, pods and the network only
    #[arg(long)]
    no_servers: bool,
    /// Let the apiserver's insecure port listen on the node's own addresses, too
    #[arg(long)]
    expose_insecure_port: bool,
    /// Set route_localnet on cp1 and route the neighbour's 127.0.0.0/8 there
    #[arg(long)]
    expose_loopback: bool,
    /// Hide pods behind their node's address
    #[arg(long)]
    masquerade_pods: bool,
    /// Three control-plane nodes, two workers, a load balancer and everything else of a cluster
    #[arg(long)]
    cluster: bool,
    /// The same, with a VXLAN tunnel between the nodes
    #[arg(long)]
    vxlan: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    // Before the first thread starts, so that the signals that this one waits for kill no other
    // thread.
    let ends: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
        .into_iter()
        .collect();
    ends.thread_block().context("failed to block signals")?;
    let started = Instant::now();
    let lab = build(arguments)?;
    describe(&lab, started)?;
    ends.wait().context("failed to wait for a signal")?;
    println!("\nremoving the lab");
    lab.close()
}

fn build(arguments: &Arguments) -> Result<Lab> {
    let Arguments {
        no_servers,
        expose_insecure_port,
        expose_loopback,
        masquerade_pods,
        cluster,
        vxlan,
    } = *arguments;
    let builder = match (cluster, vxlan) {
        (_, true) => Lab::builder().vxlan(),
        (true, false) => Lab::builder().cluster(),
        (false, false) => Lab::builder(),
    };
    let mut lab = if no_servers {
        builder.build()?
    } else {
        let builder = builder.full();
        let builder = if cluster || vxlan {
            builder.services()
        } else {
            builder
        };
        builder.build()?
    };
    if expose_insecure_port {
        lab.expose_insecure_port()?;
    }
    if expose_loopback {
        lab.expose_loopback()?;
    }
    if masquerade_pods {
        lab.masquerade_pods()?;
    }
    Ok(lab)
}

fn describe(lab: &Lab, started: Instant) -> Result<()> {
    let inventory = lab.directory().join("inventory.yaml");
    fs::write(&inventory, lab.inventory_yaml())
        .with_context(|| format!("failed to write {}", inventory.display()))?;
    println!("lab {} is up after {:?}", lab.id(), started.elapsed());
    println!("certificates and inventory: {}", lab.directory().display());
    let topology = lab.topology();
    let pods = topology.pods.iter().map(|pod| &pod.party);
    for party in topology.hosts.iter().chain(pods) {
        println!("{:8}{:14}{}", party.name, party.v4.to_string(), party.v6);
    }
    println!("\nTo be there, in another terminal, as root:");
    for (who, workload) in workloads(lab) {
        println!("\n# {who}\n{}", workload.shell_line());
    }
    println!("\nCtrl-C ends the lab");
    Ok(())
}

fn workloads(lab: &Lab) -> Vec<(String, Workload)> {
    let topology = lab.topology();
    let mut workloads = Vec::new();
    for node in topology.control_plane.iter().map(|node| node.name) {
        for name in ["apiserver", "controller-manager"] {
            let workload = lab.static_pod(node, name);
            workloads.push((format!("the {name} on {node}"), workload));
        }
    }
    for node in topology.nodes.iter().map(|node| node.name) {
        workloads.push((format!("a hostNetwork pod on {node}"), lab.hostnet(node)));
    }
    for host in topology.hosts.iter().filter(|host| **host != OUT) {
        let who = format!("somebody who logged in on {}", host.name);
        workloads.push((who, lab.login(host.name)));
    }
    for pod in topology.pods {
        let (name, host) = (pod.party.name, pod.host);
        workloads.push((format!("pod {name} on {host}"), lab.pod(name).clone()));
    }
    workloads.push(("the outside neighbour".to_owned(), lab.neighbour()));
    workloads
}
