"""What can be chosen about training: the ``training`` section of the configuration.

Read by two steps, encode features and fine-tune. Imports neither torch nor anything else that is slow.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    model_validator,
)

from lineage.frozen import Section

Granularity = Literal["phrase", "clause", "caption"]
Part = Literal["latents", "text", "teacher", "structure"]
"""What is encoded: VAE posteriors, conditioning, the teacher's patches, the vision model's self-similarities."""
TEACHERS = ("teacher", "structure_model")
"""The settings that name networks which supervise."""
AXES = ("alignment", "realism", "aesthetics")
"""What weights are compared by where one of a run's steps is chosen."""


def teachers(training: Mapping[str, Any]) -> dict[str, Path]:
    """Which networks supervise, by the training section: its key -> the folder."""
    named = {key: training.get(key) for key in TEACHERS}
    return {key: Path(place) for key, place in named.items() if place}


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Granularities = Annotated[tuple[Granularity, ...], BeforeValidator(_as_tuple), Field(min_length=1)]


class SupervisionSettings(Section):
    """Supervision of the image branch by a frozen teacher, on the new pictures themselves. It speeds up training from
    random weights; on a trained base model it harms (docs/method.md). It costs nothing at inference."""

    enabled: bool = False
    """False: no teacher is needed."""
    target: Literal["text", "vision", "shuffled-text"] = "text"
    """What the image stream is supervised with: ``text``, the vision-aligned text features of the caption;
    ``vision``, the teacher's own patch features, no text in them; ``shuffled-text``, the control of an ablation,
    as ``text`` but of another picture's caption, while the conditioning stays right."""
    granularity: Granularities = ("phrase", "clause")
    """What the text target is aligned with: the caption's phrases, its clauses, the caption as one; any of them."""
    tap: int | None = Field(default=None, ge=0)
    """Index of the block whose image stream is supervised; None: about a third of the depth."""
    weight: float = Field(default=0.5, ge=0)
    """λ, the weight of L_local and L_global beside the velocity loss, at its height."""
    local_weight: float = Field(default=1.0, ge=0)
    """The weight of L_local, patch by patch, within λ; 0 leaves it out."""
    global_weight: float = Field(default=0.5, ge=0)
    """α, the weight of L_global, the caption as a whole, within λ; 0 leaves it out."""
    structure_weight: float = Field(default=0.1, ge=0)
    """μ, the weight of L_structure beside the velocity loss, at its height; 0 leaves it out."""
    structure_depths: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.25, 0.5, 0.75)
    """How deep the layers lie that L_structure compares, in the vision model and in the MM-DiT alike: shares of
    their depth, here shallow, middle and deep."""
    structure_grid: int = Field(default=8, ge=2)
    """Most rows and columns of patches whose similarities are compared; finer grids are pooled to it."""
    warmup_fraction: float = Field(default=0.05, ge=0, le=1)
    """Share of the steps in which only the projectors learn: the tapped streams are detached."""
    ramp_fraction: float = Field(default=0.05, ge=0, le=1)
    """Share of the steps, after the warm-up, in which λ and μ rise linearly from 0 to their height."""
    decay_end_fraction: float = Field(default=0.65, gt=0, le=1)
    """Share of the steps after which λ and μ are 0; they fall to it as a cosine from the end of the ramp."""
    decay: bool = True
    """False: λ and μ stay at their height to the end."""
    projector_hidden: int = Field(default=2048, ge=1)
    """Width of the projector's two hidden layers."""

    @property
    def structured(self) -> bool:
        """Whether L_structure is part of the loss."""
        return self.enabled and self.structure_weight > 0 and bool(self.structure_depths)

    @model_validator(mode="after")
    def _phases_fit(self) -> Self:
        if self.decay and self.warmup_fraction + self.ramp_fraction > self.decay_end_fraction:
            raise ValueError(
                f"warmup_fraction {self.warmup_fraction} and ramp_fraction {self.ramp_fraction} together end "
                f"after decay_end_fraction {self.decay_end_fraction}; make them shorter or let the decay end later"
            )
        return self


class ReplaySettings(Section):
    """Replay of captions that the new pictures do not show: their inputs are noise, and on them the image stream is
    held to the base model's. What the base model knows is kept so, and no pictures are needed for it."""

    captions: Path | None = None
    """The captions: a text file with one a line, a ``metadata.jsonl``, or the ``manifest.parquet`` of an earlier
    snapshot. They should speak of what the model is to keep, and must not be the evaluation set's. None: nothing is
    held."""
    batch_size: int = Field(default=16, ge=1)
    """Replayed inputs in one optimizer step, over all processes, beside the ``batch_size`` pictures."""
    draws: int = Field(default=256, ge=1)
    """Inputs in all: captions with a noise and a noise level each, fixed for a run. The base model's stream for them is
    taken once, before the first step, into a file that the processes of a machine share."""
    weight: float = Field(default=2.0, ge=0)
    """The weight of L_replay beside the velocity loss."""
    tap: int | None = Field(default=None, ge=0)
    """Index of the block whose image stream is held; None: at five sixths of the depth."""
    lowest_sigma: float = Field(default=0.97, gt=0, le=1)
    """Noise levels are uniform between this and 1, which is pure noise; the input is σ ε."""


