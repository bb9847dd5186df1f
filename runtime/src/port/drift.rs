//! How far the tensors of one base are from those of another.

use graftwork_adapters::{Module, Site};
use graftwork_kernels::Tensor;

use super::Error;
use crate::compress::Pair;
use crate::parallel::{Progress, in_parallel};

/// How far a tensor is from what it was.
#[derive(Clone, Debug, PartialEq)]
pub struct Drift {
    /// Its name in Hugging Face files.
    pub name: String,
    /// `|W' - W|_F / |W|_F`; infinite where something came of nothing.
    pub drift: f64,
    /// Whether the adapter changes it.
    pub is_changed: bool,
    /// Where.
    site: Site,
    /// `<W, W>`, `<W, W'>` and `<W', W'>`.
    products: [f64; 3],
}

/// The drift of every weight, of biases none.
pub fn all(
    pair: &Pair,
    changed: &[Site],
    threads: usize,
    progress: &Progress<'_>,
) -> Result<Vec<Drift>, Error> {
    let mut sites = vec![Site::Embedding];
    for layer in 0..pair.config().layers {
        sites.push(Site::AttentionNorm { layer });
        sites.extend(Module::ALL[..4].iter().map(|&module| Site::Linear { layer, module }));
        sites.push(Site::FfnNorm { layer });
        sites.extend(Module::ALL[4..].iter().map(|&module| Site::Linear { layer, module }));
    }
    sites.push(Site::Norm);
    if !pair.config().tied_head {
        sites.push(Site::Head);
    }
    let work = |at: usize| {
        let site = sites[at];
        let [old, new] = pair.weights_at(site)?;
        let products = products(&old, &new);
        [old, new].iter().for_each(|tensor| tensor.bytes().unload());
        let [old, both, new] = products;
        let squares = (old - 2.0 * both + new).max(0.0);
        let drift = match (squares == 0.0, old == 0.0) {
            (true, _) => 0.0,
            (_, true) => f64::INFINITY,
            _ => (squares / old).sqrt(),
        };
        let name = format!("{}.weight", site.hf_path().unwrap_or_default());
        Ok(Drift { name, drift, is_changed: changed.contains(&site), site, products })
    };
    in_parallel(threads, sites.len(), progress, work)
}

/// `<W, W>`, `<W, W'>` and `<W', W'>` over the rows that both have.
fn products(old: &Tensor, new: &Tensor) -> [f64; 3] {
    let (mut a, mut b) = (vec![0.0; old.cols()], vec![0.0; new.cols()]);
    let mut sums = [0.0; 3];
    for row in 0..old.rows().min(new.rows()) {
        old.decode_row(row, &mut a);
        new.decode_row(row, &mut b);
        for (&a, &b) in a.iter().zip(&b) {
            let (a, b) = (f64::from(a), f64::from(b));
            sums[0] += a * a;
            sums[1] += a * b;
            sums[2] += b * b;
        }
    }
    sums
}

/// `<W, W'> / (|W| |W'|)` over the linear layers together; 1 where one is nothing.
pub fn cosine(drifts: &[Drift]) -> f64 {
    let linears = drifts.iter().filter(|drift| drift.site.is_linear());
    let mut sums = [0.0; 3];
    for drift in linears {
        sums.iter_mut().zip(drift.products).for_each(|(sum, product)| *sum += product);
    }
    let whole = (sums[0] * sums[2]).sqrt();
    if whole > 0.0 { sums[1] / whole } else { 1.0 }
}
