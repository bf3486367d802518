//! What is fuzzed: everything that reads bytes which others wrote. Each target is a function of bytes that panics if
//! something is wrong, and does nothing else, so that libFuzzer (`cargo xtask fuzz`) and a bounded test on a stable
//! compiler (`tests/bounded.rs`) run the same code.

pub mod seeds;

mod packet;
mod policy;
mod tls;

pub use packet::packet;
pub use policy::{cases, policy};
pub use tls::tls;

/// Something to fuzz.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name on the command line, and of its directories.
    pub name: &'static str,
    /// What is done with an input.
    pub run: fn(&[u8]),
    /// Inputs that mean something.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: [Target; 4] = [
    Target {
        name: "policy",
        run: policy,
        seeds: seeds::policies,
    },
    Target {
        name: "cases",
        run: cases,
        seeds: seeds::cases,
    },
    Target {
        name: "packet",
        run: packet,
        seeds: seeds::packets,
    },
    Target {
        name: "tls",
        run: tls,
        seeds: seeds::streams,
    },
];