class SelectionSettings(Section):
    """Which weights of a run become the candidate: those after some of its steps, and interpolations of the last with
    the base model, are compared on a selection set."""

    selection_set: Path | None = None
    """A folder in the form of an evaluation set, with other prompts than that. None: the last step's weights are the
    candidate."""
    marks: int = Field(default=5, ge=1)
    """Steps whose averaged weights are compared: the last, half as many, a quarter, and so on."""
    mixes: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.25, 0.5, 0.75)
    """Shares of the last step's weights in the interpolations with the base model."""
    scorers: tuple[dict[str, Any], ...] = ()
    """As in ``evaluation.scorers``, which stand here where nothing else is said."""
    margins: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default={})
    """As in ``gate.margins``, which stand here where nothing else is said."""
    drawing: dict[str, Any] = Field(default={})
    """As in ``evaluation.drawing``, which stands here where nothing else is said."""
    batch_size: int = Field(default=50, ge=1)
    """Pictures sampled at once."""

    @model_validator(mode="after")
    def _can_choose(self) -> Self:
        if self.selection_set and (lacking := [axis for axis in AXES if axis not in self.margins]):
            raise ValueError(
                f"selection has no margin for {', '.join(lacking)}; give each axis one, here or in gate.margins"
            )
        return self


class SampleSettings(Section):
    """Pictures drawn with the averaged weights while training runs: always the same prompts and seeds."""

    every: int = Field(default=0, ge=0)
    """Steps between two grids; 0: none."""
    prompts: tuple[str, ...] = ()
    """One picture each."""
    steps: int = Field(default=20, ge=1)
    """Denoising steps."""
    guidance: float = Field(default=4.0, ge=0)
    """Guidance scale."""
    seed: int = Field(default=0, ge=0)
    """Seed of the first prompt's noise; the next prompt has the next one."""

    @model_validator(mode="after")
    def _has_prompts(self) -> Self:
        if self.every and not self.prompts:
            raise ValueError(
                f"samples.every is {self.every} and samples.prompts is empty; name prompts or set every: 0"
            )
        return self


