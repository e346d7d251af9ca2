"""The road of every recipe, from a plan to an exported model. Read it aloud from top to bottom.

A recipe (`training.recipe`) says what is read and what is learned; everything else is here, once. Left under `out`:

    plan.txt  metrics.jsonl  summary.json     what was decided, what happened, what it came to
    run.json                                  who took part, and where
    completions.jsonl                         what the model said and what for, if it learns from that
    reference.safetensors                     what the model was compared with, if the loss compares
    checkpoints/                              to go on from
    model/  or  adapter/ and merged/          Hugging Face directories
"""

import random
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.checkpoint.export import export
from training.checkpoint.lock import only_process
from training.checkpoint.resume import Place, check_same, find, load
from training.checkpoint.save import save
from training.checkpoint.saver import Content, Saver
from training.checkpoint.state import (
    arrays_digest,
    capture,
    files_of,
    frozen_digest,
    replicated_names,
    restore,
    trained_shapes,
)
from training.data.batch import Batch, with_columns
from training.data.loader import Loader
from training.errors import ConfigError
from training.imports import import_lean
from training.loop import Heard, Patience, StopRequest, run
from training.metrics.progress import ProgressLine
from training.metrics.records import CheckpointRecord, Records, StepRecord, ValidationRecord, read_records
from training.metrics.summary import RunSummary, summarize
from training.models.compile import compile_layers, uncompile_layers
from training.models.critic import add_critic, remove_critic
from training.models.forward import logprobs, logprobs_and_values, values
from training.models.head import chunked_head
from training.models.liger import use_liger
from training.models.load import Head, check_documents_stay_apart, check_prompts_can_be_shared, load_model
from training.models.lora import add_adapter
from training.models.neftune import add_noise
from training.models.quantize import nf4
from training.optimizer import optimizer_of
from training.parallel.backend import Backend
from training.parallel.ddp import Ddp
from training.parallel.first import on_first
from training.parallel.launch import launch
from training.parallel.presence import present, write_run
from training.parallel.single import Single
from training.parallel.world import World, joined, started_by_launcher
from training.plan import Plan
from training.reading import described, read_data
from training.recipe import ChangesOverSteps, MakesBatches, Recipe, Running
from training.reference import with_reference
from training.step import train_step, validate


def train(plan: Plan, recipe: Recipe) -> RunSummary:
    """Trains what the plan says, from where the last process stopped, and leaves the files listed above.

    Raises:
        PlumblineError: of the branch that says what was wrong; see `training.errors`.
    """
    if plan.backend == "single":
        return _locked(plan, recipe, Single(plan.device, plan.precision))
    if world := started_by_launcher():
        return _rank(plan, recipe, world)
    # What every rank would spend seconds on is imported once, before they fork.
    if plan.lora:
        import_lean("peft")
    if plan.quantization != "none":
        import_lean("bitsandbytes")
    if plan.backend == "fsdp":
        import training.parallel.fsdp  # noqa: F401 - for the ranks
    if plan.backend == "deepspeed" and plan.device == "cpu":
        from training.parallel.deepspeed import preload

        preload(plan.device)
    return launch(partial(_rank, plan, recipe), plan.num_ranks, method="fork" if plan.device == "cpu" else "spawn")


def _rank(plan: Plan, recipe: Recipe, world: World) -> RunSummary:
    """The run as one rank of several sees it."""
    with joined(world, plan.device, seconds_max=plan.collective_seconds_max) as device:
        if plan.backend == "ddp":
            return _locked(plan, recipe, Ddp(world, device, plan.precision))
        if plan.zero_stage:
            from training.parallel.deepspeed import Deepspeed

            zero = Deepspeed(
                world,
                device,
                plan.precision,
                stage=plan.zero_stage,
                offload=plan.offload,
                seconds_max=plan.collective_seconds_max,
            )
            return _locked(plan, recipe, zero)
        from training.parallel.fsdp import Fsdp

        fsdp = Fsdp(
            world,
            device,
            plan.precision,
            num_shards=plan.shard_ranks or world.num_ranks,
            keep_gathered=plan.keep_gathered,
            offload=plan.offload,
            seconds_max=plan.collective_seconds_max,
        )
        return _locked(plan, recipe, fsdp)


def _locked(plan: Plan, recipe: Recipe, backend: Backend) -> RunSummary:
    with only_process(Path(plan.out)) if backend.rank == 0 else nullcontext():
        return _trained(plan, recipe, backend)


