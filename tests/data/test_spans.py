"""Token columns of class names: with CLIP's real vocabulary, with a small one, and for hostile text."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from glass_fast.data.spans import (
    class_spans,
    fit_prompt,
    join_classes,
    join_prompt,
    token_limit,
    token_offsets,
)
from glass_fast.errors import DataError

VOC_TEXT = """
aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant
sheep sofa train tvmonitor
"""
VOC = VOC_TEXT.split()
COCO_TEXT = """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop
    sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack,
    umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball
    glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana,
    apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed,
    dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink,
    refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush
"""
COCO = [name.strip() for name in COCO_TEXT.split(",")]
NAMES = sorted(set(VOC) | set(COCO))
SPACED = [*NAMES, "tv monitor", "TV monitor"]
"""The label set writes VOC's two-word names with a space; upper case must not matter to a lower-casing
tokenizer."""


def byte_characters() -> list[str]:
    """CLIP's 256 printable stand-ins for bytes, in vocabulary order (printable Latin-1 first, the rest
    after it)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + index) for index in range(len(rest))]


def write_vocabulary(folder: Path, merges: list[str]) -> None:
    """vocab.json and merges.txt as CLIP builds them: characters, characters ending a word, merges, two
    specials."""
    characters = byte_characters()
    entries = [*characters, *(c + "</w>" for c in characters), *(m.replace(" ", "") for m in merges)]
    entries += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(
        json.dumps({entry: index for index, entry in enumerate(entries)}), "utf-8"
    )
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")


@pytest.fixture(scope="module")
def clip(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import CLIPTokenizer

    source = real_data / "clip_bpe" / "bpe_simple_vocab_16e6.txt.gz"
    if not source.exists():
        pytest.skip(f"no CLIP vocabulary at {source}")
    lines = gzip.decompress(source.read_bytes()).decode("utf-8").split("\n")
    folder = tmp_path_factory.mktemp("clip")
    write_vocabulary(folder, lines[1 : 49152 - 256 - 2 + 1])
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=77)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """CLIP's format with six merges: almost every letter is its own token."""
    from transformers import CLIPTokenizer

    folder = tmp_path_factory.mktemp("small")
    write_vocabulary(folder, ["d o", "do g</w>", "c a", "ca t</w>", "a r", "t h"])
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=77)


