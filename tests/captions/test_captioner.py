"""Captioning with tiny BLIP and BLIP-2 models saved and loaded in the real formats."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glass_fast.captions import build_prompts
from glass_fast.captions.cache import CaptionCache
from glass_fast.captions.captioner import Captioner, image_keys
from glass_fast.config.schema import CaptionsConfig
from glass_fast.data.label_sets import LabelSet
from glass_fast.data.prompts import read_prompt_metadata, read_prompts
from glass_fast.errors import ConfigError, DataError, NumericsError, Stopped
from glass_fast.models.loading import load_captioner
from glass_fast.progress import Progress, StopToken

LABELS = LabelSet("mine", ("cat", "dog", "house", "sofa", "tree", "umbrella"))


def config(folder: Path, **options: Any) -> CaptionsConfig:
    settings = {"images": str(folder), "batch_size": 2, "max_new_tokens": 8, "keep_without_classes": True}
    return CaptionsConfig(**{**settings, **options})


def arrays(count: int) -> list[np.ndarray]:
    """Flat colours far apart: random weights hardly tell one noise from another."""
    colours = [(250, 10, 10), (10, 10, 250), (10, 240, 20), (255, 255, 255), (0, 0, 0)]
    return [np.full((30 + k, 40, 3), colours[k], np.uint8) for k in range(count)]


@pytest.mark.parametrize("kind", ["blip_folder", "blip2_folder"])
@pytest.mark.parametrize("beams", [1, 2])
def test_batched_equals_single_and_repeats(kind: str, beams: int, request: pytest.FixtureRequest) -> None:
    """Greedy and beam decoding are deterministic, and a batch gives what its images give alone."""
    captioner = Captioner(
        *load_captioner(request.getfixturevalue(kind), "cpu"), max_new_tokens=8, num_beams=beams
    )
    images = arrays(4)
    together = captioner(images)
    assert together == captioner(images)
    assert together == [captioner([image])[0] for image in images]
    assert len(set(together)) > 1, "all captions are equal: the image is not looked at"
    assert all(text and len(text.split()) <= 8 and "<" not in text and "[" not in text for text in together)


def test_greedy_is_the_argmax(blip_folder: Path) -> None:
    """Independent decoding: our own loop over the text decoder's logits gives the same words."""
    import torch
    from PIL import Image

    model, processor = load_captioner(blip_folder, "cpu")
    image = arrays(3)[2]
    caption = Captioner(model, processor, max_new_tokens=6)([image])[0]
    pixels = processor(images=[Image.fromarray(image)], return_tensors="pt")["pixel_values"]
    ids = [model.config.text_config.bos_token_id]
    with torch.no_grad():
        states = model.vision_model(pixel_values=pixels).last_hidden_state
        for _ in range(6):
            logits = model.text_decoder(input_ids=torch.tensor([ids]), encoder_hidden_states=states).logits
            ids.append(int(logits[0, -1].argmax()))
            if ids[-1] == model.config.text_config.sep_token_id:
                break
    assert caption == processor.decode(ids, skip_special_tokens=True).strip()


def test_out_of_memory_halves_the_batch(blip_folder: Path) -> None:
    import torch

    model, processor = load_captioner(blip_folder, "cpu")
    plain = Captioner(model, processor, max_new_tokens=4)
    images = arrays(5)

    class Small(Captioner):
        limit = 2

        def _generate(self, images: Any) -> list[str]:
            if len(images) > self.limit:
                raise torch.OutOfMemoryError("no room")
            return super()._generate(images)

    small = Small(model, processor, max_new_tokens=4)
    assert small(images) == plain(images)
    small.limit = 0
    with pytest.raises(NumericsError, match="single image: no room"):
        small(images)


def test_table_of_a_folder(blip_folder: Path, pictures: Path, tmp_path: Path) -> None:
    """Every readable picture becomes a row; a broken one is quarantined with its reason and nothing else
    changes."""
    out = tmp_path / "a"
    stats = build_prompts(config(pictures), LABELS, out, 11, "cpu", str(blip_folder))
    rows = read_prompts(out / "prompts.parquet")
    assert [row.image_id for row in rows[:5]] == ["000000000139", "0002", "0003", "0004", "0005"]
    assert rows[5].id.startswith("0002-") and rows[6].id.startswith("ete-1-") and stats["captioned"] == 7
    (pictures / "0003.png").write_bytes((pictures / "0003.png").read_bytes()[:-40])
    (pictures / "0006.jpg").write_bytes(b"no picture")
    again = tmp_path / "b"
    stats = build_prompts(config(pictures), LABELS, again, 11, "cpu", str(blip_folder))
    kept = {row.id: row for row in read_prompts(again / "prompts.parquet")}
    assert kept == {row.id: row for row in rows if row.id != "0003"}
    rejects = [json.loads(line) for line in (again / "prompts.rejects.jsonl").read_text("utf-8").splitlines()]
    assert {(r["id"], r["code"]) for r in rejects} == {("0003", "GF-DATA-154"), ("0006", "GF-DATA-152")}
    assert stats["rejected"] == {"GF-DATA-152": 1, "GF-DATA-154": 1} and stats["images"] == 8
    metadata = read_prompt_metadata(again / "prompts.parquet")
    assert metadata["vocabulary"] == "mine" and metadata["captioner"] == stats["captioner"]


