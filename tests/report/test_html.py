"""The report file: content, safety, size bound, missing and damaged artefacts."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from glass_fast.errors import DataError
from glass_fast.report import write_report
from glass_fast.report.html import MAX_BYTES

LOADING = {"src", "href", "srcset", "data", "action", "poster", "formaction", "xlink:href"}
NASTY = '<script>alert("x")</script> " onload=alert(1) \u202eתמונה\u202c & مرحبا </title><img src=http://evil.example/x.png>'


class Page(html.parser.HTMLParser):
    """Tags, loading attributes, ids and text of a page; notes tags that were never closed."""

    VOID = {"meta", "link", "img", "br", "rect", "line", "circle", "polyline", "input", "hr"}

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.stack: list[str] = []
        self.mistakes: list[str] = []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.VOID:
            return
        if not self.stack or self.stack.pop() != tag:
            self.mistakes.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def ids(self) -> set[str]:
        return {str(a["id"]) for _, a in self.tags if a.get("id")}


def page(path: Path) -> Page:
    return Page(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def report(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(run_folder, tmp_path_factory.mktemp("out") / "report.html")


def test_a_complete_run_has_every_section(report: Path) -> None:
    found = page(report)
    expected = {
        "comparison",
        "funnel",
        "samples",
        "classes",
        "discovered",
        "training",
        "speed",
        "failures",
        "configuration",
        "environment",
    }
    assert expected <= found.ids
    targets = {str(a["href"])[1:] for t, a in found.tags if t == "a"}
    assert targets <= found.ids


def test_markup_is_balanced_and_pictures_are_described(report: Path) -> None:
    found = page(report)
    assert found.mistakes == [] and found.stack == []
    pictures = [a for t, a in found.tags if t == "img"]
    # 20 samples with picture, overlay and one map; 3 discovered pictures with their masks
    assert len(pictures) == 20 * 3 + 3 * 2
    assert all((a.get("alt") or "").strip() for a in pictures)
    drawings = [a for t, a in found.tags if t == "svg" and a.get("aria-hidden") != "true"]
    assert drawings and all(a.get("role") == "img" for a in drawings)
    assert sum(t == "desc" for t, _ in found.tags) == len(drawings)


def test_nothing_is_loaded_or_run(report: Path) -> None:
    found = page(report)
    assert not {t for t, _ in found.tags} & {
        "script",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
        "audio",
        "video",
    }
    for tag, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in LOADING & set(attributes):
            assert str(attributes[name]).startswith(("data:", "#")), (tag, name, str(attributes[name])[:60])
    assert "url(" not in report.read_text("utf-8") and "@import" not in report.read_text("utf-8")
    policy = next(
        a["content"]
        for t, a in found.tags
        if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert str(policy).startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")


def test_figures_agree_with_the_evaluation_files(report: Path) -> None:
    text = " ".join(" ".join(page(report).text).split())
    # glass 55 and 56, unguided 42 and 43 over two seeds: means 55.5 and 42.5, gain 55.5 / 42.5 - 1
    assert "mIoU_i without background: 42.5 → 55.5 (+30.6 %)" in text
    assert "Glass is better than unguided on every foreground figure" in text
    # sample standard deviation of 55 and 56
    assert "55.5 ± 0.7" in text.replace("\n", " ")
    assert "mean ± sample standard deviation over seeds" in text
    assert "decides nothing here" in text


def test_funnel_counts(report: Path) -> None:
    content = report.read_text("utf-8")
    assert "inputs 21; prompts 20; planned 20; made 20; kept 19; unflagged 19" in content
    text = " ".join(" ".join(page(report).text).split())
    assert "empty 1 5.0 % dropped before training" in text
    assert "class_missing 1 5.0 % kept, counted" in text


def test_only_set_values_stand_open_in_the_configuration(report: Path) -> None:
    content = report.read_text("utf-8")
    shown, folded = content.split('id="configuration"')[1].split("at their default")
    assert "preset demo" in shown and "synthesis.num" in shown and "device" not in shown
    assert "device" in folded and "partworld:generator" in folded


def test_private_folders_do_not_leak(report: Path) -> None:
    content = report.read_text("utf-8")
    assert "/home/someone" not in content
    assert "broken.jpg" in content and "truncated file" in content


def test_an_interrupted_stage_is_not_called_done(report: Path) -> None:
    text = " ".join(" ".join(page(report).text).split())
    assert re.search(r"evaluate 1 not finished", text)
    assert re.search(r"captions 1 done 3\.0 s", text)


def test_hostile_captions_stay_text(make_run: Callable[..., Path]) -> None:
    caption = NASTY.replace("{", "").replace("}", "") + " {}"
    folder = make_run(samples=6, seeds=1, caption=caption)
    (folder / "environment.json").write_text(
        json.dumps({"<b>host</b>": NASTY, "machine": {NASTY: "\ud800 lone"}})
    )
    (folder / "config.json").write_text(
        json.dumps({"config": {"name": NASTY, "x": {NASTY: NASTY}}, "origins": {}})
    )
    with (folder / "discover" / "quarantine.jsonl").open("a") as stream:
        stream.write(json.dumps({"file": NASTY, "reason": NASTY, "code": NASTY}) + "\n")
    with (folder / "run.jsonl").open("a") as stream:
        stream.write(json.dumps({"stage": NASTY, "event": "error", "error": NASTY}) + "\n")
    shutil.copytree(folder / "evaluation" / "partworld-test", folder / "evaluation" / "<i>set")
    shutil.copytree(folder / "models" / "glass-seed0", folder / "models" / "<u>model-seed0")
    path = write_report(folder)
    found = page(path)
    content = path.read_text("utf-8")
    assert found.mistakes == [] and found.stack == []
    assert not {t for t, _ in found.tags} & {"script", "b", "i", "u"}
    assert sum(t == "title" and not a for t, a in found.tags) >= 1
    for tag, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in LOADING & set(attributes):
            assert str(attributes[name]).startswith(("data:", "#")), (tag, name)
    # the overriding control is shown by its code; right-to-left letters are kept inside an isolating element
    assert "\u202e" not in content and "&lt;U+202E&gt;" in content
    assert "<bdi>" in content and "תמונה" in content


@pytest.mark.parametrize(
    ("artefact", "section"),
    [
        ("shards", "samples"),
        ("evaluation", "comparison"),
        ("models", "training"),
        ("discover", "discovered"),
        ("run.jsonl", "speed"),
        ("config.json", "configuration"),
        ("environment.json", "environment"),
        ("prompts.parquet", None),
        ("ablation.json", None),
    ],
)
def test_a_missing_artefact_only_takes_its_section(
    run_folder: Path, tmp_path: Path, artefact: str, section: str | None
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    gone = folder / artefact
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    found = page(write_report(folder))
    assert found.mistakes == []
    assert section not in found.ids
    every = {
        "samples",
        "comparison",
        "training",
        "discovered",
        "speed",
        "configuration",
        "environment",
        "failures",
        "classes",
    }
    assert every - {section} <= found.ids


def test_an_empty_folder_gives_a_page(tmp_path: Path) -> None:
    path = write_report(tmp_path)
    assert "has not produced results yet" in path.read_text("utf-8")


def test_damaged_artefacts_are_named(run_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    (folder / "ablation.json").write_text("[1, 2")
    (folder / "environment.json").write_text("[]")
    (folder / "prompts.parquet").write_bytes(b"no parquet")
    (folder / "discover" / "overlays" / "photo1.jpg").write_bytes(b"no picture")
    (folder / "evaluation" / "partworld-test" / "glass-seed0.json").write_text('{"protocols": {"glass": 3}}')
    log = folder / "models" / "glass-seed0" / "log.jsonl"
    log.write_text("{broken\n" + log.read_text())
    tar = next((folder / "shards").glob("*.tar"))
    data = bytearray(tar.read_bytes())
    data[len(data) // 3] ^= 0xFF
    tar.write_bytes(bytes(data))
    found = page(write_report(folder))
    text = " ".join(" ".join(found.text).split())
    for name in (
        "ablation.json",
        "environment.json",
        "prompts.parquet",
        "photo1.jpg",
        "protocol glass is not an object",
        "log.jsonl",
        "shards",
    ):
        assert name in text.split("could not read")[1], name
    assert "every shard could be read" not in text


def test_numbers_that_are_not_finite_never_reach_a_chart(run_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    log = folder / "models" / "glass-seed0" / "log.jsonl"
    log.write_text(
        '{"step": 1, "loss": NaN}\n{"step": 2, "loss": Infinity}\n'
        '{"step": 3, "loss": 1.5}\n{"step": "x", "loss": 1}\n'
    )
    content = write_report(folder).read_text("utf-8")
    assert not re.search(r'points="[^"]*(nan|inf)', content)


def test_size_bound_is_kept_by_leaving_out_pictures(run_folder: Path, tmp_path: Path) -> None:
    whole = write_report(run_folder, tmp_path / "a.html")
    bound = whole.stat().st_size * 2 // 3
    small = write_report(run_folder, tmp_path / "b.html", max_bytes=bound)
    assert small.stat().st_size <= bound
    shown = sum(t == "img" for t, _ in page(small).tags)
    assert 0 < shown < sum(t == "img" for t, _ in page(whole).tags)
    assert "Grids were cut" in small.read_text("utf-8")
    with pytest.raises(DataError) as caught:
        write_report(run_folder, tmp_path / "c.html", max_bytes=1000)
    assert caught.value.code == "GF-DATA-191"
    assert not (tmp_path / "c.html").exists()


def test_large_noise_pictures_stay_within_ten_mebibytes(tmp_path: Path) -> None:
    """48 incompressible pictures a grid, 8 maps each: the worst case of the default bound."""
    from glass_fast.data.manifest import write_manifest
    from glass_fast.data.plan import ShardPlan
    from glass_fast.data.shards import Sample, write_shard

    folder = tmp_path / "run" / "shards"
    plan = ShardPlan(60, 60, 4)
    write_manifest(folder, kind="shards", config={}, labels=["car"], plan=plan.as_dict())
    rng = np.random.default_rng(0)
    samples = [
        Sample(
            f"s{i}",
            rng.integers(0, 256, (192, 192, 3), dtype=np.uint8),
            rng.integers(0, 2, (192, 192), dtype=np.uint8),
            rng.integers(0, 256, (8, 64, 64), dtype=np.uint8),
            {"prompt": "x" * 4000, "classes": ["car"] * 8, "scores": {"confidence": i / 60}},
        )
        for i in range(60)
    ]
    write_shard(folder, plan.shards[0], samples)
    path = write_report(folder.parent)
    assert path.stat().st_size <= MAX_BYTES == 10 * 2**20
    assert sum(t == "img" for t, _ in page(path).tags) >= 48 * 2


def test_the_same_run_gives_the_same_bytes(run_folder: Path, tmp_path: Path) -> None:
    first, second = (
        write_report(run_folder, tmp_path / "a.html"),
        write_report(run_folder, tmp_path / "b.html"),
    )
    assert first.read_bytes() == second.read_bytes()


def test_default_place_and_missing_folder(make_run: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_run(samples=3, seeds=1)
    assert write_report(folder) == folder / "report.html"
    with pytest.raises(DataError) as caught:
        write_report(tmp_path / "nowhere")
    assert caught.value.code == "GF-DATA-190" and "nowhere" in str(caught.value)
    assert not [p for p in folder.iterdir() if p.name.startswith(".tmp")]


def test_report_needs_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, glass_fast.report.html, glass_fast.report.tables; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_record_cannot_make_the_report_read_other_files(run_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    shutil.copy(folder / "discover" / "overlays" / "photo0.jpg", tmp_path / "secret.jpg")
    record = {"name": "x", "overlay": "../../secret.jpg", "mask": "/etc/hostname", "objects": []}
    (folder / "discover" / "objects.jsonl").write_text(json.dumps(record) + "\n")
    assert "discovered" not in page(write_report(folder)).ids
