//! Inputs that mean something, from which a fuzzer finds the others.

/// The policies of the repository, and one that uses every word of the language.
pub fn policies() -> Vec<Vec<u8>> {
    [
        include_str!("../../enforcer-policy/src/tests/everything.yaml"),
        include_str!("../../policies/worker.yaml"),
        include_str!("../../policies/control-plane-stacked-etcd.yaml"),
        SMALL,
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// Without a profile, so that reading it takes no time.
const SMALL: &str = "\
apiVersion: enforcer.dev/v1alpha1
kind: Inventory
metadata: { name: small }
spec:
  nodes:
    cp1: { addresses: [10.0.0.11, fd00::11], uplinks: [eth0], podInterfaces: ['cali*'] }
  podNetworks: [10.244.0.0/16]
  components:
    server: { addresses: [10.0.0.11], ports: { api: [443/tcp, 500-600/udp], all: any } }
    backup: { addresses: [192.0.2.7], cgroups: [/system.slice/backup.service] }
---
apiVersion: enforcer.dev/v1alpha1
kind: PathPolicy
metadata: { name: small }
spec:
  mode: Enforce
  otherTraffic: Drop
  paths:
    - { name: backup-to-server, from: [backup], to: server:api, tls: Required, because: nightly }
";

/// Path cases of the repository, shortened: what takes long to read is fuzzed little.
pub fn cases() -> Vec<Vec<u8>> {
    let shipped = [
        include_str!("../../policies/worker.cases.yaml"),
        include_str!("../../policies/etcd.drop.cases.yaml"),
    ];
    let shortened = |text: &str| {
        let lines: Vec<&str> = text.lines().take(60).collect();
        lines.join("\n").into_bytes()
    };
    shipped.map(shortened).to_vec()
}

/// Packets of every kind that the parser distinguishes, in the form of the target for packets.
pub fn packets() -> Vec<Vec<u8>> {
    let (v4, v6) = (ip4, ip6);
    let syn = tcp(50_000, 2379, 0x02, b"");
    let hello = tcp(50_000, 6443, 0x18, HELLO);
    let quote = ip4(6, 0, &tcp(2379, 50_000, 0x12, b""));
    let mut packets = vec![
        v4(6, 0, &syn),
        v4(6, 0, &hello),
        v4(17, 0, &udp(4789, b"payload")),
        v4(1, 0, &[8, 0, 0, 0, 0, 1, 0, 1]),
        v4(1, 0, &[&[3, 4, 0, 0, 0, 0, 5, 0][..], &quote].concat()),
        v4(4, 0, &ip4(6, 0, &syn)),
        // A first fragment, and a later one.
        v4(6, 0x2000, &syn),
        v4(17, 0x2003, b"the rest"),
        v6(6, &syn),
        v6(17, &udp(53, b"query")),
        v6(58, &[135, 0, 0, 0, 0, 0, 0, 0]),
        v6(
            58,
            &[&[1, 4, 0, 0, 0, 0, 0, 0][..], &ip6(17, &udp(53, b""))].concat(),
        ),
        // Hop-by-hop, routing, destination options, and a fragment header.
        v6(0, &[&[6, 0, 1, 4, 0, 0, 0, 0][..], &syn].concat()),
        v6(
            43,
            &[&[60, 0, 4, 0, 0, 0, 0, 0, 6, 0, 1, 4, 0, 0, 0, 0][..], &syn].concat(),
        ),
        v6(44, &[&[6, 0, 0, 1, 0, 0, 0, 7][..], &syn].concat()),
        v6(44, &[&[6, 0, 0, 9, 0, 0, 0, 7][..], &syn].concat()),
    ];
    // IPv4 options.
    let mut options = v4(6, 0, &[&[1, 1, 1, 0][..], &syn].concat());
    options[0] = 0x46;
    packets.push(options);
    let framed = packets.iter().map(|packet| {
        let kind: [u8; 2] = if packet[0] >> 4 == 4 {
            [8, 0]
        } else {
            [0x86, 0xdd]
        };
        [&[0; 1][..], &[2; 12], &kind, packet].concat()
    });
    let tagged = [
        &[0; 1][..],
        &[2; 12],
        &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 8, 0],
        &packets[0],
    ]
    .concat();
    let arp = [
        &[0; 1][..],
        &[2; 12],
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &[2; 6],
        &CP1,
        &[0; 6],
        &OUT,
    ]
    .concat();
    let bare = packets.iter().map(|packet| [&[1][..], packet].concat());
    framed.chain([tagged, arp]).chain(bare).collect()
}

/// Streams as the target for TLS takes them: whole, in pieces and out of order, and no TLS.
pub fn streams() -> Vec<Vec<u8>> {
    let piece =
        |at: u8, flags: u8, bytes: &[u8]| [&[at + 8, bytes.len() as u8, flags], bytes].concat();
    let first = [0xff, 0xff, 0xff, 0xfe];
    let whole = piece(0, 0x18, HELLO);
    let pieces = [
        piece(7, 0x10, &HELLO[7..]),
        piece(0, 0x10, &HELLO[..3]),
        piece(3, 0x10, &HELLO[3..7]),
    ];
    let plain = piece(0, 0x18, b"GET / HTTP/1.1\r\n");
    vec![
        [&first[..], &whole].concat(),
        [&first[..], &pieces.concat()].concat(),
        [&first[..], &plain].concat(),
    ]
}

/// The beginning of a ClientHello.
const HELLO: &[u8] = &[22, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3, 7, 7, 7];

const CP1: [u8; 4] = [10, 0, 0, 11];
const OUT: [u8; 4] = [192, 0, 2, 7];

fn ip4(protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let length = (20 + payload.len() as u16).to_be_bytes();
    let fragment = fragment.to_be_bytes();
    let header = [
        0x45,
        0,
        length[0],
        length[1],
        0,
        1,
        fragment[0],
        fragment[1],
        64,
        protocol,
        0,
        0,
    ];
    [&header[..], &OUT, &CP1, payload].concat()
}

fn ip6(next: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u16).to_be_bytes();
    let header = [0x60, 0, 0, 0, length[0], length[1], next, 64];
    let address = |last: u8| {
        let mut address = [0; 16];
        (address[0], address[15]) = (0xfd, last);
        address
    };
    [&header[..], &address(7), &address(0x11), payload].concat()
}

fn tcp(source: u16, destination: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    let ports = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    let rest = [0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 4, 0, 0, 0, 0, 0];
    [&ports[..], &rest, payload].concat()
}

fn udp(destination: u16, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len() as u16).to_be_bytes();
    [
        &50_000_u16.to_be_bytes()[..],
        &destination.to_be_bytes(),
        &length,
        &[0, 0],
        payload,
    ]
    .concat()
}
