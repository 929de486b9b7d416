"""The report of a run: one self-contained, script-free HTML file of bounded size."""

from __future__ import annotations

import functools
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from glass_fast.errors import DataError
from glass_fast.report import compare, run_sections, samples, sections
from glass_fast.report import text as fmt
from glass_fast.report.collect import RunData, as_dict, collect

MAX_BYTES = 10 * 2**20
"""Upper bound of the file; pictures are left out until it fits."""
PICTURES = 48
"""Pictures of a grid unless told otherwise."""


def write_report(
    run_dir: Path, out: Path | None = None, *, pictures: int = PICTURES, max_bytes: int = MAX_BYTES
) -> Path:
    """Write the report of a run folder; sections whose artefact is absent are left out.

    Args:
        run_dir: folder written by ``glass-fast run`` (or any part of it).
        out: file to write; default ``run_dir/report.html``. It appears complete or not at all.
        pictures: pictures of each grid before the size bound is applied.
        max_bytes: upper bound of the file in bytes.

    Returns:
        The path of the written file.

    Raises:
        DataError: ``run_dir`` is no folder, or the text alone exceeds ``max_bytes``.
    """
    from glass_fast.data.atomic import write_bytes

    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise DataError(
            "GF-DATA-190",
            f"run folder {str(run_dir)!r} does not exist or is no folder",
            "give the folder that holds run.jsonl, shards/ or models/",
        )
    target = Path(out) if out is not None else run_dir / "report.html"
    context = _context(collect(run_dir), pictures)
    content = _fit(context, pictures, max_bytes)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, content)
    return target


def _context(data: RunData, pictures: int) -> dict[str, Any]:
    """Everything the template prints."""
    from glass_fast import __version__

    quality = as_dict(as_dict(data.config.get("synthesis")).get("quality"))
    # Training always skips non-finite samples, whatever the configuration lists.
    reject = (*(str(name) for name in quality.get("reject", ()) or ()), "nonfinite")
    min_area = quality.get("min_area")
    dataset = samples.open_dataset(data)
    shards = (
        samples.summarise(data, dataset, reject, float(min_area) if fmt.is_number(min_area) else 0.0)
        if dataset is not None
        else None
    )
    protocols = as_dict(data.config.get("evaluation")).get("protocols")
    found = compare.tables(
        data.scores, [str(p) for p in protocols] if isinstance(protocols, list) else ["glass", "spot"]
    )
    judgement = compare.judge(found)
    discovered = samples.discovered_cards(data, pictures)
    context: dict[str, Any] = {
        "version": __version__,
        "name": fmt.clean(data.config.get("name") or data.folder.resolve().name, 80) or "run",
        "result": sections.result_line(found, judgement, shards),
        "facts": sections.facts(data, found, shards),
        "comparison": sections.comparison(found, judgement),
        "funnel": sections.funnel(data, shards, reject),
        "samples": _samples(data, dataset, shards, pictures),
        "classes": sections.classes(data, shards),
        "discovered": {"cards": discovered, "intro": _discover_intro(data, len(discovered))}
        if discovered
        else None,
        "training": run_sections.training(data.models),
        "speed": run_sections.speed(data),
        "configuration": run_sections.configuration(data),
        "environment": run_sections.environment(data),
        "cut": "",
    }
    context["failures"] = run_sections.failures(data, shards)  # last: it lists what the others could not read
    return context


def _samples(
    data: RunData, dataset: Any, shards: samples.ShardSummary | None, pictures: int
) -> dict[str, Any] | None:
    """The first samples of the run, and those of highest and lowest score when scores exist."""
    if dataset is None or shards is None or shards.total == 0 or pictures <= 0:
        return None
    first = samples.sample_cards(data, dataset, range(min(pictures, shards.total)))
    if not first:
        return None
    extra = []
    scored = sorted((value, index) for index, value in enumerate(shards.confidences) if value is not None)
    if len(scored) > pictures:
        few = max(pictures // 4, 1)
        for title, chosen in (("Highest scores", scored[::-1][:few]), ("Lowest scores", scored[:few])):
            cards = samples.sample_cards(data, dataset, [index for _, index in chosen])
            extra.append({"title": f"{title} ({len(cards)} pictures)", "cards": cards})
    maps = " Small squares are the soft attention maps per class." if any(card.maps for card in first) else ""
    intro = (
        f"The first {len(first)} of {shards.total:,} samples in the order of the plan, not selected. "
        "Left the generated picture, beside it the mask captured from attention while it was made; "
        f"hatched pixels are uncertain.{maps}"
    )
    return {"first": first, "extra": extra, "intro": intro}


def _discover_intro(data: RunData, shown: int) -> str:
    summary = data.discover_summary
    done = next((summary[k] for k in ("discovered", "images") if fmt.is_number(summary.get(k))), None)
    of = f"{shown} of {fmt.count(done)}" if done is not None and done >= shown else str(shown)
    return f"{of} pictures: objects marked in the picture, and the label map (light grey: background)."


def _fit(context: dict[str, Any], pictures: int, max_bytes: int) -> bytes:
    """Render, with fewer pictures each time, until the file is small enough."""
    limit = max(pictures, 0)
    while True:
        content = _render(_limited(context, limit, pictures))
        if len(content) <= max_bytes:
            return content
        if limit == 0:
            raise DataError(
                "GF-DATA-191",
                f"the report is {fmt.size(len(content))} even without pictures; "
                f"expected at most {fmt.size(max_bytes)}",
                "look for unusually large metadata in the run folder",
            )
        # Text does not shrink with the pictures, so this aims a little low and repeats.
        limit = min(limit - 1, int(limit * 0.95 * max_bytes / len(content)))


def _limited(context: dict[str, Any], limit: int, pictures: int) -> dict[str, Any]:
    """The context with at most ``limit`` pictures a grid."""
    out = dict(context)
    if limit < pictures:
        out["cut"] = f"Grids were cut to {limit} pictures to keep the file small."
    if out["samples"]:
        few = (
            limit * len(out["samples"]["first"]) // max(pictures, 1)
            if limit < pictures
            else len(out["samples"]["first"])
        )
        first = out["samples"]["first"][:few]
        extra = (
            [{**e, "cards": e["cards"][: limit // 4]} for e in out["samples"]["extra"]]
            if limit < pictures
            else out["samples"]["extra"]
        )
        out["samples"] = (
            {**out["samples"], "first": first, "extra": [e for e in extra if e["cards"]]} if first else None
        )
    if out["discovered"]:
        cards = out["discovered"]["cards"][:limit]
        out["discovered"] = {**out["discovered"], "cards": cards} if cards else None
    titles = (
        ("comparison", "Comparison"),
        ("funnel", "Funnel"),
        ("samples", "Samples"),
        ("classes", "Classes"),
        ("discovered", "Discovered"),
        ("training", "Training"),
        ("speed", "Time"),
        ("failures", "Failures"),
        ("configuration", "Configuration"),
        ("environment", "Environment"),
    )
    out["sections"] = [{"id": key, "title": title} for key, title in titles if out[key]]
    return out


@functools.cache
def _template() -> tuple[jinja2.Template, Markup]:
    """The compiled template and the style sheet."""
    folder = resources.files("glass_fast.report") / "templates"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(count=fmt.count, number=fmt.number)
    template = environment.from_string((folder / "report.html.j2").read_text("utf-8"))
    return template, Markup((folder / "report.css").read_text("utf-8"))


def _render(context: dict[str, Any]) -> bytes:
    """Fill the template; every value is escaped unless it is markup built by this package."""
    template, css = _template()
    return template.render(css=css, **context).encode("utf-8", "replace")
