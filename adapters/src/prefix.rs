//! Prefix tuning: keys and values of positions before all tokens, for every layer.
//!
//! The file holds one tensor, `prompt_embeddings [num_virtual_tokens, 2 num_layers token_dim]`, viewed as `[num_virtual_tokens, 2
//! num_layers, heads, head dimension]`, `K` before `V` of each layer; `token_dim` is the width of all key-value heads. Keys are
//! used as they are, without rotation, and the first token has the position after them. Where a network made them
//! (`prefix_projection`), the file holds what it made. (Li and Liang, arXiv 2101.00190; Liu et al., arXiv 2110.07602; peft's
//! `prefix_tuning/model.py` and `get_prompt`.)

use serde_json::Value;

use crate::parts::Reader;
use crate::peft::{self, Config};
use crate::{Change, Edit, Error, Site, prompt};

/// The network, which is not needed any more, and first values.
const OWN: &[&str] = &["encoder_hidden_size", "init_weights", "prefix_projection"];

pub(crate) fn read(config: &Config, reader: &Reader) -> Result<Vec<Edit>, Error> {
    prompt::check(config, OWN)?;
    config.bool("prefix_projection")?;
    let missing = || peft::field("num_layers", "a whole number above 0", &Value::Null);
    let layers = config.rank("num_layers")?.ok_or_else(missing)?;
    let cols = match config.rank("token_dim")? {
        None => None,
        Some(width) => {
            Some(width.checked_mul(2).and_then(|pair| pair.checked_mul(layers)).ok_or_else(|| {
                let expected = "a size of which num_layers pairs can be counted";
                peft::field("token_dim", expected, &Value::from(width))
            })?)
        }
    };
    let rows = prompt::rows(config, reader, cols)?;
    prompt::edit(Site::Prefix, Change::Prefix { rows, layers })
}
