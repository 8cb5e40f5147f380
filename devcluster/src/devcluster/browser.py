"""A Chromium for tests of pages: the machine's own, else Debian's, unpacked into the cache with the libraries it lacks.

Which libraries those are depends on the machine, so they are part of the folder's name: a cache that moves to another
machine is completed there. Fails with apt's words, as the other Debian programs do.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path

from devcluster import debian, keys, unfinished
from devcluster.command import run
from devcluster.progress import step

_DOWNLOAD_SECONDS = 600.0
_INSTALLED = re.compile(r"^Inst (\S+) ", re.MULTILINE)


def find_or_make(cache: Path) -> Path:
    """The program, or a script that starts it."""
    if own := shutil.which("chromium"):
        return Path(own)
    apt = debian.private_apt(cache)
    log = cache / "logs" / "apt-browser.log"
    if not any((cache / "apt" / "lists").glob("*_Packages*")):
        run(["apt-get", *apt, "update"], deadline=_DOWNLOAD_SECONDS, log=log)
    missing = _missing(apt)
    final = cache / f"chromium-{keys.digest(debian.SUITE, *missing)}"
    started = final / "chromium"
    if final.is_dir():
        return started
    with step("unpack Chromium for tests of the dashboard"), unfinished.making(cache, final.name) as making:
        packages = making / "debs"
        packages.mkdir(parents=True)
        run(["apt-get", *apt, "update"], deadline=_DOWNLOAD_SECONDS, log=log)
        run(["apt-get", *apt, "download", *missing], deadline=_DOWNLOAD_SECONDS, cwd=packages, log=log)
        for package in sorted(packages.glob("*.deb")):
            run(["dpkg-deb", "-x", package, making], deadline=120)
        shutil.rmtree(packages)
        (making / "chromium").write_text(_script(final, _libraries(making)))
        (making / "chromium").chmod(0o755)
        making.chmod(0o755)
        making.rename(final)
    run([started, "--version"], deadline=60)
    return started


def _missing(apt: list[str]) -> list[str]:
    """Chromium and what it needs that is not installed here."""
    told = run(["apt-get", *apt, "--simulate", "--no-install-recommends", "install", "chromium"], deadline=120)
    return sorted(set(_INSTALLED.findall(told)))


def _libraries(tree: Path) -> list[str]:
    """Folders of shared libraries below the tree, also those that their owners name by an absolute path."""
    triplet = f"{os.uname().machine}-linux-gnu"
    found = {path.parent.relative_to(tree) for path in tree.glob(f"**/lib/{triplet}/**/lib*.so.*")}
    found |= {path.parent.relative_to(tree) for path in tree.glob(f"**/lib/{triplet}/**/lib*-*.so")}
    return sorted(map(str, found))


def _script(tree: Path, folders: list[str]) -> str:
    """Starts the program with the libraries, fonts and fonts' settings beside it."""
    libraries = shlex.quote(":".join(f"{tree}/{folder}" for folder in folders))
    fonts = shlex.quote(f"{tree}/etc/fonts/fonts.conf")
    return (
        "#!/bin/sh\n"
        f"export LD_LIBRARY_PATH={libraries}\n"
        f"if [ ! -e /etc/fonts/fonts.conf ] && [ -e {fonts} ]; then export FONTCONFIG_FILE={fonts}; fi\n"
        f"export XDG_DATA_HOME={shlex.quote(f'{tree}/usr/share')}\n"
        f'exec {shlex.quote(f"{tree}/usr/lib/chromium/chromium")} "$@"\n'
    )
