"""Whole runs by hand, as a researcher starts them, that tests watch, kill and compare.

Nothing is replaced: vLLM, torch, Ray, the judge and storage are real, and only the model is tiny. Each of its tokens
is a digit, a word, a whole program or an answer in a box, so that a random model writes programs and answers of which
some are right, and a judge has something to tell apart and training something to learn.

All that a run leaves lies in one short folder under /tmp (Ray's sockets allow no long path), whose name is also in the
environment of every process of the run: that is how the ones are found that were started while others were killed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil
import yaml

NUMBERS = 4
"""Problems ask for one of so many numbers."""
BUSY = "The current node timed out during startup"
"""Ray's words when its daemons took more than the 30 s that it gives them."""
MOST_TRIES = 5
"""Starts in a row for which the machine may be too busy."""


def make_model(directory: Path, *, hidden: int = 128, layers: int = 2, mathematics: bool = False) -> Path:
    """A tied Qwen2 of random weights, in shapes that vLLM's CPU kernels know, whose tokens are programs and words."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    words = ["<pad>", "<eos>", "<unk>", "say", *map(str, range(NUMBERS))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.Fuse()
    programs = [f"\n```python\nprint({n})\n```\n" for n in range(NUMBERS)]
    answers = [f"\\boxed{{{n}}}" for n in range(NUMBERS)] if mathematics else []
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in programs + answers])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>").save_pretrained(directory)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(words) + len(programs) + len(answers),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        intermediate_size=2 * hidden,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        eos_token_id=1,
        pad_token_id=0,
        architectures=["Qwen2ForCausalLM"],
    )
    Qwen2ForCausalLM(config).save_pretrained(directory)
    return directory


def problems(path: Path, mathematics: bool) -> Path:
    """Ask for each number in several ways, with `mathematics` once for an answer in a box."""
    rows = [
        {"id": f"p{i}", "prompt": f"say {i % NUMBERS} " * (1 + i // NUMBERS), "tests": [{"input": "", "output": out}]}
        for i in range(7)
        for out in [f"{i % NUMBERS}\n"]
    ]
    if mathematics:
        rows += [{"id": "mathematics", "prompt": "say 3 say 3 say 3", "answer": r"\frac{6}{2}"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class RealRun:
    """A run's file, and the processes that work on it one after another; leaving the context ends and removes all."""

    def __init__(self, folder: Path, model: Path, storage: dict[str, Any], *, steps: int, **more: Any) -> None:
        """`storage` as in the file; `more` is of its recipe, but `resources` of its one stage, called `short`,
        and `mathematics`, which adds such a problem."""
        name = storage["uri"].rsplit("/", 1)[1]
        self.name, self.steps = name, steps
        self.log = folder / f"{name}.log"
        self.path = folder / f"{name}.yaml"
        self.too_busy = 0
        """Attempts that ended since Ray did not start in time."""
        self._in_a_row = 0
        self.scratch = Path(tempfile.mkdtemp(prefix="run", dir="/tmp"))
        """The temporary folder of its processes."""
        self._started: list[subprocess.Popen[bytes]] = []
        stage = {"name": "short", "type": "Train", "contextTokens": 8, "maxSteps": steps}
        document = {
            "kind": "LocalRun",
            "name": "run",
            "model": {"uri": str(model)},
            "dataset": {"uri": str(problems(folder / "problems.jsonl", more.pop("mathematics", False)))},
            "stages": [{**stage, "resources": more.pop("resources", {})}],
            "storage": storage,
            "recipe": {
                "promptsPerStep": 4,
                "groupSize": 4,
                "learningRate": 1e-3,
                "temperature": 1.0,
                "maxPromptTokens": 16,
                "precision": "Float32",
                "deterministic": True,
                **more,
            },
        }
        self.path.write_text(yaml.safe_dump(document))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            self.kill(process)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Run it, or another command of the trainer's, whose output is in the log too."""
        process = subprocess.Popen(
            [sys.executable, "-m", "deepcoder_trainer", *(command or ("run", "--config", str(self.path)))],
            env={**os.environ, "TMPDIR": str(self.scratch)},
            stdout=self.log.open("ab"),
            stderr=self.log.open("ab"),
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def finish(self, process: subprocess.Popen[bytes], seconds: float = 900) -> None:
        """Until it is done."""
        while process.wait(seconds) != 0:
            process = self.start_again(process)

    def start_again(self, process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        """In the place of a process that ended by itself, if only because the machine was too busy to start Ray."""
        words = self.words()
        assert BUSY in words[-1000:], f"{self.name} ended with {process.returncode}: {words}"
        self.too_busy += 1
        self._in_a_row += 1
        assert self._in_a_row <= MOST_TRIES, words
        return self.start()

    @property
    def left(self) -> list[str]:
        """Folders of its processes that are still there."""
        return sorted(path.name for kind in ("judge", "model") for path in self.scratch.glob(f"deepcoder-{kind}-*"))

    def words(self) -> str:
        """The end of its log."""
        return self.log.read_text()[-4000:]

    def processes(self, process: subprocess.Popen[bytes]) -> list[psutil.Process]:
        """The process, if it lives, and all that descend from it."""
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(process.pid)
            return [root, *root.children(recursive=True)]
        return []

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL for the process and all that descend from it, until none is left."""
        self._in_a_row = 0
        if process.poll() is None:
            _kill(self.processes(process))
            process.wait(30)
        deadline = time.monotonic() + 60
        while left := list(self._orphans()):  # of parents that were killed, or started meanwhile
            assert time.monotonic() < deadline, f"still there: {left}"
            _kill(left)
            time.sleep(0.02)

    def _orphans(self) -> Iterator[psutil.Process]:
        for each in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if each.environ().get("TMPDIR") == str(self.scratch) and each.status() != psutil.STATUS_ZOMBIE:
                    yield each


def _kill(processes: list[psutil.Process]) -> None:
    for each in processes:
        with suppress(psutil.NoSuchProcess):
            each.kill()
