//! The enforcer as a library: a policy in, tables for the kernel out, and what the kernel says of it
//! back to a person.
//!
//! Data flows one way: [`policy`] (YAML to a valid policy) → [`compile`] (tables) → [`kernel`]
//! (programs and maps) → [`agent`] (the running whole) → [`cli`] (people).

pub mod advice;
pub mod agent;
pub mod cli;
pub mod compile;
pub mod explain;
pub mod files;
pub mod kernel;
pub mod policy;
pub mod text;
