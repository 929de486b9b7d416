"""Configuration files, presets and ``--set``: merge them, validate the result, remember where each value came
from.

Order, later wins: defaults of the schema, preset (or first file), further files, ``--set``. Mappings are
merged key by key; lists are replaced. YAML is loaded safely, interpolation is not resolved, and nothing in a
file can call code.
"""

from __future__ import annotations

import copy
import difflib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glass_fast.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from glass_fast.config.schema import RunConfig

MAX_FILE_BYTES = 2**18
MAX_NODES = 20_000
MAX_DEPTH = 50
DEFAULT = "default"
COMMAND_LINE = "--set"
Origins = dict[str, str]


@dataclass(frozen=True)
class LoadedConfig:
    """A validated configuration.

    Attributes:
        config: the values.
        origins: for every dotted key where its value came from: ``default``, ``preset:NAME``, ``FILE:LINE``
            or ``--set``.
        sources: the preset and files that were read, in order.
    """

    config: RunConfig
    origins: Origins
    sources: tuple[str, ...] = field(default=())


def list_presets() -> list[str]:
    """Names of the shipped presets, sorted."""
    from importlib.resources import files

    folder = files("glass_fast.config") / "presets"
    if not folder.is_dir():
        return []
    return sorted(entry.name[: -len(".yaml")] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_config(
    preset_or_file: str | None = None, files: Sequence[str] = (), overrides: Sequence[str] = ()
) -> LoadedConfig:
    """Load, merge and validate.

    Args:
        preset_or_file: name of a shipped preset, path of a YAML file, or None for the defaults.
        files: further YAML files or presets, merged on top in order.
        overrides: ``key.sub=value`` items; the value is YAML (``1e-4``, ``null``, ``[1, 2]``, ``{a: 1}``,
            text), and nothing after ``=`` is the empty text.

    Raises:
        ConfigError: GF-CONFIG-101 a file cannot be read, GF-CONFIG-102 it is not a YAML mapping,
            GF-CONFIG-103 an unknown preset, GF-CONFIG-104 a malformed override, GF-CONFIG-105 an unknown key,
            GF-CONFIG-106 a value that breaks a rule. The message names key, value, rule and origin.
    """
    merged: dict[str, Any] = {}
    origins: Origins = {}
    sources = [source for source in (preset_or_file, *files) if source is not None]
    for source in sources:
        content, where = _read_source(source)
        merged = _merge(merged, content, "", origins, where)
    for override in overrides:
        keys, value = _parse_override(override)
        merged = _apply(merged, keys, value, override, origins)
    config = _validate(merged, origins)
    return LoadedConfig(config, _leaf_origins(config.model_dump(mode="json"), origins), tuple(sources))


def dump_with_origins(loaded: LoadedConfig) -> str:
    """The whole configuration as YAML, with the origin of each value as a comment."""
    import json

    lines: list[str] = []

    def walk(value: Any, path: str, indent: int) -> None:
        for key, item in value.items():
            name = f"{path}.{key}" if path else str(key)
            label = key if str(key).isidentifier() else json.dumps(key, ensure_ascii=False)
            if isinstance(item, dict) and item:
                lines.append("  " * indent + f"{label}:")
                walk(item, name, indent + 1)
            else:
                text = _yaml_number(item) if isinstance(item, float) else json.dumps(item, ensure_ascii=False)
                lines.append("  " * indent + f"{label}: {text}  # {loaded.origins[name]}")

    walk(loaded.config.model_dump(mode="json"), "", 0)
    return "\n".join(lines) + "\n"


def _yaml_number(value: float) -> str:
    """A float that every YAML reader takes for one: YAML 1.1 wants a point before the exponent."""
    mantissa, mark, exponent = repr(value).partition("e")
    return f"{mantissa}{'' if '.' in mantissa or not mark else '.0'}{mark}{exponent}"


# --- reading ---------------------------------------------------------------------------------------


def _read_source(source: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Content of a preset or file, and the origin of each dotted key in it."""
    looks_like_file = source.endswith((".yaml", ".yml")) or os.sep in source or "/" in source
    if not looks_like_file and source in list_presets():
        from importlib.resources import files

        text = (files("glass_fast.config") / "presets" / f"{source}.yaml").read_text(encoding="utf-8")
        content, lines = _parse_yaml(text, f"preset {source}")
        return content, dict.fromkeys(lines, f"preset:{source}")
    if not looks_like_file and not os.path.isfile(source):
        presets = list_presets()
        close = difflib.get_close_matches(source, presets, n=1)
        guess = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(
            "GF-CONFIG-103",
            f"{source!r} is neither a preset nor a file",
            f"{guess}presets: {', '.join(presets) or 'none'}; or give the path of a YAML file",
        )
    content, lines = _parse_yaml(_read_file(source), source)
    return content, {key: f"{source}:{line}" for key, line in lines.items()}


def _read_file(source: str) -> str:
    try:
        path = Path(source)
        if not path.is_file():
            raise ConfigError(
                "GF-CONFIG-101", f"configuration file {source!r} does not exist", "check the path"
            )
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(
                "GF-CONFIG-101", f"configuration file {source!r} is larger than {MAX_FILE_BYTES} bytes"
            )
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the path
        raise ConfigError(
            "GF-CONFIG-101", f"configuration file {source!r} cannot be read: {error}", "it must be UTF-8 text"
        ) from error


def _parse_yaml(text: str, where: str) -> tuple[dict[str, Any], dict[str, int]]:
    """YAML mapping -> plain values and the line of each dotted key."""
    content, lines = _safe_yaml(text, where)
    if content is None:
        return {}, {}
    if not isinstance(content, dict):
        raise ConfigError(
            "GF-CONFIG-102",
            f"{where} holds a {type(content).__name__}; expected a mapping of configuration keys",
            "write lines such as 'seed: 1'",
        )
    return content, lines


def _safe_yaml(text: str, where: str) -> tuple[Any, dict[str, int]]:
    """Parse one YAML document with every failure turned into a ConfigError.

    The node graph is walked first: that gives the line numbers, and refuses aliases that would expand without
    bound.
    """
    import yaml
    from omegaconf import OmegaConf

    lines: dict[str, int] = {}
    count = 0

    def walk(node: Any, path: str, depth: int) -> None:
        nonlocal count
        count += 1
        if count > MAX_NODES or depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_NODES} values or {MAX_DEPTH} levels")
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise ValueError(f"line {key.start_mark.line + 1}: a key must be text")
                if key.tag == "tag:yaml.org,2002:merge":
                    raise ValueError(f"line {key.start_mark.line + 1}: merge keys (<<) are not supported")
                name = f"{path}.{key.value}" if path else key.value
                lines[name] = key.start_mark.line + 1
                walk(value, name, depth + 1)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                name = f"{path}.{index}"
                lines[name] = item.start_mark.line + 1
                walk(item, name, depth + 1)

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            return None, {}
        walk(root, "", 0)
        # a scalar document would be wrapped by OmegaConf, so everything is parsed as the value of one key
        wrapped: Any
        if isinstance(root, yaml.ScalarNode):
            wrapped = OmegaConf.create(f"document: {text.strip()}")
        else:
            wrapped = OmegaConf.create({"document": OmegaConf.create(text)})
        content = OmegaConf.to_container(wrapped, resolve=False)
        assert isinstance(content, dict)
        return _text_keys(content["document"]), lines
    except ConfigError:
        raise
    except Exception as error:  # yaml, OmegaConf and their parsers raise many unrelated types
        problem = " ".join(str(error).split())[:300] or type(error).__name__
        raise ConfigError(
            "GF-CONFIG-102",
            f"{where} is not usable YAML: {problem}",
            "correct that line; quote text with : # { [ $",
        ) from error


def _text_keys(value: Any) -> Any:
    """Mapping keys as text: YAML reads a bare 3 or true as number or truth value."""
    if isinstance(value, dict):
        return {str(key): _text_keys(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_text_keys(item) for item in value]
    return value


# --- merging ---------------------------------------------------------------------------------------


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _forget(origins: Origins, path: str) -> None:
    """Drop the origins of everything below a key whose value is replaced."""
    for key in [key for key in origins if key == path or key.startswith(path + ".")]:
        del origins[key]


def _merge(
    old: dict[str, Any], new: dict[str, Any], path: str, origins: Origins, where: dict[str, str]
) -> dict[str, Any]:
    result = dict(old)
    for key, value in new.items():
        name = _join(path, key)
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = _merge(result[key], value, name, origins, where)
            continue
        _forget(origins, name)
        result[key] = copy.deepcopy(value)
        for leaf in _paths(value, name):
            origins[leaf] = where.get(leaf, where.get(name, "file"))
    return result


def _children(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, (list, tuple)):
        yield from enumerate(value)


def _paths(value: Any, path: str) -> Iterator[str]:
    yield path
    for key, item in _children(value):
        yield from _paths(item, _join(path, key))


def _parse_override(override: str) -> tuple[list[str], Any]:
    key, sign, text = override.partition("=")
    keys = key.strip().split(".")
    if not sign or not all(keys):
        raise ConfigError(
            "GF-CONFIG-104", f"--set {override!r}: expected key=value", "for example --set training.steps=500"
        )
    if not text.strip():
        return keys, ""
    value = _safe_yaml(text, f"the value of --set {override!r}")[0]
    if value is None and text.strip().lower() not in ("null", "~"):  # such as '#x', a comment
        raise ConfigError(
            "GF-CONFIG-104", f"--set {override!r}: the value is empty in YAML", "put it in quotes"
        )
    return keys, value


def _apply(
    merged: dict[str, Any], keys: list[str], value: Any, override: str, origins: Origins
) -> dict[str, Any]:
    """Set one dotted key; a number addresses an item of a list that a file or preset gave."""
    result = copy.deepcopy(merged)
    place: Any = result
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(place, list):
            if not (key.isascii() and key.isdigit() and int(key) < len(place)):
                raise ConfigError(
                    "GF-CONFIG-104",
                    f"--set {override!r}: {'.'.join(keys[:depth])} is a list of {len(place)}; "
                    f"{key!r} is not one of its positions",
                    "set the whole list, for example --set " + ".".join(keys[:depth]) + "='[...]'",
                )
            index: Any = int(key)
        else:
            index = key
        if last:
            name = ".".join(keys)
            _forget(origins, name)
            place[index] = value
            origins.update(dict.fromkeys(_paths(value, name), COMMAND_LINE))
        else:
            inner = place[index] if isinstance(place, list) else place.get(index)
            if not isinstance(inner, (dict, list)):
                inner = {}
                place[index] = inner
            place = inner
    return result


def _leaf_origins(dumped: dict[str, Any], origins: Origins) -> Origins:
    """Origin of every leaf of the final configuration."""
    result: Origins = {}

    def walk(value: dict[str, Any], path: str) -> None:
        for key, item in value.items():
            name = _join(path, key)
            if isinstance(item, dict) and item:
                walk(item, name)
                continue
            result[name] = origins.get(name, DEFAULT)
            if isinstance(item, list) and any(
                origin == COMMAND_LINE for below, origin in origins.items() if below.startswith(name + ".")
            ):
                result[name] = COMMAND_LINE  # a single item of a file's list was set

    walk(dumped, "")
    return result


# --- validation ------------------------------------------------------------------------------------


def _validate(merged: dict[str, Any], origins: Origins) -> RunConfig:
    from pydantic import ValidationError

    from glass_fast.config.schema import RunConfig

    try:
        config = RunConfig.model_validate(merged)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        lines = [_describe(problem, origins) for problem in problems[:5]]
        if len(problems) > 5:
            lines.append(f"and {len(problems) - 5} more")
        unknown = problems[0]["type"] == "extra_forbidden"
        raise ConfigError(
            "GF-CONFIG-105" if unknown else "GF-CONFIG-106",
            "; ".join(lines),
            "correct the value at the place in brackets, or drop it to get the default",
        ) from None
    for name, value in _numbers(config.model_dump(), ""):
        if not math.isfinite(value):
            raise ConfigError(
                "GF-CONFIG-106", f"{name} = {value} [{_origin_of(name, origins)}]: expected a finite number"
            )
    return config


def _numbers(value: Any, path: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield path, value
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, (list, tuple))
        else ()
    )
    for key, item in items:
        yield from _numbers(item, _join(path, key))


def _origin_of(name: str, origins: Origins) -> str:
    """Where a wrong value came from: the key itself, else what was set below it, else the nearest key
    above."""
    if name in origins:
        return origins[name]
    below = sorted({origin for key, origin in origins.items() if key.startswith(name + ".")})
    if below:
        return ", ".join(below)
    parent = name.rpartition(".")[0]
    return _origin_of(parent, origins) if parent else DEFAULT


def _describe(problem: Any, origins: Origins) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    origin = _origin_of(name, origins)
    if problem["type"] == "extra_forbidden":
        guess = _did_you_mean(name)
        return f"unknown key {name} [{origin}]" + (f", did you mean {guess}?" if guess else "")
    if problem["type"] == "missing":
        return f"{name} is missing [{origin}]"
    value = repr(problem["input"])
    shown = value if len(value) <= 80 else value[:77] + "..."
    message = problem["msg"].removeprefix("Value error, ")
    rule = message[:1].lower() + message[1:]
    return f"{name or 'configuration'} = {shown} [{origin}]: {rule}"


def _known_keys(model: type[BaseModel], path: str = "") -> Iterator[str]:
    from pydantic import BaseModel

    for name, info in model.model_fields.items():
        yield _join(path, name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _known_keys(info.annotation, _join(path, name))


def _did_you_mean(name: str) -> str | None:
    """The known key closest to an unknown one: a sibling first, then the same last part elsewhere, then
    anything."""
    from glass_fast.config.schema import RunConfig

    known = list(_known_keys(RunConfig))
    if name in known:  # one key that contains dots
        return f"{name} (in a file, write it nested instead of with dots)"
    parent, _, leaf = name.rpartition(".")
    siblings = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == parent}
    close = difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.7)
    if close:
        return siblings[close[0]]
    same = [key for key in known if key.rpartition(".")[2] == leaf]
    if same:
        return same[0]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    if close:
        return close[0]
    close = difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.5)
    return siblings[close[0]] if close else None
