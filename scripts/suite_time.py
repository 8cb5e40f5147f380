"""Shows where the tests' time goes: wall and CPU seconds of each test file, and when which worker ran it.

    PYTEST_ADDOPTS="-p suite_time --junit-xml=build/tests.xml" PYTHONPATH=scripts make test
    .venv/bin/python scripts/suite_time.py build/tests.xml                the table; several files are parts of a run
    .venv/bin/python scripts/suite_time.py build/tests.xml --before EARLIER.xml --page docs/results/test-time-DATE.md

When a page is written again, its text above the line `<!-- measured -->` is kept.

As a pytest plugin, it adds to each test what JUnit's XML lacks: the CPU seconds of pytest's process and its
descendants, the seconds of set-up and teardown, when the test began, its worker, and the CPU time that the worker took
to collect the tests. The first test that uses a fixture includes its start; each test includes what servers of fixtures
do meanwhile. With cgroups v1, as root, the kernel counts each worker separately, including killed processes and those
that left the process tree. Otherwise these are not counted, and CPU seconds are a lower bound. A file that waits has
much wall time and little CPU time.

XML that was written without the plugin is refused.
"""

from __future__ import annotations

import argparse
import datetime
import os
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_TICKS = os.sysconf("SC_CLK_TCK")
_MEASURED = "<!-- measured -->"
_ACCOUNTS = Path("/sys/fs/cgroup/cpuacct")
_account: Path | None = None
_counted = 0.0
_collecting = 0.0


