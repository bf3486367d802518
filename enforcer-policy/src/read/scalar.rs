//! The small grammars: names, addresses, ports, endpoints, interfaces and cgroup paths. Each function parses one text,
//! or returns what to write instead.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::error::{Problem, quote};
use crate::glob::{BadGlob, Glob};
use crate::model::{Locality, Mode, OtherTraffic, PortMatch};
use crate::vocabulary::Vocabulary;

/// A name of a component, port, path, role, profile or option: a DNS label, as Kubernetes has them.
pub(crate) fn name(text: &str, what: &str) -> Result<(), Problem> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let outer = |c: char| inner(c) && c != '-';
    let valid = text.len() <= 63
        && text.starts_with(outer)
        && text.ends_with(outer)
        && text.chars().all(inner);
    if valid {
        return Ok(());
    }
    Err(Problem::new(
        format!("{} is no name for a {what}", quote(text)),
        "a name has lower-case letters, digits and dashes, at most 63, and a letter or digit at both ends",
    ))
}

/// A node's name: labels with dots between them.
pub(crate) fn node_name(text: &str) -> Result<(), Problem> {
    if text.len() <= 253 && text.split('.').all(|label| name(label, "node").is_ok()) {
        return Ok(());
    }
    Err(Problem::new(
        format!("{} is no name for a node", quote(text)),
        "write the name that Kubernetes shows: lower-case letters, digits, dashes and dots",
    ))
}

/// One address of a host.
pub(crate) fn host_address(text: &str) -> Result<IpAddr, Problem> {
    let address = address(text)?;
    let kind = if address.is_loopback() {
        "a loopback address, which every host has"
    } else if address.is_unspecified() {
        "no host's address"
    } else if address.is_multicast() || address == IpAddr::from([255; 4]) {
        "an address of many hosts at once"
    } else {
        return Ok(address);
    };
    Err(Problem::new(
        format!("{} is {kind}", quote(text)),
        "write an address by which other hosts know this one",
    ))
}

/// Any address.
pub(crate) fn address(text: &str) -> Result<IpAddr, Problem> {
    let help = "write an address such as `10.0.0.11` or `fd00::11`";
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_some() => Err(mapped(text, IpAddr::V6(v6))),
        Ok(address) => Ok(address),
        Err(_) => Err(match text.split_once('/') {
            Some((host, length)) if host.parse::<IpAddr>().is_ok() && is_number(length) => {
                Problem::new(
                    format!(
                        "{} is a network, and one address is wanted here",
                        quote(text)
                    ),
                    format!("write {}", quote(host)),
                )
            }
            _ if text.contains('%') => Problem::new(
                format!(
                    "{} names an interface, which addresses here do not",
                    quote(text)
                ),
                help,
            ),
            _ => Problem::new(format!("{} is not an IP address", quote(text)), help),
        }),
    }
}

/// A network, or one address.
pub(crate) fn network(text: &str) -> Result<IpNet, Problem> {
    if !text.contains('/') {
        return address(text).map(IpNet::from).map_err(|problem| Problem {
            help: Some("write `10.0.0.11`, `10.0.0.0/24` or `fd00::/64`".to_owned()),
            ..problem
        });
    }
    let Ok(net) = text.parse::<IpNet>() else {
        return Err(Problem::new(
            format!("{} is not a network", quote(text)),
            "write an address and the length of its prefix: `10.244.0.0/16` or `fd01::/56`",
        ));
    };
    if let IpAddr::V6(v6) = net.addr()
        && v6.to_ipv4_mapped().is_some()
    {
        return Err(mapped(text, net.addr()));
    }
    if net.trunc() != net {
        return Err(Problem::new(
            format!("{} has bits set beyond its prefix", quote(text)),
            format!(
                "write `{}` for the network, or `{}` for the address alone",
                net.trunc(),
                net.addr()
            ),
        ));
    }
    Ok(net)
}

