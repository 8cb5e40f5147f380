"""Memory limits that do not fit the container are said, with the mend."""

from deepcoder_sandbox import pod_memory


def test_container_limit_is_read_from_either_cgroup_version(tmp_path):
    unlimited, limited = tmp_path / "max", tmp_path / "limit"
    unlimited.write_text("max\n")
    limited.write_text(f"{512 << 20}\n")
    assert pod_memory.container_limit_mb((str(tmp_path / "none"), str(unlimited), str(limited))) == 512
    limited.write_text("9223372036854771712\n")
    assert pod_memory.container_limit_mb((str(limited),)) is None


def test_shortage_names_the_numbers_and_the_mend():
    assert pod_memory.shortage(2, 1024, None) is None
    assert pod_memory.shortage(2, 1024, 4096) is None
    assert "--max-memory-mb" in (pod_memory.shortage(2, 1024, 2048) or "")
