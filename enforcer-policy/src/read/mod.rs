//! Documents to values, strictly, for the catalogue and for users alike. So nothing here may use the catalogue, and the
//! checks that make a valid policy are above, in `validate`.

pub(crate) mod components;
pub(crate) mod limits;
pub(crate) mod paths;
pub(crate) mod scalar;
pub(crate) mod scope;
pub(crate) mod source;
pub(crate) mod yaml;