/// A network of pods: never all addresses, and never a single address by mistake.
pub(crate) fn pod_network(text: &str) -> Result<IpNet, Problem> {
    let net = network(text)?;
    if !text.contains('/') {
        return Err(Problem::new(
            format!(
                "{} is one address, and a network is wanted here",
                quote(text)
            ),
            format!("write a network such as `10.244.0.0/16`, or `{net}` if it is meant"),
        ));
    }
    if net.prefix_len() == 0 {
        return Err(Problem::new(
            format!("{} would make everybody a pod", quote(text)),
            "write the networks that pods get their addresses from (`--cluster-cidr`)",
        ));
    }
    Ok(net)
}

/// A network of services' virtual addresses, with the same rules as a network of pods.
pub(crate) fn service_network(text: &str) -> Result<IpNet, Problem> {
    let help =
        "write the networks that services get their addresses from (`--service-cluster-ip-range`)";
    pod_network(text).map_err(|problem| match network(text) {
        Ok(net) if net.prefix_len() == 0 => Problem::new(
            format!("{} would make everybody a service", quote(text)),
            help,
        ),
        _ => problem,
    })
}

/// A component's network or address: not loopback, as every host has its own.
pub(crate) fn component_network(text: &str) -> Result<IpNet, Problem> {
    let net = network(text)?;
    if net.addr().is_loopback() {
        return Err(Problem::new(
            format!("{} is on every host, so it identifies nobody", quote(text)),
            "name the process's cgroup (`cgroups`), or the nodes it runs on (`runsOn`)",
        ));
    }
    Ok(net)
}

/// A virtual address with its port.
pub(crate) fn service_address(text: &str) -> Result<(IpAddr, u16), Problem> {
    let Ok(socket) = text.parse::<SocketAddr>() else {
        let help = match text.parse::<IpAddr>() {
            Ok(IpAddr::V4(v4)) => format!("write the port, too: `{v4}:443`"),
            Ok(IpAddr::V6(v6)) => format!("write the port, too: `[{v6}]:443`"),
            Err(_) => "write `10.96.0.1:443` or `[fd10::1]:443`".to_owned(),
        };
        return Err(Problem::new(
            format!("{} is not an address with a port", quote(text)),
            help,
        ));
    };
    host_address(&socket.ip().to_string())?;
    if socket.port() == 0 {
        return Err(Problem::new(
            "port 0 is no port",
            "ports are from 1 to 65535",
        ));
    }
    Ok((socket.ip(), socket.port()))
}

/// A version of Kubernetes: major and minor.
pub(crate) fn version(text: &str) -> Result<(u32, u32), Problem> {
    let parts = text.split_once('.');
    let parsed = parts.and_then(|(major, minor)| {
        let number = |part: &str| is_number(part).then(|| part.parse().ok()).flatten();
        Some((number(major)?, number(minor)?))
    });
    parsed.ok_or_else(|| {
        Problem::new(
            format!("{} is no version of Kubernetes", quote(text)),
            "write major and minor version in quotes: `\"1.20\"`",
        )
    })
}

/// `component:port`, each a name.
pub(crate) fn endpoint(text: &str) -> Result<(&str, &str), Problem> {
    match text.split_once(':') {
        Some((component, port))
            if !component.is_empty() && !port.is_empty() && !port.contains(':') =>
        {
            Ok((component, port))
        }
        _ => Err(Problem::new(
            format!("{} is no endpoint", quote(text)),
            "write a component and the name of its port: `etcd:client`",
        )),
    }
}

