"""Encodes a problem's text into the token ids of its prompt.

A tokenizer with a chat template gets the text as one user turn, followed by the template's opening of the answer. A
tokenizer without one (a base model's) gets the text as it is. Problems whose prompt is longer than
`recipe.maxPromptTokens` are left out and counted: a truncated statement would be another question, and failing the run
for one long row helps nobody.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepcoder_contracts.fit import IN_A_RUN
from deepcoder_trainer.types import IntArray, Problem

_TEMPLATE_DAY = datetime.date(2024, 7, 26)
"""The fixed date for chat templates that contain today's date (Llama 3.2's); it is Llama 3.1's default. With the real
date, the prompts of a run would change at midnight, and an evaluation that continues on another day would be another
evaluation."""


@dataclass(frozen=True)
class EncodedProblem:
    """A problem with its prompt as token ids."""

    problem: Problem
    prompt_ids: IntArray
    """[P] token ids, including special tokens."""


@dataclass(frozen=True)
class EncodedProblems:
    """Problems that can be drawn, and those that were left out."""

    kept: tuple[EncodedProblem, ...]
    """Problems that can be drawn, in the dataset's order."""
    too_long: tuple[str, ...]
    """Ids of problems with a prompt over the limit."""

    @property
    def digest(self) -> str:
        """Digest of the ids and prompts of `kept`, in order. A group's number determines its problem by position, so
        with another digest the same number may mean another problem."""
        digest = hashlib.sha256()
        for each in self.kept:
            digest.update(json.dumps([each.problem.id, each.problem.prompt]).encode())
        return f"sha256:{digest.hexdigest()}"


def encode_prompt(prompt: str, tokenizer: Any) -> IntArray:
    """Return the [P] token ids of a prompt, through the tokenizer's chat template if it has one."""
    if getattr(tokenizer, "chat_template", None):
        ids = tokenizer(_as_turn(prompt, tokenizer), add_special_tokens=False)["input_ids"]
    else:
        ids = tokenizer(prompt)["input_ids"]
    return np.asarray(ids, dtype=np.int32)


def prompt_lengths(prompts: Sequence[str], tokenizer: Any) -> list[int]:
    """Return the number of tokens that `encode_prompt` makes of each prompt, for many prompts at once."""
    if not prompts:
        return []
    if getattr(tokenizer, "chat_template", None):
        encoded = tokenizer(
            [_as_turn(p, tokenizer) for p in prompts], add_special_tokens=False, return_attention_mask=False
        )
    else:
        encoded = tokenizer(list(prompts), return_attention_mask=False)
    return [len(ids) for ids in encoded["input_ids"]]


def _as_turn(prompt: str, tokenizer: Any) -> str:
    turn = [{"role": "user", "content": prompt}]
    return str(
        tokenizer.apply_chat_template(
            turn, tokenize=False, add_generation_prompt=True, strftime_now=_TEMPLATE_DAY.strftime
        )
    )


def encode_problems(
    problems: Sequence[Problem], tokenizer: Any, max_prompt_tokens: int, setting: str = IN_A_RUN.max_prompt_tokens
) -> EncodedProblems:
    """Encode every prompt and leave out those over `max_prompt_tokens`.

    Raises ValueError if none is left. The message has the limit, which it calls `setting`, and the length of the
    shortest prompt.
    """
    kept: list[EncodedProblem] = []
    too_long: list[str] = []
    shortest: int | None = None
    for problem in problems:
        ids = encode_prompt(problem.prompt, tokenizer)
        shortest = len(ids) if shortest is None else min(shortest, len(ids))
        if len(ids) > max_prompt_tokens:
            too_long.append(problem.id)
        else:
            kept.append(EncodedProblem(problem, ids))
    if problems and not kept:
        raise ValueError(
            f"{setting} {max_prompt_tokens} leaves out all {len(problems)} problems (the shortest prompt has "
            f"{shortest} tokens): raise it to at least {shortest}"
        )
    return EncodedProblems(tuple(kept), tuple(too_long))
