//! Random numbers for tests, reproducible from a seed.

use anyhow::{Context, Result};

/// A generator of random numbers (xorshift64).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// A generator that starts from a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// A number below `end`, which is at least 1.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end.max(1) as u64) as usize
    }

    /// True with a chance of one in `one_in`.
    pub fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }

    /// One of them, which must not be empty.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// Some of them, each with a chance of one in `one_in`.
    pub fn subset<'a>(&mut self, from: &[&'a str], one_in: usize) -> Vec<&'a str> {
        let mut found = from.to_vec();
        found.retain(|_| self.chance(one_in));
        found
    }
}

/// The seed of this run, which it prints: `ENFORCER_TEST_SEED`, or one from the clock.
pub fn seed() -> Result<u64> {
    let seed = match std::env::var("ENFORCER_TEST_SEED") {
        Ok(seed) => seed.parse().context("ENFORCER_TEST_SEED is no number")?,
        Err(_) => std::time::UNIX_EPOCH.elapsed()?.as_nanos() as u64,
    };
    println!("ENFORCER_TEST_SEED={seed}");
    Ok(seed)
}
