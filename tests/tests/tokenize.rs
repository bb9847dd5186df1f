//! Token ids against the `tokenizers` package and llama.cpp, see `golden/text/README.md`.

use graftwork::stream::{Detokenizer, StopStrings, TextStream};
use graftwork::tokenize::{Error, Specials, Tokenizer, Vocabulary};
use serde_json::Value;
use std::path::PathBuf;
use std::sync::Arc;

/// Text, ids with special tokens recognised, ids with special tokens as text.
type Case = (String, Vec<u32>, Vec<u32>);

fn golden(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/text").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn cases(name: &str, reference: &str) -> Vec<Case> {
    let mut all: Value = serde_json::from_slice(&golden(&format!("{name}.ids.json"))).unwrap();
    serde_json::from_value(all[reference].take()).unwrap()
}

fn vocabulary(name: &str) -> Vocabulary {
    serde_json::from_slice(&golden(&format!("{name}.vocabulary.json"))).unwrap()
}

fn from_json(name: &str) -> Tokenizer {
    Tokenizer::from_json(&golden(&format!("{name}.tokenizer.json")), None).unwrap()
}

/// Compares the ids of all cases, and that decoding gives the text back.
fn check(what: &str, tokenizer: &Tokenizer, cases: &[Case]) {
    assert!(cases.len() > 400, "{what}: {} cases", cases.len());
    for (text, recognised, as_text) in cases {
        assert_eq!(&tokenizer.encode(text, Specials::Recognise).unwrap(), recognised, "{what}: {text:?}");
        assert_eq!(&tokenizer.encode(text, Specials::AsText).unwrap(), as_text, "{what} as text: {text:?}");
    }
}

#[test]
fn byte_level_vocabularies_give_the_reference_ids_from_both_files() {
    for name in ["gpt-2", "llama-bpe", "smollm", "qwen2"] {
        let library = cases(name, "library");
        // Empty where llama.cpp agrees with the library; it has no normalizer for Qwen's NFC.
        let llama =
            Some(cases(name, "llama")).filter(|list| !list.is_empty()).unwrap_or_else(|| library.clone());
        let (json, gguf) = (from_json(name), Tokenizer::from_vocabulary(vocabulary(name)).unwrap());
        check(&format!("{name} tokenizer.json"), &json, &library);
        check(&format!("{name} GGUF"), &gguf, &llama);
        for (text, ids, as_text) in &llama {
            assert_eq!(&gguf.decode(ids), text, "{name}");
            assert_eq!(&gguf.decode(as_text), text, "{name}");
            assert_eq!(json.decode(ids), *text, "{name}");
        }
        assert_eq!(json.vocab_size(), gguf.vocab_size());
        for id in 0..json.vocab_size() as u32 {
            assert_eq!(json.token_bytes(id), gguf.token_bytes(id), "{name}: {id}");
        }
        assert_eq!(json.ends_of_generation(), gguf.ends_of_generation());
    }
}

#[test]
fn smollm2_gives_the_reference_ids() {
    let tokenizer = Tokenizer::from_vocabulary(vocabulary("smollm2")).unwrap();
    let cases = cases("smollm2", "llama");
    check("smollm2", &tokenizer, &cases);
    assert_eq!((tokenizer.vocab_size(), tokenizer.bos(), tokenizer.eos()), (49152, Some(1), Some(2)));
    assert!(tokenizer.prefix().is_empty() && tokenizer.suffix().is_empty());
    assert!(tokenizer.is_end_of_generation(2) && tokenizer.is_end_of_generation(0));
    assert!(!tokenizer.is_end_of_generation(1));
}

#[test]
fn the_other_pre_tokenizers_give_llama_cpp_ids() {
    let all: Value = serde_json::from_slice(&golden("others.ids.json")).unwrap();
    for (pre, list) in all.as_object().unwrap() {
        let list: Vec<(String, Vec<u32>)> = serde_json::from_value(list.clone()).unwrap();
        assert!(list.len() > 100);
        let gguf = Tokenizer::from_vocabulary(Vocabulary { pre: Some(pre.clone()), ..vocabulary("smollm") })
            .unwrap();
        for (text, ids) in list {
            assert_eq!(gguf.encode(&text, Specials::Recognise).unwrap(), ids, "{pre}: {text:?}");
        }
    }
}

