//! The shapes of the documents as they are written. What is text in YAML stays text here, with its location, so that
//! `validate` can report everything that is wrong with a document in one go.
//!
//! The JSON Schema for editors is generated from these types: their comments are what an editor shows.

use std::fmt;

use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::span::{Entries, Span, Spanned};

/// The only `apiVersion`.
pub(crate) const API_VERSION: &str = "enforcer.dev/v1alpha1";

/// One YAML document.
#[derive(Debug, Default)]
pub(crate) struct Document {
    pub api_version: Option<Spanned<String>>,
    pub kind: Option<Spanned<String>>,
    pub metadata: Option<Spanned<Metadata>>,
    /// The location of `spec:`.
    pub spec_span: Span,
    pub spec: Spec,
    /// Keys that no document has.
    pub unknown: Vec<Spanned<String>>,
}

/// The `spec` of a document, by its kind.
#[derive(Debug, Default)]
pub(crate) enum Spec {
    /// No `spec`.
    #[default]
    Missing,
    /// `spec` comes before `kind`, so it can not be read.
    BeforeKind,
    /// The kind is unknown.
    UnknownKind,
    Inventory(Spanned<InventorySpec>),
    PathPolicy(Spanned<PathPolicySpec>),
    Catalogue(Spanned<CatalogueSpec>),
    PathCases(Spanned<PathCasesSpec>),
}

/// The kinds, in the order in which messages list them.
pub(crate) const KINDS: [&str; 4] = ["Inventory", "PathPolicy", "PathCases", "Catalogue"];

/// Kubernetes' object metadata, as far as it is used here.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Metadata {
    /// The object's name, for operators and reports.
    pub name: Spanned<String>,
    /// Written by kustomize, Helm or Argo CD, and ignored.
    #[serde(default, rename = "namespace")]
    #[schemars(with = "String")]
    _namespace: IgnoredAny,
    /// Written by kustomize, Helm or Argo CD, and ignored.
    #[serde(default, rename = "labels")]
    #[schemars(with = "std::collections::BTreeMap<String, String>")]
    _labels: IgnoredAny,
    /// Written by kustomize, Helm or Argo CD, and ignored.
    #[serde(default, rename = "annotations")]
    #[schemars(with = "std::collections::BTreeMap<String, String>")]
    _annotations: IgnoredAny,
}

/// Where the components are on this cluster: one inventory for all nodes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("required" = ["nodes"]))]
pub(crate) struct InventorySpec {
    /// The nodes of the cluster by name.
    #[schemars(extend("minProperties" = 1))]
    #[serde(default)]
    pub nodes: Entries<NodeSource>,
    /// Networks (CIDR) that pods get their addresses from. A packet from a pod's interface with
    /// another source address is forged.
    #[serde(default)]
    pub pod_networks: Vec<Spanned<String>>,
    /// Networks (CIDR) that services get their virtual addresses from: traffic to them goes to pods.
    #[serde(default)]
    pub service_networks: Vec<Spanned<String>>,
    /// Virtual addresses by the endpoint behind them: `"apiserver:secure": ["10.96.0.1:443"]`.
    #[serde(default)]
    pub services: Entries<Vec<Spanned<String>>>,
    /// Components by name. With a name of the catalogue, each field that is written here replaces the catalogue's, and
    /// ports are replaced by name. Any other name is a new component.
    #[serde(default)]
    pub components: Entries<ComponentSource>,
}

/// A node.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("required" = ["addresses"]))]
pub(crate) struct NodeSource {
    /// The node's own addresses, IPv4 and IPv6: single addresses, not networks.
    #[schemars(extend("minItems" = 1))]
    #[serde(default)]
    pub addresses: Vec<Spanned<String>>,
    /// What runs here: `control-plane`, `etcd`, `worker`, or a role that a component of yours names in
    /// `runsOn`.
    #[serde(default)]
    pub roles: Vec<Spanned<String>>,
    /// Interfaces towards other hosts: names or globs (`eth*`).
    #[serde(default)]
    pub uplinks: Vec<Spanned<String>>,
    /// Host ends of the pods' interfaces: names or globs (`cali*`).
    #[serde(default)]
    pub pod_interfaces: Vec<Spanned<String>>,
    /// The part of the pod networks that this node's pods get their addresses from. Without it, a pod may be on any
    /// node.
    #[serde(default)]
    pub pod_networks: Vec<Spanned<String>>,
    /// Where this node's cgroups start, below the cgroup2 mount; `/` by default.
    pub cgroup_root: Option<Spanned<String>>,
}