/// What a port matches. `echo/icmp` is two.
pub(crate) fn port(text: &str) -> Result<Vec<PortMatch>, Problem> {
    match text {
        "any" => return Ok(vec![PortMatch::Any]),
        "arp" => return Ok(vec![PortMatch::Arp]),
        "echo/icmp" => return Ok(vec![PortMatch::Icmp(8, 8), PortMatch::Icmp6(128, 128)]),
        _ => {}
    }
    let Some((range, protocol)) = text.split_once('/') else {
        let help = if is_number(text) || text.split('-').all(is_number) {
            format!("write the protocol, too: `{text}/tcp` or `{text}/udp`")
        } else {
            PORT_HELP.to_owned()
        };
        return Err(Problem::new(format!("{} is no port", quote(text)), help));
    };
    let one = match protocol {
        "tcp" => bounds(range, 1, u16::MAX).map(|(a, b)| PortMatch::Tcp(a, b)),
        "udp" => bounds(range, 1, u16::MAX).map(|(a, b)| PortMatch::Udp(a, b)),
        "icmp" => message_types(range).map(|(a, b)| PortMatch::Icmp(a, b)),
        "icmpv6" => message_types(range).map(|(a, b)| PortMatch::Icmp6(a, b)),
        "ip" => ip_protocol(range),
        "sctp" => Err(Problem::new(
            "SCTP's ports are not told apart",
            "write `132/ip`",
        )),
        _ => Err(Problem::unknown(
            format!("unknown protocol {} in {}", quote(protocol), quote(text)),
            protocol,
            PROTOCOLS,
        )),
    };
    one.map(|one| vec![one])
}

/// An interface's name, or a glob over names.
pub(crate) fn interface(text: &str) -> Result<(), Problem> {
    let plain = text
        .chars()
        .all(|c| c.is_ascii_graphic() && !matches!(c, '/' | '[' | ']' | ':'));
    glob(text, text)?;
    let is_glob = text.contains(['*', '?']);
    let fits = is_glob || text.len() <= MAX_INTERFACE_NAME;
    if plain && fits && !text.is_empty() && text != "." && text != ".." && text.len() <= 64 {
        return Ok(());
    }
    Err(Problem::new(
        format!("{} is no name of an interface", quote(text)),
        "write a name of at most 15 characters such as `eth0`, or a glob such as `cali*`",
    ))
}

/// A cgroup below the root; globs are allowed for components, but not for a node's root.
pub(crate) fn cgroup(text: &str) -> Result<(), Problem> {
    let Some(rest) = text.strip_prefix('/') else {
        return Err(Problem::new(
            format!("{} is not an absolute path", quote(text)),
            format!("write {}", quote(&format!("/{text}"))),
        ));
    };
    if rest.is_empty() {
        return Ok(());
    }
    if let Some(trimmed) = text.strip_suffix('/') {
        return Err(Problem::new(
            format!("{} ends in a slash", quote(text)),
            format!("write {}", quote(trimmed)),
        ));
    }
    let bad = |segment: &str| segment.is_empty() || segment == "." || segment == "..";
    let too_long = |segment: &str| segment.len() > MAX_CGROUP_NAME;
    if rest.split('/').any(too_long) {
        return Err(Problem::new(
            format!(
                "a part of {} is longer than {MAX_CGROUP_NAME} bytes",
                quote(text)
            ),
            "no cgroup has such a name: write the path that `systemd-cgls` shows",
        ));
    }
    if rest.split('/').any(bad) || text.chars().any(char::is_control) || text.len() > 4096 {
        return Err(Problem::new(
            format!("{} is no path of a cgroup", quote(text)),
            "write it as below /sys/fs/cgroup, without `.`, `..` and empty segments",
        ));
    }
    if text.starts_with("/sys/fs/cgroup") {
        return Err(Problem::new(
            format!("{} starts with the mount point", quote(text)),
            "write the part after /sys/fs/cgroup: cgroups are below the cgroup2 mount",
        ));
    }
    Ok(())
}

/// A component's cgroup: a path with globs per segment.
pub(crate) fn cgroup_pattern(text: &str) -> Result<(), Problem> {
    cgroup(text)?;
    text.split('/').try_for_each(|segment| glob(segment, text))
}

