"""The ``glass-fast`` command line: one function per command, no logic.

Results go to stdout, everything else to stderr. Heavy libraries are imported inside the commands, so that
``--help`` answers at once.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from glass_fast.errors import EXIT_BUG, EXIT_NUMERICS, GlassError

app = typer.Typer(
    name="glass-fast",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="GLASS at full throughput: captions, synthetic images with masks, slot models, object discovery.",
)
config_app = typer.Typer(no_args_is_help=True, help="Look at configurations and presets.")
partworld_app = typer.Typer(
    no_args_is_help=True, help="The embedded world: render scenes, rebuild its models."
)
app.add_typer(config_app, name="config")
app.add_typer(partworld_app, name="partworld")

Config = Annotated[
    list[str],
    typer.Option("--config", "-c", help="Preset name or YAML file; later ones win. Default: preset demo."),
]
Set = Annotated[list[str], typer.Option("--set", help="key.sub=value, over all files.")]
Out = Annotated[Path, typer.Option("--out", help="Output folder.")]


class Kind(StrEnum):
    """Data set layouts of ``evaluate``."""

    partworld = "partworld"
    coco = "coco"
    voc = "voc"


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Show = Annotated[str, typer.Option("--progress", help="auto, plain or none.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and end.")]
Resume = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Continue in a folder with earlier results.")
]


def _load(config: list[str], overrides: list[str]) -> Any:
    from glass_fast.config.load import load_config

    first, *rest = config or ["demo"]
    return load_config(first, rest, overrides)


def _print(result: Any, as_json: bool, text: str | None = None) -> None:
    if as_json or text is None:
        typer.echo(json.dumps(result, indent=2, sort_keys=True, default=str))
    else:
        typer.echo(text)


def _with_run(show: str, work: Callable[[Any, Any], Any]) -> Any:
    """Call ``work(progress, stop)`` with signals routed to the stop token."""
    from glass_fast.progress import StopToken, make_progress

    with StopToken() as stop:
        return work(make_progress(show), stop)


@app.command()
def run(
    config: Annotated[str, typer.Argument(help="Preset name or YAML file.")] = "demo",
    files: Config = [],  # noqa: B006 - typer copies it
    set_: Set = [],  # noqa: B006
    out: Annotated[
        Path | None, typer.Option("--out", help="Output folder (default: the configuration's).")
    ] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    progress: Show = "auto",
) -> None:
    """Run all stages in order; each is skipped when its artefact is complete."""
    from glass_fast import chain

    overrides = [*set_, *([f"out={json.dumps(str(out))}"] if out else [])]
    loaded = _load([config, *files], overrides)
    if dry_run:
        _print(chain.plan(loaded), as_json)
        return
    result = _with_run(progress, lambda p, s: chain.run(loaded, p, s))
    _print(result, as_json, result["text"])


@app.command()
def captions(
    out: Out,
    config: Config = [],  # noqa: B006
    set_: Set = [],  # noqa: B006
    progress: Show = "auto",
) -> None:
    """Real images or texts -> OUT/prompts.parquet."""
    from glass_fast import workflow

    loaded = _load(config, ["captions.limit=null", *set_])
    _print(_with_run(progress, lambda p, s: workflow.make_prompts(loaded.config, out, p, s)), True)


@app.command()
def synthesize(
    prompts: Annotated[Path, typer.Argument(help="Prompt table (parquet).")],
    out: Out,
    num: Annotated[int | None, typer.Option("--num", min=1, help="Images to make.")] = None,
    config: Config = [],  # noqa: B006
    set_: Set = [],  # noqa: B006
    dry_run: DryRun = False,
    resume: Resume = True,
    progress: Show = "auto",
) -> None:
    """Prompt table -> shards of images with masks."""
    from glass_fast import workflow

    loaded = _load(config, [*set_, *([f"synthesis.num={num}"] if num else [])])
    if dry_run:
        from glass_fast import chain

        _print({"out": str(out), "prompts": str(prompts)} | chain.plan(loaded, only="synthesize"), True)
        return
    _print(
        _with_run(progress, lambda p, s: workflow.make_shards(loaded.config, prompts, out, p, s, resume)),
        True,
    )


@app.command()
def train(
    shards: Annotated[Path, typer.Argument(help="Folder of shards.")],
    out: Out,
    loss: Annotated[
        str | None,
        typer.Option(
            "--loss", help="unguided, semantic, glass or upper_bound (true PartWorld masks, ignores SHARDS)."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0)] = None,
    config: Config = [],  # noqa: B006
    set_: Set = [],  # noqa: B006
    resume: Resume = True,
    progress: Show = "auto",
) -> None:
    """Shards -> a model folder."""
    from glass_fast import workflow

    loaded = _load(config, set_)
    chosen = loaded.config.seed if seed is None else seed
    arm = loss or loaded.config.training.loss
    work = lambda p, s: workflow.make_model(loaded.config, shards, out, arm, chosen, p, s, resume)  # noqa: E731
    _print({"model": str(_with_run(progress, work))}, True)


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Argument(help="Model folder, partworld:slots, or a baseline: kmeans, grid, random_slots.")
    ],
    kind: Annotated[Kind, typer.Option("--kind", help="Layout of the data set.")] = Kind.partworld,
    data: Annotated[str, typer.Option("--data", help="Data set root, or partworld:test.")] = "partworld:test",
    split: Annotated[str, typer.Option("--split", help="Split name, such as val2017 or val.")] = "val",
    limit: Annotated[int | None, typer.Option("--limit", min=1)] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0)] = None,
    config: Config = [],  # noqa: B006
    set_: Set = [],  # noqa: B006
    as_json: Json = False,
    progress: Show = "auto",
) -> None:
    """Score a model under the named protocols."""
    from glass_fast import workflow
    from glass_fast.config.schema import DatasetConfig

    loaded = _load(config, set_)
    if kind is not Kind.partworld and data.startswith("partworld:"):
        raise typer.BadParameter(f"--kind {kind.value} needs --data with the root folder of the data set")
    dataset = DatasetConfig(
        name=f"{kind.value}-{split}", kind=kind.value, path=data, split=split, limit=limit
    )
    chosen = loaded.config.seed if seed is None else seed
    result = _with_run(progress, lambda p, s: workflow.score(loaded.config, model, dataset, chosen, p, s))
    _print(result, as_json, workflow.score_text(result))


@app.command()
def discover(
    images: Annotated[list[Path], typer.Argument(help="Pictures or folders of pictures.")],
    out: Out,
    model: Annotated[str, typer.Option("--model", help="Model folder.")] = "partworld:slots",
    config: Config = [],  # noqa: B006
    set_: Set = [],  # noqa: B006
    progress: Show = "auto",
) -> None:
    """Find objects in pictures: label maps, JSONL with RLE, overlays."""
    from glass_fast import workflow

    loaded = _load(config, ["discover.limit=null", *set_])
    _print(
        _with_run(progress, lambda p, s: workflow.find_objects(loaded.config, model, images, out, p, s)), True
    )


@app.command("train-decoder")
def train_decoder(
    shards: Annotated[Path, typer.Argument(help="Folder of shards, or of plain pictures.")],
    out: Out,
    model: Annotated[
        str, typer.Option("--model", help="Model folder whose slots are painted.")
    ] = "partworld:slots",
    seed: Annotated[int | None, typer.Option("--seed", min=0)] = None,
    config: Config = [],  # noqa: B006
    set_: Set = [],  # noqa: B006
    resume: Resume = True,
    progress: Show = "auto",
) -> None:
    """Shards and a model -> the model with a diffusion decoder (phase 2)."""
    from glass_fast import workflow

    loaded = _load(config, set_)
    chosen = loaded.config.seed if seed is None else seed
    work = lambda p, s: workflow.make_decoder(loaded.config, shards, model, out, chosen, p, s, resume)  # noqa: E731
    _print({"model": str(_with_run(progress, work))}, True)


@app.command()
def generate(
    images: Annotated[list[Path], typer.Argument(help="Pictures or folders of pictures.")],
    out: Out,
    model: Annotated[str, typer.Option("--model", help="Model folder with a decoder.")] = "partworld:slots",
    config: Config = [],  # noqa: B006
    set_: Set = [],  # noqa: B006
    progress: Show = "auto",
) -> None:
    """New pictures from the slots of pictures, with a contact sheet."""
    from glass_fast import workflow

    loaded = _load(config, set_)
    _print(
        _with_run(progress, lambda p, s: workflow.generate_pictures(loaded.config, model, images, out, p, s)),
        True,
    )


@app.command()
def report(run_folder: Annotated[Path, typer.Argument(help="Folder written by `glass-fast run`.")]) -> None:
    """Write report.html of a run again."""
    from glass_fast.report.html import write_report

    typer.echo(str(write_report(run_folder, None)))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Versions, native build, and which backend serves each op and why."""
    from glass_fast import doctor as examination

    found = examination.collect()
    _print(found, as_json, examination.render(found))


