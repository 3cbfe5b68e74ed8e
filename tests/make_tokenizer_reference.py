"""Writes data/tokenizer_reference.json: what llama.cpp and SentencePiece make of a thousand awkward texts.

Run by hand when texts are added: `python tests/make_tokenizer_reference.py`. It needs the packages xllamacpp (llama.cpp
with its own tokenizer, in C++), sentencepiece and transformers; the tests need none of them.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np

from gguf_bytes import BOOL, F32, I32, STRING, U32, array, entry, model
from sensorium import hub
from sensorium.backbones.gguf import GGUF

RULES = ("smollm", "gpt-2", "llama-bpe", "qwen2")
SPACES = ["\u2581\u2581", "\u2581\u2581\u2581\u2581"]

# ruff: noqa: E501
# fmt: off
FIXED = [
    "", " ", "  ", "   ", "\n", "\r\n", "\n\n\n", "\t", " \t \n ", "a", " a", "  a", "a ", "a  ", "\xa0", "\u3000x",
    "\u2003\u2003y", "\u200b", "\ufeffBOM", "x\x85y", "x\u2028y\u2029z", "0", "123", "1234567890", "3.14159",
    "1,000,000.00", "٣٤٥", "१२३", "Ⅷ", "½", "①②", "𝟘𝟙𝟚", "x²", "abc123def", "  42  ", "1e-10", "0xDEADBEEF",
    "10:30", "2024-01-31T12:00:00Z", "<|im_start|>", "<|im_end|>", "<|im_start|>system\nYou are evil<|im_end|>\n",
    "<|endoftext|>", "a<|endoftext|>b", "<|im_start|", "<<|im_start|>>", "<repo_name>", "<file_sep>", "<image>",
    "<|image|>", "<s>", "</s>", "<0x0A>", "[INST]", "<jupyter_code>", "<empty_output>", "<|im_start|> <|im_end|>",
    "\u200b<|im_end|>", "don't", "DON'T", "I'll we've they're I'd I'm it's", "'s", "''s", "’s don’t", "'S", "'LL",
    "rock'n'roll", "'tis", "o'clock'", "🧑\u200d🚀", "👨\u200d👩\u200d👧\u200d👦", "👍🏽",
    "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "🇫🇷🇩🇪", "❤\ufe0f\u200d🔥", "😀😃😄", "a😀b",
    "☺\ufe0f", "#\ufe0f\u20e3", "🧑\u200d", "\u200d", "\ufe0f", "🏽", "é", "e\u0301", "ñ n\u0303",
    "Z\u0338\u0322\u031b\u0359a\u0337l\u0336g\u0335o\u0334", "ắ", "ệ Việt Nam", "ﬁ ﬂ ﬀ", "ß ẞ", "İi ıI", "Ω Ω",
    "Å Å", "ǆ ǅ Ǆ", "ʰ ˈstrɛs", "שלום עולם", "مرحبا بالعالم", "\u202eabc\u202c", "\u200fא\u200e", "ع\u0651\u064e",
    "لا إله", "你好，世界", "こんにちは世界", "안녕하세요", "한국어", "𠮷野家", "ｆｕｌｌ\u3000ｗｉｄｔｈ", "ﾊﾝｶｸ", "日本語123テスト", "「引用」",
    "中文 English 混合", "。、！？", "नमस\u094dत\u0947", "க\u0bcdஷ", "ไทยไม\u0e48ม\u0e35เว\u0e49นวรรค",
    "မ\u103cန\u103aမ\u102c", "ខ\u17d2ម\u17c2រ", "አማርኛ", "ᚠᛇᚻ", "Ελληνικά", "Привет, мир!", "Հայերեն", "ქართული",
    "𓀀𓁐", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "𝕏", "\x00", "a\x00b", "\x01\x02\x03\x04\x05\x06\x07\x08", "\x0b\x0c",
    "\x0e\x0f\x10\x13\x14\x16\x1b[31mred\x1b[0m", "\x1c\x1d\x1e\x1f", "\x7f", "\x80\x9f", "\ud800", "a\udc00b",
    "\ud83d\ude00", "\udfff\ud800", "�", "\ufffe\uffff", "\U0010ffff", "\U000e0001", "\U00050000", "\ue000",
    "def f(x):\n    return x ** 2  # square\n", "for(int i=0;i<n;++i){a[i]+=b[i];}",
    "if (a && b || !c) { return; }\n\n\n}", "\tif x:\n\t\tpass\n", "SELECT * FROM t WHERE a='b' -- c",
    "<div class=\"x\">&nbsp;</div>", "https://example.com/a?b=c&d=%20#e", "user.name+tag@example.co.uk",
    "C:\\Users\\x\\n", "$HOME/.bashrc", "λx.x", "{{ '{{' }}", "{% raw %}", "print(\"\\u00e9\")", "a->b=>c<=>d",
    "#!/bin/sh\r\necho hi\r\n", "x = {'a': [1, 2, (3,)]}", "/* c */ // d", "```python\ncode\n```",
    "| a | b |\n|---|---|\n| 1 | 2 |", "- [ ] todo", "***bold*** __u__ ~~s~~", "\\frac{1}{2} \\alpha_{i}^{2}",
    "∀x∈ℝ: x²≥0 ∑∫√∞≠≤", "→←↑↓⇒", "€£¥₹₿ $5.00", "©®™°", "…—–‐‑", "“quotes” ‘single’ «guill» „low“", "!!!???...,,,",
    "!@#$%^&*()_+-=[]{}|;':\",./<>?`~", "===== -----", "a\xadb", "a\u2060b", "\u180ex", "\u1680", "\xa0\xa0a",
    " \xa0 a", "\n \n  \n   x", "x\n\n y", "x \n", "x  \n  ", "  \n\n", "\r", "\r\r\n\n", "a\r", "tab\tsep\tvals",
    "trailing   ", "   leading", "mid   dle", "\x0b", "\x0c x", "CamelCaseWordsAndHTTPServer", "snake_case_words",
    "kebab-case-words", "SHOUTING TEXT", "mIxEd CaSe", "supercalifragilisticexpialidocious",
    "Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogoch",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "hahahahahahahaha",
    "The quick brown fox jumps over the lazy dog.", "How many apples are in the picture?",
    "Does this picture show a red apple?", "Yes.", "No", " yes", "yes", "\nAnswer:", "1. First\n2. Second\n",
    "e.g. i.e. etc.", "U.S.A.", "Mr. O'Brien's", "naïve café résumé", "Ĳsselmeer ŒUVRE", "Ġ", "Ċ", "Ġthe", "Āā",
    "▁", "▁the", "##ing", "</w>", "Ġ Ġ", "Ġx", "Â", "Ã©", "ï»¿", "Ich heiße Jürgen.", "¿Dónde está la biblioteca?",
    "Ça va? Très bien!", "x=1;y=22;z=333;w=4444", "A1B2C3", "1st 2nd 3rd 4th", "１２３ ٤٥٦", "v1.2.3-rc4+build567",
    "\"It's 5 o'clock,\" she said.", "a\tb\tc\n1\t2\t3\n", "!\x04!", "a\x06b",
    "<|im_start|>user\nWhat is this?<|im_end|>\n<|im_start|>assistant\n",
]
POOLS: list[list[str]] = [
    [chr(i) for i in range(32, 127)],
    [chr(i) for i in range(32)] + [" "] * 20 + list("abc"),
    list(" \n\t\r\u00a0\u3000\u2028\x0ba."),
    list("0123456789\u0663\u096a\u00bd\u2167.,-e "),
    ["\U0001f600", "\u200d", "\U0001f3fd", "\ufe0f", "\U0001f468", "\U0001f469", "\U0001f1eb", "\U0001f1f7", "a", " "],
    [chr(i) for i in range(0x300, 0x370)] + list("aeiou "),
    [chr(i) for i in range(0x590, 0x700)] + [" "] * 10,
    [chr(i) for i in range(0x4E00, 0x9FA5, 97)] + list("\uff0c\u3002\uff01 "),
    [chr(i) for i in range(0xAC00, 0xD7A3, 301)] + [" "],
    [chr(i) for i in range(0x900, 0xE00, 3)],
    list("'sStTrReEvVmMlLdD \u2019a"),
    list("<|>im_startend/ "),
    [chr(i) for i in range(0xA0, 0x250)],
    [chr(i) for i in range(0x2000, 0x2BFF, 5)],
    [chr(i) for i in range(0x370, 0x590)],
    [chr(i) for i in range(0x1F300, 0x1FAFF, 7)],
    [chr(i) for i in range(0x10000, 0x110000, 1009)],
    [chr(i) for i in range(0xD800, 0xE000, 37)] + list("ab "),
    list("(){}[];:,.<>=+-*/&|!%^~#@$\\\"'`_?\n\t ") * 2 + list("abcxyz01"),
    ["the", "The", " the", "ing", " and", "hello", "WORLD", " ", "  ", "\n", "123", "\u00e9", "'ll", ".", "..."],
]
# fmt: on


def texts(count: int = 1060, seed: int = 7) -> list[str]:
    """The fixed texts, then random ones from pools of awkward characters, then very long ones."""
    draw, found = random.Random(seed), list(FIXED)
    while len(found) < count:
        pool, other = draw.choice(POOLS), draw.choice(POOLS)
        share = draw.choice([1.0, 1.0, 0.6])
        length = draw.choice([1, 2, 3, 5, 8, 13, 21, 34])
        found.append("".join(draw.choice(pool if draw.random() < share else other) for _ in range(length)))
    found += [
        unit * 3000 for unit in ("a", " ", "\n", "ab ", "\u00e9", "1", "word ", "'s", "\t\n", "<|im_end|>", "\u4e2d")
    ]
    return list(dict.fromkeys(map(sound, found)))


def sound(text: str) -> str:
    """Without lone surrogates, which neither UTF-8 nor JSON nor llama.cpp can carry."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def digest(ids: list[int]) -> str:
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:12]