#[test]
fn sentence_piece_vocabularies_give_the_reference_ids() {
    let gguf = Tokenizer::from_vocabulary(vocabulary("spm-legacy")).unwrap();
    check("SentencePiece GGUF", &gguf, &cases("spm-legacy", "llama"));
    assert_eq!(gguf.prefix(), [1]);
    for name in ["spm-legacy", "spm-first"] {
        let json = from_json(name);
        check(name, &json, &cases(name, "library"));
        assert_eq!(json.prefix(), [1]);
    }
    let json = from_json("spm-legacy");
    for (text, _, ids) in cases("spm-legacy", "llama") {
        if !text.contains("<tool>") && !text.contains('▁') {
            assert_eq!((gguf.decode(&ids), json.decode(&ids)), (text.clone(), text));
        }
    }
}

/// A small generator, so that the tests need no crate: the step of PCG's underlying LCG.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % limit
    }
}

#[test]
fn streamed_pieces_are_whole_characters_and_add_up() {
    let tokenizers = [
        from_json("gpt-2"),
        from_json("spm-legacy"),
        Tokenizer::from_vocabulary(vocabulary("spm-legacy")).unwrap(),
    ];
    let mut random = Lcg(7);
    for tokenizer in &tokenizers {
        // Byte tokens come first in SentencePiece vocabularies, letters of the byte alphabet in the other.
        for round in 0..2000 {
            let low = if round % 2 == 0 { 300 } else { tokenizer.vocab_size() };
            let ids: Vec<u32> = (0..random.below(24)).map(|_| random.below(low) as u32).collect();
            let bytes: Vec<u8> =
                ids.iter().flat_map(|&id| tokenizer.token_bytes(id).unwrap()).copied().collect();
            let mut stream = Detokenizer::continuing();
            let mut text = String::new();
            for &id in &ids {
                let piece = stream.push(tokenizer, id);
                assert!(piece.len() <= 4 * 64);
                text.push_str(&piece);
            }
            text.push_str(&stream.finish());
            assert_eq!(text, String::from_utf8_lossy(&bytes));
            let whole = tokenizer.decode(&ids);
            assert!(text == whole || text.strip_prefix(' ') == Some(&whole), "{text:?} {whole:?}");
        }
    }
}

#[test]
fn a_character_waits_for_its_last_byte() {
    let tokenizer = Tokenizer::from_vocabulary(vocabulary("spm-legacy")).unwrap();
    let byte = |b: u8| tokenizer.token_id(&format!("<0x{b:02X}>")).unwrap();
    let mut stream = Detokenizer::new();
    let pieces: Vec<String> = "é😀".bytes().map(|b| stream.push(&tokenizer, byte(b))).collect();
    assert_eq!(pieces, ["", "é", "", "", "", "😀"]);
    assert_eq!(stream.push(&tokenizer, byte(0xf0)), "");
    assert_eq!(stream.push(&tokenizer, byte(b'a')), "\u{fffd}a");
    assert_eq!(stream.push(&tokenizer, byte(0xe2)), "");
    assert_eq!(stream.finish(), "\u{fffd}");
    let mut silent = Detokenizer::new().without_specials();
    assert_eq!((silent.push(&tokenizer, 1), silent.push(&tokenizer, 2)), (String::new(), String::new()));
}

#[test]
fn added_token_flags_are_obeyed() {
    let mut json: Value = serde_json::from_slice(&golden("gpt-2.tokenizer.json")).unwrap();
    let tokens = json["added_tokens"].as_array_mut().unwrap();
    for (id, content, lstrip, rstrip, single_word, special) in [
        (3000, "[L]", true, false, false, true),
        (3001, "[R]", false, true, false, false),
        (3002, "cat", false, false, true, false),
    ] {
        tokens.push(serde_json::json!({"id": id, "content": content, "lstrip": lstrip, "rstrip": rstrip,
            "single_word": single_word, "special": special, "normalized": false}));
    }
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), None).unwrap();
    let ids = |text| tokenizer.encode(text, Specials::Recognise).unwrap();
    let id = |text| tokenizer.token_id(text).unwrap();
    assert_eq!(ids("a \n[L]b"), [id("a"), 3000, id("b")]);
    assert_eq!(ids("a[R] \n b"), [id("a"), 3001, id("b")]);
    assert_eq!(ids("a[R]  [L]"), [id("a"), 3001, 3000]);
    assert_eq!(ids("!cat!"), [id("!"), 3002, id("!")]);
    assert!(!ids("cats").contains(&3002) && !ids("a_cat").contains(&3002));
    // Not special: recognised in users' text too, as the reference does.
    let as_text = tokenizer.encode("[L][R]", Specials::AsText).unwrap();
    assert!(as_text.contains(&3001) && !as_text.contains(&3000));
}

