"""The example notebook is executed as it stands, against a real API server and S3 server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from played_run import PlayedRun

pytestmark = [pytest.mark.apiserver, pytest.mark.s3, pytest.mark.early]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CELL_SECONDS = 120


def test_notebook_runs_to_its_end_and_shows_what_it_says(played: PlayedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat  # here: every worker imports this file, and Jupyter takes half a second
    from nbclient import NotebookClient

    monkeypatch.setenv("KUBECONFIG", str(played.users["editor"]))
    monkeypatch.setenv("DEEPCODER_RUN", "demo")
    notebook = nbformat.read(EXAMPLES / "runs.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are somebody's own: clear them"
    NotebookClient(notebook, timeout=CELL_SECONDS, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    shown = "\n".join(text(cell) for cell in notebook.cells if cell.cell_type == "code")
    for part in ("would be accepted", "Complete", "reward_mean", "wrong_answer", "print(1)", "gpu_hours", "image/png"):
        assert part in shown, part
    lineage = next(cell for cell in notebook.cells if "folder.lineage()" in cell.source)
    assert "long" in text(lineage)
    assert "short" in text(lineage)


def text(cell: Any) -> str:
    """What a cell has printed, and which kinds of pictures it has drawn."""
    parts = []
    for output in cell.outputs:
        parts.append(output.get("text", ""))
        for kind, content in output.get("data", {}).items():
            parts.append(kind if kind.startswith("image/") else content)
    return "\n".join(parts)
