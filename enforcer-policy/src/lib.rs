//! The policy language and its compiler: texts in, tables and explanations out. Pure: no I/O, no
//! clock, nothing that needs Linux, so that all of it can be tested anywhere in seconds.
//!
//! Data flows one way: texts → values (`read`) → checks (`validate`, with the built-in [`catalogue`]) → [`model`], or
//! errors with file, line, column and remedy → [`mod@compile`] (the tables of one node).
//!
//! [`mod@explain`] and [`advice`] explain what a policy does and why, [`preflight`] what it does to connections that are open
//! already, [`fallback`] how much of it nftables can hold, [`cases`] reads a policy's own tests, [`render`]
//! prints a policy as it was understood, [`written`] writes documents, [`schema`] is for editors, [`vocabulary`] has the
//! words that stay, and [`text`] escapes text of others before it is shown.

#![forbid(unsafe_code)]

pub mod advice;
pub mod cases;
pub mod catalogue;
pub mod compile;
pub mod error;
pub mod explain;
pub mod fallback;
pub mod glob;
pub mod model;
pub mod preflight;
pub mod render;
pub mod schema;
pub mod text;
pub mod vocabulary;
pub mod written;

mod nets;
mod read;
mod span;
mod validate;

#[cfg(test)]
mod tests;

pub use error::{Paint, PolicyError, PolicyErrors};
pub use model::Policy;
pub use span::{SourceText, Span, Spanned};
pub use validate::warnings::{elsewhere as paths_elsewhere, for_node as warnings_for_node};
pub use validate::{from_texts, text_digest};