class LoraSettings(Section):
    """The adapter that ``method: lora`` trains instead of the MM-DiT's own weights."""

    rank: int = Field(default=16, ge=1)
    """r, the rank of the change that each matrix can learn."""
    alpha: float = Field(default=16.0, gt=0)
    """α; the change is scaled by α / r."""
    target_modules: tuple[str, ...] = Field(
        default=("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        min_length=1,
    )
    """Ends of the names of the linear layers that get an adapter: the joint attention's, in all families."""


class TrainingSettings(Section):
    """One fine-tuning run. Equal settings, features and machine give a candidate with equal digest."""

    base_model: Path
    """Folder of the diffusers bundle to start from."""
    teacher: Path | None = None
    """Folder of the transformers SigLIP dual encoder and its tokenizer; needed while supervision is enabled."""
    structure_model: Path | None = None
    """Folder of the transformers vision model (such as DINOv2) that L_structure looks through; None: the teacher's
    own vision tower."""
    cached: tuple[Part, ...] = ("latents", "text", "teacher", "structure")
    """Which features are encoded once and read from disk; the others are computed in every training step."""
    cache_precision: Literal["fp32", "fp16"] = "fp32"
    """Number format of latents and text embeddings on disk; teacher and structure features are always fp16."""
    steps: int = Field(default=1000, ge=1)
    """Optimizer steps."""
    buckets: tuple[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], ...] = ()
    """Sizes, [width, height] in pixels, to which pictures are resized and cropped about their centre, each to the one
    nearest in shape; a batch is of one size. Empty: the base model's own square."""
    max_sequence_length: int | None = Field(default=None, ge=1)
    """Most tokens that a T5, or Qwen-Image's language model, reads of a caption; None: as many as a plain call of
    the pipeline. Train with what is sampled with."""
    method: Literal["full", "lora"] = "full"
    """Train all weights of the MM-DiT, or an adapter beside them."""
    lora: LoraSettings = LoraSettings()
    batch_size: int = Field(default=32, ge=1)
    """Images in one optimizer step, over all processes; a multiple of ``processes``."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """AdamW's step size, after the warm-up."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's decoupled weight decay, on matrices only (not on biases and norms)."""
    warmup_steps: int = Field(default=20, ge=0)
    """Optimizer steps in which the learning rate rises linearly from 0."""
    learning_rate_schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up: stay, or fall to 0 as half a cosine by the last step."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this global L2 norm where it is exceeded."""
    processes: int = Field(default=2, ge=1)
    """Training processes on this machine, one an accelerator, or sharing the CPU."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Parts in which each process works through its share of a batch; more parts need less memory for activations."""
    zero_stage: int = Field(default=2, ge=0, le=3)
    """What DeepSpeed shards over the processes. 2: gradients, master weights and optimizer state; 3: the weights too,
    slower; 0: nothing (fp32 only)."""
    offload: bool = False
    """Keep master weights, optimizer state and their average in the host's memory, with zero_stage 3 weights too."""
    compile: bool = False
    """Compile the blocks: faster steps after a minute or more of compiling, which needs a C++ compiler."""
    threads_per_process: int = Field(default=1, ge=1)
    """CPU threads of each process; more of them in all than cores slows training down many times."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of forward and backward; master weights, optimizer, losses and average stay fp32. bf16
    pays on GPUs and on CPUs with AMX or AVX-512 bf16, and is far slower than fp32 on others: measure."""
    gradient_checkpointing: bool = False
    """Keep only each block's inputs for the backward pass and compute the rest again: less memory, about a third
    more time."""
    seed: int = Field(default=0, ge=0, lt=2**53)
    """Decides data order, noise, timesteps, dropout and the projector's first weights."""
    caption_dropout: float | None = Field(default=None, ge=0, le=1)
    """Share of samples trained on the empty caption, which classifier-free guidance needs. None: 0.1, and 0 for FLUX.1,
    which is distilled and drawn without."""
    null_tokens: tuple[int, int] = (1, 1)
    """Only for SD3 without T5: fewest and most zero tokens appended to the CLIP tokens, drawn anew each step.
    Diffusers' pipeline appends ``max_sequence_length`` of them (256 unless told): train with what is sampled with."""
    guidance: float = Field(default=1.0, ge=0)
    """Only for guidance-distilled models (FLUX.1 dev): the guidance scale told to the model. At 1 it is asked for
    the plain conditional velocity, which is what the velocity loss teaches."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """Most decay of the moving average of the weights, a step; the average is what is exported."""
    log_every: int = Field(default=10, ge=1)
    """Steps between two points of the loss curves, each the mean over the steps since the last."""
    divergence_factor: float = Field(default=10.0, gt=1)
    """Training stops where the velocity loss of a step exceeds this many times its running median."""
    checkpoint_every: int = Field(default=500, ge=0)
    """Steps between two checkpoints, kept where the run has a place for them; 0: only when asked to stop."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints that are kept."""
    samples: SampleSettings = SampleSettings()
    replay: ReplaySettings = ReplaySettings()
    selection: SelectionSettings = SelectionSettings()
    supervision: SupervisionSettings = SupervisionSettings()

    @property
    def stage(self) -> int:
        """The ZeRO stage that is used: one fp32 process has nothing to shard and nothing to keep apart."""
        alone = self.processes == 1 and self.precision == "fp32" and not self.offload
        return 0 if alone and self.zero_stage == 2 else self.zero_stage

    @property
    def marked(self) -> list[int]:
        """The optimizer steps after which the averaged weights are kept to choose among; none without a selection."""
        count = self.selection.marks if self.selection.selection_set else 0
        return sorted({self.steps >> half for half in range(count)} - {0})

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the candidate."""
        watching = {"log_every", "divergence_factor", "checkpoint_every", "keep_checkpoints", "samples"}
        return self.model_dump(mode="json", exclude=watching if self.marked else watching | {"selection"})

    def teaching(self) -> dict[str, Any]:
        """The settings that decide what training leaves: a checkpoint fits only a run with the same ones."""
        taught = {name: value for name, value in self.deciding().items() if name != "selection"}
        return taught | ({"marked": self.marked} if self.marked else {})

    @property
    def adapter(self) -> LoraSettings | None:
        """The adapter that is trained; None: all weights are."""
        return self.lora if self.method == "lora" else None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.batch_size % self.processes:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of processes {self.processes}; change either"
            )
        if self.batch_size // self.processes % self.gradient_accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} over {self.processes} processes cannot be cut into "
                f"{self.gradient_accumulation} equal parts (gradient_accumulation); change either"
            )
        self._check_sharding()
        low, high = self.null_tokens
        if not 0 <= low <= high:
            raise ValueError(f"null_tokens {self.null_tokens} is not a range; give [fewest, most], both >= 0")
        if self.supervision.enabled and self.teacher is None:
            raise ValueError("supervision is enabled and teacher is missing; name its folder or disable supervision")
        if self.replay.captions:
            self._check_replay()
        return self

    def _check_replay(self) -> None:
        parts, replayed = self.processes * self.gradient_accumulation, self.replay.batch_size
        if replayed % parts:
            raise ValueError(
                f"replay.batch_size {replayed} is not a multiple of processes times gradient_accumulation, {parts}; "
                "change either"
            )
        low, high = self.null_tokens
        if low != high:
            raise ValueError(
                f"null_tokens {self.null_tokens} is a range, and replay holds the image stream to what the base model "
                "makes of one number of them; give that number twice"
            )

    def _check_sharding(self) -> None:
        if self.zero_stage == 1:
            raise ValueError("zero_stage 1 is not offered; 2 shards more at the same speed")
        if self.zero_stage == 0 and (self.precision != "fp32" or self.offload):
            raise ValueError(
                "zero_stage 0 keeps no master weights apart from the model's: it takes fp32 without offload; "
                "choose zero_stage 2"
            )
        if self.zero_stage == 3 and self.compile:
            raise ValueError(
                "compile cannot follow zero_stage 3, which moves weights while a block runs; choose either"
            )
