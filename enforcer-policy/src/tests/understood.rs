//! How valid policies are understood.

use std::net::IpAddr;

use super::{EVERYTHING, SMALL, good, read, said};
use crate::catalogue::Catalogue;
use crate::model::{Locality, Mode, OtherTraffic, PortMatch};
use crate::{render, warnings_for_node};

#[test]
fn every_feature_is_understood() {
    let policy = good(EVERYTHING);
    assert_eq!(policy.name, "everything");
    assert_eq!(
        (policy.mode, policy.other_traffic),
        (Mode::Enforce, OtherTraffic::Drop)
    );
    assert_eq!(policy.nodes.len(), 2);
    assert_eq!(policy.nodes[0].addresses.len(), 2);
    assert_eq!(
        policy.node("w1.example.org").unwrap().cgroup_root,
        "/machine.slice/node"
    );
    assert_eq!(policy.pod_networks.len(), 2);
    assert_eq!(policy.digest.len(), 64);

    let apiserver = policy.component("apiserver").unwrap();
    assert_eq!(
        apiserver.runs_on,
        ["control-plane"],
        "what is not written stays"
    );
    assert_eq!(apiserver.cgroups, ["/kubepods.slice/*-pod1234*"]);
    assert_eq!(apiserver.ports.len(), 2, "ports are replaced by name");
    assert_eq!(apiserver.port("secure").unwrap().matches.len(), 2);
    let insecure = apiserver.port("insecure").unwrap();
    assert_eq!(
        (&insecure.matches[..], insecure.loopback_only),
        (&[PortMatch::Tcp(8081, 8081)][..], true)
    );
    assert!(policy.component("dns").unwrap().guard);
    assert!(policy.component("world").unwrap().is_everyone());

    let gateway = policy.component("gateway").unwrap();
    assert_eq!(gateway.part_of, ["node"]);
    assert!(
        !gateway.guard && gateway.runs_on(&policy.nodes[1]) && !gateway.runs_on(&policy.nodes[0])
    );
    assert_eq!(
        gateway.port("pings").unwrap().matches.len(),
        4,
        "echo is two"
    );
}

#[test]
fn a_service_has_the_protocols_of_its_endpoint() {
    let policy = good(EVERYTHING);
    let of = |component: &str| -> Vec<(IpAddr, PortMatch)> {
        let services = policy
            .services
            .iter()
            .filter(|service| service.component == component);
        services
            .map(|service| (service.address, service.at))
            .collect()
    };
    let dns: IpAddr = "10.96.0.10".parse().unwrap();
    assert_eq!(
        of("dns"),
        [(dns, PortMatch::Tcp(53, 53)), (dns, PortMatch::Udp(53, 53))]
    );
    assert_eq!(of("apiserver").len(), 2);
}

#[test]
fn paths_are_the_profile_with_options_less_the_disabled_and_the_users_own() {
    let policy = good(EVERYTHING);
    let path = |name: &str| policy.paths.iter().find(|path| path.name == name);
    assert!(path("insecure-port").is_some(), "by option");
    assert!(path("echo-to-node").is_none(), "disabled");
    assert_eq!(path("apiserver-to-etcd").unwrap().origin, "catalogue");

    let backup = path("backup-to-etcd").unwrap();
    assert_eq!(
        (backup.origin.as_str(), backup.mode),
        ("p.yaml:56", Some(Mode::DryRun))
    );
    let metrics = path("gateway-metrics").unwrap();
    assert_eq!(metrics.because, "Probes\nover loopback.");
    assert!(metrics.loopback);

    let probe = path("etcd-metrics").unwrap();
    assert_eq!((probe.loopback, probe.locality), (true, Locality::SameNode));
    assert!(
        good(SMALL)
            .paths
            .iter()
            .all(|path| path.name != "insecure-port")
    );
}

#[test]
fn a_path_to_what_is_loopback_only_is_over_loopback() {
    let text = SMALL
        .replace("from: [backup]", "from: [scheduler]")
        .replace("etcd:client", "etcd:metrics");
    let policy = good(&text);
    let path = policy.paths.last().unwrap();
    assert_eq!((path.loopback, path.locality), (true, Locality::SameNode));
}

