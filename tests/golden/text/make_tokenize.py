"""Writes the tokenizer goldens beside this file: small vocabularies as tokenizer.json and as GGUF metadata, and ids.

    python make_tokenize.py SMOLLM2.gguf     (pip install transformers tokenizers sentencepiece gguf llama-cpp-python)

For tokenizer.json the `tokenizers` package gives the ids, for GGUF vocabularies llama.cpp; the differences are printed.
"""
import json, os, sys, tempfile
import gguf, llama_cpp, sentencepiece
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers)
from strings import CODE, PROSE, WORDS, texts

HERE = os.path.dirname(os.path.abspath(__file__))
TEXTS = texts()
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORD = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*%s|"
TEKKEN = WORD % ("", "") + r"\p{N}|" + SIGNS
GPT4O = WORD % (("(?i:'s|'t|'re|'ve|'m|'ll|'d)?",) * 2) + r"\p{N}{1,3}|" + SIGNS
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>"]
CORPUS = (PROSE + CODE + WORDS + [" ".join(WORDS)]) * 5
CORPUS += [open(os.path.join(HERE, "strings.py")).read()]


def write(name, value):
    with open(os.path.join(HERE, name), "w") as f:
        json.dump(value, f, ensure_ascii=False, indent=None, separators=(",", ":"))
        f.write("\n")


def library_cases(tokenizer):
    """[text, ids with special tokens recognised, ids with special tokens as text]"""
    cases = []
    for text in TEXTS:
        tokenizer.encode_special_tokens = False
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        tokenizer.encode_special_tokens = True
        cases.append([text, ids, tokenizer.encode(text, add_special_tokens=False).ids])
    tokenizer.encode_special_tokens = False
    return cases


def llama_cases(vocabulary):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "v.gguf")
        w = gguf.GGUFWriter(path, "llama")
        for key, value in vocabulary.items():
            name = "tokenizer.chat_template" if key == "chat_template" else "tokenizer.ggml." + key
            if isinstance(value, bool):
                w.add_bool(name, value)
            elif isinstance(value, int):
                w.add_uint32(name, value)
            elif isinstance(value, str):
                w.add_string(name, value)
            else:
                w.add_array(name, value)
        w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
        return llama_ids(path)


def llama_ids(path):
    model = llama_cpp.Llama(model_path=path, vocab_only=True, verbose=False)
    ids = lambda text, special: model.tokenize(text.encode(), add_bos=False, special=special)
    return [[text, ids(text, True), ids(text, False)] for text in TEXTS]


def differences(name, left, right):
    for a, b in zip(left, right):
        if a != b:
            print(f"  {name}: {a[0]!r}\n    {a[1:]}\n    {b[1:]}")


def byte_level(name, regex, steps=(), ignore_merges=False, size=1200, normalizer=None):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer:
        tokenizer.normalizer = normalizer
    if regex == GPT2:
        cut = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    else:
        cut = [pre_tokenizers.Split(Regex(regex), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, *cut]) if steps or len(cut) > 1 else cut[0]
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIALS, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    data = json.loads(tokenizer.to_str())
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    assert [id for _, id in tokens] == list(range(len(tokens)))
    vocabulary = {
        "model": "gpt2", "pre": name, "tokens": [text for text, _ in tokens],
        "merges": [" ".join(pair) for pair in data["model"]["merges"]],
        "token_type": [3 if t in SPECIALS else 4 if t == "<tool>" else 1 for t, _ in tokens],
        "bos_token_id": 1, "eos_token_id": 2, "add_bos_token": False,
    }
    return tokenizer, data, vocabulary


