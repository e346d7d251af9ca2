"""Settings of a run as frozen dataclasses, each validated when built, each field documented where it stands.

The sentence under a field is what `--help` shows, so it states the unit and why the default is what it is. A field
whose right value depends on others defaults to None, and `plan.plan` resolves it: that way "not given" and "given, but
useless here" stay different things, and the second is refused instead of ignored.

Here a value is judged alone (`ConfigError`). Whether values combine, and whether this machine can do it, is the plan's
to say. Standard library only: reading a config must not cost the seconds that importing torch takes.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from training.errors import ConfigError

RecipeKind = Literal["sft", "reward", "dpo", "kto", "grpo", "ppo"]
PreferenceLoss = Literal["sigmoid", "ipo", "hinge", "robust", "apo_zero", "orpo", "simpo"]
Precision = Literal["fp32", "bf16"]
Quantization = Literal["none", "nf4"]
Attention = Literal["documents", "sdpa", "eager", "flex", "flash"]
DataKind = Literal["chat", "text"]
OnBadSample = Literal["stop", "skip"]
OnLongSample = Literal["stop", "skip", "truncate"]
OptimizerKind = Literal["adamw", "adamw_8bit", "muon"]
ScheduleShape = Literal["constant", "linear", "cosine", "wsd"]
Device = Literal["auto", "cpu", "cuda", "xpu"]
Resume = Literal["auto", "never", "must"]
BackendKind = Literal["auto", "single", "ddp", "fsdp", "deepspeed"]
ZeroStage = Literal[1, 2, 3]
Advantage = Literal["group", "rloo"]
LengthNormalization = Literal["sequence", "token", "constant"]
KlEstimator = Literal["auto", "k1", "k2", "k3"]
OnRewardError = Literal["stop", "count"]
EngineSync = Literal["adapter", "weights"]
Export = Literal["auto", "model", "adapter", "merged", "adapter+merged", "none"]


def _at_least(where: str, value: float, least: float, hint: str) -> None:
    if not value >= least or math.isinf(value):
        raise ConfigError(where, got=str(value), expected=f"a finite number of at least {least}", hint=hint)


def _above(where: str, value: float, bound: float, hint: str) -> None:
    if not value > bound or math.isinf(value):
        raise ConfigError(where, got=str(value), expected=f"a finite number above {bound}", hint=hint)


def _fraction(where: str, value: float, hint: str) -> None:
    if not 0.0 <= value < 1.0:
        raise ConfigError(where, got=str(value), expected="a fraction, 0 or more and below 1", hint=hint)


def _given(where: str, value: str, hint: str) -> None:
    if not value:
        raise ConfigError(where, got="nothing", expected="a path", hint=hint)


@dataclass(frozen=True)
class ModelConfig:
    """Which model is trained, and in which arithmetic."""

    path: str
    """Directory (or hub name) of the model and its tokenizer, in Hugging Face layout."""

    precision: Precision = "fp32"
    """Arithmetic of forward and backward. bf16 computes under autocast; weights, gradients and moments stay fp32 either
    way, because small updates vanish in bf16."""

    quantization: Quantization = "none"
    """How the frozen weights under an adapter are held. nf4 is 4 bits a weight (QLoRA, arXiv 2305.14314): an eighth of
    the memory, slower, and another model by what rounding takes away. Only with lora."""

    attention: Attention = "documents"
    """How packed documents are kept apart. `documents` attends to each document by itself and is exact and fastest;
    `sdpa` and `eager` are transformers' own, which build the whole square mask; `flex` and `flash` are kernels of
    accelerators that need none. `flash` wants the package flash_attn and bf16."""

    liger: bool = False
    """Compute norms, rotary positions and gated layers with Liger's kernels: faster, less memory, other last digits.
    Only on accelerators, on one process or with ddp, and where the package liger_kernel is installed."""

    neftune_alpha: float | None = None
    """Strength of the noise that embeddings get in training (NEFTune, arXiv 2310.05914): answers become longer and
    more varied. 5 is usual. Default: no noise."""

    loss_chunk_tokens: int | None = None
    """Positions whose scores over the vocabulary are held at a time. 512 takes about a seventh of the memory of the
    loss and as long. Default: those of a whole microbatch at once."""

    activation_checkpointing: bool = False
    """Forget activations in the forward pass and compute them again in the backward pass: one more forward pass of
    time, far less memory."""

    compile: bool = False
    """Run the model's layers as compiled code (torch.compile): faster once the first step has waited for the compiler,
    other last digits. Needs a C++ compiler on the CPU and Triton on accelerators."""

    def __post_init__(self) -> None:
        """Checks what can be checked without opening the directory."""
        _given("model.path", self.path, "name a model directory with --model DIR")
        if self.neftune_alpha is not None:
            _above("model.neftune_alpha", self.neftune_alpha, 0.0, "5 is usual; leave it out for no noise")
        if self.loss_chunk_tokens is not None:
            _at_least("model.loss_chunk_tokens", self.loss_chunk_tokens, 1, "512 is usual; leave it out for no chunks")


@dataclass(frozen=True)
class DataConfig:
    """Which samples are read, and what becomes of those that do not fit."""

    path: str
    """JSONL file, one sample a line: {"messages": [{"role": …, "content": …}, …]} for chat, {"text": …} for text; of
    pairs {"prompt": [messages], "chosen": [messages], "rejected": [messages]}, for reward with a "margin" if wished; of
    labelled completions {"prompt": [messages], "completion": [messages], "label": true}; for grpo and ppo {"prompt":
    [messages] or a string, "answer": …} with whatever rewards read."""

    kind: DataKind = "chat"
    """`chat` renders conversations with the tokenizer's template and trains on what the assistant says; `text` trains
    on every token of plain documents, cut into blocks."""

    validation_path: str | None = None
    """Second JSONL file for the validation loss. Not together with validation_fraction."""

    validation_fraction: float = 0.0
    """Share of the samples held out for the validation loss, drawn once from run.seed. 0 holds none out."""

    tokens_per_sample_max: int | None = None
    """Longest example, in tokens. Default: batch.tokens_per_rank_max, since a longer one would fit no microbatch. For
    kind=text it is the block length."""

    on_bad_sample: OnBadSample = "stop"
    """What to do with a line that is not a usable sample: `stop` with its line number, or `skip` and count it in the
    summary."""

    on_long_sample: OnLongSample = "stop"
    """What to do with a sample over tokens_per_sample_max: `stop`, `skip` and count, or `truncate` its end and
    count."""

    def __post_init__(self) -> None:
        """Checks each value alone; the file is opened later, by the reader, which can name the line."""
        _given("data.path", self.path, "name a JSONL file with --data FILE")
        if self.validation_path is not None:
            _given("data.validation_path", self.validation_path, "name a JSONL file or leave the setting out")
        _fraction("data.validation_fraction", self.validation_fraction, "0.05 holds out one sample in twenty")
        if self.tokens_per_sample_max is not None:
            _at_least(
                "data.tokens_per_sample_max",
                self.tokens_per_sample_max,
                2,
                "one token predicts the next: two is the least",
            )


@dataclass(frozen=True)
class BatchConfig:
    """How much one optimizer step sees. Accumulation is not a setting: it follows from these two numbers."""

    samples_per_step: int = 16
    """Samples in one optimizer step over all ranks. 16 suits small chat sets; more is steadier and slower per sample
    seen."""

    tokens_per_rank_max: int = 4096
    """Tokens in one forward and backward pass on one rank. Decides memory, never results: a step's samples are packed
    into as many such microbatches as they need."""

    packing: bool = True
    """Lay several samples end to end in one microbatch. false gives each sample a microbatch of its own: the same
    results, slower wherever samples are short."""

    share_prompts: bool | None = None
    """Compute the prompt that documents of a microbatch have in common once for all of them: the two sides of a pair,
    the completions of a group. The same results, up to rounding (and to `lora.dropout`, of which a shared prompt has
    one draw), faster wherever prompts are long. Left out: true for every recipe but sft, where it can be."""

    def __post_init__(self) -> None:
        """Counts are of something that must exist."""
        _at_least("batch.samples_per_step", self.samples_per_step, 1, "a step needs at least one sample")
        _at_least(
            "batch.tokens_per_rank_max",
            self.tokens_per_rank_max,
            2,
            "give it the length of your longest sample or more",
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """How a gradient becomes an update, and the clip in front of it."""

    kind: OptimizerKind = "adamw"
    """`adamw` (arXiv 1711.05101); `adamw_8bit` keeps its moments in 8 bits, a quarter of the memory; `muon` moves
    matrices by orthogonalized momentum (arXiv 2502.16982), and embeddings, head and norms as adamw does. The last two
    need whole weights on each rank."""

    learning_rate_peak: float | None = None
    """Learning rate at the top of the schedule. Default: 2e-5 for all weights, 2e-4 for an adapter, which starts from
    zero."""

    weight_decay: float = 0.0
    """Pull towards zero per step, as a share of weight times learning rate; on matrices only, never on norms and
    biases. 0 by default: fine-tuning is short and starts from weights worth keeping."""

    beta1: float = 0.9
    """Share of the old first moment kept at each step."""

    beta2: float = 0.999
    """Share of the old second moment kept at each step. Try 0.95 if long runs show spikes."""

    epsilon: float = 1e-8
    """Added to the root of the second moment, so that a quiet weight is not divided by zero."""

    momentum: float | None = None
    """Share of the old momentum kept at each step. Default: 0.95. Only for muon."""

    fused: bool | None = None
    """AdamW in one kernel instead of a loop over weights: faster, the same formula, other last digits. Default: true.
    Not for adamw_8bit, which has one way."""

    gradient_norm_max: float | None = 1.0
    """Gradients are scaled down to this L2 norm over all weights if they exceed it. null (None) never scales."""

    def __post_init__(self) -> None:
        """Checks the ranges in which the formulas are defined."""
        if self.momentum is not None:
            _fraction("optimizer.momentum", self.momentum, "0.95 is usual")
        if self.learning_rate_peak is not None:
            _above(
                "optimizer.learning_rate_peak",
                self.learning_rate_peak,
                0.0,
                "2e-5 for all weights or 2e-4 for LoRA is usual",
            )
        _at_least("optimizer.weight_decay", self.weight_decay, 0.0, "0 switches decay off; 0.01 to 0.1 is usual")
        _fraction("optimizer.beta1", self.beta1, "0.9 is usual")
        _fraction("optimizer.beta2", self.beta2, "0.999 or 0.95 is usual")
        _above("optimizer.epsilon", self.epsilon, 0.0, "1e-8 is usual")
        if self.gradient_norm_max is not None:
            _above("optimizer.gradient_norm_max", self.gradient_norm_max, 0.0, "1.0 is usual; null never clips")


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over the run, as a share of the peak; fractions count steps of the whole run."""

    shape: ScheduleShape = "cosine"
    """After the warm-up: `constant` stays; `linear` and `cosine` fall, to reach the floor where the run ends; `wsd`
    stays and then falls linearly (warm-up, stable, decay)."""

    warmup_fraction: float = 0.03
    """Share of all steps over which the rate climbs in a straight line to its peak. 0 starts at the peak."""

    decay_fraction: float | None = None
    """Share of all steps over which wsd falls at the end. Default: 0.2. Only for wsd."""

    floor_fraction: float | None = None
    """Share of the peak at which the fall ends. Default: 0. Not for constant, which never falls."""

    def __post_init__(self) -> None:
        """Each is a share of something."""
        _fraction("schedule.warmup_fraction", self.warmup_fraction, "0.03 warms up over 3 % of the run")
        if self.decay_fraction is not None:
            _fraction("schedule.decay_fraction", self.decay_fraction, "0.2 falls over the last fifth of the run")
        if self.floor_fraction is not None:
            _fraction("schedule.floor_fraction", self.floor_fraction, "0.1 ends at a tenth of the peak")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685): W + (alpha / rank) · B A, with W frozen."""

    rank: int = 16
    """Inner dimension of each adapter. 16 is enough for most fine-tuning; memory grows in proportion."""

    alpha: float = 32.0
    """Numerator of the adapter's scale alpha / rank. Twice the rank is usual."""

    dropout: float = 0.0
    """Probability with which an input of an adapter is zeroed in training."""

    dora: bool = False
    """Learn the length of each weight's columns apart from their direction (DoRA, arXiv 2402.09353): closer to training
    all weights at low ranks, and slower."""

    rank_stabilized: bool = False
    """Scale by alpha / √rank instead of alpha / rank (rsLoRA, arXiv 2312.03732), so that high ranks learn as fast as
    low ones."""

    target_modules: tuple[str, ...] = ("all-linear",)
    """Names of the linear layers that get an adapter, as a list: ["q_proj", "v_proj"]. all-linear means each one except
    the head, and the experts of a mixture, which take neither dropout nor dora."""

    def __post_init__(self) -> None:
        """Checks that there is an adapter to train."""
        _at_least("lora.rank", self.rank, 1, "8 to 64 is usual; leave lora out to train all weights")
        _above("lora.alpha", self.alpha, 0.0, "twice the rank is usual")
        _fraction("lora.dropout", self.dropout, "0 to 0.1 is usual")
        if not self.target_modules or "" in self.target_modules:
            raise ConfigError(
                "lora.target_modules",
                got="no layer",
                expected="names of linear layers",
                hint="all-linear takes every one",
            )


