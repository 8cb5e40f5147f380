"""`logs`: what the parts of a run print now, and what past attempts have left in the bucket.

Pods disappear with their attempt, so earlier output is read from the bucket. If a part has no pod now, or an attempt
has left nothing, the message says where else to look. If several pods are followed and one of them fails, the others
end too.
"""

from __future__ import annotations

from collections.abc import Iterator
from queue import Empty, Queue
from threading import Thread

import click

from deepcoder_cli.exit_codes import Exit
from deepcoder_cli.output import age, document, table
from deepcoder_cli.terminal import program_output
from deepcoder_cli.where import Where
from deepcoder_client.client import Client
from deepcoder_client.connection import Object
from deepcoder_client.driver_log import driver_lines
from deepcoder_client.errors import ClientError, NoData
from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.labels import HEAD, LABEL_ORDINAL, LABEL_ROLE, LEARNER, SAMPLER, pool_name, trainer_container
from deepcoder_contracts.layout import DRIVER_LOG

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
        for line in _merged(client, pods, tail, follow, "judge" if part == "judge" else None):
            program_output(f"{line}\n")
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


def _merged(client: Client, pods: list[Object], tail: int, follow: bool, container: str | None) -> Iterator[str]:
    """Yield the pods' lines, with the pod's name if there are several; with `follow`, as they arrive."""

    def lines(pod: Object) -> Iterator[str]:
        meta = pod["metadata"]
        chosen = container or str(trainer_container(pod["spec"]["containers"])["name"])
        for line in client.pod_log(meta["namespace"], meta["name"], chosen, follow=follow, tail=tail):
            yield f"[{meta['name']}] {line}" if len(pods) > 1 else line

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
