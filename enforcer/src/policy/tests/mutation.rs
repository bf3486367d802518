//! No input makes the reader panic, or hang.

use std::time::{Duration, Instant};

use super::{EVERYTHING, SMALL};
use crate::policy::{SourceText, cases, from_texts, render};

/// Texts that mean something somewhere in the language.
const PIECES: [&str; 22] = [
    "---\n",
    "*a",
    "&a ",
    "<<: ",
    "{",
    "}",
    "[",
    "]",
    ": ",
    "\n  ",
    "~",
    "\"",
    "'",
    "|\n",
    ">-\n",
    "!!str ",
    "any",
    "0.0.0.0/0",
    "::/0",
    "\u{feff}",
    "99999999999999999999",
    "é🔑",
];

#[test]
fn mutated_policies_never_panic() {
    // A new seed each time finds more; the one printed makes a failure repeat.
    let seed = std::env::var("ENFORCER_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| {
            std::time::UNIX_EPOCH
                .elapsed()
                .map_or(1, |time| time.as_nanos() as u64)
        });
    println!("repeat with ENFORCER_TEST_SEED={seed}");
    let mut random = Random(seed);
    let deadline = Instant::now() + Duration::from_secs(4);
    let mut valid = 0;
    for round in 0..4000 {
        if Instant::now() > deadline {
            assert!(round > 200, "only {round} rounds in 4 seconds");
            break;
        }
        let seed_text = [SMALL, EVERYTHING, super::cases::GOOD][random.below(3)];
        let bytes = mutate(seed_text, &mut random);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let source = SourceText {
            name: "mutated.yaml".to_owned(),
            text,
        };
        match from_texts(std::slice::from_ref(&source)) {
            Ok(policy) => {
                valid += 1;
                assert!(!render::describe(&policy).is_empty());
            }
            Err(errors) => assert!(!errors.to_string().is_empty()),
        }
        let _ = cases::from_texts(&[source]);
    }
    assert!(
        valid > 0,
        "every mutation was refused: they are too wild to get past the parser"
    );
}

fn mutate(text: &str, random: &mut Random) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len());
        match random.below(9) {
            0 => bytes[at] = random.next() as u8,
            1 => bytes[at] ^= 1 << random.below(8),
            2 => {
                let end = (at + 1 + random.below(40)).min(bytes.len());
                bytes.drain(at..end);
            }
            3 => {
                let end = (at + 1 + random.below(60)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, copy);
            }
            // Most of these are valid YAML, and reach the checks behind it.
            4..=7 => {
                if bytes[at].is_ascii_alphanumeric() {
                    bytes[at] = b"0129abzAZ"[random.below(9)];
                }
            }
            _ => {
                let piece = PIECES[random.below(PIECES.len())];
                bytes.splice(at..at, piece.bytes());
            }
        }
        if bytes.is_empty() {
            bytes.push(b'a');
        }
    }
    bytes
}

/// splitmix64: small, and good enough to pick places.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}
