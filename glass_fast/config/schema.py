"""Typed configuration of every stage; unknown keys and values out of range are errors.

Fields that the GLASS paper leaves open are options whose defaults follow the method notes
(Dataset Diffusion for masks, LSD for slot attention); presets override them per world.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
Arm = Literal["unguided", "semantic", "glass", "upper_bound"]
"""What ``run`` compares: the three losses, and the upper bound that sees true masks."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelsConfig(_Section):
    """Where the pretrained parts come from: ``partworld:NAME``, a local folder, or a hub id (tried in this order)."""

    generator: str = "partworld:generator"
    """Stable-Diffusion folder (diffusers layout) that makes images and masks."""
    encoder: str = "partworld:encoder"
    """timm folder (config.json + model.safetensors) or timm model name of the frozen feature encoder."""
    captioner: str = "partworld:captioner"
    """BLIP or BLIP-2 folder (transformers layout)."""
    decoder: str | None = None
    """Stable-Diffusion folder that the slot-conditioned decoder of phase 2 starts from (None: the generator)."""


class CaptionsConfig(_Section):
    """Real images or texts -> prompt table."""

    source: Literal["captioner", "provided", "labels", "list"] = "captioner"
    """captioner: caption ``images``; provided: read ``file``; labels: ground-truth classes in ``file``
    (COCO instances JSON, or a folder of class masks); list: the names in ``classes``."""
    vocabulary: str = "partworld"
    """Name of a built-in label set (partworld, voc, coco) or a text file with one class name a line."""
    images: str | None = None
    """Folder of real images (source captioner). ``partworld:train`` renders unlabelled PartWorld pictures."""
    file: str | None = None
    """COCO captions or instances JSON, text file (a caption a line), or parquet with a ``caption`` column."""
    classes: tuple[str, ...] = ()
    """Entries of source list: a class name, or several joined by ``+`` for one prompt ("dog + cat")."""
    combine: PositiveInt = 1
    """Source list: also every combination of up to this many of the single names."""
    limit: PositiveInt | None = None
    """At most so many prompts (source captioner: images)."""
    batch_size: PositiveInt = 16
    max_new_tokens: PositiveInt = 30
    num_beams: PositiveInt = 1
    max_classes: PositiveInt = 6
    """Classes kept per prompt, in the order of the caption."""
    keep_without_classes: bool = False
    """Keep captions that name no class of the vocabulary (their masks would be all background)."""
    max_pixels: PositiveInt = 64_000_000
    """Larger images are quarantined before they are decoded."""
    max_bytes: PositiveInt = 64 * 2**20


class CaptureConfig(_Section):
    """Which attention maps are averaged (paper section 3; Dataset Diffusion flags self-res 32, cross-res 16)."""

    self_size: PositiveInt | None = None
    """Side of the self-attention maps in tokens; default latent / 2."""
    cross_size: PositiveInt | None = None
    """Side of the cross-attention maps in tokens; default latent / 4."""
    self_layers: tuple[str, ...] | None = None
    """Substrings of attention-module names to use (None: all layers of that size)."""
    cross_layers: tuple[str, ...] | None = None
    timestep_min: Annotated[int, Field(ge=0)] = 0
    timestep_max: PositiveInt = 1000
    """Maps are averaged over denoising steps whose training timestep lies in [min, max)."""
    probe: Literal["class_prompt", "prompt"] = "class_prompt"
    """Read class columns from a separate class prompt (Dataset Diffusion) or from the prompt itself."""

    @model_validator(mode="after")
    def _ordered(self) -> CaptureConfig:
        if self.timestep_min >= self.timestep_max:
            raise ValueError("timestep_min must be below timestep_max")
        return self


