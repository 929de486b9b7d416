"""Tiny captioners with random weights in the formats of the real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

VOCABULARY = "a an and cat dog hot house of on photo sofa the tree two umbrella with"
WORDS = VOCABULARY.split()


def _vision() -> dict[str, int]:
    return {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }


def _image_processor() -> Any:
    from transformers import BlipImageProcessorPil

    return BlipImageProcessorPil(size={"height": 32, "width": 32})


@pytest.fixture(scope="session")
def blip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BLIP: a word-piece tokenizer and a text decoder that reads the image by cross-attention."""
    import torch

    from glass_fast.models.loading import ensure_torchvision

    ensure_torchvision()
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipProcessor

    folder = tmp_path_factory.mktemp("blip")
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(entries) + "\n", "utf-8")
    tokenizer = BertTokenizer(str(folder / "vocab.txt"), additional_special_tokens=["[DEC]", "[ENC]"])
    text = {
        "vocab_size": len(entries),
        "hidden_size": 16,
        "encoder_hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": entries.index("[DEC]"),
        "pad_token_id": 0,
        "eos_token_id": entries.index("[SEP]"),
        "sep_token_id": entries.index("[SEP]"),
        "projection_dim": 8,
    }
    config = BlipConfig(text_config=text, vision_config=_vision(), projection_dim=8)
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(config)
    model.decoder_input_ids = entries.index("[DEC]")
    _sharpen(model)
    model.save_pretrained(folder)
    BlipProcessor(_image_processor(), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def blip2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BLIP-2: image encoder, Q-Former with four queries, OPT."""
    import torch

    from glass_fast.models.loading import ensure_torchvision

    ensure_torchvision()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        PreTrainedTokenizerFast,
    )

    folder = tmp_path_factory.mktemp("blip2")
    entries = ["<pad>", "<s>", "</s>", "<unk>", *WORDS, "<image>"]
    backend = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(entries)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    config = Blip2Config(
        vision_config=_vision(),
        qformer_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "encoder_hidden_size": 16,
            "vocab_size": 8,
        },
        text_config={
            "model_type": "opt",
            "vocab_size": len(entries),
            "hidden_size": 16,
            "ffn_dim": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "word_embed_proj_dim": 16,
            "max_position_embeddings": 64,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        num_query_tokens=4,
        image_token_index=entries.index("<image>"),
    )
    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration(config)
    _sharpen(model)
    model.save_pretrained(folder)
    Blip2Processor(_image_processor(), tokenizer, num_query_tokens=4).save_pretrained(folder)
    return folder


def _sharpen(model: Any) -> None:
    """Make captions differ between images: strong paths from the picture to the words, weak ones beside
    them."""
    import torch

    strong = ("crossattention", "language_projection", "patch_embedding", "query_tokens")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name.lower():
                continue
            parameter.normal_(0.0, 2.0 if any(part in name for part in strong) else 0.3)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Seven pictures: colour, grey, alpha, a tall and a three-row one, a sub-folder, one with a name to be
    cleaned."""
    from PIL import Image

    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(3)

    def noise(height: int, width: int, low: int, high: int) -> Any:
        colour = rng.integers(low, high, 3)
        return Image.fromarray(
            (colour + rng.integers(0, 20, (height, width, 3))).clip(0, 255).astype(np.uint8)
        )

    noise(40, 60, 0, 255).save(folder / "000000000139.png")
    noise(32, 32, 0, 40).save(folder / "0002.jpg")
    noise(90, 20, 200, 255).convert("L").save(folder / "0003.png")
    noise(3, 50, 0, 255).save(folder / "0004.png")
    noise(33, 47, 90, 120).convert("RGBA").save(folder / "0005.png")
    noise(48, 48, 0, 90).save(folder / "Été 1.webp", lossless=True)
    noise(30, 30, 30, 250).save(folder / "more" / "0002.png")
    return folder
