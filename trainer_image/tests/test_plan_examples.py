"""The shipped runs: each is planned for as it stands, and each of its values says where it comes from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from deepcoder_trainer.__main__ import main
from deepcoder_trainer.plan.document import read_planned

EXAMPLES = [
    path
    for path in sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.yaml"))
    if re.search(r"^kind: (DeepCoderRun|LocalRun)$", path.read_text(), re.MULTILINE)
]
GPUS = {"deepcoder-14b": "32", "deepcoder-1.5b": "8", "deepcoder-1.5b-one-gpu": "1"}
DEMO = """{"architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 3, "hidden_size": 128, "intermediate_size": 352,
"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 256}"""
TAG = re.compile(r"\[(script|fork|blog|pipe|14b|issue \d+|ours)\]")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_is_planned_for_as_it_stands(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--gpus", GPUS.get(path.stem, "2")]
    if path.stem not in GPUS:  # the demo's model is made, not fetched
        (tmp_path / "config.json").write_text(DEMO)
        options += ["--model-config", str(tmp_path / "config.json")]
    assert main(["plan", str(path), *options]) == 0, capsys.readouterr().out
    assert "nothing: it fits" in capsys.readouterr().out


def test_14b_shares_sequences_as_published_and_one_card_is_shared_in_turns() -> None:
    shipped = {path.stem: read_planned(path) for path in EXAMPLES}
    assert shipped["deepcoder-14b"].recipe.sequence_parallel == 2
    assert [stage.colocated for stage in shipped["deepcoder-1.5b-one-gpu"].stages] == [True, False]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_each_value_says_where_it_comes_from(path: Path) -> None:
    assert untold(path.read_text()) == []


def untold(text: str) -> list[str]:
    """Lines of a run's spec with a value that no comment above it, or above what it is part of, gives a source for."""
    told: dict[int, bool] = {}
    missing, comment = [], False
    start = {"DeepCoderRun": "\nspec:\n", "LocalRun": "\nmodel:"}[yaml.safe_load(text)["kind"]]
    for line in (start + text.partition(start)[2]).splitlines():
        indent = len(line) - len(line.lstrip())
        if line.lstrip().startswith("#"):
            told[indent] = bool(TAG.search(line)) or (comment and told[indent])
            comment = True
            continue
        comment = False
        key, _, value = line.strip().removeprefix("- ").partition(":")
        told = {depth: known for depth, known in told.items() if depth <= indent}
        if value and key not in ("name", "type") and not re.fullmatch(r" [&*][\w-]+", value) and not any(told.values()):
            missing.append(line)
        if not value and indent in told and not told[indent]:
            told.pop(indent)
    return missing


def test_a_value_without_a_source_is_found() -> None:
    text = "kind: DeepCoderRun\nspec:\n  recipe:\n    # [blog]\n    groupSize: 8\n    # Why not.\n    seed: 1\n"
    assert untold(text) == ["    seed: 1"]
