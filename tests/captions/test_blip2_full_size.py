"""BLIP-2 (OPT 2.7B) at its published size: counted without memory, and with two layers a tower really run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glass_fast.captions.captioner import Captioner
from glass_fast.models.loading import ensure_torchvision, load_captioner

WIDTH, HIDDEN, PATCH, IMAGE = 1408, 6144, 14, 224
"""EVA-CLIP ViT-g/14, 39 layers."""
QUERY, QUERIES = 768, 32
"""Q-Former: BERT base with cross-attention in every second layer."""
TEXT, FEED, VOCABULARY, POSITIONS = 2560, 10240, 50272, 2048
"""OPT 2.7B, 32 layers."""


def config(vision_layers: int, query_layers: int, text_layers: int) -> Any:
    ensure_torchvision()
    from transformers import Blip2Config

    return Blip2Config(
        vision_config={
            "hidden_size": WIDTH,
            "intermediate_size": HIDDEN,
            "num_hidden_layers": vision_layers,
            "num_attention_heads": 16,
            "patch_size": PATCH,
            "image_size": IMAGE,
        },
        qformer_config={
            "hidden_size": QUERY,
            "num_hidden_layers": query_layers,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "encoder_hidden_size": WIDTH,
            "cross_attention_frequency": 2,
        },
        text_config={
            "model_type": "opt",
            "vocab_size": VOCABULARY,
            "hidden_size": TEXT,
            "ffn_dim": FEED,
            "num_hidden_layers": text_layers,
            "num_attention_heads": 32,
            "word_embed_proj_dim": TEXT,
            "max_position_embeddings": POSITIONS,
            "pad_token_id": 1,
            "bos_token_id": 2,
            "eos_token_id": 50118,
        },
        num_query_tokens=QUERIES,
        image_token_index=50265,
    )


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def norm(width: int) -> int:
    return 2 * width


def expected_parameters(vision_layers: int, query_layers: int, text_layers: int) -> int:
    """Counted from the architecture's description: weights and biases of every layer, embeddings tied
    once."""
    tokens = (IMAGE // PATCH) ** 2 + 1
    vision = linear(3 * PATCH * PATCH, WIDTH) + WIDTH + tokens * WIDTH + norm(WIDTH)
    vision += vision_layers * (
        2 * norm(WIDTH)
        + linear(WIDTH, 3 * WIDTH)
        + linear(WIDTH, WIDTH)
        + linear(WIDTH, HIDDEN)
        + linear(HIDDEN, WIDTH)
    )
    attention = 4 * linear(QUERY, QUERY) + norm(QUERY)
    crossed = 2 * linear(QUERY, QUERY) + 2 * linear(WIDTH, QUERY) + norm(QUERY)
    feed = linear(QUERY, 3072) + linear(3072, QUERY) + norm(QUERY)
    former = norm(QUERY) + query_layers * (attention + feed) + (query_layers + 1) // 2 * crossed
    text = VOCABULARY * TEXT + (POSITIONS + 2) * TEXT + norm(TEXT)
    text += text_layers * (4 * linear(TEXT, TEXT) + linear(TEXT, FEED) + linear(FEED, TEXT) + 2 * norm(TEXT))
    return vision + former + text + QUERIES * QUERY + linear(QUERY, TEXT)


def test_parameter_count() -> None:
    """3.74 billion, as published; on the meta device, so without memory."""
    import torch

    full = config(39, 12, 32)
    from transformers import Blip2ForConditionalGeneration

    with torch.device("meta"):
        model = Blip2ForConditionalGeneration(full)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == expected_parameters(39, 12, 32)
    assert round(count / 1e9, 2) == 3.74


@pytest.fixture(scope="module")
def two_layers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """True widths, two layers a tower, bfloat16, saved as a transformers folder (0.7 GB, removed after the
    module)."""
    import torch

    small = config(2, 2, 2)
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        Blip2ForConditionalGeneration,
        Blip2Processor,
        BlipImageProcessorPil,
        PreTrainedTokenizerFast,
    )

    folder = tmp_path_factory.mktemp("blip2-wide")
    with torch.device("meta"):
        model = Blip2ForConditionalGeneration(small).to(torch.bfloat16)
    model = model.to_empty(device="cpu")
    model.tie_weights()
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            block = torch.randn(4099 + number).to(
                parameter.dtype
            )  # repeated: drawing 0.4 billion numbers takes 5 s
            scale = 1.0 if "norm" in name.lower() else 0.05
            parameter.copy_(
                block.repeat(-(-parameter.numel() // len(block)))[: parameter.numel()].view_as(parameter)
            )
            parameter.mul_(scale)
    model.save_pretrained(folder)
    words = {"<unk>": 0, "<pad>": 1, "<s>": 2, **{f"w{n}": n for n in range(3, 50265)}, "<image>": 50265}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="w50118",
        additional_special_tokens=["<image>"],
    )
    processor = BlipImageProcessorPil(size={"height": IMAGE, "width": IMAGE})
    Blip2Processor(processor, tokenizer, num_query_tokens=QUERIES).save_pretrained(folder)
    yield folder
    for path in folder.glob("*.safetensors"):  # pytest keeps the folders of its last three runs
        path.unlink()


def test_two_layers_saved_loaded_and_run(two_layers: Path) -> None:
    """Through the production loader; captions of two tokens for pictures of two sizes."""
    import torch

    model, processor = load_captioner(two_layers, "cpu", "bfloat16")
    assert sum(p.numel() for p in model.parameters()) == expected_parameters(2, 2, 2)
    assert model.dtype == torch.bfloat16 and not model.training
    captioner = Captioner(model, processor, max_new_tokens=2)
    rng = np.random.default_rng(0)
    images = [np.full((300, 200, 3), 20, np.uint8), rng.integers(0, 255, (240, 320, 3), dtype=np.uint8)]
    captions = captioner(images)
    assert [len(caption.split()) for caption in captions] == [2, 2]
    assert all(word in processor.tokenizer.get_vocab() for caption in captions for word in caption.split())