class MasksConfig(_Section):
    """Maps -> label mask (method notes 2.1)."""

    tau: Annotated[int, Field(ge=0, le=16)] = 4
    """Power of the self-attention map applied to the class maps."""
    threshold: Share = 0.6
    uncertain_threshold: Share = 0.5
    """Pixels whose best class lies in [uncertain_threshold, threshold) become 255."""
    absence_ratio: Annotated[float, Field(ge=0.0)] = 0.0
    """Absence guard: a class whose raw peak is below this share of ``absence_peaks[class]`` (or of the
    highest raw peak in the image when the class is not listed) is dropped; 0 switches the guard off."""
    absence_peaks: dict[str, float] = Field(default_factory=dict)
    competition: Annotated[float, Field(ge=0.0)] = 0.0
    """Above 0: every class map is divided by the sum of the image's class maps plus this times their highest value, so
    that a strong part of an object does not dwarf the rest of it; 0: Dataset Diffusion."""
    floor: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of a soft map's pixels that become 0 when it is brought to [0, 1]; 0: only its minimum (Dataset
    Diffusion). A class that covers more than the rest of the picture would lose some."""
    refine: Literal["none", "pamr"] = "none"
    """Refine the soft maps with the picture before they are stored: none (Dataset Diffusion) or pamr
    (pixel-adaptive mask refinement, Araslanov & Roth, CVPR 2020)."""
    refine_size: PositiveInt = 128
    """Longer side of the refined and stored soft maps; a larger one than the picture's means the picture's."""
    refine_iterations: Annotated[int, Field(ge=1, le=100)] = 10
    refine_dilations: Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=8)] = (
        1,
        2,
        4,
        8,
        12,
        24,
    )
    """Distances of the 8-neighbourhoods that are averaged, in pixels of the refined maps."""
    refine_weight: Annotated[float, Field(gt=0.0)] = 0.1
    """Differences of colour count in units of this times the local standard deviation; less: sharper edges."""

    @model_validator(mode="after")
    def _ordered(self) -> MasksConfig:
        if self.uncertain_threshold > self.threshold:
            raise ValueError("uncertain_threshold must not exceed threshold")
        return self


class QualityConfig(_Section):
    """Flags of a synthetic sample; flagged samples are kept and counted, training skips ``reject`` flags."""

    black_level: Annotated[float, Field(ge=0, le=255)] = 4.0
    """An image whose pixel standard deviation is below this is flagged ``black``."""
    min_area: Share = 0.002
    """A prompted class covering a smaller share of the mask is flagged ``class_missing``."""
    reject: tuple[Literal["black", "empty", "class_missing", "nonfinite"], ...] = ("black", "empty")
    max_reject_share: Share = 0.5


class SynthesisConfig(_Section):
    """Prompt table -> shards of images with masks."""

    num: PositiveInt = 1000
    batch_size: PositiveInt = 4
    """Rows of a micro-batch; part of the plan, so it fixes the bits of the result."""
    shard_size: PositiveInt = 256
    steps: PositiveInt = 100
    scheduler: str = "default"
    """``default`` (what the model ships), ddim, dpmsolver++, euler, pndm, ..."""
    guidance_scale: Annotated[float, Field(ge=0.0)] = 7.5
    guidance_rescale: Share = 0.0
    negative_prompt: str = ""
    height: PositiveInt | None = None
    width: PositiveInt | None = None
    """Image size in pixels; default: native size of the UNet."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    attention: Literal["sdpa", "xformers"] = "sdpa"
    """Attention of the layers that are not captured (xformers: CUDA and the extra of that name)."""
    capture: CaptureConfig = CaptureConfig()
    masks: MasksConfig = MasksConfig()
    quality: QualityConfig = QualityConfig()


