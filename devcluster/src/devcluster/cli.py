"""The command `devcluster`.

Exit codes: 0 done, 64 the machine or an argument is unsuitable (the message says how to fix it), 130 and 143
interrupted, 1 anything else. `doctor`, `status` and `down` need only the standard library, so they run before a set-up
and after it was removed.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from devcluster import doctor, forwards, gobuild, images, install, lifecycle, node, testprograms
from devcluster.artifacts import Artifacts, NotBuilt
from devcluster.command import CommandFailed
from devcluster.config import DEFAULT_NAME, DOCKERFILES, REPOSITORY, Cluster, ConfigError, cache_root
from devcluster.file_lock import LockTimeout
from devcluster.kubectl import Kube

EXIT_USAGE = 64


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, and turn known failures into a message and an exit code."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupted)  # so that unfinished work is cleaned up, as after Ctrl-C
    try:
        return int(options.action(options))
    except BrokenPipeError:  # the reader of our output has ended, like `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("devcluster: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except ConfigError as reason:
        print(f"devcluster: {reason}", file=sys.stderr)
        return EXIT_USAGE
    except (CommandFailed, NotBuilt, node.NodeError, LockTimeout, TimeoutError, RuntimeError) as reason:
        print(f"devcluster: {reason}", file=sys.stderr)
        return 1
    except OSError as reason:
        print(f"devcluster: {reason}{_advice(reason)}", file=sys.stderr)
        return 1


def _advice(reason: OSError) -> str:
    """What to do about a common error of the operating system; empty for others."""
    if reason.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f". Free some of the disk that holds {cache_root()}, or set DEEPCODER_CACHE to a directory on another one"
        )
    if reason.errno == errno.EROFS:
        return (
            f". Is the file system of {cache_root()} read-only? Set DEEPCODER_CACHE to a directory that can be written"
        )
    if reason.errno in (errno.EACCES, errno.EPERM):
        return ". Run with sudo, or as root"
    return ""


def _interrupted(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="devcluster", description=__import__("devcluster").__doc__)
    parser.add_argument("--name", default=DEFAULT_NAME, help="which cluster, when there is more than one (%(default)s)")
    actions = parser.add_subparsers(required=True, metavar="COMMAND")

    def action(name: str, function: object, text: str) -> argparse.ArgumentParser:
        added = actions.add_parser(name, help=text, description=text)
        added.set_defaults(action=function)
        return added

    checking = action("doctor", _doctor, "report what prevents this machine from running the cluster")
    checking.add_argument("--api-port", type=int, help="loopback port that the API server will have")
    checking.add_argument("--s3-port", type=int, help="loopback port that the S3 server will have")
    building = action("build", _build, "build the programs and file systems that are missing")
    building.add_argument("--images", action="store_true", help="also build the images that `images` loads")
    optional = [program.module for program in gobuild.OPTIONAL]
    with_ = "also build a program that only some tests need; takes minutes"
    building.add_argument("--with", dest="optional", action="append", default=[], choices=optional, help=with_)
    finding = action("program", _program, "print the path of a program that tests use; unpack Debian's if necessary")
    finding.add_argument("program", choices=testprograms.PROGRAMS)
    starting = action("up", _up, "start the cluster, or verify the running one")
    starting.add_argument("--api-port", type=int, help="loopback port of the API server")
    loading = action("images", _images, "build the images and load them into the cluster")
    loading.add_argument("image", nargs="*", help=f"any of {', '.join(DOCKERFILES)} (all of them)")
    loading.add_argument("--json", action="store_true", help="print references, tags and digests for charts")
    loading.add_argument("--source", type=Path, default=REPOSITORY, help="build from the sources of another checkout")
    installing = action("install", _install, "install cluster DNS, KubeRay and the S3 server")
    installing.add_argument("--s3-port", type=int, help="loopback port of the S3 server")
    forwarding = action("forward", _forward_service, "give a Service a port on 127.0.0.1 and print it")
    forwarding.add_argument("target", help="NAMESPACE/SERVICE:PORT")
    forwarding.add_argument("--port", type=int, default=0, help="loopback port (a free one)")
    action("down", _down, "remove every trace of the cluster but its image store")
    showing = action("status", _status, "show the cluster's parts; exit code 0 if it is healthy, 1 if not")
    showing.add_argument("--json", action="store_true", help="print health and paths as JSON; exit code 0")
    return parser


def _cluster(options: argparse.Namespace) -> Cluster:
    return Cluster.named(options.name)


def _artifacts() -> Artifacts:
    return Artifacts(cache_root(), doctor.go_version())


def _machine_will_do(ports: tuple[int, ...] = ()) -> bool:
    found = doctor.problems(doctor.inspect(cache_root(), ports))
    for problem in found:
        print(f"devcluster: {problem}.", file=sys.stderr)
    return not found


def _doctor(options: argparse.Namespace) -> int:
    cluster = _cluster(options)
    if not _machine_will_do((*_api_port(cluster, options.api_port), *_s3_port(cluster, options.s3_port))):
        return EXIT_USAGE
    print("devcluster: this machine will do.")
    return 0


def _build(options: argparse.Namespace) -> int:
    if not _machine_will_do():
        return EXIT_USAGE
    artifacts = _artifacts()
    if options.images:
        artifacts.build(lambda: images.prepare(artifacts))
    else:
        artifacts.build()
    artifacts.build_optional(options.optional)
    return 0


def _program(options: argparse.Namespace) -> int:
    print(testprograms.PROGRAMS[options.program](cache_root()))
    return 0


def _up(options: argparse.Namespace) -> int:
    cluster = _cluster(options)
    if not _machine_will_do(_api_port(cluster, options.api_port)):
        return EXIT_USAGE
    artifacts = _artifacts()
    artifacts.build()
    lifecycle.up(cluster, artifacts, options.api_port)
    print(f"export KUBECONFIG={cluster.kubeconfig}")
    return 0


def _images(options: argparse.Namespace) -> int:
    found = images.load(_cluster(options), _artifacts(), options.image or DOCKERFILES, options.source.resolve())
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        for name, image in found.items():
            print(f"{name:18} {image['reference']}")
    return 0


def _install(options: argparse.Namespace) -> int:
    cluster = _cluster(options)
    if not _machine_will_do(_s3_port(cluster, options.s3_port)):
        return EXIT_USAGE
    port = install.default_s3_port(cluster) if options.s3_port is None else options.s3_port
    loaded = images.load(cluster, _artifacts(), ())
    access = install.install(cluster, _artifacts(), {name: found["reference"] for name, found in loaded.items()}, port)
    print(f"S3: {access.endpoint_in_cluster} in the cluster, {access.endpoint_on_host} here, bucket {access.bucket}")
    print(f"its credentials: Secret s3-admin in namespace s3, and {install.record(cluster)}")
    return 0


def _forward_service(options: argparse.Namespace) -> int:
    cluster = _cluster(options)
    forward = forwards.to_service(cluster, Kube(cluster, _artifacts()), options.target, options.port)
    print(f"127.0.0.1:{forward.port}")
    return 0


def _down(options: argparse.Namespace) -> int:
    lifecycle.down(_cluster(options))
    return 0


def _status(options: argparse.Namespace) -> int:
    cluster = _cluster(options)
    artifacts = _artifacts()
    found = lifecycle.health(cluster, artifacts)
    places = {"kubeconfig": cluster.kubeconfig, "kubectl": artifacts.kubectl, "helm": artifacts.helm}
    if options.json:
        places |= {"cache": cluster.cache, "images": images.record(cluster), "s3": install.record(cluster)}
        shown = {name: str(path) for name, path in places.items()}
        print(json.dumps({"name": cluster.name, "exists": found.exists, "faults": found.faults, **shown}, indent=1))
        return 0  # programs read the faults; another exit code means that nothing was printed
    if not found.exists:
        print(f"cluster {cluster.name}: down")
        return 1
    print(f"cluster {cluster.name}: {'up and healthy' if not found.faults else '; '.join(found.faults)}")
    for name, path in places.items():
        print(f"{name:26} {path}")
    for part in node.components(cluster):
        state = f"pid {part.pid}" if part.pid else f"down ({part.last_exit})"
        print(f"{part.name:26} {state:14} {part.resident_bytes / 2**20:6.0f} MiB  restarts {part.restarts}")
    for forward in forwards.existing(cluster):
        print(f"{'forward ' + forward.name:26} 127.0.0.1:{forward.port} -> {forward.host}:{forward.target_port}")
    return 1 if found.faults else 0


def _api_port(cluster: Cluster, chosen: int | None) -> tuple[int, ...]:
    """The port that the API server will need, if a fixed one was chosen and it does not listen yet."""
    port = lifecycle.default_api_port(cluster) if chosen is None else chosen
    return () if not port or forwards.find(cluster, lifecycle.API_FORWARD) else (port,)


def _s3_port(cluster: Cluster, chosen: int | None) -> tuple[int, ...]:
    """Like `_api_port`, for the S3 server."""
    running = forwards.find(cluster, install.S3_FORWARD)
    port = install.default_s3_port(cluster) if chosen is None else chosen
    return () if not port or (running is not None and running.port == port) else (port,)
