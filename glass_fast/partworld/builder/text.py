"""The tiny byte-pair vocabulary of the generator, in the CLIP tokenizer's format."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path

from glass_fast.data.atomic import write_bytes
from glass_fast.partworld.renderer import describe, plural
from glass_fast.partworld.shapes import CLASSES

MAX_TOKENS = 32
START, END = "<|startoftext|>", "<|endoftext|>"
_MERGES = 150
_SPLIT = "opl"
"""Letters that no piece may hold, so that "aeroplane" is written as two tokens."""


def _byte_characters() -> list[str]:
    """The printable stand-ins of the 256 bytes, in the order that byte-level BPE vocabularies use."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def learn_merges(texts: list[str], count: int) -> list[tuple[str, str]]:
    """Byte-pair merges by frequency (ties by spelling); words end in ``</w>``."""
    words = Counter(word for text in texts for word in re.findall(r"[a-z]+|[^a-z\s]", text.lower()))
    pieces = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in pieces.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += words[word]
        pairs = Counter({pair: n for pair, n in pairs.items() if _SPLIT not in "".join(pair)})
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, parts in pieces.items():
            joined, i = [], 0
            while i < len(parts):
                if i + 1 < len(parts) and (parts[i], parts[i + 1]) == best:
                    joined.append(parts[i] + parts[i + 1])
                    i += 2
                else:
                    joined.append(parts[i])
                    i += 1
            pieces[word] = joined
    return merges


def build_tokenizer(folder: Path, captions: list[str]) -> None:
    """Write vocab.json, merges.txt and the configs; loadable by ``CLIPTokenizer.from_pretrained``.

    Frequent words become one token; "aeroplane" stays two, as rare class names do in CLIP's own vocabulary.
    """
    # Class words beyond those in captions, so that plurals of every class are merged alike.
    texts = captions + ["; " + name for name in CLASSES] + [describe([name, name]) for name in CLASSES]
    texts += [plural(name) for name in CLASSES]
    merges = learn_merges(texts, _MERGES)
    characters = _byte_characters()
    vocabulary = (
        characters + [c + "</w>" for c in characters] + ["".join(pair) for pair in merges] + [START, END]
    )
    folder.mkdir(parents=True, exist_ok=True)
    table = {token: index for index, token in enumerate(vocabulary)}
    write_bytes(folder / "vocab.json", json.dumps(table, ensure_ascii=False).encode())
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    write_bytes(folder / "merges.txt", ("\n".join(lines) + "\n").encode())
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_TOKENS,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
    }
    write_bytes(folder / "tokenizer_config.json", json.dumps(config, indent=2).encode())
