//! What files call the sites of a model: one row per module, one column per container.

use crate::{Module, Site};

/// (module, name in a Hugging Face block, name in a GGUF block) of the Llama family.
const MODULES: &[(Module, &str, &str)] = &[
    (Module::Q, "self_attn.q_proj", "attn_q"),
    (Module::K, "self_attn.k_proj", "attn_k"),
    (Module::V, "self_attn.v_proj", "attn_v"),
    (Module::O, "self_attn.o_proj", "attn_output"),
    (Module::Gate, "mlp.gate_proj", "ffn_gate"),
    (Module::Up, "mlp.up_proj", "ffn_up"),
    (Module::Down, "mlp.down_proj", "ffn_down"),
];

/// The site of a Hugging Face module path such as `model.layers.3.self_attn.q_proj`.
pub(crate) fn hf_site(path: &str) -> Option<Site> {
    match path {
        "lm_head" => Some(Site::Head),
        "model.embed_tokens" => Some(Site::Embedding),
        "model.norm" => Some(Site::Norm),
        _ => {
            let (layer, name) = split_layer(path.strip_prefix("model.layers.")?)?;
            match name {
                "input_layernorm" => return Some(Site::AttentionNorm { layer }),
                "post_attention_layernorm" => return Some(Site::FfnNorm { layer }),
                _ => {}
            }
            let &(module, ..) = MODULES.iter().find(|(_, hf, _)| *hf == name)?;
            Some(Site::Linear { layer, module })
        }
    }
}

/// The Hugging Face module path of a site: the inverse of [`hf_site`].
pub(crate) fn hf_name(site: Site) -> Option<String> {
    Some(match site {
        Site::Head => "lm_head".to_owned(),
        Site::Embedding => "model.embed_tokens".to_owned(),
        Site::Norm => "model.norm".to_owned(),
        Site::AttentionNorm { layer } => format!("model.layers.{layer}.input_layernorm"),
        Site::FfnNorm { layer } => format!("model.layers.{layer}.post_attention_layernorm"),
        Site::Linear { layer, module } => {
            let &(_, hf, _) = MODULES.iter().find(|row| row.0 == module)?;
            format!("model.layers.{layer}.{hf}")
        }
        Site::EveryLinear { .. }
        | Site::AfterAttention { .. }
        | Site::AfterFfn { .. }
        | Site::Prompt
        | Site::Prefix => return None,
    })
}

/// The site of a GGUF tensor such as `blk.3.attn_q.weight`.
pub(crate) fn gguf_site(tensor: &str) -> Option<Site> {
    match tensor.strip_suffix(".weight")? {
        "output" => Some(Site::Head),
        "token_embd" => Some(Site::Embedding),
        name => {
            let (layer, name) = split_layer(name.strip_prefix("blk.")?)?;
            let &(module, ..) = MODULES.iter().find(|(_, _, gguf)| *gguf == name)?;
            Some(Site::Linear { layer, module })
        }
    }
}

/// `3.rest` as (3, rest). One spelling per layer: `03` and `+3` are none.
pub(crate) fn split_layer(text: &str) -> Option<(usize, &str)> {
    let (number, rest) = text.split_once('.')?;
    let layer = number.parse::<usize>().ok()?;
    (layer.to_string() == number).then_some((layer, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_module_lead_to_one_site() {
        for &(module, hf, gguf) in MODULES {
            let site = Some(Site::Linear { layer: 12, module });
            assert_eq!(hf_site(&format!("model.layers.12.{hf}")), site);
            assert_eq!(site.and_then(hf_name), Some(format!("model.layers.12.{hf}")));
            assert_eq!(gguf_site(&format!("blk.12.{gguf}.weight")), site);
        }
        assert_eq!(MODULES.len(), Module::ALL.len());
        let others = [
            Site::AttentionNorm { layer: 3 },
            Site::FfnNorm { layer: 0 },
            Site::Norm,
            Site::Head,
            Site::Embedding,
        ];
        for site in others {
            assert_eq!(hf_site(&hf_name(site).unwrap()), Some(site));
        }
    }

    #[test]
    fn other_spellings_are_no_sites() {
        for path in
            ["model.layers.03.self_attn.q_proj", "model.layers.+3.self_attn.q_proj", "layers.3.mlp.up_proj"]
        {
            assert_eq!(hf_site(path), None, "{path}");
        }
        for name in
            ["blk.1.attn_norm.weight", "blk.1.attn_q", "blk.attn_q.weight", "attn_q.weight", "blk..x.weight"]
        {
            assert_eq!(gguf_site(name), None, "{name}");
        }
    }
}
