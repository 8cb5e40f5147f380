"""`logs`: what the parts of a run print now, and what past attempts have left in the bucket.

Pods disappear with their attempt, so earlier output is read from the bucket. If a part has no pod now, or an attempt
has left nothing, the message says where else to look. A pod that has not started yet is named on standard error, and
tried again with -f. If several pods are followed and one of them fails, the others end too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from queue import Empty, Queue
from threading import Thread

import click

from deepcoder_cli.exit_codes import Exit
from deepcoder_cli.output import age, document, table
from deepcoder_cli.terminal import program_output, say
from deepcoder_cli.where import Where
from deepcoder_client.client import Client
from deepcoder_client.connection import PODS, Object
from deepcoder_client.driver_log import driver_lines
from deepcoder_client.errors import ClientError, NoData, NotFound, NotStarted
from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.labels import HEAD, LABEL_ORDINAL, LABEL_ROLE, LEARNER, SAMPLER, pool_name, trainer_container
from deepcoder_contracts.layout import DRIVER_LOG

RETRY_SECONDS = 5.0
"""Pause in seconds until a followed pod that has not started is tried again."""
ROLES = {"head": HEAD, "samplers": SAMPLER, "learners": LEARNER}


def logs(
    where: Where, run: str, part: str, follow: bool, tail: int, attempts: bool, attempt: int | None, name: str | None,
    endpoint: str | None, output: str,
) -> int:  # fmt: skip
    """Print the log of a part, of a past attempt, or the list of attempts."""
    if follow and (attempt or attempts):
        raise click.UsageError("--attempt and --attempts show past attempts: leave out -f")
    if attempts and attempt is not None:
        raise click.UsageError("--attempts lists the attempts, --attempt N shows one: leave out one of the two")
    if part != "driver" and (attempts or attempt is not None):
        raise click.UsageError(
            f"the pods of {part} are gone with their attempt: --attempts lists the files that it left"
        )
    if name is not None and attempt is None:
        raise click.UsageError("--file names a file of a past attempt: give its number with --attempt N")
    if output != "table" and not attempts:
        raise click.UsageError("a log is text: -o is for --attempts")
    client = where.client()
    found = client.get(run)
    if attempts:
        _attempts(client, found, endpoint, output)
    elif attempt is not None:
        program_output(_stored(client, found, attempt, name or DRIVER_LOG, endpoint))
    elif part == "driver":
        for line in _driver(client, found, tail, follow, endpoint):
            program_output(f"{line}\n")
    else:
        pods = _pods(client, found, part)
        if not pods:
            raise NoData(f"{run} has no pod of {part} now; past attempts are shown with --attempts")
        read: set[str] = set()
        for line in _merged(client, pods, tail, follow, "judge" if part == "judge" else None, read):
            program_output(f"{line}\n")
        if not read:
            raise NoData(f"no pod of {part} has started: `kubectl deepcoder status {run}` says what they wait for")
    return Exit.DONE


def _attempts(client: Client, run: DeepCoderRun, endpoint: str | None, output: str) -> None:
    known = client.folder(run, endpoint=endpoint).attempts()
    if output != "table":
        document(known, output)
        return
    columns = ("attempt", "stage", "began", "exit", "reason", "step", "files")
    table(
        columns,
        (
            (
                a.ordinal, a.stage, age(a.claimed), a.exit.code if a.exit else None, a.exit.reason if a.exit else None,
                a.exit.step if a.exit else None, ", ".join(a.logs),
            )
            for a in known
        ),
    )  # fmt: skip


def _stored(client: Client, run: DeepCoderRun, ordinal: int, name: str, endpoint: str | None) -> str:
    folder = client.folder(run, endpoint=endpoint)
    stage = next((a.stage for a in folder.attempts() if a.ordinal == ordinal), None)
    if stage is None:
        raise NoData(f"{folder.uri} has nothing of attempt {ordinal}: --attempts lists those that it has")
    return folder.read_log(stage, ordinal, name)


def _driver(client: Client, run: DeepCoderRun, tail: int, follow: bool, endpoint: str | None) -> Iterator[str]:
    heads = _pods(client, run, "head") if run.status.attempt is not None else []
    if heads:
        name, phase = heads[0]["metadata"]["name"], (heads[0].get("status") or {}).get("phase")
        if phase == "Pending":
            run_name = run.metadata.name
            raise NoData(f"pod {name} is Pending: `kubectl deepcoder status {run_name}` says what it waits for")
        yield from driver_lines(client.connection, run.metadata.namespace, name, tail=tail, follow=follow)
        return
    if not run.status.ordinal:
        raise NoData(f"{run.metadata.name} has had no attempt yet")
    last = run.status.ordinal
    click.echo(f"no attempt is live: this is the end of attempt {last}'s log", err=True)
    lines = _stored(client, run, last, DRIVER_LOG, endpoint).splitlines()
    yield from lines[max(len(lines) - tail, 0) :]


def _pods(client: Client, run: DeepCoderRun, part: str) -> list[Object]:
    if part == "judge":
        pool = pool_name(run)
        return list(client.judges(run.metadata.namespace, pool)) if pool else []
    labels = {LABEL_ROLE: ROLES[part]}
    if run.status.attempt is not None:
        labels[LABEL_ORDINAL] = str(run.status.attempt.ordinal)
    return list(client.pods(run, **labels))


def _merged(
    client: Client, pods: list[Object], tail: int, follow: bool, container: str | None, read: set[str]
) -> Iterator[str]:
    """Yield the pods' lines, with the pod's name if there are several; with `follow`, as they arrive.

    The names of pods whose log could be read are added to `read`.
    """

    def lines(pod: Object) -> Iterator[str]:
        name = pod["metadata"]["name"]
        chosen = container or str(trainer_container(pod["spec"]["containers"])["name"])
        for line in _started(client, pod, chosen, tail, follow):
            read.add(name)
            if line is not None:
                yield f"[{name}] {line}" if len(pods) > 1 else line

    if not follow or len(pods) == 1:
        for pod in pods:
            yield from lines(pod)
        return
    queue: Queue[str | ClientError | None] = Queue()

    def pump(pod: Object) -> None:
        try:
            for line in lines(pod):
                queue.put(line)
        except ClientError as error:
            queue.put(error)
        finally:
            queue.put(None)

    threads = [Thread(target=pump, args=(pod,), daemon=True) for pod in pods]
    for thread in threads:
        thread.start()
    ended = 0
    while ended < len(threads):  # each pump ends with None
        try:
            said = queue.get(timeout=1.0)  # so that Ctrl-C takes effect
        except Empty:
            continue
        if said is None:
            ended += 1
        elif isinstance(said, ClientError):
            raise said
        else:
            yield said


def _started(client: Client, pod: Object, container: str, tail: int, follow: bool) -> Iterator[str | None]:
    """Yield None once a container has a log, then its lines. With `follow`, wait until it has one, or the pod is gone.

    For a pod without a node the API server answers with an empty log, as if it had ended.
    """
    namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
    told = False
    while True:
        try:
            if told:
                pod = client.connection.get(PODS, namespace, name)
            if not pod["spec"].get("nodeName") and (pod.get("status") or {}).get("phase") == "Pending":
                raise NotStarted(f"pod {name} is not on a node yet")
            log = client.pod_log(namespace, name, container, follow=follow, tail=tail)
            first = next(log, None)
            yield None
            if first is not None:
                yield first
            yield from log
            return
        except NotStarted as error:
            if not told:
                say(f"note: {error}" + ("; waiting for it" if follow else ""), err=True)
            told = True
        except NotFound:
            if not told:
                raise
            return  # it was deleted while it waited
        if not follow:
            return
        time.sleep(RETRY_SECONDS)
