"""Writes crates/lapidary/tests/golden/tokenizer_*.json: token ids by llama.cpp for a corpus of difficult texts.

    pip install xllamacpp
    python scripts/tokenizer_golden.py smollm2 SmolLM2-135M-Instruct.Q4_1.gguf crates/lapidary/tests/golden
    python scripts/tokenizer_golden.py gemma3 gemma-3-270m-q4_k_m.gguf crates/lapidary/tests/golden

llama.cpp reads the model, serves it on the loopback interface, and its own tokenizer answers. Besides the file as
it is ("file"), copies with one metadata value changed are asked: other pre-tokenizers on the same vocabulary, and the
space prefix switched on. Long texts are stored as a text and a number of repetitions.
"""

import json
import pathlib
import struct
import sys
import tempfile
import unicodedata
import urllib.request

import xllamacpp

TEXTS = [
    "", " ", "  ", "   ", "a", " a", "a ", "  a  b   c    ", "Hello, world!", "hello\nworld", "hello\n\nworld\n",
    "\n", "\r\n", "\t", "\t\ttabs\tand\r\nlines\n\n\n", " \n \n ", "line\n    indented\n\tand tabbed\n",
    "It's we're I'll they'd I'VE don'T", "1", "12", "123", "1234567890", "3.14159 and 1,000,000", "v1.2.3-rc4+build5",
    "½ ² Ⅷ ٣٤٥ 一二三 １２３", "def f(x):\n    return x**2  # square\n", "https://example.org/a?b=c&d=%20#e",
    "the quick brown fox jumps over the lazy dog", "The Quick BROWN fox", "CamelCaseAndsnake_case and-dash",
    "naïve café résumé", "cafe\u0301 e\u0301\u0327", "\u0301", "\u0301\u0302 \u0303", "a\u0301\u0301\u0301\u0301\u0301",
    "Straße ĲSSEL ŉ ﬁ ﬂ", "Привет, мир! Ёлка", "Γειά σου Κόσμε", "שלום עולם", "مرحبا بالعالم ١٢٣", "हिन्दी में नमस्ते",
    "สวัสดีชาวโลก", "你好，世界。", "こんにちは世界、カタカナ", "안녕하세요 세계", "繁體中文與简体中文混排", "𠀀𠀁𪚥",
    "😀", "😀😃😄 😁", "👨‍👩‍👧‍👦", "🤷🏽‍♂️ 🏳️‍🌈 🇩🇪🇫🇷", "❤️ ☃ ✈️", "a😀b", "\u200d", "zero\u200bwidth\ufeffmarks",
    "non\u00a0breaking\u2003em\u3000ideographic", "\u0000", "nul\u0000inside", "\u0001\u0002\u001b[31mred\u001b[0m\u007f",
    "\u0085next\u2028line\u2029", "\ufffd \ufffe \uffff", "\U0010ffff", "…—–“”‘’«»", "!!!???...,,,;;;", "((([[[{{{",
    "==== ---- ____ ~~~~", "$100 €200 £300 ¥400", "∑∫√∞≠≈ α²+β²", "<b>bold</b><table><tr>", "&lt;&amp;",
    "▁", "▁▁a ▁b", "Ġ", "ĠhelloĊ", "<0x0A>", "<0x41><0xFF>", "\\n \\t \\u0041",
    "<|im_start|>", "<|im_end|>", "a<|im_start|>user\nhi<|im_end|>\n", "<|endoftext|> <|endoftext|>", "<|im_start",
    "<bos>", "<eos>", "<pad>", "<unk>", "<mask>", "<start_of_turn>user\nhi<end_of_turn>\n", " <bos> x <eos> ",
    "<unused0><unused99>", "[multimodal]", "<s>[INST] x [/INST]", "<repo_name>x<file_sep>",
    "x" + " " * 40 + "y", "x" + "\n" * 40 + "y", " " * 100, "=" * 100, "ab" * 100,
]
LONG = [("a", 10000), ("Donaudampfschiff", 625), ("é", 3000), ("字", 2000), (" ", 3000), ("1", 2000), ("😀", 500)]


class LlamaCpp:
    """llama.cpp's tokenizer for one file."""

    def __init__(self, path):
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = 64
        params.warmup = False
        params.cpuparams.n_threads = 1
        self.server = xllamacpp.Server(params)

    def encode(self, text, special):
        body = json.dumps({"content": text, "add_special": False, "parse_special": special}).encode()
        url = self.server.listening_address + "/tokenize"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request))["tokens"]


def replaced(data, key, value):
    """The file with the string value of `key` replaced and its tensor data aligned again (to 32)."""
    import gguf
    marker = struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", 8)
    at = data.index(marker) + len(marker)
    (length,) = struct.unpack_from("<Q", data, at)
    with tempfile.NamedTemporaryFile(suffix=".gguf") as original:
        original.write(data)
        original.flush()
        reader = gguf.GGUFReader(original.name)
        start = reader.data_offset
        last = reader.tensors[-1].field
        end = last.offset + sum(part.nbytes for part in last.parts)
    header = data[:at] + struct.pack("<Q", len(value)) + value.encode() + data[at + 8 + length:end]
    return header + b"\0" * (-len(header) % 32) + data[start:]


def switched(data, key, value):
    """The file with the boolean value of `key` set."""
    marker = struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", 7)
    at = data.index(marker) + len(marker)
    return data[:at] + bytes([value]) + data[at + 1:]


def cases(path, texts, long, nfc=False):
    model = LlamaCpp(path)
    for text, repeat in [(text, 1) for text in texts] + long:
        whole = unicodedata.normalize("NFC", text * repeat) if nfc else text * repeat
        plain, special = model.encode(whole, False), model.encode(whole, True)
        case = {"text": text, "plain": plain}
        if repeat > 1:
            case["repeat"] = repeat
        if special != plain:
            case["special"] = special
        yield case


def main():
    name, path, out = sys.argv[1:]
    golden = {"file": list(cases(path, TEXTS, LONG))}
    data = pathlib.Path(path).read_bytes()
    changed = {"smollm2": [("pre", pre) for pre in ["gpt-2", "llama-bpe", "smaug-bpe", "qwen2", "tekken"]],
               "gemma3": [("add_space_prefix", True)]}[name]
    for key, value in changed:
        copy = tempfile.NamedTemporaryFile(suffix=".gguf")
        edit = replaced if isinstance(value, str) else switched
        copy.write(edit(data, f"tokenizer.ggml.{key}", value))
        copy.flush()
        golden[f"{key}={value}".lower()] = list(cases(copy.name, TEXTS, LONG[-2:], nfc=value == "qwen2"))
    path = pathlib.Path(out, f"tokenizer_{name}.json")
    lines = []
    for variant, items in golden.items():
        rows = ",\n".join(json.dumps(item, separators=(",", ":")) for item in items)
        lines.append(f"{json.dumps(variant)}: [\n{rows}\n]")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


main()
