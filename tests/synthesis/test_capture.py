"""Streaming capture against storing every map, its memory, and its silence towards the image."""

from __future__ import annotations

import math
import weakref
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glass_fast.config.schema import CaptureConfig
from glass_fast.errors import ConfigError
from glass_fast.models.denoising import denoise, initial_noise
from glass_fast.models.schedulers import build_scheduler, set_steps
from glass_fast.synthesis.capture import AttentionCapture
from glass_fast.synthesis.measure import capture_maps
from glass_fast.synthesis.text import class_columns, encode_text, text_row


class StoreEverything:
    """Brute force: every probability tensor of every layer and step, kept in lists (64x64 self maps left out).

    Works from the inputs of the attention modules by hooks, so it shares no code with the processors.
    """

    def __init__(
        self, unet: Any, class_states: torch.Tensor, conditional: slice, largest: int = 1024
    ) -> None:
        from diffusers.models.attention_processor import Attention

        self.maps: list[tuple[str, torch.Tensor]] = []
        self.class_states, self.conditional, self.largest = class_states, conditional, largest
        self.hooks = [
            module.register_forward_pre_hook(self.hook, with_kwargs=True)
            for module in unet.modules()
            if isinstance(module, Attention)
        ]

    def hook(self, module: Any, args: Any, kwargs: Any) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        cross = kwargs.get("encoder_hidden_states") is not None
        if not cross and states.shape[1] > self.largest:
            return
        states = states[self.conditional]
        query, key = module.to_q(states), module.to_k(self.class_states if cross else states)
        width = query.shape[-1] // module.heads
        heads = []
        for head in range(module.heads):
            part = slice(head * width, (head + 1) * width)
            logits = query[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(width)
            exponentials = torch.exp(logits - logits.max(-1, keepdim=True).values)
            heads.append(exponentials / exponentials.sum(-1, keepdim=True))
        self.maps.append(("cross" if cross else "self", torch.stack(heads, 1)))

    def mean(self, kind: str, tokens: int) -> torch.Tensor:
        stored = [maps for name, maps in self.maps if name == kind and maps.shape[2] == tokens]
        total = sum(maps.double().mean(1) for maps in stored)
        assert isinstance(total, torch.Tensor)
        return total / len(stored)

    def close(self) -> None:
        for handle in self.hooks:
            handle.remove()


def rows_of(parts: Any, tiny_sd: ModuleType, indices: tuple[int, ...], length: int) -> list[Any]:
    prompts = tiny_sd.prompts()
    return [text_row(parts.tokenizer, length, prompts[index], "class_prompt") for index in indices]


def encoded(parts: Any, texts: list[str], length: int) -> torch.Tensor:
    return encode_text(parts.tokenizer, parts.text_encoder, texts, length)


@pytest.mark.parametrize(
    ("shape", "widths", "groups", "steps"),
    [
        ("sd15", (32, 64, 128, 128), 32, 2),
        ("sd21", (40, 80, 160, 160), 8, 1),
    ],
)
@torch.inference_mode()
def test_streaming_equals_storing_every_map(
    tiny_sd: ModuleType, shape: str, widths: tuple[int, ...], groups: int, steps: int
) -> None:
    """SD layouts at true resolutions (64x64 latents, 77 tokens), guidance on, two different prompts."""
    length = 77
    parts = tiny_sd.generator(tiny_sd.unet_config(shape, widths, 32, 64, groups), max_length=length)
    rows = rows_of(parts, tiny_sd, (0, 3), length)
    assert [len(row.spans) for row in rows] == [2, 2] and rows[0].probe != rows[1].probe
    columns = class_columns([row.spans for row in rows], length, 3)  # the third class is padding
    context, probe = (
        encoded(parts, [getattr(row, name) for row in rows], length) for name in ("prompt", "probe")
    )
    capture = AttentionCapture(parts.unet, (64, 64), CaptureConfig())
    brute = StoreEverything(parts.unet, probe, slice(2, 4))
    scheduler = build_scheduler("ddim", parts.scheduler_config)
    set_steps(scheduler, steps, "cpu")
    generators = [torch.Generator().manual_seed(index) for index in range(2)]
    with capture.attached():
        capture.begin(slice(2, 4), columns, probe)
        denoise(
            parts.unet,
            scheduler,
            initial_noise(generators, 4, (64, 64)),
            context,
            encoded(parts, [""], length),
            generators,
            guidance_scale=7.5,
            capture=capture,
        )
        maps = capture.finish()
    brute.close()
    assert len(brute.maps) == steps * (16 + 11)  # all 16 cross layers, and the 11 self layers below 64x64
    assert (
        maps.self_ is not None and maps.self_.shape == (2, 1024, 1024) and maps.cross.shape == (2, 3, 16, 16)
    )
    wanted_self = brute.mean("self", 1024)
    probabilities = brute.mean("cross", 256)
    assert relative(maps.self_, wanted_self) <= 1e-5  # rounding of float32 sums; measured below 1e-6
    for row, sample in enumerate(rows):
        for index, span in enumerate(sample.spans):
            wanted = probabilities[row][:, list(span)].mean(-1).reshape(16, 16)
            assert relative(maps.cross[row, index], wanted) <= 1e-5
        assert not maps.cross[row, 2].any()
    assert relative(maps.self_[0], wanted_self[1]) > 1e-3, "the two prompts must give different maps"
    torch.testing.assert_close(maps.self_.sum(-1), torch.ones(2, 1024), rtol=0, atol=1e-5)


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference over the largest value, and the Frobenius ratio: the worse of both."""
    difference = got.double() - wanted
    return float(max(difference.abs().max() / wanted.abs().max(), difference.norm() / wanted.norm()))


CONFIG = CaptureConfig(self_size=16, cross_size=8)


def run(
    parts: Any,
    tiny_sd: ModuleType,
    config: CaptureConfig | None,
    steps: int = 4,
    probe: bool = True,
    scheduler: str = "ddim",
    guidance: float = 3.0,
) -> tuple[torch.Tensor, Any]:
    rows = rows_of(parts, tiny_sd, (0, 1), 16)
    columns = class_columns([row.spans for row in rows], 16, 2)
    context, states = (
        encoded(parts, [getattr(row, name) for row in rows], 16) for name in ("prompt", "probe")
    )
    built = build_scheduler(scheduler, parts.scheduler_config)
    set_steps(built, steps, "cpu")
    generators = [torch.Generator().manual_seed(index) for index in range(2)]
    noise = initial_noise(generators, 4, (16, 16))
    negative = encoded(parts, ["ugly"], 16) if guidance != 1.0 else None
    arguments = (parts.unet, built, noise, context, negative, generators)
    if config is None:
        return denoise(*arguments, guidance_scale=guidance), None
    capture = AttentionCapture(parts.unet, (16, 16), config)
    first = 2 if negative is not None else 0
    with capture.attached():
        capture.begin(slice(first, first + 2), columns, states if probe else None)
        latents = denoise(*arguments, guidance_scale=guidance, capture=capture)
        return latents, capture.finish()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@torch.inference_mode()
def test_the_image_is_bit_equal_with_and_without_capture(
    tiny_sd: ModuleType, tiny: Any, guidance: float
) -> None:
    before = {name: type(processor) for name, processor in tiny.unet.attn_processors.items()}
    plain, _ = run(tiny, tiny_sd, None, guidance=guidance)
    watched, _ = run(tiny, tiny_sd, CONFIG, guidance=guidance)
    assert torch.equal(plain, watched)
    assert {name: type(processor) for name, processor in tiny.unet.attn_processors.items()} == before


def test_only_the_wanted_layers_get_a_processor(tiny: Any) -> None:
    capture = AttentionCapture(
        tiny.unet,
        (16, 16),
        CaptureConfig(
            self_size=16,
            cross_size=16,
            self_layers=("up_blocks.1.attentions.0",),
            cross_layers=("down_blocks.0",),
        ),
    )
    with capture.attached():
        changed = [
            name
            for name, p in tiny.unet.attn_processors.items()
            if type(p).__module__.startswith("glass_fast")
        ]
    assert sorted(changed) == [
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor",
        "up_blocks.1.attentions.0.transformer_blocks.0.attn1.processor",
    ]


@torch.inference_mode()
def test_timestep_range_selects_steps(tiny_sd: ModuleType, tiny: Any) -> None:
    """DDIM with 4 steps visits 751, 501, 251, 1: the full mean is the mean of the two halves."""
    _, whole = run(tiny, tiny_sd, CONFIG)
    _, early = run(tiny, tiny_sd, CONFIG.model_copy(update={"timestep_min": 501}))
    _, late = run(tiny, tiny_sd, CONFIG.model_copy(update={"timestep_max": 501}))
    torch.testing.assert_close((early.cross + late.cross) / 2, whole.cross)
    torch.testing.assert_close((early.self_ + late.self_) / 2, whole.self_)
    assert relative(early.self_, late.self_.double()) > 1e-4


def test_empty_timestep_range_is_refused_with_the_steps(tiny: Any) -> None:
    capture = AttentionCapture(tiny.unet, (16, 16), CONFIG.model_copy(update={"timestep_min": 990}))
    with pytest.raises(ConfigError, match=r"\[990, 1000\).*751, 501"):
        capture.require_steps([751.0, 501.0])


@torch.inference_mode()
def test_probe_prompt_reads_the_prompts_own_columns(tiny_sd: ModuleType, tiny: Any) -> None:
    """Probing with the prompt's states through the class-prompt path must equal the layer's own keys."""
    rows = rows_of(tiny, tiny_sd, (0, 1), 16)
    _, own = run(tiny, tiny_sd, CONFIG, probe=False)
    columns = class_columns([row.spans for row in rows], 16, 2)
    context = encoded(tiny, [row.prompt for row in rows], 16)
    capture = AttentionCapture(tiny.unet, (16, 16), CONFIG)
    built = build_scheduler("ddim", tiny.scheduler_config)
    set_steps(built, 4, "cpu")
    generators = [torch.Generator().manual_seed(index) for index in range(2)]
    with capture.attached():
        capture.begin(slice(2, 4), columns, context)
        denoise(
            tiny.unet,
            built,
            initial_noise(generators, 4, (16, 16)),
            context,
            encoded(tiny, ["ugly"], 16),
            generators,
            guidance_scale=3.0,
            capture=capture,
        )
        probed = capture.finish()
    torch.testing.assert_close(own.cross, probed.cross)


class LiveBytes(TorchDispatchMode):
    """Bytes of all live tensors made inside the block, by following the life of every storage."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def _freed(self, address: int, size: int) -> None:
        self.live -= size
        self.known.discard(address)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known:
                    self.known.add(storage._cdata)
                    self.live += storage.nbytes()
                    self.peak = max(self.peak, self.live)
                    weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        return result


def peak_bytes(parts: Any, tiny_sd: ModuleType, steps: int, hoard: bool = False) -> int:
    """Peak of a captured run; ``hoard`` stores all maps as the brute force does, to prove that the meter sees it."""
    with torch.inference_mode(), LiveBytes() as meter:
        brute = StoreEverything(parts.unet, encoded(parts, ["a", "a"], 16), slice(2, 4)) if hoard else None
        run(parts, tiny_sd, CONFIG, steps=steps)
        if brute is not None:
            brute.close()
    return meter.peak


def test_peak_memory_does_not_grow_with_steps(tiny_sd: ModuleType, tiny: Any) -> None:
    few, many = peak_bytes(tiny, tiny_sd, 5), peak_bytes(tiny, tiny_sd, 50)
    assert abs(many - few) <= 0.01 * few
    maps = 2 * 256 * 256 * 4
    assert few > maps, "the meter must see the accumulator"
    assert peak_bytes(tiny, tiny_sd, 5, hoard=True) > few + 5 * maps, "the meter must see hoarded maps"


def test_unsupported_attention_is_refused(tiny: Any) -> None:
    tiny.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.residual_connection = True
    with pytest.raises(ConfigError, match="residual_connection"):
        AttentionCapture(tiny.unet, (16, 16), CONFIG)


def test_capture_maps_of_given_pictures(tiny_sd: ModuleType, tiny: Any) -> None:
    """Mean over timesteps = mean of single timesteps with the same noise; images and their latents agree."""
    images = torch.randint(
        0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    texts = {
        "prompts": ["a car; car boat", "tree"],
        "class_prompts": ["car boat", "tree"],
        "classes": [("car", "boat"), ("tree",)],
    }
    from glass_fast.models.denoising import encode

    maps = capture_maps(tiny, images, **texts, timesteps=[400], config=CONFIG)
    assert maps.cross.shape == (2, 2, 8, 8) and not maps.cross[1, 1].any() and maps.cross[1, 0].any()
    with torch.inference_mode():
        latents = encode(tiny.vae, images)
    same = capture_maps(tiny, latents=latents, **texts, timesteps=[400], config=CONFIG)
    assert torch.equal(maps.cross, same.cross)
    other = capture_maps(tiny, latents=latents, **texts, timesteps=[400], config=CONFIG, seeds=[5, 6])
    assert not torch.equal(maps.cross, other.cross)
    quiet = capture_maps(tiny, latents=latents, **texts, timesteps=[0, 0], config=CONFIG, want_self=False)
    assert quiet.self_ is None
    with pytest.raises(ConfigError, match="exactly one of images and latents"):
        capture_maps(tiny, **texts, timesteps=[1])
