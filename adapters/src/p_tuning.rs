//! P-tuning: virtual tokens whose embeddings a small network made. The file holds what it made, as prompt tuning's does.
//! (Liu et al., arXiv 2103.10385; peft's `p_tuning/model.py`.)

use crate::parts::Reader;
use crate::peft::Config;
use crate::{Edit, Error, prompt};

/// The network, which is not needed any more.
const ENCODER: &[&str] =
    &["encoder_dropout", "encoder_hidden_size", "encoder_num_layers", "encoder_reparameterization_type"];

pub(crate) fn read(config: &Config, reader: &Reader) -> Result<Vec<Edit>, Error> {
    prompt::virtual_tokens(config, reader, ENCODER)
}
