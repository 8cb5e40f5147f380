"""How the links of a chain are shown: as a table where there is room for one, and without folded digests elsewhere."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from deepcoder_cli.commands import lineage
from deepcoder_cli.exit_codes import Exit
from deepcoder_contracts.base import sha256_digest
from deepcoder_contracts.chain import Damaged, Link
from deepcoder_contracts.manifest import FileEntry, Manifest, ManifestKind, RunIdentity

FOLDER = "s3://deepcoder/runs/demo/demo-7133b5fc/long/step-0000{:02}.a002"


def link(step: int) -> Link:
    manifest = Manifest(
        kind=ManifestKind.CHECKPOINT,
        run=RunIdentity(namespace="demo", name="demo", uid="7133b5fc-0000-0000-0000-000000000001"),
        stage="long",
        stage_index=1,
        ordinal=2,
        step=step,
        total_steps=30,
        config_digest=sha256_digest(b""),
        code_digest=sha256_digest(b""),
        seed=0,
        world_size=1,
        created_at=datetime(2026, 11, 28, 18, 46, tzinfo=UTC),
        files=[FileEntry(path="model.safetensors", size=7_975_690, sha256="0" * 64)],
    )
    return Link(FOLDER.format(step), sha256_digest(str(step).encode()), manifest, pruned=False)


Shown = Callable[[int, list[Link]], list[str]]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """Returns the lines that a terminal of so many columns gets."""

    def show(columns: int, links: list[Link]) -> list[str]:
        taken = io.StringIO()
        with monkeypatch.context() as terminal:
            terminal.setattr(taken, "isatty", lambda: True)
            terminal.setattr("sys.stdout", taken)
            terminal.setenv("COLUMNS", str(columns))
            lineage._show(links, "table")
        return taken.getvalue().splitlines()

    return show


def test_a_narrow_terminal_shows_digests_and_folders_whole_each_on_a_line_of_its_own(shown: Shown) -> None:
    links = [link(30), link(20)]
    lines = shown(80, links)
    assert lines == [
        "KIND         STAGE   STEP   ATTEMPT   CREATED",
        "Checkpoint   long    30     2         2026-11-28 18:46 UTC",
        "  payload 1 file, 7,975,690 bytes",
        f"  digest {links[0].digest}",
        f"  folder {links[0].uri}",
        "Checkpoint   long    20     2         2026-11-28 18:46 UTC",
        "  payload 1 file, 7,975,690 bytes",
        f"  digest {links[1].digest}",
        f"  folder {links[1].uri}",
    ]
    assert max(map(len, lines)) <= 80


def test_a_wide_terminal_shows_a_table(shown: Shown) -> None:
    head, row = shown(240, [link(30)])
    assert head.split() == [column.upper() for column in lineage.COLUMNS]
    assert row.endswith(f"   {link(30).digest}   {link(30).uri}")


def test_a_program_gets_times_with_their_zone_and_sizes_as_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    lineage._show([link(30), replace(link(20), pruned=True)], "json")
    first, second = json.loads(capsys.readouterr().out)
    assert datetime.fromisoformat(first["created"]) == datetime(2026, 11, 28, 18, 46, tzinfo=UTC)
    assert (first["files"], first["bytes"], first["pruned"], second["pruned"]) == (1, 7_975_690, False, True)
    assert "payload" not in first


class Chains:
    """A run with a checkpoint of each stage, newest last, and the chain that the bucket has of each folder."""

    def __init__(self, *checkpoints: tuple[Link, str]) -> None:
        stages = [SimpleNamespace(checkpoint=SimpleNamespace(uri=at.uri, digest=digest)) for at, digest in checkpoints]
        about = SimpleNamespace(namespace="team", name="demo")
        self.run: Any = SimpleNamespace(
            metadata=about, status=SimpleNamespace(stages=[SimpleNamespace(checkpoint=None), *stages])
        )
        self.links: dict[str, list[Link]] = {}
        self.walked: list[str] = []

    def client(self) -> Chains:
        return self

    def get(self, name: str) -> Any:
        return self.run

    def folder(self, run: Any, *, endpoint: str | None) -> Chains:
        return self

    def lineage(self, uri: str, digest: str, *, deep: bool) -> Iterator[Link]:
        self.walked.append(uri)
        for at in self.links[uri]:
            if at.uri == uri and at.digest != digest:
                raise Damaged(f"{uri}: it has digest {at.digest}, not {digest}")
            yield at

    def verify(self, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str], list[str]]:
        where: Any = self
        code = lineage.verify(where, "demo", False, None, "json")
        told = json.loads(capsys.readouterr().out)
        return code, [entry["uri"] for entry in told["verified"]], told["problems"]


def test_a_checkpoint_that_a_later_one_comes_from_is_verified_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    old, new = link(20), link(30)
    chains = Chains((old, old.digest), (new, new.digest))
    chains.links = {new.uri: [new, old], old.uri: [old]}
    assert chains.verify(capsys) == (Exit.DONE, [new.uri, old.uri], [])
    assert chains.walked == [new.uri]


def test_a_checkpoint_that_is_not_the_one_of_the_status_is_broken_even_if_a_later_one_comes_from_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    old, new = link(20), link(30)
    other = sha256_digest(b"another")
    chains = Chains((old, other), (new, new.digest))
    chains.links = {new.uri: [new, old], old.uri: [old]}
    broken = f"{old.uri}: it has digest {old.digest}, not {other}"
    assert chains.verify(capsys) == (Exit.NOT_SO, [new.uri, old.uri], [broken])
    both = Chains((old, other), (new, other))
    both.links = chains.links
    code, _, problems = both.verify(capsys)
    assert (code, len(problems), broken in problems) == (Exit.NOT_SO, 2, True), "every broken chain is told"


def test_a_checkpoint_whose_files_only_its_own_chain_may_not_lack_is_walked_from_itself(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the chain of a later one its files may have been removed; as a stage's own checkpoint they must be there."""
    old, new = link(20), link(30)
    chains = Chains((old, old.digest), (new, new.digest))
    chains.links = {new.uri: [new, replace(old, pruned=True)], old.uri: [old]}
    assert chains.verify(capsys)[0] == Exit.DONE
    assert chains.walked == [new.uri, old.uri]
