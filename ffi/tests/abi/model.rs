//! The small golden model with a tokenizer and a chat template, so that text can go in and come out.

use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Entries of the model's vocabulary.
const VOCAB: usize = 512;

/// Puts links to the golden adapters into a folder, the model with a tokenizer as `model`, and with one that makes the library
/// which reads it panic as `hostile`.
pub fn write(folder: &Path, golden: &Path) {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).unwrap();
    for entry in fs::read_dir(golden).unwrap() {
        let entry = entry.unwrap();
        std::os::unix::fs::symlink(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    let tokenizer = tokenizer();
    // Characters by a table of 1 byte that says it has 4.
    let hostile = tokenizer
        .replace(
            r#""normalizer": null"#,
            r#""normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAEA="}"#,
        )
        .replacen(r#""normalized": false"#, r#""normalized": true"#, 1);
    for (name, tokenizer) in [("model", tokenizer), ("hostile", hostile)] {
        let model = folder.join(name);
        fs::create_dir(&model).unwrap();
        for file in ["config.json", "generation_config.json", "model.safetensors"] {
            std::os::unix::fs::symlink(golden.join("base").join(file), model.join(file)).unwrap();
        }
        fs::write(model.join("tokenizer.json"), tokenizer).unwrap();
        fs::write(model.join("tokenizer_config.json"), CONFIG).unwrap();
    }
}

const CONFIG: &str = r#"{
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "chat_template": "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
}"#;

/// Byte-level BPE: three special tokens, the 256 bytes, and pairs of small letters up to the vocabulary's size.
fn tokenizer() -> String {
    let mut entries = vec!["<pad>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    // Bytes that are no printable character of Latin-1 stand as characters from U+0100 on, as in GPT-2.
    let mut shifted = 0x100;
    for byte in 0..=255u8 {
        let printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let point = if printable { u32::from(byte) } else { shifted };
        shifted += u32::from(!printable);
        entries.push(char::from_u32(point).expect("a character").to_string());
    }
    let mut merges = Vec::new();
    let letters = || 'a'..='p';
    for (first, second) in letters().flat_map(|first| letters().map(move |second| (first, second))) {
        if entries.len() < VOCAB {
            entries.push(format!("{first}{second}"));
            merges.push(format!("\"{first} {second}\""));
        }
    }
    let mut vocabulary = String::new();
    for (id, entry) in entries.iter().enumerate() {
        let comma = if id == 0 { "" } else { ", " };
        write!(vocabulary, "{comma}\"{}\": {id}", entry.replace('\\', "\\\\").replace('"', "\\\"")).unwrap();
    }
    let special = |id: usize| {
        format!(
            r#"{{"id": {id}, "content": "{}", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}}"#,
            entries[id]
        )
    };
    format!(
        r#"{{"version": "1.0", "truncation": null, "padding": null,
"added_tokens": [{}, {}, {}], "normalizer": null,
"pre_tokenizer": {{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}},
"post_processor": null,
"decoder": {{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}},
"model": {{"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
"end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
"vocab": {{{vocabulary}}}, "merges": [{}]}}}}"#,
        special(0),
        special(1),
        special(2),
        merges.join(", ")
    )
}
