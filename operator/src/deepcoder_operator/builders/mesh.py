"""Keeps the proxy of a service mesh out of the pods of pools and runs. A template may have it put in.

A mesh injects a proxy into every pod of its namespaces. In a judge it would never be ready, because judges have no
egress to its control plane, and programs would share a network with its admin port. In a run, the proxy of an evicted
pod may end before the trainer has saved, and a mesh that requires mutual TLS keeps KubeRay from the head's port.
"""

from __future__ import annotations

LABELS = {"sidecar.istio.io/inject": "false"}
"""What keeps Istio's proxy out."""

ANNOTATIONS = {"linkerd.io/inject": "disabled"}
"""What keeps Linkerd's proxy out."""