def test_size_limits(blip_folder: Path, pictures: Path, tmp_path: Path) -> None:
    stats = build_prompts(
        config(pictures, max_pixels=2000, limit=3), LABELS, tmp_path / "o", 0, "cpu", str(blip_folder)
    )
    assert stats["rejected"] == {"GF-DATA-153": 1} and stats["captioned"] == 2
    with pytest.raises(DataError, match="no prompt is left") as info:
        build_prompts(config(pictures, max_bytes=10), LABELS, tmp_path / "p", 0, "cpu", str(blip_folder))
    assert info.value.code == "GF-CAP-030" and "GF-CAP-042" in info.value.message


class Counting(Captioner):
    """Counts the images it is shown."""

    seen = 0

    def __call__(self, images: Any) -> list[str]:
        self.seen += len(images)
        return super().__call__(images)


def test_stop_and_resume(blip_folder: Path, pictures: Path, tmp_path: Path) -> None:
    """A stop between batches keeps the finished ones; the resumed table equals the undisturbed one byte
    for byte."""
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    build_prompts(config(pictures), LABELS, straight, 2, "cpu", str(blip_folder))
    stop = StopToken()

    class Stopping(Progress):
        def advance(self, count: int = 1, **fields: Any) -> None:
            super().advance(count)
            if self.done >= 4:
                stop.set()

    with pytest.raises(Stopped, match="4 of 7 images are captioned"):
        build_prompts(config(pictures), LABELS, resumed, 2, "cpu", str(blip_folder), Stopping(), stop)
    assert not (resumed / "prompts.parquet").exists()
    stats = build_prompts(config(pictures), LABELS, resumed, 2, "cpu", str(blip_folder))
    assert (stats["captioned"], stats["reused"]) == (3, 4)
    for name in ("prompts.parquet", "prompts.captions.jsonl"):
        assert (straight / name).read_bytes() == (resumed / name).read_bytes()


def test_kill_and_resume(blip_folder: Path, pictures: Path, tmp_path: Path) -> None:
    """SIGKILL just before and just after a batch is on disk."""
    straight = tmp_path / "straight"
    build_prompts(config(pictures), LABELS, straight, 2, "cpu", str(blip_folder))
    code = (
        "import sys; from pathlib import Path; from glass_fast.captions.cache import CaptionCache as C\n"
        "cache = C(Path(sys.argv[1]), {'captioner': sys.argv[2], 'max_new_tokens': 8, 'num_beams': 1})\n"
        "known = C(Path(sys.argv[3]), {'captioner': sys.argv[2], 'max_new_tokens': 8, 'num_beams': 1})\n"
        "pairs = list(known.captions.items())\n"
        "[cache.append(pairs[i:i + 2]) for i in range(0, len(pairs), 2)]\n"
    )
    checksum = read_prompt_metadata(straight / "prompts.parquet")["captioner"]
    for point, kept in (("caption_append:2", 2), ("caption_appended:2", 4)):
        out = tmp_path / point.replace(":", "-")
        command = [
            sys.executable,
            "-c",
            code,
            str(out / "prompts.captions.jsonl"),
            checksum,
            str(straight / "prompts.captions.jsonl"),
        ]
        killed = subprocess.run(command, env={**os.environ, "GLASS_FAST_FAULT": point}, check=False)
        assert killed.returncode == -signal.SIGKILL
        stats = build_prompts(config(pictures), LABELS, out, 2, "cpu", str(blip_folder))
        assert (stats["captioned"], stats["reused"]) == (7 - kept, kept)
        assert (out / "prompts.parquet").read_bytes() == (straight / "prompts.parquet").read_bytes()