@dataclass(frozen=True)
class CheckpointConfig:
    """When resumable state is written, how much of it is kept, and what is left at the end."""

    steps_between: int | None = None
    """Steps from one checkpoint to the next. Default: none on the way, one at the end and one at Ctrl-C, SIGTERM or
    SIGUSR1."""

    asynchronous: bool | None = None
    """Write the checkpoints on the way while training goes on. Takes one more copy of what is saved, in CPU memory,
    while it is written: with AdamW three times the trained weights. Default: true. Only with steps_between, since
    after the checkpoint at an end nothing goes on."""

    num_kept: int = 2
    """Newest checkpoints kept. At least 2, so that a crash while one is written or found damaged leaves another."""

    num_best_kept: int | None = None
    """Checkpoints with the lowest validation loss kept beside the newest. Default: none. Each checkpoint then needs a
    validation loss: steps_between must be a multiple of run.validation_steps_between."""

    resume: Resume = "auto"
    """`auto` goes on from the newest checkpoint under run.out, or starts there if it is empty; `must` refuses to start
    from zero; `never` refuses a run.out that already holds checkpoints."""

    elastic: bool = False
    """Go on from a checkpoint of another number of ranks or another backend, too. The run then agrees with an unbroken
    one to rounding, and dropout draws anew; without this, such a checkpoint is refused."""

    export: Export = "auto"
    """What is left as a Hugging Face directory: the `model`; or with LoRA the `adapter` alone, the `merged` model, or
    both. auto: the model, or with LoRA both."""

    def __post_init__(self) -> None:
        """Checks counts; refuses the one-checkpoint rotation that loses everything in a crash."""
        if self.steps_between is not None:
            _at_least(
                "checkpoint.steps_between",
                self.steps_between,
                1,
                "leave it out to save only at the end and when stopped",
            )
        if self.num_best_kept is not None:
            _at_least("checkpoint.num_best_kept", self.num_best_kept, 1, "leave it out to keep the newest alone")
        _at_least("checkpoint.num_kept", self.num_kept, 2, "with one, a crash during the next save could lose both")


