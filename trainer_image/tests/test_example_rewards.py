"""The two worked rewards, graded by a real judge: right answers are rewarded, and what only looks like one is not."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import ModuleType

import pytest
import pytest_asyncio

from deepcoder_contracts.manifest import RunIdentity
from deepcoder_trainer.judge.client import JudgeClient
from deepcoder_trainer.judge.connect import local_judge
from deepcoder_trainer.judge.local import LocalJudge
from deepcoder_trainer.problems.dataset import load_dataset
from deepcoder_trainer.rollout.programs import Programs
from deepcoder_trainer.rollout.reward import UserReward
from deepcoder_trainer.types import Problem

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "rewards"
RUN = RunIdentity(namespace="local", name="run", uid="01234567-89ab-cdef-0123-456789abcdef")


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def problems(name: str) -> dict[str, Problem]:
    return {p.id: p for p in load_dataset(FOLDER / f"{name}.jsonl").problems}


FLAWS, LEGACY = problems("find_flaw"), problems("modernise")
EXPLOITS = {
    "template": "{user.config.secret}",
    "calculator": "secret",
    "traversal": "../private/secret",
    "query": "Admin",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[JudgeClient]:
    judge = LocalJudge(workers=1)
    try:
        await judge.ready()
        client = local_judge(judge, RUN)
        yield client
        await client.close()
    finally:
        judge.close()


async def worth(client: JudgeClient, name: str, problem: Problem, answer: str) -> float | None:
    reward = UserReward(module(name).reward, wants_programs=True, judge=client)
    return (await reward(problem, f"So it is:\n```\n{answer}\n```\n", f"k/{hash(answer)}")).reward


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", sorted(FLAWS))
async def test_an_input_that_exploits_the_flaw_is_rewarded_and_others_are_not(client: JudgeClient, name: str) -> None:
    assert await worth(client, "find_flaw", FLAWS[name], EXPLOITS[name]) == 1.0
    for guess in ("hello", "guest", "SECRET_HERE", "1 + 1"):
        assert await worth(client, "find_flaw", FLAWS[name], guess) == 0.0


@pytest.mark.asyncio(loop_scope="module")
async def test_no_exploit_works_on_the_mended_programs(client: JudgeClient) -> None:
    for name, problem in FLAWS.items():
        mended = problem.tests[0].model_copy(update={"input": problem.tests[0].output})
        as_if = Problem(problem.id, problem.source, problem.prompt, (mended,))
        assert await worth(client, "find_flaw", as_if, EXPLOITS[name]) == 0.0


MODERN = {
    "average": (
        "import sys\n\n\n"
        "def average(numbers: list[int]) -> float:\n    return sum(numbers) / len(numbers) if numbers else 0.0\n\n\n"
        'print(f"average: {average([int(w) for w in sys.stdin.read().split()]):.2f}")\n'
    ),
    "report": (
        'import sys\n\n\ndef line(name: str, value: int | str) -> str:\n    return f"{name}={value}"\n\n\n'
        "for text in sys.stdin:\n    words = text.split()\n    if len(words) != 2:\n        break\n"
        "    name, value = words\n    print(line(name, int(value) if value.isdigit() else value))\n"
    ),
    "words": (
        "from collections import Counter\n\nfor word, times in sorted(Counter(input().split()).items()):\n"
        '    print(f"{word} {times}")\n'
    ),
}


def old_program(problem: Problem) -> str:
    return problem.prompt.split("```python\n")[1].split("```")[0]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", sorted(LEGACY))
async def test_a_modern_program_that_does_the_same_is_rewarded_and_others_are_not(
    client: JudgeClient, name: str
) -> None:
    problem = LEGACY[name]
    assert await worth(client, "modernise", problem, MODERN[name]) == 1.0
    assert await worth(client, "modernise", problem, MODERN[name].replace("print(", "print(0, ")) == 0.0
    assert await worth(client, "modernise", problem, old_program(problem)) == 0.0, "the old one as it was"
    for hostile in ("def broken(:", "-" * 19_000 + "1", "x" + ".a" * 9_000, "(" * 19_000, "\0"):
        assert await worth(client, "modernise", problem, hostile) == 0.0


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", sorted(LEGACY))
async def test_the_old_programs_pass_their_own_tests(client: JudgeClient, name: str) -> None:
    assert await Programs(client, LEGACY[name], "k").passes(old_program(LEGACY[name]))


@pytest.mark.parametrize(
    ("code", "left"),
    [
        ("print('%d' % 3)", "%-formatting"),
        ("try:\n    pass\nexcept:\n    pass", "bare except"),
        ("type(3) == int", "type(x) == …"),
        ("open('x').read()", "open without with"),
        ("def f(x):\n    pass", "f without annotations"),
        ("def f(x: list = []) -> None:\n    pass", "f with a mutable default"),
    ],
)
def test_each_old_way_is_found(code: str, left: str) -> None:
    legacy: Callable[[str], list[str]] = module("modernise").legacy
    assert [found.split(": ", 1)[1] for found in legacy(code)] == [left]


def test_new_ways_are_none_of_them() -> None:
    legacy: Callable[[str], list[str]] = module("modernise").legacy
    assert legacy("with open('x') as f:\n    print(f'{f}', 5 % 3)\n\n\ndef g(x: int = 0) -> int:\n    return x") == []
