//! The same rule in every filter's words: so many addresses may not reach one port, and so many paths
//! lead elsewhere.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use enforcer_tests::plan::{CP1, OUT, Party, W1};

/// The port that the many may not reach. The clients may.
pub const GUARDED: u16 = 4000;
/// One that the many may reach.
const OPEN: u16 = 4001;
/// The ports of the other paths begin here.
const OTHERS: u16 = 5000;

/// Which family a measurement is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// Its name for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// A host's address of this family.
    pub const fn of(self, party: &Party) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(party.v4),
            Self::V6 => IpAddr::V6(party.v6),
        }
    }

    /// The guarded port on the node.
    pub const fn guarded(self) -> SocketAddr {
        SocketAddr::new(self.of(&CP1), GUARDED)
    }

    /// One of the many: no two are neighbours, so that no table can take them together.
    pub fn one_of_many(self, number: u32) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 0)) + 2 * number).into(),
            Self::V6 => {
                let base = u128::from(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 0));
                Ipv6Addr::from(base + 2 * u128::from(number)).into()
            }
        }
    }
}

/// How big a rule set is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scale {
    pub family: Family,
    pub addresses: u32,
    pub paths: u16,
}

impl Scale {
    fn many(self) -> impl Iterator<Item = IpAddr> {
        (0..self.addresses).map(move |number| self.family.one_of_many(number))
    }

    /// Lines of a table of all addresses, as the product has it: on average six of IPv4 to a line, or three of IPv6 to two.
    pub fn lines(self) -> u32 {
        match self.family {
            Family::V4 => self.addresses.div_ceil(6),
            Family::V6 => (self.addresses * 2).div_ceil(3),
        }
    }

    fn joined(self, separator: &str) -> String {
        let mut text = String::new();
        for address in self.many() {
            if !text.is_empty() {
                text.push_str(separator);
            }
            // Writing to a string does not fail.
            let _ = write!(text, "{address}");
        }
        text
    }

    /// The product's policy for the node `cp1` of a lab.
    pub fn yaml(self, lab: &str) -> String {
        let mut text = format!(
            "apiVersion: enforcer.dev/v1alpha1
kind: Inventory
metadata: {{ name: bench }}
spec:
  nodes:
    cp1:
      addresses: [\"{}\", \"{}\"]
      uplinks: [eth0]
      podInterfaces: ['cali*']
      cgroupRoot: /{lab}/cp1
  components:
    server:
      addresses: [\"{}\", \"{}\"]
      guard: true
      ports:
        guarded: [{GUARDED}/tcp, {GUARDED}/udp]
        open: [{OPEN}/udp]
",
            CP1.v4, CP1.v6, CP1.v4, CP1.v6
        );
        for number in 0..self.paths.saturating_sub(1) {
            let _ = writeln!(text, "        p{number}: [{}/tcp]", OTHERS + number);
        }
        let _ = writeln!(
            text,
            "    clients: {{ addresses: [\"{}\", \"{}\", \"{}\", \"{}\"] }}\n    many:\n      addresses:",
            W1.v4, W1.v6, OUT.v4, OUT.v6
        );
        for address in self.many() {
            let _ = writeln!(text, "      - \"{address}\"");
        }
        text.push_str(
            "---
apiVersion: enforcer.dev/v1alpha1
kind: PathPolicy
metadata: { name: bench }
spec:
  mode: Enforce
  otherTraffic: Allow
  paths:
    - { name: clients, from: [clients, server], to: 'server:guarded', because: measured }
    - { name: many, from: [many], to: 'server:open', because: measured }
",
        );
        for number in 0..self.paths.saturating_sub(1) {
            let _ = writeln!(
                text,
                "    - {{ name: path-{number}, from: [clients], to: 'server:p{number}', because: measured }}"
            );
        }
        text
    }

    fn set(self, flags: &str) -> String {
        let kind = match self.family {
            Family::V4 => "ipv4_addr",
            Family::V6 => "ipv6_addr",
        };
        format!(
            "set many {{ type {kind}; {flags} elements = {{ {} }} }}",
            self.joined(", ")
        )
    }

    fn word(self) -> &'static str {
        match self.family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        }
    }

    /// nftables at the input hook, behind connection tracking, with a set that takes prefixes, too, as
    /// the product does.
    pub fn nft_input(self) -> String {
        let word = self.word();
        let mut rules = String::new();
        for number in 0..self.paths.saturating_sub(1) {
            let _ = writeln!(
                rules,
                "{word} saddr {} tcp dport {} accept",
                self.family.of(&W1),
                OTHERS + number
            );
        }
        format!(
            "table inet bench {{\n{}\nchain input {{ type filter hook input priority 0;\n\
             ct state established,related accept\n{rules}\n\
             {word} saddr @many meta l4proto {{ tcp, udp }} th dport {GUARDED} drop\n}}\n}}\n",
            self.set("flags interval;")
        )
    }

    /// nftables at its best: where packets enter, without connection tracking, with a hash table of single
    /// addresses.
    pub fn nft_ingress(self) -> String {
        let word = self.word();
        format!(
            "table netdev bench {{\n{}\nchain ingress {{ type filter hook ingress device eth0 priority 0;\n\
             {word} saddr @many meta l4proto {{ tcp, udp }} th dport {GUARDED} drop\n}}\n}}\n",
            self.set("")
        )
    }

    /// iptables with connection tracking and a rule for each address.
    pub fn iptables(self) -> String {
        let rules = self.many().fold(String::new(), |mut rules, address| {
            let _ = writeln!(
                rules,
                "-A INPUT -s {address} -p udp --dport {GUARDED} -j DROP"
            );
            rules
        });
        format!("{TRACKED}{rules}COMMIT\n")
    }

    /// iptables with connection tracking and a set.
    pub fn iptables_with_set(self) -> String {
        format!(
            "{TRACKED}-A INPUT -p udp --dport {GUARDED} -m set --match-set many src -j DROP\nCOMMIT\n"
        )
    }

    /// The set for that, for `ipset restore`.
    pub fn ipset(self) -> String {
        let family = match self.family {
            Family::V4 => "inet",
            Family::V6 => "inet6",
        };
        let head = format!("create many hash:ip family {family} maxelem 200000 hashsize 65536\n");
        self.many().fold(head, |mut text, address| {
            let _ = writeln!(text, "add many {address}");
            text
        })
    }
}

const TRACKED: &str =
    "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n";