@dataclass(frozen=True)
class RunConfig:
    """Where the run lives, how long it lasts, and what it draws from."""

    out: str
    """Directory for checkpoints, metrics, summary and export. Made if absent."""

    num_epochs: int | None = None
    """Times every sample is seen. Default: 1, unless num_steps is given. Not together with num_steps."""

    num_steps: int | None = None
    """Optimizer steps of the whole run, over as many epochs as that takes."""

    steps_this_session_max: int | None = None
    """Save and stop after so many steps although the run is not finished, as if interrupted: for queues with a time
    limit."""

    seed: int = 0
    """Start of every random draw: order of samples, held-out samples, adapters, dropout. The same seed gives the same
    run."""

    device: Device = "auto"
    """Where tensors live. auto takes the machine's accelerator, or the CPU if there is none."""

    num_threads: int | None = None
    """CPU threads of one tensor operation. Default: as many as the process may use. Changes the last digits of
    results."""

    validation_steps_between: int | None = None
    """Steps from one validation loss to the next. Default: with validation data, one before the first step and one
    after the last."""

    patience: int | None = None
    """Validations in a row without a better loss after which the run is over, as if it had taken its last step: it is
    saved and exported as it is then, and checkpoint.num_best_kept keeps what was better. Default: none, all steps are
    taken. Only with validation_steps_between."""

    improvement_min: float | None = None
    """How much lower than the best before, in nats, a validation loss must be to count as better. Default: 0. Only with
    patience."""

    progress_steps_between: int = 1
    """Steps from one progress line to the next. metrics.jsonl has every step regardless."""

    def __post_init__(self) -> None:
        """Checks counts, and that the seed fits where seeds go."""
        _given("run.out", self.out, "name a directory with --out DIR")
        counts = ("num_epochs", "num_steps", "steps_this_session_max", "num_threads", "validation_steps_between")
        if self.improvement_min is not None:
            _at_least("run.improvement_min", self.improvement_min, 0.0, "0 takes any lower loss")
        for name in (*counts, "patience"):
            value: int | None = getattr(self, name)
            if value is not None:
                _at_least(f"run.{name}", value, 1, "leave it out for the default")
        _at_least("run.progress_steps_between", self.progress_steps_between, 1, "1 prints every step")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(
                "run.seed", got=str(self.seed), expected="0 or more and below 2**32", hint="any small number will do"
            )


