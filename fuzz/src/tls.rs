//! The TLS check, over streams in pieces.

use enforcer_common::{
    packet::Segment,
    tls::{Answer, HELLO, answer, may_be_hello, may_follow},
};

/// Four bytes say where the stream begins, then come segments: where each begins, counted from a little
/// before the stream, how long it is, its flags, and its bytes.
pub fn tls(bytes: &[u8]) {
    let Some((first, mut rest)) = bytes.split_first_chunk::<4>() else {
        return;
    };
    let first = u32::from_be_bytes(*first);
    while let Some(([at, length, flags], behind)) = rest.split_first_chunk::<3>() {
        let (payload, behind) = behind.split_at(behind.len().min(usize::from(*length)));
        let before = i64::from(*at) - 8;
        let segment = Segment {
            seq: first.wrapping_add(before as u32),
            ack: first.wrapping_add(u32::from(*at)),
            from: 0,
            end: payload.len() as u32,
            flags: u32::from(*flags) & !SYN,
        };
        let stands = payload.iter().zip(before..).all(|(byte, position)| {
            !(0..i64::from(HELLO)).contains(&position) || may_be_hello(position as u32, *byte)
        });
        // Urgent data is not read with the rest.
        let expected = stands && !segment.is_urgent();
        assert_eq!(
            may_follow(payload, &segment, first),
            expected,
            "{segment:?} from {first}: {payload:02x?}"
        );
        // A SYN counts as a byte of the stream, so its payload begins one later.
        let with_syn = Segment {
            seq: segment.seq.wrapping_sub(1),
            flags: segment.flags | SYN,
            ..segment
        };
        assert_eq!(may_follow(payload, &with_syn, first), expected);
        let heard = segment.flags & ACK != 0 && u32::from(*at) >= HELLO;
        assert_eq!(answer(&segment, first) == Answer::Heard, heard);
        rest = behind;
    }
}

const SYN: u32 = 0x02;
const ACK: u32 = 0x10;