fn glob(part: &str, text: &str) -> Result<(), Problem> {
    Glob::new(part).map(drop).map_err(|bad| {
        let help = match bad {
            BadGlob::OpenClass => "write `[a-z]`, or `?` for any one character",
            BadGlob::DoubleStar => {
                "write one `*`: it stands for a part of one name, and never for a `/`"
            }
        };
        Problem::new(format!("{} is no pattern: {bad}", quote(text)), help)
    })
}

/// `DryRun` or `Enforce`.
pub(crate) fn mode(text: &str) -> Option<Mode> {
    match text {
        "DryRun" => Some(Mode::DryRun),
        "Enforce" => Some(Mode::Enforce),
        _ => None,
    }
}

/// `Allow` or `Drop`.
pub(crate) fn other_traffic(text: &str) -> Option<OtherTraffic> {
    match text {
        "Allow" => Some(OtherTraffic::Allow),
        "Drop" => Some(OtherTraffic::Drop),
        _ => None,
    }
}

/// `Any` or `SameNode`.
pub(crate) fn locality(text: &str) -> Option<Locality> {
    match text {
        "Any" => Some(Locality::Any),
        "SameNode" => Some(Locality::SameNode),
        _ => None,
    }
}

/// `Required` (true) or `Optional`.
pub(crate) fn tls(text: &str) -> Option<bool> {
    match text {
        "Required" => Some(true),
        "Optional" => Some(false),
        _ => None,
    }
}

/// Decimal digits and nothing else: `+5` parses as a number elsewhere.
pub(crate) fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// One port number, as in `2379`.
pub(crate) fn port_number(text: &str) -> Result<u16, Problem> {
    bounds(text, 1, u16::MAX).and_then(|(first, last)| {
        if first == last && is_number(text) {
            Ok(first)
        } else {
            Err(Problem::new(
                format!("{} is not one port", quote(text)),
                "write one number",
            ))
        }
    })
}

/// One message type or protocol number.
pub(crate) fn byte(text: &str) -> Result<u8, Problem> {
    let (first, last) = bounds(text, 0, u16::from(u8::MAX))?;
    match u8::try_from(first) {
        Ok(byte) if first == last && is_number(text) => Ok(byte),
        _ => Err(Problem::new(
            format!("{} is not one number", quote(text)),
            "write one number",
        )),
    }
}

/// The number of an IP protocol that has no name of its own in the grammar.
pub(crate) fn ip_protocol(text: &str) -> Result<PortMatch, Problem> {
    let instead = match text {
        "any" => "any",
        "1" => "any/icmp",
        "6" => "any/tcp",
        "17" => "any/udp",
        "58" => "any/icmpv6",
        _ => return byte(text).map(PortMatch::Protocol),
    };
    Err(Problem::new(
        format!("{} has a name of its own", quote(&format!("{text}/ip"))),
        format!("write `{instead}`"),
    ))
}

fn message_types(range: &str) -> Result<(u8, u8), Problem> {
    let (first, last) = bounds(range, 0, u16::from(u8::MAX))?;
    // Both are within these bounds.
    Ok((first as u8, last as u8))
}

/// `any`, `N` or `N-M` within bounds.
fn bounds(range: &str, least: u16, most: u16) -> Result<(u16, u16), Problem> {
    if range == "any" {
        return Ok((least, most));
    }
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let number = |text: &str| {
        is_number(text)
            .then(|| text.parse::<u16>().ok())
            .flatten()
            .filter(|number| (least..=most).contains(number))
    };
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => Ok((first, last)),
        (Some(first), Some(last)) => Err(Problem::new(
            format!("{} ends before it starts", quote(range)),
            format!("write `{last}-{first}`"),
        )),
        _ => Err(Problem::new(
            format!("{} is out of range", quote(range)),
            format!("write a number from {least} to {most}, `N-M` for a range, or `any`"),
        )),
    }
}