def alone(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_the_vocabulary_is_clips(clip: Any) -> None:
    """Ids printed in CLIP's own documentation and known from its text encoder."""
    assert len(clip) == 49408
    assert clip("a photo of a cat")["input_ids"] == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert len(NAMES) == 86


def test_some_names_split(clip: Any) -> None:
    """Otherwise the tests below would pass with one column a word."""
    counts = {name: len(alone(clip, name)) for name in NAMES}
    assert counts["aeroplane"] == 2 and counts["hot dog"] == 2 and counts["dog"] == 1
    split = [name for name in NAMES if counts[name] > len(name.split())]
    assert {"aeroplane", "tvmonitor", "diningtable", "pottedplant"} <= set(split)


@pytest.mark.parametrize("name", SPACED)
def test_name_alone(clip: Any, name: str) -> None:
    """Expected columns by counting: the name's own tokens follow the start token."""
    ids = alone(clip, name)
    assert class_spans(clip, name, [name]) == [list(range(1, 1 + len(ids)))]
    assert class_spans(clip, join_prompt("a caption", [name]), [name]) == [list(range(4, 4 + len(ids)))]


@pytest.mark.parametrize("name", SPACED)
def test_name_third_after_multi_token_names(clip: Any, name: str) -> None:
    """Third after "teddy bear" (two words) and "aeroplane" (one word, two tokens); again with a caption in
    front."""
    classes = ["teddy bear", "aeroplane", name]
    lengths = [len(alone(clip, each)) for each in classes]
    caption = f"a {name} on a hot dog, next to an aeroplane"
    for text, first in (
        (join_classes(classes), 1),
        (join_prompt(caption, classes), 1 + len(alone(clip, caption + ";"))),
    ):
        encoded = clip(text)["input_ids"]
        spans = class_spans(clip, text, classes)
        expected, column = [], first
        for length in lengths:
            expected.append(list(range(column, column + length)))
            column += length
        assert spans == expected
        assert [encoded[c] for c in spans[2]] == alone(clip, name)


def test_prompt_probe_reads_the_list_not_the_caption(clip: Any) -> None:
    caption = "a dog; a cat and a dog"
    spans = class_spans(clip, join_prompt(caption, ["dog", "cat"]), ["dog", "cat"])
    first = 1 + len(alone(clip, caption + ";"))
    assert spans == [[first], [first + 1]]


def test_repeated_class(clip: Any) -> None:
    assert class_spans(clip, "person person sofa", ["person", "person", "sofa"]) == [[1], [2], [3]]


def test_no_classes(clip: Any) -> None:
    assert class_spans(clip, "a street", []) == []
    assert fit_prompt(clip, "a street", []) == "a street"
    assert join_prompt("", ["dog", "hot dog"]) == "dog hot dog"


def test_missing_list_is_refused(clip: Any) -> None:
    with pytest.raises(DataError, match="does not hold its class list") as info:
        class_spans(clip, "a dog and a cat", ["dog"])
    assert info.value.code == "GF-DATA-060"


def test_truncation_names_the_class(clip: Any) -> None:
    """77 positions: start, 75 tokens, end. 36 x "very dog" is 72 tokens, the separator 1; two names fit, a
    third not."""
    caption = " ".join(["very dog"] * 36)
    assert class_spans(clip, join_prompt(caption, ["cat", "cow"]), ["cat", "cow"]) == [[74], [75]]
    with pytest.raises(DataError, match="class 'sheep' lies beyond the 77 tokens") as info:
        class_spans(clip, join_prompt(caption, ["cat", "cow", "sheep"]), ["cat", "cow", "sheep"])
    assert info.value.code == "GF-DATA-062"


def test_half_cut_class_is_cut(clip: Any) -> None:
    """Only the second token of "aeroplane" lies beyond the limit: still an error, its map would be of
    "aerop"."""
    caption = " ".join(["very"] * 73)
    text = join_prompt(caption, ["aeroplane"])
    assert len(clip(text)["input_ids"]) == 78
    with pytest.raises(DataError, match="aeroplane"):
        class_spans(clip, text, ["aeroplane"])
    assert class_spans(clip, text, ["aeroplane"], max_length=78) == [[75, 76]]


def test_fit_prompt_moves_classes_forward(clip: Any) -> None:
    caption = " ".join(["very"] * 74)
    text = fit_prompt(clip, caption, ["hot dog", "aeroplane"])
    assert text == f"hot dog aeroplane; {caption}"
    assert class_spans(clip, text, ["hot dog", "aeroplane"]) == [[1, 2], [3, 4]]
    truncated = clip(text, truncation=True, max_length=77)["input_ids"]
    assert truncated[1:5] == alone(clip, "hot dog aeroplane")
    short = fit_prompt(clip, "a dog", ["dog"])
    assert short == "a dog; dog"


def test_fit_prompt_refuses_what_cannot_fit(clip: Any) -> None:
    classes = ["teddy bear"] * 37 + ["aeroplane"]
    with pytest.raises(DataError, match="class 'aeroplane' lies beyond"):
        fit_prompt(clip, "a caption", classes)


def test_unlimited_tokenizer_counts_as_clip(clip: Any) -> None:
    class Unlimited:
        model_max_length = int(1e30)

    assert token_limit(Unlimited()) == 77
    assert token_limit(clip) == 77
    assert token_limit(clip, 16) == 16


def test_small_vocabulary(small: Any) -> None:
    """Letters as tokens: columns = letters, except for the merged words."""
    assert class_spans(small, "dog cup cat", ["dog", "cup", "cat"]) == [[1], [2, 3, 4], [5]]


class WordsOnly:
    """A tokenizer without offsets (as slow ones were): the word route must give the same columns."""

    is_fast = False
    model_max_length = 77

    def __init__(self, inner: Any, glue: bool = False) -> None:
        self.inner, self.glue = inner, glue

    def __call__(self, text: str, **options: Any) -> Any:
        return self.inner(text.replace(" ", "") if self.glue else text, **options)

    def decode(self, ids: list[int]) -> str:
        return str(self.inner.decode(ids))


def test_without_offsets(clip: Any) -> None:
    text = join_prompt("a cat's hot dog", ["teddy bear", "aeroplane", "tv"])
    classes = ["teddy bear", "aeroplane", "tv"]
    assert class_spans(WordsOnly(clip), text, classes) == class_spans(clip, text, classes)
    with pytest.raises(DataError, match="differently from its words"):
        class_spans(WordsOnly(clip, glue=True), text, classes)


def test_wrong_offsets_are_noticed(clip: Any) -> None:
    """Offsets off by one column must not pass silently: the decoded pieces are compared with the name."""

    class Shifted(WordsOnly):
        is_fast = True

        def __call__(self, text: str, **options: Any) -> Any:
            encoded = self.inner(text, **options)
            if "offset_mapping" in encoded:
                encoded["offset_mapping"] = [*encoded["offset_mapping"][1:], (0, 0)]
            return encoded

        def get_special_tokens_mask(self, ids: list[int], **options: Any) -> list[int]:
            return [0] * len(ids)

    with pytest.raises(DataError, match="do not spell it") as info:
        class_spans(Shifted(clip), "aeroplane dog", ["aeroplane", "dog"])
    assert info.value.code == "GF-DATA-063"


CAPTIONS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
CLASS_LISTS = st.lists(st.sampled_from(SPACED), min_size=1, max_size=5)


def check_any_caption(clip: Any, caption: str, classes: list[str]) -> None:
    """Whatever the caption holds (also text like special tokens), the columns spell the classes."""
    text = fit_prompt(clip, caption, classes)
    spans = class_spans(clip, text, classes)
    ids = clip(text, truncation=True, max_length=77)["input_ids"]
    assert [[ids[c] for c in span] for span in spans] == [alone(clip, name) for name in classes]
    offsets = token_offsets(clip, text)
    assert all(0 <= a <= b <= len(text) for a, b in offsets)


@settings(max_examples=500)
@given(caption=CAPTIONS, classes=CLASS_LISTS)
@example(caption="<|endoftext|> dog; hot dog", classes=["hot dog"])
@example(caption="\u0301 e\u0301 \u0130", classes=["aeroplane", "tv"])
def test_any_caption(clip: Any, caption: str, classes: list[str]) -> None:
    check_any_caption(clip, caption, classes)


@pytest.mark.slow
@settings(max_examples=100_000)
@given(caption=CAPTIONS, classes=CLASS_LISTS)
def test_any_caption_at_length(clip: Any, caption: str, classes: list[str]) -> None:
    check_any_caption(clip, caption, classes)


def test_import_needs_no_torch() -> None:
    code = (
        "import sys, glass_fast.data.spans; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
