//! The lab: a small cluster on one machine, made of network namespaces, cgroups and real servers.
//!
//! A small lab has three hosts on one segment: `cp1` (control plane and etcd), `w1` (a worker) and `out` (an
//! outside neighbour). A cluster has three control-plane nodes, two workers, a load balancer and more
//! ([`plan::Topology`]). Pods live in namespaces of their own, routed the way Calico does it. Every
//! process is in the network namespace *and* the cgroup that it would have on a real node.
//!
//! The kernel's own protections (reverse path filter, martian checks on own addresses) are off on the
//! hosts, so that nothing but the product can be the reason for a packet's loss.
//!
//! ```no_run
//! use enforcer_tests::{Lab, Outcome, plan::{CP1, port}};
//!
//! let lab = Lab::builder().etcd().build()?;
//! // A pod that stole the apiserver's certificate reads etcd, as long as no policy is loaded.
//! let stolen = lab.certs().apiserver_etcd_client();
//! assert!(lab.pod("pod-a").etcdctl(CP1.at(port::ETCD_CLIENT), Some(stolen), ["get", "x"])?.ok());
//! assert_eq!(lab.hostnet("cp1").connect(CP1.at(port::ETCD_PEER))?, Outcome::Connected);
//! # anyhow::Ok(())
//! ```

pub use attempt::{Held, Server, Sniffer};
pub use host::Host;
pub use lab::{Builder, Lab};
pub use probe::{Outcome, Report};
pub use process::{Ran, Running};
pub use workload::{Action, Workload};

pub mod annex;
pub mod arrivals;
pub mod attempt;
pub mod certs;
pub mod cgroup;
pub mod cluster;
pub mod craft;
pub mod holder;
pub mod host;
pub mod inventory;
pub mod lab;
pub mod namespace;
pub mod net;
pub mod offload;
pub mod packet;
pub mod patience;
pub mod plan;
pub mod probe;
pub mod process;
pub mod product;
pub mod random;
pub mod sandbox;
pub mod scenario;
pub mod servers;
pub mod ssh;
pub mod sweep;
pub mod tools;
pub mod workload;
