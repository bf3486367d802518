//! The servers of a small cluster: a real etcd, nginx in place of the apiserver and the kubelet,
//! and the bystanders that a policy must leave alone.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::attempt::Server;
use crate::certs::{Certs, Identity};
use crate::lab::Lab;
use crate::patience::patient;
use crate::plan::{LOOPBACK, NODE_LOCAL_DNS, Party, port};
use crate::probe::{Outcome, Serve};
use crate::process::Running;
use crate::workload::Workload;

/// How long a server may take until it answers.
const UP_WITHIN: Duration = Duration::from_secs(10);

/// Starts etcd with mutual TLS for clients and peers. Its data is in the host's own `/run`, in
/// memory. [`wait_for_etcd`] waits until it is up, so that other servers can be started meanwhile.
pub fn start_etcd(workload: &Workload, certs: &Certs, members: &[Party]) -> Result<Running> {
    let urls = |parties: &[Party], port: u16| {
        let both = parties.iter().flat_map(|party| party.both(port));
        both.map(|address| format!("https://{address}"))
            .collect::<Vec<_>>()
            .join(",")
    };
    let own = *workload.party();
    let peer = |member: &Party| format!("https://{}", member.at(port::ETCD_PEER));
    let all: Vec<String> = members
        .iter()
        .map(|member| format!("{}={}", member.name, peer(member)))
        .collect();
    // A single member elects itself, so short timeouts will do.
    let (heartbeat, election) = if members.len() == 1 {
        (10, 100)
    } else {
        (50, 500)
    };
    let with = |option: &str, value: &str| format!("--{option}={value}");
    let file = |option: &str, path: &Path| format!("--{option}={}", path.display());
    let (server, peers) = (certs.etcd_server(), certs.etcd_peer());
    workload
        .command("etcd")?
        .args([
            with("name", own.name),
            with("data-dir", "/run/etcd"),
            with(
                "listen-client-urls",
                &urls(&[LOOPBACK, own], port::ETCD_CLIENT),
            ),
            with("advertise-client-urls", &urls(&[own], port::ETCD_CLIENT)),
            with("listen-peer-urls", &urls(&[own], port::ETCD_PEER)),
            with("initial-advertise-peer-urls", &peer(&own)),
            with("initial-cluster", &all.join(",")),
            with(
                "listen-metrics-urls",
                &format!("http://{}", LOOPBACK.at(port::ETCD_METRICS)),
            ),
            "--client-cert-auth".to_owned(),
            "--peer-client-cert-auth".to_owned(),
            file("trusted-ca-file", certs.authority()),
            file("peer-trusted-ca-file", certs.authority()),
            file("cert-file", &server.certificate),
            file("key-file", &server.key),
            file("peer-cert-file", &peers.certificate),
            file("peer-key-file", &peers.key),
            with("heartbeat-interval", &heartbeat.to_string()),
            with("election-timeout", &election.to_string()),
            "--logger=zap".to_owned(),
        ])
        .spawn()
}

/// Waits until etcd has elected a leader and answers its clients.
pub fn wait_for_etcd(etcd: &mut Running, workload: &Workload, client: &Identity) -> Result<()> {
    let url = format!("https://{}/health", LOOPBACK.at(port::ETCD_CLIENT));
    let deadline = Instant::now() + patient(UP_WITHIN);
    while Instant::now() < deadline {
        if workload.curl(&url, Some(client))?.ok() {
            return Ok(());
        }
        if let Some(status) = etcd.exited()? {
            bail!("etcd ended with {status}: {}", etcd.stderr());
        }
        thread::sleep(Duration::from_millis(10));
    }
    bail!("etcd does not answer its clients: {}", etcd.stderr())
}

/// Has a watch of etcd see a change, and saves a snapshot into the lab's directory.
pub fn watch_and_save(lab: &Lab, workload: &Workload, etcd: SocketAddr) -> Result<()> {
    let client = Some(lab.certs().apiserver_etcd_client());
    let watch = workload
        .etcdctl_command(etcd, client)?
        .args(["watch", "w"])
        .spawn()?;
    let deadline = Instant::now() + Duration::from_secs(5);
    // A watch prints nothing when it is ready, so write until the watch sees it.
    loop {
        workload
            .etcdctl(etcd, client, ["put", "w", "seen"])?
            .checked()?;
        let line = watch.wait_for_line(|line| line == "seen", Duration::from_millis(300));
        if line.is_ok() {
            break;
        }
        ensure!(Instant::now() < deadline, "the watch sees nothing");
    }
    let file = lab.directory().join("snapshot.db");
    let save = ["snapshot", "save", &file.to_string_lossy()].map(str::to_owned);
    workload.etcdctl(etcd, client, save)?.checked()?;
    ensure!(file.metadata()?.len() > 0, "the snapshot is empty");
    Ok(())
}

/// An nginx that stands in for a component.
#[derive(Debug)]
pub struct Nginx<'a> {
    /// Its name, which it answers.
    pub says: &'a str,
    /// `listen` directives: an address, followed by `ssl` if it uses TLS.
    pub listen: Vec<String>,
    /// Its certificate for its clients.
    pub identity: &'a Identity,
}

