//! Why an adapter was refused.

use crate::{Site, file};

/// Why an adapter was refused. Every message names the field, tensor or site.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or is malformed.
    #[error(transparent)]
    File(#[from] file::Error),
    /// Something is wrong inside a file or directory of this name.
    #[error("{file}: {source}")]
    In {
        /// The file.
        file: String,
        /// What is wrong.
        source: Box<Error>,
    },
    /// A file of tensors came without the configuration that says what its tensors mean.
    #[error("{file}: expected adapter_config.json beside it, found none")]
    NoConfig {
        /// The file of tensors.
        file: String,
    },
    /// A known field of the configuration (or key of the GGUF metadata) has a value that it may not have.
    #[error("adapter field {field}: expected {expected}, found {found}")]
    Field {
        /// The field or key.
        field: String,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A field of the configuration that could change the arithmetic is not understood.
    #[error("adapter field {field} = {value} is not understood")]
    UnknownField {
        /// The field or key.
        field: String,
        /// Its value, shortened.
        value: String,
    },
    /// Something understood that this version cannot apply.
    #[error("{what} is not supported: {reason}")]
    Unsupported {
        /// The field, tensor or site.
        what: String,
        /// Why, or what to do instead.
        reason: &'static str,
    },
    /// A pattern of `rank_pattern` or `alpha_pattern` cannot be used.
    #[error("adapter field {field}: pattern `{pattern}`: {reason}")]
    Pattern {
        /// `rank_pattern` or `alpha_pattern`.
        field: &'static str,
        /// The pattern, shortened.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The adapter holds no tensor at all.
    #[error("the adapter holds no tensors")]
    Empty,
    /// A tensor whose name says nothing that is understood: ignoring it would apply the adapter in part.
    #[error("adapter tensor {tensor} is not understood: {expected}")]
    UnknownTensor {
        /// Its name.
        tensor: String,
        /// Which names are.
        expected: &'static str,
    },
    /// A tensor came without the one that it needs.
    #[error("adapter tensor {tensor} needs {missing}, which the file does not hold")]
    Unpaired {
        /// The tensor there is.
        tensor: String,
        /// The tensor there is not.
        missing: String,
    },
    /// Two tensors say the same thing.
    #[error("adapter tensors {first} and {second} both set {what} of {site}")]
    Conflict {
        /// The one.
        first: String,
        /// The other.
        second: String,
        /// What they set.
        what: &'static str,
        /// Where.
        site: Site,
    },
    /// A tensor's shape contradicts the configuration or the tensor it belongs to.
    #[error("adapter tensor {tensor}: expected shape {expected}, found {found}")]
    Shape {
        /// Its name.
        tensor: String,
        /// The shape it should have.
        expected: String,
        /// The shape it has.
        found: String,
    },
    /// A tensor has elements of another type than it must.
    #[error("adapter tensor {tensor}: expected {expected}, found {found}")]
    Type {
        /// Its name.
        tensor: String,
        /// What its elements must be.
        expected: &'static str,
        /// What they are.
        found: String,
    },
    /// An index points outside of what it counts.
    #[error("adapter tensor {tensor}: expected {what} below {limit}, found {found}")]
    Index {
        /// Its name.
        tensor: String,
        /// What it counts.
        what: &'static str,
        /// The first that is too many.
        limit: u64,
        /// The value.
        found: i64,
    },
    /// A value is infinite or not a number.
    #[error("adapter tensor {tensor}: expected finite values, found {found} in row {row}, column {col}")]
    NotFinite {
        /// Its name.
        tensor: String,
        /// Row of the first such value.
        row: usize,
        /// Column of the first such value.
        col: usize,
        /// The value.
        found: f32,
    },
    /// The base has no such site.
    #[error("the adapter changes {site}, which the base does not have")]
    NoSite {
        /// The site.
        site: Site,
    },
    /// The base has another shape there.
    #[error("adapter at {site}, {part}: the base expects {expected}, found {found}")]
    Misfit {
        /// The site.
        site: Site,
        /// Which part of the edit.
        part: &'static str,
        /// Shape that the base asks for, `[rows, cols]`.
        expected: String,
        /// Shape found.
        found: String,
    },
    /// What is wrong with a change, and which tensors of the file say it.
    #[error("{source} ({tensors})")]
    Tensors {
        /// Their names.
        tensors: String,
        /// What is wrong.
        source: Box<Error>,
    },
    /// The change of DoRA has no norm to divide by: a row of `W + s B A` is zero, or too large.
    #[error(
        "adapter at {site}: expected a finite factor magnitude / norm of W + s B A, found {found} in row {row} of the base"
    )]
    Norm {
        /// The site.
        site: Site,
        /// The row.
        row: usize,
        /// The factor.
        found: f32,
    },
    /// The adapter does not fit the base, and names the one that it was trained on.
    #[error("{source}; the adapter says that it was trained on {base_model:?}")]
    OtherBase {
        /// The base that the adapter names.
        base_model: String,
        /// What does not fit.
        source: Box<Error>,
    },
    /// The adapter is for other bases than this.
    #[error("the adapter is for the base of fingerprint {expected}, this one has {found}")]
    Fingerprint {
        /// Those that the adapter names.
        expected: String,
        /// The base's.
        found: crate::delta::Fingerprint,
    },
    /// The adapter names another architecture than the base's.
    #[error("the adapter is for architecture {found}, the base is {expected}")]
    Architecture {
        /// The base's.
        expected: String,
        /// The adapter's.
        found: String,
    },
}

impl Error {
    /// This error, in a file of that name. Errors of files that name theirs already stay as they are.
    pub(crate) fn in_file(self, file: String) -> Self {
        match self {
            Self::File(file::Error::Io { .. }) | Self::NoConfig { .. } => self,
            error => Self::In { file, source: Box::new(error) },
        }
    }
}
