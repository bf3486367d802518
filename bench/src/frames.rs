//! What is received: small datagrams, from one source or from sources drawn at random.

use std::net::{IpAddr, SocketAddr};

use crate::bpf::{Insn, insn};

/// A datagram in an Ethernet frame, and the program that gives it its source, checksums included.
#[derive(Debug)]
pub struct Generator {
    /// The frame with a source of zero in its last four bytes.
    pub frame: Vec<u8>,
    /// Instructions of an XDP program.
    pub program: Vec<Insn>,
}

/// The hardware address that frames come from.
pub const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
/// The answer of an XDP program that lets a frame pass (include/uapi/linux/bpf.h).
pub const XDP_PASS: i32 = 2;

const PAYLOAD: &[u8; 8] = b"enforcer";
const ETHERNET: usize = 14;

/// Datagrams to a socket address. Their sources are `first` and every second address behind it, so many
/// in all: no two of them are neighbours, and no table can take them together.
pub fn datagrams(mac: [u8; 6], first: SocketAddr, many: u32, to: SocketAddr) -> Generator {
    let length = (8 + PAYLOAD.len()) as u16;
    let mut udp = Vec::new();
    for word in [first.port(), to.port(), length, 0] {
        udp.extend(word.to_be_bytes());
    }
    udp.extend(PAYLOAD);
    let mut frame = mac.to_vec();
    frame.extend(SENDER);
    // Where the last four bytes of the source are, which checksum covers it, and what it is without.
    let (base, source_at, checksum_at, sum) = match (first.ip(), to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(to)) => {
            let mut header = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 0, 0, 0, 0];
            header[2..4].copy_from_slice(&(20 + length).to_be_bytes());
            header.extend(to.octets());
            let sum = sum_of(&header);
            frame.extend([8, 0]);
            frame.extend(&header);
            (u32::from(source), ETHERNET + 12, ETHERNET + 10, sum)
        }
        (IpAddr::V6(source), IpAddr::V6(to)) => {
            let mut addresses = source.octets();
            let base =
                u32::from_be_bytes([addresses[12], addresses[13], addresses[14], addresses[15]]);
            addresses[12..].fill(0);
            let pseudo = [
                &addresses[..],
                &to.octets(),
                &[0, 0],
                &length.to_be_bytes(),
                &[0, 0, 0, 17],
            ];
            let sum = sum_of(&[&pseudo.concat()[..], &udp].concat());
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([17, 64]);
            frame.extend(addresses);
            frame.extend(to.octets());
            (base, ETHERNET + 8 + 12, ETHERNET + 40 + 6, sum)
        }
        _ => panic!("one family for both"),
    };
    frame.extend(&udp);
    Generator {
        frame,
        program: program(base, many, source_at, checksum_at, sum),
    }
}

/// Sum of big-endian words, not folded.
fn sum_of(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum()
}

/// Draws a source, writes it and the checksum, and lets the frame pass.
#[rustfmt::skip]
fn program(base: u32, many: u32, source_at: usize, checksum_at: usize, sum: u32) -> Vec<Insn> {
    // Codes from include/uapi/linux/bpf.h: class, operation, source.
    const MOV: u8 = 0xb7; const MOV_X: u8 = 0xbf; const MOV32: u8 = 0xb4; const ADD: u8 = 0x07; const ADD_X: u8 = 0x0f;
    const MOD32: u8 = 0x94; const LSH: u8 = 0x67; const RSH: u8 = 0x77; const AND: u8 = 0x57; const XOR: u8 = 0xa7;
    const TO_BE: u8 = 0xdc; const LOAD: u8 = 0x61; const STORE_W: u8 = 0x63; const STORE_H: u8 = 0x6b;
    const IF_GREATER_X: u8 = 0x2d; const CALL: u8 = 0x85; const EXIT: u8 = 0x95;
    const RANDOM: i32 = 7;
    let needed = (source_at + 4).max(checksum_at + 2) as i32;
    let (source_at, checksum_at) = (source_at as i16, checksum_at as i16);
    let fold = [
        insn(MOV_X, 2, 1, 0, 0), insn(RSH, 2, 0, 0, 16), insn(AND, 1, 0, 0, 0xffff), insn(ADD_X, 1, 2, 0, 0),
    ];
    let mut all = vec![
        insn(MOV_X, 6, 1, 0, 0),
        insn(CALL, 0, 0, 0, RANDOM),
        insn(MOD32, 0, 0, 0, many as i32),
        insn(LSH, 0, 0, 0, 1),
        insn(MOV32, 1, 0, 0, base as i32),
        insn(ADD_X, 0, 1, 0, 0),
        insn(LOAD, 7, 6, 0, 0),
        insn(LOAD, 8, 6, 4, 0),
        insn(MOV_X, 2, 7, 0, 0),
        insn(ADD, 2, 0, 0, needed),
        // Never: every frame is as long. Over all that follows, to the end.
        insn(IF_GREATER_X, 2, 8, 20, 0),
        // The sum over both halves of the source and the rest.
        insn(MOV_X, 1, 0, 0, 0),
        insn(RSH, 1, 0, 0, 16),
        insn(MOV_X, 2, 0, 0, 0),
        insn(AND, 2, 0, 0, 0xffff),
        insn(ADD_X, 1, 2, 0, 0),
        insn(ADD, 1, 0, 0, sum as i32),
    ];
    all.extend(fold);
    all.extend(fold);
    all.extend([
        insn(XOR, 1, 0, 0, 0xffff),
        insn(TO_BE, 1, 0, 0, 16),
        insn(STORE_H, 7, 1, checksum_at, 0),
        insn(TO_BE, 0, 0, 0, 32),
        insn(STORE_W, 7, 0, source_at, 0),
        insn(MOV, 0, 0, 0, XDP_PASS),
        insn(EXIT, 0, 0, 0, 0),
    ]);
    // From behind the jump to the last two.
    let jump = 10;
    let over = all.len() - 2 - (jump + 1);
    all[jump] = insn(IF_GREATER_X, 2, 8, over as i16, 0);
    all
}

