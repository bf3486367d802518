//! A whole lab: created by a builder, removed with its last owner.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::attempt::Server;
use crate::certs::Certs;
use crate::cgroup::{self, static_pod};
use crate::cluster::Started;
use crate::host::{Host, make_host, make_pod};
use crate::inventory::Inventory;
use crate::plan::{self, LOOPBACK, Party, PodPlan, Topology, port};
use crate::process::Running;
use crate::sweep::{self, LabId};
use crate::workload::{Kit, Workload};
use crate::{cluster, net, servers, tools};

/// The helper program's name in a lab's directory.
const PROBE: &str = "lab-probe";

/// What a lab has besides its network. Servers take time to start: request only what the test
/// needs.
#[derive(Debug, Clone, Copy)]
pub struct Builder {
    topology: Topology,
    etcd: bool,
    apiserver: bool,
    kubelets: bool,
    bystanders: bool,
    services: bool,
}

impl Builder {
    /// A whole cluster instead of two nodes: three control-plane nodes, two workers, a load balancer.
    pub fn cluster(self) -> Self {
        Self {
            topology: Topology::CLUSTER,
            ..self
        }
    }

    /// The same, with a VXLAN tunnel for the pods' packets between nodes.
    pub fn vxlan(self) -> Self {
        Self {
            topology: Topology::CLUSTER_VXLAN,
            ..self
        }
    }

    /// Everything else that a cluster has: the control plane's own ports, kube-proxy, the load
    /// balancer, DNS, SSH, webhooks, a container runtime. For a cluster only.
    pub fn services(self) -> Self {
        Self {
            services: true,
            ..self
        }
    }

    /// A real etcd on each control-plane node.
    pub fn etcd(self) -> Self {
        Self { etcd: true, ..self }
    }

    /// The apiserver on each control-plane node: 6443 with TLS, 8080 on loopback without.
    pub fn apiserver(self) -> Self {
        Self {
            apiserver: true,
            ..self
        }
    }

    /// A kubelet on each node.
    pub fn kubelets(self) -> Self {
        Self {
            kubelets: true,
            ..self
        }
    }

    /// Servers that a policy must not affect: echo on hosts and pods, a pod's own 8080 and 2379,
    /// node-local DNS, a worker's web server.
    pub fn bystanders(self) -> Self {
        Self {
            bystanders: true,
            ..self
        }
    }

    /// Everything that a small lab has.
    pub fn full(self) -> Self {
        Self {
            etcd: true,
            apiserver: true,
            kubelets: true,
            bystanders: true,
            ..self
        }
    }

    /// Builds the lab. Returns once all servers answer.
    pub fn build(self) -> Result<Lab> {
        let Self {
            topology,
            etcd,
            apiserver,
            kubelets,
            bystanders,
            services,
        } = self;
        ensure!(
            !services || topology != Topology::SMALL,
            "the small lab has no workload for a cluster's services"
        );
        let mut lab = Lab::without_servers(topology)?;
        // etcd takes longest, so it starts first and the others start meanwhile.
        let members = if etcd { topology.control_plane } else { &[] };
        for member in members {
            lab.boot_etcd(member.name).context("failed to start etcd")?;
        }
        if apiserver {
            lab.start_apiserver()?;
        }
        if kubelets {
            lab.start_kubelets()?;
        }
        if bystanders {
            lab.start_bystanders()?;
        }
        if services {
            lab.services = cluster::start(&lab)?;
        }
        for member in members {
            lab.wait_for_etcd(member.name)?;
        }
        Ok(lab)
    }
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            topology: Topology::SMALL,
            etcd: false,
            apiserver: false,
            kubelets: false,
            bystanders: false,
            services: false,
        }
    }
}

/// Hosts, pods and servers on this machine. Dropping it ends the processes and removes everything.
#[derive(Debug)]
pub struct Lab {
    id: LabId,
    topology: Topology,
    servers: Vec<Running>,
    etcd: BTreeMap<String, Running>,
    bystanders: BTreeMap<String, Server>,
    services: Started,
    hosts: Vec<Host>,
    pods: Vec<(PodPlan, Workload)>,
    kit: Arc<Kit>,
    directory: TempDir,
    // Last: everything above uses what it removes.
    _tear_down: TearDown,
}