@dataclass(frozen=True)
class ParallelConfig:
    """How many processes take each step together, and how they share it."""

    ranks: int | None = None
    """Processes that take each step together, one for each accelerator. Started on this machine, unless torchrun has
    started them, on one machine or several. Default: those that torchrun started, or 1."""

    backend: BackendKind = "auto"
    """`single` is one process; `ddp` gives each rank the whole model and adds up gradients; `fsdp` gives each a part of
    every weight, gradient and moment, for models too large for one; `deepspeed` does so in the stages of ZeRO. auto:
    single for one rank, ddp for more."""

    zero_stage: ZeroStage | None = None
    """What deepspeed cuts: 1 moments, 2 gradients as well, 3 weights as well. Default: 2, as fsdp is there for what
    needs 3, and 1 keeps a gradient of the whole model on each rank. Only for deepspeed."""

    shard_ranks: int | None = None
    """Ranks that hold one copy of the weights between them; each further group of so many holds another, and groups add
    up their gradients. The ranks of one machine, usually, so that layers are gathered over its own links. Default: all.
    Only for fsdp, and a divisor of parallel.ranks, below it."""

    keep_gathered: bool = False
    """Keep a layer's weights on every rank from its forward to its backward pass: faster, more memory. Only for
    fsdp."""

    offload: bool = False
    """Keep weights, gradients and moments in CPU memory and update them there: slow, and fits larger models. Only for
    fsdp and deepspeed, which in stages 1 and 2 keeps the weights that layers compute with on the device."""

    collective_seconds_max: int | None = None
    """Seconds that a rank waits for the others, in a step or a save, before it gives up. What rank 0 does alone, as an
    export, may take longer: then it is asked whether it is there. Default: 1800, longer than any rank takes to write
    its files. Not for single."""

    def __post_init__(self) -> None:
        """Checks counts."""
        if self.ranks is not None:
            _at_least("parallel.ranks", self.ranks, 1, "leave it out for one process")
        if self.shard_ranks is not None:
            _at_least("parallel.shard_ranks", self.shard_ranks, 1, "leave it out to shard over all ranks")
        if self.collective_seconds_max is not None:
            _at_least("parallel.collective_seconds_max", self.collective_seconds_max, 1, "leave it out for the default")


