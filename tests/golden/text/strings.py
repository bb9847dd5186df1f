"""The texts of the tokenizer goldens: every kind of character, cut and joined in many ways."""
import random

WORDS = ["Hello", "world", "tokenizer", "don't", "I'LL", "we've", "it's", "O'Neill", "naïve", "Straße", "ΑΒΓ", "Привет",
         "мир", "日本語", "漢字かな交じり", "한국어", "ไทย", "हिन्दी", "العربية", "שלום", "e\u0301", "ǅ", "ﬁ", "Ⅷ", "½", "１２３",
         "12345", "3.14159", "1,000,000", "0x7f", "2024-05-01", "٣٤", "😀", "👩‍👩‍👧", "🏳️‍🌈", "🇫🇷", "…", "—", "«»", "<=>", "!!!",
         "?!", "snake_case", "camelCase", "HTTPServer", "a.b.c", "C++", "/usr/bin", "@user", "#tag", "$5", "100%", "^_^",
         "~", "`x`", "|", "\\n", "\\", "\"q\"", "'s", "'S", "'re", "''", "x'", "<s>", "</s>", "<unk>", "<0x0A>", "▁", "Ġ", "Ċ"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<tool>", "<|im_end", "|im_end|>", "<|im_<|im_end|>",
           "<|im_end|><|im_end|>", " <|im_end|> ", "\n<|im_end|>\n", "a<|im_end|>b", "<|im_start|>user\nhi<|im_end|>\n",
           "<tool> x <tool>", "<|IM_END|>", "<s>hi</s>", " <s> hi </s> "]
SPACES = [" ", "  ", "   ", "    ", " " * 7, " " * 16, " " * 33, "\t", "\t\t", "\n", "\n\n", "\n\n\n", "\r\n", "\r", " \n",
          "\n ", " \n ", "\n\t", "\t\n", "\u00a0", "\u2003", "\u3000", "\u200b", "\u2028", "\x0b", "\x0c", "\x85"]
CONTROL = ["\x00", "\x01", "\x1b[0m", "\x7f", "a\x00b", "\ufeff", "\ufffd", "\ue000", "\U000f0000", "\U0010ffff", "\u0378"]
CODE = ["def f(x):\n    return x + 1\n", "for (int i = 0; i < n; ++i) {\n\tsum += a[i];\n}\n", "{\"a\": [1, 2.5, null], \"b\": \"c\\n\"}",
        "fn main() -> Result<(), Box<dyn Error>> {\n    println!(\"{x:?}\");\n}", "SELECT * FROM t WHERE a='b' -- c\n",
        "<p class=\"x\">a &amp; b</p>", "https://example.org/a?b=c&d=%20#e", "$$\\frac{a}{b}$$", "a\\\nb", "#!/bin/sh\nset -e\n"]
PROSE = ["The quick brown fox jumps over the lazy dog.", "It's 5 o'clock; they'd've said \"no\" — wouldn't they?",
         "In 1989, about 2,500 people (12.5%) moved.", "Übung macht den Meister. Ça va? ¿Qué tal? Åse, łódź, İstanbul.",
         "我喜欢吃苹果，也喜欢看书。", "今日はいい天気ですね！明日は？", "나는 학교에 갑니다.", "สวัสดีครับ ผมชื่อ", "नमस्ते दुनिया, क्या हाल है?",
         "Σὲ γνωρίζω ἀπὸ τὴν κόψη", "a  b   c    d     e", "ALL CAPS AND mixed Case wOrDs", "tab\tseparated\tvalues\n1\t2\t3\n",
         "What is the capital of France?", "user\nWhat is 2+2?\nassistant\n4", "e\u0301 vs \u00e9, \u1e9b\u0323"]


def texts():
    rng = random.Random(20240501)
    out = ["", "a"] + WORDS + [" " + w for w in WORDS] + SPECIAL + SPACES + CONTROL + CODE + PROSE
    out += ["a" + s + "b" for s in SPACES] + ["a" + s for s in SPACES] + [s + "b" for s in SPACES]
    pools = [WORDS, WORDS, SPACES, SPECIAL, CODE, PROSE, CONTROL]
    for _ in range(160):
        parts = []
        for _ in range(rng.randint(2, 9)):
            parts.append(rng.choice(rng.choice(pools)))
            if rng.random() < 0.5:
                parts.append(" ")
        out.append("".join(parts))
    for _ in range(30):
        out.append("".join(chr(rng.choice([rng.randint(32, 126), rng.randint(0xa0, 0x24f), rng.randint(0x370, 0x5ff),
                                           rng.randint(0x900, 0xdff), rng.randint(0x3040, 0x30ff), rng.randint(0x1f300, 0x1f64f)]))
                           for _ in range(rng.randint(1, 40))))
    return out
