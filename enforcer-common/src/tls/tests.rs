use super::*;

/// A ClientHello as a TLS library begins it: record version and its own.
fn hello(record: u8, own: u8) -> Vec<u8> {
    let mut bytes = vec![22, 3, record, 0x02, 0x00, 1, 0, 0x01, 0xfc, 3, own];
    bytes.extend((0..500u32).map(|i| i as u8));
    bytes
}

/// Payload behind a header of ten bytes, at a position of the stream that begins at `first`.
fn segment(first: u32, position: u32, payload: &[u8]) -> (Vec<u8>, Segment) {
    let bytes = [&[0xff; 10], payload].concat();
    let segment = Segment {
        seq: first.wrapping_add(position),
        from: 10,
        end: bytes.len() as u32,
        flags: 0x10,
        ..Segment::NONE
    };
    (bytes, segment)
}

fn passes(first: u32, position: u32, payload: &[u8]) -> bool {
    let (bytes, segment) = segment(first, position, payload);
    may_follow(bytes.as_slice(), &segment, first)
}

/// Ordinary sequence numbers, and streams over the end of them.
const FIRSTS: [u32; 5] = [0, 1, 77_777, u32::MAX, u32::MAX - 4];

#[test]
fn a_client_hello_passes_however_it_is_cut() {
    for first in FIRSTS {
        for (record, own) in [(1, 1), (1, 2), (1, 3), (2, 2), (3, 3)] {
            let hello = hello(record, own);
            for cut in 1..hello.len() {
                assert!(passes(first, 0, &hello[..cut]), "the first {cut} bytes");
                assert!(
                    passes(first, cut as u32, &hello[cut..]),
                    "what follows {cut} bytes"
                );
            }
            for position in 0..20 {
                assert!(passes(first, position, &hello[position as usize..][..1]));
            }
            // With the SYN (Fast Open), which counts for one.
            let (bytes, mut with_syn) = segment(first, 0, &hello);
            (with_syn.seq, with_syn.flags) = (first.wrapping_sub(1), 0x02);
            assert!(may_follow(bytes.as_slice(), &with_syn, with_syn.start()));
        }
    }
}

/// A server does not read it with the rest.
#[test]
fn urgent_data_does_not_pass() {
    for first in FIRSTS {
        for len in [0, 1, 600] {
            let (bytes, mut urgent) = segment(first, 0, &hello(1, 3)[..len.min(511)]);
            assert!(may_follow(bytes.as_slice(), &urgent, first));
            urgent.flags |= 0x20;
            assert!(!may_follow(bytes.as_slice(), &urgent, first), "{len}");
        }
    }
}

#[test]
fn anything_else_does_not() {
    let others: [&[u8]; 12] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        b"\0",
        b"\n",
        // SSL 3, SSL 2.
        &hello(0, 0),
        &[0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10],
        // Alert, application data, a ServerHello.
        &[21, 3, 3, 0, 2, 1, 0],
        &[23, 3, 3, 0, 16, 1, 2],
        &[22, 3, 3, 0, 64, 2, 0, 0, 60, 3, 3],
        // A record of more than 2^14 bytes, a hello of more than 64 KiB.
        &[22, 3, 1, 0x41, 0],
        &[22, 3, 1, 0x02, 0, 1, 1],
    ];
    for first in FIRSTS {
        for other in others {
            assert!(!passes(first, 0, other), "{other:02x?}");
            // Cut into bytes, one of them is stopped, whatever comes before or after it.
            let all = (0..other.len()).all(|i| passes(first, i as u32, &other[i..=i]));
            assert!(!all, "{other:02x?}, byte by byte");
        }
    }
}

#[test]
fn a_segment_from_before_the_stream_brings_nothing_in() {
    // What the receiver cuts off in front is a ClientHello, what it keeps is not.
    for first in FIRSTS {
        for early in 1..40u32 {
            let payload = [&hello(1, 3)[..early as usize], b"GET / HTTP/1.0\r\n\r\n"].concat();
            assert!(
                !passes(first, early.wrapping_neg(), &payload),
                "{early} early"
            );
        }
        assert!(
            passes(first, 10u32.wrapping_neg(), b"keepalive"),
            "all of it is old"
        );
    }
}

#[test]
fn what_can_not_be_read_does_not_pass() {
    let (bytes, mut segment) = segment(5, 0, &hello(1, 3)[..7]);
    segment.end = u32::MAX;
    assert!(
        !may_follow(bytes.as_slice(), &segment, 5),
        "the rest is in later fragments"
    );
    segment.from = u32::MAX - 2;
    assert!(!may_follow(bytes.as_slice(), &segment, 5));
    segment.end = 0;
    assert!(
        may_follow(bytes.as_slice(), &segment, 5),
        "no payload at all"
    );
}

#[test]
fn the_rest_of_a_stream_is_free() {
    for first in FIRSTS {
        for position in [11, 12, 1000, 1 << 20, 1 << 31, u32::MAX - 600] {
            assert!(passes(first, position, b"GET / HTTP/1.1"), "{position}");
        }
    }
}

#[test]
fn a_server_listens_first() {
    for first in FIRSTS {
        let answer_with = |acknowledged: u32, len: u32| {
            let ack = first.wrapping_add(acknowledged);
            let (from, end) = (20, 20 + len);
            let flags = 0x10;
            answer(
                &Segment {
                    ack,
                    from,
                    end,
                    flags,
                    ..Segment::NONE
                },
                first,
            )
        };
        assert_eq!(answer_with(0, 0), Answer::Waits);
        assert_eq!(answer_with(10, 0), Answer::Waits);
        assert_eq!(answer_with(0, 1), Answer::Early);
        assert_eq!(answer_with(10, 1400), Answer::Early);
        assert_eq!(answer_with(11, 0), Answer::Heard);
        assert_eq!(answer_with(517, 1400), Answer::Heard);
        let ack = first.wrapping_add(517);
        let reset = Segment {
            ack,
            flags: 0x04,
            ..Segment::NONE
        };
        assert_eq!(
            answer(&reset, first),
            Answer::Waits,
            "that is no acknowledgement"
        );
    }
}
