//! Each target for some rounds on a stable compiler, with mutations of its seeds; and what was found
//! once, for ever. libFuzzer goes deeper: `cargo xtask fuzz`.
//!
//! `ENFORCER_TEST_SEED` repeats a run. How long a round takes is no matter here: what bounds the work on an input are the limits
//! of what is read, which have tests of their own.

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use enforcer_fuzz::{TARGETS, Target};

/// Texts that mean something somewhere in YAML or in the language of policies.
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
fn policies_do_no_harm() {
    fuzz("policy", 100);
}

#[test]
fn cases_do_no_harm() {
    fuzz("cases", 2000);
}

#[test]
fn packets_do_no_harm() {
    fuzz("packet", 50_000);
}

#[test]
fn streams_do_no_harm() {
    fuzz("tls", 50_000);
}

#[test]
fn what_was_found_once_does_no_harm() {
    for target in TARGETS {
        let directory = here().join("findings").join(target.name);
        for file in fs::read_dir(directory).into_iter().flatten().flatten() {
            let input = fs::read(file.path()).expect("a finding is a file");
            println!("{}", file.path().display());
            (target.run)(&input);
        }
    }
}

#[test]
fn every_target_is_one_of_libfuzzer() {
    for target in TARGETS {
        let file = here().join(format!("libfuzzer/fuzz_targets/{}.rs", target.name));
        let text = fs::read_to_string(&file).unwrap_or_default();
        let call = format!("enforcer_fuzz::{}(", target.name);
        assert!(text.contains(&call), "{} does not call it", file.display());
    }
}

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn fuzz(name: &str, rounds: u32) {
    let Target { run, seeds, .. } = TARGETS
        .into_iter()
        .find(|target| target.name == name)
        .expect("a target of that name");
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
    let seeds = seeds();
    for seed in &seeds {
        run(seed);
    }
    for round in 1..=rounds {
        let input = mutated(&seeds[random.below(seeds.len())], &mut random);
        if catch_unwind(|| run(&input)).is_err() {
            let file = keep(name, &input);
            panic!(
                "round {round}, seed {seed}: {}; put it into fuzz/findings/{name} when it is mended",
                file.display()
            );
        }
    }
}

/// Saves an input that broke something, for inspection.
fn keep(name: &str, input: &[u8]) -> PathBuf {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("finding-{name}"));
    fs::write(&file, input).expect("the build's directory can be written to");
    file
}

fn mutated(seed: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(3) {
        if bytes.is_empty() {
            bytes.push(b'a');
        }
        let at = random.below(bytes.len());
        match random.below(10) {
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
            4 => bytes.truncate(at),
            // Most of these are valid YAML still, and reach the checks behind it.
            5..=8 => {
                if bytes[at].is_ascii_alphanumeric() {
                    bytes[at] = b"0129abzAZ"[random.below(9)];
                }
            }
            _ => {
                let piece = PIECES[random.below(PIECES.len())];
                bytes.splice(at..at, piece.bytes());
            }
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
