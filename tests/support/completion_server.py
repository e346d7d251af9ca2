"""A small real server of completions over loopback: OpenAI's protocol around the toolkit's own `generate`.

What it knows of vLLM's and SGLang's words is what the toolkit says to them. It draws from the model of a directory, or
from adapters on it that it was told to load, and tells no text of tokens.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import numpy as np
import torch

from training.models.load import load_model
from training.models.lora import load_adapter
from training.rollout.generate import Sampling, generate


class CompletionServer(ThreadingHTTPServer):
    """The server; `address` is what a run is told."""

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models: dict[str, Any] = {"base": load_model(str(directory)).model}
        self.directory, self.lock, self.paths = directory, Lock(), list[str]()

    @property
    def address(self) -> str:
        """Of this server, up to where the protocol begins."""
        return f"http://127.0.0.1:{self.server_port}/v1"

    def answer(self, path: str, body: dict[str, Any]) -> Any:
        """What is said to a request; an exception becomes status 400."""
        self.paths.append(path)
        match path:
            case "/v1/models":
                return {"data": [{"id": name} for name in self.models]}
            case "/v1/load_lora_adapter":
                base = load_model(str(self.directory)).model
                self.models[body["lora_name"]] = load_adapter(base, body["lora_path"])
                return "loaded"
            case "/v1/unload_lora_adapter":
                del self.models[body["lora_name"]]
                return "unloaded"
            case "/update_weights_from_disk":
                self.models["base"] = load_model(body["model_path"]).model
                return {"success": True}
            case "/v1/completions":
                return self._complete(body)
        raise KeyError(path)

    def _complete(self, body: dict[str, Any]) -> Any:
        (drawn,) = generate(
            self.models[body["model"]],
            [np.array(body["prompt"], dtype=np.int32)],
            sampling=Sampling(
                body["temperature"], body["top_p"], body["max_tokens"], frozenset(body["stop_token_ids"])
            ),
            seeds=[body["seed"]],
            device=torch.device("cpu"),
        )
        tokens = [f"token_id:{each}" if body["return_tokens_as_token_ids"] else "?" for each in drawn.token_ids]
        return {"choices": [{"logprobs": {"tokens": tokens, "token_logprobs": drawn.logprobs.tolist()}}]}


class _Handler(BaseHTTPRequestHandler):
    server: CompletionServer

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: dict[str, Any]) -> None:
        try:
            with self.server.lock:
                said, status = self.server.answer(self.path, body), 200
        except Exception as error:
            said, status = {"error": f"{type(error).__name__}: {error}"}, 400
        data = (said if isinstance(said, str) else json.dumps(said)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@contextmanager
def serving(directory: Path) -> Iterator[CompletionServer]:
    """A server of a model's directory, in a thread of this process."""
    with CompletionServer(directory) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
