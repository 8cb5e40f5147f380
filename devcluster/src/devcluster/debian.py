"""Debian packages without installing them: host programs unpacked into the cache, and a root file system for images.

Both use the distribution's own apt (its sources, keys and proxies) but keep apt's lists and downloads in the cache, so
that the machine's package state is neither needed nor changed. Fails with apt's message, or if the machine is not a
Debian 12, whose libraries the unpacked programs are linked against.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from devcluster import content_hash, staging
from devcluster.command import run
from devcluster.progress import step

_DOWNLOAD_SECONDS = 600.0
SUITE = "bookworm"

# Includes the libraries that a minimal Debian lacks, but not what every Debian has (libc, libseccomp with apt, …).
SYSROOT_PACKAGES = (
    "runc",
    "containernetworking-plugins",
    "buildah",
    "skopeo",
    "libgpgme11",
    "libassuan0",
    "libdevmapper1.02.1",
    "mmdebstrap",
    "nftables",
    "libnftables1",
    "libjansson4",
    "libedit2",
    "libbsd0",
    "libmd0",
    "iptables",
    "libip4tc2",
    "libip6tc2",
    "libxtables12",
    "libnfnetlink0",
    "libnetfilter-conntrack3",
    "libnftnl11",
    "libmnl0",
    "ipset",
    "libipset13",
)
# What the project's three images need besides their Python packages. libnuma1: vLLM's CPU build loads it.
BASE_PACKAGES = ("python3", "python3-venv", "ca-certificates", "libnuma1", "libgomp1", "tzdata")
# Omitted from the base. Licences stay, because whoever distributes an image must include them.
_BASE_PATHS = (
    *(f"path-exclude=/usr/share/{unused}/*" for unused in ("doc", "man", "locale")),
    "path-include=/usr/share/doc/*/copyright",
)


def sysroot_directory(cache: Path) -> Path:
    """Path of the host programs, whether or not they exist yet."""
    return cache / f"sysroot-{content_hash.digest(SUITE, *SYSROOT_PACKAGES)}"


def base_archive(cache: Path) -> Path:
    """The root file system that the project's images start from, as a tar archive."""
    return cache / f"base-{content_hash.digest(SUITE, *BASE_PACKAGES, *_BASE_PATHS)}.tar"


def search_path(sysroot: Path) -> str:
    """A PATH with the sysroot's programs first."""
    return ":".join(
        [*(str(sysroot / place) for place in ("usr/sbin", "usr/bin", "sbin")), "/usr/sbin:/usr/bin:/sbin:/bin"]
    )


def library_overlay(sysroot: Path) -> tuple[str, str]:
    """(mount point, lower directories of an overlay) that adds the sysroot's libraries to the machine's.

    For a private mount namespace. LD_LIBRARY_PATH would not work: buildah restarts itself without it.
    """
    triplet = f"{os.uname().machine}-linux-gnu"
    target = f"/usr/lib/{triplet}"
    return target, f"{target}:{sysroot}/usr/lib/{triplet}:{sysroot}/lib/{triplet}"


def make_sysroot(cache: Path) -> Path:
    """Download and unpack the host programs, unless they exist."""
    final = sysroot_directory(cache)
    if final.is_dir():
        return final
    said = "unpack Debian programs (runc, CNI plugins, buildah, nftables, …)"
    with step(said), staging.making(cache, final.name) as making:
        packages = making / "debs"
        packages.mkdir(parents=True)
        apt = private_apt(cache)
        log = cache / "logs" / "apt.log"
        run(["apt-get", *apt, "update"], deadline=_DOWNLOAD_SECONDS, log=log)
        run(["apt-get", *apt, "download", *SYSROOT_PACKAGES], deadline=_DOWNLOAD_SECONDS, cwd=packages, log=log)
        for package in sorted(packages.glob("*.deb")):
            run(["dpkg-deb", "-x", package, making], deadline=120)
        shutil.rmtree(packages)
        _choose_nft_variants(making / "usr" / "sbin")
        making.chmod(0o755)
        making.rename(final)
    return final


def make_base(cache: Path, sysroot: Path) -> Path:
    """Make the base image's root file system, unless it exists."""
    final = base_archive(cache)
    if final.is_file():
        return final
    said = f"make the base image's root file system (Debian {SUITE}, Python 3.11)"
    with step(said), staging.making(cache, final.name) as making, staging.making(cache, "root") as scratch:
        scratch.mkdir()
        options = [
            "--mode=root",
            "--variant=minbase",
            f"--include={','.join(BASE_PACKAGES)}",
            *(f"--dpkgopt={path}" for path in _BASE_PATHS),
            '--aptopt=APT::Sandbox::User "root"',
            "--format=tar",
        ]
        mmdebstrap = sysroot / "usr" / "bin" / "mmdebstrap"
        run(
            ["nice", "-n", "5", mmdebstrap, *options, SUITE, making, *_sources()],
            deadline=1200,
            env={"PATH": search_path(sysroot), "TMPDIR": str(scratch)},
            log=cache / "logs" / "mmdebstrap.log",
            contained=True,
        )
        making.rename(final)
    return final


def private_apt(cache: Path) -> list[str]:
    """Options that keep apt's lists, downloads and locks in the cache, and use the machine's sources."""
    place = cache / "apt"
    for inner in ("lists/partial", "archives/partial"):
        (place / inner).mkdir(parents=True, exist_ok=True)
    settings = {
        "Dir::State::lists": f"{place}/lists",
        "Dir::Cache": str(place),
        "APT::Sandbox::User": "root",
        "Acquire::Retries": "3",
        "Acquire::http::Timeout": "30",
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def _sources() -> list[Path]:
    """The machine's own Debian sources, if they are in files that mmdebstrap reads; otherwise its default."""
    listed = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("debian*"))]
    return [path for path in listed if path.is_file() and SUITE in path.read_text()]


def _choose_nft_variants(programs: Path) -> None:
    """Choose the nftables variants of iptables, because Debian's alternatives system does not run here."""
    for family in ("iptables", "ip6tables"):
        for action in ("", "-save", "-restore"):
            (programs / f"{family}{action}").symlink_to("xtables-nft-multi")
