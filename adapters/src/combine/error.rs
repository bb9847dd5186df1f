//! Why adapters were not combined.

use super::Method;
use crate::{Kind, Site, compress};

/// Why adapters were not combined. Adapters are counted from 1.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nothing to combine.
    #[error("expected one adapter at least, found none")]
    None,
    /// An option that the method needs, does not take or cannot have.
    #[error("option {option}: expected {expected} with method {method}, found {found}")]
    Option {
        /// Which.
        option: &'static str,
        /// The method.
        method: Method,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A method that a kind of adapters does not have.
    #[error("expected method linear for adapters of kind {}, found {found}", kind.name())]
    Method {
        /// The kind.
        kind: Kind,
        /// The method.
        found: Method,
    },
    /// A weight that is infinite or not a number.
    #[error("weight of adapter {adapter}: expected a finite number, found {found}")]
    Weight {
        /// Whose.
        adapter: usize,
        /// The weight.
        found: f32,
    },
    /// Adapters of different kinds, orders of rows or architectures.
    #[error("{what} of adapter {adapter}: expected {expected} as of the first, found {found}")]
    Differs {
        /// The adapter that differs.
        adapter: usize,
        /// In what.
        what: &'static str,
        /// Of the first.
        expected: String,
        /// Of this.
        found: String,
    },
    /// Something that cannot be combined.
    #[error("adapter {adapter}: {what} cannot be combined: {reason}")]
    Unsupported {
        /// Whose.
        adapter: usize,
        /// What.
        what: String,
        /// Why.
        reason: &'static str,
    },
    /// Changes of different shapes at one site.
    #[error("adapter {adapter} at {site}, {part}: expected {expected} as of the first there, found {found}")]
    Shape {
        /// The adapter that differs.
        adapter: usize,
        /// The site.
        site: Site,
        /// Which part of the change.
        part: &'static str,
        /// Of the first that changes the site.
        expected: String,
        /// Of this.
        found: String,
    },
    /// A site whose update could not be decomposed.
    #[error("the update of {site}: {source}")]
    Decompose {
        /// The site.
        site: Site,
        /// Why not.
        source: compress::Error,
    },
    /// A tensor of an adapter or of the result is at fault, or there is no memory for it.
    #[error(transparent)]
    Adapter(#[from] crate::Error),
}