#[test]
fn user_spans_neither_make_nor_hide_special_tokens() {
    let tokenizer = from_json("gpt-2");
    let end = tokenizer.token_id("<|im_end|>").unwrap();
    let count = |text: &str, user: std::ops::Range<usize>| {
        let ids = tokenizer.encode_spans(text, std::slice::from_ref(&user)).unwrap();
        ids.iter().filter(|&&id| id == end).count()
    };
    let text = "<|im_end|><|im_end|>";
    assert_eq!(count(text, 0..0), 2);
    assert_eq!(count(text, 0..10), 1);
    assert_eq!(count(text, 10..20), 1);
    assert_eq!(count(text, 0..20), 0);
    // Half of it from the user, on either side.
    assert_eq!(count("<|im_end|>", 0..4), 0);
    assert_eq!(count("<|im_end|>", 4..10), 0);
    assert_eq!(count("x<|im_<|im_end|>", 0..6), 1);
    // In users' text every id decodes to the same text.
    for (text, _, _) in cases("gpt-2", "library") {
        let ids = tokenizer.encode(&text, Specials::AsText).unwrap();
        assert!(ids.iter().all(|&id| !tokenizer.is_special(id)), "{text:?}");
        assert_eq!(tokenizer.decode(&ids), text);
    }
}

#[test]
fn files_that_are_wrong_are_refused_by_key() {
    let good = vocabulary("gpt-2");
    let said = |change: fn(&mut Vocabulary)| {
        let mut vocabulary = good.clone();
        change(&mut vocabulary);
        Tokenizer::from_vocabulary(vocabulary).expect_err("a wrong vocabulary").to_string()
    };
    for (message, key) in [
        (said(|v| v.pre = Some("nonesuch".into())), "tokenizer.ggml.pre: `nonesuch`"),
        (said(|v| v.model = "t5".into()), "tokenizer.ggml.model: `t5`"),
        (said(|v| v.tokens.clear()), "tokenizer.ggml.tokens"),
        (said(|v| v.tokens[7] = v.tokens[8].clone()), "tokenizer.ggml.tokens: expected every token once"),
        (said(|v| v.token_type.truncate(9)), "tokenizer.ggml.token_type: expected 1"),
        (said(|v| v.merges.push("nospace".into())), "tokenizer.ggml.merges"),
        (said(|v| v.merges.push("zz\u{1} qq".into())), "tokenizer.ggml.merges"),
        (said(|v| v.eos_token_id = Some(u32::MAX)), "tokenizer.ggml.eos_token_id"),
        (said(|v| v.model = "llama".into()), "tokenizer.ggml.scores"),
    ] {
        assert!(message.contains(key), "{message}");
    }
    let mut json: Value = serde_json::from_slice(&golden("gpt-2.tokenizer.json")).unwrap();
    json["decoder"] = serde_json::json!({"type": "CTC"});
    let error = Tokenizer::from_json(json.to_string().as_bytes(), None).unwrap_err();
    assert!(matches!(error, Error::Unsupported { ref found, .. } if found == "CTC"), "{error}");
    json["decoder"] = Value::Null;
    json["model"]["vocab"]["!"] = 4_000_000_000u32.into();
    assert!(
        Tokenizer::from_json(json.to_string().as_bytes(), None).unwrap_err().to_string().contains("vocab")
    );
    for wrong in [&b"["[..], b"[]", b"{}", b"\xff", b"{\"model\":{\"type\":\"BPE\"}}"] {
        assert!(matches!(Tokenizer::from_json(wrong, None), Err(Error::Json { .. })));
    }
}

