"""Programs for tests: what apt takes seconds to tell is asked once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from devcluster import testprograms

SIMULATED = (
    "Inst libnss3 (2:3.87 Debian:12)\n"
    "Inst chromium-headless-shell (156.0 Debian-Security:12)\n"
    "Conf chromium-headless-shell (156.0)\n"
)


def test_apt_is_asked_once_what_chromium_lacks_until_packages_or_lists_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, listed = tmp_path / "status", tmp_path / "apt" / "lists" / "main_Packages"
    listed.parent.mkdir(parents=True)
    for path in (status, listed):
        path.write_text("as it was")
    asked: list[object] = []

    def run(command: list[str], *, deadline: float) -> str:
        asked.append(command)
        return SIMULATED

    monkeypatch.setattr(testprograms, "run", run)
    monkeypatch.setattr(testprograms, "_DPKG_STATUS", status)
    for _ in range(2):
        assert testprograms._lacking(tmp_path, []) == ["chromium-headless-shell", "libnss3"]
    assert len(asked) == 1
    for times, path in enumerate((status, listed), start=2):
        os.utime(path, ns=(times, times))
        for _ in range(2):
            assert testprograms._lacking(tmp_path, []) == ["chromium-headless-shell", "libnss3"]
        assert len(asked) == times