def open_account() -> Path | None:
    """Have the kernel count the CPU time of this process and all its descendants from now on; None if it cannot."""
    account = _ACCOUNTS / f"suite-time-{os.getpid()}"
    try:
        account.mkdir()
        (account / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        with suppress(OSError):
            account.rmdir()
        return None
    return account


def close_account(account: Path) -> None:
    """Leave and remove the account; it stays if another process is still in it."""
    with suppress(OSError):
        (_ACCOUNTS / "cgroup.procs").write_text(str(os.getpid()))
        account.rmdir()


def cpu_seconds() -> float:
    """CPU seconds so far, of this process and its descendants."""
    if _account is None:
        return tree_cpu_seconds()
    return int((_account / "cpuacct.usage").read_text()) / 1e9


def tree_cpu_seconds(pid: int | None = None) -> float:
    """CPU seconds of a process, its ended children and its running descendants; 0 if the process is gone."""
    root = Path("/proc") / (str(pid) if pid else "self")
    try:
        fields = (root / "stat").read_text().rpartition(")")[2].split()
        tasks = list((root / "task").iterdir())
    except OSError:
        return 0.0
    seconds = sum(int(n) for n in fields[11:15]) / _TICKS
    for task in tasks:
        try:
            children = (task / "children").read_text().split()
        except OSError:
            continue
        seconds += sum(tree_cpu_seconds(int(child)) for child in children)
    return seconds


def pytest_collection_finish() -> None:
    """Start counting here, so that no test includes the import of test files."""
    global _account, _counted, _collecting
    _collecting = tree_cpu_seconds()
    _account = open_account()
    _counted = cpu_seconds()


def pytest_unconfigure() -> None:
    """Close the account after fixtures have ended their processes."""
    global _account
    if _account is not None:
        close_account(_account)
        _account = None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Add the properties; JUnit's writer takes those of the last phase's report."""
    global _counted
    item.user_properties.append((f"{call.when}_seconds", f"{call.duration:.3f}"))
    if call.when == "setup":
        item.user_properties.append(("began", f"{call.start:.3f}"))
    elif call.when == "teardown":
        now = cpu_seconds()
        # Without an account, the seconds of a child that was not waited for are lost.
        item.user_properties.append(("cpu_seconds", f"{max(now - _counted, 0):.2f}"))
        item.user_properties.append(("worker", os.environ.get("PYTEST_XDIST_WORKER", "main")))
        item.user_properties.append(("collecting_seconds", f"{_collecting:.2f}"))
        _counted = now
    return (yield)


@dataclass
class File:
    """The cost of one test file."""

    tests: int = 0
    cpu: float = 0.0
    setup: float = 0.0
    call: float = 0.0
    teardown: float = 0.0
    spans: list[tuple[str, float, float]] = field(default_factory=list)
    """Worker, beginning and end of each test."""
    collecting: dict[str, float] = field(default_factory=dict)
    """CPU seconds of each worker before its first test."""

    @property
    def wall(self) -> float:
        """Seconds in which a worker ran it."""
        return self.setup + self.call + self.teardown


def read(*parts: Path) -> dict[str, File]:
    """Files by name, from JUnit's XML with this plugin's properties."""
    files: dict[str, File] = defaultdict(File)
    for path, case in ((part, case) for part in parts for case in ET.parse(part).iter("testcase")):  # noqa: S314
        found = {p.get("name"): p.get("value", "") for p in case.iter("property")}
        if "cpu_seconds" not in found:
            raise SystemExit(f"{path} was written without `-p suite_time`")
        file = files[case.get("classname", "").split(".Test")[0].replace(".", "/")]
        setup, call, teardown = (float(found.get(f"{when}_seconds", 0)) for when in ("setup", "call", "teardown"))
        file.tests += 1
        file.cpu += float(found["cpu_seconds"])
        file.setup, file.call, file.teardown = file.setup + setup, file.call + call, file.teardown + teardown
        began = float(found["began"])
        file.spans.append((found["worker"], began, began + setup + call + teardown))
        file.collecting[found["worker"]] = float(found.get("collecting_seconds", 0))
    return dict(files)


def table(files: dict[str, File], before: dict[str, File] | None = None, most: int = 30) -> str:
    """The most expensive files as a Markdown table, with their cost in an earlier run, if one is given."""
    earlier = before or {}
    names = _dearest(files, earlier)
    head = ["file", "tests", "CPU s", "wall s", "set-up s", "teardown s"]
    head += ["CPU s before", "wall s before"] if earlier else []
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    rows = [(name, files.get(name), earlier.get(name)) for name in names[:most]]
    for label, group in (("all others", names[most:]), ("**all**", names)):
        rows.append((label, _sum(files, group), _sum(earlier, group)))
    for name, now, then in rows:
        cells = [name, *(_cells(now, "tests", "cpu", "wall", "setup", "teardown"))]
        cells += _cells(then, "cpu", "wall") if earlier else []
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _dearest(*runs: dict[str, File]) -> list[str]:
    names = sorted({name for run in runs for name in run})
    return sorted(names, key=lambda n: -max(max(r[n].cpu, r[n].wall) for r in runs if n in r))


def _cells(file: File | None, *parts: str) -> list[str]:
    return [f"{getattr(file, part):.0f}" if file else "–" for part in parts]


def _sum(files: dict[str, File], names: list[str]) -> File:
    found = [files[n] for n in names if n in files]
    parts = ("tests", "cpu", "setup", "call", "teardown")
    return File(*(sum(getattr(f, part) for f in found) for part in parts))


def draw(files: dict[str, File], before: dict[str, File], target: Path, most: int) -> None:
    """Draw bars for the most expensive files (CPU, and waiting on top), and which worker ran which part when."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = _dearest(files, before)[:most]
    figure, (bars, lanes) = plt.subplots(2, 1, figsize=(11, 12), height_ratios=[5, 1], layout="constrained")
    runs = [("now", files, 0.0, "tab:blue"), ("before", before, 0.4, "tab:gray")]
    for label, found, shift, shade in runs if before else runs[:1]:
        places = [-(i + shift) for i in range(len(names))]
        cpu = [found.get(n, File()).cpu for n in names]
        waits = [max(found.get(n, File()).wall - c, 0.0) for n, c in zip(names, cpu, strict=True)]
        bars.barh(places, cpu, 0.38, color=shade, label=f"CPU, {label}")
        bars.barh(places, waits, 0.38, left=cpu, color=shade, alpha=0.35, label=f"waiting, {label}")
    bars.set_yticks([-i for i in range(len(names))], names, fontsize=7)
    bars.set_xlabel("seconds")
    bars.legend()
    spans = [(file.split("/")[0], *span) for file, f in files.items() for span in f.spans]
    begin, workers, parts = min(s[2] for s in spans), sorted({s[1] for s in spans}), sorted({s[0] for s in spans})
    for part, worker, start, end in spans:
        color = f"C{parts.index(part)}"
        lanes.barh(workers.index(worker), end - start, 0.8, left=start - begin, color=color)
    lanes.set_yticks(range(len(workers)), workers)
    lanes.set_xlabel("seconds since the first test began")
    handles = [plt.Rectangle((0, 0), 1, 1, color=f"C{i}") for i in range(len(parts))]
    lanes.legend(handles, parts, fontsize=7, ncols=len(parts), loc="upper center", bbox_to_anchor=(0.5, -0.35))
    figure.savefig(target, dpi=90)


def page(files: dict[str, File], before: dict[str, File], target: Path, most: int) -> None:
    """Write the dated page, and its picture next to it."""
    picture = target.with_suffix(".png")
    draw(files, before, picture, most)
    spans = [span for file in files.values() for span in file.spans]
    seconds = max(s[2] for s in spans) - min(s[1] for s in spans)
    whole, workers = _sum(files, list(files)), {w: s for file in files.values() for w, s in file.collecting.items()}
    head, mark, _ = target.read_text().partition(_MEASURED) if target.exists() else ("", "", "")
    head = head if mark else f"# Where the tests' time goes, {datetime.date.today().isoformat()}\n\n"
    target.write_text(
        f"{head}{_MEASURED}\n\n{whole.tests} tests in {seconds:.0f} s on {len(os.sched_getaffinity(0))} cores with "
        f"{len(workers)} workers: {whole.cpu:.0f} s of CPU and {sum(workers.values()):.0f} s to collect them, "
        f"{whole.wall:.0f} s of the workers'. `scripts/suite_time.py` says how it is measured and drawn.\n\n"
        f"![Seconds of each file, and which worker was at what when]({picture.name})\n\n"
        f"{table(files, before, most)}\n"
    )


def main() -> None:
    """Print the table, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="+", help="XML of a run, or of its parts")
    parser.add_argument("--before", type=Path, nargs="+", default=[], help="XML of an earlier run, or of its parts")
    parser.add_argument("--most", type=int, default=30, help="files to name (default 30)")
    parser.add_argument("--page", type=Path, help="write a page, and a picture next to it")
    options = parser.parse_args()
    files, before = read(*options.run), read(*options.before)
    if options.page:
        page(files, before, options.page, options.most)
    else:
        print(table(files, before, options.most))


if __name__ == "__main__":
    main()