/// The text before the first stop string, read character by character: the definition.
/// Files that the tokenizer library believes and then panics on: an error, whoever notices first.
#[test]
fn what_the_library_panics_on_is_an_error() {
    let mut json: Value = serde_json::from_slice(&golden("smollm.tokenizer.json")).unwrap();
    // A trie of one unit, whose offset points far beyond it.
    json["normalizer"] = serde_json::json!({"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAEA="});
    let text = |tokenizer: Tokenizer| tokenizer.encode("some text", Specials::AsText).map(drop);
    let found = Tokenizer::from_json(json.to_string().as_bytes(), None).and_then(text);
    assert!(matches!(found, Err(Error::Panicked { .. })), "{found:?}");
}

fn cut(text: &str, stops: &[String]) -> String {
    for (end, _) in text.char_indices().chain([(text.len(), ' ')]) {
        let longest = stops.iter().filter(|stop| text[..end].ends_with(stop.as_str())).map(String::len).max();
        if let Some(length) = longest {
            return text[..end - length].to_owned();
        }
    }
    text.to_owned()
}

#[test]
fn stop_strings_never_leak_and_do_not_depend_on_the_pieces() {
    let mut random = Lcg(99);
    let mut stopped = 0;
    for _ in 0..20_000 {
        let mut word = |longest: usize| -> String {
            (0..1 + random.below(longest)).map(|_| ['a', 'b', 'é', '\n'][random.below(4)]).collect()
        };
        let text: String = word(14);
        let stops: Vec<String> = (0..3).map(|_| word(5)).collect();
        let expected = cut(&text, &stops);
        let mut stream = StopStrings::new(stops.clone()).unwrap();
        let mut shown = String::new();
        let mut piece = String::new();
        for c in text.chars() {
            piece.push(c);
            if random.below(2) == 0 {
                let pushed = stream.push(&std::mem::take(&mut piece));
                shown.push_str(&pushed.text);
                assert!(expected.starts_with(&shown), "{text:?} {stops:?} showed {shown:?}");
            }
        }
        let pushed = stream.push(&piece);
        shown.push_str(&pushed.text);
        stopped += usize::from(pushed.stopped);
        shown.push_str(&stream.finish());
        assert_eq!(shown, expected, "{text:?} {stops:?}");
    }
    assert!((2_000..19_000).contains(&stopped), "{stopped}");
}

#[test]
fn an_answer_ends_before_its_stop_string() {
    let tokenizer = Arc::new(Tokenizer::from_vocabulary(vocabulary("smollm2")).unwrap());
    let run = |text: &str, stops: &[&str]| {
        let stops = stops.iter().map(|stop| stop.to_string()).collect();
        let mut stream = TextStream::new(tokenizer.clone(), stops, true).unwrap();
        let mut shown = String::new();
        for id in tokenizer.encode(text, Specials::Recognise).unwrap() {
            let pushed = stream.push(id);
            shown.push_str(&pushed.text);
            if pushed.stopped {
                return (shown, true);
            }
        }
        (shown + &stream.finish(), false)
    };
    assert_eq!(run("One. Two. Three.<|im_end|>", &[]), ("One. Two. Three.".into(), false));
    assert_eq!(run("One. Two. Three.", &["Three", "wo"]), ("One. T".into(), true));
    assert_eq!(run("Wait, a stop may come: ST", &["STOP"]), ("Wait, a stop may come: ST".into(), false));
    assert_eq!(run("日本語😀の文", &["😀"]), ("日本語".into(), true));
    assert!(TextStream::new(tokenizer.clone(), vec!["x".into(), String::new()], true).is_err());
}

/// Replaces, removes or swaps parts of a JSON value at random.
fn mutate(value: &mut Value, random: &mut Lcg) {
    let odd = |random: &mut Lcg| match random.below(9) {
        0 => Value::Null,
        1 => Value::Bool(true),
        2 => (-1).into(),
        3 => u64::MAX.into(),
        4 => "".into(),
        5 => "\u{2581}".into(),
        6 => Value::Array(Vec::new()),
        7 => Value::Object(serde_json::Map::new()),
        _ => "(".into(),
    };
    match value {
        Value::Object(map) if !map.is_empty() => {
            let at = random.below(map.len());
            let key = map.keys().nth(at).cloned().unwrap_or_default();
            match random.below(12) {
                0 => drop(map.remove(&key)),
                1 => drop(map.insert(key, odd(random))),
                _ => mutate(&mut map[&key], random),
            }
        }
        Value::Array(list) if !list.is_empty() => {
            let at = random.below(list.len());
            match random.below(12) {
                0 => drop(list.remove(at)),
                1 => list[at] = odd(random),
                2 => list.push(list[at].clone()),
                _ => mutate(&mut list[at], random),
            }
        }
        other => *other = odd(random),
    }
}

