"""Waves: a group's engines get shares that are waves themselves, and an engine begins one when it is whole."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np

from deepcoder_trainer.sampler.waves import Waves, share_of
from deepcoder_trainer.types import GenerationRequest, Wave


def request(name: str, wave: Wave) -> GenerationRequest:
    return GenerationRequest(name, np.zeros(1, np.int32), 10, 1.0, seed=1, wave=wave)


def test_the_shares_of_a_wave_are_whole_waves() -> None:
    for size in range(1, 9):
        for engines in range(1, 5):
            shares: dict[int, list[Wave]] = {}
            for position in range(size):
                asked = request("r", wave=Wave("w", position, size))
                assert asked.wave is not None
                number, moved = share_of(asked, asked.wave, engines)
                assert moved.wave is not None
                shares.setdefault(number, []).append(moved.wave)
            for waves in shares.values():
                assert sorted(w.position for w in waves) == list(range(len(waves)))
                assert {w.size for w in waves} == {len(waves)}


async def test_a_wave_waits_for_its_last_request_and_begins_in_order() -> None:
    begun: list[list[str]] = []

    class Engine:
        async def begin(self, requests):
            begun.append([r.request_id for r in requests])
            return [asyncio.sleep(0, r.request_id) for r in requests]

    waves = Waves()
    wave = [request(f"r{i}", wave=Wave("w", i, 3)) for i in range(3)]
    first = [asyncio.create_task(waves.generate(Engine(), wave[i])) for i in (2, 0)]
    alone = asyncio.create_task(waves.generate(Engine(), replace(wave[0], request_id="alone", wave=None)))
    await alone
    assert begun == [["alone"]]
    await waves.generate(Engine(), wave[1])
    await asyncio.gather(*first)
    assert begun == [["alone"], ["r0", "r1", "r2"]]