def _trained(plan: Plan, recipe: Recipe, backend: Backend) -> RunSummary:
    out = Path(plan.out)
    checkpoints = out / "checkpoints"
    torch.set_num_threads(plan.num_threads)
    random.seed(plan.seed)
    torch.manual_seed(plan.seed)

    # A checkpoint is looked for and verified first: a refusal should not cost the time to load a model.
    found = find(checkpoints, plan.resume)
    place = Place(plan.backend, plan.zero_stage, backend.rank, backend.num_ranks, backend.num_shards)
    saved = load(found, place, elastic=plan.elastic) if found else None

    # An adapter's config names its base model, and should name it from anywhere.
    base = Path(plan.model_path).expanduser()
    base_path = str(base.resolve()) if base.is_dir() else plan.model_path
    quantization = nf4(plan.precision) if plan.quantization == "nf4" else None
    kind_of_head: Head = "new value" if plan.has_value_head else "language"
    model, tokenizer = load_model(
        base_path,
        attention=plan.attention,
        device=backend.loads_on,
        quantization=quantization,
        needs_chat_template=plan.data_kind == "chat",
        head=kind_of_head,
    )
    data = read_data(plan, recipe, tokenizer)
    if plan.liger:
        use_liger(model, plan.model_path)
    if plan.neftune_alpha:
        add_noise(model, plan.neftune_alpha)
    trained: nn.Module = add_adapter(model, plan.lora) if plan.lora else model
    if plan.has_critic:
        add_critic(trained)
    trained.train()
    if plan.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    frozen = frozen_digest(trained)
    trained = backend.wrap(trained)
    # From here on only dropout and noise draw, and ranks that drew alike would drop the same places of different
    # samples.
    torch.manual_seed(plan.seed + backend.rank)
    made = optimizer_of(
        plan.optimizer,
        trained,
        weight_decay=plan.weight_decay,
        betas=plan.betas,
        epsilon=plan.epsilon,
        fused=plan.fused,
        momentum=plan.momentum,
    )
    optimizer = backend.wrap_optimizer(trained, made)
    with backend.computing():
        check_documents_stay_apart(trained, plan.model_path)
        if plan.share_prompts:
            check_prompts_can_be_shared(trained, plan.model_path)
        head = chunked_head(trained, plan.loss_chunk_tokens, plan.model_path) if plan.loss_chunk_tokens else None
    if plan.compile:
        compile_layers(trained, plan.model_path)
    answers = logprobs_and_values if plan.has_critic else logprobs
    scored = partial(values, trained) if plan.has_value_head else partial(answers, trained, head=head)
    algorithm = recipe.algorithm(plan)
    if plan.reference:
        # Here, where the model is wrapped and has its initial weights: a step or a checkpoint changes them.
        sets = {"training": data.training, "validation": data.validation}
        sets = with_reference(
            plan, sets, model=trained, scored=scored, backend=backend, tokenizer=tokenizer, goes_on=found is not None
        )
        data = replace(data, training=sets["training"], validation=sets["validation"])

    def built() -> nn.Module:
        again = load_model(
            base_path,
            attention=plan.attention,
            quantization=quantization,
            needs_chat_template=False,
            head=kind_of_head,
        ).model
        adapted: nn.Module = add_adapter(again, plan.lora) if plan.lora else again
        if plan.has_critic:
            add_critic(adapted)
        return adapted

    makes = None
    if isinstance(recipe, MakesBatches):
        makes = recipe.batches(plan, data.training, Running(trained, tokenizer, backend, scored, built))
    batches = makes or Loader(
        data.training,
        samples_per_step=plan.samples_per_step,
        tokens_per_rank_max=plan.tokens_per_rank_max,
        seed=plan.seed,
        rank=backend.rank,
        num_ranks=backend.num_ranks,
        packing=plan.packing,
        share_prompts=plan.share_prompts,
    )
    num_steps = plan.num_steps or (plan.num_epochs or 1) * batches.steps_per_epoch
    identity = {
        "plan": plan.trajectory(),
        "number of steps": num_steps,
        "training examples": arrays_digest(
            array
            for each in data.training
            for array in (each.token_ids, each.weights, each.document_starts, *each.columns.values())
        ),
        "frozen weights": frozen,
        "trained weights": trained_shapes(trained),
    }
    _check_ranks_agree(backend, identity | {"checkpoint": found.name if found else None})
    first_step = 0
    patience = Patience(plan.patience, plan.improvement_min)
    if saved:
        check_same(saved, identity, elastic=plan.elastic)
        restore(saved.tensors, trained, optimizer, is_whole=saved.is_whole)
        first_step = saved.step
        patience.heard = Heard(**saved.state["heard"])
    if makes:
        makes.restore(first_step, saved.state["batches"] if saved else None)
    del saved
    num_taken = first_step

    def as_of(step: int, batch: Batch) -> Batch:
        changing = recipe.columns(plan, step, num_steps) if isinstance(recipe, ChangesOverSteps) else {}
        return with_columns(batch, changing)

    def take_step(step: int) -> StepRecord:
        nonlocal num_taken
        record = train_step(
            as_of(step, batches.batch(step)),
            model=trained,
            algorithm=algorithm,
            optimizer=optimizer,
            backend=backend,
            learning_rate=plan.schedule.learning_rate(step, num_steps),
            gradient_norm_max=plan.gradient_norm_max,
            logprobs=scored,
        )
        num_taken = step + 1
        return makes.described(record) if makes else record

    def validation_loss(step: int) -> ValidationRecord:
        held_out = Loader(
            data.validation,
            samples_per_step=plan.samples_per_step,
            tokens_per_rank_max=plan.tokens_per_rank_max,
            seed=plan.seed,
            rank=backend.rank,
            num_ranks=backend.num_ranks,
            shuffle=False,
            packing=plan.packing,
            share_prompts=plan.share_prompts,
        )
        in_order = (as_of(num_steps - 1, held_out.batch(number)) for number in range(held_out.steps_per_epoch))
        return validate(in_order, step=step, model=trained, algorithm=algorithm, backend=backend, logprobs=scored)

    def captured() -> Content:
        return files_of(capture(trained, optimizer), backend, num_shards=backend.num_shards), {
            "identity": identity,
            "replicated": replicated_names(trained),
            "num_shards": backend.num_shards,
            "heard": asdict(patience.heard),
            "batches": makes.state(num_taken) if makes else None,
        }

    savers = backend.apart(seconds_max=plan.collective_seconds_max)

    def write(step: int, content: Content) -> int:
        tensors, state = content
        path = save(
            checkpoints,
            step,
            tensors=tensors,
            state=state,
            num_kept=plan.num_kept,
            num_best_kept=plan.num_best_kept,
            validation_loss=state["heard"]["loss"] if state["heard"]["step"] == step else None,
            ranks=savers,
        )
        return sum(file.stat().st_size for file in path.iterdir()) if backend.rank == 0 else 0

    def report(record: CheckpointRecord) -> None:
        if records and progress:
            records.write(record)
            progress.show(record)

    def write_presence() -> None:
        everyone = backend.gather(present(backend.device, trained.parameters()))
        if backend.rank == 0:
            write_run(out / "run.json", plan=asdict(plan), first_step=first_step, ranks=everyone)

    write_presence()
    records: Records | None = None
    progress: ProgressLine | None = None
    with ExitStack() as opened:
        # First, so that whoever sees the run begin may stop it.
        stop = opened.enter_context(StopRequest(backend.gather, says=backend.rank == 0))
        # One rank writes and speaks; what it writes is the same on all.
        if backend.rank == 0:
            (out / "plan.txt").write_text(plan.describe() + "\n", encoding="utf-8")
            records = opened.enter_context(Records(out / "metrics.jsonl", resumed_step=first_step))
            progress = opened.enter_context(
                ProgressLine(first_step=first_step, num_steps=num_steps, steps_between=plan.progress_steps_between)
            )
            progress.say(described(plan, data, tokenizer))
            progress.say(
                f"start       {'after ' + found.name if found else 'from the beginning'}, {num_steps} steps in all"
            )
        saver = opened.enter_context(Saver(captured, write, report, asynchronous=plan.asynchronous))
        outcome = run(
            first_step=first_step,
            num_steps=num_steps,
            take_step=take_step,
            validate=validation_loss if data.validation else None,
            saver=saver,
            records=records,
            progress=progress,
            stop=stop,
            patience=patience,
            checkpoint_steps_between=plan.checkpoint_steps_between,
            validation_steps_between=plan.validation_steps_between,
            steps_this_session_max=plan.steps_this_session_max,
        )

    write_presence()

    # An export is compared bit for bit with a model that is loaded anew, and that one is not compiled.
    if plan.compile:
        uncompile_layers(trained)
    kinds = plan.exports if outcome.is_finished else ()
    whole = backend.whole(trained, built) if kinds else None
    if plan.has_critic and whole is not None:
        remove_critic(whole)

    def exported() -> RunSummary:
        summary = summarize(
            read_records(out / "metrics.jsonl"),
            data.summary,
            num_steps_planned=num_steps,
            stopped_by=outcome.stopped_by,
            is_finished=outcome.is_finished,
            exports={
                kind: str(export(whole, tokenizer, out / kind, kind=kind, base_path=base_path))
                for kind in kinds
                if whole is not None
            },
        )
        summary.write(out / "summary.json")
        return summary

    of_first = backend.gather(on_first(backend, exported))[0]
    assert of_first is not None
    return of_first


def _check_ranks_agree(backend: Backend, facts: dict[str, Any]) -> None:
    """Compares what each rank has read; raises on all of them if one has read something else."""
    everyone = backend.gather(facts)
    for rank, theirs in enumerate(everyone):
        for name, value in theirs.items():
            if value != everyone[0][name]:
                raise ConfigError(
                    f"rank {rank} ({name})",
                    got=str(value),
                    expected=f"{everyone[0][name]}, as on rank 0",
                    hint="give every machine the same files, and an --out that all of them share",
                )
