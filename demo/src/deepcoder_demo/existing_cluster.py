"""An existing cluster of the user's: whether KUBECONFIG names one, whether it answers, and which variables must be set.

A KUBECONFIG that names an unreachable cluster is an error, not a reason to build one, because the user set it on
purpose. Images and the S3 server are given by variables; missing ones are named. It uses only the standard library,
because the checks before the set-up import it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from deepcoder_demo import untouched
from deepcoder_demo.commands import CommandFailed, run
from deepcoder_demo.settings import Cluster, Images, S3Access, SettingsError

VARIABLES = (
    "DEEPCODER_IMAGES", "DEEPCODER_S3_ENDPOINT", "DEEPCODER_S3_BUCKET", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
)  # fmt: skip
PROGRAMS = ("kubectl", "helm")
HELM = (3, 14)
"""The first version with --reset-then-reuse-values."""
UNSET = "Or unset KUBECONFIG to have a cluster made on this machine"


def named(environment: Mapping[str, str], ours: Path) -> str | None:
    """The value of KUBECONFIG, a file or several joined by ':', unless there is none or it is devcluster's own file."""
    value = environment.get("KUBECONFIG", "")
    files = [Path(file) for file in value.split(":") if file]
    return None if all(file == ours for file in files) else value


def check(kubeconfig: str, environment: Mapping[str, str]) -> Cluster:
    """The cluster, if it answers, has room for the demo, and all variables are set; raises SettingsError otherwise."""
    if missing := [program for program in PROGRAMS if shutil.which(program, path=environment.get("PATH")) is None]:
        raise SettingsError(
            f"KUBECONFIG names a cluster ({kubeconfig}), which needs {' and '.join(missing)} on PATH. {UNSET}."
        )
    version = run(["helm", "version", "--template", "{{.Version}}"], seconds=20).strip()
    if (found := re.match(r"v(\d+)\.(\d+)\.", version)) and (int(found[1]), int(found[2])) < HELM:
        raise SettingsError(f"helm is {version}: install helm {HELM[0]}.{HELM[1]} or newer. {UNSET}.")
    ready = ["kubectl", "get", "--raw=/readyz", "--request-timeout=10s"]
    try:
        run(ready, seconds=20, env={"KUBECONFIG": kubeconfig})
    except CommandFailed as error:
        raise SettingsError(
            f"KUBECONFIG={kubeconfig} names a cluster that does not answer: {error}\nStart it, or log in. {UNSET}."
        ) from error
    described = cluster(kubeconfig, environment)
    untouched.check(kubeconfig)
    return described


def cluster(kubeconfig: str, environment: Mapping[str, str]) -> Cluster:
    """The cluster as described by the variables."""
    if missing := [name for name in VARIABLES if not environment.get(name)]:
        raise SettingsError(
            f"KUBECONFIG names a reachable cluster ({kubeconfig}), so none is built. The demo then also needs "
            f"{', '.join(missing)}: DEEPCODER_IMAGES is a JSON file with the keys operator, trainer and sandbox, whose "
            f"images the cluster can pull; DEEPCODER_S3_ENDPOINT is the URL of an S3 server as pods reach it "
            f"(DEEPCODER_S3_HOST_ENDPOINT as this machine does, if another); AWS_REGION is us-east-1 if unset; "
            f"temporary keys also need AWS_SESSION_TOKEN. {UNSET}."
        )
    endpoint = environment["DEEPCODER_S3_ENDPOINT"]
    return Cluster(
        kubeconfig,
        ours=False,
        images=read_images(Path(environment["DEEPCODER_IMAGES"])),
        s3=S3Access(
            endpoint=endpoint,
            host_endpoint=environment.get("DEEPCODER_S3_HOST_ENDPOINT") or endpoint,
            bucket=environment["DEEPCODER_S3_BUCKET"],
            region=environment.get("AWS_REGION") or "us-east-1",
            access_key=environment["AWS_ACCESS_KEY_ID"],
            secret_key=environment["AWS_SECRET_ACCESS_KEY"],
            session_token=environment.get("AWS_SESSION_TOKEN", ""),
        ),
    )


def read_images(path: Path) -> Images:
    """Image references from a JSON file with the keys operator, trainer and sandbox."""
    try:
        values = json.loads(path.read_text())
        images = Images(operator=values["operator"], trainer=values["trainer"], sandbox=values["sandbox"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"DEEPCODER_IMAGES={path} must be a JSON file with the keys operator, trainer and sandbox: {error!r}"
        ) from error
    if wrong := [name for name, reference in vars(images).items() if not isinstance(reference, str)]:
        raise SettingsError(
            f"DEEPCODER_IMAGES={path} must hold a string for {', '.join(wrong)}: an image's reference, as "
            '{"trainer": "registry.example/deepcoder/trainer:1"}'
        )
    return images
