//! Packets, built byte by byte, and what is read from them.

use super::*;

const A: [u8; 4] = [10, 0, 0, 1];
const B: [u8; 4] = [10, 0, 0, 2];

fn eth(kind: u16, rest: &[u8]) -> Vec<u8> {
    [&[2; 12], &kind.to_be_bytes()[..], rest].concat()
}

/// An IPv4 header with `options` (a multiple of 4 bytes) in front of a payload.
fn v4(protocol: u8, fragment: u16, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let header_len = 20 + options.len();
    let total = (header_len + payload.len()) as u16;
    let mut h = vec![0x40 | (header_len / 4) as u8, 0];
    h.extend(total.to_be_bytes());
    h.extend([0, 1]);
    h.extend(fragment.to_be_bytes());
    h.extend([64, protocol, 0, 0]);
    [&h[..], &A, &B, options, payload].concat()
}

fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut h = vec![0x60, 0, 0, 0];
    h.extend((payload.len() as u16).to_be_bytes());
    h.extend([next, 64]);
    [&h[..], &v6_addr(1), &v6_addr(2), payload].concat()
}

fn v6_addr(last: u8) -> [u8; 16] {
    let mut addr = [0; 16];
    (addr[0], addr[15]) = (0xfd, last);
    addr
}

fn tcp(flags: u8) -> Vec<u8> {
    let mut h = vec![0; 20];
    h[..4].copy_from_slice(&[0x9c, 0x40, 0x09, 0x4b]);
    h[13] = flags;
    h
}

fn udp() -> Vec<u8> {
    vec![0x00, 0x35, 0x30, 0x39, 0, 8, 0, 0]
}

fn ports(port_kind: PortKind, source: u16, destination: u16, phase: Phase) -> Ports {
    Ports {
        phase,
        kind: port_kind,
        source,
        destination,
    }
}

#[track_caller]
fn reads(bytes: &[u8], start: Start, expected: Ports) -> Packet {
    let packet = parse(bytes, start).expect("readable");
    assert_eq!((packet.shape, packet.ports), (Shape::Flow, expected));
    packet
}

#[track_caller]
fn refuses(bytes: &[u8], start: Start, reason: Reason) {
    assert_eq!(parse(bytes, start), Err(reason));
}

#[test]
fn the_flags_of_a_segment_say_whether_it_opens() {
    for flags in 0..=255u8 {
        let opening = flags & 0x12 == 0x02;
        let phase = if opening {
            Phase::Opening
        } else {
            Phase::Following
        };
        let expected = ports(PortKind::Tcp, 40_000, 2379, phase);
        let packet = reads(&v4(TCP, 0, &[], &tcp(flags)), Start::Ip, expected);
        assert_eq!((packet.src, packet.dst), (Ip::v4(A), Ip::v4(B)));
        reads(&v6(TCP, &tcp(flags)), Start::Ip, expected);
    }
}

#[test]
fn ports_stand_behind_options_tags_and_extension_headers() {
    let expected = ports(PortKind::Tcp, 40_000, 2379, Phase::Opening);
    let syn = tcp(0x02);
    reads(&v4(TCP, 0, &[1; 12], &syn), Start::Ip, expected);
    let plain = v4(TCP, 0, &[], &syn);
    let tag = |kind: u16, inner: &[u8]| [&[0, 7], &kind.to_be_bytes()[..], inner].concat();
    reads(&eth(ETH_IPV4, &plain), Start::Ethernet, expected);
    reads(
        &eth(ETH_VLAN, &tag(ETH_IPV4, &plain)),
        Start::Ethernet,
        expected,
    );
    let two = tag(ETH_VLAN, &tag(ETH_IPV4, &plain));
    reads(&eth(ETH_QINQ, &two), Start::Ethernet, expected);
    refuses(
        &eth(
            ETH_QINQ,
            &tag(ETH_VLAN, &tag(ETH_VLAN, &tag(ETH_IPV4, &plain))),
        ),
        Start::Ethernet,
        Reason::UnknownProtocol,
    );
    let hop_by_hop = [
        &[ROUTING, 0, 0, 0, 0, 0, 0, 0][..],
        &[AUTHENTICATION, 1, 0, 0],
        &[0; 12],
    ];
    let authentication = [&[TCP, 2, 0, 0][..], &[0; 12], &syn].concat();
    let chain = [&hop_by_hop.concat()[..], &authentication].concat();
    reads(&v6(HOP_BY_HOP, &chain), Start::Ip, expected);
}

