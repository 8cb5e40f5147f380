"""Makes the demo's problems, tokenizer and warm-started model in one folder.

The folder is made under a temporary name and renamed, so that no run trains on the half-made model of a killed process.
If the folder already exists with the same seed, it is left as it is.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from deepcoder_trainer.checkpoint.storage import file_sha256
from deepcoder_trainer.demo.generator import Chain, distinct_chains, draw_tests
from deepcoder_trainer.demo.programs import sloppy_answer
from deepcoder_trainer.demo.tokenizer import train_tokenizer
from deepcoder_trainer.demo.warmstart import WarmStart, small_qwen2, warm_start

TRAIN_PROBLEMS = 2048
HELD_OUT_PROBLEMS = 256
VOCABULARY = 1024
CONTEXT_TOKENS = 512
_RECORD = "demo.json"


class DemoExists(Exception):
    """The output folder exists with other content. The message says what to do."""


def make_demo(output: Path, seed: int, say: Callable[[str], None], settings: WarmStart | None = None) -> None:
    """Make the folder, or leave it unchanged if it was made with the same inputs. Raises DemoExists."""
    settings = settings or WarmStart()
    inputs = _inputs(seed, settings)
    if output.exists():
        record = output / _RECORD
        if record.is_file() and json.loads(record.read_text()) == inputs:
            say(f"{output} was made before with seed {seed}")
            return
        raise DemoExists(f"--output {output} exists and was not made with these inputs: remove it, or choose another")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        _fill(partial, seed, settings, say)
        (partial / _RECORD).write_text(json.dumps(inputs, indent=2, sort_keys=True) + "\n")
        partial.chmod(0o755)
        try:
            partial.rename(output)
        except OSError as error:
            raise DemoExists(f"--output {output} appeared meanwhile ({error.strerror}): is it made twice?") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _inputs(seed: int, settings: WarmStart) -> dict[str, Any]:
    """Return all inputs that determine the folder's content, as JSON values."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    inputs = {
        "seed": seed,
        "trainProblems": TRAIN_PROBLEMS,
        "heldOutProblems": HELD_OUT_PROBLEMS,
        "vocabulary": VOCABULARY,
        "warmStart": asdict(settings),
        "code": {path.name: file_sha256(path) for path in sources},
    }
    return dict(json.loads(json.dumps(inputs)))


def _fill(directory: Path, seed: int, settings: WarmStart, say: Callable[[str], None]) -> None:
    rng = random.Random(f"demo-problems/{seed}")
    chains = distinct_chains(rng)
    held_out = list(islice(chains, HELD_OUT_PROBLEMS))
    train = list(islice(chains, TRAIN_PROBLEMS))
    _write_problems(directory / "heldout.jsonl", "heldout", held_out, rng)
    _write_problems(directory / "train.jsonl", "train", train, rng)
    say(f"{len(train)} training problems, {len(held_out)} held back")

    answers = (sloppy_answer(c, rng, settings.sloppiness) for c in train)
    tokenizer = train_tokenizer([*(c.statement for c in train), *answers], VOCABULARY, CONTEXT_TOKENS)
    model = small_qwen2(len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id, CONTEXT_TOKENS, seed)
    say(f"a Qwen2 of {model.num_parameters():,} parameters, {len(tokenizer)} tokens of vocabulary")

    def report(step: int, loss: float) -> None:
        if step % 100 == 0 or step == settings.steps:
            say(f"warm start: step {step}/{settings.steps}, loss {loss:.3f}")

    warm_start(model, tokenizer, settings, seed, {c.statement for c in held_out}, report)
    disable_progress_bar()
    model.save_pretrained(directory / "model")
    tokenizer.save_pretrained(directory / "model")


def _write_problems(path: Path, split: str, chains: Iterable[Chain], rng: random.Random) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number, chain in enumerate(chains):
            row = {
                "id": f"demo-{split}-{number:04d}",
                "source": "demo",
                "prompt": chain.statement,
                "tests": [test.model_dump() for test in draw_tests(chain, rng)],
                "time_limit_s": 2.0,
                "memory_limit_mb": 256,
                "solution": chain.program(),
                "metadata": {"family": chain.family.name, "steps": len(chain.steps)},
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
