"""What is said of the Dockerfiles: a base pinned by digest, stages, pinned versions, no root, no tool that is left."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = ("operator/Dockerfile", "sandbox_image/Dockerfile", "trainer_image/Dockerfile")
CONSTRAINTS = ("operator", "sandbox", "sbom", "trainer-cpu", "trainer-cuda")
PINNED = re.compile(r"docker\.io/library/python:\d+\.\d+\.\d+-slim-bookworm@sha256:[0-9a-f]{64}")


def instructions(file: str) -> list[tuple[str, str]]:
    """(instruction, its words), continued lines joined and comments left out."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        (word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)
    ]


def stages(file: str) -> dict[str, list[tuple[str, str]]]:
    """Instructions of each stage with those of the stages that it is made from; the last is called ''."""
    found: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for word, rest in instructions(file):
        if word == "FROM":
            parent, _, name = rest.partition(" AS ")
            current = [*found.get(parent, [])]
            found[name] = current
        else:
            current.append((word, rest))
    return found


@pytest.mark.parametrize("file", DOCKERFILES)
def test_the_base_is_pinned_by_version_and_digest_and_is_one_for_all(file: str) -> None:
    (base,) = [rest for word, rest in instructions(file) if word == "ARG" and rest.startswith("BASE_IMAGE=")]
    assert PINNED.fullmatch(base.removeprefix("BASE_IMAGE="))
    assert f"ARG {base}" in (ROOT / DOCKERFILES[0]).read_text()
    named = set(stages(file))
    froms = [rest.partition(" AS ")[0] for word, rest in instructions(file) if word == "FROM"]
    assert set(froms) - named == {"${BASE_IMAGE}"}, "nothing comes from elsewhere"


@pytest.mark.parametrize("file", DOCKERFILES)
def test_what_runs_is_nobody_in_particular_and_has_no_sources_or_tools(file: str) -> None:
    final = stages(file)[""]
    assert [rest for word, rest in final if word == "USER"] == ["1000:1000"]
    copied = [rest for word, rest in final if word == "COPY"]
    assert [rest for rest in copied if "/src" in rest or "/opt/tools" in rest or "/opt/sbom" in rest] == []
    assert copied[-1] == "--from=sbom /usr/share/sbom /usr/share/sbom"
    assert not [word for word, _ in instructions(file) if word == "ADD"]


def test_the_gpu_image_has_what_triton_and_nccl_look_for_at_run_time() -> None:
    """A compiler's absence ends an engine; without InfiniBand's libraries NCCL uses TCP and does not say so."""
    runs = [
        rest for word, rest in stages("trainer_image/Dockerfile")[""] if word == "RUN" and '"${DEVICE}" = cpu' in rest
    ]
    (installed,) = [run.partition("apt-get install")[2].partition("&&")[0].split() for run in runs]
    assert {"gcc", "libc6-dev", "libibverbs1", "ibverbs-providers"} <= {*installed}


def test_the_trainer_finds_a_driver_that_gke_mounts_and_asks_no_runtime_for_gpus() -> None:
    """GKE mounts the driver's libraries there. A node's GPUs go to pods that request them: a head requests none."""
    words = " ".join(rest for word, rest in stages("trainer_image/Dockerfile")[""] if word == "ENV").split()
    variables = dict(word.split("=", 1) for word in words)
    assert "/usr/local/nvidia/lib64" in variables["LD_LIBRARY_PATH"].split(":")
    assert "/usr/local/nvidia/bin" in variables["PATH"].split(":")
    assert "NVIDIA_VISIBLE_DEVICES" not in variables


@pytest.mark.parametrize("file", DOCKERFILES)
def test_the_standard_library_is_compiled_in_what_runs(file: str) -> None:
    """The official base image has no byte code, and containers write none."""
    runs = [rest for word, rest in stages(file)[""] if word == "RUN" and "compileall" in rest]
    assert runs, "each process would compile what it imports"
    assert 'get_path("stdlib")' in runs[0]


@pytest.mark.parametrize("file", DOCKERFILES)
def test_everything_that_is_installed_is_pinned(file: str) -> None:
    pins = {rest.partition("=")[0]: rest.partition("=")[2] for word, rest in instructions(file) if word == "ARG"}
    for _, rest in instructions(file):
        for command in re.split(r"&&|\|\|", rest):
            words = command.split()
            if not {"install", "$install"} & {*words} or words[0] == "apt-get" or words[0].startswith("install="):
                continue
            named = [re.fullmatch(r'"?\$\{(\w+)\}"?', word) for word in words]
            versions = [pins[match[1]] for match in named if match and match[1] in pins]
            by_file, ours = "/tmp/constraints.txt" in words, "--no-index" in words
            assert by_file or ours or (versions and all("==" in version for version in versions)), command


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_every_version_is_exact(name: str) -> None:
    lines = (ROOT / "constraints" / f"{name}.txt").read_text().split()
    assert lines
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[^=<>!~,;]+", line)] == []