@dataclass(frozen=True)
class SftConfig:
    """Supervised fine-tuning: everything a user may decide."""

    model: ModelConfig
    data: DataConfig
    run: RunConfig
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    lora: LoraConfig | None = None
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    @property
    def recipe(self) -> RecipeKind:
        """The way to learn, which the type of the config says."""
        return "sft"


@dataclass(frozen=True)
class PreferenceConfig:
    """What is learned from pairs of completions; `training/algorithms/preference.py` has the formulas."""

    loss: PreferenceLoss = "sigmoid"
    """`sigmoid` (DPO, arXiv 2305.18290); `ipo` does not push pairs apart without end; `hinge` stops at a margin;
    `robust` takes it that some labels are wrong; `apo_zero` moves each side by itself; `orpo` and `simpo` need no
    reference."""

    beta: float | None = None
    """How tightly the model is held to the reference: the larger, the tighter; for simpo the scale of rewards. Default:
    0.1, or 2 for simpo. Not for orpo."""

    beta_end: float | None = None
    """Beta of the last step, towards which it moves in a straight line from `beta` in the first; validation losses have
    it throughout. Default: beta stays. Not for orpo and simpo."""

    label_smoothing: float | None = None
    """Share of pairs taken to be labelled the wrong way round, below 0.5. Default: 0, or 0.1 for robust. Only for
    sigmoid and robust."""

    length_normalized: bool = False
    """Divide the log-probability of a completion by its number of tokens, so that a long one weighs as a short one. Not
    for orpo and simpo, which always do."""

    target_margin: float | None = None
    """By how much the reward of the chosen completion is to be above the other's. Default: half of beta. Only for
    simpo."""

    odds_weight: float | None = None
    """Weight of the odds ratio beside the surprise at the chosen completion. Default: 0.1. Only for orpo."""

    reference: str | None = None
    """Which model gives the log-probabilities to compare with, once, before the first step: `initial` is the trained
    one as it is then, `adapter` the one under its adapter, anything else the path of a model with the same tokenizer.
    Default: initial. Not for orpo and simpo."""

    def __post_init__(self) -> None:
        """Checks the ranges in which the formulas are defined."""
        if self.beta is not None:
            _above("preference.beta", self.beta, 0.0, "0.1 is usual, 2 for simpo")
        if self.beta_end is not None:
            _above("preference.beta_end", self.beta_end, 0.0, "leave it out for a beta that stays")
        if self.label_smoothing is not None and not 0.0 <= self.label_smoothing < 0.5:
            hint = "at 0.5 labels say nothing; 0.1 is usual"
            got = str(self.label_smoothing)
            raise ConfigError("preference.label_smoothing", got=got, expected="0 or more and below 0.5", hint=hint)
        if self.target_margin is not None:
            _at_least("preference.target_margin", self.target_margin, 0.0, "half of beta is usual")
        if self.odds_weight is not None:
            _above("preference.odds_weight", self.odds_weight, 0.0, "0.1 is usual")
        if self.reference is not None:
            _given("preference.reference", self.reference, "initial, adapter, or a model directory")


