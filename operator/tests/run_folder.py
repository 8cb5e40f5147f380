"""A run's folder on a real S3 server, written to as a trainer would."""

from __future__ import annotations

import base64
import hashlib
import uuid
from datetime import UTC, datetime
from typing import Any

import s3_server
from plan_world import UID

from deepcoder_contracts.base import sha256_digest
from deepcoder_contracts.layout import checkpoint_dir, claim_key
from deepcoder_contracts.lineage import place_of
from deepcoder_contracts.manifest import Claim, FileEntry, Manifest, ManifestKind, ParentRef, RunIdentity
from deepcoder_operator.domain.world import StoredStage
from deepcoder_operator.storage.findings import Findings
from deepcoder_operator.storage.reader import RunFolder, read_stage
from deepcoder_operator.storage.s3 import Bucket, Buckets, Credentials, Target

RUN = RunIdentity(namespace="ml", name="demo", uid=UID)
CONFIG = sha256_digest(b"config")


class Folder:
    """A run's folder, written to as a trainer would."""

    def __init__(self, server: s3_server.S3Server) -> None:
        self.server, self.key = server, f"t/{uuid.uuid4().hex}"
        self.client: Any = server.client()
        self.run = RunFolder(self.bucket(), self.key, RUN, CONFIG)

    def bucket(self, secret: str = s3_server.SECRET, name: str = s3_server.BUCKET) -> Bucket:
        credentials = Credentials(s3_server.ACCESS, secret, source="Secret s3")
        return Buckets().open(Target(self.server.endpoint, None, credentials), name)

    def put(self, key: str, data: bytes) -> dict[str, Any]:
        made: dict[str, Any] = self.client.put_object(
            Bucket=s3_server.BUCKET, Key=f"{self.key}/{key}", Body=data, ChecksumAlgorithm="SHA256"
        )
        return made

    def claim(self, ordinal: int) -> None:
        record = Claim(run=RUN, stage="short", ordinal=ordinal, claimed_at=datetime.now(UTC))
        self.put(claim_key("short", ordinal), record.to_json())

    def save(self, step: int, ordinal: int, /, **changes: Any) -> ParentRef:
        return self.commit(checkpoint_dir("short", step, ordinal), {"step": step, "ordinal": ordinal} | changes)

    def commit(self, folder: str | None, changes: dict[str, Any]) -> ParentRef:
        """A manifest and its payload, in a folder or in the one that is its place."""
        step = changes["step"]
        payload = f"weights {step}".encode()
        entry = FileEntry(
            path="w.bin", size=len(payload), sha256=hashlib.sha256(payload).hexdigest(),
            s3_checksum=base64.b64encode(hashlib.sha256(payload).digest()).decode(),
        )  # fmt: skip
        fields: dict[str, Any] = {
            "kind": ManifestKind.CHECKPOINT, "run": RUN, "stage": "short", "stage_index": 0,
            "config_digest": CONFIG, "code_digest": CONFIG, "seed": 0, "world_size": 1,
            "created_at": datetime.now(UTC), "files": [entry],
        }  # fmt: skip
        manifest = Manifest(**(fields | changes))
        folder, data = folder or place_of(manifest), manifest.to_json()
        self.put(f"{folder}/w.bin", payload)
        self.put(f"{folder}/MANIFEST.json", data)
        return ParentRef(uri=f"s3://{s3_server.BUCKET}/{self.key}/{folder}", digest=sha256_digest(data))

    def read(self, ordinal: int | None = None) -> StoredStage:
        return read_stage(self.run, "short", evaluate=False, ordinal=ordinal, known=frozenset(), findings=Findings())