#[test]
fn without_a_profile_there_are_only_the_own_paths() {
    let policy = good(&SMALL.replace("  profile: control-plane-stacked-etcd\n", ""));
    assert_eq!(policy.paths.len(), 1);
    assert!(
        policy.component("etcd").unwrap().guard,
        "components of the catalogue stay guarded"
    );
}

#[test]
fn every_profile_with_every_option_is_valid() {
    for profile in Catalogue::builtin().profiles() {
        let options: Vec<&str> = profile
            .options
            .iter()
            .map(|option| option.name.as_str())
            .collect();
        let chosen = format!(
            "profile: {}\n  options: [{}]",
            profile.name,
            options.join(", ")
        );
        let placed = "    admin: { addresses: [192.0.2.1] }
    load-balancer: { addresses: [10.0.0.5] }
    konnectivity-agent: { cgroups: [/agent] }
    monitoring: { cgroups: [/monitoring] }
    dns: { addresses: [10.244.0.9] }
    session: { cgroups: [/user.slice] }
    metrics-server: { addresses: [10.244.0.8] }
    backup:";
        let text = SMALL.replace("    backup:", placed);
        let policy = good(&text.replace("profile: control-plane-stacked-etcd", &chosen));
        assert_eq!(
            policy.paths.len(),
            profile.paths_with(&options).len() + 1,
            "{}",
            profile.name
        );
    }
}

#[test]
fn every_path_that_is_off_is_turned_on_by_one_line() {
    for path in Catalogue::builtin().paths() {
        let profile = "profile: control-plane-stacked-etcd";
        let base = good(SMALL);
        let on = base.paths.iter().any(|known| known.name == path.name);
        let line = if on { "disable" } else { "enable" };
        let placed = "    monitoring: { cgroups: [/monitoring] }\n    backup:";
        let text = SMALL.replace("    backup:", placed);
        let policy = good(&text.replace(profile, &format!("{profile}\n  {line}: [{}]", path.name)));
        let now = policy.paths.iter().any(|known| known.name == path.name);
        assert_eq!(now, !on, "{line}: [{}]", path.name);
    }
}

#[test]
fn what_a_user_enables_no_option_disables() {
    let text = SMALL
        .replace(
            "    backup:",
            "    konnectivity-agent: { cgroups: [/agent] }\n    backup:",
        )
        .replace(
            "  mode:",
            "  options: [konnectivity]\n  enable: [apiserver-to-webhook]\n  mode:",
        );
    let policy = good(&text);
    let has = |name: &str| policy.paths.iter().any(|path| path.name == name);
    assert!(has("konnectivity-agent-to-server") && has("apiserver-to-webhook"));
    assert!(!has("apiserver-to-kubelet"), "the direct way closes");
    let server = policy.component("konnectivity-server").unwrap();
    assert!(server.guard, "an option guards");
    let open = text.replace(
        "    backup:",
        "    konnectivity-server: { guard: false }\n    backup:",
    );
    assert!(!good(&open).component("konnectivity-server").unwrap().guard);
    assert!(!good(SMALL).component("konnectivity-server").unwrap().guard);
}

#[test]
fn a_denial_text_stays_with_its_port() {
    let text = SMALL.replace(
        "    backup:",
        "    etcd: { ports: { client: 4001/tcp, peer: { match: 7001/tcp, denial: mine } } }\n    backup:",
    );
    let policy = good(&text);
    let denial = |port: &str| &policy.component("etcd").unwrap().port(port).unwrap().denial;
    assert!(denial("client").contains("every secret"));
    assert_eq!(denial("peer"), "mine");
}