fn mapped(text: &str, address: IpAddr) -> Problem {
    Problem::new(
        format!("{} is IPv4 in the form of IPv6", quote(text)),
        format!("write the IPv4 address: `{}`", address.to_canonical()),
    )
}

impl fmt::Display for PortMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut range = |first: u16, last: u16, least: u16, most: u16, name: &str| {
            if (first, last) == (least, most) {
                write!(f, "any/{name}")
            } else if first == last {
                write!(f, "{first}/{name}")
            } else {
                write!(f, "{first}-{last}/{name}")
            }
        };
        match *self {
            Self::Tcp(a, b) => range(a, b, 1, u16::MAX, "tcp"),
            Self::Udp(a, b) => range(a, b, 1, u16::MAX, "udp"),
            Self::Icmp(a, b) => range(a.into(), b.into(), 0, 255, "icmp"),
            Self::Icmp6(a, b) => range(a.into(), b.into(), 0, 255, "icmpv6"),
            Self::Protocol(number) => write!(f, "{number}/ip"),
            Self::Arp => f.write_str("arp"),
            Self::Any => f.write_str("any"),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl fmt::Display for OtherTraffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl fmt::Display for Locality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

const PROTOCOLS: [&str; 5] = ["tcp", "udp", "icmp", "icmpv6", "ip"];
const PORT_HELP: &str = "write `2379/tcp`, `30000-32767/udp`, `any/tcp`, `echo/icmp`, `8/icmp`, `135/icmpv6`, `112/ip`, \
                         `arp` or `any`";
/// IFNAMSIZ without its terminating zero.
pub(crate) const MAX_INTERFACE_NAME: usize = 15;
/// NAME_MAX.
const MAX_CGROUP_NAME: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_read_and_print() {
        use PortMatch::{Any, Arp, Icmp, Icmp6, Protocol, Tcp, Udp};
        for (text, expected) in [
            ("2379/tcp", vec![Tcp(2379, 2379)]),
            ("30000-32767/udp", vec![Udp(30000, 32767)]),
            ("any/tcp", vec![Tcp(1, 65535)]),
            ("any/udp", vec![Udp(1, 65535)]),
            ("8/icmp", vec![Icmp(8, 8)]),
            ("any/icmp", vec![Icmp(0, 255)]),
            ("133-137/icmpv6", vec![Icmp6(133, 137)]),
            ("any/icmpv6", vec![Icmp6(0, 255)]),
            ("112/ip", vec![Protocol(112)]),
            ("arp", vec![Arp]),
            ("any", vec![Any]),
        ] {
            assert_eq!(port(text).as_ref(), Ok(&expected), "{text}");
            assert_eq!(expected[0].to_string(), text);
        }
        assert_eq!(port("echo/icmp"), Ok(vec![Icmp(8, 8), Icmp6(128, 128)]));
    }

    #[test]
    fn what_is_no_port() {
        for (text, fragment) in [
            ("2379", "`2379/tcp`"),
            ("80-90", "`80-90/tcp`"),
            ("", "write `2379/tcp`"),
            ("http", "write `2379/tcp`"),
            ("80/TCP", "did you mean `tcp`?"),
            ("80/tpc", "did you mean `tcp`?"),
            ("0/tcp", "from 1 to 65535"),
            ("65536/tcp", "from 1 to 65535"),
            ("+80/tcp", "from 1 to 65535"),
            ("90-80/tcp", "write `80-90`"),
            ("256/icmp", "from 0 to 255"),
            ("6/ip", "write `any/tcp`"),
            ("any/ip", "write `any`"),
            ("1-2/ip", "write one number"),
            ("/tcp", "from 1 to 65535"),
            ("-/tcp", "from 1 to 65535"),
        ] {
            let problem = port(text).expect_err(text);
            let said = format!("{} {}", problem.message, problem.help.unwrap_or_default());
            assert!(said.contains(fragment), "{text}: {said}");
        }
    }
}
