"""Contact sheets of what the models make: PNG pictures of at most 400 kB, and loss curves as SVG.

The first pictures of a set are shown, never chosen ones. A red frame means that the judge does not see a named class.
"""

from __future__ import annotations

import colorsys
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glass_fast.data.atomic import make_directory, write_bytes
from glass_fast.engine.overlay import outlines
from glass_fast.partworld.shapes import CLASSES

if TYPE_CHECKING:
    from PIL import Image

    from glass_fast.models.loading import Generator
    from glass_fast.partworld.quality.generated import Pictures
    from glass_fast.partworld.quality.judge import Judge
    from glass_fast.partworld.renderer import Scene

MAX_BYTES = 400_000
SHOWN = 64
NAMES = tuple(CLASSES)
_SCALE = 2
_GAP = 6
_LINE = 18
_INK, _RED, _PAPER = (27, 36, 50), (214, 39, 40), (255, 255, 255)
_TINT = 0.6
_FRAME = "red frame: a classifier trained on renders does not see (all of) what was asked for"


def class_colours() -> NDArray[np.uint8]:
    """Colours of labels 0..255, uint8 (256, 3): ten bright hues for the classes, grey for uncertain."""
    colours = np.full((256, 3), 128, np.uint8)
    for index in range(len(NAMES)):
        rgb = colorsys.hsv_to_rgb(index / len(NAMES), 1.0 if index % 2 else 0.75, 0.72 if index % 2 else 1.0)
        colours[index + 1] = [round(255 * value) for value in rgb]
    return colours