@dataclass(frozen=True)
class DpoConfig(SftConfig):
    """Learning from pairs of completions: everything a user may decide."""

    preference: PreferenceConfig = field(default_factory=PreferenceConfig)

    @property
    def recipe(self) -> RecipeKind:
        """The way to learn, which the type of the config says."""
        return "dpo"


@dataclass(frozen=True)
class RewardConfig(SftConfig):
    """Learning a reward model from pairs: everything a user may decide."""

    @property
    def recipe(self) -> RecipeKind:
        """The way to learn, which the type of the config says."""
        return "reward"


@dataclass(frozen=True)
class KtoSettings:
    """What is learned from single completions that are labelled good or bad (KTO, arXiv 2402.01306)."""

    beta: float = 0.1
    """How tightly the model is held to the reference: the larger, the tighter."""

    desirable_weight: float = 1.0
    """Weight of a good completion. With many more bad ones raise it, so that it times their numbers is 1 to 1.33."""

    undesirable_weight: float = 1.0
    """Weight of a bad completion."""

    reference: str | None = None
    """Which model gives the log-probabilities to compare with, once, before the first step: `initial`, `adapter` or a
    path, as in dpo. Default: initial."""

    def __post_init__(self) -> None:
        """Checks the ranges in which the formula is defined."""
        _above("kto.beta", self.beta, 0.0, "0.1 is usual")
        _above("kto.desirable_weight", self.desirable_weight, 0.0, "1 is usual")
        _above("kto.undesirable_weight", self.undesirable_weight, 0.0, "1 is usual")
        if self.reference is not None:
            _given("kto.reference", self.reference, "initial, adapter, or a model directory")


@dataclass(frozen=True)
class KtoConfig(SftConfig):
    """Learning from labelled completions: everything a user may decide."""

    kto: KtoSettings = field(default_factory=KtoSettings)

    @property
    def recipe(self) -> RecipeKind:
        """The way to learn, which the type of the config says."""
        return "kto"


