"""What an attempt runs in and on: told by others, and in its reports and manifests once it is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepcoder_trainer.runtime_info import find_accelerator, gpu_models

H100 = "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 17\nGPU UUID: \t GPU-1\nVideo BIOS: \t 96.00\n"


def machine(root: Path, *cards: str) -> Path:
    for index, text in enumerate(cards):
        (root / f"0000:{index:02x}:00.0").mkdir(parents=True)
        (root / f"0000:{index:02x}:00.0" / "information").write_text(text)
    return root


def test_model_of_eight_equal_cards_is_told_once(tmp_path: Path) -> None:
    assert gpu_models(machine(tmp_path / "gpus", *[H100] * 8)) == ["NVIDIA H100 80GB HBM3"]


def test_machine_without_the_driver_tells_nothing(tmp_path: Path) -> None:
    assert gpu_models(tmp_path / "none") == []
    assert gpu_models(machine(tmp_path / "gpus", "IRQ: 17\n", "Model:\n")) == []


@pytest.mark.usefixtures("ray_cluster")
async def test_nodes_of_the_cluster_are_asked_and_each_model_is_told(tmp_path: Path) -> None:
    root = machine(tmp_path / "gpus", H100, H100.replace("H100 80GB HBM3", "A100-SXM4-80GB"))
    assert await find_accelerator(root) == "NVIDIA A100-SXM4-80GB, NVIDIA H100 80GB HBM3"
    assert await find_accelerator(tmp_path / "none") is None
