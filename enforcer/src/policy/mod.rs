//! The policy language: from YAML to a [`model::Policy`] that is valid, or to errors that name the
//! file, line and column and say what to write instead.
//!
//! Data flows one way: bytes ([`mod@load`]) → YAML documents (`yaml`, in the shapes of `source`) → checks
//! (`validate`, with the built-in [`catalogue`]) → [`model`]. Nothing here touches the kernel, and the
//! only I/O is reading the files.
//!
//! [`cases`] reads a policy's own tests, [`render`] tells what was understood, [`written`] writes documents, [`schema`] is for editors.

pub mod cases;
pub mod catalogue;
pub mod error;
pub mod glob;
pub mod load;
pub mod model;
pub mod render;
pub mod schema;
pub mod written;

pub(crate) mod nets;

mod limits;
mod scalar;
mod source;
mod span;
mod validate;
mod yaml;

#[cfg(test)]
mod tests;

pub use error::{Paint, PolicyError, PolicyErrors};
pub use load::{SourceText, from_texts, is_unchanged, load, read_again_and_again, read_sources};
pub use model::Policy;
pub use span::{Span, Spanned};
pub use validate::notes::{elsewhere as paths_elsewhere, for_node as notes_for_node};
