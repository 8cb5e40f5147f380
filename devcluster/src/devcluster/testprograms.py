"""Chromium and Prometheus, which tests use besides the cluster: the machine's own, or else Debian's in the cache.

Packages are unpacked, not installed. Chromium is the build without a window system (headless shell): a page in its own
session takes it a quarter of the CPU time. It comes with the libraries that the machine lacks. Their names are part of
the folder's name, so a cache that moves to another machine is completed there. Fails with apt's message, as the other
Debian programs do.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

from devcluster import content_hash, debian, staging
from devcluster.command import run
from devcluster.progress import step

_DOWNLOAD_SECONDS = 600.0
_DPKG_STATUS = Path("/var/lib/dpkg/status")
_CHROMIUM = "chromium-headless-shell"
_INSTALLED = re.compile(r"^Inst (\S+) ", re.MULTILINE)


def chromium(cache: Path) -> Path:
    """The browser, or a script that starts it."""
    if own := shutil.which(_CHROMIUM) or shutil.which("chromium"):
        return Path(own)
    apt = _apt(cache)
    missing = _lacking(cache, apt)

    def finish(making: Path, final: Path) -> None:
        (making / _CHROMIUM).write_text(_script(final, _libraries(making)))
        (making / _CHROMIUM).chmod(0o755)

    return _unpacked(cache, apt, _CHROMIUM, missing, finish) / _CHROMIUM


def prometheus(cache: Path) -> Path:
    """Prometheus, with promtool in the same folder."""
    if (own := shutil.which("prometheus")) and shutil.which("promtool"):
        return Path(own)
    # Go's programs need no library of Debian's.
    return _unpacked(cache, _apt(cache), "prometheus", ["prometheus"]) / "usr" / "bin" / "prometheus"


PROGRAMS = {"chromium": chromium, "prometheus": prometheus}


def _apt(cache: Path) -> list[str]:
    """Options for apt, after its package lists were fetched."""
    apt = debian.private_apt(cache)
    if not any((cache / "apt" / "lists").glob("*_Packages*")):
        run(["apt-get", *apt, "update"], deadline=_DOWNLOAD_SECONDS, log=cache / "logs" / "apt-tests.log")
    return apt


def _lacking(cache: Path, apt: list[str]) -> list[str]:
    """Packages that installing Chromium would add. apt takes a second for this, so the answer is kept until its inputs
    change."""
    read = [_DPKG_STATUS, *sorted((cache / "apt" / "lists").glob("*_Packages*"))]
    states = [(path, path.stat()) for path in read if path.exists()]
    state = content_hash.digest(*(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in states))
    kept = cache / "apt" / f"{_CHROMIUM}-lacks"
    if kept.is_file() and (words := kept.read_text().split())[:1] == [state]:
        return words[1:]
    told = run(["apt-get", *apt, "--simulate", "--no-install-recommends", "install", _CHROMIUM], deadline=120)
    lacking = sorted(set(_INSTALLED.findall(told)))
    making = kept.with_suffix(f".{os.getpid()}")
    making.write_text(" ".join([state, *lacking]))
    making.rename(kept)
    return lacking


def _unpacked(
    cache: Path, apt: list[str], name: str, packages: list[str], finish: Callable[[Path, Path], None] | None = None
) -> Path:
    """The folder of the unpacked packages; `finish` gets its temporary and its final path."""
    final = cache / f"{name}-{content_hash.digest(debian.SUITE, *packages)}"
    if final.is_dir():
        return final
    log = cache / "logs" / "apt-tests.log"
    with step(f"unpack Debian's {name} for tests"), staging.making(cache, final.name) as making:
        downloaded = making / "debs"
        downloaded.mkdir(parents=True)
        run(["apt-get", *apt, "update"], deadline=_DOWNLOAD_SECONDS, log=log)
        run(["apt-get", *apt, "download", *packages], deadline=_DOWNLOAD_SECONDS, cwd=downloaded, log=log)
        for package in sorted(downloaded.glob("*.deb")):
            run(["dpkg-deb", "-x", package, making], deadline=120)
        shutil.rmtree(downloaded)
        if finish is not None:
            finish(making, final)
        making.chmod(0o755)
        making.rename(final)
    return final


def _libraries(tree: Path) -> list[str]:
    """Folders of shared libraries below the tree, including those that their packages name by an absolute path."""
    triplet = f"{os.uname().machine}-linux-gnu"
    found = {path.parent.relative_to(tree) for path in tree.glob(f"**/lib/{triplet}/**/lib*.so.*")}
    found |= {path.parent.relative_to(tree) for path in tree.glob(f"**/lib/{triplet}/**/lib*-*.so")}
    return sorted(map(str, found))


def _script(tree: Path, folders: list[str]) -> str:
    """A script that starts the program with the libraries, fonts and font settings of the tree."""
    libraries = shlex.quote(":".join(f"{tree}/{folder}" for folder in folders))
    fonts = shlex.quote(f"{tree}/etc/fonts/fonts.conf")
    return (
        "#!/bin/sh\n"
        f"export LD_LIBRARY_PATH={libraries}\n"
        f"if [ ! -e /etc/fonts/fonts.conf ] && [ -e {fonts} ]; then export FONTCONFIG_FILE={fonts}; fi\n"
        f"export XDG_DATA_HOME={shlex.quote(f'{tree}/usr/share')}\n"
        f'exec {shlex.quote(f"{tree}/usr/lib/chromium/{_CHROMIUM}")} "$@"\n'
    )