class TrainingConfig(_Section):
    """Phase 1: slot attention and MLP decoder on frozen features (method notes 3-6)."""

    loss: Literal["unguided", "semantic", "glass"] = "glass"
    mask_source: Literal["captured", "ground_truth"] = "captured"
    """ground_truth is the upper bound; it needs a data set with true masks and is never used by a guided run."""
    steps: PositiveInt = 10000
    batch_size: PositiveInt = 128
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    num_slots: Annotated[int, Field(ge=1, le=64)] = 7
    num_iterations: PositiveInt = 5
    slot_size: PositiveInt = 768
    slot_mlp_size: PositiveInt = 768
    out_size: PositiveInt = 1024
    """Width of the projected slots (context of the diffusion decoder)."""
    decoder_hidden: PositiveInt = 2048
    decoder_layers: PositiveInt = 3
    reconstruction_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the patches, drawn anew each step, that the decoder reconstructs; 1 is the paper, less is faster."""
    lambda_semantic: Annotated[float, Field(ge=0)] = 0.7
    lambda_instance: Annotated[float, Field(ge=0)] = 0.9
    bce_reduction: Literal["plain", "balanced"] = "plain"
    """plain: mean over matched slots and valid pixels; balanced: per matched pair, half the weight on
    positive and half on negative pixels."""
    matching_cost: Literal["hard", "soft"] = "hard"
    """Hungarian cost 1 - IoU of arg-max masks (hard) or of soft masks (soft)."""
    guidance_start: Share = 0.0
    """Share of the steps before the semantic loss is switched on."""
    guidance_ramp: Share = 0.0
    """Share of the steps over which its weight then rises linearly."""
    background_segment: bool = True
    """Background is one more segment that a slot must match."""
    segments: Literal["class", "components"] = "class"
    """What a slot is matched to: all tokens of a class, or each connected piece of them."""
    min_component: PositiveInt = 3
    """Smallest piece in tokens (segments: components)."""
    component_size: PositiveInt | None = None
    """Side of the grid on which pieces are found (segments: components); finer than the tokens it tells neighbours
    apart that share a token. A token then gets the piece that covers most of it. None: the token grid."""
    threshold: Share | None = None
    uncertain_threshold: Share | None = None
    """Re-threshold the stored soft maps instead of reading the stored mask (None: stored mask)."""
    flip: bool = True
    resolution: PositiveInt | None = None
    """Side of the encoder input; default: the encoder's own."""
    checkpoint_every: PositiveInt = 500
    keep_checkpoints: PositiveInt = 2
    log_every: PositiveInt = 50

    @model_validator(mode="after")
    def _ordered(self) -> TrainingConfig:
        if self.uncertain_threshold is not None and self.threshold is None:
            raise ValueError("uncertain_threshold needs threshold")
        if self.uncertain_threshold is not None and self.uncertain_threshold > (self.threshold or 0.0):
            raise ValueError("uncertain_threshold must not exceed threshold")
        return self


class SamplingConfig(_Section):
    """Slots -> pictures (method notes 7.4: 250 steps of DPM-Solver++, guidance 1.3)."""

    steps: PositiveInt = 250
    scheduler: str = "dpmsolver++"
    """``default`` (what the decoder's generator ships), ddim, dpmsolver++, euler, ..."""
    guidance_scale: Annotated[float, Field(ge=0.0)] = 1.3
    """Weight of classifier-free guidance against the null context; 1 switches it off and halves the work."""
    guidance_rescale: Share = 0.0
    batch_size: PositiveInt = 16
    sheet: Annotated[int, Field(ge=0)] = 64
    """At most so many pairs of source and generation on the contact sheet; 0: no sheet."""


