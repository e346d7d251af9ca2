"""Completions drawn by a server that speaks OpenAI's protocol (vLLM, or any other), over HTTP.

    POST ADDRESS/completions    {"prompt": token ids, "logprobs": 0, …}  →  tokens and their log-probabilities

Tokens travel as numbers in both directions, for text rendered and read again is not always the same tokens. For that
the server is asked in vLLM's words (`return_tokens_as_token_ids`); one that answers with text is refused.

Weights reach the server by a directory that it can read, too:

    adapter    POST ADDRESS/load_lora_adapter {"lora_name", "lora_path"}, as vLLM has it; the last one is unloaded
    weights    POST HOST/update_weights_from_disk {"model_path"}, as SGLang has it

Without either the server keeps what it has, and draws from another model than the one in training: the records'
mismatch says by how much, and `importance_max` corrects for it.

Standard library only, but for the arrays of a completion.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import numpy as np
from numpy.typing import NDArray

from training.errors import EngineError
from training.rollout.generate import Completion, Sampling

SECONDS_MAX = 1800
"""That one answer may take: a long completion on a busy server."""


class HttpEngine:
    """A server, and the name of what it draws from."""

    def __init__(self, address: str, *, at_once: int) -> None:
        """Asks nothing yet, so that a server may come up meanwhile.

        Args:
            address: http://host:port/v1.
            at_once: requests under way at the same time.
        """
        self.address, self.at_once = address.rstrip("/"), at_once
        self._name: str | None = None

    def complete(
        self, prompts: Sequence[NDArray[np.int32]], *, sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion]:
        """One completion for each prompt, in their order, as `training.rollout.generate.generate` returns them.

        Raises:
            EngineError: the server cannot be reached, refuses, or gives no token ids and log-probabilities.
        """
        if self._name is None:
            self._name = str(self._asked("/models")["data"][0]["id"])
        with ThreadPoolExecutor(self.at_once) as threads:
            return list(threads.map(partial(self._complete, sampling), prompts, seeds))

    def load_adapter(self, name: str, directory: Path, *, loads: bool) -> None:
        """Has further completions drawn with the adapter in a directory. All ranks call it, of which one `loads`."""
        if loads:
            self._asked("/load_lora_adapter", {"lora_name": name, "lora_path": str(directory)})
            if self._name is not None:
                self._asked("/unload_lora_adapter", {"lora_name": self._name})
        self._name = name

    def load_weights(self, directory: Path) -> None:
        """Has further completions drawn from the model in a directory."""
        self._asked("/update_weights_from_disk", {"model_path": str(directory)}, of_host=True)

    def _complete(self, sampling: Sampling, prompt: NDArray[np.int32], seed: int) -> Completion:
        said = self._asked(
            "/completions",
            {
                "model": self._name,
                "prompt": prompt.tolist(),
                "max_tokens": sampling.num_tokens_max,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "seed": seed,
                "logprobs": 0,
                "stop_token_ids": sorted(sampling.stop_ids),
                "return_tokens_as_token_ids": True,
            },
        )
        try:
            scored = said["choices"][0]["logprobs"]
            ids = [int(each.removeprefix("token_id:")) for each in scored["tokens"]]
            logprobs = [float(each) for each in scored["token_logprobs"]]
            if not ids or len(ids) != len(logprobs):
                raise ValueError(f"{len(ids)} tokens with {len(logprobs)} log-probabilities")
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise EngineError(
                self.address,
                got=f"an answer in which tokens cannot be found ({type(error).__name__}: {error})",
                expected="logprobs with tokens as token_id:N, and the log-probability of each",
                hint="take a server that knows return_tokens_as_token_ids, such as vLLM",
            ) from error
        is_finished = ids[-1] in sampling.stop_ids
        return Completion(np.array(ids, dtype=np.int32), np.array(logprobs, dtype=np.float32), is_finished)

    def _asked(self, path: str, body: dict[str, Any] | None = None, *, of_host: bool = False) -> Any:
        """The server's answer, from JSON where it is that; a body makes it a POST."""
        address = urljoin(self.address, path) if of_host else self.address + path
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=SECONDS_MAX) as answer:
                text = answer.read().decode()
        except OSError as error:
            said = error.read().decode(errors="replace") if isinstance(error, urllib.error.HTTPError) else ""
            raise EngineError(
                address,
                got=f"{error}{': ' if said else ''}{said[:300]}",
                expected="an answer of the server that draws completions",
                hint="start it, or correct --engine; the run goes on from its last checkpoint",
            ) from error
        return json.loads(text) if text.startswith("{") else text