/// A TC program that loads one line of a table, selected by a datagram's source, and drops the datagram: the least that
/// any lookup can do. The table has the given number of lines, all zero.
#[rustfmt::skip]
pub fn one_line(table: i32, lines: u32, is_v4: bool) -> Vec<Insn> {
    const MOV: u8 = 0xb7; const MOV_X: u8 = 0xbf; const ADD: u8 = 0x07; const MUL: u8 = 0x27; const MUL32: u8 = 0x24;
    const RSH: u8 = 0x77; const LOAD: u8 = 0x61; const STORE_W: u8 = 0x63; const LOAD_WIDE: u8 = 0x18; const MAP: u8 = 1;
    const IF_GREATER_X: u8 = 0x2d; const IF_EQUAL: u8 = 0x15; const CALL: u8 = 0x85; const EXIT: u8 = 0x95;
    const LOOK_UP: i32 = 1; const CONTINUE: i32 = -1; const DROP: i32 = 2;
    // The last four bytes of the source.
    let source_at = (ETHERNET + if is_v4 { 12 } else { 8 + 12 }) as i16;
    vec![
        insn(LOAD, 7, 1, 76, 0),
        insn(LOAD, 8, 1, 80, 0),
        insn(MOV_X, 2, 7, 0, 0),
        insn(ADD, 2, 0, 0, i32::from(source_at) + 4),
        insn(IF_GREATER_X, 2, 8, 15, 0),
        insn(LOAD, 1, 7, source_at, 0),
        // The upper half of a product is a place among the lines.
        insn(MUL32, 1, 0, 0, 0x9e37_79b1_u32 as i32),
        insn(MUL, 1, 0, 0, lines as i32),
        insn(RSH, 1, 0, 0, 32),
        insn(STORE_W, 10, 1, -4, 0),
        insn(MOV_X, 2, 10, 0, 0),
        insn(ADD, 2, 0, 0, -4),
        insn(LOAD_WIDE, 1, MAP, 0, table), insn(0, 0, 0, 0, 0),
        insn(CALL, 0, 0, 0, LOOK_UP),
        insn(IF_EQUAL, 0, 0, 4, 0),
        insn(LOAD, 1, 0, 0, 0),
        insn(IF_EQUAL, 1, 0, 2, 0),
        insn(MOV, 0, 0, 0, CONTINUE),
        insn(EXIT, 0, 0, 0, 0),
        insn(MOV, 0, 0, 0, DROP),
        insn(EXIT, 0, 0, 0, 0),
    ]
}

/// A program that has one answer for everything: of TC, TC_ACT_UNSPEC (-1), which lets the next decide, or
/// TC_ACT_SHOT (2), which drops; at a cgroup, 1, which lets pass; of XDP, [`XDP_PASS`].
pub const fn answer(answer: i32) -> [Insn; 2] {
    [insn(0xb7, 0, 0, 0, answer), insn(0x95, 0, 0, 0, 0)]
}
