"""Real conversations between people, for the real SmolLM2-135M-Instruct: the quickstart's model and data.

Nobody can verify small talk, so there are no problems: what is judged is how likely the model finds what people said
next in conversations that it has not seen.
"""

import random

from tests.benchmark.tasks.task import Data, Task
from training.quickstart.chitchat import data_file, read_conversations, sample, split
from training.quickstart.smollm import write_smollm

NUM_TRAINING, NUM_HELD_OUT = 1024, 24
SPLIT_SEED = 0


def chat_data(seed: int) -> Data:
    """Conversations to train on, drawn by the seed, and those held out, the same for all."""
    divided = split(
        read_conversations(data_file()), seed=SPLIT_SEED, num_training_max=1_000_000, num_held_out=NUM_HELD_OUT
    )
    training = random.Random(seed).sample(divided.training, NUM_TRAINING)
    return Data(
        training=[sample(turns) for turns in training],
        held_out=[sample(turns) for turns in divided.held_out],
        problems=[],
    )


CHAT = Task("chat", write_smollm, chat_data)