#[test]
fn unreadable_shapes_have_their_reasons() {
    let syn = tcp(0x02);
    let whole = v4(TCP, 0, &[], &syn);
    for len in 0..whole.len() {
        let mut cut = whole[..len].to_vec();
        refuses(&cut, Start::Ip, Reason::TruncatedHeader);
        if len >= 20 {
            // The same where the packet itself says that it ends there, with padding behind.
            cut[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            cut.resize(60, 0xff);
            refuses(&cut, Start::Ip, Reason::TruncatedHeader);
        }
    }
    let whole = v6(TCP, &syn);
    for len in 0..whole.len() {
        refuses(&whole[..len], Start::Ip, Reason::TruncatedHeader);
    }
    refuses(&[0x54; 60], Start::Ip, Reason::BadHeader);
    let mut short_header = v4(TCP, 0, &[], &syn);
    short_header[0] = 0x44;
    refuses(&short_header, Start::Ip, Reason::BadHeader);
    refuses(
        &eth(0x88cc, &[0; 60]),
        Start::Ethernet,
        Reason::UnknownProtocol,
    );
    let mut mapped = v6(TCP, &syn);
    mapped[8..24].copy_from_slice(&Ip::v4(A).0);
    refuses(&mapped, Start::Ip, Reason::BadHeader);
}

#[test]
fn extension_headers_are_bounded_and_in_place() {
    let options = |next| [next, 0, 0, 0, 0, 0, 0, 0];
    let chain = |n: usize| {
        let mut bytes: Vec<u8> = (1..n).flat_map(|_| options(DESTINATION_OPTIONS)).collect();
        bytes.extend(options(TCP));
        bytes.extend(tcp(0x02));
        v6(DESTINATION_OPTIONS, &bytes)
    };
    assert!(parse(&chain(MAX_EXTENSION_HEADERS)[..], Start::Ip).is_ok());
    refuses(
        &chain(MAX_EXTENSION_HEADERS + 1),
        Start::Ip,
        Reason::TooManyHeaders,
    );
    let late = [&options(HOP_BY_HOP)[..], &options(TCP), &tcp(0x02)].concat();
    refuses(
        &v6(DESTINATION_OPTIONS, &late),
        Start::Ip,
        Reason::TooManyHeaders,
    );
}

#[test]
fn the_first_fragment_must_hold_what_decides() {
    const MORE: u16 = 0x2000;
    let syn = tcp(0x02);
    let expected = ports(PortKind::Tcp, 40_000, 2379, Phase::Opening);
    reads(&v4(TCP, MORE, &[], &syn), Start::Ip, expected);
    refuses(
        &v4(TCP, MORE, &[], &syn[..16]),
        Start::Ip,
        Reason::FragmentTooShort,
    );
    refuses(&v4(TCP, 1, &[], &syn), Start::Ip, Reason::FragmentTooShort);
    let later = parse(&v4(TCP, 2, &[], &syn)[..], Start::Ip).expect("readable");
    assert_eq!(
        (later.shape, later.ports),
        (Shape::LaterFragment, Ports::NONE)
    );

    let fragment = |offset: u16, more: u16, payload: &[u8]| {
        let field = ((offset << 3) | more).to_be_bytes();
        v6(
            FRAGMENT,
            &[&[TCP, 0xff, field[0], field[1], 0, 0, 0, 9][..], payload].concat(),
        )
    };
    // An atomic fragment is a whole packet, and the reserved byte is no length.
    reads(&fragment(0, 0, &syn), Start::Ip, expected);
    reads(&fragment(0, 1, &syn), Start::Ip, expected);
    refuses(
        &fragment(0, 1, &syn[..8]),
        Start::Ip,
        Reason::FragmentTooShort,
    );
    let later = parse(&fragment(3, 1, &syn)[..], Start::Ip).expect("readable");
    assert_eq!(later.shape, Shape::LaterFragment);
}

#[test]
fn datagrams_echo_and_other_protocols() {
    reads(
        &v4(UDP, 0, &[], &udp()),
        Start::Ip,
        ports(PortKind::Udp, 53, 12345, Phase::Datagram),
    );
    for (kind, expected) in [
        (8, ports(PortKind::Icmp, 0, 8, Phase::Opening)),
        (0, ports(PortKind::Icmp, 8, 0, Phase::Answer)),
        (5, ports(PortKind::Icmp, 0, 5, Phase::Opening)),
    ] {
        reads(
            &v4(ICMP, 0, &[], &[kind, 0, 0, 0, 0, 0, 0, 0]),
            Start::Ip,
            expected,
        );
    }
    reads(
        &v6(ICMP6, &[135; 8]),
        Start::Ip,
        ports(PortKind::Icmp6, 0, 135, Phase::Opening),
    );
    reads(
        &v6(ICMP6, &[129; 8]),
        Start::Ip,
        ports(PortKind::Icmp6, 128, 129, Phase::Answer),
    );
    reads(
        &v4(112, 0, &[], &[0; 8]),
        Start::Ip,
        ports(PortKind::Protocol, 112, 112, Phase::Following),
    );
}

#[test]
fn arp_is_read_by_its_protocol_addresses() {
    let arp = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &[2; 6], &A, &[0; 6], &B].concat();
    let expected = ports(PortKind::Arp, 0, 0, Phase::Following);
    let packet = reads(&eth(ETH_ARP, &arp), Start::Ethernet, expected);
    assert_eq!((packet.src, packet.dst), (Ip::v4(A), Ip::v4(B)));
    refuses(
        &eth(ETH_ARP, &arp[..20]),
        Start::Ethernet,
        Reason::TruncatedHeader,
    );
    refuses(
        &eth(ETH_ARP, &[0xff; 28]),
        Start::Ethernet,
        Reason::BadHeader,
    );
}