impl Lab {
    /// Begins with a lab that has hosts and pods but no servers.
    pub fn builder() -> Builder {
        Builder::default()
    }

    fn without_servers(topology: Topology) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "the lab makes network namespaces and cgroups: run it as root"
        );
        sweep::sweep().context("failed to remove what an earlier lab left behind")?;
        let id = LabId::new()?;
        let cgroups = cgroup::mount_point()?.join(id.lab_name());
        let tear_down = TearDown {
            id,
            topology,
            cgroups: cgroups.clone(),
        };
        let directory = make_directory(&id)?;
        let certs = Certs::create(directory.path())?;
        let kit = Arc::new(Kit {
            certs,
            probe: directory.path().join(PROBE),
        });
        net::add_namespaces(&id, &topology)?;
        net::connect(&id, &topology).context("failed to connect the lab's hosts")?;
        let hosts = topology
            .hosts
            .iter()
            .map(|party| make_host(party, &id, directory.path(), &cgroups, &kit))
            .collect::<Result<Vec<_>>>()?;
        let pods = topology
            .pods
            .iter()
            .map(|pod| Ok((*pod, make_pod(pod, &id, &cgroups, &kit)?)))
            .collect::<Result<Vec<_>>>()?;
        let (servers, bystanders) = (Vec::new(), BTreeMap::new());
        Ok(Self {
            id,
            topology,
            servers,
            etcd: BTreeMap::new(),
            bystanders,
            services: Started::default(),
            hosts,
            pods,
            kit,
            directory,
            _tear_down: tear_down,
        })
    }

    /// Its id, which is part of the names of everything that belongs to it.
    pub fn id(&self) -> &LabId {
        &self.id
    }

    /// A directory for a test's files; removed with the lab.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Its certificates.
    pub fn certs(&self) -> &Certs {
        &self.kit.certs
    }

    /// Its hosts and pods.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The `Inventory` document that describes it.
    pub fn inventory_yaml(&self) -> String {
        self.inventory().yaml()
    }

    /// The same, to be changed before it is written.
    pub fn inventory(&self) -> Inventory {
        Inventory::of(self.topology, &self.id)
    }

    /// A host by name: `cp1`, `w1`, `out` and, in a cluster, more.
    ///
    /// # Panics
    /// If there is no such host.
    pub fn host(&self, name: &str) -> &Host {
        let found = self.hosts.iter().find(|host| host.party().name == name);
        found.unwrap_or_else(|| panic!("the lab has no host `{name}`"))
    }

    /// A pod by name: `pod-a` on `cp1`, `pod-b` on `w1` and, in a cluster, more.
    ///
    /// # Panics
    /// If there is no such pod.
    pub fn pod(&self, name: &str) -> &Workload {
        let found = self
            .pods
            .iter()
            .find(|(pod, _place)| pod.party.name == name);
        found
            .map(|(_pod, workload)| workload)
            .unwrap_or_else(|| panic!("the lab has no pod `{name}`"))
    }

    /// etcd on `cp1`.
    pub fn etcd(&self) -> Workload {
        self.etcd_on("cp1")
    }

    /// etcd on a control-plane node.
    pub fn etcd_on(&self, host: &str) -> Workload {
        self.daemon(host, "etcd")
    }

    /// The apiserver on `cp1`, a static pod.
    pub fn apiserver(&self) -> Workload {
        self.static_pod("cp1", "apiserver")
    }

    /// The controller-manager on `cp1`, a static pod.
    pub fn controller_manager(&self) -> Workload {
        self.static_pod("cp1", "controller-manager")
    }

    /// The scheduler on `cp1`, a static pod.
    pub fn scheduler(&self) -> Workload {
        self.static_pod("cp1", "scheduler")
    }

    /// A static pod on a host: the host's network, a pod's cgroup.
    pub fn static_pod(&self, host: &str, name: &str) -> Workload {
        self.workload(host, &static_pod(name))
    }

    /// The kubelet on a node.
    pub fn kubelet(&self, host: &str) -> Workload {
        self.daemon(host, "kubelet")
    }

    /// A hostNetwork pod: the host's network, a pod's cgroup.
    pub fn hostnet(&self, host: &str) -> Workload {
        self.workload(host, &format!("{}/hostnet", cgroup::PODS))
    }

    /// A user who arrives by SSH, before there is a session.
    pub fn login(&self, host: &str) -> Workload {
        self.daemon(host, "sshd")
    }

    /// A person who is logged in on a node, in the cgroup of that session.
    pub fn session(&self, host: &str) -> Workload {
        self.workload(host, "user.slice/user-1000.slice/session-1.scope")
    }

    /// A system daemon on a host.
    pub fn daemon(&self, host: &str, name: &str) -> Workload {
        self.workload(host, &format!("{}/{name}.service", cgroup::SYSTEM))
    }

    /// The outside neighbour.
    pub fn neighbour(&self) -> Workload {
        self.login("out")
    }

    /// A bystander by the name under which it was started: `echo-cp1`, `echo-w1`, `echo-out`,
    /// `pod-a`, `pod-b`, `node-local-dns-cp1`, `node-local-dns-w1`, `web-w1`.
    ///
    /// # Panics
    /// If the lab was built without bystanders, or there is none of that name.
    pub fn bystander(&self, name: &str) -> &Server {
        let found = self.bystanders.get(name);
        found.unwrap_or_else(|| panic!("the lab has no bystander `{name}`; was it asked for them?"))
    }

    /// Makes a mistake that the kernel permits: the apiserver's insecure port listens on the node's
    /// own addresses. With it, "denied" cannot mean "no listener".
    pub fn expose_insecure_port(&mut self) -> Result<()> {
        let server = servers::exposed_insecure_port(&plan::CP1, &self.kit.certs);
        let workload = self.apiserver();
        let mut running = server.start(&workload, self.directory.path())?;
        servers::wait_for_listener(&mut running, &workload, plan::CP1.at(port::INSECURE))?;
        self.servers.push(running);
        Ok(())
    }

    /// Sets `route_localnet` on `cp1`, as kube-proxy does, and on the neighbour, and routes the
    /// neighbour's whole 127.0.0.0/8 to `cp1`. From then on, the neighbour has no loopback of its
    /// own.
    pub fn expose_loopback(&self) -> Result<()> {
        let (out, victim) = (self.host("out"), self.host("cp1"));
        net::expose_loopback(out.namespace(), victim.namespace(), victim.party())
    }

    /// Hides the pods of both nodes behind their nodes' addresses.
    pub fn masquerade_pods(&self) -> Result<()> {
        let mut nodes = self.topology.nodes.iter();
        nodes.try_for_each(|node| net::masquerade_pods(self.host(node.name).namespace()))
    }

    /// Gives the route into a pod a smaller MTU than every interface on the way: large packets then
    /// need path MTU discovery.
    pub fn shrink(&self, pod: &PodPlan, mtu: u32) -> Result<()> {
        net::shrink(&self.id, pod, mtu)
    }

    /// Gives a host an address that others may have as well, as keepalived does.
    pub fn claim(&self, host: &Party, address: &Party) -> Result<()> {
        net::claim(&self.id, host, address)
    }

    /// Stops an etcd member, which keeps its data.
    pub fn stop_etcd(&mut self, host: &str) -> Result<()> {
        let member = self.etcd.remove(host);
        drop(member.with_context(|| format!("no etcd runs on {host}"))?);
        Ok(())
    }

    /// Starts a member again and waits until it answers.
    pub fn start_etcd(&mut self, host: &str) -> Result<()> {
        self.boot_etcd(host)?;
        self.wait_for_etcd(host)
    }

    /// Starts all members again; only together they have a majority.
    pub fn start_all_etcd(&mut self) -> Result<()> {
        for member in self.topology.control_plane {
            self.boot_etcd(member.name)?;
        }
        for member in self.topology.control_plane {
            self.wait_for_etcd(member.name)?;
        }
        Ok(())
    }

    /// Clears a host's neighbour tables.
    pub fn forget_neighbours(&self, host: &str) -> Result<()> {
        net::forget_neighbours(&self.id, host)
    }

    fn boot_etcd(&mut self, host: &str) -> Result<()> {
        let workload = self.etcd_on(host);
        let running = servers::start_etcd(&workload, &self.kit.certs, self.topology.control_plane)?;
        self.etcd.insert(host.to_owned(), running);
        Ok(())
    }

    fn wait_for_etcd(&mut self, host: &str) -> Result<()> {
        let workload = self.etcd_on(host);
        let client = self.kit.certs.apiserver_etcd_client();
        let member = self.etcd.get_mut(host);
        let member = member.with_context(|| format!("no etcd runs on {host}"))?;
        servers::wait_for_etcd(member, &workload, client)
    }

    /// Keeps a server running as long as the lab.
    pub fn keep(&mut self, server: Running) {
        self.servers.push(server);
    }

    /// Removes the lab and returns whether that failed; dropping it ignores failures.
    pub fn close(self) -> Result<()> {
        let tear_down = TearDown {
            id: self.id,
            topology: self.topology,
            cgroups: self._tear_down.cgroups.clone(),
        };
        drop(self);
        tear_down.remove()
    }

    /// A workload on a host, in any cgroup.
    pub fn workload_in(&self, host: &str, cgroup: &str) -> Result<Workload> {
        self.host(host).cgroup(cgroup)
    }

    fn workload(&self, host: &str, cgroup: &str) -> Workload {
        let workload = self.host(host).cgroup(cgroup);
        workload.unwrap_or_else(|error| panic!("no workload in {cgroup} on {host}: {error:#}"))
    }

    fn start_apiserver(&mut self) -> Result<()> {
        for node in self.topology.control_plane {
            let workload = self.static_pod(node.name, "apiserver");
            let server = servers::apiserver(&self.kit.certs);
            let mut running = server.start(&workload, self.directory.path())?;
            servers::wait_for_listener(&mut running, &workload, LOOPBACK.at(port::INSECURE))?;
            self.servers.push(running);
        }
        Ok(())
    }

    fn start_kubelets(&mut self) -> Result<()> {
        for node in self.topology.nodes {
            let workload = self.kubelet(node.name);
            let server = servers::kubelet(&self.kit.certs);
            let mut running = server.start(&workload, self.directory.path())?;
            servers::wait_for_listener(&mut running, &workload, node.at(port::KUBELET))?;
            self.servers.push(running);
        }
        Ok(())
    }

    fn start_bystanders(&mut self) -> Result<()> {
        let mut started = BTreeMap::new();
        for host in &self.hosts {
            let name = host.party().name;
            started.insert(
                format!("echo-{name}"),
                servers::echo(&self.daemon(name, "echo"))?,
            );
        }
        for node in self.topology.nodes {
            let dns = self.workload(node.name, &static_pod("node-local-dns"));
            let name = format!("node-local-dns-{}", node.name);
            started.insert(name, servers::node_local_dns(&dns)?);
        }
        for (pod, workload) in &self.pods {
            started.insert(pod.party.name.to_owned(), servers::pod_servers(workload)?);
        }
        started.insert(
            "web-w1".to_owned(),
            servers::worker_web(&self.daemon("w1", "web"))?,
        );
        self.bystanders = started;
        Ok(())
    }
}

