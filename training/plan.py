"""plan(config, machine) → Plan | Refusal: the one place that says what combines with what, and on which machine.

Every setting ends here. It is either used, and then it shows in the Plan, or it cannot be used, and then the Refusal
names it. Nothing downstream looks at a config again: what trains reads the Plan, which has no "default, to be decided
later" left in it. A test changes each field of the config in turn and asks for another Plan or a Refusal; a second one
asks that each field of the Plan is read by something that trains.

What only the data can tell (how many steps are in an epoch) stays a rule here and becomes a number in the recipe.
Standard library only.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from training.config import (
    Attention,
    DataKind,
    DpoConfig,
    GrpoConfig,
    KlEstimator,
    KtoConfig,
    KtoSettings,
    LoraConfig,
    OnBadSample,
    OnLongSample,
    OptimizerKind,
    PpoConfig,
    PpoSettings,
    Precision,
    PreferenceConfig,
    PreferenceLoss,
    Quantization,
    RecipeKind,
    Resume,
    RlConfig,
    RolloutConfig,
    SftConfig,
    ZeroStage,
)
from training.errors import PlanRefused
from training.schedule import Schedule

ExportKind = Literal["model", "adapter", "merged"]
PlannedBackend = Literal["single", "ddp", "fsdp", "deepspeed"]


@dataclass(frozen=True)
class Machine:
    """What the plan needs to know of the place it is made for; `training.parallel.single.machine` looks it up."""

    num_threads: int
    """CPU threads that this process may use."""
    accelerators: tuple[str, ...] = ()
    """Device types that are present beside the CPU, best first: cuda, xpu."""
    num_accelerators: int = 0
    """Devices of the first of these types."""
    num_ranks: int | None = None
    """Processes that a launcher such as torchrun has started for this run; None if it was started by itself."""
    num_ranks_here: int = 1
    """Of these, how many on this machine."""
    packages: tuple[str, ...] = ()
    """Python packages that are present of those that only some settings need."""
    compiles_c: bool = False
    """True if there are a C compiler and the headers of this Python, with which Triton builds what starts a kernel."""
    compiles_cpp: bool = False
    """True if there are a C++ compiler and the headers of this Python."""


@dataclass(frozen=True)
class Refusal:
    """Why a config is not trained: one setting, the reason, and what to change."""

    field: str
    got: str
    expected: str
    hint: str

    def as_error(self) -> PlanRefused:
        """The same words as an exception, for callers that cannot go on."""
        return PlanRefused(self.field, got=self.got, expected=self.expected, hint=self.hint)


@dataclass(frozen=True)
class Plan:
    """A config with everything decided."""

    recipe: RecipeKind
    model_path: str
    precision: Precision
    quantization: Quantization
    attention: Attention
    liger: bool
    neftune_alpha: float | None
    loss_chunk_tokens: int | None
    activation_checkpointing: bool
    compile: bool
    lora: LoraConfig | None
    has_value_head: bool
    """The model says one number of what it has read, in place of what comes next."""
    preference: PreferenceConfig | None
    """What is learned from pairs, with nothing open that the loss needs; None for other recipes."""
    kto: KtoSettings | None
    """What is learned from labelled completions; None for other recipes."""
    reference: str | None
    """Where reference log-probabilities come from: initial, adapter, or the path of a model; None needs none."""
    rl: RlConfig | PpoSettings | None
    """How completions are drawn and learned from, with everything decided; None for other recipes."""
    has_critic: bool
    """The model also says what it expects of the completion it is in."""
    engine: str | None
    """Address of a server that draws completions; None if the model in training does."""

    data_path: str
    data_kind: DataKind
    validation_path: str | None
    validation_fraction: float
    tokens_per_sample_max: int
    on_bad_sample: OnBadSample
    on_long_sample: OnLongSample

    samples_per_step: int
    tokens_per_rank_max: int
    packing: bool
    share_prompts: bool
    """A prompt of several documents of a microbatch is computed once."""

    schedule: Schedule
    optimizer: OptimizerKind
    weight_decay: float
    betas: tuple[float, float]
    epsilon: float
    momentum: float
    fused: bool
    gradient_norm_max: float | None

    num_epochs: int | None
    """None if num_steps says how long the run is."""
    num_steps: int | None
    seed: int
    device: str
    num_threads: int

    backend: PlannedBackend
    num_ranks: int
    zero_stage: ZeroStage | None
    """None unless the backend is deepspeed."""
    shard_ranks: int | None
    """None shards over all ranks, if the backend shards."""
    keep_gathered: bool
    offload: bool
    collective_seconds_max: int

    out: str
    resume: Resume
    elastic: bool
    exports: tuple[ExportKind, ...]
    checkpoint_steps_between: int | None
    asynchronous: bool
    num_kept: int
    num_best_kept: int
    steps_this_session_max: int | None
    validation_steps_between: int | None
    patience: int | None
    improvement_min: float
    progress_steps_between: int

    def trajectory(self) -> dict[str, Any]:
        """The part that decides the numbers, as JSON values: a checkpoint is continued only by a plan equal in these.

        Where things lie and how often they are written is left out. So are the contents of model and data files: the
        checkpoint holds a digest of what was read from them, which survives a move and sees a change.
        """
        return {name: value for name, value in _jsonable(asdict(self)).items() if name not in _BOOKKEEPING}

    def describe(self) -> str:
        """The plan as a person reads it, a line per decision."""
        lora, schedule = self.lora, self.schedule
        trained = (
            f"{_kind_of_adapter(lora)} rank {lora.rank}, alpha {lora.alpha:g}, dropout {lora.dropout:g} "
            f"on {' '.join(lora.target_modules)}"
            if lora
            else "all weights"
        )
        shape = f"{schedule.shape} from {schedule.peak:g}, warm-up {schedule.warmup_fraction:.0%} of the steps"
        if schedule.shape == "wsd":
            shape += f", decay {schedule.decay_fraction:.0%}"
        if schedule.shape != "constant":
            shape += f", floor {schedule.floor_fraction:.0%} of the peak"
        length = f"{self.num_steps} steps" if self.num_steps else f"{self.num_epochs} epoch(s) of the data"
        validation = self.validation_path or (f"{self.validation_fraction:.1%} of the samples, held out")
        if not self.validates:
            validation = "none"
        elif self.validation_steps_between:
            validation += f", every {self.validation_steps_between} steps"
        if self.patience:
            validation += f"; over after {self.patience} without one better by {self.improvement_min:g}"
        clip = "not clipped" if self.gradient_norm_max is None else f"norm at most {self.gradient_norm_max:g}"
        every = f"every {self.checkpoint_steps_between} steps" if self.checkpoint_steps_between else ""
        every += (" (training goes on meanwhile) and " if self.asynchronous else " and ") if every else ""
        adamw = f"AdamW{' (fused)' if self.fused else ''}, betas {self.betas[0]:g} {self.betas[1]:g}"
        if self.optimizer == "muon":
            adamw = f"Muon for matrices, momentum {self.momentum:g}; {adamw}"
        elif self.optimizer == "adamw_8bit":
            adamw = f"{adamw}, moments in 8 bits"
        kept = f"newest {self.num_kept}" + (f" and best {self.num_best_kept}" if self.num_best_kept else "")
        lines = {
            "recipe": self.recipe,
            "model": f"{self.model_path}, {trained}"
            + (", with a head of one value (Bradley-Terry)" if self.has_value_head else "")
            + (f" over weights in {self.quantization}" if self.quantization != "none" else "")
            + (f", noise of strength {self.neftune_alpha:g} on embeddings (NEFTune)" if self.neftune_alpha else ""),
            **_described_preference(self.preference, self.kto, self.reference),
            **_described_rl(self.rl, self.engine),
            "arithmetic": f"{self.precision} on {self.device}, {self.num_threads} thread(s), attention {self.attention}"
            + (", Liger's kernels" if self.liger else "")
            + (f", loss in chunks of {self.loss_chunk_tokens} tokens" if self.loss_chunk_tokens else "")
            + (", activation checkpointing" if self.activation_checkpointing else "")
            + (", layers compiled" if self.compile else ""),
            "data": f"{self.data_path} ({self.data_kind}), up to {self.tokens_per_sample_max} tokens a sample; "
            f"bad samples: {self.on_bad_sample}; long samples: {self.on_long_sample}",
            "validation": validation,
            "batch": f"{self.samples_per_step} samples a step, "
            + ("packed into microbatches" if self.packing else "each in a microbatch of its own,")
            + f" of up to {self.tokens_per_rank_max} tokens"
            + (", a prompt once for all that it begins" if self.share_prompts else ""),
            "ranks": self._described_ranks(),
            "optimizer": f"{adamw}, epsilon {self.epsilon:g}, weight decay {self.weight_decay:g}; gradients {clip}",
            "rate": shape,
            "length": length
            + (f", at most {self.steps_this_session_max} in this session" if self.steps_this_session_max else ""),
            "seed": str(self.seed),
            "out": f"{self.out}; checkpoints {every}at the end, {kept} kept; resume: {self.resume}"
            + (", also on another number of ranks" if self.elastic else ""),
            "export": ", ".join(self.exports) or "none",
            "progress": f"every {self.progress_steps_between} step(s)",
        }
        return "\n".join(f"{name:<11} {line}" for name, line in lines.items())

    def _described_ranks(self) -> str:
        if self.backend == "single":
            return "1"
        how = f"{self.num_ranks}, {self.backend}, waiting for each other at most {self.collective_seconds_max} s"
        how += f", ZeRO stage {self.zero_stage}" if self.zero_stage else ""
        how += f", each copy of the weights on {self.shard_ranks} of them" if self.shard_ranks else ""
        how += ", weights kept gathered until the backward pass" if self.keep_gathered else ""
        return how + (", offloaded to CPU memory" if self.offload else "")

    @property
    def validates(self) -> bool:
        """True if there is a validation loss to compute."""
        return self.validation_path is not None or self.validation_fraction > 0


_BOOKKEEPING = {
    "model_path",
    # Its log-probabilities are in the digest of the examples.
    "reference",
    # It may move, and what it draws is in the checkpoint.
    "engine",
    "data_path",
    "validation_path",
    "out",
    "resume",
    "elastic",
    "exports",
    "checkpoint_steps_between",
    "asynchronous",
    "num_kept",
    "num_best_kept",
    "patience",
    "improvement_min",
    "steps_this_session_max",
    "keep_gathered",
    "collective_seconds_max",
    "validation_steps_between",
    "progress_steps_between",
}


def plan(config: SftConfig, machine: Machine) -> Plan | Refusal:
    """What the config comes to on this machine, or the first reason why it comes to nothing."""
    for refusal in _refusals(config, machine):
        return refusal
    num_ranks, num_ranks_here, device = _place(config, machine)
    backend, parallel = _backend(config, num_ranks), config.parallel
    model, data, batch, run = config.model, config.data, config.batch, config.run
    optimizer, schedule, checkpoint = config.optimizer, config.schedule, config.checkpoint
    peak = optimizer.learning_rate_peak
    return Plan(
        recipe=config.recipe,
        model_path=model.path,
        precision=model.precision,
        quantization=model.quantization,
        attention=model.attention,
        liger=model.liger,
        neftune_alpha=model.neftune_alpha,
        loss_chunk_tokens=model.loss_chunk_tokens,
        activation_checkpointing=model.activation_checkpointing,
        compile=model.compile,
        lora=config.lora,
        has_value_head=config.recipe == "reward",
        preference=_preference(config),
        kto=replace(config.kto, reference=None) if isinstance(config, KtoConfig) else None,
        reference=_reference(config),
        rl=_rl(config),
        has_critic=config.recipe == "ppo",
        engine=config.rl.engine if isinstance(config, (GrpoConfig, PpoConfig)) else None,
        data_path=data.path,
        data_kind=data.kind,
        validation_path=data.validation_path,
        validation_fraction=data.validation_fraction,
        tokens_per_sample_max=data.tokens_per_sample_max or batch.tokens_per_rank_max,
        on_bad_sample=data.on_bad_sample,
        on_long_sample=data.on_long_sample,
        samples_per_step=batch.samples_per_step,
        tokens_per_rank_max=batch.tokens_per_rank_max,
        packing=batch.packing,
        share_prompts=_can_share_prompts(config) if batch.share_prompts is None else batch.share_prompts,
        schedule=Schedule(
            shape=schedule.shape,
            peak=peak if peak is not None else (2e-4 if config.lora else 2e-5),
            warmup_fraction=schedule.warmup_fraction,
            decay_fraction=0.2 if schedule.decay_fraction is None else schedule.decay_fraction,
            floor_fraction=schedule.floor_fraction or 0.0,
        ),
        optimizer=optimizer.kind,
        weight_decay=optimizer.weight_decay,
        betas=(optimizer.beta1, optimizer.beta2),
        epsilon=optimizer.epsilon,
        momentum=0.95 if optimizer.momentum is None else optimizer.momentum,
        fused=optimizer.fused is not False and optimizer.kind != "adamw_8bit",
        gradient_norm_max=optimizer.gradient_norm_max,
        num_epochs=None if run.num_steps else (run.num_epochs or 1),
        num_steps=run.num_steps,
        seed=run.seed,
        device=device,
        num_threads=run.num_threads or max(1, machine.num_threads // num_ranks_here),
        backend=backend,
        num_ranks=num_ranks,
        zero_stage=(parallel.zero_stage or 2) if backend == "deepspeed" else None,
        shard_ranks=parallel.shard_ranks,
        keep_gathered=parallel.keep_gathered,
        offload=parallel.offload,
        collective_seconds_max=parallel.collective_seconds_max or 1800,
        out=run.out,
        resume=checkpoint.resume,
        elastic=checkpoint.elastic,
        exports=_exports(config),
        checkpoint_steps_between=checkpoint.steps_between,
        asynchronous=checkpoint.steps_between is not None and checkpoint.asynchronous is not False,
        num_kept=checkpoint.num_kept,
        num_best_kept=checkpoint.num_best_kept or 0,
        steps_this_session_max=run.steps_this_session_max,
        validation_steps_between=run.validation_steps_between,
        patience=run.patience,
        improvement_min=run.improvement_min or 0.0,
        progress_steps_between=run.progress_steps_between,
    )


def _refusals(config: SftConfig, machine: Machine) -> Iterator[Refusal]:
    """Each rule of combination, in the order in which a person would want to hear of them."""
    data, batch, run = config.data, config.batch, config.run
    schedule, export = config.schedule, config.checkpoint.export
    if config.checkpoint.elastic and config.checkpoint.resume == "never":
        hint = "leave one of the two out"
        yield Refusal("checkpoint.elastic", "true, with resume never", "a run that may go on from something", hint)
    if config.checkpoint.asynchronous is not None and config.checkpoint.steps_between is None:
        got = f"{str(config.checkpoint.asynchronous).lower()}, without checkpoints on the way"
        hint = "add --checkpoint.steps_between 100, or leave it out"
        yield Refusal("checkpoint.asynchronous", got, "steps to write a checkpoint beside", hint)
    if run.device not in ("auto", "cpu", *machine.accelerators):
        here = ", ".join(("cpu", *machine.accelerators))
        yield Refusal("run.device", run.device, f"a device of this machine: {here}", "auto takes the best one there is")
    yield from _parallel_refusals(config, machine)
    yield from _model_refusals(config, machine)
    if batch.share_prompts:
        for got, expected in _why_not_share_prompts(config):
            hint = "leave one of the two out"
            yield Refusal("batch.share_prompts", f"true, with {got}", expected, hint)
    yield from _reward_refusals(config)
    yield from _preference_refusals(config)
    yield from _rl_refusals(config)
    if run.num_epochs is not None and run.num_steps is not None:
        got = f"{run.num_epochs}, while run.num_steps is {run.num_steps}"
        yield Refusal("run.num_epochs", got, "one of the two", "leave out the one you do not mean")
    if data.tokens_per_sample_max is not None and data.tokens_per_sample_max > batch.tokens_per_rank_max:
        yield Refusal(
            "data.tokens_per_sample_max",
            f"{data.tokens_per_sample_max}, over batch.tokens_per_rank_max = {batch.tokens_per_rank_max}",
            "a sample to fit one microbatch",
            "raise batch.tokens_per_rank_max to the same number",
        )
    if data.kind == "text" and data.on_long_sample != "stop":
        got = f"{data.on_long_sample}, while data.kind is text"
        yield Refusal(
            "data.on_long_sample", got, "no rule", "documents are cut into blocks, so none is too long: leave it out"
        )
    if data.validation_path is not None and data.validation_fraction > 0:
        got = f"{data.validation_fraction:g}, while data.validation_path is {data.validation_path}"
        yield Refusal("data.validation_fraction", got, "one of the two", "leave out the one you do not mean")
    if run.validation_steps_between is not None and data.validation_path is None and not data.validation_fraction:
        yield Refusal(
            "run.validation_steps_between",
            f"{run.validation_steps_between}, without validation data",
            "something to compute a validation loss on",
            "hold samples out with --data.validation_fraction 0.05",
        )
    yield from _validation_refusals(config)
    yield from _optimizer_refusals(config, machine)
    if schedule.decay_fraction is not None and schedule.shape != "wsd":
        got = f"{schedule.decay_fraction:g}, while schedule.shape is {schedule.shape}"
        yield Refusal(
            "schedule.decay_fraction", got, "wsd, the one shape with a decay phase", "leave it out, or choose wsd"
        )
    if schedule.floor_fraction is not None and schedule.shape == "constant":
        got = f"{schedule.floor_fraction:g}, while schedule.shape is constant"
        yield Refusal(
            "schedule.floor_fraction", got, "a shape that falls", "leave it out, or choose linear, cosine or wsd"
        )
    if schedule.shape == "wsd" and schedule.warmup_fraction + (schedule.decay_fraction or 0.2) > 1:
        got = f"{schedule.warmup_fraction:g}, with a decay of {schedule.decay_fraction or 0.2:g}"
        yield Refusal("schedule.warmup_fraction", got, "at most 1 together", "make one of them shorter")
    if config.lora is None and export in ("adapter", "merged", "adapter+merged"):
        yield Refusal(
            "checkpoint.export", f"{export}, without lora", "model, auto or none", "add --lora to train an adapter"
        )
    if config.lora is not None and export == "model":
        hint = "merged is the whole model with the adapter added in"
        yield Refusal("checkpoint.export", "model, with lora", "adapter, merged, adapter+merged, auto or none", hint)


def _model_refusals(config: SftConfig, machine: Machine) -> Iterator[Refusal]:
    """The rules of how a model is held and computed."""
    model = config.model
    if model.quantization != "none":
        name, value = "model.quantization", model.quantization
        if config.lora is None:
            hint = "add --lora, or leave the setting out"
            yield Refusal(name, f"{value}, without lora", "an adapter, since weights of 4 bits are not trained", hint)
        if "bitsandbytes" not in machine.packages:
            yield _lacks(name, value, "bitsandbytes")
    if model.liger:
        num_ranks, _, device = _place(config, machine)
        backend = _backend(config, num_ranks)
        if device == "cpu":
            yield Refusal("model.liger", "true, on cpu", "an accelerator", "leave it out: its kernels need one")
        if backend not in ("single", "ddp"):
            hint = "leave it out, or take --backend ddp: weights in parts are put together for the export on the CPU, "
            hint += "where Liger's kernels do not run"
            yield Refusal("model.liger", f"true, with {backend}", "single or ddp", hint)
        if "liger_kernel" not in machine.packages:
            yield _lacks("model.liger", "true", "liger_kernel")
        yield from _triton_refusals("model.liger", "true", machine)
    yield from _attention_refusals(config, machine)
    if model.compile:
        yield from _compile_refusals(config, machine)


def _can_share_prompts(config: SftConfig) -> bool:
    """Where nobody says so: samples that answer one prompt several times, and nothing in the way."""
    return config.recipe != "sft" and not any(_why_not_share_prompts(config))


def _why_not_share_prompts(config: SftConfig) -> Iterator[tuple[str, str]]:
    """(got, expected) of each setting under which a prompt cannot be computed once for several documents."""
    model = config.model
    if model.attention != "documents":
        yield f"model.attention {model.attention}", "attention documents, which sees to what each document sees"
    if not config.batch.packing:
        yield "batch.packing false", "several documents in a microbatch"
    if config.recipe == "sft" and config.data.kind == "text":
        yield "data.kind text", "samples with a prompt"
    if model.neftune_alpha:
        yield (
            f"model.neftune_alpha {model.neftune_alpha:g}",
            "the same embeddings for all whose prompt it is, so no noise",
        )


def _attention_refusals(config: SftConfig, machine: Machine) -> Iterator[Refusal]:
    """The rules of the kernels that attention can run in."""
    name, model = "model.attention", config.model
    hint = "leave it out: attention per document is exact everywhere"
    if model.attention in ("flex", "flash") and _place(config, machine)[2] == "cpu":
        lacks = "whose backward pass is not there" if model.attention == "flex" else "where it has no kernel"
        yield Refusal(name, f"{model.attention}, on cpu, {lacks}", "documents, sdpa or eager", hint)
    if model.attention == "flash":
        if model.precision != "bf16":
            hint = f"add --precision bf16, or {hint}"
            yield Refusal(name, f"flash, with {model.precision}", "bf16, all it computes in", hint)
        if "flash_attn" not in machine.packages:
            yield _lacks(name, "flash", "flash_attn")
    if model.attention == "flex":
        yield from _triton_refusals(name, "flex", machine)


def _compile_refusals(config: SftConfig, machine: Machine) -> Iterator[Refusal]:
    """The rules of compiled layers: what they need, and what they would not be or not be proven with."""
    name, model, lora = "model.compile", config.model, config.lora
    num_ranks, _, device = _place(config, machine)
    if device == "cpu" and not machine.compiles_cpp:
        hint = "install g++ and Python's development headers, name another compiler in CXX, or leave the setting out"
        yield Refusal(name, "true, without a C++ compiler or Python.h", "both, which layers on the CPU need", hint)
    if device != "cpu":
        yield from _triton_refusals(name, "true", machine)
    if (backend := _backend(config, num_ranks)) == "deepspeed":
        hint = "add --backend fsdp, or leave it out: what DeepSpeed does around each layer would be compiled with it"
        yield Refusal(name, f"true, with {backend}", "single, ddp or fsdp", hint)
    if config.recipe in ("grpo", "ppo"):
        hint = "leave it out: completions are drawn a token at a time from a cache, for which layers would be compiled "
        hint += "anew"
        yield Refusal(name, f"true, for {config.recipe}", "a recipe that only trains", hint)
    elif config.recipe != "sft":
        hint = "leave it out: whether the losses of pairs and labels come out the same is not proven"
        yield Refusal(name, f"true, for {config.recipe}", "sft", hint)
    if model.attention != "documents":
        hint = "leave one of the two out: with a mask, layers would be compiled anew for packs with another one"
        yield Refusal(name, f"true, with attention {model.attention}", "attention documents", hint)
    if model.activation_checkpointing:
        hint = "leave one of the two out: layers that are run again for their gradients are not compiled"
        yield Refusal(name, "true, with activation_checkpointing", "layers that keep their activations", hint)
    for got, is_on in {
        "model.liger": model.liger,
        f"model.quantization {model.quantization}": model.quantization != "none",
        "lora.dora": lora is not None and lora.dora,
    }.items():
        if is_on:
            hint = "leave one of the two out: whether both together give the same numbers is not proven"
            yield Refusal(name, f"true, with {got}", "layers of plain matrices, norms and plain LoRA", hint)
    if lora is not None and lora.dropout:
        hint = "leave one of the two out: compiled layers would drop other places than the same run uncompiled"
        yield Refusal(name, f"true, with lora.dropout {lora.dropout:g}", "layers that draw nothing", hint)


def _triton_refusals(field: str, value: str, machine: Machine) -> Iterator[Refusal]:
    """For a setting whose kernels are compiled for the card when they are first needed."""
    if "triton" not in machine.packages:
        yield _lacks(field, value, "triton")
    if not machine.compiles_c:
        hint = "install gcc and Python's development headers, name another compiler in CC, or leave the setting out"
        yield Refusal(field, f"{value}, without a C compiler or Python.h", "both, which Triton's kernels need", hint)


def _lacks(field: str, value: str, package: str) -> Refusal:
    """For a setting that needs a package which is not there."""
    got = f"{value}, without the package {package}"
    return Refusal(field, got, "a Python in which it is installed", f"install {package}, or leave the setting out")


def _place(config: SftConfig, machine: Machine) -> tuple[int, int, str]:
    """Ranks of the run, how many of them on this machine, and the type of their device."""
    device = (*machine.accelerators, "cpu")[0] if config.run.device == "auto" else config.run.device
    if machine.num_ranks is not None:
        return machine.num_ranks, machine.num_ranks_here, device
    num_ranks = config.parallel.ranks or 1
    return num_ranks, num_ranks, device


def _backend(config: SftConfig, num_ranks: int) -> PlannedBackend:
    if config.parallel.backend != "auto":
        return config.parallel.backend
    return "single" if num_ranks == 1 else "ddp"


def _parallel_refusals(config: SftConfig, machine: Machine) -> Iterator[Refusal]:
    """The rules of how ranks share a step."""
    parallel = config.parallel
    num_ranks, num_ranks_here, device = _place(config, machine)
    backend = _backend(config, num_ranks)
    if parallel.ranks not in (None, num_ranks):
        got = f"{parallel.ranks}, while the launcher started {num_ranks}"
        yield Refusal("parallel.ranks", got, "the same number", "leave it out: the launcher has decided")
    if backend == "single" and num_ranks > 1:
        got = f"single, with {num_ranks} ranks"
        yield Refusal("parallel.backend", got, "ddp, fsdp or deepspeed", "auto takes ddp for more than one rank")
    if device != "cpu" and num_ranks > 1 and num_ranks_here > machine.num_accelerators:
        got = f"{num_ranks_here} on this machine, which has {machine.num_accelerators} of {device}"
        yield Refusal("parallel.ranks", got, "one for each", "take fewer ranks, or --device cpu")
    for name, value, backends in (
        ("shard_ranks", parallel.shard_ranks, ("fsdp",)),
        ("keep_gathered", parallel.keep_gathered, ("fsdp",)),
        ("offload", parallel.offload, ("fsdp", "deepspeed")),
        ("zero_stage", parallel.zero_stage, ("deepspeed",)),
    ):
        if value and backend not in backends:
            yield Refusal(
                f"parallel.{name}",
                f"{str(value).lower()}, with {backend}",
                " or ".join(backends),
                f"add --backend {backends[0]}, or leave the setting out",
            )
    if parallel.shard_ranks is not None and (num_ranks % parallel.shard_ranks or num_ranks == parallel.shard_ranks):
        got = f"{parallel.shard_ranks}, of {num_ranks} ranks"
        hint = "groups of ranks must be equal, and more than one: take another, or leave it out for one copy in all"
        yield Refusal("parallel.shard_ranks", got, "a divisor of that, and less", hint)
    if parallel.zero_stage == 3 and config.lora and config.lora.dora and config.model.quantization != "none":
        got = f"3, with lora.dora and model.quantization {config.model.quantization}"
        hint = (
            "DoRA needs quantized weights whole, and stage 3 cannot gather them: take stage 2, or leave one of them out"
        )
        yield Refusal("parallel.zero_stage", got, "1 or 2", hint)
    if parallel.collective_seconds_max is not None and backend == "single":
        got = f"{parallel.collective_seconds_max}, with a single process"
        yield Refusal("parallel.collective_seconds_max", got, "ranks to wait for", "leave it out")


def _kind_of_adapter(lora: LoraConfig) -> str:
    return ("DoRA" if lora.dora else "LoRA") + (" (rank-stabilized)" if lora.rank_stabilized else "")


def _validation_refusals(config: SftConfig) -> Iterator[Refusal]:
    """The rules of what follows from validation losses on the way."""
    run, checkpoint = config.run, config.checkpoint
    between = run.validation_steps_between
    if run.patience is not None and between is None:
        hint = "add --validation-steps-between 50"
        yield Refusal("run.patience", f"{run.patience}, without validations on the way", "some to count", hint)
    if run.improvement_min is not None and run.patience is None:
        got = f"{run.improvement_min:g}, without patience"
        yield Refusal("run.improvement_min", got, "a run that can lose it", "add --patience 3, or leave it out")
    if checkpoint.num_best_kept is not None and (
        between is None or checkpoint.steps_between is None or checkpoint.steps_between % between
    ):
        yield Refusal(
            "checkpoint.num_best_kept",
            f"{checkpoint.num_best_kept}, with checkpoints every {checkpoint.steps_between} steps and validations "
            f"every {between}",
            "a validation loss for each checkpoint",
            "give --checkpoint.steps_between as a multiple of --validation-steps-between",
        )


def _reward_refusals(config: SftConfig) -> Iterator[Refusal]:
    """The rules of a model that says one number."""
    if config.recipe != "reward":
        return
    if config.model.liger:
        yield Refusal("model.liger", "true, for reward", "a model of language", "leave it out")
    if config.model.loss_chunk_tokens is not None:
        got = f"{config.model.loss_chunk_tokens}, for reward"
        hint = "leave it out: there are no scores over the vocabulary to hold"
        yield Refusal("model.loss_chunk_tokens", got, "a model of language", hint)
    if config.data.on_long_sample == "truncate":
        hint = "take skip: the number is read at the end of a completion"
        yield Refusal("data.on_long_sample", "truncate, for reward", "stop or skip", hint)


REFERENCE_FREE = ("orpo", "simpo")
WITH_REFERENCE = tuple(each for each in get_args(PreferenceLoss) if each not in REFERENCE_FREE)


def _preference_refusals(config: SftConfig) -> Iterator[Refusal]:
    """The rules of what is learned from pairs."""
    if config.recipe not in ("sft", "grpo", "ppo") and config.data.kind != "chat":
        got = f"{config.data.kind}, for {config.recipe}"
        yield Refusal("data.kind", got, "chat", "leave it out: completions are turns of a conversation")
    if _reference(config) == "adapter" and config.lora is None:
        section, hint = "kto" if isinstance(config, KtoConfig) else "preference", "add --lora, or leave the setting out"
        yield Refusal(f"{section}.reference", "adapter, without lora", "an adapter to leave out", hint)
    if not isinstance(config, DpoConfig):
        return
    preference, loss = config.preference, config.preference.loss
    for name, value, losses in (
        ("beta", preference.beta, (*WITH_REFERENCE, "simpo")),
        ("beta_end", preference.beta_end, WITH_REFERENCE),
        ("label_smoothing", preference.label_smoothing, ("sigmoid", "robust")),
        ("length_normalized", preference.length_normalized or None, WITH_REFERENCE),
        ("target_margin", preference.target_margin, ("simpo",)),
        ("odds_weight", preference.odds_weight, ("orpo",)),
        ("reference", preference.reference, WITH_REFERENCE),
    ):
        if value is not None and loss not in losses:
            got = f"{str(value).lower() if value is True else value}, while preference.loss is {loss}"
            hint = "leave it out, or choose another loss"
            yield Refusal(f"preference.{name}", got, " or ".join(losses), hint)


def _preference(config: SftConfig) -> PreferenceConfig | None:
    """What is learned from pairs, with what its loss needs decided; the rest stays None."""
    if not isinstance(config, DpoConfig):
        return None
    given, loss = config.preference, config.preference.loss
    beta = given.beta if given.beta is not None else {"orpo": None, "simpo": 2.0}.get(loss, 0.1)
    smoothing, margin, weight = given.label_smoothing, given.target_margin, given.odds_weight
    if smoothing is None and loss in ("sigmoid", "robust"):
        smoothing = 0.1 if loss == "robust" else 0.0
    if margin is None and loss == "simpo" and beta is not None:
        margin = beta / 2
    if weight is None and loss == "orpo":
        weight = 0.1
    decided = replace(given, beta=beta, label_smoothing=smoothing, target_margin=margin, odds_weight=weight)
    return replace(decided, reference=None)


def _reference(config: SftConfig) -> str | None:
    """Where reference log-probabilities come from."""
    if isinstance(config, KtoConfig):
        return config.kto.reference or "initial"
    if not isinstance(config, DpoConfig) or config.preference.loss in REFERENCE_FREE:
        return None
    return config.preference.reference or "initial"


def _described_preference(
    preference: PreferenceConfig | None, kto: KtoSettings | None, reference: str | None
) -> dict[str, str]:
    """A line on what is learned from pairs, or from labels."""
    if kto is not None:
        weights = f"weights {kto.desirable_weight:g} of good and {kto.undesirable_weight:g} of bad completions"
        return {"preference": f"KTO, beta {kto.beta:g}, {weights}; reference: {reference}"}
    if preference is None:
        return {}
    said = [
        f"{name.replace('_', ' ')} {value:g}"
        for name in ("beta", "beta_end", "label_smoothing", "target_margin", "odds_weight")
        if (value := getattr(preference, name)) is not None
    ]
    line = f"{preference.loss}, {', '.join(said)}" + (", length-normalized" if preference.length_normalized else "")
    return {"preference": line + (f"; reference: {reference}" if reference else "")}


def _rl_refusals(config: SftConfig) -> Iterator[Refusal]:
    """The rules of learning from rewards."""
    if not isinstance(config, (GrpoConfig, PpoConfig)):
        return
    rl, data, batch = config.rl, config.data, config.batch
    if rl.engine is not None and not rl.engine.startswith(("http://", "https://")):
        hint = "name where the protocol begins, usually http://host:8000/v1"
        yield Refusal("rl.engine", rl.engine or "nothing", "an address with http", hint)
    if rl.environment is None and rl.turns_max is not None:
        hint = "add --environment file.py:function, or leave it out"
        yield Refusal("rl.turns_max", f"{rl.turns_max}, without environment", "somebody to answer a turn", hint)
    if rl.environment is not None and rl.overlong_tokens is not None:
        hint = "leave it out: which of several turns is too long, a reward may say"
        yield Refusal("rl.overlong_tokens", f"{rl.overlong_tokens}, with environment", "a single turn", hint)
    if rl.engine_sync is not None and rl.engine is None:
        hint = "add --engine http://host:8000/v1, or leave it out"
        yield Refusal("rl.engine_sync", f"{rl.engine_sync}, without engine", "a server to give weights to", hint)
    if rl.engine_sync == "adapter" and config.lora is None:
        yield Refusal("rl.engine_sync", "adapter, without lora", "an adapter", "add --lora, or take weights")
    if rl.engine_sync == "weights" and config.lora is not None:
        hint = "take adapter: it is all that changes"
        yield Refusal("rl.engine_sync", "weights, with lora", "all weights in training", hint)
    if isinstance(rl, RlConfig):
        yield from _group_refusals(rl, batch.samples_per_step * rl.steps_per_rollout)
    if rl.kl_estimator != "auto" and not rl.kl_coefficient:
        got = f"{rl.kl_estimator}, without kl_coefficient"
        yield Refusal("rl.kl_estimator", got, "a divergence to estimate", "add --kl-coefficient 0.01, or leave it out")
    room = data.tokens_per_sample_max or batch.tokens_per_rank_max
    if rl.completion_tokens_max >= room:
        got = f"{rl.completion_tokens_max}, of {room} tokens in a sample"
        hint = "raise batch.tokens_per_rank_max, or data.tokens_per_sample_max if it is given"
        yield Refusal("rl.completion_tokens_max", got, "room for a prompt", hint)
    if rl.overlong_tokens is not None and rl.overlong_tokens > rl.completion_tokens_max:
        got = f"{rl.overlong_tokens}, of {rl.completion_tokens_max} tokens in a completion"
        yield Refusal("rl.overlong_tokens", got, "at most as many", "lower it, or raise rl.completion_tokens_max")
    if data.on_long_sample == "truncate":
        hint = "take skip: a prompt without its end asks something else"
        yield Refusal("data.on_long_sample", "truncate, for prompts", "stop or skip", hint)
    for name, value in (("path", data.validation_path), ("fraction", data.validation_fraction)):
        if value:
            hint = "leave it out: rewards are in the records of each step"
            yield Refusal(f"data.validation_{name}", f"{value}, for {config.recipe}", "no validation loss", hint)
    hint = "leave it out: a ratio would compare two models that differ by chance"
    if config.model.neftune_alpha:
        yield Refusal("model.neftune_alpha", f"{config.model.neftune_alpha:g}, for {config.recipe}", "no noise", hint)
    if config.lora and config.lora.dropout:
        yield Refusal("lora.dropout", f"{config.lora.dropout:g}, for {config.recipe}", "0", hint)


def _group_refusals(rl: RlConfig, num_samples: int) -> Iterator[Refusal]:
    """The rules of groups in rollouts of so many completions."""
    if num_samples % rl.group_size:
        got = f"{rl.group_size}, with rollouts of {num_samples} completions"
        hint = "change it, batch.samples_per_step or rl.steps_per_rollout"
        yield Refusal("rl.group_size", got, "groups that come out even", hint)
    if rl.advantage == "rloo" and rl.divide_by_std is not None:
        got = f"{str(rl.divide_by_std).lower()}, with rl.advantage rloo"
        yield Refusal("rl.divide_by_std", got, "group", "leave it out: rloo never divides")


def _rl(config: SftConfig) -> RlConfig | PpoSettings | None:
    """How completions are drawn and learned from, with what is left open decided."""
    if isinstance(config, PpoConfig):
        is_open = config.rl.kl_coefficient and config.rl.kl_estimator == "auto"
        # In rewards, where no gradient goes through it, an estimate has to have no bias and nothing else.
        kl_estimator: KlEstimator = "k1" if is_open else config.rl.kl_estimator
        return replace(config.rl, kl_estimator=kl_estimator, engine=None, turns_max=_turns_max(config.rl))
    if not isinstance(config, GrpoConfig):
        return None
    rl = config.rl
    return replace(
        rl,
        divide_by_std=rl.advantage == "group" and rl.divide_by_std is not False,
        kl_estimator="k3" if rl.kl_coefficient and rl.kl_estimator == "auto" else rl.kl_estimator,
        engine=None,
        turns_max=_turns_max(rl),
    )


def _turns_max(rl: RolloutConfig) -> int | None:
    return (rl.turns_max or 8) if rl.environment else None


def _described_rl(rl: RlConfig | PpoSettings | None, engine: str | None) -> dict[str, str]:
    """Lines on how completions are drawn and learned from."""
    if rl is None:
        return {}
    kl = f"KL {rl.kl_coefficient:g} ({rl.kl_estimator})" if rl.kl_coefficient else "no KL"
    if isinstance(rl, RlConfig):
        drawn, advantage = f"groups of {rl.group_size}", f"{rl.advantage}{' / std' if rl.divide_by_std else ''}"
        drawn += f" (all alike: replaced up to {rl.redraws_max} times)" if rl.redraws_max else ""
    else:
        drawn, advantage = "one of each prompt", f"GAE {rl.gae_decay:g}, discount {rl.discount:g}"
        advantage += ", whitened" if rl.whiten_advantages else ""
        kl += " in the rewards" if rl.kl_coefficient else ""
    return {
        "rewards": f"{' + '.join(rl.rewards)}; one that raises: {rl.on_reward_error}"
        + (f"; up to 1 off for the last {rl.overlong_tokens} tokens" if rl.overlong_tokens else ""),
        "rollout": f"{drawn}, up to {rl.completion_tokens_max} tokens, {rl.sequences_per_call} at a "
        f"time, temperature {rl.temperature:g}, top-p {rl.top_p:g}; for {rl.steps_per_rollout} step(s), seen "
        f"{rl.epochs_per_rollout} time(s)"
        + (f"; up to {rl.turns_max} turns with {rl.environment}" if rl.environment else "")
        + (f"; drawn by {engine}, which gets {rl.engine_sync or 'no'} new weights" if engine else ""),
        "advantage": f"{advantage}, weighed by {rl.length_normalization}; "
        f"clip {rl.clip_low:g} {rl.clip_high:g}, {kl}"
        + (f", importance up to {rl.importance_max:g}" if rl.importance_max is not None else ""),
        **(_described_critic(rl) if isinstance(rl, PpoSettings) else {}),
    }


def _described_critic(rl: PpoSettings) -> dict[str, str]:
    clip = "values not clipped" if rl.value_clip is None else f"values clipped at {rl.value_clip:g}"
    return {"critic": f"a head on the policy's trunk, {rl.value_coefficient:g} of the loss, {clip}"}


def _optimizer_refusals(config: SftConfig, machine: Machine) -> Iterator[Refusal]:
    """The rules of what each optimizer can be given."""
    optimizer = config.optimizer
    backend = _backend(config, _place(config, machine)[0])
    if optimizer.kind != "adamw" and backend not in ("single", "ddp"):
        yield Refusal(
            "optimizer.kind",
            f"{optimizer.kind}, with {backend}, which cuts weights into parts",
            "adamw, or a backend that keeps each weight whole: single or ddp",
            "add --backend ddp, or leave the setting out",
        )
    if optimizer.momentum is not None and optimizer.kind != "muon":
        got = f"{optimizer.momentum:g}, with {optimizer.kind}"
        yield Refusal("optimizer.momentum", got, "muon", "leave it out; the momentum of adamw is beta1")
    if optimizer.fused is not None and optimizer.kind == "adamw_8bit":
        got = f"{str(optimizer.fused).lower()}, with adamw_8bit"
        yield Refusal("optimizer.fused", got, "adamw or muon", "leave it out: adamw_8bit has one way")


def _exports(config: SftConfig) -> tuple[ExportKind, ...]:
    match config.checkpoint.export:
        case "none":
            return ()
        case "model" | "adapter" | "merged" as one:
            return (one,)
        case "adapter+merged":
            return ("adapter", "merged")
        case "auto":
            return ("adapter", "merged") if config.lora else ("model",)


def _jsonable(value: Any) -> Any:
    """The value as JSON would give it back: tuples become lists."""
    if isinstance(value, dict):
        return {name: _jsonable(each) for name, each in value.items()}
    return [_jsonable(each) for each in value] if isinstance(value, (list, tuple)) else value
