"""The documentation names things that exist: files, commands, options, keys, codes, presets."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from glass_fast import errors
from glass_fast.config.schema import RunConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{n}.md"
        for n in ("production", "artefacts", "errors", "method", "partworld", "benchmarks")
    ),
]
KEY = re.compile(
    r"`((?:captions|synthesis|training|models|evaluation|discover)\.[a-z_]+(?:\.[a-z_]+)*)(?:=[^`]*)?`"
)


def blocks(language: str) -> list[str]:
    """Fenced blocks of a language in all pages."""
    pattern = re.compile(rf"```{language}\n(.*?)```", re.S)
    return [found for page in PAGES for found in pattern.findall(page.read_text("utf-8"))]


def commands() -> list[list[str]]:
    """Arguments of every ``glass-fast`` call in a shell block."""
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.strip().startswith("glass-fast ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
        name, _, anchor = target.partition("#")
        if "://" in name:
            continue
        path = page.parent / name
        assert path.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in heads}, target


def test_option_keys_exist() -> None:
    def known(keys: list[str]) -> bool:
        model: Any = RunConfig
        for key in keys:
            fields = getattr(model, "model_fields", {})
            if key not in fields:
                return False
            model = fields[key].annotation
        return True

    found = {key for page in PAGES for key in KEY.findall(page.read_text("utf-8"))}
    assert len(found) > 20
    assert [key for key in sorted(found) if not known(key.split("."))] == []


def test_commands_and_options_exist() -> None:
    import typer

    from glass_fast.cli import app

    root: Any = typer.main.get_command(app)
    called = commands()
    assert len(called) > 8
    for arguments in called:
        command, rest = root, list(arguments)
        while hasattr(command, "commands"):
            assert rest[0] in command.commands, arguments
            command = command.commands[rest.pop(0)]
        names = {
            name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)
        }
        for word in rest:
            assert not word.startswith("--") or word.split("=")[0] in names, (arguments, word)


def test_settings_of_the_commands_load() -> None:
    from glass_fast.config.load import load_config

    for arguments in commands():
        overrides = [value for name, value in pairwise(arguments) if name == "--set"]
        presets = [a for a in arguments if a in ("demo", "sd15-voc", "sd21-coco")]
        load_config(presets[0] if presets else "demo", [], overrides)


def test_yaml_examples_load(tmp_path: Path) -> None:
    from glass_fast.config.load import load_config

    found = blocks("yaml")
    assert found
    for number, text in enumerate(found):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text)
        assert yaml.safe_load(text)
        load_config("sd15-voc", [str(file)], [])


def test_exit_codes_and_areas_are_complete() -> None:
    page = (ROOT / "docs" / "errors.md").read_text("utf-8")
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.M)}
    assert listed == {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    source = "\n".join(
        p.read_text("utf-8") for folder in ("glass_fast", "kernels") for p in (ROOT / folder).rglob("*.py")
    )
    used = set(re.findall(r'"GF-([A-Z]+)-\d{3}"', source))
    areas = set(re.findall(r"^\| `([A-Z]+)` \|", page, re.M))
    assert used <= areas
    codes = set(re.findall(r"`(GF-[A-Z]+-\d{3})`", "\n".join(p.read_text("utf-8") for p in PAGES)))
    assert [code for code in sorted(codes) if f'"{code}"' not in source] == []


def test_the_table_of_the_readme_can_be_filled() -> None:
    from glass_fast.report.tables import fill

    assert "| method |" in fill((ROOT / "README.md").read_text("utf-8"), "| method |")


def test_python_examples_use_what_exists() -> None:
    """Imports run; names that need a model are looked up."""
    import importlib

    from glass_fast.engine.masks import DiscoveredObject, Discovery

    for text in blocks("python"):
        compile(text, "README", "exec")
        for module, name in re.findall(r"^from (\S+) import (\w+)", text, re.M):
            assert hasattr(importlib.import_module(module), name)
    assert hasattr(Discovery, "foreground") and {"box", "score"} <= set(DiscoveredObject.__dataclass_fields__)