class DecoderConfig(_Section):
    """Phase 2: the UNet on slots as its only context (method notes 4.1, 6)."""

    init: Literal["generator", "scratch"] = "generator"
    """Start from the weights of ``models.decoder`` (the paper) or from random ones of the same shape."""
    slots: Literal["frozen", "low_rate"] = "frozen"
    """low_rate: slot attention learns with ``slot_rate`` times the learning rate; the encoder never does."""
    slot_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    keep_phase1: bool = False
    """slots: low_rate only: the MLP decoder's reconstruction loss stays, so that masks drift less; the MLP decoder
    learns at the rate of slot attention."""
    lambda_instance: Annotated[float, Field(ge=0)] = 0.9
    """Weight of that loss beside the diffusion loss."""
    steps: PositiveInt = 100000
    batch_size: PositiveInt = 128
    micro_batch: PositiveInt | None = None
    """Samples in memory at once; gradients of a batch are summed over its pieces. None: the whole batch."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast of the UNet; weights, optimizer and loss stay float32."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the averaged weights that are saved instead of the last ones; 0: none (LSD, CODA)."""
    context_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of samples whose slots are replaced by the null context, which guidance needs (CODA; LSD has none)."""
    timesteps: Literal["uniform", "logit_normal"] = "uniform"
    """Distribution of the noise level; logit_normal puts more samples on middle levels."""
    logit_mean: float = 0.0
    logit_std: Annotated[float, Field(gt=0)] = 1.0
    latents: Literal["sample", "mean"] = "sample"
    """Draw from the VAE's posterior at every step, as Stable Diffusion was trained, or take its mean."""
    resolution: PositiveInt | None = None
    """Side of the pictures in pixels; default: native size of the UNet. The paper takes 256."""
    flip: bool = False
    """Also train on mirrored pictures (twice the cached features and latents)."""
    saved_dtype: Literal["float32", "float16"] = "float32"
    checkpoint_every: PositiveInt = 500
    keep_checkpoints: PositiveInt = 2
    log_every: PositiveInt = 50
    sampling: SamplingConfig = SamplingConfig()

    @model_validator(mode="after")
    def _together(self) -> DecoderConfig:
        if self.keep_phase1 and self.slots == "frozen":
            raise ValueError("keep_phase1 needs slots: low_rate (frozen slots cannot drift)")
        if self.micro_batch is not None and self.batch_size % self.micro_batch:
            raise ValueError("batch_size must be a multiple of micro_batch")
        return self


class DatasetConfig(_Section):
    """One data set to evaluate on."""

    name: Annotated[str, Field(pattern=r"^[\w-][\w.-]*$")]
    """Names the folder of its results."""
    kind: Literal["partworld", "coco", "voc"]
    path: str
    """Root folder in the official layout; for partworld a folder written by ``glass-fast partworld render``
    or ``partworld:SPLIT`` (tuning, test), which is rendered on the fly."""
    split: str = "val"
    limit: PositiveInt | None = None


class EvaluationConfig(_Section):
    """Models -> numbers under named protocols."""

    datasets: tuple[DatasetConfig, ...] = ()
    protocols: Annotated[tuple[Literal["glass", "spot"], ...], Field(min_length=1)] = ("glass", "spot")
    baselines: tuple[Literal["kmeans", "grid", "random_slots"], ...] = ("kmeans", "grid", "random_slots")
    batch_size: PositiveInt = 32


class DiscoverConfig(_Section):
    """Images -> objects."""

    images: str | None = None
    """Folder of pictures; ``partworld:test`` uses held-out rendered pictures."""
    limit: PositiveInt | None = 24
    min_area: Share = 0.001
    max_pixels: PositiveInt = 64_000_000
    max_bytes: PositiveInt = 64 * 2**20
    batch_size: PositiveInt = 16


class RunConfig(_Section):
    """Everything that ``glass-fast run`` does, in stage order."""

    name: str = "run"
    out: str = "runs/run"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    models: ModelsConfig = ModelsConfig()
    captions: CaptionsConfig = CaptionsConfig()
    synthesis: SynthesisConfig = SynthesisConfig()
    training: TrainingConfig = TrainingConfig()
    decoder: DecoderConfig = DecoderConfig()
    losses: Annotated[tuple[Arm, ...], Field(min_length=1)] = ("glass",)
    """Which models ``run`` trains; upper_bound trains on ground-truth masks (PartWorld only)."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    """Training seeds; every loss is trained and scored once per seed."""
    learning_rates: dict[Arm, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Tuned learning rate per entry of ``losses``; others use ``training.learning_rate``."""
    evaluation: EvaluationConfig = EvaluationConfig()
    discover: DiscoverConfig = DiscoverConfig()

    @model_validator(mode="after")
    def _unique(self) -> RunConfig:
        names = [dataset.name for dataset in self.evaluation.datasets]
        for what, values in (
            ("losses", self.losses),
            ("seeds", self.seeds),
            ("evaluation.datasets names", names),
        ):
            if len(set(values)) != len(values):
                raise ValueError(f"{what} must differ from each other")
        return self
