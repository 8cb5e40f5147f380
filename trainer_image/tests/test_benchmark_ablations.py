"""The ablations' benchmark: arms differ in recipe fields alone, its rule, its page, and what it does not run twice.

No run is trained here, which takes minutes: a stand-in for the trainer writes the metrics that a run would leave.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import ablations
import ablations_page
from ablations_rule import ARMS, BASE, CLAIMS, HELD_BACK, Difference, Run, difference, figure, judged
from forks import ForkedPython

from deepcoder_contracts.recipe import Recipe
from deepcoder_trainer.localrun import LocalRun


def run_of(arm: str, seed: int, reward: float, entropy: float = 0.2, steps: int = 10) -> Run:
    step = {"reward_mean": reward, "entropy": entropy, "truncated_ratio": 0.3, "response_tokens_mean": 20.0}
    return Run(arm, seed, [step] * (steps - 1) + [{**step, HELD_BACK: reward}], 100.0)


def claim_of(arm: str) -> Any:
    return next(c for c in CLAIMS if c.arm == arm)


@pytest.mark.parametrize("arm", ARMS, ids=lambda a: a.name)
def test_an_arm_is_the_base_with_one_recipe_field_changed(arm: Any) -> None:
    base = ablations.arm_config(ARMS[0], 1, 5, Path("/data"), Path("/run"))
    changed = ablations.arm_config(arm, 1, 5, Path("/data"), Path("/run"))
    LocalRun.model_validate(changed)  # fields and values that the trainer has
    assert {**changed, "recipe": None} == {**base, "recipe": None}
    names = {name for name in changed["recipe"] if changed["recipe"][name] != base["recipe"].get(name)}
    assert names == set(arm.settings)
    assert len(names) == (arm.name != BASE)
    defaults = Recipe().model_dump(mode="json", by_alias=True)
    assert all(defaults[name] != value for name, value in arm.settings.items()), "it is on in the base already"


def test_every_arm_has_a_claim_and_every_claim_an_arm() -> None:
    assert sorted(c.arm for c in CLAIMS) == sorted(a.name for a in ARMS if a.name != BASE)


def test_a_figure_is_the_mean_of_the_last_fifth() -> None:
    run = Run(BASE, 0, [{"reward_mean": float(n)} for n in range(10)], 1.0)
    assert figure(run, "reward_mean") == 8.5
    assert figure(run, "none") is None


@pytest.mark.parametrize(
    ("by_seed", "sign", "verdict"),
    [
        ((-0.10, -0.11, -0.09), -1, "seen"),
        ((-0.10, -0.11, -0.09), 1, "opposite seen"),
        ((-0.10, 0.00, -0.20), -1, "not seen"),  # the same mean, but it may be chance
        ((0.0, 0.0, 0.0), 1, "not seen"),
        ((-0.5,), -1, "not seen"),  # one seed has no spread
    ],
)
def test_a_claim_is_seen_where_the_interval_over_seeds_lies_on_its_side(
    by_seed: Sequence[float], sign: int, verdict: str
) -> None:
    assert Difference(0.5, 0.4, dict(enumerate(by_seed))).verdict(sign) == verdict


def test_the_interval_is_student_s() -> None:
    d = Difference(0.0, 0.0, {0: 1.0, 1: 2.0, 2: 3.0})
    assert d.mean == 2.0
    assert d.half_width == pytest.approx(4.303 / 3**0.5)


def test_arm_and_base_are_compared_seed_by_seed() -> None:
    runs = [run_of(BASE, 0, 0.2), run_of(BASE, 1, 0.8), run_of("kl", 1, 0.7)]
    found = difference(runs, "kl", "reward_mean")
    assert found is not None
    assert (found.base, found.arm) == (0.8, 0.7), "the seed that only one has is in neither mean"
    assert list(found.by_seed) == [1]
    assert difference(runs, "entropy", "reward_mean") is None


def test_a_claim_of_two_parts_of_which_one_is_seen_is_seen_in_part() -> None:
    seeds = range(3)
    runs = [run_of(BASE, s, 0.5, entropy=0.2) for s in seeds]
    more_entropy = [run_of("entropy", s, 0.5, entropy=0.3 + s / 100) for s in seeds]
    assert judged(runs + more_entropy, claim_of("entropy"))[0] == "seen in part"
    both = [run_of("entropy", s, 0.3 - s / 100, entropy=0.3 + s / 100) for s in seeds]
    assert judged(runs + both, claim_of("entropy"))[0] == "seen"
    assert judged(runs, claim_of("entropy"))[0] == "not run"


def test_the_page_says_what_was_seen_and_what_was_not_run(tmp_path: Path) -> None:
    runs = [run_of(BASE, s, 0.5) for s in range(3)] + [run_of("kl", s, 0.3 - s / 100) for s in range(3)]
    summary = ablations_page.summarize(runs, "2026-01-02T03:04:05+00:00", ["clipHigh 0.2, seed 0"])
    settings = {**ablations.base_settings(10), "code": "sha256:" + "0" * 64}
    ablations_page.write_page(tmp_path / "page.md", runs, summary, settings)
    text = (tmp_path / "page.md").read_text()
    assert "**Seen**: Without a KL penalty" in text
    assert "**Not run**: An entropy bonus" in text
    assert "Not run: clipHigh 0.2, seed 0." in text
    assert f"runs of {len(runs[0].steps)} steps cannot show that there is none" in text
    assert "2026-01-02" in text.splitlines()[0]
    assert {p.name for p in tmp_path.glob("*.png")} == {"page-kl.png"}, "a picture for each arm that was run"
    assert "](page-kl.png)" in text
    assert summary["claims"]["kl"]["parts"]["reward_mean"]["verdict"] == "seen"


STAND_IN = """
import json, sys
from pathlib import Path
import yaml
with open("calls", "a") as file:
    file.write(sys.argv[1] + "\\n")
