"""The pipeline's benchmark, on a virtual clock: what it promises is kept, and its models are what they say."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import pipeline
from pipeline_model import SharedSampler, batch_seconds, one_off_bound, read_trace, window_bound
from virtual_clock import Deadlock, run_virtually

from deepcoder_trainer.types import GenerationRequest, WeightRefs


def test_both_overlapped_modes_come_near_to_what_is_possible() -> None:
    trace, _ = read_trace(steps=6, prompts=48)
    summary = pipeline.summarize(pipeline.measure(trace, None), virtual=True)
    assert summary["unmet"] == []
    assert summary["staleness"] == {"serial": 0, "inline": 0, "one_off": 1, "window": 1}
    assert summary["one_off_speedup_serial"] > 1.9
    assert summary["one_off_speedup_inline"] > 1.4
    assert summary["paper_speedup"] == 1.96


def test_the_last_line_is_one_object_and_the_page_says_that_no_gpu_was_used(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    command = [sys.executable, pipeline.__file__, "--virtual", "--steps", "2", "--prompts", "4"]
    done = subprocess.run([*command, "--page", str(page)], capture_output=True, text=True, timeout=120)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == (1 if summary["unmet"] else 0), done.stderr
    assert {"one_off_of_bound", "window_of_bound", "window_speedup_serial", "idle"} <= summary.keys()
    assert "No GPU was used" in page.read_text()


def test_a_batch_alone_takes_the_published_time() -> None:
    trace, _ = read_trace(steps=3, prompts=16)
    rate = trace.rate(430)
    assert np.mean([batch_seconds(b, rate, trace.fastest) for b in trace.lengths]) == pytest.approx(430)


def test_the_shared_sampler_is_as_fast_as_its_formula_and_stands_still_for_weights() -> None:
    trace, _ = read_trace(steps=1, prompts=8)
    rate = trace.rate(430)

    async def main(push_at: float | None) -> float:
        sampler = SharedSampler(trace, rate, second=0.5, version=0)
        async with asyncio.TaskGroup() as tasks:
            for group in range(trace.prompts):
                for index in range(trace.group):
                    request = GenerationRequest(f"sampling/{group}/{index}", np.zeros(1, np.int32), trace.cap, 1.0)
                    tasks.create_task(sampler.generate(request))
            if push_at is not None:
                await asyncio.sleep(push_at)
                await sampler.update_weights(WeightRefs((), ""), 1)
        return asyncio.get_running_loop().time()

    alone = batch_seconds(trace.lengths[0], rate, trace.fastest) * 0.5
    assert run_virtually(main(None)) == pytest.approx(alone, rel=1e-3)
    assert run_virtually(main(50.0)) == pytest.approx(alone + trace.seconds.sync * 0.5, rel=1e-3)


def test_no_mode_can_be_faster_than_its_bound() -> None:
    trace, _ = read_trace(steps=4, prompts=16)
    for mode in pipeline.MODES[2:]:
        measured = run_virtually(pipeline.run_mode(trace, mode, 1.0))
        assert measured.of_bound is not None
        assert measured.of_bound <= 1
    rate = trace.rate(430)
    assert window_bound(trace, rate, 1) < one_off_bound(trace, rate), "window waits for less"


def test_a_wait_that_could_never_end_is_told_at_once() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        run_virtually(main())
