"""Decides whether a pod may report for a run, from the pod and what is known about the run. A pure function.

The token shows which pod reports. The labels that the operator gave the pod show the run and the attempt. Only the head
of the run's own live attempt is admitted, so a run can neither report for another run nor make it drain.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepcoder_operator.domain.names import HEAD, LABEL_ORDINAL, LABEL_ROLE, LABEL_RUN, LABEL_RUN_UID
from deepcoder_operator.progress.authentication import Subject
from deepcoder_operator.progress_board import RunEntry, RunKey


class NotAdmitted(Exception):
    """The pod does not belong to the run or attempt that it reports for. The message says why."""


def admit(
    subject: Subject, pod: Mapping[str, Any] | None, key: RunKey, ordinal: int, entry: RunEntry | None = None
) -> None:
    """Raise `NotAdmitted` unless `pod` is the subject and the head of this attempt of the run.

    `entry` is the run's entry on the board, None before the run was planned. Anyone who can create a pod chooses its
    labels, so the UID of the observed head is checked too, once it is known.
    """
    if subject.namespace != key.namespace:
        raise NotAdmitted(f"the token is of namespace {subject.namespace}, the run is of {key.namespace}")
    metadata = (pod or {}).get("metadata") or {}
    if metadata.get("uid") != subject.pod_uid:
        raise NotAdmitted(f"no pod {subject.pod_name} with the token's uid belongs to run {key}")
    labels = metadata.get("labels") or {}
    if labels.get(LABEL_RUN) != key.name:
        raise NotAdmitted(f"pod {subject.pod_name} does not belong to run {key}")
    if labels.get(LABEL_ROLE) != HEAD:
        raise NotAdmitted(f"pod {subject.pod_name} is not a head: only the head of an attempt reports")
    if labels.get(LABEL_ORDINAL) != str(ordinal):
        raise NotAdmitted(f"pod {subject.pod_name} is not of attempt {ordinal}: report the ordinal of its stage config")
    if entry is None:
        return
    if labels.get(LABEL_RUN_UID) != entry.run_uid:
        raise NotAdmitted(f"pod {subject.pod_name} belongs to an earlier run of the name {key}")
    if ordinal == entry.ordinal and entry.head_uid not in (None, subject.pod_uid):
        raise NotAdmitted(f"pod {subject.pod_name} is not the head that attempt {ordinal} runs on")
