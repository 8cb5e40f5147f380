"""Go's modules agree on the versions of what they share, where that spares compiling it twice."""

import re

import pytest

from devcluster.gobuild import GO_MODULES


def required(module: str) -> dict[str, str]:
    text = (GO_MODULES / module / "go.mod").read_text()
    return dict(re.findall(r"^\s*(?:require )?(\S+\.\S+/\S+) (v\S+)(?: //.*)?$", text, re.MULTILINE))


@pytest.mark.parametrize("module", ["coredns", "kube-router"])
def test_what_uses_the_kubernetes_client_as_kuberay_does_compiles_it_no_second_time(module: str) -> None:
    one, two = required("kuberay"), required(module)
    shared = one.keys() & two.keys()
    assert "k8s.io/client-go" in shared
    assert {name: (one[name], two[name]) for name in shared if one[name] != two[name]} == {}
