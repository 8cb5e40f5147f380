"""All that is made from code is made, and compared, whatever becomes of one of it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import generated

    return generated


def test_one_that_is_old_fails_all_and_the_others_are_compared_all_the_same(
    generated: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = "import sys; open(sys.argv[0] + '.ran', 'w').write(' '.join(sys.argv[1:]))"
    for name, text in {"old.py": f"{writes}\nsys.exit(1)", "new.py": writes, "broken.py": "1 / 0"}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(generated, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(generated, "WRITERS", (("old.py", "a"), ("broken.py",), ("new.py",)))
    before = list(sys.argv), list(sys.path)
    assert generated.main(["--check"]) == 1
    assert [(tmp_path / f"{name}.py.ran").read_text() for name in ("old", "new")] == ["a --check", "--check"]
    assert (sys.argv, sys.path) == before
    monkeypatch.setattr(generated, "WRITERS", (("new.py",),))
    assert generated.main(["--check"]) == 0
    monkeypatch.setattr(generated, "WRITERS", (("broken.py",),))
    assert generated.main([]) == 1


def test_every_program_that_writes_a_page_is_among_them(generated: ModuleType) -> None:
    listed = {command[0] for command in generated.WRITERS}
    own = {
        f"scripts/{path.name}" for path in (ROOT / "scripts").glob("*.py") if "pages.main(PAGE" in path.read_text()
    } - {"scripts/generated.py"}
    assert own
    assert own <= listed