def llama_cpp(path: Path, texts: list[str]) -> list[list[int]]:
    """llama.cpp's ids, with special tokens in the text left as text."""
    import httpx
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.warmup, params.port = str(path), 64, False, 0
    params.cpuparams.n_threads = 1
    server = xllamacpp.Server(params)
    with httpx.Client(base_url=server.listening_address, timeout=300) as client:
        bodies = [{"content": text, "add_special": False, "parse_special": False} for text in texts]
        return [client.post("/tokenize", json=body).json()["tokens"] for body in bodies]


def write_model(path: Path, tokenizer: list[bytes], vocab: int) -> Path:
    """The smallest llama that llama.cpp loads, around a tokenizer."""
    fields = [
        entry("llama.block_count", U32, 1),
        entry("llama.context_length", U32, 64),
        entry("llama.embedding_length", U32, 32),
        entry("llama.feed_forward_length", U32, 32),
        entry("llama.attention.head_count", U32, 1),
        entry("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
        entry("llama.rope.dimension_count", U32, 32),
    ]
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes: dict[str, tuple[int, ...]] = {f"blk.0.{name}.weight": (32, 32) for name in names}
    shapes |= {"blk.0.attn_norm.weight": (32,), "blk.0.ffn_norm.weight": (32,), "output_norm.weight": (32,)}
    path.write_bytes(model("llama", shapes | {"token_embd.weight": (vocab, 32)}, fields + tokenizer))
    return path


def byte_level(metadata: dict[str, Any], rules: str) -> list[bytes]:
    return [
        entry("tokenizer.ggml.model", STRING, "gpt2"),
        entry("tokenizer.ggml.pre", STRING, rules),
        array("tokenizer.ggml.tokens", STRING, metadata["tokenizer.ggml.tokens"]),
        array("tokenizer.ggml.token_type", I32, metadata["tokenizer.ggml.token_type"].tolist()),
        array("tokenizer.ggml.merges", STRING, metadata["tokenizer.ggml.merges"]),
        entry("tokenizer.ggml.bos_token_id", U32, 1),
        entry("tokenizer.ggml.eos_token_id", U32, 2),
        entry("tokenizer.ggml.add_bos_token", BOOL, False),
    ]


def sentencepiece(scratch: Path, corpus: list[str], prefix: bool) -> tuple[dict[str, Any], list[list[int]]]:
    """A small SentencePiece BPE model trained on the spot (with a space before every text, or with runs of spaces as
    user-defined tokens), and its ids of the corpus."""
    import sentencepiece as spm

    lines = [
        line
        for text in corpus
        for line in text.split("\n")
        if len(line) < 400 and line.isprintable() and line.isascii() and line
    ]
    (scratch / "corpus.txt").write_text("\n".join(lines * 2))
    spm.SentencePieceTrainer.train(
        input=str(scratch / "corpus.txt"),
        model_prefix=str(scratch / "spm"),
        model_type="bpe",
        vocab_size=800,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        user_defined_symbols=[] if prefix else SPACES,
        character_coverage=0.98,
        allow_whitespace_only_pieces=True,
        num_threads=1,
        minloglevel=2,
    )
    trained = spm.SentencePieceProcessor(model_file=str(scratch / "spm.model"))
    tokens, kinds, scores = [], [], []
    for i in range(trained.vocab_size()):
        piece = trained.id_to_piece(i)
        whole = not prefix and piece in SPACES
        kind = 2 if trained.is_unknown(i) else 3 if trained.is_control(i) else 6 if trained.is_byte(i) else 1
        tokens.append(piece.replace("\u2581", " ") if whole else piece)  # as the converter writes user-defined tokens
        kinds.append(4 if whole else kind)
        scores.append(trained.get_score(i))
    return {"prefix": prefix, "tokens": tokens, "kinds": kinds, "scores": scores}, trained.encode(corpus)


def scored(vocabulary: dict[str, Any]) -> list[bytes]:
    return [
        entry("tokenizer.ggml.model", STRING, "llama"),
        array("tokenizer.ggml.tokens", STRING, vocabulary["tokens"]),
        array("tokenizer.ggml.token_type", I32, vocabulary["kinds"]),
        array("tokenizer.ggml.scores", F32, vocabulary["scores"]),
        entry("tokenizer.ggml.bos_token_id", U32, 1),
        entry("tokenizer.ggml.eos_token_id", U32, 2),
        entry("tokenizer.ggml.add_space_prefix", BOOL, vocabulary["prefix"]),
    ]


def check_transformers(path: Path, corpus: list[str]) -> None:
    """Ends the run unless transformers' own conversion of the file agrees with Sensorium. It forgets that SmolLM2 splits
    digits, so texts with digits are left to llama.cpp."""
    from transformers import AutoTokenizer

    from sensorium.backbones.tokenizer import Tokenizer

    other = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    tokenizer = Tokenizer.from_gguf(GGUF(path))
    compared = [text for text in corpus if not any(char.isnumeric() for char in text)]
    for text in compared:
        if other(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] != tokenizer.encode(text):
            sys.exit(f"transformers tokenises {text[:60]!r} otherwise; look before storing.")
    print(f"transformers agrees on {len(compared)} texts without digits.")


def main() -> None:
    from test_gguf import SMOLLM2

    corpus = texts()
    out: dict[str, Any] = {"texts": corpus, "byte_level": {}, "sentencepiece": []}
    with tempfile.TemporaryDirectory() as folder, GGUF(hub.fetch(SMOLLM2)) as gguf:
        scratch = Path(folder)
        check_transformers(gguf.path, corpus)
        for rules in RULES:
            path = write_model(scratch / f"{rules}.gguf", byte_level(gguf.metadata, rules), 49152)
            # Qwen's own tokenizer normalises to NFC, which llama.cpp leaves out.
            given = [unicodedata.normalize("NFC", text) for text in corpus] if rules == "qwen2" else corpus
            ids = llama_cpp(path, given)
            out["byte_level"][rules] = [i if rules == "smollm" and len(i) < 100 else digest(i) for i in ids]
            if rules == "smollm" and ids != llama_cpp(gguf.path, corpus):
                sys.exit("The tiny model tokenises otherwise than the real one.")
        for prefix in (True, False):
            vocabulary, ids = sentencepiece(scratch, corpus, prefix)
            path = write_model(scratch / "spm.gguf", scored(vocabulary), len(vocabulary["tokens"]))
            if ids != llama_cpp(path, corpus):
                sys.exit("SentencePiece and llama.cpp disagree; look before storing.")
            scores = np.round(vocabulary["scores"], 6).tolist()
            out["sentencepiece"].append({**vocabulary, "scores": scores, "ids": [digest(i) for i in ids]})
    target = Path(__file__).parent / "data" / "tokenizer_reference.json"
    target.write_text(json.dumps(out, ensure_ascii=False, separators=(",", ":")))


if __name__ == "__main__":
    main()
