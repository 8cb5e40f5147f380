"""A judge that nobody gives a number of slots has one for each CPU that its container is allowed, not the machine's."""

import os

import pytest

from deepcoder_contracts import cpus
from deepcoder_sandbox import cli
from deepcoder_sandbox.api import Judge


@pytest.fixture(autouse=True)
def small_container_on_a_large_machine(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(64)))
    monkeypatch.setattr(cpus, "_quota", lambda _cgroup: 1.5)


@pytest.mark.parametrize("arguments", [["serve", "--socket", "/s"], ["judge"]], ids=lambda a: a[0])
def test_command_has_a_slot_for_each_cpu_of_its_container(arguments):
    options = vars(cli._parser().parse_args(arguments))
    assert options.get("slots", options.get("workers")) == 2


def test_judge_in_python_has_a_slot_for_each_cpu_of_its_container():
    with Judge() as judge:
        assert judge._pool.slots == 2
