//! An adapter for an old base, made one for a base that came of it.
//!
//! PortLLM (arXiv 2410.10870): a fine-tune of the new base is near `W' + D`, with `D` what the adapter added to the old base `W`. What is
//! added, scaled or put before the prompt stays as it is; what replaces something moves with it: a weight or bias `V` becomes
//! `W' + (V - W)`, and a magnitude of DoRA keeps its ratio to the norm. How well that does is not known beforehand: `|W' - W| / |W|`
//! of every tensor, the drift, says how far the new base is from where the adapter was trained.

mod drift;
mod error;
mod rebase;
mod write;

pub use drift::Drift;
pub use error::Error;

use std::path::Path;

use graftwork_adapters::{Adapter, Site, Source, check};

use crate::compress::Pair;
use crate::model::bind::{in_blocks, shape_at};
use crate::model::container::Container;
use crate::parallel::Progress;
use crate::place::{self, Taken};
use crate::text::Text;

/// The least cosine of two models' weights that are of one lineage. Models from other random starts have one near 0.
pub const KIN: f64 = 0.5;

/// The drift from which on [`Report::far`] names tensors, unless another is asked for.
pub const FAR: f64 = 0.1;

/// How an adapter is ported.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// What the new base is called, which the adapter then names as its base.
    pub base_model: Option<&'a str>,
    /// Threads.
    pub threads: usize,
}

/// What an adapter was ported over.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Every tensor of the bases, in order.
    pub drifts: Vec<Drift>,
    /// `<W, W'> / (|W| |W'|)` over the linear layers together.
    pub cosine: f64,
    /// Changes that moved with what they replace.
    pub rebased: usize,
}

impl Report {
    /// Tensors that the adapter changes and that drifted by more than `most`, the farthest first.
    pub fn far(&self, most: f64) -> Vec<&Drift> {
        let mut far: Vec<_> =
            self.drifts.iter().filter(|drift| drift.is_changed && drift.drift > most).collect();
        far.sort_by(|a, b| b.drift.total_cmp(&a.drift));
        far
    }
}

/// Writes the adapter at `path`, for the base `old`, to `out` as one for the base `new`: a file where it is a file that says all by itself, and
/// else a directory.
///
/// # Errors
/// The bases are not of one lineage: other names, shapes or tokens, or weights that have nothing in common ([`KIN`]). The adapter does
/// not fit them, or holds what cannot be ported. `out` is then as it was.
pub fn port(
    (old, new): (&Source, &Source),
    path: &Path,
    out: &Path,
    options: &Options<'_>,
    progress: &Progress<'_>,
) -> Result<Report, Error> {
    if out.symlink_metadata().is_ok() {
        let (path, expected, found) = (out.to_owned(), "nothing of that name", "something");
        return Err(Taken { path, expected, found }.into());
    }
    let adapter = Adapter::open(path)?;
    let pair = Pair::open(old, new).map_err(Error::of_pair)?;
    same_tokens(pair.base(), pair.tuned())?;
    for container in [pair.base(), pair.tuned()] {
        let (config, _) = container.config().map_err(crate::compress::Error::from)?;
        check::architecture(&adapter, config.architecture)?;
        check::fits(&adapter, |site| shape_at(&config, site))?;
    }
    let [old, new] = pair.fingerprints();
    check::base(&adapter, || old)?;
    same_tables(&adapter, &pair)?;
    let changed: Vec<Site> = in_blocks(&adapter, pair.config().layers).map(|(_, site)| site).collect();
    let (adapter, rebased) = rebase::rebase(adapter, &pair, options)?;
    place::beside(
        out,
        |path, error| Error::io(path)(error),
        |partial| {
            // First, so that what cannot be written is said before all weights are read.
            write::write(path, &adapter, rebased > 0, partial, new, options)?;
            let drifts = drift::all(&pair, &changed, options.threads, progress)?;
            let cosine = drift::cosine(&drifts);
            match cosine < KIN {
                true => Err(Error::Lineage {
                    what: "weights of linear layers",
                    expected: format!("a cosine of {KIN} or more with those of the old base"),
                    found: format!("{cosine:.3}"),
                }),
                false => Ok(Report { drifts, cosine, rebased }),
            }
        },
    )
}

/// Refuses bases whose embedding and head an adapter would change in another way: one matrix or two, and other tokens after the same.
fn same_tables(adapter: &Adapter, pair: &Pair) -> Result<(), Error> {
    let [(old, _), (new, _)] = [pair.base().config()?, pair.tuned().config()?];
    if old.tied_head != new.tied_head && adapter.edits.iter().any(|edit| edit.site.is_of_tokens()) {
        let text = |tied| if tied { "one matrix" } else { "two" };
        let (expected, found) =
            (format!("{}, as the old base has", text(old.tied_head)), text(new.tied_head).to_owned());
        return Err(Error::Lineage {
            what: "embedding and head, which the adapter changes",
            expected,
            found,
        });
    }
    if check::vocabulary(adapter, old.vocab)?.is_some() && old.vocab != new.vocab {
        let expected = format!("{} tokens, after which the adapter has its own", old.vocab);
        return Err(Error::Lineage { what: "vocabulary", expected, found: new.vocab.to_string() });
    }
    Ok(())
}

/// Refuses a base in which a token of the old one means something else.
fn same_tokens(old: &Container, new: &Container) -> Result<(), Error> {
    let text = |container| Text::of(container).map_err(crate::compress::Error::from);
    // Where one has no tokenizer, there is nothing to compare.
    let (Some(old), Some(new)) = (text(old)?, text(new)?) else { return Ok(()) };
    let (old, new) = (old.tokenizer(), new.tokenizer());
    let shown = |bytes: Option<&[u8]>| match bytes {
        Some(bytes) => format!("{:?}", String::from_utf8_lossy(bytes)),
        None => "none".to_owned(),
    };
    for id in 0..old.vocab_size() as u32 {
        let [expected, found] = [old, new].map(|text| (text.token_bytes(id), text.is_special(id)));
        if expected != found {
            let expected = format!("token {id} as in the old base, {}", shown(expected.0));
            return Err(Error::Lineage { what: "tokenizer", expected, found: shown(found.0) });
        }
    }
    Ok(())
}
