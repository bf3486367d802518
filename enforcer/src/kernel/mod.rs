//! The kernel side: loads the programs, fills their maps, attaches them and reads what they report.
//! The only module that depends on the loader.

mod adopt;
pub mod apply;
pub mod attach;
mod batch;
mod btf;
mod calls;
pub mod cgroups;
mod error;
pub mod filters;
mod hold;
mod hosts;
mod kept;
mod layout;
pub mod links;
pub mod load;
mod lsm;
mod mapped;
mod maps;
pub mod netns;
#[cfg(test)]
mod oldest;
pub mod pins;
mod programs;
pub mod read;
mod roles;
pub mod routes;
pub mod sockets;
mod state;
pub mod trial;
mod usage;

pub use adopt::PinnedState;
pub use apply::Side;
pub use attach::TcMode;
pub use cgroups::{CgroupPaths, KnownCgroup};
pub use error::KernelError;
pub use kept::{Kept, KeptPolicy};
pub use links::{Link, LinkEvents};
pub use pins::Pins;
pub use read::{Counters, Wakes};
pub use state::Kernel;
pub use usage::layout_digest;