@config_app.command("show")
def config_show(
    config: Annotated[list[str], typer.Argument(help="Presets or YAML files.")] = ["demo"],  # noqa: B006
    set_: Set = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """The resolved configuration with the origin of every value."""
    from glass_fast.config.load import dump_with_origins

    loaded = _load(config, set_)
    _print(
        {"config": loaded.config.model_dump(mode="json"), "origins": loaded.origins},
        as_json,
        dump_with_origins(loaded),
    )


@config_app.command("presets")
def config_presets() -> None:
    """Names of the shipped presets."""
    from glass_fast.config.load import list_presets

    typer.echo("\n".join(list_presets()))


@partworld_app.command("render")
def partworld_render(
    out: Out,
    split: Annotated[str, typer.Option("--split", help="train, tuning or test.")] = "test",
    num: Annotated[int, typer.Option("--num", min=1)] = 100,
    start: Annotated[int, typer.Option("--start", min=0, help="First scene number.")] = 0,
    masks: Annotated[
        bool, typer.Option("--masks/--no-masks", help="Also write class, instance and part masks.")
    ] = True,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
) -> None:
    """Write scenes to a folder: pictures and captions, with masks unless told otherwise."""
    from glass_fast.partworld.folder import write_scenes

    typer.echo(str(write_scenes(out, split, num, seed=seed, start=start, masks=masks)))


@partworld_app.command("build")
def partworld_build(
    out: Out,
    target: Annotated[
        str, typer.Option("--target", help="cpu (2 cores), gpu, or smoke (a few steps, for tests).")
    ] = "cpu",
    stages: Annotated[list[str], typer.Option("--stage", help="Only these stages.")] = [],  # noqa: B006
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    progress: Show = "auto",
) -> None:
    """Re-create every PartWorld model from nothing; run again to continue after a stop."""
    from glass_fast.partworld.builder import build

    typer.echo(
        json.dumps(
            _with_run(progress, lambda p, s: build(out, target, tuple(stages), seed, device, p, s)), indent=2
        )
    )


@partworld_app.command("measure")
def partworld_measure(
    weights: Annotated[Path, typer.Option("--weights", help="Folder written by `partworld build`.")],
    work: Annotated[Path, typer.Option("--work", help="Caches; an interrupted measurement continues.")],
    sheets: Annotated[
        Path | None,
        typer.Option("--sheets", help="Folder for picture sheets, loss curves and the mask plot."),
    ] = None,
    run_folder: Annotated[
        Path | None, typer.Option("--run", help="Run on these models whose comparison goes into the card.")
    ] = None,
    images: Annotated[
        int, typer.Option("--images", min=5, help="Pictures of each single-class prompt.")
    ] = 20,
    scenes: Annotated[int, typer.Option("--scenes", min=20, help="Held-out renders a measure.")] = 200,
    check: Annotated[
        Path | None,
        typer.Option("--check", help="A card.json: end with exit code 3 if ours is worse than that."),
    ] = None,
    progress: Show = "auto",
) -> None:
    """Measure every quality of a build, write them into its card, and compare them with another card."""
    from glass_fast.partworld.measure import dump, measure

    work_on = lambda p, s: measure(  # noqa: E731
        weights, work, p, s, sheets=sheets, run=run_folder, images=images, scenes=scenes, check=check
    )
    typer.echo(dump(_with_run(progress, work_on)))


def main() -> None:
    """Entry point: errors of ours become one message and their exit code, anything else is a bug report."""
    try:
        app()
    except GlassError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    except MemoryError as error:
        sys.stderr.write(
            f"error: [GF-NUM-002] out of memory: {error}\n  hint: lower the batch size of this stage\n"
        )
        sys.exit(EXIT_NUMERICS)
    except Exception as error:  # the border: an unexpected exception is our bug, and says so
        if type(error).__name__ == "OutOfMemoryError":  # torch's; torch need not be loaded here
            sys.stderr.write(
                f"error: [GF-NUM-002] out of memory: {error}\n  hint: lower the batch size of this stage\n"
            )
            sys.exit(EXIT_NUMERICS)
        traceback.print_exc()
        sys.stderr.write(
            "\nThis is a bug in glass-fast. Please report it with the output of `glass-fast doctor`.\n"
        )
        sys.exit(EXIT_BUG)


if __name__ == "__main__":
    main()
