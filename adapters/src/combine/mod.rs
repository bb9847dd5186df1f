//! Several adapters become one, as by peft's `add_weighted_adapter`: LoRAs by every [`Method`], IA3s, prompts and prefixes by
//! `sum_i w_i v_i`.
//!
//! ```
//! use graftwork_adapters::Adapter;
//! use graftwork_adapters::combine::{Method, Options, combine};
//!
//! # let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/combine");
//! let (first, second) = (Adapter::open(golden.join("first"))?, Adapter::open(golden.join("second"))?);
//! let options = Options { density: Some(0.3), ..Options::new(Method::Ties) };
//! let one = combine(&[(&first, 0.5), (&second, 0.5)], &options)?;
//! println!("{} edits", one.edits.len());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod error;
mod lora;
mod merge;
mod method;
mod mt19937;
mod sums;
mod svd;

pub use error::Error;
pub use method::{MajoritySign, Method};

use crate::{Adapter, Kind};

/// How adapters are combined.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// By which method. Of one adapter alone it is [`Method::Linear`], whatever this says, as in peft; of other kinds than LoRA it has
    /// to be.
    pub method: Method,
    /// Of methods that decompose, the rank of the result; none: the greatest rank of the adapters.
    pub rank: Option<usize>,
    /// Of methods that prune, and they need it, the share of values that is kept: above 0, at most 1. With 1 nothing is pruned.
    pub density: Option<f64>,
    /// Of methods that elect signs.
    pub sign: MajoritySign,
    /// Of methods that prune at random: the values kept are those that peft keeps after `torch.manual_seed(seed)` on a CPU, as
    /// [`combine`] says.
    pub seed: u64,
}

impl Options {
    /// A method, without a rank or density, with signs by [`MajoritySign::Total`] and the seed 0.
    pub fn new(method: Method) -> Self {
        Self { method, rank: None, density: None, sign: MajoritySign::Total, seed: 0 }
    }

    fn check(&self) -> Result<(), Error> {
        let refused = |option, expected, found: Option<String>| {
            let found = found.unwrap_or_else(|| "none".to_owned());
            Err(Error::Option { option, method: self.method, expected, found })
        };
        let density = self.density.map(|density| density.to_string());
        match self.density {
            Some(_) if !self.method.prunes() => return refused("density", "none", density),
            Some(kept) if !(kept > 0.0 && kept <= 1.0) => {
                return refused("density", "a number above 0 and at most 1", density);
            }
            None if self.method.prunes() => return refused("density", "one", density),
            _ => {}
        }
        let rank = self.rank.map(|rank| rank.to_string());
        match self.rank {
            Some(_) if !self.method.decomposes() => refused("rank", "none", rank),
            Some(0) => refused("rank", "a number above 0", rank),
            _ => Ok(()),
        }
    }
}

/// The adapter that adapters of one kind with weights make together. An adapter without a change at a site counts for nothing there,
/// an IA3 too, though its factors would be 1: so does peft.
///
/// LoRA: `A` and `B` of the result are peft's, up to the signs of singular vectors and rows of zeros, and its scale is 1. (peft keeps
/// `use_rslora` of the first adapter, whose scale is another then.) Where matrices are combined apart, adapters need equal ranks at
/// a site that they share. The result is in F16 or BF16 where all that it is made of is, else in F32; the sums are in F32.
///
/// Values pruned at random are those that `torch.manual_seed(seed)` and `add_weighted_adapter` prune: the generator is torch's, and
/// what peft draws before for the first values of the new adapter is passed over, if its sites are these, in the order of a block of
/// [`Module::ALL`](crate::Module::ALL), its rank the greatest or [`Options::rank`], and `init_lora_weights` of the first adapter is `true`. For a
/// LoRA in the order of GGUF the same places in another order of rows are kept.
///
/// Methods that prune and decompose hold at once, of one site, the full-width updates of all adapters.
///
/// # Errors
/// By name: other kinds than LoRA, IA3, prompts and prefixes (of peft, AdaLoRA refuses and others have no such method); different
/// kinds, row orders ([`rows::in_order`](crate::rows::in_order) puts one in another), architectures, shapes or, for methods that need equal
/// ones, ranks; aLoRAs; and all that peft would lose in silence: DoRA's magnitudes, biases, replaced modules, trained tokens. Weights
/// that are not finite, and such results; options that the method does not take or cannot have.
pub fn combine(adapters: &[(&Adapter, f32)], options: &Options) -> Result<Adapter, Error> {
    options.check()?;
    let &[(first, _), ..] = adapters else { return Err(Error::None) };
    for (adapter, &(other, weight)) in (1..).zip(adapters) {
        if !weight.is_finite() {
            return Err(Error::Weight { adapter, found: weight });
        }
        let differs =
            |what, expected: String, found: String| Error::Differs { adapter, what, expected, found };
        if other.kind != first.kind {
            return Err(differs("kind", first.kind.name().to_owned(), other.kind.name().to_owned()));
        }
        if other.row_order != first.row_order {
            let orders = [first, other].map(|adapter| format!("{:?}", adapter.row_order));
            let [expected, found] = orders;
            return Err(differs("row order", expected, found));
        }
        if let (Some(expected), Some(found)) = (&first.architecture, &other.architecture)
            && expected != found
        {
            return Err(differs("architecture", expected.clone(), found.clone()));
        }
        if !other.invocation.is_empty() {
            let (what, reason) = ("an aLoRA".to_owned(), "which tokens would start the result is not said");
            return Err(Error::Unsupported { adapter, what, reason });
        }
    }
    let edits = match first.kind {
        Kind::Lora => lora::combine(adapters, options)?,
        Kind::Ia3 | Kind::PromptTuning | Kind::PTuning | Kind::PrefixTuning => {
            if options.method != Method::Linear {
                return Err(Error::Method { kind: first.kind, found: options.method });
            }
            sums::combine(adapters)?
        }
        kind => {
            let what = format!("the kind {}", kind.name());
            let reason = "only LoRA, IA3, prompts and prefixes are combined";
            return Err(Error::Unsupported { adapter: 1, what, reason });
        }
    };
    let named = |of: fn(&Adapter) -> &Option<String>| adapters.iter().find_map(|row| of(row.0).clone());
    Ok(Adapter {
        row_order: first.row_order,
        architecture: named(|adapter| &adapter.architecture),
        base_model: named(|adapter| &adapter.base_model),
        ..Adapter::new(first.kind, edits, Vec::new())
    })
}
