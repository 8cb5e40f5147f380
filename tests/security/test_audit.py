"""An advisory that names a pinned version is found, by list or by range, and no other version's is."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import yaml

SCRIPT = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "audit.py"))
BETWEEN = [{"introduced": "1.2"}, {"fixed": "1.4.1"}]


def advise(folder: Path, *, package: str = "some-library", **affected: object) -> None:
    directory = folder / "vulns" / package
    directory.mkdir(parents=True, exist_ok=True)
    about = {"package": {"ecosystem": "PyPI", "name": package}, **affected}
    document = {
        "id": "PYSEC-2026-1",
        "aliases": ["CVE-2026-1"],
        "published": "2026-11-01T00:00:00Z",
        "affected": [about],
    }
    (directory / "PYSEC-2026-1.yaml").write_text(yaml.safe_dump(document))


def audited(folder: Path, pin: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    (folder / "constraints").mkdir(exist_ok=True)
    (folder / "constraints" / "operator.txt").write_text(f"{pin}\n")
    code = SCRIPT["main"]([str(folder), "--constraints", str(folder / "constraints")])
    return code, capsys.readouterr().out


@pytest.mark.parametrize(
    ("version", "found"),
    [("1.1", False), ("1.2", True), ("1.4", True), ("1.4.1rc1", True), ("1.4.1", False), ("2.0", False)],
)
def test_a_range_names_what_lies_in_it(
    version: str, found: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    advise(tmp_path, ranges=[{"type": "ECOSYSTEM", "events": BETWEEN}])
    code, said = audited(tmp_path, f"Some_Library=={version}", capsys)
    assert (code == 1) is found
    assert ("PYSEC-2026-1 CVE-2026-1: fixed in 1.4.1" in said) is found


def test_a_list_names_what_is_in_it_and_the_last_that_is_affected_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    advise(tmp_path, versions=["1.0"], ranges=[{"type": "GIT", "events": [{"introduced": "0"}]}])
    assert audited(tmp_path, "some-library==1.0", capsys)[0] == 1
    assert audited(tmp_path, "some-library==1.1", capsys)[0] == 0
    advise(tmp_path, ranges=[{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"last_affected": "1.1"}]}])
    assert audited(tmp_path, "some-library==1.1", capsys)[0] == 1
    assert audited(tmp_path, "some-library==1.2", capsys)[0] == 0


def test_how_old_the_advisories_are_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    advise(tmp_path, versions=["1.0"])
    code, said = audited(tmp_path, "some-library==2.0", capsys)
    assert code == 0
    assert "1 pinned versions, 1 packages of them with advisories, 0 findings" in said
    assert said.rstrip().endswith("is of 2026-11-01")


def test_a_folder_that_is_no_checkout_is_said_to_be_none(tmp_path: Path) -> None:
    assert SCRIPT["main"]([str(tmp_path)]) == 64
