"""Stage ``generator``: text encoder and UNet of the tiny Stable-Diffusion folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from glass_fast.models.loading import ensure_torchvision
from glass_fast.partworld.builder.autoencoder import to_tensor
from glass_fast.partworld.builder.fitting import fit, step_rng
from glass_fast.partworld.builder.targets import GeneratorPlan
from glass_fast.partworld.builder.text import MAX_TOKENS
from glass_fast.progress import Progress, StopToken

TEXT_WIDTH = 64


def class_names(caption: str) -> list[str]:
    """Class names in the order of a renderer caption (the words of the caption, never a mask)."""
    from glass_fast.partworld.renderer import plural
    from glass_fast.partworld.shapes import CLASSES

    found = {}
    for name in CLASSES:
        places = [caption.find(form) for form in (plural(name), name) if form in caption]
        if places:
            found[name] = min(places)
    return sorted(found, key=found.__getitem__)


def prompt_forms(caption: str) -> list[str]:
    """What the text encoder has to understand: nothing, the caption, "caption; classes", the classes alone."""
    names = " ".join(class_names(caption))
    return ["", caption, f"{caption}; {names}", names]


_FORM_SHARES = (0.10, 0.25, 0.45, 0.20)


def encode_pictures(vae_folder: Path, images: np.ndarray, device: str, progress: Progress) -> np.ndarray:
    """float16 (count, channels, h, w): scaled latent means of every picture."""
    ensure_torchvision()
    import torch
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(vae_folder).to(device, memory_format=torch.channels_last).eval()
    blocks = []
    progress.start(len(images), "images", "latents")
    for start in range(0, len(images), 128):
        with torch.no_grad():
            mean = vae.encode(to_tensor(images[start : start + 128]).to(device)).latent_dist.mean
        blocks.append((mean * vae.config.scaling_factor).half().cpu().numpy())
        progress.advance(len(mean))
    progress.finish()
    return np.concatenate(blocks)


def build_generator(
    folder: Path,
    work: Path,
    images: np.ndarray,
    captions: list[str],
    settings: GeneratorPlan,
    seed: int,
    device: str,
    progress: Progress,
    stop: StopToken,
) -> None:
    """Train on (picture, caption) pairs with v-prediction and save text_encoder/, unet/ and scheduler/.

    ``folder`` already holds tokenizer/ and vae/.
    """
    ensure_torchvision()
    import torch
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    cache = work / "latents.npy"
    if not cache.exists():
        work.mkdir(parents=True, exist_ok=True)
        np.save(work / "latents.tmp.npy", encode_pictures(folder / "vae", images, device, progress))
        (work / "latents.tmp.npy").replace(cache)
    latents = np.load(cache)
    plan, levels = settings.fit, len(settings.channels)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    forms = [prompt_forms(caption) for caption in captions]
    flat = [text for group in forms for text in group]
    tokens = np.asarray(tokenizer(flat, padding="max_length", truncation=True)["input_ids"]).reshape(
        len(forms), 4, -1
    )

    torch.manual_seed(seed)
    # No transformer layer: with one word per class, unmixed tokens bind words to places within minutes,
    # while a causal layer lets a later class word carry the earlier ones into its attention map.
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=0,
            num_attention_heads=2,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    # diffusers' attention_head_dim is the number of heads for this class.
    unet = UNet2DConditionModel(
        sample_size=latents.shape[-1],
        in_channels=latents.shape[1],
        out_channels=latents.shape[1],
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        block_out_channels=settings.channels,
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=16,
    )
    scheduler = DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=0,
        timestep_spacing="trailing",
    )
    both = torch.nn.ModuleDict({"unet": unet, "text": text}).to(device)
    both = both.to(memory_format=torch.channels_last)

    def loss_of(step: int) -> torch.Tensor:
        rng = step_rng(seed, "generator", step)
        picked = rng.integers(len(latents), size=plan.batch_size)
        form = rng.choice(4, size=plan.batch_size, p=_FORM_SHARES)
        clean = torch.from_numpy(latents[picked]).float().to(device)
        noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32)).to(device)
        # Logit-normal times: most of the learning signal lies at middle noise levels.
        share = 1 / (1 + np.exp(-(0.3 + 1.1 * rng.standard_normal(plan.batch_size))))
        times = torch.from_numpy((share * 1000).astype(np.int64).clip(0, 999)).to(device)
        noisy = scheduler.add_noise(clean, noise, times)
        target = scheduler.get_velocity(clean, noise, times)
        context = text(torch.from_numpy(tokens[picked, form]).to(device)).last_hidden_state
        return (unet(noisy, times, context).sample - target).square().mean()

    fit("generator", both, loss_of, plan, work, progress, stop)
    unet.half().save_pretrained(folder / "unet")
    text.half().save_pretrained(folder / "text_encoder")
    scheduler.save_pretrained(folder / "scheduler")