#[test]
fn mutated_files_give_an_error_or_a_tokenizer() {
    let count: u64 = std::env::var("GRAFTWORK_MUTATIONS").map_or(300, |count| count.parse().unwrap());
    let text = "Hello <|im_end|>  wörld <tool>\n\u{2581}12345 \u{0}";
    for name in ["gpt-2", "llama-bpe", "spm-legacy", "spm-first"] {
        let mut json: Value = serde_json::from_slice(&golden(&format!("{name}.tokenizer.json"))).unwrap();
        // A mutation of one of a thousand tokens is seldom of interest.
        if let Some(vocab) = json["model"]["vocab"].as_object_mut() {
            *vocab = std::mem::take(vocab).into_iter().filter(|(text, _)| text.chars().count() < 3).collect();
        }
        let known: std::collections::HashSet<String> =
            json["model"]["vocab"].as_object().unwrap().keys().cloned().collect();
        let merges = json["model"]["merges"].as_array_mut().unwrap();
        merges.retain(|pair| {
            known.contains(&format!("{}{}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()))
        });
        let mut usable = 0;
        for seed in 0..count {
            let mut random = Lcg(seed);
            let mut json = json.clone();
            for _ in 0..1 + random.below(3) {
                mutate(&mut json, &mut random);
            }
            // Panics that are caught are bugs all the same, where they are ours.
            let unless_panicked =
                |error| assert!(!matches!(error, Error::Panicked { .. }), "{name} {seed}: {error}");
            match Tokenizer::from_json(json.to_string().as_bytes(), None) {
                Err(error) => unless_panicked(error),
                Ok(tokenizer) => {
                    for specials in [Specials::Recognise, Specials::AsText] {
                        match tokenizer.encode(text, specials) {
                            Err(error) => unless_panicked(error),
                            Ok(ids) => drop(tokenizer.decode(&ids)),
                        }
                    }
                    usable += 1;
                }
            }
        }
        assert!(usable > 0 && usable < count, "{name}: {usable} of {count}");
    }
}

/// Parts of a prompt are tokenized as if a special token stood between them, by every kind of tokenizer.
#[test]
fn parts_are_cut_as_by_special_tokens() {
    let mut all: Vec<(&str, Tokenizer)> = Vec::new();
    for name in ["gpt-2", "llama-bpe", "smollm", "qwen2", "spm-legacy", "spm-first"] {
        all.push((name, from_json(name)));
        if name != "spm-first" {
            all.push((name, Tokenizer::from_vocabulary(vocabulary(name)).unwrap()));
        }
    }
    for (name, tokenizer) in &all {
        let end =
            tokenizer.eos().or(tokenizer.ends_of_generation().first().copied()).expect("a special token");
        let special = String::from_utf8(tokenizer.token_bytes(end).unwrap().to_vec()).unwrap();
        let texts: Vec<String> = cases(name, "library").into_iter().map(|(text, ..)| text).collect();
        let mut joined_differently = 0;
        // A text that is empty leaves the next at the start, where some put a space before it.
        for three in texts.chunks_exact(3).filter(|three| !three[0].is_empty()) {
            let between = tokenizer.encode(&three.join(&special), Specials::Recognise).unwrap();
            let parts = tokenizer.encode_parts(&[&three[0], &three[1], &three[2]]).unwrap();
            assert_eq!(parts.join(&end), between, "{name}: {three:?}");
            joined_differently += usize::from(
                tokenizer.encode(&three.concat(), Specials::Recognise).unwrap() != parts.concat(),
            );
        }
        assert!(joined_differently > 30, "{name}: {joined_differently} of {}", texts.len() / 3);
        let empty = tokenizer.encode_parts(&["", "a", ""]).unwrap();
        assert!(empty.len() == 3 && empty[0].is_empty() && !empty[1].is_empty() && empty[2].is_empty());
        assert!(tokenizer.encode_parts(&[]).unwrap().is_empty());
    }
}
