"""The judge: its targets, its training file, its scores; how well it judges is measured where it is trained in full."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from glass_fast import workflow
from glass_fast.errors import ConfigError, DataError, EnvironmentProblem
from glass_fast.partworld.builder.fitting import step_rng
from glass_fast.partworld.quality import encoder, judge
from glass_fast.partworld.quality.shares import share, wilson
from glass_fast.progress import Progress, StopToken


def train(folder, **options):
    settings = {"steps": 2, "scenes": 40, "test_scenes": 4} | options
    return judge.train_judge(folder, 0, Progress(), StopToken(), **settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge") / "judge"
    return folder, train(folder)


def test_scenes_of_the_judge_are_nobody_elses() -> None:
    starts = [0, workflow.CAPTION_SCENES, workflow.TRUTH_SCENES, judge.JUDGE_SCENES, encoder.PROBE_SCENES]
    assert np.diff(starts).min() >= 100_000
    assert judge._SCENES <= 100_000
    images, classes = judge.judge_scenes(2)
    scene = judge.render("train", judge.JUDGE_SCENES + 1)
    assert (images[1] == scene.image).all() and (classes[1] == scene.classes).all()


def test_written_once_and_read_back(trained) -> None:
    folder, made = trained
    assert sorted(path.name for path in folder.iterdir()) == ["judge.json", "judge.safetensors"]
    stamp = (folder / "judge.safetensors").stat().st_mtime_ns
    again = train(folder)
    assert (folder / "judge.safetensors").stat().st_mtime_ns == stamp
    images = judge.judge_scenes(3)[0]
    for first, second in zip(made.both(images), judge.load_judge(folder).both(images), strict=True):
        assert np.array_equal(first, second)
    assert again.record["quality"]["renders"]["segmenter"]["pictures"] == 4


def test_api(trained) -> None:
    images = np.concatenate([judge.judge_scenes(5)[0]] * 2)
    subject = trained[1]
    labels, shares = subject.segment(images), subject.probabilities(images)
    assert labels.shape == (10, 64, 64) and labels.dtype == np.uint8 and labels.max() <= 10
    assert shares.shape == (10, 10) and shares.dtype == np.float32
    assert np.array_equal(subject.present(images, 0.3), shares >= np.float32(0.3))
    assert np.array_equal(labels[:5], labels[5:])
    subject.batch = 3
    # Sums of another batch may be rounded another way; a wrong row would differ by far more.
    assert np.abs(subject.probabilities(images) - shares).max() < 1e-4
    subject.batch = judge.Judge.batch
    assert subject.segment(images[:0]).shape == (0, 64, 64)
    for wrong in (images.astype(np.float32), images[:, :32], images[0]):
        with pytest.raises(DataError, match="GF-JUDGE-001"):
            subject.segment(wrong)


def test_other_settings_and_other_world_are_refused(trained, monkeypatch) -> None:
    folder, _ = trained
    with pytest.raises(ConfigError, match="GF-JUDGE-002") as caught:
        train(folder, steps=3)
    assert "'steps': 3" in str(caught.value)
    signature = judge.world_signature()
    monkeypatch.setattr(judge, "world_signature", lambda: [value + 1 for value in signature])
    judge.load_judge(folder)  # a grey level of rounding is no other world
    monkeypatch.setattr(judge, "world_signature", lambda: [value + 9 for value in signature])
    with pytest.raises(ConfigError, match="another world"):
        judge.load_judge(folder)


def test_no_judge_there(tmp_path) -> None:
    with pytest.raises(EnvironmentProblem, match="GF-JUDGE-003"):
        judge.load_judge(tmp_path)


def test_stopped_training_continues(tmp_path, trained) -> None:
    """The same weights as an undisturbed training."""
    from glass_fast.errors import Stopped

    class StopAtOnce(Progress):
        def __init__(self, token):
            self.token = token

        def advance(self, count=1, **fields):
            super().advance(count)
            if self.label == "judge":
                self.token.set()

    token = StopToken()
    with pytest.raises(Stopped):
        judge.train_judge(tmp_path, 0, StopAtOnce(token), token, steps=2, scenes=40, test_scenes=4)
    assert not (tmp_path / "judge.json").exists()
    resumed = train(tmp_path)
    for name, value in trained[1].network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], value), name


def test_gradient_reaches_every_weight() -> None:
    network = judge.JudgeNetwork()
    pixel, image = network(torch.randn(2, 3, 64, 64))
    assert pixel.shape == (2, 11, 64, 64) and image.shape == (2, 10)
    (pixel.square().mean() + image.square().mean()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_pixel_logits_follow_the_picture() -> None:
    """A change of one corner changes logits there and nowhere far away: blocks are put back where they came from."""
    network = judge.JudgeNetwork().eval()
    for module in network.modules():  # statistics over the whole picture would couple all of it
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x  # type: ignore[method-assign]
    picture = torch.zeros(1, 3, 64, 64)
    changed = picture.clone()
    changed[..., :2, 60:] = 1
    with torch.no_grad():
        difference = (network(picture)[0] - network(changed)[0]).abs().sum(1)[0]
    assert difference[:4, 56:].max() > 0
    assert difference[48:, :16].max() == 0


def test_cut_pictures_by_hand() -> None:
    """Two scenes, each with one class that fills a known part; every target follows from what is left of it."""
    images = np.stack([np.full((64, 64, 3), 10, np.uint8), np.full((64, 64, 3), 200, np.uint8)])
    classes = np.zeros((2, 64, 64), np.uint8)
    classes[0, :, :32] = 1
    classes[1, :, 32:] = 2
    seen = set()
    for seed in range(40):
        mixed, labels, target, weight = judge.cut_together(images, classes, np.random.default_rng(seed), 1.0)
        for row in range(2):
            own, other = (0, 1) if row == 0 else (1, 0)
            from_other = mixed[row, ..., 0] == images[other, 0, 0, 0]
            assert (labels[row] == np.where(from_other, classes[other], classes[own])).all()
            assert 16 * 64 <= from_other.sum() <= 48 * 64
            for label in (1, 2):
                left = (labels[row] == label).sum() / 2048
                assert target[row, label - 1] == (left >= 0.5)
                assert weight[row, label - 1] == (not 0 < left < 0.5)
                seen.add((bool(target[row, label - 1]), bool(weight[row, label - 1])))
        assert not target[:, 2:].any() and weight[:, 2:].all()
    assert seen == {(True, True), (False, True), (False, False)}
    kept = judge.cut_together(images, classes, np.random.default_rng(0), 0.0)
    assert (kept[0] == images).all() and (kept[1] == classes).all() and kept[3].all()


def test_softening() -> None:
    pictures = torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (8, 64, 64, 3)).astype(np.float32))
    soft = judge.soften(pictures, step_rng(0, "t", 0))
    assert soft.shape == pictures.shape and soft.min() >= 0 and soft.max() <= 255
    assert torch.equal(soft, judge.soften(pictures, step_rng(0, "t", 0)))
    assert soft.std() < 0.8 * pictures.std()  # most of the eight lose the finest detail
    flat = judge.soften(torch.full((8, 64, 64, 3), 127.5), step_rng(0, "t", 1))
    # Colour moves by at most 8 and noise by 7 deviations of a mean over 4096 pixels; blur and resampling keep a mean.
    assert (flat.mean(dim=(1, 2)) - 127.5).abs().max() < 8.5
    ramp = torch.linspace(40, 200, 64).view(1, 1, 64, 1).expand(8, 64, 64, 3)
    soft = judge.soften(ramp.contiguous(), step_rng(0, "t", 2)).mean(dim=(1, 3))
    # A ramp stays a ramp in place: the lowest correlation of a shifted or turned one would be far below.
    assert min(np.corrcoef(row, ramp[0, 0, :, 0])[0, 1] for row in soft.numpy()) > 0.98


def test_calibration_by_hand() -> None:
    class Fake:
        _shift = 0.0

        def probabilities(self, images):
            logits = np.where(truth, 3.0, 1.0)
            return 1 / (1 + np.exp(-np.concatenate([logits, logits])))

    classes = np.zeros((4, 64, 64), np.uint8)
    classes[:2, :8] = 3
    truth = judge.class_areas(classes) > 0
    # every threshold in (1, 3] is perfect; the middle of the grid's such points lies within a step of 2
    images = np.zeros((4, 64, 64, 3), np.uint8)
    assert judge._calibrate(Fake(), (images, classes)) == pytest.approx(-2.05, abs=0.06)


def test_scores_by_hand() -> None:
    truth = np.array([[1, 1, 0], [0, 1, 0]], bool)
    found = np.array([[1, 1, 0], [1, 0, 0]], bool)
    scores = judge.presence_scores(found, truth)
    assert (scores["right"], scores["named"], scores["shown"], scores["exact"]) == (2, 3, 3, 1)
    assert scores["precision"] == scores["recall"] == 2 / 3 and scores["exact_share"] == 0.5
    classes = np.zeros((2, 2, 4), np.uint8)
    classes[0, :, :2] = 1
    classes[1, 0] = 2
    guess = classes.copy()
    guess[0, :, 1] = 0  # half of class 1 missed: IoU 2/4
    guess[1, 1, 0] = 2  # one pixel too many: IoU 4/5
    scores = judge.segment_scores(guess, classes)
    assert scores["class_iou"] == {"car": 0.5, "boat": 0.8}
    assert scores["class_miou"] == pytest.approx(0.65) and scores["picture_miou"] == pytest.approx(0.65)
    # background: 8 true pixels, 2 added, 1 taken away
    assert scores["background_iou"] == pytest.approx(7 / 10)


def test_shares() -> None:
    # Wilson's interval of 8 of 10, from the closed formula
    low, high = wilson(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    assert wilson(0, 0) == (0.0, 1.0) and wilson(5, 5)[1] == 1.0
    assert share(0, 0)["share"] is None and share(1, 4)["share"] == 0.25