def test_nothing_to_do_needs_no_model(blip_folder: Path, pictures: Path, tmp_path: Path) -> None:
    """With all captions cached the weights are not even read; another decoding length is another caption."""
    folder = tmp_path / "model"
    shutil.copytree(blip_folder, folder)
    out = tmp_path / "o"
    build_prompts(config(pictures), LABELS, out, 2, "cpu", str(folder))
    model, processor = load_captioner(folder, "cpu")
    counting = Counting(model, processor, max_new_tokens=8)
    config_file = folder / "config.json"
    text = config_file.read_text("utf-8")
    stats = build_prompts(config(pictures), LABELS, out, 2, "cpu", str(folder))
    assert (stats["captioned"], stats["reused"]) == (0, 7)
    assert (
        build_prompts(config(pictures, max_new_tokens=3), LABELS, out, 2, "cpu", str(folder))["captioned"]
        == 7
    )
    config_file.write_text(text.replace('"blip"', '"blip" ', 1), "utf-8")
    assert (
        build_prompts(config(pictures, max_new_tokens=3), LABELS, out, 2, "cpu", str(folder))["captioned"]
        == 7
    )
    named = config(pictures, max_new_tokens=5)
    build_prompts(named, LABELS, tmp_path / "n", 2, "cpu", "mine", captioner=counting)
    build_prompts(named, LABELS, tmp_path / "n", 2, "cpu", "mine", captioner=counting)
    assert counting.seen == 7


def test_changed_picture_is_captioned_again(blip_folder: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    build_prompts(config(pictures), LABELS, out, 2, "cpu", str(blip_folder))
    shutil.copy(pictures / "0005.png", pictures / "0004.png")
    (pictures / "0005.png").rename(pictures / "0009.png")
    stats = build_prompts(config(pictures), LABELS, out, 2, "cpu", str(blip_folder))
    assert stats["captioned"] == 0 and stats["reused"] == 7
    rows = {row.id: row for row in read_prompts(out / "prompts.parquet")}
    assert rows["0004"].caption == rows["0009"].caption and rows["0004"].seed != rows["0009"].seed
    (pictures / "0002.jpg").write_bytes((pictures / "more" / "0002.png").read_bytes() + b"\0")
    assert build_prompts(config(pictures), LABELS, out, 2, "cpu", str(blip_folder))["captioned"] == 1


def test_cache_survives_damage(tmp_path: Path) -> None:
    """A torn or altered line ends the file; what stood before it is kept and the next batch follows it."""
    path = tmp_path / "c.jsonl"
    cache = CaptionCache(path, {"m": 1})
    batches = [[("a", "one"), ("b", "two")], [("c", "drei ✓")], [("d", "four")]]
    for batch in batches:
        cache.append(batch)
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    assert CaptionCache(path, {"m": 1}).captions == {"a": "one", "b": "two", "c": "drei ✓", "d": "four"}
    for cut in range(len(data) - len(lines[-1]), len(data)):
        path.write_bytes(data[:cut])
        again = CaptionCache(path, {"m": 1})
        assert set(again.captions) == {"a", "b", "c"}
        again.append(batches[2])
        assert path.read_bytes() == data
    path.write_bytes(data.replace(b"drei", b"eins"))
    assert set(CaptionCache(path, {"m": 1}).captions) == {"a", "b"}
    path.write_bytes(data)
    assert CaptionCache(path, {"m": 2}).captions == {} and path.read_bytes().count(b"\n") == 1


def test_image_keys() -> None:
    root = Path("/p")
    names = ["1.jpg", "1.png", "A.jpg", "a.jpg", "x/1.jpg", "ß.png"]
    keys = image_keys([root / name for name in names], root)
    assert keys[0] == "1" and keys[3] == "a" and len(set(keys)) == 6
    assert keys == image_keys([root / name for name in names], root)


def test_blip2_without_image_token(blip2_folder: Path) -> None:
    """Older folders lack image_token_index: the processor's own token is used when the embedding has a row
    for it."""
    model, processor = load_captioner(blip2_folder, "cpu")
    expected = Captioner(model, processor, max_new_tokens=5)(arrays(2))
    token = model.config.image_token_index
    model.config.image_token_index = None
    assert Captioner(model, processor, max_new_tokens=5)(arrays(2)) == expected
    assert model.config.image_token_index == token
    model.config.image_token_index = None
    processor.tokenizer.convert_tokens_to_ids = lambda _: 10_000
    with pytest.raises(DataError, match="names no image token"):
        Captioner(model, processor)


def test_no_images_configured(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"captions\.images is not set"):
        build_prompts(CaptionsConfig(), LABELS, tmp_path, 0)


def test_caption_length_is_held_to_the_positions_of_blip():
    from types import SimpleNamespace

    from glass_fast.captions.captioner import Captioner

    config = SimpleNamespace(model_type="blip", text_config=SimpleNamespace(max_position_embeddings=24))
    model = SimpleNamespace(config=config)
    assert Captioner(model, None, 30).max_new_tokens == 23, (
        "an untrained model never ends a caption by itself"
    )
    assert Captioner(model, None, 10).max_new_tokens == 10
