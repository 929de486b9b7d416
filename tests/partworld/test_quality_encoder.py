"""Linear probing, part-whole failure and captions, on cases that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from glass_fast.errors import DataError
from glass_fast.partworld.quality import captioner, encoder, probe, splits
from glass_fast.partworld.renderer import render


def scene_of(segments, parts):
    """One object of all pixels with part > 0, on a canvas of 12 x 20."""
    instances = (np.asarray(parts) > 0).astype(int)
    return splits.part_whole(np.asarray(segments)[None], instances[None], np.asarray(parts)[None])


@pytest.fixture()
def house():
    """A 10 x 10 object: roof (part 1) in the upper 5 rows, wall (part 2) in the lower 5."""
    parts = np.zeros((12, 20), int)
    parts[1:6, 5:15] = 1
    parts[6:11, 5:15] = 2
    return parts


def test_object_cut_between_its_parts(house) -> None:
    result = scene_of(house, house)
    assert result["objects"] == result["objects_with_parts"] == 1
    assert result["split"]["count"] == result["split_along_parts"]["count"] == 1
    assert result["rand_index"] == 1.0 and result["mutual_information"] == 1.0
    # one of the straight cuts, across the vertical, is the same cut: not above every one of them
    assert result["split_clearly_along_parts"]["count"] == 0
    assert result["whole"]["count"] == 0 and result["pieces"] == 2
    # each of the two segments holds exactly half of the object, so both cover it and neither covers another
    assert (result["merged"]["count"], result["merged"]["total"]) == (0, 2) and result["lost"]["count"] == 0


def test_object_cut_across_its_parts(house) -> None:
    segments = house.copy()
    segments[1:11, 5:10], segments[1:11, 10:15] = 3, 4
    result = scene_of(segments, house)
    assert result["split"]["count"] == 1 and result["split_along_parts"]["count"] == 0
    # 25 pixels in each of four cells: sum of n(n-1) = 4*25*24, expected (2*50*49)^2/(100*99)
    expected = (2 * 50 * 49) ** 2 / (100 * 99)
    index = (4 * 25 * 24 - expected) / (2 * 50 * 49 - expected)
    assert result["rand_index"] == pytest.approx(index, abs=1e-4)
    assert result["mutual_information"] == 0.0


def test_clearly_along_parts_is_more_than_any_straight_cut() -> None:
    """A ring and its core: no straight line separates them."""
    y, x = np.mgrid[0:24, 0:24] - 11.5
    radius = np.hypot(x, y)
    parts = np.where(radius < 5, 2, np.where(radius < 10, 1, 0))
    result = scene_of(parts, parts)
    assert result["split_clearly_along_parts"]["count"] == 1 and result["chance_rand_index"] < 0.5


def test_whole_object_and_thresholds(house) -> None:
    segments = np.where(house > 0, 1, 0)
    result = scene_of(segments, house)
    assert result["split"]["count"] == 0 and result["whole"]["count"] == 1
    assert result["rand_index"] is None, "there is no split object to average"
    segments[1:3, 5:15] = 2  # exactly 20 % of the object: a piece
    assert scene_of(segments, house)["split"]["count"] == 1
    segments[1, 5] = 1  # 19 %: a sliver, and the rest is still whole
    result = scene_of(segments, house)
    assert result["split"]["count"] == 0 and result["whole"]["count"] == 1


def test_small_objects_and_objects_of_one_part_do_not_count(house) -> None:
    assert scene_of(house, np.where(house > 0, 1, 0))["objects_with_parts"] == 0
    tiny = np.zeros((12, 20), int)
    tiny[0:3, 0:10] = 1
    tiny[3, 0:9] = 2  # 39 pixels
    assert scene_of(tiny, tiny)["objects"] == 0
    tiny[3, 9] = 2
    assert scene_of(tiny, tiny)["objects_with_parts"] == 1
    nearly = np.where(house > 0, 1, 0)
    nearly[1, 5:8] = 2  # a part of three visible pixels
    assert scene_of(nearly, nearly)["objects_with_parts"] == 0


def test_merged_shared_and_lost() -> None:
    instances = np.zeros((2, 10, 30), int)
    instances[0, 1:9, 1:9], instances[0, 1:9, 11:19], instances[0, 1:9, 21:29] = 1, 2, 3
    instances[1, 1:9, 1:9] = 1
    segments = np.zeros_like(instances)
    segments[0, :, :20] = 1  # covers two objects
    segments[0, :, 20:] = 2  # covers one
    segments[1, 1:9, 1:5] = 1  # half of the object; the other half stays with the background
    result = splits.part_whole(segments, instances, instances)
    # image 0: segments 1 (two objects) and 2 (one); image 1: segments 0 and 1 hold half of the object each
    assert (result["merged"]["count"], result["merged"]["total"]) == (1, 4)
    # only image 0 has neighbours: objects 1 and 2 share a segment, object 3 does not
    assert (result["shared"]["count"], result["shared"]["total"]) == (2, 3)
    # image 0: segment 1 has 128 object pixels of 200, segment 2 64 of 100; image 1: segment 0 is background
    assert (result["lost"]["count"], result["lost"]["total"]) == (1, 4)


def test_straight_cuts_have_the_sizes_of_the_segments(house) -> None:
    segments = np.where(house > 0, 1, 0)
    segments[1:4, 5:15] = 2
    instances = (house > 0).astype(np.int64)[None]
    table, pixels = splits._object_table(
        segments[None].astype(np.int64), instances, house[None].astype(np.int64)
    )
    chance = splits.straight_cuts(table, pixels, directions=4)
    assert chance.shape == (4, 1)
    # direction 2 of 4 is the vertical: the same 30 upper pixels as the segment
    assert chance[2, 0] == pytest.approx(splits.adjusted_rand_index(table)[0])
    # direction 0 is the horizontal: 15 pixels of each part in the small piece and 35 in the large one
    by_hand = np.zeros((1, 2, 2), np.int64)
    by_hand[0] = [[15, 15], [35, 35]]
    assert chance[0, 0] == pytest.approx(splits.adjusted_rand_index(by_hand)[0])


def test_mutual_information_against_an_independent_implementation() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for _ in range(5):
        segments, parts = rng.integers(4, size=200), rng.integers(3, size=200)
        parts = np.where(rng.random(200) < 0.5, segments % 3, parts)
        table = np.zeros((1, 4, 3), np.int64)
        np.add.at(table[0], (segments, parts), 1)
        ours = splits.normalised_mutual_information(table)[0]
        # the same float64 sums in another order
        assert ours == pytest.approx(metrics.normalized_mutual_info_score(parts, segments), abs=1e-12)


def test_no_object_and_wrong_shapes() -> None:
    empty = np.zeros((2, 8, 8), int)
    result = splits.part_whole(empty, empty, empty)
    assert result["split"]["total"] == 0 and result["split"]["share"] is None
    with pytest.raises(DataError, match="GF-QUAL-202"):
        splits.part_whole(empty, empty[:1], empty)


def test_true_parts_of_renders_are_split_and_true_objects_are_whole() -> None:
    scenes = [render("test", index) for index in range(12)]
    instances, parts = (np.stack([getattr(s, name) for s in scenes]) for name in ("instances", "parts"))
    objects = splits.part_whole(instances, instances, parts)
    assert objects["split"]["share"] == 0.0 and objects["whole"]["share"] == 1.0
    assert objects["merged"]["share"] == 0.0 and objects["lost"]["share"] == 0.0
    by_part = splits.part_whole(parts, instances, parts)
    assert by_part["split"]["share"] > 0.5 and by_part["rand_index"] == 1.0
    merged = splits.part_whole((instances > 0).astype(int), instances, parts)
    assert merged["merged"]["count"] == sum(len(scene.labels) > 1 for scene in scenes)


def test_features_of_objects_and_tokens_by_hand() -> None:
    grid = (2, 2)
    tokens = np.array([[[1.0, 0], [0, 1], [2, 0], [0, 4]]], np.float32)
    instances = np.zeros((1, 8, 8), int)
    instances[0, :4, :6] = 1  # all of token 0, half of token 1
    instances[0, 4:, 5:] = 2  # 12 pixels: too small to be probed, but three quarters of token 3
    classes = np.where(instances == 1, 3, np.where(instances == 2, 7, 0))
    found = probe.object_features(tokens, instances, classes, grid)
    assert found.labels.tolist() == [2]
    np.testing.assert_allclose(found.features, [[2 / 3, 1 / 3]], rtol=1e-6)  # float32 sums of four numbers
    found = probe.token_features(tokens, classes, grid)
    assert found.labels.tolist() == [2, 6], "token 1 is covered by exactly half, which is not more than half"
    assert found.features.tolist() == [[1, 0], [0, 4]]


def test_probe_learns_what_is_linear_and_nothing_else() -> None:
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    features = (np.eye(3)[labels] + 0.1 * rng.standard_normal((300, 3))).astype(np.float32)
    data = probe.Labelled(features[:200], labels[:200]), probe.Labelled(features[200:], labels[200:])
    result = probe.probe(*data)
    assert result["accuracy"]["share"] == 1.0 and result["balanced"] == 1.0 and result["trained_on"] == 200
    noise = rng.standard_normal((300, 3)).astype(np.float32)
    result = probe.probe(probe.Labelled(noise[:200], labels[:200]), probe.Labelled(noise[200:], labels[200:]))
    # chance is 1/3 with a deviation of 0.047 over 100 answers
    assert result["accuracy"]["share"] < 0.52 and result["commonest"] == 0.34


def test_mean_colours_and_thinning() -> None:
    images = np.zeros((1, 4, 8, 3), np.uint8)
    images[0, :, 4:, 1] = 100
    images[0, :2, 4:, 1] = 50
    tokens = encoder.mean_colours((1, 2))(images)
    assert tokens.tolist() == [[[0] * 6, [0, 75, 0, 0, 25, 0]]]
    data = probe.thinned(probe.Labelled(np.arange(9, dtype=np.float32)[:, None], np.arange(9)), 3)
    assert data.labels.tolist() == [0, 4, 8]


def test_encoder_figures_end_to_end() -> None:
    """Shipped encoder, few scenes: names and counts; its quality is measured with the build."""
    pytest.importorskip("sklearn")
    from glass_fast.config.load import load_config
    from glass_fast.models.loading import load_encoder

    subject = load_encoder("partworld:encoder", "cpu")
    training = load_config("demo", [], []).config.training
    result = encoder.measure_encoder(
        subject, training, ("kmeans", "grid"), train_scenes=40, test_scenes=12, split_scenes=6
    )
    assert result["probe"]["encoder"]["object"]["accuracy"]["total"] >= 12
    # ten classes: far above the 0.1 of guessing, even from 40 scenes
    assert result["probe"]["encoder"]["object"]["accuracy"]["share"] > 0.4
    assert set(result["part_whole"]) == {"kmeans", "grid"}
    assert result["part_whole"]["grid"]["images"] == 6


def test_right_captions() -> None:
    assert captioner.right_captions([1]) == {"a photo of a car"}
    assert captioner.right_captions([5, 1, 5]) == {
        "a photo of two umbrellas and a car", "a photo of a car and two umbrellas",
    }  # fmt: skip
    for index in range(40):
        scene = render("test", index)
        assert scene.caption in captioner.right_captions(scene.labels)


def test_caption_scores_by_hand() -> None:
    captions = ["a photo of a car and a boat", "a photo of a tree", "a photo of two cars"]
    scores = captioner.caption_scores(captions, [[2, 1], [8, 7], [1]])
    assert (scores["precision"]["count"], scores["precision"]["total"]) == (4, 4)
    assert (scores["recall"]["count"], scores["recall"]["total"]) == (4, 5)
    assert scores["class_sets"]["count"] == 2 and scores["exact"]["count"] == 1
    assert scores["class"]["house"]["recall"] == {
        "count": 0, "total": 1, "share": 0.0, "low": 0.0, "high": pytest.approx(0.7935, abs=1e-4),
    }  # fmt: skip


def test_captioner_end_to_end() -> None:
    from glass_fast.config.load import load_config

    settings = load_config("demo", [], []).config.captions
    result = captioner.measure_captioner("partworld:captioner", settings, scenes=3)
    assert result["scenes"] == 3 and len(result["examples"]) == 3 and result["captioner"]["checksum"]
