//! Documents to values, strictly, for the catalogue and for users alike. So nothing here may use the
//! catalogue, and whether the values make a valid policy is checked above, in `validate`.

pub(crate) mod components;
pub(crate) mod limits;
pub(crate) mod paths;
pub(crate) mod scalar;
pub(crate) mod scope;
pub(crate) mod source;
pub(crate) mod yaml;
