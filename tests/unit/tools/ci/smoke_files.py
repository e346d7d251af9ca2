"""A smoke tier that never ran: a matrix of the real one's size, refusals by rules like the plan's, and verdicts."""

import itertools
import json
import math
from typing import Any

FEATURES = (
    "activation_checkpointing",
    "chunked_loss",
    "compile",
    "cpu_offload",
    "dora",
    "liger",
    "lora",
    "packing",
    "qlora",
)
CARDS = {"cpu": (1, 2, 4), "nvidia": (1, 4), "amd": (1, 4), "intel": (1, 4)}
FRAMEWORKS = ("single", "ddp", "fsdp", "deepspeed")

#: Each with the number of features that its cells have at most.
RECIPES = {"sft": 99, "ppo": 1}

CLAIMS = ("loss_falls", "resume_is_exact", "checkpoint_committed", "export_equals", "golden", "world", "nothing_leaked")


def refusal(variant: str, framework: str, cards: int, features: tuple[str, ...]) -> dict[str, str] | None:
    """Why a combination is refused, by rules that resemble the plan's."""
    rules = (
        (framework == "single" and cards > 1, "backend", f"single on {cards} cards", "one card", "choose ddp or fsdp"),
        (framework == "ddp" and cards == 1, "backend", "ddp on 1 card", "several cards", "choose single"),
        ("lora" in features and "qlora" in features, "model.lora", "lora and qlora", "one of them", "qlora has lora"),
        ("dora" in features and "lora" not in features, "lora.dora", "dora without lora", "lora", "add lora"),
        ("qlora" in features and framework == "deepspeed", "model.qlora", "deepspeed", "fsdp", "choose fsdp"),
        (
            "cpu_offload" in features and framework in ("single", "ddp"),
            "cpu_offload",
            f"cpu_offload with {framework}",
            "fsdp or deepspeed",
            "leave it out",
        ),
        ("liger" in features and variant == "cpu", "loss.liger", "liger on cpu", "triton", "use chunked_loss"),
        ("liger" in features and "chunked_loss" in features, "loss", "liger and chunked_loss", "one", "drop one"),
        ("compile" in features and framework == "deepspeed", "model.compile", "deepspeed", "fsdp", "leave it out"),
    )
    broken = next((rule for rule in rules if rule[0]), None)
    return dict(zip(("field", "got", "expected", "hint"), broken[1:], strict=True)) if broken else None


def matrix(features: tuple[str, ...] = FEATURES) -> dict[str, Any]:
    """About 14,000 cells; those of one or two cards with at most one feature are blocking, and some others."""
    cells = []
    for recipe, variant, framework in itertools.product(RECIPES, CARDS, FRAMEWORKS):
        for cards in CARDS[variant]:
            for size in range(min(len(features), RECIPES[recipe]) + 1):
                for chosen in itertools.combinations(features, size):
                    cells.append(cell(variant, framework, cards, chosen, recipe))
    return {"schema": 1, "cells": cells}


def cell(variant: str, framework: str, cards: int, features: tuple[str, ...], recipe: str = "sft") -> dict[str, Any]:
    """One row of the matrix."""
    accelerator = "" if variant == "cpu" else f".gpu-{variant}"
    name = "_".join([recipe, *features, framework, f"x{cards}"]) + accelerator
    why = refusal(variant, framework, cards, features)
    blocking = (
        (len(features) < 2 and cards < 4)
        or (len(features) == 2 and "packing" in features)
        or features == ("dora", "lora")
    )
    return {
        "name": name,
        "recipe": recipe,
        "variant": variant,
        "framework": framework,
        "cards": cards,
        "features": list(features),
        "depth": None if why else "blocking" if blocking else "full",
        "target": None if why else f"//tests/smoke:smoke.{name}",
        "claims": [] if why else list(CLAIMS),
        "refusal": why,
    }


def curve(steps: int = 12, shift: float = 0.0) -> list[dict[str, float]]:
    """A loss that falls, a little differently where it is shifted."""
    return [
        {
            "step": step,
            "loss": 6.2 * math.exp(-step / 9) + 0.9 + shift * step,
            "gradient_norm": 2.4 / (1 + step / 4) + 0.1 * math.sin(step),
        }
        for step in range(1, steps + 1)
    ]


def verdict(of: dict[str, Any], **changes: Any) -> str:
    """The verdict file of a cell, proven unless changed."""
    record = {
        "schema": 1,
        "cell": {name: of[name] for name in ("name", "recipe", "variant", "framework", "cards", "features")},
        "target": of["target"],
        "status": "proven",
        "claims": [
            claim("loss_falls", "the loss is finite and falls", "6.448 → 2.534", "last < first"),
            claim("resume_is_exact", "a killed run that goes on equals one that was never stopped", 0.0, 0.0),
            claim("checkpoint_committed", "the checkpoint is complete and committed", "2 of 2 ranks", "all ranks"),
            claim("export_equals", "the export reloads to equal logits", 2.4e-7, 1e-5),
            claim("golden", "the curve equals the golden curve of this cell", 4.8e-7, 2e-6),
            claim("world", "world and device are what was asked for", of["cards"], of["cards"]),
            claim("nothing_leaked", "no process, file or port is left", 0, 0),
        ],
        "phases": [
            {"name": name, "seconds": seconds, "seconds_max": most, "bytes_written": size}
            for name, seconds, most, size in (
                ("set up", 6.1, 20.0, 120_344),
                ("steps", 3.4, 15.0, 2_211),
                ("checkpoint", 0.6, 5.0, 1_204_224),
                ("kill", 0.2, 5.0, 0),
                ("resume", 5.2, 20.0, 4_110),
                ("export", 1.4, 10.0, 602_112),
                ("tear down", 0.1, 5.0, 0),
            )
        ],
        "curve": curve(),
        "golden": curve(),
        "tolerance": 2e-6,
        "seed": 7,
        "versions": {"torch": "2.13.0+cpu", "transformers": "5.23.0"},
        "hardware": {"device": "cpu", "processor": "Example 9000", "cores": 2, "memory_bytes": 25_769_803_776},
        "replay": f"./bazelw test {of['target']} --test_env=PLUMBLINE_SEED=7 --nocache_test_results",
    }
    return json.dumps({**record, **changes})


def claim(name: str, says: str, measured: Any, bound: Any, *, holds: bool = True, detail: str = "") -> dict[str, Any]:
    """One claim of a verdict."""
    return {"name": name, "says": says, "holds": holds, "measured": measured, "bound": bound, "detail": detail}