impl Nginx<'_> {
    /// Starts it. `directory` is for its configuration and output.
    pub fn start(&self, workload: &Workload, directory: &Path) -> Result<Running> {
        let own = directory.join(format!("{}-{}", workload.party().name, self.says));
        fs::create_dir_all(&own).with_context(|| format!("failed to make {}", own.display()))?;
        run_nginx(workload, &own, &self.configuration(&own))
    }

    fn configuration(&self, own: &Path) -> String {
        let own = own.display();
        let listen = self.listen.iter().fold(String::new(), |mut all, address| {
            // Writing to a string cannot fail.
            let _ = writeln!(all, "    listen {address};");
            all
        });
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|kind| format!("  {kind}_temp_path {own}/{kind};\n"))
            .collect();
        // A single process, so that it is in one cgroup and ends with its owner.
        format!(
            "daemon off;
master_process off;
pid {own}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 512; }}
http {{
  access_log off;
  keepalive_requests 1000000;
{temporary}  server {{
{listen}    ssl_certificate {certificate};
    ssl_certificate_key {key};
    location / {{ default_type text/plain; return 200 \"{says}\"; }}
  }}
}}
",
            certificate = self.identity.certificate.display(),
            key = self.identity.key.display(),
            says = self.says,
        )
    }
}

/// Starts nginx with a configuration, in a directory of its own.
pub(crate) fn run_nginx(workload: &Workload, own: &Path, configuration: &str) -> Result<Running> {
    let file = own.join("nginx.conf");
    fs::write(&file, configuration)
        .with_context(|| format!("failed to write {}", file.display()))?;
    workload
        .command("nginx")?
        .arg("-p")
        .arg(own)
        .arg("-c")
        .arg(&file)
        .spawn()
}

/// The apiserver: TLS on every address, plain HTTP only on loopback.
pub fn apiserver(certs: &Certs) -> Nginx<'_> {
    let secure = format!("[::]:{} ssl ipv6only=off", port::APISERVER);
    let insecure = LOOPBACK
        .both(port::INSECURE)
        .map(|address| address.to_string());
    Nginx {
        says: "apiserver",
        listen: [secure].into_iter().chain(insecure).collect(),
        identity: certs.apiserver(),
    }
}

/// The mistake that a policy has to contain: the insecure port on the node's own addresses.
pub fn exposed_insecure_port<'a>(host: &Party, certs: &'a Certs) -> Nginx<'a> {
    let listen = host
        .both(port::INSECURE)
        .map(|address| address.to_string())
        .to_vec();
    Nginx {
        says: "exposed",
        listen,
        identity: certs.apiserver(),
    }
}

/// A kubelet.
pub fn kubelet(certs: &Certs) -> Nginx<'_> {
    let listen = vec![
        format!("[::]:{} ssl ipv6only=off", port::KUBELET),
        format!("127.0.0.1:{}", port::KUBELET_HEALTH),
        // As old kubelets did, and some still do.
        format!("[::]:{} ipv6only=off", port::KUBELET_READ_ONLY),
    ];
    Nginx {
        says: "kubelet",
        listen,
        identity: certs.kubelet(),
    }
}

/// Waits until a server listens on an address, as seen from a workload.
pub fn wait_for_listener(running: &mut Running, workload: &Workload, at: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + patient(UP_WITHIN);
    while Instant::now() < deadline {
        if workload
            .namespace()
            .within(|| std::net::TcpStream::connect(at).is_ok())?
        {
            return Ok(());
        }
        if let Some(status) = running.exited()? {
            bail!(
                "the server for {at} ended with {status}: {}",
                running.stderr()
            );
        }
        thread::sleep(Duration::from_millis(3));
    }
    bail!(
        "nobody listens on {at} in {}: {}",
        workload.party().name,
        running.stderr()
    )
}

/// The echo service that no component declares, over TCP and UDP on the party's own addresses.
pub fn echo(workload: &Workload) -> Result<Server> {
    let own = workload.party().both(port::ECHO).to_vec();
    workload.serve(Serve {
        tcp: own.clone(),
        udp: own,
        say: None,
        ..Serve::default()
    })
}

/// A pod's own servers, on ports that mean something else on a node.
pub fn pod_servers(workload: &Workload) -> Result<Server> {
    let pod = workload.party();
    let own = pod.both(port::ECHO);
    let tcp = [
        LOOPBACK.both(port::INSECURE),
        LOOPBACK.both(port::ETCD_CLIENT),
    ];
    let tcp = tcp
        .into_iter()
        .chain([pod.both(port::INSECURE), own])
        .flatten()
        .collect();
    workload.serve(Serve {
        tcp,
        udp: own.to_vec(),
        say: Some(pod.name.to_owned()),
        ..Serve::default()
    })
}

/// Node-local DNS, whose health port is 8080 on its own address.
pub fn node_local_dns(workload: &Workload) -> Result<Server> {
    let at = SocketAddr::new(NODE_LOCAL_DNS.into(), port::INSECURE);
    workload.serve(Serve {
        tcp: vec![at],
        udp: vec![],
        say: Some("node-local-dns".to_owned()),
        ..Serve::default()
    })
}

/// A user's web server on a worker: port 8080 is not guarded there.
pub fn worker_web(workload: &Workload) -> Result<Server> {
    let at = workload.party().both(port::INSECURE).to_vec();
    workload.serve(Serve {
        tcp: at,
        udp: vec![],
        say: Some("worker".to_owned()),
        ..Serve::default()
    })
}

/// Fails unless a URL returns exactly this page.
pub fn expect_page(workload: &Workload, url: &str, text: &str) -> Result<()> {
    let page = workload
        .curl(url, None)?
        .checked()
        .with_context(|| format!("{} gets no page from {url}", workload.party().name))?;
    if page.stdout != text {
        bail!("{url} says {:?}, not {text:?}", page.stdout);
    }
    Ok(())
}

/// Fails unless a server answers with the expected name.
pub fn expect_answer(workload: &Workload, to: SocketAddr, name: &str) -> Result<()> {
    let report = workload.ask(to, "who is there?")?;
    if report.outcome != Outcome::Answered || report.answer.as_deref() != Some(name) {
        bail!(
            "{name} does not answer {} at {to}: {report:?}",
            workload.party().name
        );
    }
    Ok(())
}