@dataclass(frozen=True)
class RolloutConfig:
    """How completions are drawn and judged, and how far a step may go by them."""

    rewards: tuple[str, ...] = ("training.rollout.verifiers:exact",)
    """Functions reward(prompt, completion, **columns), or directories of reward models, as a list: ["module:function",
    "0.5*file.py:function", "2*directory"]. The reward of a completion is their weighted sum. Default: 1 if the
    completion is the line's `answer`, else 0."""

    on_reward_error: OnRewardError = "stop"
    """What to do when a reward raises: `stop` with the sample's line, or `count` it as 0 and in the records."""

    length_normalization: LengthNormalization = "token"
    """What counts alike: each `sequence` (GRPO), each `token` (DAPO, arXiv 2503.14476), or each token by the `constant`
    completion_tokens_max (Dr. GRPO). By token, since long completions would learn slowly by sequence."""

    clip_low: float = 0.2
    """How far the probability of a token may fall below that of the policy it was drawn from, as a share, before the
    gradient stops."""

    clip_high: float = 0.2
    """How far it may rise. DAPO takes 0.28, so that rare tokens can become likelier."""

    kl_coefficient: float = 0.0
    """Weight of the KL divergence from the model that the run began with: in the loss, or in ppo's rewards. 0 needs no
    such model; with lora it is the one under the adapter, else a second copy on every rank."""

    kl_estimator: KlEstimator = "auto"
    """How the divergence is estimated from the drawn tokens. auto: k3, or k1 for ppo. Only with kl_coefficient."""

    importance_max: float | None = None
    """Correct for a sampler whose arithmetic is not that of training, by the ratio of their probabilities and at most
    this. Default: no correction, for here one model does both; the records have the mismatch."""

    steps_per_rollout: int = 1
    """Optimizer steps that share the completions of one rollout, each with its own. 1 is on-policy."""

    epochs_per_rollout: int = 1
    """Times that each completion is learned from."""

    temperature: float = 1.0
    """Of drawing. Ratios and records have the log-probabilities of the model itself, at 1."""

    top_p: float = 1.0
    """Draw from the fewest tokens that have this probability together. 1 draws from all."""

    completion_tokens_max: int = 256
    """Tokens after which a completion is cut off."""

    overlong_tokens: int | None = None
    """Tokens before completion_tokens_max over which a penalty grows from 0 to 1, to be taken off the reward (the soft
    overlong punishment of DAPO). Default: no penalty."""

    sequences_per_call: int = 64
    """Completions that a rank draws at a time. Decides the memory of keys and values, and results only by rounding."""

    environment: str | None = None
    """Function or class that makes what answers the model within an episode, as module:function or file.py:function:
    make(prompt, **columns) with a method respond(completion) that returns the next message, several, or None to end it.
    Default: none, a completion is one turn."""

    turns_max: int | None = None
    """Turns of the model after which an episode ends, each of at most completion_tokens_max; it ends earlier where a
    turn would not fit a sample. Default: 8. Only with environment."""

    engine: str | None = None
    """Address of a server that draws the completions, by OpenAI's protocol and with token ids as vLLM gives them:
    http://host:8000/v1. Default: none, the model in training draws them itself."""

    engine_sync: EngineSync | None = None
    """How the server gets the weights of each rollout, from a directory under run.out that it can read: `adapter` as
    vLLM loads one, `weights` as SGLang updates them from disk. Default: it keeps those it has, which the records'
    mismatch shows. Only with engine."""

    def __post_init__(self) -> None:
        """Checks the ranges in which the formulas are defined."""
        if not self.rewards or "" in self.rewards:
            hint = "name functions as module:function or file.py:function"
            raise ConfigError("rl.rewards", got="no reward", expected="at least one function", hint=hint)
        _fraction("rl.clip_low", self.clip_low, "0.2 is usual")
        _above("rl.clip_high", self.clip_high, 0.0, "0.2 is usual, 0.28 in DAPO")
        _at_least("rl.kl_coefficient", self.kl_coefficient, 0.0, "0.001 to 0.04 is usual; 0 leaves the term out")
        if self.importance_max is not None:
            _above("rl.importance_max", self.importance_max, 0.0, "2 is usual; leave it out for no correction")
        for name in ("steps_per_rollout", "epochs_per_rollout", "completion_tokens_max", "sequences_per_call"):
            _at_least(f"rl.{name}", getattr(self, name), 1, "it is a count")
        if self.turns_max is not None:
            _at_least("rl.turns_max", self.turns_max, 1, "leave it out for the default")
        if self.overlong_tokens is not None:
            _at_least("rl.overlong_tokens", self.overlong_tokens, 1, "leave it out for no penalty")
        _above("rl.temperature", self.temperature, 0.0, "1 is usual: at 0 all completions of a group are the same")
        if not 0.0 < self.top_p <= 1.0:
            hint = "1 draws from all tokens"
            raise ConfigError("rl.top_p", got=str(self.top_p), expected="above 0 and at most 1", hint=hint)


