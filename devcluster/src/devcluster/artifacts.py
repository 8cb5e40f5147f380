"""Everything that `build` makes, and where it is: programs, host packages, tools, and the base image's file system.

Locating artifacts is pure, except that the Go modules to hash are read. Making them uses two parallel lanes: Go in one,
Debian and Python in the other, because the first waits for the processor and the second for network and disk. Images,
which need nothing of Go, follow in the second lane, which then builds programs too, because linking at the end of a
build leaves a core idle. Existing artifacts are never made again.
"""

from __future__ import annotations

import concurrent.futures
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from devcluster import command, debian, gobuild, staging, tools
from devcluster.file_lock import exclusive
from devcluster.gobuild import GoProgram


class NotBuilt(RuntimeError):
    """Something that `devcluster build` makes is missing."""


@dataclass(frozen=True)
class Artifacts:
    """Paths of what has been, or will be, built from the present sources."""

    cache: Path
    go_version: str

    @property
    def sysroot(self) -> Path:
        """Debian programs and their libraries, unpacked."""
        return debian.sysroot_directory(self.cache)

    @property
    def base_archive(self) -> Path:
        """Root file system of the base image."""
        return debian.base_archive(self.cache)

    @property
    def kubectl(self) -> Path:
        """The kubectl that fits the cluster."""
        return tools.directory(self.cache) / "kubectl"

    @property
    def helm(self) -> Path:
        """The helm that installs the charts."""
        return tools.directory(self.cache) / "helm"

    def directory(self, module: str) -> Path:
        """Directory of the programs built from Go module `module`."""
        program = next(p for p in (*gobuild.PROGRAMS, *gobuild.OPTIONAL) if p.module == module)
        return gobuild.directory(program, self.cache, self.go_version)

    def programs(self) -> dict[str, Path]:
        """Every built program by the name it is started under."""
        found: dict[str, Path] = {}
        for program in gobuild.PROGRAMS:
            place = gobuild.directory(program, self.cache, self.go_version)
            names = [package.rpartition("/")[2] for package in program.packages] if len(program.packages) > 1 else []
            for name in names or [program.module, *program.also_called]:
                found[name] = place / name
        return found

    def missing(self) -> list[str]:
        """Names of what is not built yet."""
        places = {program.module: self.directory(program.module) for program in gobuild.PROGRAMS}
        places |= {"Debian programs": self.sysroot, "base file system": self.base_archive}
        places |= {"kubectl and helm": tools.directory(self.cache)}
        return [name for name, place in places.items() if not place.exists()]

    def require(self) -> None:
        """Raise NotBuilt, which says how to build it, if anything is missing."""
        if missing := self.missing():
            raise NotBuilt(f"not built yet: {', '.join(missing)}. Run: devcluster build")

    def build_optional(self, modules: Iterable[str]) -> None:
        """Make programs that no cluster needs, by name; what exists is never made again."""
        for program in gobuild.OPTIONAL:
            if program.module in modules and not self.directory(program.module).exists():
                with exclusive(self.cache / "locks" / "build", "build"):
                    gobuild.build(program, self.cache, self.go_version)

    def build(self, images: Callable[[], None] = lambda: None) -> None:
        """Make what is missing, and `images` as soon as there is a file system to start from.

        Safe against a second run at the same time, and resumed by the next after a crash.
        """
        if not self.missing():
            images()
            return
        lock = exclusive(self.cache / "locks" / "build", "build")
        with lock, concurrent.futures.ThreadPoolExecutor(2) as lanes:
            staging.sweep(self.cache)
            programs = iter(gobuild.PROGRAMS)  # shared: whichever lane is free takes the next
            work = [lanes.submit(self._build_go, programs), lanes.submit(self._build_rest, images, programs)]
            try:
                for done in concurrent.futures.as_completed(work):
                    done.result()
            except BaseException:
                deque(programs, maxlen=0)  # neither lane begins another
                command.kill_all()
                raise

    def _build_go(self, programs: Iterator[GoProgram]) -> None:
        for program in programs:
            gobuild.build(program, self.cache, self.go_version)

    def _build_rest(self, images: Callable[[], None], programs: Iterator[GoProgram]) -> None:
        tools.fetch(self.cache)
        debian.make_base(self.cache, debian.make_sysroot(self.cache))
        images()
        self._build_go(programs)
