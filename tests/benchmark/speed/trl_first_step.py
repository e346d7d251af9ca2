"""One optimizer step of SFT with TRL, as short as it can be written; says its loss as `starting` expects it."""

import sys
from typing import Any

from datasets import load_dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer


class Saying(TrainerCallback):
    """Prints each step's loss."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
        """Is called with what was logged."""
        if "loss" in logs:
            print(f"step {state.global_step}/{state.max_steps}  loss {logs['loss']}", flush=True)


def main() -> None:
    """Trains on `chat.jsonl`, from `base`."""
    per_device, accumulated, rate = sys.argv[1:]
    arguments = SFTConfig(
        output_dir="out",
        per_device_train_batch_size=int(per_device),
        gradient_accumulation_steps=int(accumulated),
        num_train_epochs=1,
        learning_rate=float(rate),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        assistant_only_loss=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    data = load_dataset("json", data_files="chat.jsonl", split="train", keep_in_memory=True)
    SFTTrainer(model="base", args=arguments, train_dataset=data, callbacks=[Saying()]).train()


if __name__ == "__main__":
    main()