#[test]
fn warnings_name_what_is_inert() {
    let warned = |from: &str, to: &str| good(&SMALL.replace(from, to)).warnings.join("\n");
    for (from, to, fragment) in [
        (
            "",
            "",
            "component `admin` has no addresses and no cgroups: it can not use paths `admin-to-apiserver` and `admin-to-node`",
        ),
        (
            "",
            "",
            "component `dns` has no addresses: nothing is found there, path `dns` can not be used",
        ),
        (
            "pods: { cgroups: [/kubepods.slice] }\n    ",
            "",
            "component `pods` declares no cgroups",
        ),
        (
            "  podNetworks: [10.244.0.0/16]\n",
            "",
            "component `pods` lives in the pod networks, and `podNetworks` is empty",
        ),
        (
            "otherTraffic: Allow",
            "otherTraffic: Drop",
            "there is no way back in",
        ),
        (
            "otherTraffic: Allow",
            "otherTraffic: Drop",
            "`registry` are anywhere outside of the cluster",
        ),
        (
            "otherTraffic: Allow",
            "otherTraffic: Drop",
            "no `serviceNetworks`: pods reach no service",
        ),
        (
            "",
            "",
            "no node has `podNetworks` of its own: `kubelet-probes` leads",
        ),
        (
            "    apiserver:secure: ['10.96.0.1:443']",
            "    backup:agent: ['10.96.0.1:443']",
            "service `backup:agent` has a virtual address, and no path leads",
        ),
        (
            "    backup:",
            "    kubelets: { cgroups: [/k] }\n    backup:",
            "the catalogue has `kubelet`",
        ),
        (
            "    backup:",
            "    kubelets: { cgroups: [/k] }\n    backup:",
            "`kubelets` is on no path and guards no port",
        ),
    ] {
        let warnings = warned(from, to);
        assert!(
            warnings.contains(fragment),
            "{from} -> {to}: no {fragment:?} in\n{warnings}"
        );
    }
    assert!(!warned("", "").contains("no way back in"));
    let placed = warned(
        "    backup:",
        "    admin: { addresses: [192.0.2.1] }\n    backup:",
    );
    assert!(!placed.contains("`admin`"), "{placed}");
}

#[test]
fn a_node_is_told_what_does_not_concern_it() {
    let policy = good(SMALL);
    let warnings = warnings_for_node(&policy, "w1").join("\n");
    for path in ["apiserver-to-etcd", "scheduler-serving", "backup-to-etcd"] {
        assert!(warnings.contains(path), "no {path} in {warnings}");
    }
    for path in [
        "kubelet-probes",
        "apiserver-to-kubelet",
        "pod-to-apiserver",
        "dns",
        "arp",
    ] {
        assert!(
            !warnings.contains(&format!(" {path},")),
            "{path} in {warnings}"
        );
    }
    let control = warnings_for_node(&policy, "cp1").join("\n");
    assert!(!control.contains("apiserver-to-etcd"), "{control}");
    let idle = good(&SMALL.replace("roles: [worker]", "roles: []"));
    assert!(idle.warnings.join("\n").contains("without roles"));
    assert!(warnings_for_node(&policy, "w9").is_empty());
}

#[test]
fn the_digest_is_of_the_text() {
    let digest = |text: &str| good(text).digest;
    assert_eq!(digest(SMALL), digest(SMALL));
    assert_ne!(digest(SMALL), digest(&SMALL.replace("nightly", "weekly")));
}

