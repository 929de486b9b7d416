"""``glass-fast partworld measure``: every quality of a build, written into its card.

Parts are measured one after another; each leaves ``WORK/PART.json``, so a stopped measurement continues. The parts
read true masks of renders (a judge has to); nothing that is measured here is trained on them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glass_fast.data.atomic import read_json, write_json
from glass_fast.errors import ConfigError, DataError
from glass_fast.progress import Progress, StopToken

if TYPE_CHECKING:
    from glass_fast.config.schema import RunConfig

PARTS = ("judge", "captioner", "generator", "masks", "encoder", "slots")
SOURCE_SCENES = 4_000
"""First test scene whose slots are painted anew."""
TOLERANCES = {
    "captioner.recall.share": 0.03,
    "captioner.precision.share": 0.03,
    "generator.recognition.single.all.share": 0.10,
    "generator.recognition.pair.all.share": 0.15,
    "masks.preset.class_miou": 0.08,
    "encoder.probe.encoder.object.accuracy.share": 0.03,
    "slots.closer.patch.share": 0.05,
}
"""How far a quality of a rebuild may lie below that of the shipped models (absolute), so that it still reaches what the
models were built for. Wide where the figure is a share of some hundred generated pictures, whose 95 % interval alone is
0.05 to 0.08 wide on either side, and for masks, where two builds with different seeds differ by 0.05."""


def measure(
    weights: Path,
    work: Path,
    progress: Progress,
    stop: StopToken,
    *,
    sheets: Path | None = None,
    run: Path | None = None,
    images: int = 20,
    scenes: int = 200,
    check: Path | None = None,
) -> dict[str, Any]:
    """Measure a build and write ``qualities`` into its card.

    Args:
        weights: folder written by ``glass-fast partworld build``.
        work: caches; one folder per build.
        sheets: folder for the picture sheets, loss curves and the plot of mask quality.
        run: folder of ``glass-fast run`` on these models: its comparison of losses goes into the card, and the
            part-whole failure of its unguided and guided models is measured beside that of k-means.
        images: generated pictures of each of the ten single-class prompts (each of the 45 pairs gets a fifth).
        scenes: held-out renders for masks and for generation from slots.
        check: a card.json; qualities may not lie further below its own than :data:`TOLERANCES` says.

    Returns:
        The qualities.

    Raises:
        ConfigError: GF-CONFIG-209, ``work`` belongs to another build.
        DataError: GF-DATA-214, ``weights`` is no build; GF-DATA-215, worse than the card of ``check`` (everything is
            written by then).
        Stopped: on request; finished parts are kept.
    """
    weights, work = Path(weights), Path(work)
    if not (weights / "card.json").exists():
        raise DataError(
            "GF-DATA-214",
            f"{weights} has no card.json; expected the output of `glass-fast partworld build`",
            "give --weights the folder that was --out of the build",
        )
    card = read_json(weights / "card.json", "build record")
    asked = {"checksums": card["checksums"], "images": images, "scenes": scenes, "run": _run_name(run)}
    stamp = work / "measured.json"
    if stamp.exists() and read_json(stamp, "measurement") != asked:
        raise ConfigError(
            "GF-CONFIG-209",
            f"{work} holds measurements of other models or sizes",
            "choose another --work, or delete it to measure again",
        )
    write_json(stamp, asked)
    parts = _Parts(weights, work, progress, stop, images, scenes, run)
    qualities: dict[str, Any] = {"sizes": {"images": images, "scenes": scenes}}
    for name in PARTS:
        file = work / f"{name}.json"
        if not file.exists():
            stop.check(f"finished parts are kept in {work}")
            write_json(file, getattr(parts, name)())
        qualities[name] = read_json(file, "measurement")
    if run is not None:
        qualities["comparison"] = read_json(Path(run) / "ablation.json", "comparison")
    card["qualities"] = qualities
    write_json(weights / "card.json", card)
    from glass_fast.partworld.builder.card import write_card

    write_card(weights, card)
    if sheets is not None:
        parts.sheets(Path(sheets), card)
    if check is not None:
        short = shortfalls(qualities, read_json(check, "build record")["qualities"])
        if short:
            raise DataError(
                "GF-DATA-215", "; ".join(short), f"{check} tells what the same recipe reached before"
            )
    return qualities


def _run_name(run: Path | None) -> str | None:
    return Path(run).name if run is not None else None


class _Parts:
    """The measurements of one build; each method makes one part."""

    def __init__(
        self,
        weights: Path,
        work: Path,
        progress: Progress,
        stop: StopToken,
        images: int,
        scenes: int,
        run: Path | None,
    ) -> None:
        from glass_fast.partworld.builder import demo_config

        self.weights, self.work, self.progress, self.stop = weights, work, progress, stop
        self.images, self.scenes, self.run = images, scenes, run
        self.config: RunConfig = demo_config(weights, 0, "cpu")

    def _judge(self) -> Any:
        from glass_fast.partworld.quality.judge import train_judge

        return train_judge(self.work / "judge", 0, self.progress, self.stop)

    def judge(self) -> dict[str, Any]:
        return dict(self._judge().record["quality"])

    def captioner(self) -> dict[str, Any]:
        from glass_fast.partworld.quality.captioner import measure_captioner

        return measure_captioner(
            self.config.models.captioner,
            self.config.captions,
            2 * self.scenes,
            device="cpu",
            progress=self.progress,
            stop=self.stop,
        )

    def generator(self) -> dict[str, Any]:
        from glass_fast.partworld.quality.generated import measure_generator

        pictures = self.work / "pictures"
        return measure_generator(
            self.config,
            self._judge(),
            pictures,
            self.images,
            max(1, self.images // 5),
            1,
            self.progress,
            self.stop,
        )

    def masks(self) -> dict[str, Any]:
        from glass_fast.partworld.quality.masks import measure_masks

        return measure_masks(
            self.config, self._judge(), self.work / "masks", self.scenes, self.progress, self.stop
        )

    def _encoder(self) -> Any:
        import torch

        from glass_fast.models.loading import load_encoder

        return load_encoder(self.config.models.encoder, torch.device("cpu"))

    def encoder(self) -> dict[str, Any]:
        from glass_fast.partworld.quality.encoder import measure_encoder

        models = ["kmeans"]
        if self.run is not None:
            models += [str(self.run / "models" / f"{arm}-seed0") for arm in ("unguided", "glass")]
        return measure_encoder(
            self._encoder(), self.config.training, models, progress=self.progress, stop=self.stop
        )

    def slots(self) -> dict[str, Any]:
        """Generation from slots: closer to the own source than to a random other scene?"""
        from glass_fast.generation.compare import closer_to_source

        sources, painted = self._painted(self.scenes)
        sampling = self.config.decoder.sampling.model_dump(mode="json")
        return {"sampling": sampling, "closer": closer_to_source(self._encoder(), sources, painted)}

    def _painted(self, count: int) -> tuple[Any, Any]:
        """``count`` held-out scenes and what the decoder makes of their slots, uint8 (N, 64, 64, 3) each."""
        import numpy as np

        from glass_fast.data.prompts import sample_seed
        from glass_fast.generation.sample import sample
        from glass_fast.models.diffusion_decoder import load_decoder
        from glass_fast.models.glass import Glass
        from glass_fast.partworld.renderer import render

        settings = self.config.decoder.sampling
        model = Glass.from_pretrained(str(self.weights / "slots"), "cpu", self.config.models.encoder)
        decoder = load_decoder(str(self.weights / "slots"), model, "cpu", self.config.models.generator)
        sources = np.stack([render("test", SOURCE_SCENES + index).image for index in range(count)])
        names = [f"test-{SOURCE_SCENES + index}" for index in range(count)]
        painted = []
        self.progress.start(count, "pictures", "generation from slots")
        for start in range(0, count, settings.batch_size):
            self.stop.check("nothing of this measure is saved")
            ids = names[start : start + settings.batch_size]
            slots = model.slots(list(sources[start : start + len(ids)]), ids=ids).projected
            painted.append(
                sample(
                    decoder,
                    slots,
                    settings.steps,
                    settings.guidance_scale,
                    [sample_seed(0, name, "noise") for name in ids],
                    scheduler=settings.scheduler,
                    guidance_rescale=settings.guidance_rescale,
                )
            )
            self.progress.advance(len(ids))
        self.progress.finish()
        return sources, np.concatenate(painted)

    def sheets(self, out: Path, card: dict[str, Any]) -> None:
        """Picture sheets, loss curves and the plot of mask quality."""
        from glass_fast.models.loading import load_generator
        from glass_fast.partworld.quality import generated, sheets
        from glass_fast.partworld.quality.masks import write_plot

        judge, pictures = self._judge(), self.work / "pictures"

        def judged(kind: generated.Kind, each: int) -> generated.Pictures:
            made = generated.make_pictures(self.config, kind, each, pictures, self.progress, self.stop)
            return generated.read_pictures(made, judge)

        single, pair = judged("single", self.images), judged("pair", max(1, self.images // 5))
        loaded = load_generator(self.config.models.generator, "cpu", self.config.synthesis.dtype)
        sheets.write_sheets(out, single, pair, loaded, judge, self.config.synthesis, card)
        tiles = [sheets.Tile(image) for pair_ in zip(*self._painted(32), strict=True) for image in pair_]
        sheets.Sheet(
            [tiles[start : start + 8] for start in range(0, len(tiles), 8)],
            "Held-out renders, each beside the picture painted from its slots alone",
            column_names=("render", "from slots") * 4,
        ).save(out / "generated_from_slots.png")
        write_plot(out / "mask_quality.svg", card["qualities"]["masks"])


def lookup(qualities: dict[str, Any], path: str) -> float:
    """The figure at a dotted path."""
    value: Any = qualities
    for key in path.split("."):
        value = value[key]
    return float(value)


def shortfalls(qualities: dict[str, Any], reference: dict[str, Any]) -> list[str]:
    """Figures that lie further below the reference card's than :data:`TOLERANCES` allows, as sentences."""
    found = []
    for path, tolerance in TOLERANCES.items():
        ours, theirs = lookup(qualities, path), lookup(reference, path)
        if ours < theirs - tolerance:
            found.append(f"{path} is {ours:.3f}; expected at least {theirs:.3f} - {tolerance:.2f}")
    return found


def dump(qualities: dict[str, Any]) -> str:
    """JSON of the figures that :data:`TOLERANCES` names, for the terminal."""
    return json.dumps({path: round(lookup(qualities, path), 4) for path in TOLERANCES}, indent=2)
