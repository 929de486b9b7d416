"""The README card of a Glass model folder."""

from __future__ import annotations

from typing import Any

_LOSSES = {
    "unguided": "feature reconstruction only (DINOSAUR-like)",
    "semantic": "semantic guidance only: BCE with the diffusion model's masks (GLASS v1)",
    "glass": "semantic and instance guidance (GLASS v2)",
}


def _rows(pairs: list[tuple[str, Any]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in pairs)])


def model_card(config: dict[str, Any], labels: tuple[str, ...], run: dict[str, Any] | None) -> str:
    """Markdown card: base models with checksum, training data, disclosure, limits, citation.

    Args:
        config: contents of ``config.json``.
        labels: class names of the training data.
        run: contents of ``run.json``, if the model was trained here.
    """
    encoder, slots = config["encoder"], config["slot_attention"]
    grid = "x".join(str(v) for v in config["grid"])
    facts: list[tuple[str, Any]] = [
        ("encoder (frozen, not in this folder)", f"`{encoder['ref']}`, sha256 `{encoder['checksum'][:16]}`"),
        ("input", f"{encoder['resolution']} x {encoder['resolution']} pixels, {grid} tokens"),
        (
            "slots",
            f"{slots['num_slots']} of width {slots['slot_size']}, {slots['num_iterations']} iterations",
        ),
        ("decoder", "MLP, feature reconstruction" if config.get("decoder") else "none"),
        ("classes in the training prompts", ", ".join(labels) or "unknown"),
    ]
    training: list[tuple[str, Any]] = []
    if run:
        options = run.get("config", {})
        loss, source = options.get("loss", "unknown"), options.get("mask_source", "captured")
        training = [
            ("loss", f"`{loss}`: {_LOSSES.get(loss, '')}"),
            (
                "masks",
                "attention maps of the generator" if source == "captured" else "ground truth (upper bound)",
            ),
            (
                "data",
                f"{run.get('data', {}).get('samples')} images, sha256 "
                f"`{run.get('data', {}).get('hash', '')[:16]}`",
            ),
            ("steps x batch", f"{options.get('steps')} x {options.get('batch_size')}"),
            ("seed", run.get("seed")),
            ("final losses", ", ".join(f"{k} {v:.4g}" for k, v in run.get("final_losses", {}).items())),
        ]
    parts = [
        "---\nlibrary_name: glass-fast\ntags: [object-centric-learning, slot-attention, glass]\n---\n",
        "# Object discovery with slots (GLASS)\n",
        _rows(facts) + "\n",
    ]
    if training:
        parts.append("## Training\n\n" + _rows(training) + "\n")
        if source == "captured":
            parts.append(
                "The model was trained on **synthetic images**, made by a diffusion model from captions.\n"
            )
    parts += [
        "## Use\n\n```python\nfrom glass_fast import Glass\n\nmodel = "
        'Glass.from_pretrained("path/to/this/folder")\n'
        "masks = model.masks([image])  # uint8 (height, width, 3) -> (1, slots, rows, columns)\n```\n",
        "## Limits\n\nAt most one object a slot; masks have the token grid's resolution; classes are not "
        "named. Slots "
        "start from seeded noise, so another seed may give other masks. The encoder's and the generator's "
        "licences "
        "apply.\n",
        "## Citation\n\nK. Singh, S. Schaub-Meyer, S. Roth. GLASS: Guided Latent Slot Diffusion for "
        "Object-Centric "
        "Learning. CVPR 2025. arXiv:2407.17929\n",
    ]
    return "\n".join(parts)
