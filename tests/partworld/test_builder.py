"""The model builder: standard formats, resumable, and blind to every mask."""

from __future__ import annotations

import ast
import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from glass_fast.errors import ConfigError, Stopped
from glass_fast.partworld import builder, renderer
from glass_fast.partworld.builder.fitting import Fit, fit
from glass_fast.partworld.builder.targets import list_targets, load_target
from glass_fast.partworld.builder.text import build_tokenizer, learn_merges
from glass_fast.progress import Progress, StopToken

Poison = runpy.run_path(str(Path(__file__).with_name("poison.py")))["Poison"]
_BUILD = Path(builder.__file__).parent


@pytest.fixture()
def blind(monkeypatch):
    """Scenes whose masks cannot be read, and a ground-truth data class that cannot be made."""
    true_render = renderer.render

    def render(split, index, seed=0):
        scene = true_render(split, index, seed)
        return renderer.Scene(scene.image, scene.caption, Poison(), Poison(), Poison(), scene.labels)

    monkeypatch.setattr(renderer, "render", render)
    import glass_fast.training.data as data
    import glass_fast.workflow as workflow

    def refuse(*arguments, **options):
        raise AssertionError("ground truth was used by a guided run")

    monkeypatch.setattr(data.GroundTruthData, "__init__", refuse)
    monkeypatch.setattr(workflow, "_truth", refuse)


def test_every_stage_from_nothing_without_masks(blind, tmp_path) -> None:
    """A build of a few steps makes every shipped folder, loadable by the production loaders, reading no mask."""
    from glass_fast.models.glass import Glass
    from glass_fast.models.loading import load_captioner, load_encoder, load_generator

    card = builder.build(tmp_path, "smoke", (), 0, "cpu", Progress(), StopToken())
    assert card["stages"] == sorted(builder.STAGES)
    assert set(card["checksums"]) == {"generator", "encoder", "captioner", "slots", "slots/decoder"}
    import torch

    generator = load_generator(str(tmp_path / "generator"), torch.device("cpu"), "float32")
    assert generator.unet.config.cross_attention_dim == generator.text_encoder.config.hidden_size
    assert load_encoder(str(tmp_path / "encoder"), torch.device("cpu")).dim == 128
    load_captioner(str(tmp_path / "captioner"), torch.device("cpu"))
    settings = json.loads((tmp_path / "slots" / "config.json").read_text())
    assert settings["encoder"]["ref"] == "partworld:encoder"
    assert not list(tmp_path.glob("slots/**/step-*"))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
    builder.build(tmp_path, "smoke", (), 0, "cpu", Progress(), StopToken())
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}, (
        "finished stages are skipped"
    )
    with pytest.raises(ConfigError, match="asked for smoke, 1"):
        builder.build(tmp_path, "smoke", (), 1, "cpu", Progress(), StopToken())
    assert Glass  # the slots folder names the shipped encoder, so it is loaded in the integration tests


def test_build_code_names_no_mask() -> None:
    """Static side of the same promise: build code takes pictures from ``render_pictures`` and nothing else."""
    for path in _BUILD.glob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "glass_fast.partworld.renderer":
                assert {alias.name for alias in node.names} <= {"render_pictures", "plural", "describe"}, path
            if isinstance(node, ast.Attribute):
                assert node.attr not in {"instances", "classes", "parts"}, f"{path}: {node.attr}"


def test_every_target_is_a_whole_plan() -> None:
    from glass_fast.config.load import load_config

    assert list_targets() == ["cpu", "gpu", "smoke"]
    for name in list_targets():
        target = load_target(name)
        overrides = [f"{k}={json.dumps(v)}" for k, v in (target.slots | target.decoder).items()]
        config = load_config("demo", [], overrides).config  # an unknown key would be an error
        tokens = 64 // 2 ** (len(target.autoencoder.channels) - 1)
        assert config.synthesis.capture.cross_size == tokens, "maps are read at the finest attention"


def test_a_target_file_that_breaks_a_rule(tmp_path, monkeypatch) -> None:
    from glass_fast.partworld.builder import targets

    (tmp_path / "targets").mkdir()
    text = (_BUILD.parent / "targets" / "smoke.yaml").read_text()
    (tmp_path / "targets" / "odd.yaml").write_text(text.replace("pictures: 600", "pictures: 0"))
    monkeypatch.setattr(targets, "files", lambda package: tmp_path)
    with pytest.raises(ConfigError, match="odd: pictures"):
        load_target("odd")


def test_unknown_target_and_stage(tmp_path) -> None:
    with pytest.raises(ConfigError, match="'tpu'"):
        builder.build(tmp_path, "tpu", (), 0, "cpu", Progress(), StopToken())
    with pytest.raises(ConfigError, match="'vae'"):
        builder.build(tmp_path, "smoke", ("vae",), 0, "cpu", Progress(), StopToken())


def test_a_stage_alone_names_what_it_needs(tmp_path) -> None:
    with pytest.raises(ConfigError, match="needs the result of stage tokenizer"):
        builder.build(tmp_path, "smoke", ("generator",), 0, "cpu", Progress(), StopToken())


def test_interrupted_fit_equals_undisturbed_one(tmp_path) -> None:
    import torch

    class StopAt(Progress):
        def __init__(self, step, token):
            self.step, self.token = step, token

        def advance(self, count=1, **fields):
            super().advance(count)
            if self.done == self.step:
                self.token.set()

    def train(folder, stop_at=None):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 1)

        def loss_of(step):
            rng = np.random.default_rng(step)
            x = torch.from_numpy(rng.standard_normal((8, 4), dtype=np.float32))
            return (model(x)[:, 0] - x.sum(1)).square().mean()

        plan = Fit(steps=60, batch_size=8, peak=1e-2, warmup=5, ema=0.9)
        token = StopToken()
        fit("toy", model, loss_of, plan, folder, StopAt(stop_at, token), token, checkpoint_every=25)
        return model.weight.detach().clone()

    whole = train(tmp_path / "a")
    with pytest.raises(Stopped):
        train(tmp_path / "b", stop_at=33)
    assert torch.equal(train(tmp_path / "b"), whole)


def test_tokenizer_splits_one_class_and_keeps_words(tmp_path) -> None:
    from glass_fast.models.loading import ensure_torchvision

    ensure_torchvision()
    from transformers import CLIPTokenizer

    captions = [renderer.render("train", index).caption for index in range(300)]
    build_tokenizer(tmp_path, captions)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    pieces = lambda text: tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])[1:-1]  # noqa: E731
    assert pieces("aeroplane") == ["aero", "plane</w>"]
    assert pieces("potted plant") == ["potted</w>", "plant</w>"]
    for name in ("car", "boat", "umbrella", "cup", "house", "tree", "snowman", "mushroom"):
        assert pieces(name) == [name + "</w>"]
    assert tokenizer.decode(tokenizer("Zebra #42!")["input_ids"], skip_special_tokens=True) == "zebra # 4 2 !"


def test_merges_by_hand() -> None:
    # "ab" occurs 3 times, then "ab" + "c</w>" twice.
    assert learn_merges(["abc abc abd"], 2) == [("a", "b"), ("ab", "c</w>")]
