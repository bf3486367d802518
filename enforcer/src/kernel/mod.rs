//! The kernel's side: loads the programs, fills their maps, attaches them and reads what they say.
//! The only module that knows the loader.

pub mod apply;
pub mod attach;
mod batch;
mod btf;
pub mod cgroups;
mod error;
pub mod filters;
mod hosts;
pub mod links;
pub mod load;
mod lsm;
mod mapped;
mod maps;
#[cfg(test)]
mod oldest;
mod programs;
pub mod read;
mod roles;
pub mod sockets;
mod state;
pub mod trial;

pub use attach::TcMode;
pub use cgroups::{CgroupPaths, KnownCgroup};
pub use error::KernelError;
pub use links::{Link, LinkEvents};
pub use read::{Counters, Wakes};
pub use state::Kernel;
