"""How the links of a chain are shown: as a table where there is room for one, and without folded digests elsewhere."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from deepcoder_cli.commands import lineage
from deepcoder_contracts.base import sha256_digest
from deepcoder_contracts.chain import Link
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
        "Checkpoint   long    30     2         2026-11-28 18:46",
        "  payload 1 file, 7,975,690 bytes",
        f"  digest {links[0].digest}",
        f"  folder {links[0].uri}",
        "Checkpoint   long    20     2         2026-11-28 18:46",
        "  payload 1 file, 7,975,690 bytes",
        f"  digest {links[1].digest}",
        f"  folder {links[1].uri}",
    ]
    assert max(map(len, lines)) <= 80


def test_a_wide_terminal_shows_a_table(shown: Shown) -> None:
    head, row = shown(240, [link(30)])
    assert head.split() == [column.upper() for column in lineage.COLUMNS]
    assert row.endswith(f"   {link(30).digest}   {link(30).uri}")
