"""What was built from the same inputs keeps its key; whatever decides the result changes it."""

from pathlib import Path

import pytest

from devcluster import content_hash
from devcluster.dockerfile import DockerfileError, copied_paths


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "part" / "src").mkdir(parents=True)
    (tmp_path / "part" / "src" / "a.py").write_text("a = 1\n")
    (tmp_path / "part" / "pyproject.toml").write_text("[project]\n")
    return tmp_path


def test_parts_are_not_confused_when_a_boundary_moves() -> None:
    assert content_hash.digest("ab", "c") != content_hash.digest("a", "bc")


def test_contents_names_and_modes_change_the_key(tree: Path) -> None:
    source = tree / "part" / "src" / "a.py"
    found = {content_hash.tree_digest(tree, ["part"])}
    source.write_text("a = 2\n")
    found.add(content_hash.tree_digest(tree, ["part"]))
    source.chmod(0o755)
    found.add(content_hash.tree_digest(tree, ["part"]))
    source.rename(source.with_name("b.py"))
    found.add(content_hash.tree_digest(tree, ["part"]))
    assert len(found) == 4


def test_what_tools_write_beside_sources_does_not_change_the_key(tree: Path) -> None:
    before = content_hash.tree_digest(tree, ["part"])
    for generated in ("part/src/__pycache__/a.pyc", "part/src/part.egg-info/PKG-INFO"):
        (tree / generated).parent.mkdir()
        (tree / generated).write_text("x")
    assert content_hash.tree_digest(tree, ["part"]) == before


def test_a_missing_input_is_an_error_and_not_an_empty_key(tree: Path) -> None:
    with pytest.raises(FileNotFoundError, match="other does not exist"):
        content_hash.tree_digest(tree, ["part", "other"])


def test_copied_paths_are_the_inputs_of_an_image() -> None:
    text = """
ARG LOCK=locks/cpu.txt
FROM base
COPY ${LOCK} /tmp/lock.txt
COPY --chown=1000 part/pyproject.toml part/src \\
     /src/
COPY --from=other /made /made
COPY part/src /again/
"""
    assert copied_paths(text) == ["locks/cpu.txt", "part/pyproject.toml", "part/src"]
    assert copied_paths(text, {"LOCK": "locks/gpu.txt"})[0] == "locks/gpu.txt"


@pytest.mark.parametrize("source", [".", "part/*.py", "${UNSET}"])
def test_a_copy_whose_files_cannot_be_told_is_refused(source: str) -> None:
    with pytest.raises(DockerfileError, match="name the files"):
        copied_paths(f"FROM base\nCOPY {source} /src\n")


def test_every_dockerfile_of_the_project_names_inputs_that_exist() -> None:
    from devcluster.config import DOCKERFILES, REPOSITORY

    for path in DOCKERFILES.values():
        inputs = copied_paths((REPOSITORY / path).read_text())
        assert content_hash.tree_digest(REPOSITORY, inputs)