@dataclass(frozen=True)
class RlConfig(RolloutConfig):
    """How completions are drawn, judged and learned from; `training/algorithms/grpo.py` has the formulas."""

    group_size: int = 8
    """Completions drawn for each prompt, whose rewards are compared with each other. More is steadier and slower."""

    advantage: Advantage = "group"
    """What a reward is compared with: the mean of its `group` (GRPO, arXiv 2402.03300), or the mean of the others in it
    (`rloo`, arXiv 2402.14740)."""

    redraws_max: int | None = None
    """Times that groups whose rewards are all alike, from which nothing is learned, are replaced by completions of
    other prompts (the dynamic sampling of DAPO, arXiv 2503.14476). Those that are alike even then stay, and a rollout
    of nothing else stops the run. Default: none is replaced."""

    divide_by_std: bool | None = None
    """Give the advantages of each group the same spread. Default: true; false is Dr. GRPO (arXiv 2503.20783), which
    does not weigh easy and hard prompts up. Not for rloo."""

    def __post_init__(self) -> None:
        """Checks the ranges in which the formulas are defined."""
        super().__post_init__()
        _at_least("rl.group_size", self.group_size, 2, "a completion is compared with others of its group")
        if self.redraws_max is not None:
            _at_least("rl.redraws_max", self.redraws_max, 1, "leave it out to learn from what is drawn first")


@dataclass(frozen=True)
class PpoSettings(RolloutConfig):
    """How completions are drawn, judged and learned from; `training/algorithms/ppo.py` has the formulas."""

    gae_decay: float = 0.95
    """How far a reward reaches back past what the critic expected (λ, arXiv 1506.02438): 0 trusts the critic alone, 1
    the rewards alone."""

    discount: float = 1.0
    """What a reward is worth one token earlier. 1, since a completion is judged as a whole."""

    whiten_advantages: bool = True
    """Give the advantages of a rollout mean 0 and deviation 1 over its tokens, so that rewards may have any scale."""

    value_coefficient: float = 0.1
    """Weight of the critic's loss beside the policy's, which share all weights but those of the critic's head."""

    value_clip: float | None = 0.2
    """How far a value may move from what it was at the rollout before its gradient stops, in units of reward. null
    (None) never stops it."""

    def __post_init__(self) -> None:
        """Checks the ranges in which the formulas are defined."""
        super().__post_init__()
        for name in ("gae_decay", "discount"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"rl.{name}", got=str(value), expected="0 to 1", hint="leave it out for the default")
        _above("rl.value_coefficient", self.value_coefficient, 0.0, "0.1 is usual; without a critic there is grpo")
        if self.value_clip is not None:
            _above("rl.value_clip", self.value_clip, 0.0, "0.2 is usual for rewards of about 1; null never clips")


@dataclass(frozen=True)
class GrpoConfig(SftConfig):
    """Learning from rewards of completions: everything a user may decide."""

    rl: RlConfig = field(default_factory=RlConfig)

    @property
    def recipe(self) -> RecipeKind:
        """The way to learn, which the type of the config says."""
        return "grpo"


@dataclass(frozen=True)
class PpoConfig(SftConfig):
    """Learning from rewards of completions with a critic: everything a user may decide."""

    rl: PpoSettings = field(default_factory=PpoSettings)

    @property
    def recipe(self) -> RecipeKind:
        """The way to learn, which the type of the config says."""
        return "ppo"


CONFIGS: dict[RecipeKind, type[SftConfig]] = {
    "sft": SftConfig,
    "reward": RewardConfig,
    "dpo": DpoConfig,
    "kto": KtoConfig,
    "grpo": GrpoConfig,
    "ppo": PpoConfig,
}
"""The config of each recipe."""
