"""The responses that an evaluation judges: from a sampler, or from a file that another sampler wrote.

A file is JSON Lines or Parquet with one row per response. A row names its problem (`problem_id`, `task_id`,
`question_id` or `id`) and has a `response`, or a `solution`, which is a program without its fence. The rows of a
problem are its samples in order, unless they have an `index`. `finish` (`stop` or `length`) and `response_tokens` are
used if present. So the samples files that an evaluation writes can be judged again. They also say which problems the
evaluation left out because their prompts are too long: those need no response.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow.parquet as pq

from deepcoder_trainer.checkpoint.storage import file_sha256
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.evaluation.plan import EvaluationPlan
from deepcoder_trainer.problems.files import DatasetError, data_files, read_rows
from deepcoder_trainer.problems.prompt import EncodedProblem
from deepcoder_trainer.seeds import seed
from deepcoder_trainer.types import Finish, GenerationRequest, Sampler
from deepcoder_trainer.unicode_text import whole

LEFT_OUT = b"deepcoder.leftOut"
"""Key in a samples file's metadata: JSON list of the problems that were left out, by id."""
_NAMES = ("problem_id", "task_id", "question_id", "id")


@dataclass(frozen=True)
class Answer:
    """One response."""

    text: str
    finish: str
    tokens: int | None
    """Tokens of the response; None if they were not counted."""


class Answers(Protocol):
    """The source of a target's responses."""

    async def answer(self, problem_set: str, problem: EncodedProblem, group: int, index: int) -> Answer:
        """One response to a problem."""


@dataclass(frozen=True)
class SampledAnswers:
    """Responses of the samplers' current weights. The same problem, index and seed always give the same request."""

    sampler: Sampler
    plan: EvaluationPlan

    async def answer(self, problem_set: str, problem: EncodedProblem, group: int, index: int) -> Answer:
        """Sample the response. Raises what the sampler raises."""
        plan, purpose = self.plan, f"evaluation/{problem_set}"
        generation = await self.sampler.generate(
            GenerationRequest(
                request_id=f"{purpose}/{group}/{index}",
                prompt_ids=problem.prompt_ids,
                max_tokens=plan.context_tokens,
                temperature=plan.temperature,
                top_p=plan.top_p,
                # Targets are compared in pairs, and an evaluation that is done again comes to the same.
                seed=seed(plan.seed, purpose, group, index),
            )
        )
        return Answer(whole(generation.text), generation.finish.value, len(generation.output_ids))


@dataclass(frozen=True)
class GivenAnswers:
    """Responses from files."""

    by_set: Mapping[str, Mapping[str, Sequence[Answer]]]
    """Problem set to problem to its responses, in order."""
    digest: str
    left_out: Mapping[str, frozenset[str]]
    """Problem set to the ids of the problems that were left out when the responses were sampled."""

    async def answer(self, problem_set: str, problem: EncodedProblem, group: int, index: int) -> Answer:
        """Return the problem's response at `index`."""
        return self.by_set[problem_set][problem.problem.id][index]

    def check_names(self, problem_sets: Collection[str]) -> None:
        """Raise BadConfig unless exactly these problem sets have responses."""
        lacking = [name for name in problem_sets if name not in self.by_set]
        if unlike := lacking or [name for name in self.by_set if name not in problem_sets]:
            raise BadConfig(
                f"--responses {unlike[0]}: {'missing' if lacking else 'not a name in --datasets'}: give each problem "
                "set its file of responses, under the same name",
                field="--responses",
            )

    def check(self, problem_set: str, problems: Sequence[str], samples: int) -> None:
        """Raise BadConfig unless exactly these problems have responses, each the requested number."""
        given = self.by_set[problem_set]
        few = [p for p in problems if len(given.get(p, ())) < samples]
        if few:
            raise BadConfig(
                f"--responses {problem_set}: {len(few)} of {len(problems)} problems have fewer than {samples} "
                f"responses ({few[0]}: {len(given.get(few[0], ()))}): add them, or lower --n",
                field="--responses",
            )
        if many := [p for p in problems if len(given[p]) > samples]:
            most = max(len(given[p]) for p in many)
            raise BadConfig(
                f"--responses {problem_set}: {len(many)} of {len(problems)} problems have more than {samples} "
                f"responses ({many[0]}: {len(given[many[0]])}), and the others would not be measured: give --n {most}, "
                "or a file without them",
                field="--responses",
            )
        unknown = sorted(set(given) - set(problems))
        if unknown:
            raise BadConfig(
                f"--responses {problem_set}: {unknown[0]!r} is not a problem of the set ({len(unknown)} such): "
                "name the set that was answered",
                field="--responses",
            )


def read_answers(files: Mapping[str, Path]) -> GivenAnswers:
    """Responses to each problem set. Raises BadConfig, DatasetError."""
    by_set = {name: _read(path) for name, path in files.items()}
    left_out = {name: _left_out(path) for name, path in files.items()}
    digest = " ".join(f"{name} sha256:{file_sha256(path)}" for name, path in sorted(files.items()))
    return GivenAnswers(by_set, digest, left_out)


def _read(path: Path) -> dict[str, list[Answer]]:
    if not path.is_file():
        raise BadConfig(f"--responses {path}: no such file", field="--responses")
    found: dict[str, dict[int, Answer]] = {}
    for file in data_files(path):
        for row in read_rows(file):
            place = f"{file.name}:{row.number}"
            try:
                name, answer = _answer(row.fields)
            except ValueError as error:
                raise DatasetError(f"{place}: {error}") from None
            samples = found.setdefault(name, {})
            index = row.fields.get("index", len(samples))
            if not isinstance(index, int) or index in samples:
                raise DatasetError(f"{place}: index: {index!r} of {name} is there already or no number: count from 0")
            samples[index] = answer
    for name, samples in found.items():
        if sorted(samples) != list(range(len(samples))):
            raise DatasetError(f"{path.name}: index: {name} has {sorted(samples)}: count from 0 without a gap")
    return {name: [samples[i] for i in range(len(samples))] for name, samples in found.items()}


def _left_out(path: Path) -> frozenset[str]:
    """Return the problems that a samples file names as left out; none for other files."""
    if path.suffix != ".parquet":
        return frozenset()
    text = (pq.read_schema(path).metadata or {}).get(LEFT_OUT, b"[]")
    try:
        return frozenset(map(str, json.loads(text)))
    except (ValueError, TypeError):
        raise DatasetError(f"{path.name}: {LEFT_OUT.decode()}: not a list of problems: fetch the file again") from None


def _answer(row: Mapping[str, Any]) -> tuple[str, Answer]:
    name = next((str(row[field]) for field in _NAMES if row.get(field) not in (None, "")), None)
    if name is None:
        raise ValueError(f"{_NAMES[0]}: missing: name the problem")
    text = row.get("response")
    if text is None and isinstance(row.get("solution"), str):
        text = f"```python\n{row['solution']}\n```"
    if not isinstance(text, str):
        raise ValueError("response: missing: give the response as a text, or a program as solution")
    tokens, finish = row.get("response_tokens"), row.get("finish", Finish.STOP.value)
    if finish not in (Finish.STOP.value, Finish.LENGTH.value):
        raise ValueError(f"finish: {finish!r}: write stop or length")
    return name, Answer(whole(text), finish, tokens if isinstance(tokens, int) else None)
