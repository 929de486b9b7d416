"""Configuration loading: merging, origins, error messages, hostile YAML, fuzzed files and overrides."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from glass_fast.config import load
from glass_fast.config.load import dump_with_origins, list_presets, load_config
from glass_fast.config.schema import RunConfig
from glass_fast.errors import ConfigError


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def failure(*arguments: object) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(*arguments)  # type: ignore[arg-type]
    assert caught.value.exit_code == 2
    return caught.value


def test_defaults() -> None:
    loaded = load_config()
    assert (
        loaded.config == RunConfig() and set(loaded.origins.values()) == {"default"} and loaded.sources == ()
    )


def test_merge_order_and_origins(tmp_path: Path) -> None:
    first = write(
        tmp_path / "first.yaml",
        "# a comment\nseed: 3\ntraining:\n  learning_rate: 1e-4\n  steps: 7\nlosses: [glass, semantic]\n"
        "learning_rates: {glass: 1e-3, semantic: 2.0e-3}\nevaluation:\n  datasets:\n"
        "    - {name: a, kind: voc, path: /a}\n    - name: b\n      kind: coco\n      path: /b\n",
    )
    second = write(
        tmp_path / "second.yaml",
        "training:\n  steps: 8\nlosses: [unguided]\nlearning_rates:\n  glass: 5e-3\n",
    )
    loaded = load_config(
        first,
        [second],
        ["training.batch_size=4", "evaluation.datasets.1.limit=5"],
    )
    config, origins = loaded.config, loaded.origins
    assert (config.seed, config.training.learning_rate, config.training.steps) == (3, 1e-4, 8)
    assert config.training.batch_size == 4 and config.losses == ("unguided",)
    assert config.learning_rates == {"glass": 5e-3, "semantic": 2e-3}
    assert [(d.name, d.limit) for d in config.evaluation.datasets] == [("a", None), ("b", 5)]
    assert origins["seed"] == f"{first}:2" and origins["training.learning_rate"] == f"{first}:4"
    assert origins["training.steps"] == f"{second}:2" and origins["losses"] == f"{second}:3"
    assert (
        origins["learning_rates.glass"] == f"{second}:5"
        and origins["learning_rates.semantic"] == f"{first}:7"
    )
    assert origins["training.batch_size"] == origins["evaluation.datasets"] == "--set"
    assert origins["training.grad_clip"] == origins["device"] == "default"
    assert loaded.sources == (first, second)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seed=12", "seed", 12),
        ("training.learning_rate=1e-4", "training.learning_rate", 1e-4),
        ("training.learning_rate=.5", "training.learning_rate", 0.5),
        ("captions.limit=null", "captions.limit", None),
        ("captions.limit=~", "captions.limit", None),
        ("captions.classes=[car, 'potted plant']", "captions.classes", ("car", "potted plant")),
        ("captions.classes=[]", "captions.classes", ()),
        ("captions.file=", "captions.file", ""),
        ("captions.file=a=b.json", "captions.file", "a=b.json"),
        ("models.generator=partworld:generator", "models.generator", "partworld:generator"),
        ("models.generator=/data/my model", "models.generator", "/data/my model"),
        ("name='2024'", "name", "2024"),
        ('name="null"', "name", "null"),
        ("name=äö ✓", "name", "äö ✓"),
        ("synthesis.negative_prompt=ugly, bad hands", "synthesis.negative_prompt", "ugly, bad hands"),
        ("training.flip=false", "training.flip", False),
        (
            "synthesis.masks.absence_peaks.potted plant=.3",
            "synthesis.masks.absence_peaks",
            {"potted plant": 0.3},
        ),
        ("learning_rates={glass: 1e-3}", "learning_rates", {"glass": 1e-3}),
        (" seed = 4 ", "seed", 4),
    ],
)
def test_overrides(override: str, path: str, value: object) -> None:
    loaded = load_config(None, [], [override])
    found: object = loaded.config
    for part in path.split("."):
        found = getattr(found, part)
    assert found == value and type(found) is type(value)
    assert {key for key, origin in loaded.origins.items() if origin == "--set"} == {
        override.partition("=")[0].strip()
    } or (isinstance(value, dict))


def test_later_override_wins() -> None:
    assert load_config(None, [], ["seed=1", "seed=2"]).config.seed == 2
    assert load_config(
        None, [], ["learning_rates.glass=1", "learning_rates={semantic: 2}"]
    ).config.learning_rates == {"semantic": 2.0}


@pytest.mark.parametrize(
    ("override", "code", "texts"),
    [
        ("training.stepz=3", "105", ["unknown key training.stepz [--set]", "did you mean training.steps?"]),
        ("num_slots=3", "105", ["num_slots", "training.num_slots"]),
        ("trainings.steps=3", "105", ["trainings", "did you mean training?"]),
        ("zzz=1", "105", ["unknown key zzz"]),
        ("training.steps=-1", "106", ["training.steps = -1 [--set]", "greater than or equal to 1"]),
        ("training.steps=many", "106", ["training.steps = 'many'", "valid integer"]),
        ("training.steps=1.5", "106", ["training.steps = 1.5"]),
        ("training.loss=best", "106", ["training.loss = 'best'", "'unguided', 'semantic' or 'glass'"]),
        ("training.learning_rate=.nan", "106", ["training.learning_rate = nan"]),
        ("training.grad_clip=.inf", "106", ["training.grad_clip = inf [--set]", "finite"]),
        ("learning_rates={glass: .inf}", "106", ["learning_rates.glass = inf", "finite"]),
        ("training=3", "106", ["training = 3 [--set]"]),
        ("training.steps.x=3", "106", ["training.steps", "--set"]),
        ("synthesis.masks.threshold=0.2", "106", ["synthesis.masks", "[--set]", "must not exceed threshold"]),
        ("evaluation.datasets=[{name: a}]", "106", ["evaluation.datasets.0.kind is missing"]),
        ("evaluation.datasets.0.limit=5", "106", ["evaluation.datasets"]),
        ("captions.classes=car", "106", ["captions.classes = 'car'"]),
        ("seed", "104", ["expected key=value"]),
        ("=3", "104", ["expected key=value"]),
        ("a..b=3", "104", ["expected key=value"]),
        ("name=#x", "104", ["empty in YAML"]),
        ("training.steps=[1", "102", ["training.steps=[1"]),
        ("name=${oc.env:HOME", "102", ["name="]),
        ("seed=9223372036854775808", "106", ["seed = 9223372036854775808"]),
    ],
)
def test_wrong_overrides(override: str, code: str, texts: list[str]) -> None:
    error = failure(None, [], [override])
    assert error.code == f"GF-CONFIG-{code}"
    for text in texts:
        assert text in error.message, error.message


def test_list_positions() -> None:
    base = "evaluation.datasets=[{name: a, kind: voc, path: /a}]"
    assert (
        load_config(None, [], [base, "evaluation.datasets.0.kind=coco"]).config.evaluation.datasets[0].kind
        == "coco"
    )
    for wrong in ("1", "x", "-1"):
        error = failure(None, [], [base, f"evaluation.datasets.{wrong}.kind=coco"])
        assert error.code == "GF-CONFIG-104" and "list of 1" in error.message


def test_file_errors_name_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "seed: 1\n\ntraining:\n  steps: 0\n  lerning_rate: 1\n")
    error = failure(path)
    assert f"training.steps = 0 [{path}:4]" in error.message
    assert (
        f"unknown key training.lerning_rate [{path}:5], did you mean training.learning_rate?" in error.message
    )
    path = write(tmp_path / "d.yaml", "training.steps: 4\n")
    assert "nested" in failure(path).message


def test_many_errors_are_counted(tmp_path: Path) -> None:
    assert (
        "and 3 more" in failure(write(tmp_path / "c.yaml", "".join(f"k{i}: 1\n" for i in range(8)))).message
    )


@pytest.mark.parametrize(
    "text",
    [
        "seed: [1",
        "seed: 1\nseed: 2\n",
        "\tseed: 1",
        "- 1\n- 2",
        "just text",
        "seed: 1\n---\nseed: 2",
        "!!python/object/apply:os.system ['touch CANARY']",
        "name: !!python/object/new:subprocess.Popen [touch, CANARY]",
        "? [a, b]\n: 1",
        "a: &x [*x]",
        "a: &x {b: *x}",
        "x: &d {steps: 3}\ntraining:\n  <<: *d\n",
        "a: &a [1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c,*c]",
        "[" * 3000,
        "a: " * 300,
        "name: ${a",
        "name: ${a:b",
        "a" * 300_000,
        "seed: 0x_",
        "name: !!binary x",
        "name: !!timestamp x",
        "\x00",
        "a: \ud7ff\ufffe",
    ],
)
def test_hostile_yaml(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One typed error, no code run, no blow-up."""
    monkeypatch.chdir(tmp_path)
    error = failure(write(tmp_path / "c.yaml", text))
    assert error.code in ("GF-CONFIG-101", "GF-CONFIG-102", "GF-CONFIG-105", "GF-CONFIG-106")
    assert "c.yaml" in error.message and len(error.message) < 2000
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