if sys.argv[1] == "make-demo":
    Path(sys.argv[sys.argv.index("--output") + 1]).mkdir()
else:
    config = yaml.safe_load(Path(sys.argv[sys.argv.index("--config") + 1]).read_text())
    if Path("killed").exists():
        sys.exit(137)
    folder = Path(config["storage"]["uri"].removeprefix("file://")) / "train/attempts/001"
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {"reward_mean": 0.5, "entropy": 0.1, "response_tokens_mean": 9.0, "truncated_ratio": 0.3}
    rows = [
        {"stage": "train", "step": n, "time": n, "metrics": metrics, "verdicts": {}, "phase_seconds": {}}
        for n in range(1, config["stages"][0]["maxSteps"] + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
"""


PYTHON = ForkedPython("ablations", "whole_runs", "matplotlib.pyplot")


@pytest.fixture
def benchmark(tmp_path: Path) -> Any:
    """The benchmark as a command, with a trainer that only writes metrics; what it called is in `calls`."""
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(STAND_IN)
    source = (
        "import sys, runpy; sys.path.insert(0, sys.argv[1]); stand_in = sys.argv[2]; sys.argv = sys.argv[2:]\n"
        "import ablations, whole_runs\n"
        "true = whole_runs.run_whole\n"
        "def run_whole(command, log, limit):\n"
        "    return true([command[0], stand_in, *command[3:]], log, limit)\n"
        "whole_runs.run_whole = run_whole\n"
        "sys.exit(ablations.main())\n"
    )

    def call(*arguments: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        (tmp_path / "calls").write_text("")
        given = [str(Path(ablations.__file__).parent), str(stand_in), "--keep", str(tmp_path / "work"), *arguments]
        done = PYTHON.run(source, given, tmp_path)
        return done, (tmp_path / "calls").read_text().split()

    return call


FEW = ("--seeds", "3", "--arms", BASE, "kl", "--steps", "2")


def test_a_finished_run_is_not_run_again_and_a_killed_one_is(benchmark: Any, tmp_path: Path) -> None:
    (tmp_path / "killed").touch()
    done, calls = benchmark(*FEW)
    assert done.returncode != 0
    assert "ended with 137" in done.stderr
    assert calls == ["make-demo", "run"]
    (tmp_path / "killed").unlink()
    done, calls = benchmark(*FEW)
    assert done.returncode == 0, done.stderr
    assert calls == ["run", "run"], "the model is there, both runs are not"
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["runs"], summary["not_run"]) == (2, [])
    done, calls = benchmark(*FEW)
    assert done.returncode == 0, done.stderr
    assert calls == []
    assert json.loads(done.stdout.splitlines()[-1]) == summary


def test_drawn_only_runs_nothing_and_names_what_is_missing(benchmark: Any, tmp_path: Path) -> None:
    assert benchmark(*FEW)[0].returncode == 0
    page = tmp_path / "page.md"
    done, calls = benchmark("--seeds", "3", "--steps", "2", "--drawn-only", "--page", str(page))
    assert done.returncode == 0, done.stderr
    assert calls == []
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["not_run"] == ["entropy, seed 3", "overlong-off, seed 3", "clip-high-0.2, seed 3"]
    assert "Not run: entropy, seed 3; overlong-off" in page.read_text()


@pytest.mark.parametrize("other", ["code", "config"])
def test_runs_of_other_code_or_settings_are_not_compared(other: str, benchmark: Any, tmp_path: Path) -> None:
    assert benchmark(*FEW)[0].returncode == 0
    plan = tmp_path / f"work/seed-3/{BASE}/plan.json"
    plan.write_text(json.dumps({**json.loads(plan.read_text()), other: "else"}))
    done, calls = benchmark(*FEW)
    assert done.returncode == 1
    assert f"a run of other {other}" in done.stderr
    assert f"work/seed-3/{BASE}" in done.stderr, "which folder to remove"
    assert calls == []
