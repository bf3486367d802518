//! The JSON interface: what the command line prints under `-o json`, and what goes over the agent's control socket.
//!
//! Every document begins with the three fields of [`Head`]. Within one [`Version`] documents only gain fields, words and
//! kinds. So readers ignore fields that they do not know, keep words that they do not know ([`Word`]), and go on
//! without fields that an older agent does not send. Between versions neither side guesses: [`read`] says which
//! side is older.
//!
//! What others chose (names of processes, cgroups, interfaces) is in these documents as it is, and escaped where it is
//! printed. `docs/json.md` is made from the types in here.

mod catalog;
mod check;
mod error;
mod event;
mod head;
mod preflight;
mod request;
mod schema;
mod status;
#[cfg(test)]
pub mod tests;

pub use catalog::{
    Catalog, ComponentListing, GroupListing, OptionListing, PathListing, PortListing,
    ProfileListing, RoleListing,
};
pub use check::{CheckResult, NodeReport};
pub use enforcer_policy::{
    advice::Advice,
    explain::Explanation,
    preflight::Effect,
    vocabulary::{Decision, Lock, Vocabulary, Word},
};
pub use error::{Error, ErrorCode, Leftover, PolicyProblem, Unattended};
pub use event::{Event, Subject, SubjectKind};
pub use head::{Difference, Document, Head, ReadError, Version, read};
pub use preflight::{Ends, OpenConnection, Preflight};
pub use request::{
    Applied, ConfirmBy, DetachResult, Request, Source, Sources, UNDERSTOOD, read_request,
};
pub use schema::json as schema;
pub use status::{
    AttachMethod, Attachment, Listener, PathCount, Probing, Problem, ReasonCount, Repaired, Status,
    Table,
};

/// What can be a document.
pub trait Kind {
    /// What it is called, for ever.
    const KIND: &'static str;
}

impl<T: Kind> Kind for &T {
    const KIND: &'static str = T::KIND;
}

impl Kind for Explanation {
    const KIND: &'static str = "Explanation";
}