/// Removes a lab's namespaces and cgroups, whatever state they are in.
#[derive(Debug)]
struct TearDown {
    id: LabId,
    topology: Topology,
    cgroups: PathBuf,
}

impl TearDown {
    fn remove(&self) -> Result<()> {
        // Processes first: they hold the namespaces.
        cgroup::remove_tree(&self.cgroups)?;
        let names: Vec<_> = net::all_names(&self.topology)
            .map(|name| self.id.namespace(name))
            .collect();
        net::delete_namespaces(&names)
    }
}

impl Drop for TearDown {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            // A destructor cannot return an error; the next lab's sweep tries again.
            eprintln!("failed to remove the lab {}: {error:#}", self.id);
        }
    }
}

/// The directory of a lab, with the helper program in it: an unprivileged process of the lab must
/// be able to reach it, wherever the build directory is.
fn make_directory(id: &LabId) -> Result<TempDir> {
    let directory = tempfile::Builder::new()
        .prefix(&format!("{}-", id.lab_name()))
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir()
        .context("failed to make a temporary directory")?;
    let (built, here) = (tools::probe()?.path, directory.path().join(PROBE));
    if fs::hard_link(&built, &here).is_err() {
        fs::copy(&built, &here).with_context(|| format!("failed to copy {}", built.display()))?;
    }
    Ok(directory)
}
