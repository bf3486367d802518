//! The agent and the command line as a library: loads compiled policies into the kernel, and
//! reports what the kernel counts and denies.
//!
//! Data flows one way: [`files`] (texts) → [`enforcer_policy`] (a valid policy, and its tables) →
//! [`kernel`] (programs and maps) → [`agent`] (the running whole) → [`cli`] (people). What the last
//! two exchange with other programs is in [`api`].

pub mod agent;
pub mod api;
pub mod cli;
pub mod files;
pub mod kernel;