/// A component: a named sender or receiver.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ComponentSource {
    /// One sentence that describes it.
    pub description: Option<Spanned<String>>,
    /// It runs on nodes with one of these roles, and has their addresses; `"*"` is every node.
    pub runs_on: Option<Vec<Spanned<String>>>,
    /// It lives in the pod networks, behind pods' interfaces.
    pub in_pod_networks: Option<bool>,
    /// Addresses or networks where it is.
    pub addresses: Option<Vec<Spanned<String>>>,
    /// It is outside of the cluster: at every address that nothing else in the inventory has, unless `addresses` is
    /// given.
    pub outside: Option<bool>,
    /// cgroups of its processes, absolute below the node's cgroup root, with globs per segment. A process
    /// in a cgroup below belongs to it, too; the deepest declared cgroup wins.
    pub cgroups: Option<Vec<Spanned<String>>>,
    /// Components that it also counts as when it sends.
    pub part_of: Option<Vec<Spanned<String>>>,
    /// `true`: no process counts as it unless `cgroups` is given. Otherwise a process in no declared cgroup counts as
    /// any component of its node that declares none.
    pub needs_cgroup: Option<bool>,
    /// Names of its programs, as `ps` shows them. A denial uses them as a hint about which component was denied; they
    /// grant nothing.
    pub programs: Option<Vec<Spanned<String>>>,
    /// Whether its ports are guarded under `otherTraffic: Allow`, so that a peer without a path is denied; `true` by
    /// default.
    pub guard: Option<bool>,
    /// Its ports by name. `null` switches a port of the catalogue off, if something else uses it.
    #[serde(default)]
    pub ports: Entries<PortSource>,
}

/// A named port: `2379/tcp`, or several, or with `match`, `loopbackOnly` and `denial`; or `null`, which
/// switches a port of the catalogue off.
#[derive(Debug)]
pub(crate) struct PortSource {
    /// `null`: the component has no such port on this cluster.
    pub off: bool,
    /// The texts; those without a location of their own have the port's.
    pub matches: Vec<Spanned<String>>,
    pub loopback_only: bool,
    pub denial: Option<Spanned<String>>,
}

/// A named port with its locks.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct DetailedPort {
    /// What it matches.
    #[schemars(with = "PortTexts")]
    pub r#match: Spanned<Texts>,
    /// It may be reached, and bound, on a loopback address only.
    #[serde(default)]
    pub loopback_only: bool,
    /// What operators should know about a denial here: what the port is, and why so few may use it.
    pub denial: Option<Spanned<String>>,
}

/// One text or several.
#[derive(Debug)]
pub(crate) struct Texts(pub Vec<Spanned<String>>);

/// What is allowed, and what happens to the rest.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PathPolicySpec {
    /// A set of documented paths from the catalogue: `control-plane-stacked-etcd`, `worker` …
    pub profile: Option<Spanned<String>>,
    /// Options of the profile: `konnectivity`, `load-balancer` …
    #[serde(default)]
    pub options: Vec<Spanned<String>>,
    /// Further paths of the catalogue, by name; also ones that an option disables.
    #[serde(default)]
    pub enable: Vec<Spanned<String>>,
    /// `DryRun`: judged and reported, nothing is dropped. `Enforce`: what is denied is dropped.
    #[schemars(with = "String", extend("enum" = MODES))]
    pub mode: Option<Spanned<String>>,
    /// What happens to traffic towards anything but the guarded endpoints: `Allow`, or `Drop` for
    /// "drop all other connectivity".
    #[schemars(with = "String", extend("enum" = OTHER_TRAFFIC))]
    pub other_traffic: Option<Spanned<String>>,
    /// What happens to plaintext on paths with `tls: Required`: `Enforce`, the default, drops it; `DryRun` reports it.
    #[schemars(with = "Option<String>", extend("enum" = MODES))]
    pub tls_lock: Option<Spanned<String>>,
    /// Paths of your own, in addition to the profile's.
    #[serde(default)]
    pub paths: Vec<Spanned<PathSource>>,
    /// Paths of the profile and its options to leave out.
    #[serde(default)]
    pub disable: Vec<Spanned<String>>,
}