def tinted(image: NDArray[np.uint8], labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Picture (H, W, 3) in grey with its labels (H, W) in the class colours and outlined; 0 is not tinted."""
    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    inside = labels > 0
    grey[inside] = (1 - _TINT) * grey[inside] + _TINT * class_colours()[labels[inside]]
    grey[outlines(labels) & inside] = 255
    return grey.round().astype(np.uint8)


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet: uint8 (H, W, 3), a line of text below, a red frame."""

    image: NDArray[np.uint8]
    text: str = ""
    framed: bool = False


@dataclass(frozen=True)
class Sheet:
    """Rows of tiles with a title, row names on the left, column names above and a note below."""

    rows: Sequence[Sequence[Tile]]
    title: str
    row_names: Sequence[str] = ()
    column_names: Sequence[str] = ()
    note: str = ""
    legend: Sequence[str] = field(default_factory=tuple)
    """Class names whose colours are explained below the tiles."""

    def draw(self) -> Image.Image:
        """The sheet as an RGB picture."""
        from PIL import Image, ImageDraw, ImageFont

        font, small = ImageFont.load_default(13), ImageFont.load_default(11)
        side = max(tile.image.shape[0] for row in self.rows for tile in row) * _SCALE
        texts = any(tile.text for row in self.rows for tile in row)
        left = _GAP + (max((int(font.getlength(name)) for name in self.row_names), default=-_GAP) + _GAP)
        top = _GAP + _LINE + (_LINE if self.column_names else 0)
        pitch_x, pitch_y = side + _GAP, side + _GAP + (_LINE if texts else 0)
        columns = max(len(row) for row in self.rows)
        foot = _LINE * (bool(self.note) + bool(self.legend)) + _GAP
        words = max(font.getlength(self.title), font.getlength(self.note)) + 2 * _GAP
        width = max(left + columns * pitch_x, int(words), 110 * min(len(self.legend), 5) + 2 * _GAP)
        foot += _LINE * (max(len(self.legend) - 1, 0) // 5)
        height = top + len(self.rows) * pitch_y + foot
        canvas = Image.new("RGB", (width, height), _PAPER)
        draw = ImageDraw.Draw(canvas)
        draw.text((_GAP, _GAP // 2), self.title, fill=_INK, font=font)
        for index, name in enumerate(self.column_names):
            draw.text((left + index * pitch_x, top - _LINE), name, fill=_INK, font=font)
        for line, row in enumerate(self.rows):
            y = top + line * pitch_y
            if line < len(self.row_names):
                draw.text((_GAP, y + side // 2 - 8), self.row_names[line], fill=_INK, font=font)
            for place, tile in enumerate(row):
                x = left + place * pitch_x
                picture = Image.fromarray(tile.image).resize((side, side), Image.Resampling.NEAREST)
                canvas.paste(picture, (x, y))
                if tile.framed:
                    draw.rectangle((x - 2, y - 2, x + side + 1, y + side + 1), outline=_RED, width=2)
                if tile.text:
                    # a text may run on below the following tiles that have none
                    free = next(
                        (n for n, other in enumerate(row[place + 1 :]) if other.text), len(row) - place - 1
                    )
                    text = _cut(tile.text, small, side + free * pitch_x)
                    draw.text((x, y + side + 2), text, fill=_INK, font=small)
        y = top + len(self.rows) * pitch_y
        for index, name in enumerate(self.legend):
            x, at = _GAP + 110 * (index % 5), y + _LINE * (index // 5)
            colour = tuple(int(v) for v in class_colours()[NAMES.index(name) + 1])
            draw.rectangle((x, at + 3, x + 10, at + 13), fill=colour)
            draw.text((x + 14, at), name, fill=_INK, font=font)
        if self.note:
            draw.text((_GAP, height - _LINE - 2), self.note, fill=_INK, font=font)
        return canvas

    def save(self, path: Path) -> Path:
        """Write the sheet as PNG of at most :data:`MAX_BYTES`; returns ``path``."""
        make_directory(Path(path).parent)
        write_bytes(path, png_within(self.draw(), MAX_BYTES))
        return Path(path)


def _cut(text: str, font: Any, width: int) -> str:
    while text and font.getlength(text) > width:
        text = text[:-1]
    return text


def png_within(image: Image.Image, limit: int) -> bytes:
    """PNG bytes of at most ``limit``: as they are when that fits, else with rounder colours (7 to 4 bits a channel),
    at last with a palette (64 or 16 colours).

    Raises:
        ValueError: not even 16 colours fit.
    """
    from PIL import Image as Raster

    pixels = np.asarray(image).astype(np.uint16)
    steps = [1 << lost for lost in range(5)]
    smaller = [((pixels + step // 2) // step * step).clip(0, 255).astype(np.uint8) for step in steps]
    versions = itertools.chain(
        (Raster.fromarray(part) for part in smaller),
        (image.quantize(colours, dither=Raster.Dither.NONE) for colours in (64, 16)),
    )
    for version in versions:
        buffer = io.BytesIO()
        version.save(buffer, "PNG", optimize=True)
        if buffer.tell() <= limit:
            return buffer.getvalue()
    raise ValueError(f"a sheet of {image.size} does not fit {limit} bytes; show fewer pictures")


def single_sheet(pictures: Pictures, title: str, count: int = SHOWN) -> Sheet:
    """``count`` pictures of single-class prompts, a row a class (the first classes get one more where it does not
    divide)."""
    rows = []
    for number in range(len(NAMES)):
        wanted = count // len(NAMES) + (number < count % len(NAMES))
        chosen = [i for i, classes in enumerate(pictures.prompted) if classes == (number,)][:wanted]
        rows.append([Tile(pictures.images[i], framed=not pictures.found[i, number]) for i in chosen])
    names, rows = _nonempty(rows)
    return Sheet(rows, title, row_names=names, note=_FRAME)


def _nonempty(rows: list[list[Tile]]) -> tuple[list[str], list[list[Tile]]]:
    kept = [(name, row) for name, row in zip(NAMES, rows, strict=True) if row]
    return [name for name, _ in kept], [row for _, row in kept]


def pair_sheet(pictures: Pictures, title: str, count: int = SHOWN, columns: int = 8) -> Sheet:
    """The first ``count`` pictures of two-class prompts with their classes in the order of the prompt."""
    tiles = [
        Tile(
            pictures.images[i],
            ", ".join(NAMES[c] for c in pictures.prompted[i]),
            not pictures.found[i, list(pictures.prompted[i])].all(),
        )
        for i in range(min(count, len(pictures.images)))
    ]
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    return Sheet(rows, title, note=_FRAME)


def mask_sheet(pictures: Pictures, title: str, count: int = 24, groups: int = 3) -> Sheet:
    """``count`` pictures, evenly spread over the set: picture, captured mask, the judge's segmentation."""
    chosen = np.unique(np.linspace(0, len(pictures.images) - 1, count).round().astype(int))
    rows: list[list[Tile]] = []
    for place, index in enumerate(chosen):
        if place % groups == 0:
            rows.append([])
        image = pictures.images[index]
        names = ", ".join(NAMES[c] for c in pictures.prompted[index])
        rows[-1] += [
            Tile(image, names),
            Tile(tinted(image, pictures.masks[index])),
            Tile(tinted(image, pictures.labels[index])),
        ]
    columns = ("generated", "captured mask", "judge") * min(groups, len(chosen))
    return Sheet(rows, title, column_names=columns, legend=NAMES, note="grey tint: uncertain")


def render_sheet(
    scenes: Sequence[Scene],
    captured: NDArray[np.uint8],
    judged: NDArray[np.uint8],
    title: str,
    groups: int = 2,
) -> Sheet:
    """Renders: picture, captured mask (of the noised picture), the judge's segmentation, true mask."""
    rows: list[list[Tile]] = []
    for place, (scene, mask, labels) in enumerate(zip(scenes, captured, judged, strict=True)):
        if place % groups == 0:
            rows.append([])
        rows[-1] += [Tile(scene.image, scene.caption.removeprefix("a photo of "))]
        rows[-1] += [Tile(tinted(scene.image, m)) for m in (mask, labels, scene.classes.astype(np.uint8))]
    columns = ("render", "captured mask", "judge", "truth") * min(groups, len(scenes))
    return Sheet(rows, title, column_names=columns, legend=NAMES, note="grey tint: uncertain")


def captured_on_renders(
    generator: Generator, scenes: Sequence[Scene], config: Any, timesteps: Sequence[int] = (300, 450, 600)
) -> NDArray[np.uint8]:
    """Masks uint8 (N, 64, 64) captured on noised renders with their true captions.

    Args:
        generator: loaded generator.
        scenes: renders.
        config: :class:`glass_fast.config.schema.SynthesisConfig`.
        timesteps: noise levels whose maps are averaged.
    """
    import torch

    from glass_fast.data.spans import join_classes, join_prompt
    from glass_fast.partworld.builder.generator import class_names
    from glass_fast.synthesis.masks import class_maps, mask_from_maps, soft_maps
    from glass_fast.synthesis.measure import capture_maps

    names = [class_names(scene.caption) for scene in scenes]
    images = np.stack([scene.image for scene in scenes])
    maps = capture_maps(
        generator,
        images,
        prompts=[join_prompt(scene.caption, part) for scene, part in zip(scenes, names, strict=True)],
        class_prompts=[join_classes(part) for part in names],
        classes=names,
        timesteps=timesteps,
        config=config.capture,
    )
    masks = config.masks
    soft = soft_maps(class_maps(maps, masks.tau), masks, torch.from_numpy(images))[0]
    return np.stack(
        [
            mask_from_maps(
                soft[row, : len(part)],
                [NAMES.index(name) + 1 for name in part],
                scenes[row].image.shape[:2],
                masks.threshold,
                masks.uncertain_threshold,
            )
            for row, part in enumerate(names)
        ]
    )


def loss_chart(card: dict[str, Any], columns: int = 2) -> str:
    """Loss curves of all stages of a build's card (``stages`` -> ``losses`` [[step, loss], ...]) as one SVG text."""
    from glass_fast.report.charts import Series, line_chart

    width, height = 380, 220
    charts = []
    for name, entry in card["stages"].items():
        losses = entry.get("losses") or []
        if losses:
            line = Series(name, [step for step, _ in losses], [loss for _, loss in losses], "#0072b2")
            charts.append(str(line_chart([line], name, "step", width=width, height=height, log_y=True)))
    rows = -(-len(charts) // columns)
    total = f'width="{columns * width}" height="{max(rows, 1) * height}"'
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" {total} font-family="sans-serif">']
    out.append(f'<title>Loss curves</title><rect {total} fill="#fff"/>')
    for index, chart in enumerate(charts):
        place = f'x="{index % columns * width}" y="{index // columns * height}" height="{height}"'
        out.append(chart.replace("<svg ", f"<svg {place} ", 1))
    return "\n".join([*out, "</svg>", ""])


def write_sheets(
    out: Path,
    single: Pictures,
    pair: Pictures,
    generator: Generator,
    judge: Judge,
    config: Any,
    card: dict[str, Any] | None = None,
) -> list[Path]:
    """Write all sheets: generated_single.png, generated_pair.png, generated_masks.png, render_masks.png and, with a
    card, losses.svg.

    Args:
        out: folder.
        single: judged pictures of single-class prompts.
        pair: judged pictures of pairs.
        generator: for the captured masks of renders.
        judge: for their segmentation.
        config: synthesis settings.
        card: of the build.

    Returns:
        Paths of the files.
    """
    from glass_fast.partworld.quality.generated import joined
    from glass_fast.partworld.renderer import render

    scenes = [render("test", 3_000 + index) for index in range(16)]
    captured = captured_on_renders(generator, scenes, config)
    judged = judge.segment(np.stack([scene.image for scene in scenes]))
    out = Path(out)
    files = [
        single_sheet(single, "Generated from single-class prompts").save(out / "generated_single.png"),
        pair_sheet(pair, "Generated from two-class prompts").save(out / "generated_pair.png"),
        mask_sheet(joined([single, pair]), "Captured masks of generated pictures").save(
            out / "generated_masks.png"
        ),
        render_sheet(scenes, captured, judged, "Captured masks of noised held-out renders").save(
            out / "render_masks.png"
        ),
    ]
    if card is not None:
        write_bytes(out / "losses.svg", loss_chart(card).encode())
        files.append(out / "losses.svg")
    return files
