"""A server whose programs' memory limits do not fit its container does not start: the sum, and the mend."""

import pytest

from deepcoder_sandbox import cli, limits, pod_memory, tiers
from deepcoder_sandbox.attack import Findings
from deepcoder_sandbox.server import memory_budget


def requests_mb():
    """What requests hold in a server with no options."""
    return memory_budget.held_mb(memory_budget.QUEUED_MB, limits.BODY_MB)


def test_container_limit_is_read_from_either_cgroup_version(tmp_path):
    unlimited, limited = tmp_path / "max", tmp_path / "limit"
    unlimited.write_text("max\n")
    limited.write_text(f"{512 << 20}\n")
    assert pod_memory.container_limit_mb((str(tmp_path / "none"), str(unlimited), str(limited))) == 512
    limited.write_text("9223372036854771712\n")
    assert pod_memory.container_limit_mb((str(limited),)) is None


def test_judge_that_fits_accepts_what_fits_or_what_was_asked_for():
    assert pod_memory.largest_program_mb(2, None, 256, 100, None) is None
    assert pod_memory.largest_program_mb(2, 512, 256, 100, None) == 512
    assert pod_memory.largest_program_mb(2, 512, 256, 100, 4096) == 512


@pytest.mark.parametrize("limit_mb", [600, 2048, 4096, 8192, 100_000])
@pytest.mark.parametrize("slots", [1, 3, 16])
def test_default_limit_fits_or_the_judge_does_not_start(slots, limit_mb):
    needed_mb = limits.needed_mb(slots, 1024, 256, 100)
    if needed_mb > limit_mb:
        with pytest.raises(pod_memory.DoesNotFit):
            pod_memory.largest_program_mb(slots, None, 256, 100, limit_mb)
        return
    largest = pod_memory.largest_program_mb(slots, None, 256, 100, limit_mb)
    assert largest >= 1024
    assert limits.needed_mb(slots, largest, 256, 100) <= limit_mb < limits.needed_mb(slots, largest + 1, 256, 100)


def test_smaller_limit_that_was_asked_for_is_enough_where_it_fits():
    limit_mb = limits.needed_mb(3, 400, 256, 100)
    assert pod_memory.largest_program_mb(3, 400, 256, 100, limit_mb) == 400
    for asked_mb in (None, 401, 2000):
        with pytest.raises(pod_memory.DoesNotFit, match="--max-memory-mb 400 if no program needs more"):
            pod_memory.largest_program_mb(3, asked_mb, 256, 100, limit_mb)


@pytest.mark.parametrize(("largest_mb", "accepted_mb"), [(None, 2000), (4096, 2000), (1500, 1500)])
def test_no_more_is_accepted_than_the_limit_of_the_judges_own_process_leaves(largest_mb, accepted_mb):
    assert pod_memory.within_own_limit(largest_mb, None, 2000 + pod_memory._ZYGOTES_DIFFER_MB) == accepted_mb
    assert pod_memory.within_own_limit(largest_mb, None, (1 << 42) - 100) == largest_mb  # no limit


@pytest.mark.parametrize(("asked_mb", "least_mb"), [(None, 1024), (512, 512)])
def test_what_has_to_be_accepted_is_left_or_the_judge_does_not_start(asked_mb, least_mb):
    least_left_mb = least_mb + pod_memory._ZYGOTES_DIFFER_MB
    assert pod_memory.within_own_limit(asked_mb, asked_mb, least_left_mb) == least_mb
    with pytest.raises(pod_memory.OwnLimitTooLow, match=f"leaves {least_mb - 1} MiB to a program, and {least_mb} MiB"):
        pod_memory.within_own_limit(asked_mb, asked_mb, least_left_mb - 1)


SERVE = ("serve", "--socket", "/nonexistent/judge.sock", "--slots", "2")


@pytest.mark.parametrize("options", [(), ("--max-memory-mb", "2048")])
def test_server_that_does_not_fit_its_container_refuses_to_start(monkeypatch, capsys, options):
    monkeypatch.setattr(pod_memory, "container_limit_mb", lambda: 3000)
    monkeypatch.setattr("deepcoder_sandbox.server.command.serve", lambda *_: pytest.fail("it serves"))
    assert cli.run([*SERVE, *options]) == 64
    said = capsys.readouterr().err
    needed_mb = limits.needed_mb(2, int((options or ("", "1024"))[1]), 1024, requests_mb())
    assert f"the container's memory limit is 3000 MiB, and {needed_mb} MiB are needed" in said
    for mend in ("raise the limit", "--slots", "slotsPerPod", "judge.workers", "--tests-store-mb", "--max-queued-mb"):
        assert mend in said
    assert len(said) < 500  # all of it is told by whoever started the judge and shows its last words


@pytest.fixture
def accepted_mb(monkeypatch):
    """Run the command where zygotes leave so much to a program; return its status, or what the judge accepts."""

    class Served(Exception):
        """It got as far as this."""

    def serve(judge, listen):
        judge.pool.close(10)
        raise Served(judge.max_memory_mb)

    def run(*options, left_mb=1 << 42):
        monkeypatch.setattr(tiers, "find_tier", lambda config, tier: (config, Findings(tier, {}, left_mb)))
        try:
            return cli.run([*SERVE, *options])
        except Served as served:
            return served.args[0]

    monkeypatch.setattr("deepcoder_sandbox.server.command.serve", serve)
    return run


def test_same_server_starts_where_programs_may_take_less(monkeypatch, accepted_mb):
    monkeypatch.setattr(pod_memory, "container_limit_mb", lambda: 3000)
    assert accepted_mb("--max-memory-mb", "256") == 256


def test_server_whose_own_process_is_limited_accepts_what_that_leaves_or_does_not_start(
    monkeypatch, accepted_mb, capsys
):
    monkeypatch.setattr(pod_memory, "container_limit_mb", lambda: None)
    left_mb = 2000 + pod_memory._ZYGOTES_DIFFER_MB
    assert accepted_mb(left_mb=left_mb) == 2000
    assert accepted_mb("--max-memory-mb", "2001", left_mb=left_mb) == 64
    assert "(ulimit -Hv) leaves 2000 MiB to a program" in capsys.readouterr().err


def test_files_in_memory_stored_tests_and_requests_are_part_of_the_sum():
    without = limits.needed_mb(1, 1024, 0, 0)
    assert limits.needed_mb(1, 1024, 500, 70) == without + 570
    files = limits.needed_mb(2, 1024, 0, 0) - without - 1024
    assert files * limits.MIB >= 2 * limits.OUTPUT_BYTES + limits.VALUE_BYTES  # stdout, stderr and a returned value
    for slots in (1, 2, 8, 64):
        given_mb = 1900 + slots * 1296  # what the operator gives a pod
        assert 1024 <= pod_memory.largest_program_mb(slots, None, limits.TESTS_STORE_MB, requests_mb(), given_mb) < 1100
