"""The shipped card says what was measured, and can be held against another build."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest

from glass_fast import partworld
from glass_fast.errors import ConfigError, DataError
from glass_fast.partworld import measure
from glass_fast.partworld.builder.card import write_card
from glass_fast.progress import Progress, StopToken

WEIGHTS = Path(partworld.__file__).parent / "weights"


@pytest.fixture(scope="module")
def card() -> dict:
    return json.loads((WEIGHTS / "card.json").read_text())


def test_readme_is_made_from_the_card(card, tmp_path) -> None:
    shutil.copytree(WEIGHTS, tmp_path / "weights")
    (tmp_path / "weights" / "README.md").unlink()
    assert write_card(tmp_path / "weights", card).read_text() == (WEIGHTS / "README.md").read_text()


def test_what_the_shipped_models_have_to_reach(card) -> None:
    """The floors that the models were built for, on the figures that the card states."""
    found = card["qualities"]
    floors = {
        "captioner.recall.share": 0.9,
        "captioner.precision.share": 0.9,
        "generator.recognition.single.all.share": 0.8,
        "generator.recognition.pair.all.share": 0.6,
        "masks.preset.class_miou": 0.75,
        "encoder.probe.encoder.object.accuracy.share": 0.9,
        "slots.closer.patch.share": 0.9,
    }
    assert set(floors) == set(measure.TOLERANCES)
    for path, floor in floors.items():
        assert measure.lookup(found, path) >= floor, path


def test_checksums_cover_every_shipped_model(card) -> None:
    from glass_fast.models.loading import folder_checksum

    found = {str(folder.relative_to(WEIGHTS)) for folder in WEIGHTS.rglob("*") if folder.is_dir()}
    assert set(card["checksums"]) == {"generator", "encoder", "captioner", "slots", "slots/decoder"} <= found
    for name, digest in card["checksums"].items():
        assert folder_checksum(WEIGHTS / name) == digest, name


def test_a_rebuild_with_another_seed_fits_the_target_and_the_tolerances(card, repo_root) -> None:
    """The record of a build from nothing in one piece: 2.5 hours on two cores, qualities as the shipped ones."""
    rebuilt = json.loads((repo_root / "benchmarks" / "results" / "partworld_rebuild_seed1.json").read_text())
    assert (rebuilt["target"], rebuilt["seed"], card["seed"]) == ("cpu", 1, 0)
    recipes = {name: stage["recipe"] for name, stage in rebuilt["stages"].items()}
    assert recipes == {name: card["stages"][name]["recipe"] for name in recipes} and len(recipes) == 7
    assert sum(stage["seconds"] for stage in rebuilt["stages"].values()) <= 2.5 * 3600
    assert measure.shortfalls(rebuilt["qualities"], card["qualities"]) == []
    assert max(file.stat().st_size for file in WEIGHTS.rglob("*")) <= 16e6


def test_a_worse_build_is_named(card) -> None:
    ours = copy.deepcopy(card["qualities"])
    assert measure.shortfalls(ours, card["qualities"]) == []
    ours["captioner"]["recall"]["share"] -= 0.031
    (sentence,) = measure.shortfalls(ours, card["qualities"])
    assert "captioner.recall.share" in sentence and "0.03" in sentence
    ours["captioner"]["recall"]["share"] += 0.002
    assert measure.shortfalls(ours, card["qualities"]) == []


def test_measuring_needs_a_build_and_its_own_folder(tmp_path) -> None:
    with pytest.raises(DataError, match="has no card"):
        measure.measure(tmp_path, tmp_path / "work", Progress(), StopToken())
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "measured.json").write_text('{"checksums": {}}')
    with pytest.raises(ConfigError, match="other models or sizes"):
        measure.measure(WEIGHTS, tmp_path / "work", Progress(), StopToken())
