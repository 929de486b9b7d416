"""Stage ``captioner``: a transformers BLIP model trained on (picture, caption) pairs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from glass_fast.data.atomic import write_bytes
from glass_fast.models.loading import ensure_torchvision
from glass_fast.partworld.builder.fitting import Fit, fit, step_rng
from glass_fast.progress import Progress, StopToken

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")
MAX_TOKENS = 24
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def build_captioner(
    folder: Path,
    work: Path,
    images: np.ndarray,
    captions: list[str],
    plan: Fit,
    seed: int,
    device: str,
    progress: Progress,
    stop: StopToken,
) -> None:
    """Train and save model and processor files; loadable by ``BlipForConditionalGeneration.from_pretrained``."""
    ensure_torchvision()
    import torch
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    words = sorted({word for caption in captions for word in re.findall(r"[a-z]+|[^a-z\s]", caption)})
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "vocab.txt", ("\n".join([*SPECIALS, *words]) + "\n").encode())
    tokenizer = BertTokenizer(str(folder / "vocab.txt"), model_max_length=MAX_TOKENS)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[DEC]"]})
    start, end = SPECIALS.index("[DEC]"), SPECIALS.index("[SEP]")
    tokens = np.asarray(
        tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, truncation=True)["input_ids"]
    )
    tokens[:, 0] = start
    torch.manual_seed(seed)
    config = BlipConfig(
        vision_config={
            "hidden_size": 96,
            "intermediate_size": 288,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 64,
            "patch_size": 8,
            "hidden_act": "gelu",
            "projection_dim": 32,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 96,
            "encoder_hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": MAX_TOKENS,
            "projection_dim": 32,
            "bos_token_id": start,
            "eos_token_id": end,
            "sep_token_id": end,
            "pad_token_id": 0,
            "label_smoothing": 0.0,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "is_decoder": True,
        },
        projection_dim=32,
        image_text_hidden_size=32,
    )
    model = BlipForConditionalGeneration(config).to(device)
    model.generation_config.update(
        bos_token_id=start, eos_token_id=end, pad_token_id=0, max_length=MAX_TOKENS
    )
    mean, std = np.array(MEAN, np.float32) * 255, np.array(STD, np.float32) * 255

    def loss_of(step: int) -> torch.Tensor:
        rng = step_rng(seed, "captioner", step)
        picked = rng.integers(len(images), size=plan.batch_size)
        batch = images[picked][:, :, ::-1] if rng.random() < 0.5 else images[picked]
        pixels = torch.from_numpy((batch.astype(np.float32) - mean) / std).permute(0, 3, 1, 2).to(device)
        text = torch.from_numpy(tokens[picked]).to(device)
        state = model.vision_model(pixels).last_hidden_state
        logits = model.text_decoder(
            input_ids=text,
            attention_mask=(text != 0).long(),
            encoder_hidden_states=state,
        ).logits[:, :-1]
        target = text[:, 1:].masked_fill(text[:, 1:] == 0, -100)
        return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), target.reshape(-1))

    fit("captioner", model, loss_of, plan, work, progress, stop)
    model.half().save_pretrained(folder)
    processor = BlipImageProcessor(
        size={"height": 64, "width": 64},
        image_mean=list(MEAN),
        image_std=list(STD),
        do_resize=True,
        do_normalize=True,
    )
    BlipProcessor(processor, tokenizer).save_pretrained(folder)
