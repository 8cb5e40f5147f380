"""The serving example's own command and values, at 64K and at 128K by YaRN, asked with prompts that are so long.

The model is small and random, with the positions of the published one's configuration; what is long is real: the
server has the example's length and scaling, and its log-probabilities at the end of tens of thousands of tokens are
those of the layers computed here.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import export_world
import pytest
import yaml

from deepcoder_trainer.sampler.engine import CPU_ENVIRONMENT, ENVIRONMENT

pytestmark = [pytest.mark.vllm, pytest.mark.long, pytest.mark.timeout(1800)]

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "serve-vllm.yaml"
CPU = {**CPU_ENVIRONMENT, "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "2"}
POSITIONS = 131072
"""Of the published model's config.json."""
TRAINED = 32768
"""What Qwen2.5, which it comes from, was trained for."""
SHAPE: dict[str, Any] = {
    "max_position_embeddings": POSITIONS,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    **{"hidden_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32},
}
"""One layer of four heads: attention over 70,000 tokens is seconds."""


def at_64k() -> dict[str, str]:
    """The example's values as they are."""
    settings = next(d for d in yaml.safe_load_all(EXAMPLE.read_text()) if d["kind"] == "ConfigMap")["data"]
    return {name: settings[name] for name in ("MAX_MODEL_LEN", "HF_OVERRIDES")}


def at_128k() -> dict[str, str]:
    """The values in its comments."""
    block = re.search(r"#   (MAX_MODEL_LEN: \"131072\"\n(?:  #.*\n)+)", EXAMPLE.read_text())
    assert block is not None
    return dict(yaml.safe_load(re.sub(r"^  #   ", "", block[1], flags=re.M)))


@contextmanager
def served(model: Path, settings: Mapping[str, str], log: Path) -> Iterator[str]:
    """The example's server on this machine, in float32; its address."""
    documents = yaml.safe_load_all(EXAMPLE.read_text())
    [server] = next(d for d in documents if d["kind"] == "Deployment")["spec"]["template"]["spec"]["containers"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    here = {"--model": str(model), "--host": "127.0.0.1", "--port": str(port)}
    arguments = []
    for argument in server["args"]:
        name, _, value = argument.partition("=")
        value = here.get(name, re.sub(r"\$\((\w+)\)", lambda named: settings[named[1]], value))
        arguments.append(f"{name}={value}")
    command = [sys.executable, *server["command"][1:], *arguments, "--dtype=float32", "--enforce-eager"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--max-num-seqs=2"], env={**os.environ, **ENVIRONMENT, **CPU}, stdout=file, stderr=file
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for_health(address, process, log)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def wait_for_health(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 600
    while True:
        assert process.poll() is None, log.read_text()[-12000:]
        assert time.monotonic() < deadline, f"the server is not up: {log.read_text()[-12000:]}"
        try:
            with urlopen(f"{address}/health", timeout=10):
                return
        except (URLError, OSError):
            time.sleep(1)


def complete(address: str, body: Mapping[str, Any]) -> dict[str, Any]:
    request = {"model": "deepcoder", "temperature": 0, **body}
    headers = {"Content-Type": "application/json"}
    with urlopen(Request(f"{address}/v1/completions", json.dumps(request).encode(), headers), timeout=900) as answer:
        return dict(json.loads(answer.read()))


def last_logprobs(model: Path, prompt: list[int]) -> Any:
    """Log-probabilities of what follows a prompt, layer by layer in float32."""
    from deepcoder_trainer.export.forward import Layerwise
    from deepcoder_trainer.export.shards import Folder
    from deepcoder_trainer.export.tensors import PretrainedTensors

    layers = Layerwise(model, PretrainedTensors(Folder(model)))
    [hidden] = layers.hidden([prompt])
    return layers.logits(hidden[-1:])[0].log_softmax(-1)


@pytest.mark.parametrize(
    ("settings", "rope", "tokens"), [(at_64k, None, 40_000), (at_128k, POSITIONS, 70_000)], ids=["64K", "128K-YaRN"]
)
def test_the_example_serves_prompts_of_its_length(settings: Any, rope: int | None, tokens: int, tmp_path: Path) -> None:
    from deepcoder_trainer.export.run import Order, export

    source = export_world.commit(export_world.make_model(tmp_path / "model", **SHAPE), tmp_path / "run")
    plain, scaled = tmp_path / "plain", tmp_path / "scaled"
    export(Order(f"file://{source}", f"file://{plain}"), lambda _text: None)
    if rope is not None:  # what the example tells vLLM, an export may say by itself
        order = Order(f"file://{source}", f"file://{scaled}", rope=rope, rope_original=TRAINED)
        export(order, lambda _text: None)
    values = settings()
    prompts = [[(7 * n + n // 13) % 300 for n in range(length)] for length in (500, tokens)]
    with served(plain, values, tmp_path / "log") as address:
        with pytest.raises(HTTPError) as refused:
            complete(address, {"prompt": [1] * int(values["MAX_MODEL_LEN"]), "max_tokens": 1})
        assert refused.value.code == 400, "longer than it was told"
        found = [likeliest(address, prompt) for prompt in prompts]
    for of_vllm, prompt in zip(found, prompts, strict=True):
        assert furthest(of_vllm, last_logprobs(plain if rope is None else scaled, prompt)) < 1e-3
    if rope is not None:  # in effect at every length
        assert furthest(found[0], last_logprobs(plain, prompts[0])) > 1e-2


def likeliest(address: str, prompt: list[int]) -> dict[int, float]:
    """The server's log-probabilities of five tokens after a prompt."""
    asked = {"prompt": prompt, "max_tokens": 2, "logprobs": 5, "return_tokens_as_token_ids": True}
    answer = complete(address, asked)
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    [choice] = answer["choices"]
    told = choice["logprobs"]["top_logprobs"][0]
    assert len(told) == 5
    return {int(name.partition(":")[2]): value for name, value in told.items()}


def furthest(found: Mapping[int, float], expected: Any) -> float:
    """The largest difference of a log-probability."""
    return max(abs(value - float(expected[token])) for token, value in found.items())