def main(smollm):
    # Byte-level vocabularies that exist in both forms.
    for name, regex, steps, ignore, norm in [("gpt-2", GPT2, (), False, None), ("llama-bpe", LLAMA3, (), True, None),
                                             ("qwen2", QWEN2, (), False, normalizers.NFC()),
                                             ("smollm", GPT2, (pre_tokenizers.Digits(individual_digits=True),), False, None)]:
        tokenizer, data, vocabulary = byte_level(name, regex, steps, ignore, normalizer=norm)
        if name == "llama-bpe":
            # Two merges fewer than the vocabulary allows: only ignore_merges can reach those words.
            dropped = [m for m in data["model"]["merges"] if len("".join(m)) > 5][-20:]
            data["model"]["merges"] = [m for m in data["model"]["merges"] if m not in dropped]
            data["post_processor"] = json.loads(Tokenizer.from_str(json.dumps(data)).to_str())["post_processor"]
            tokenizer = Tokenizer.from_str(json.dumps(data))
            tokenizer.post_processor = processors.Sequence([
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])])
            data = json.loads(tokenizer.to_str())
            vocabulary["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
        library, llama = library_cases(tokenizer), llama_cases(vocabulary)
        print(name, len(library)); differences(name, library, llama)
        write(f"{name}.tokenizer.json", data)
        write(f"{name}.vocabulary.json", vocabulary)
        write(f"{name}.ids.json", {"library": library, "llama": [] if library == llama else llama})
    # The other expressions, on one vocabulary.
    others = {}
    for pre in ["default", "falcon", "deepseek-coder", "deepseek-v3", "qwen35", "dbrx"]:
        vocabulary["pre"] = pre
        others[pre] = [case[:2] for case in llama_cases(vocabulary)[::3]]
    # llama.cpp approximates these two, for its regular expressions know fewer classes; the models' own files define them.
    for pre, regex in [("tekken", TEKKEN), ("gpt-4o", GPT4O)]:
        data["pre_tokenizer"] = json.loads(pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(regex), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]).__getstate__())
        data["model"]["ignore_merges"] = pre == "tekken"
        others[pre] = [case[:2] for case in library_cases(Tokenizer.from_str(json.dumps(data)))[::3]]
    write("others.ids.json", others)
    sentence_piece()
    # SmolLM2 itself.
    fields = gguf.GGUFReader(smollm).fields
    keys = ["model", "pre", "tokens", "merges", "token_type", "bos_token_id", "eos_token_id", "add_bos_token", "add_space_prefix"]
    vocabulary = {key: fields["tokenizer.ggml." + key].contents() for key in keys}
    vocabulary["chat_template"] = fields["tokenizer.chat_template"].contents()
    llama = llama_ids(smollm)
    reference = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(vocabulary["tokens"])},
                                     merges=[tuple(m.split(" ")) for m in vocabulary["merges"]]))
    reference.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                       pre_tokenizers.ByteLevel(add_prefix_space=False)])
    reference.add_special_tokens([t for t, k in zip(vocabulary["tokens"], vocabulary["token_type"]) if k == 3])
    differences("smollm2", library_cases(reference), llama)
    write("smollm2.vocabulary.json", vocabulary)
    write("smollm2.ids.json", {"library": [], "llama": llama})


def sentence_piece():
    with tempfile.TemporaryDirectory() as folder:
        corpus = os.path.join(folder, "c.txt")
        with open(corpus, "w") as f:
            f.write("\n".join(line for text in CORPUS for line in text.split("\n")))
        sentencepiece.SentencePieceTrainer.train(
            input=corpus, model_prefix=os.path.join(folder, "m"), model_type="bpe", vocab_size=900, byte_fallback=True,
            character_coverage=0.98, normalization_rule_name="identity", remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True, user_defined_symbols=["<tool>"], split_digits=True, minloglevel=2,
            unk_id=0, bos_id=1, eos_id=2, pad_id=-1, num_threads=1)
        sp = sentencepiece.SentencePieceProcessor(model_file=os.path.join(folder, "m.model"))
    n = sp.get_piece_size()
    tokens = [sp.id_to_piece(i) for i in range(n)]
    kind = lambda i: 2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 4 if tokens[i] == "<tool>" else 1
    scores = [sp.get_score(i) for i in range(n)]
    vocabulary = {"model": "llama", "tokens": tokens, "scores": scores, "token_type": [kind(i) for i in range(n)],
                  "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, "add_bos_token": True}
    llama = llama_cases(vocabulary)
    own = [[text, sp.encode(text)] for text in TEXTS]
    for (text, _, ids), (_, mine) in zip(llama, own):
        if ids != mine and "<tool>" not in text and text:
            print(f"  sentencepiece: {text!r}\n    llama.cpp     {ids}\n    sentencepiece {mine}")
    vocab = {t: i for i, t in enumerate(tokens)}
    merges = []
    for piece, score in zip(tokens, scores):
        if kind(vocab[piece]) == 1:
            local = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if piece[:i] in vocab and piece[i:] in vocab]
            merges += [(score, len(a), len(b), a, b) for a, b in local]
    merges.sort(key=lambda m: m[:3], reverse=True)
    for scheme in ["legacy", "first"]:
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[m[3:] for m in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ["<unk>", "<s>", "</s>"]])
        tokenizer.add_tokens([AddedToken("<tool>", normalized=True, rstrip=True)])
        if scheme == "legacy":
            tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
            tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        else:
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
            tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        library = library_cases(tokenizer)
        if scheme == "legacy":
            differences("legacy", library, llama)
        write(f"spm-{scheme}.tokenizer.json", json.loads(tokenizer.to_str()))
        write(f"spm-{scheme}.ids.json", {"library": library, "llama": llama if scheme == "legacy" else []})
    write("spm-legacy.vocabulary.json", vocabulary)


main(sys.argv[1])