/// The values of `mode`.
pub(crate) const MODES: [&str; 2] = ["DryRun", "Enforce"];
/// The values of `otherTraffic`.
pub(crate) const OTHER_TRAFFIC: [&str; 2] = ["Allow", "Drop"];
/// The values of `locality`.
pub(crate) const LOCALITIES: [&str; 2] = ["Any", "SameNode"];
/// The values of a case's `at`.
pub(crate) const AT_VALUES: [&str; 2] = ["ThisNode", "Elsewhere"];
/// The values of `tls`.
pub(crate) const TLS: [&str; 2] = ["Optional", "Required"];

/// A path: from which components to which endpoint.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("required" = ["name", "from", "to", "because"]))]
pub(crate) struct PathSource {
    /// The path's name, unique.
    pub name: Spanned<String>,
    /// The components that may open it.
    #[schemars(extend("minItems" = 1))]
    #[serde(default)]
    pub from: Vec<Spanned<String>>,
    /// Where it leads: `component:port`.
    #[schemars(with = "String", extend("pattern" = "^[^:]+:[^:]+$"))]
    pub to: Option<Spanned<String>>,
    /// Only over a loopback address that stays on lo.
    #[serde(default)]
    pub loopback: bool,
    /// `SameNode`: both ends on the same node. `Any` by default.
    #[schemars(with = "Option<String>", extend("enum" = LOCALITIES))]
    pub locality: Option<Spanned<String>>,
    /// `Required`: what the client sends first must be a TLS ClientHello; plaintext is dropped. `Optional` by default.
    #[schemars(with = "Option<String>", extend("enum" = TLS))]
    pub tls: Option<Spanned<String>>,
    /// `DryRun`: a connection to this endpoint that no path allows is reported, and not dropped.
    #[schemars(with = "Option<String>", extend("enum" = MODES))]
    pub mode: Option<Spanned<String>>,
    /// Why it exists, for the next reader of the policy.
    #[schemars(with = "String")]
    pub because: Option<Spanned<String>>,
    /// What users observe if the path is missing.
    pub symptom: Option<Spanned<String>>,
    /// The document that names it.
    pub document: Option<Spanned<String>>,
    /// The first Kubernetes version that has it: `"1.18"`.
    #[schemars(extend("pattern" = VERSION_PATTERN))]
    pub since: Option<Spanned<String>>,
    /// The first Kubernetes version that no longer has it: `"1.20"`.
    #[schemars(extend("pattern" = VERSION_PATTERN))]
    pub until: Option<Spanned<String>>,
}

/// The built-in catalogue.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct CatalogueSpec {
    /// Roles that a node may have, with what they mean.
    pub roles: Entries<Spanned<String>>,
    pub components: Entries<ComponentSource>,
    pub paths: Vec<Spanned<PathSource>>,
    /// Sets of paths that profiles share.
    pub groups: Entries<GroupSource>,
    /// What can be added to profiles.
    pub options: Entries<OptionSource>,
    pub profiles: Entries<ProfileSource>,
}

/// A set of paths that profiles share.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct GroupSource {
    pub description: Spanned<String>,
    pub paths: Vec<Spanned<String>>,
}

/// A set of paths that a policy selects by name.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ProfileSource {
    pub description: Spanned<String>,
    /// Groups whose paths it has.
    pub groups: Vec<Spanned<String>>,
    /// Further paths.
    #[serde(default)]
    pub paths: Vec<Spanned<String>>,
    /// Options that it offers.
    #[serde(default)]
    pub options: Vec<Spanned<String>>,
    /// Components that the Inventory must place.
    #[serde(default)]
    pub requires: Vec<Spanned<String>>,
}