def test_interpolation_is_not_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    path = write(tmp_path / "c.yaml", "name: ${oc.env:SECRET}\nout: ${name}\n")
    loaded = load_config(path, [], ["models.encoder=${oc.env:SECRET}"])
    assert loaded.config.name == loaded.config.models.encoder == "${oc.env:SECRET}"
    assert loaded.config.out == "${name}" and "hunter2" not in dump_with_origins(loaded)


def test_empty_files_change_nothing(tmp_path: Path) -> None:
    for text in ("", "# nothing\n", "\ufeff"):
        assert load_config(write(tmp_path / "c.yaml", text)).config == RunConfig()


def test_unreadable_files(tmp_path: Path) -> None:
    assert failure(str(tmp_path / "absent.yaml")).code == "GF-CONFIG-101"
    assert failure(str(tmp_path)).code == "GF-CONFIG-101"
    assert failure("a\0b.yaml").code == "GF-CONFIG-101"
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe4\n")
    error = failure(str(tmp_path / "latin.yaml"))
    assert error.code == "GF-CONFIG-101" and "UTF-8" in error.hint


@pytest.fixture
def presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder with presets of its own."""
    import importlib.resources

    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "demo.yaml").write_text("seed: 5\ntraining: {steps: 9}\n")
    (tmp_path / "presets" / "big.yaml").write_text("seed: 6\n")
    monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
    return tmp_path


def test_presets(presets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(presets)
    assert list_presets() == ["big", "demo"]
    loaded = load_config("demo", ["big"], ["training.steps=2"])
    assert (loaded.config.seed, loaded.config.training.steps) == (6, 2)
    assert loaded.origins["seed"] == "preset:big" and loaded.origins["training.steps"] == "--set"
    assert load_config("demo").origins["training.steps"] == "preset:demo"
    error = failure("dmeo")
    assert error.code == "GF-CONFIG-103" and "did you mean demo?" in error.hint and "big, demo" in error.hint
    write(presets / "plain", "seed: 8\n")  # a file without suffix
    assert load_config("plain").config.seed == 8


def test_shipped_presets_are_valid() -> None:
    """Every preset that is shipped loads, and each of its values comes from it."""
    for name in list_presets():
        loaded = load_config(name)
        assert f"preset:{name}" in loaded.origins.values()
        assert set(loaded.origins.values()) <= {f"preset:{name}", "default"}


def test_dump_is_yaml_of_the_same_configuration(tmp_path: Path) -> None:
    loaded = load_config(
        None,
        [],
        [
            "synthesis.masks.absence_peaks.potted plant=.3",
            "name='a: # \"b\"'",
            "captions.classes=['ü', car]",
            "seed=9",
        ],
    )
    text = dump_with_origins(loaded)
    assert "seed: 9  # --set" in text and 'device: "auto"  # default' in text
    assert yaml.safe_load(text) == loaded.config.model_dump(mode="json")
    assert load_config(write(tmp_path / "again.yaml", text)).config == loaded.config
    assert len([line for line in text.splitlines() if "  # " in line]) == len(loaded.origins)


KNOWN = sorted(load._known_keys(RunConfig))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from(["car", "glass", "voc"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
YAMLISH = st.text(st.sampled_from(list("abc:-[]{}#&*!|>'\"%@`,? \n\t0123.~<=$\\\u00e9\x00")), max_size=60)


@settings(max_examples=200)
@given(text=YAMLISH | st.text(max_size=60))
def test_any_text_as_file(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "c.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(ConfigError):
        load_config(str(path))


@settings(max_examples=200)
@given(
    key=st.sampled_from(KNOWN) | st.text(max_size=20), value=YAMLISH | SCALARS.map(str) | st.text(max_size=20)
)
def test_any_override(key: str, value: str) -> None:
    try:
        loaded = load_config(None, [], [f"{key}={value}"])
    except ConfigError as error:
        assert error.message and error.code.startswith("GF-CONFIG-10")
    else:
        assert isinstance(loaded.config, RunConfig)
        yaml.safe_load(dump_with_origins(loaded))


@settings(max_examples=200)
@given(values=st.dictionaries(st.sampled_from(KNOWN), VALUES, max_size=3))
def test_any_values_of_known_keys(
    values: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Files with known keys and arbitrary values: a configuration or an error that names a key."""
    tree: dict[str, object] = {}
    for key, value in values.items():
        place = tree
        *parents, leaf = key.split(".")
        for parent in parents:
            inner = place.setdefault(parent, {})
            place = inner if isinstance(inner, dict) else {}
        place[leaf] = value
    path = tmp_path_factory.mktemp("fuzz") / "c.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=False))
    try:
        load_config(str(path))
    except ConfigError as error:
        assert error.code == "GF-CONFIG-102" or any(key.split(".")[0] in error.message for key in tree)


def test_import_is_light() -> None:
    """Importing the loader imports neither torch nor pydantic nor OmegaConf (``--help`` has 0.3 s)."""
    program = (
        "import sys, glass_fast.config.load, glass_fast.data.shards, glass_fast.data.manifest\n"
        "import glass_fast.data.prompts, glass_fast.data.plan, glass_fast.data.atomic\n"
        "import glass_fast.data.images, glass_fast.data.rle, glass_fast.data.label_sets, glass_fast.data.datasets\n"
        "sys.stdout.write(','.join({'torch', 'pydantic', 'omegaconf', 'yaml', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
