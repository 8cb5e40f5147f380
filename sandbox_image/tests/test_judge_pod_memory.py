"""Memory limits that do not fit the container are said, with the mend."""

import pytest

from deepcoder_sandbox import limits, pod_memory
from deepcoder_sandbox.server import room


def test_container_limit_is_read_from_either_cgroup_version(tmp_path):
    unlimited, limited = tmp_path / "max", tmp_path / "limit"
    unlimited.write_text("max\n")
    limited.write_text(f"{512 << 20}\n")
    assert pod_memory.container_limit_mb((str(tmp_path / "none"), str(unlimited), str(limited))) == 512
    limited.write_text("9223372036854771712\n")
    assert pod_memory.container_limit_mb((str(limited),)) is None


def test_shortage_names_the_numbers_and_the_mend():
    assert pod_memory.shortage(2, 1024, 256, 100, None) is None
    assert pod_memory.shortage(2, 1024, 256, 100, 4096) is None
    for mend in ("--slots", "--max-memory-mb", "--tests-store-mb", "--max-queued-mb"):
        assert mend in (pod_memory.shortage(2, 1024, 256, 100, 2816) or "")


def test_files_in_memory_stored_tests_and_requests_are_part_of_the_sum():
    without = limits.needed_mb(1, 1024, 0, 0)
    assert limits.needed_mb(1, 1024, 500, 70) == without + 570
    files = limits.needed_mb(2, 1024, 0, 0) - without - 1024
    assert files * limits.MIB >= 2 * limits.OUTPUT_BYTES + limits.VALUE_BYTES  # stdout, stderr and a returned value
    for slots in (1, 2, 8, 64):
        requests_mb = room.held_mb(room.QUEUED_MB, limits.BODY_MB)
        assert limits.needed_mb(slots, 1024, 1024, requests_mb) <= 1900 + slots * 1272  # what the operator gives a pod


@pytest.mark.parametrize("slots", [1, 3, 16])
@pytest.mark.parametrize("limit_mb", [2048, 8192, 100_000])
def test_largest_program_fits_and_the_default_is_never_refused(slots, limit_mb):
    largest = pod_memory.largest_program_mb(slots, 256, 100, 1024, limit_mb)
    assert largest == 1024 or limits.needed_mb(slots, largest, 256, 100) <= limit_mb
    assert largest >= 1024
    assert pod_memory.largest_program_mb(slots, 256, 100, 1024, None) is None
