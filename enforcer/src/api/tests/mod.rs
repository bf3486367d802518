//! That documents are what they say, that versions get along, and the page about all of it.

mod page;
mod samples;
mod versions;

pub use samples::{event, status};