/// What an option changes in a profile.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct OptionSource {
    pub description: Spanned<String>,
    /// Paths it adds.
    #[serde(default)]
    pub enable: Vec<Spanned<String>>,
    /// Paths it removes.
    #[serde(default)]
    pub disable: Vec<Spanned<String>>,
    /// Components that it guards.
    #[serde(default)]
    pub guard: Vec<Spanned<String>>,
    /// Components that are anywhere outside with this option, unless the Inventory says where.
    #[serde(default)]
    pub outside: Vec<Spanned<String>>,
    /// Components that the Inventory must place.
    #[serde(default)]
    pub requires: Vec<Spanned<String>>,
}

/// A policy's own tests: connections and the expected verdicts, as one node sees them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("required" = ["node", "cases"]))]
pub(crate) struct PathCasesSpec {
    /// The node that judges.
    pub node: Spanned<String>,
    /// The cases.
    #[schemars(extend("minItems" = 1))]
    #[serde(default)]
    pub cases: Vec<Spanned<CaseSource>>,
}

/// A connection, or a port to bind, and the expected verdict.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct CaseSource {
    /// What this case is about, unique in the file.
    pub name: Spanned<String>,
    /// The sender.
    pub from: Spanned<SenderSource>,
    /// The destination: `10.0.0.11:2379/tcp`, `[fd00::11]:53/udp`, or without ports `10.0.0.11 echo`,
    /// `10.0.0.11 3/icmp`, `fd00::11 135/icmpv6`, `10.0.0.11 112/ip`, `10.0.0.11 arp`.
    pub to: Option<Spanned<String>>,
    /// Instead of `to`: the address and port that a process binds, `0.0.0.0:8080/tcp`.
    pub bind: Option<Spanned<String>>,
    /// Whether this node has the address itself: `ThisNode` or `Elsewhere`. Required where the policy does not say so:
    /// for service addresses and for addresses that nodes share.
    #[schemars(with = "Option<String>", extend("enum" = AT_VALUES))]
    pub at: Option<Spanned<String>>,
    /// The verdict.
    pub expect: Spanned<ExpectSource>,
    /// Why the verdict must be this one.
    pub because: Option<Spanned<String>>,
}

/// The sender: a pod, a process of this node, or a host behind an uplink.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct SenderSource {
    /// A packet that enters by a pod's interface, with this source address (also a forged one).
    pub pod: Option<Spanned<String>>,
    /// A process of this node in this cgroup, in the host's network namespace.
    pub cgroup: Option<Spanned<String>>,
    /// Alone: a packet that arrives on an uplink with this source address. With `cgroup`: the source
    /// address that the process uses.
    pub address: Option<Spanned<String>>,
}

/// The verdict: `allowed: PATH`, `allowed: otherTraffic` or `denied: REASON`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ExpectSource {
    /// The path that allows it, or `otherTraffic` if no endpoint is guarded.
    pub allowed: Option<Spanned<String>>,
    /// The reason of the denial.
    pub denied: Option<Spanned<String>>,
    /// With `denied`: the endpoint at which it was denied, `component:port`.
    pub endpoint: Option<Spanned<String>>,
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(DocumentVisitor)
    }
}

struct DocumentVisitor;

impl<'de> Visitor<'de> for DocumentVisitor {
    type Value = Document;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with apiVersion, kind, metadata and spec")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
        let mut document = Document::default();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            match key.value.as_str() {
                "apiVersion" => document.api_version = Some(map.next_value()?),
                "kind" => document.kind = Some(map.next_value()?),
                "metadata" => document.metadata = Some(map.next_value()?),
                "spec" => {
                    document.spec_span = key.span;
                    document.spec = spec_of(document.kind.as_ref(), &mut map)?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    document.unknown.push(key);
                }
            }
        }
        Ok(document)
    }
}