/// What came from A to B, as B would have sent it.
fn turned(mut packet: Vec<u8>) -> Vec<u8> {
    let at = if packet[0] >> 4 == 4 { 12..20 } else { 8..40 };
    let half = at.len() / 2;
    packet[at].rotate_left(half);
    packet
}

#[test]
fn an_icmp_error_is_read_by_what_it_quotes() {
    let error = |kind, quote: &[u8]| {
        let message = [&[kind, 4, 0, 0, 0, 0, 5, 0], quote].concat();
        if quote[0] >> 4 == 4 {
            v4(ICMP, 0, &[], &message)
        } else {
            v6(ICMP6, &message)
        }
    };
    let read = |error: Vec<u8>| parse(&error[..], Start::Ip).expect("readable");
    let quote = turned(v4(TCP, 0, &[], &tcp(0x02)[..8]));
    let packet = read(error(3, &quote));
    assert_eq!((packet.shape, packet.icmp_error), (Shape::IcmpError, 3));
    assert_eq!(packet.quoted_dst, Ip::v4(A));
    assert_eq!(
        packet.ports,
        ports(PortKind::Tcp, 40_000, 2379, Phase::Following)
    );

    let later = turned(v4(TCP, 100, &[], &[0; 8]));
    let packet = read(error(11, &later));
    assert_eq!(packet.shape, Shape::IcmpErrorLaterFragment);
    assert_eq!(packet.ports, Ports::NONE);

    let too_big = turned(v6(UDP, &udp()));
    let packet = read(error(2, &too_big));
    assert_eq!((packet.shape, packet.icmp_error), (Shape::IcmpError, 2));

    for astray in [&quote, &later, &too_big] {
        let packet = read(error(3, &turned(astray.clone())));
        assert_eq!(packet.shape, Shape::IcmpErrorAstray);
    }

    for bad in [&quote[..10], &v6(TCP, &tcp(2))[..], &[0x45; 4][..]] {
        let error = v4(ICMP, 0, &[], &[&[3, 4, 0, 0, 0, 0, 5, 0][..], bad].concat());
        refuses(&error, Start::Ip, Reason::IcmpBadQuote);
    }
}

/// Bytes of which only [plain](PacketBytes::PLAIN) packets are read, as the kernel programs do first.
struct Plain<'a>(&'a [u8]);

impl PacketBytes for Plain<'_> {
    const PLAIN: bool = true;

    fn load<const N: usize>(&self, _: usize) -> Option<[u8; N]> {
        None
    }

    fn near<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.load(offset)
    }

    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        self.0.words(offset)
    }

    fn long_words<const N: usize>(&self, offset: usize) -> Option<[u64; N]> {
        self.0.long_words(offset)
    }
}

/// Nothing that arrives may make the parser panic, and what is plain is read as anything else.
#[test]
fn no_bytes_make_it_panic() {
    let mut state: u64 = match std::env::var("ENFORCER_TEST_SEED") {
        Ok(seed) => seed.parse().expect("ENFORCER_TEST_SEED is a number"),
        Err(_) => {
            std::time::UNIX_EPOCH
                .elapsed()
                .map_or(1, |t| t.as_nanos() as u64)
                | 1
        }
    };
    println!("ENFORCER_TEST_SEED={state}");
    let mut random = move || {
        // xorshift64: good enough to shuffle bytes, and repeatable from one number.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let seeds = [
        eth(ETH_IPV4, &v4(TCP, 0, &[1; 8], &tcp(2))),
        eth(
            ETH_IPV6,
            &v6(
                HOP_BY_HOP,
                &[&[TCP, 0, 0, 0, 0, 0, 0, 0][..], &tcp(2)].concat(),
            ),
        ),
        v4(
            ICMP,
            0,
            &[],
            &[&[3; 8][..], &v4(UDP, 0, &[], &udp())].concat(),
        ),
        v6(ICMP6, &[&[1; 8][..], &v6(FRAGMENT, &[0; 24])].concat()),
        v4(UDP, 0, &[], &udp()),
        eth(ETH_IPV6, &v6(TCP, &tcp(0x12))),
    ];
    let mut plain = 0;
    for round in 0..200_000 {
        let mut bytes = seeds[round % seeds.len()].clone();
        for _ in 0..random() % 4 {
            let at = random() as usize % bytes.len();
            bytes[at] = random() as u8;
        }
        bytes.truncate(random() as usize % (bytes.len() + 1));
        for start in [Start::Ethernet, Start::Ip] {
            let packet = parse(&bytes[..], start);
            if let Ok(read) = parse(&Plain(&bytes), start) {
                assert_eq!(packet, Ok(read));
                plain += 1;
            }
        }
    }
    assert!(plain > 1000, "{plain} plain packets");
}