#[test]
fn the_description_names_everything() {
    let policy = good(EVERYTHING);
    let text = render::describe(&policy);
    for part in policy
        .paths
        .iter()
        .map(|path| path.name.as_str())
        .chain(policy.nodes.iter().map(|node| node.name.as_str()))
        .chain(
            policy
                .components
                .iter()
                .map(|component| component.name.as_str()),
        )
        .chain([
            "what is denied is dropped",
            "loopback only",
            "also 10.96.0.1:443/tcp",
            "p.yaml:56",
            "same node",
        ])
    {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    assert!(text.lines().all(|line| !line.ends_with(' ')));
}

#[test]
fn the_summary_has_stable_names() {
    let json = serde_json::to_value(render::summary(&good(SMALL))).unwrap();
    assert_eq!(json["mode"], "DryRun");
    assert_eq!(json["otherTraffic"], "Allow");
    assert_eq!(json["nodes"][0]["podInterfaces"][0], "cali*");
    let last = json["paths"].as_array().unwrap().last().unwrap();
    assert_eq!(
        (&last["to"], &last["ports"][0]),
        (&"etcd:client".into(), &"2379/tcp".into())
    );
    assert_eq!(last["origin"], "p.yaml:23");
    let pods = json["components"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["name"] == "pods")
        .unwrap();
    assert_eq!(
        (&pods["inPodNetworks"], &pods["inert"]),
        (&true.into(), &false.into())
    );
}

#[test]
fn what_the_documents_call_https_asks_for_tls() {
    let policy = good(SMALL);
    assert_eq!(policy.tls_lock, Mode::Enforce);
    let dry = SMALL.replace("  mode: DryRun", "  tlsLock: DryRun\n  mode: Enforce");
    let policy = good(&dry);
    assert_eq!(
        (policy.tls_lock, policy.mode),
        (Mode::DryRun, Mode::Enforce)
    );
    let backup = |policy: &crate::Policy| {
        let mut paths = policy.paths.iter();
        paths
            .find(|path| path.name == "backup-to-etcd")
            .unwrap()
            .tls
    };
    assert!(!backup(&policy), "own paths need not");
    let asks = "      tls: Required\n      because:";
    assert!(backup(&good(&SMALL.replace("      because:", asks))));

    let catalogue = Catalogue::builtin();
    // If only some paths to a port require TLS, it is not required from a sender that is on both kinds.
    for path in catalogue.paths() {
        let others = catalogue.paths().iter().filter(|other| {
            other.to_component == path.to_component && other.to_port == path.to_port
        });
        for other in others {
            assert_eq!(path.tls, other.tls, "{} and {}", path.name, other.name);
        }
    }
    for name in [
        "apiserver-to-etcd",
        "pod-to-apiserver",
        "apiserver-to-webhook",
    ] {
        let path = catalogue.paths().iter().find(|path| path.name == name);
        assert!(path.unwrap().tls, "{name}");
    }
}

/// Metadata that other tools write is ignored.
#[test]
fn the_metadata_of_others_is_ignored() {
    let plain = "metadata: { name: test }";
    let full = "metadata: { name: test, namespace: kube-system, labels: { a: b }, annotations: { c: '' } }";
    assert_eq!(good(&SMALL.replace(plain, full)).name, "small");
}

/// The narrower of two patterns wins, so this is not an error: one is a plain name, or is within the other, or they are
/// never both on a node.
#[test]
fn patterns_that_overlap_are_fine_where_one_is_narrower() {
    for (etcd, backup) in [
        ("'/s/a*'", "'/s/*'"),
        ("'/s/a-1'", "'/s/*-1'"),
        ("'/s/a*'", "'/s/a*'"),
        ("'/s/*-pod1.slice'", "'/s/*-pod2.slice'"),
        ("'/s/a*'", "'/*/b'"),
        ("'/s/a*/x'", "'/s/*b'"),
    ] {
        let components =
            format!("    etcd: {{ cgroups: [{etcd}] }}\n    backup: {{ cgroups: [{backup}], ");
        good(&SMALL.replace("    backup: { ", &components));
    }
    // One may run on workers only, and the other on no worker.
    let apart =
        "    etcd: { cgroups: ['/s/a*'] }\n    backup: { runsOn: [worker], cgroups: ['/s/*b'], ";
    good(&SMALL.replace("    backup: { ", apart));
    for (uplinks, pods) in [
        ("'en*'", "'eni*'"),
        ("eth0", "'*'"),
        ("'averyverylong*'", "'*eryshortname'"),
    ] {
        let text = SMALL.replace("uplinks: [eth0]", &format!("uplinks: [{uplinks}]"));
        good(&text.replace(
            "podInterfaces: ['cali*']",
            &format!("podInterfaces: [{pods}]"),
        ));
    }
}

#[test]
fn a_port_of_the_catalogue_can_be_switched_off() {
    let off = SMALL.replace(
        "    backup:",
        "    apiserver: { ports: { insecure: null } }\n    etcd: { ports: { metrics: ~ } }\n    backup:",
    );
    let policy = good(&off);
    assert!(
        policy
            .component("apiserver")
            .unwrap()
            .port("insecure")
            .is_none()
    );
    assert!(
        policy.paths.iter().all(|path| path.name != "etcd-metrics"),
        "it leads nowhere"
    );
    for (line, name) in [("options", "insecure-port"), ("enable", "insecure-port")] {
        let asked = off.replace("  mode:", &format!("  {line}: [{name}]\n  mode:"));
        let errors = said(&read(&asked).expect_err("a path to nowhere"));
        assert!(
            errors.contains("leads to `apiserver:insecure`, which the Inventory switches off"),
            "{errors}"
        );
    }
    // A port that is only kept closed may be used by another component.
    let own = SMALL.replace(
        "    backup:",
        "    etcd: { ports: { peer: [2380/tcp, 2383/tcp] } }\n    backup:",
    );
    assert!(good(&own).component("etcd").unwrap().port("http").is_none());
    assert!(
        good(SMALL)
            .component("etcd")
            .unwrap()
            .port("http")
            .is_some()
    );
}

/// Senders that reach a guarded endpoint and are broader than they look.
#[test]
fn wide_senders_are_listed() {
    let wide = |from: &str, to: &str| -> Vec<String> {
        let text = SMALL.replace(from, to).replace(
            "  mode: DryRun",
            "  options: [monitoring, joining-nodes]\n  mode: DryRun",
        );
        let policy =
            good(&text.replace("    pods:", "    monitoring: { cgroups: [/m] }\n    pods:"));
        let senders = policy.wide_senders.iter();
        senders
            .map(|wide| {
                format!(
                    "{} is {}: {}",
                    wide.component,
                    wide.who,
                    wide.endpoints.join(" ")
                )
            })
            .collect()
    };
    let plain = wide("", "");
    for part in [
        "apiserver is every process in no declared cgroup on its nodes: apiserver:secure etcd:client kubelet:api",
        "joining-node is anyone outside the cluster: apiserver:secure",
    ] {
        assert!(
            plain.iter().any(|line| line == part),
            "no {part:?} in {plain:#?}"
        );
    }
    let none = |name: &str| {
        !plain
            .iter()
            .any(|line| line.starts_with(&format!("{name} ")))
    };
    for name in [
        "pods",
        "world",
        "node",
        "backup",
        "kube-proxy",
        "cloud-controller-manager",
    ] {
        assert!(none(name), "{name} in {plain:#?}");
    }
    for (addresses, part) in [
        (
            "[192.0.2.0/24]",
            "backup is anyone in 192.0.2.0/24: etcd:client",
        ),
        (
            "[10.244.0.0/16]",
            "backup is every pod in 10.244.0.0/16: etcd:client",
        ),
        (
            "[10.0.0.0/8]",
            "backup is every pod in 10.0.0.0/8: etcd:client",
        ),
    ] {
        let found = wide("[192.0.2.7]", addresses);
        assert!(
            found.iter().any(|line| line == part),
            "no {part:?} in {found:#?}"
        );
    }
}

/// An option places strangers outside; an apiserver without addresses in the inventory is not placed.
#[test]
fn only_what_is_for_strangers_is_anywhere_outside() {
    let joining = |text: &str| {
        let policy = good(text);
        let component = policy.component("joining-node").unwrap();
        (component.is_elsewhere(), component.only_receives_outside)
    };
    assert_eq!(joining(SMALL), (false, false));
    let with = SMALL.replace("  mode:", "  options: [joining-nodes]\n  mode:");
    assert_eq!(joining(&with), (true, false));
    let placed = with.replace(
        "    backup:",
        "    joining-node: { addresses: [10.9.0.0/16] }\n    backup:",
    );
    assert_eq!(joining(&placed), (false, false));
    let anywhere = "    apiserver: { outside: true }\n    mine: { outside: true }\n    backup:";
    let policy = good(&SMALL.replace("    backup:", anywhere));
    assert!(policy.component("apiserver").unwrap().only_receives_outside);
    assert!(!policy.component("mine").unwrap().only_receives_outside);
    let warnings = policy.warnings.join("\n");
    assert!(
        warnings.contains("no sender outside is recognised as it"),
        "{warnings}"
    );
    assert!(
        warnings.contains("inactive until the Inventory declares their `cgroups`"),
        "{warnings}"
    );
    assert!(
        warnings.contains("`kube-proxy` (kube-proxy-to-apiserver)"),
        "{warnings}"
    );
}

#[test]
fn what_is_said_first_fits_on_a_screen() {
    let text = render::brief(&good(EVERYTHING));
    assert!(text.lines().count() <= 24, "{text}");
    for part in [
        "profile control-plane-stacked-etcd with insecure-port",
        "your own: backup-to-etcd, gateways, gateway-metrics",
        "nodes with control-plane, etcd: cp1",
        "Broad senders to guarded endpoints",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
}