/// Reads `spec` in the shape of its kind. Serde could find `kind` first by buffering the whole document, but would lose
/// every location in it; so `kind` has to come first, as it usually does.
fn spec_of<'de, A: MapAccess<'de>>(
    kind: Option<&Spanned<String>>,
    map: &mut A,
) -> Result<Spec, A::Error> {
    Ok(match kind.map(|kind| kind.value.as_str()) {
        Some("Inventory") => Spec::Inventory(map.next_value()?),
        Some("PathPolicy") => Spec::PathPolicy(map.next_value()?),
        Some("Catalogue") => Spec::Catalogue(map.next_value()?),
        Some("PathCases") => Spec::PathCases(map.next_value()?),
        Some(_) => {
            map.next_value::<IgnoredAny>()?;
            Spec::UnknownKind
        }
        None => {
            map.next_value::<IgnoredAny>()?;
            Spec::BeforeKind
        }
    })
}

impl<'de> Deserialize<'de> for PortSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PortVisitor)
    }
}

struct PortVisitor;

impl<'de> Visitor<'de> for PortVisitor {
    type Value = PortSource;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a port such as 2379/tcp, a list of them, an object with match, loopbackOnly and denial, or null for none",
        )
    }

    fn visit_unit<E: de::Error>(self) -> Result<PortSource, E> {
        Ok(PortSource {
            off: true,
            matches: Vec::new(),
            loopback_only: false,
            denial: None,
        })
    }

    fn visit_none<E: de::Error>(self) -> Result<PortSource, E> {
        self.visit_unit()
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<PortSource, E> {
        Ok(PortSource {
            off: false,
            matches: TextsVisitor.visit_str::<E>(text)?.0,
            loopback_only: false,
            denial: None,
        })
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<PortSource, E> {
        self.visit_str(&value.to_string())
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<PortSource, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<PortSource, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<PortSource, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<PortSource, A::Error> {
        Ok(PortSource {
            off: false,
            matches: TextsVisitor.visit_seq(items)?.0,
            loopback_only: false,
            denial: None,
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<PortSource, A::Error> {
        let port = DetailedPort::deserialize(de::value::MapAccessDeserializer::new(map))?;
        let mut matches = port.r#match.value.0;
        for text in &mut matches {
            text.span = text.span.or(port.r#match.span);
        }
        Ok(PortSource {
            off: false,
            matches,
            loopback_only: port.loopback_only,
            denial: port.denial,
        })
    }
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextsVisitor)
    }
}

struct TextsVisitor;

impl<'de> Visitor<'de> for TextsVisitor {
    type Value = Texts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a port such as 2379/tcp, or a list of them")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Texts, E> {
        Ok(Texts(vec![Spanned {
            value: text.to_owned(),
            span: Span::default(),
        }]))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Texts, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Texts, A::Error> {
        let mut texts = Vec::new();
        while let Some(text) = items.next_element()? {
            texts.push(text);
        }
        Ok(Texts(texts))
    }
}

/// `2379/tcp`, `30000-32767/udp`, `any/tcp`, `echo/icmp`, `8/icmp`, `135/icmpv6`, `112/ip`, `arp`, `any`; or a list
/// of them.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(
    dead_code,
    reason = "the shape that the schema shows; `Texts` is what reads it"
)]
pub(crate) enum PortTexts {
    One(#[schemars(extend("pattern" = PORT_PATTERN))] String),
    Many(#[schemars(extend("minItems" = 1))] Vec<PortText>),
}

/// One port.
#[derive(JsonSchema)]
#[schemars(inline)]
#[expect(dead_code, reason = "the shape that the schema shows")]
pub(crate) struct PortText(#[schemars(extend("pattern" = PORT_PATTERN))] String);

#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(
    dead_code,
    reason = "the shape that the schema shows; `PortSource` is what reads it"
)]
enum PortShape {
    Texts(PortTexts),
    Detailed(DetailedPort),
    /// The component has no such port on this cluster.
    Off,
}

impl JsonSchema for PortSource {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Port".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        PortShape::json_schema(generator)
    }
}

const VERSION_PATTERN: &str = r"^[0-9]+\.[0-9]+$";
const PORT_PATTERN: &str =
    r"^(any|arp|echo/icmp|(any|[0-9]+(-[0-9]+)?)/(tcp|udp|icmp|icmpv6)|[0-9]+/ip)$";
