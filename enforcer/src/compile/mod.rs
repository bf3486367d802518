//! A valid policy to the tables of one node: pure, deterministic, no I/O.
//!
//! `ground` finds what is the same on every node; `parties` interns the sets of components that occur at addresses,
//! cgroups and interfaces; `ports` reduces ports to classes; `verdicts` fills the dense tables; `simulate` lets the
//! decision run on them in userspace.

pub mod cgroups;
mod ground;
mod parties;
mod ports;
mod simulate;
mod tables;
mod verdicts;

#[cfg(test)]
mod tests;

pub use simulate::Simulator;
pub use tables::{CgroupRule, CompileError, Compiled, Compiler, PathNumbers, PrefixEntry, compile};
