"""Tokens checked by their issuer's keys: whose signature, for whom, until when; keys that change and keys out of reach.

The issuer is played, so that its tokens can be wrong in one thing at a time; a real one's tokens are accepted in the
last test.
"""

from __future__ import annotations

import asyncio
import json
import time
from functools import cache
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from test_progress_tokens import make_pod, make_token

from deepcoder_contracts.progress import AUDIENCE
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.resources import SERVICE_ACCOUNTS
from deepcoder_operator.progress import jwks
from deepcoder_operator.progress.authentication import AuthenticationUnavailable, Subject, Unauthenticated
from deepcoder_operator.progress.jwks import KeyReviewer

ISSUER = "https://kubernetes.default.svc"
POD = Subject("ml", "demo-head", "uid-1")


@cache
def key_of(name: str) -> rsa.RSAPrivateKey:
    """One for each name and process: to make one takes a tenth of a second."""
    return rsa.generate_private_key(65537, 2048)


class Issuer:
    """An API server that publishes keys, and counts how often they are asked for."""

    def __init__(self) -> None:
        self.now, self.reads, self.reachable = 1000.0, 0, True
        self.name: str | None = ISSUER
        self.keys: dict[str, Any] = {}
        self.rotate("first")

    def rotate(self, kid: str) -> None:
        """Another key in place of all others."""
        self.keys = {kid: key_of(kid)}

    async def read(self, path: str) -> dict[str, Any]:
        if not self.reachable:
            raise errors.Unavailable("no answer in 15 s")
        if path == "/.well-known/openid-configuration":
            return {"issuer": self.name} if self.name else {}
        assert path == "/openid/v1/jwks"
        self.reads += 1
        return {"keys": [self._published(kid, key) for kid, key in self.keys.items()]}

    def _published(self, kid: str, key: Any) -> dict[str, Any]:
        if isinstance(key, rsa.RSAPrivateKey):
            return json.loads(RSAAlgorithm.to_jwk(key.public_key())) | {"kid": kid, "alg": "RS256", "use": "sig"}
        return json.loads(ECAlgorithm.to_jwk(key.public_key())) | {"kid": kid, "alg": "ES256", "use": "sig"}

    def token(self, kid: str = "first", key: str | None = None, headers: Any = None, **changes: Any) -> str:
        now = time.time()
        pod = {"name": POD.pod_name, "uid": POD.pod_uid}
        claims = {
            "iss": ISSUER,
            "aud": [AUDIENCE],
            "nbf": now - 5,
            "exp": now + 600,
            "kubernetes.io": {"namespace": POD.namespace, "pod": pod, "serviceaccount": {"name": "trainer"}},
        }
        claims = {k: v for k, v in (claims | changes).items() if v is not None}
        signer = key_of(key) if key else self.keys[kid]
        algorithm = "RS256" if isinstance(signer, rsa.RSAPrivateKey) else "ES256"
        return jwt.encode(claims, signer, algorithm=algorithm, headers={"kid": kid} | (headers or {}))


@pytest.fixture
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
def reviewer(issuer: Issuer) -> KeyReviewer:
    kube: Any = issuer
    return KeyReviewer(kube, lambda: issuer.now)


async def test_token_tells_the_pod_that_it_is_bound_to(issuer: Issuer, reviewer: KeyReviewer) -> None:
    assert await reviewer.review(issuer.token()) == POD
    assert await reviewer.review(issuer.token()) == POD
    assert issuer.reads == 1, "keys are kept"
    issuer.keys["curve"] = ec.generate_private_key(ec.SECP256R1())
    issuer.now += jwks.REREAD_SECONDS
    assert await reviewer.review(issuer.token("curve")) == POD


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"aud": ["https://kubernetes.default.svc"]}, "not bound to the audience"),
        ({"aud": None}, "not valid"),
        ({"exp": time.time() - 60}, "has expired"),
        ({"exp": None}, "not valid"),
        ({"nbf": time.time() + 86_400}, "not valid"),
        ({"iss": "https://elsewhere"}, "not valid"),
        ({"key": "others"}, "not valid"),
        ({"kubernetes.io": None}, "not bound to a pod"),
        ({"kubernetes.io": {"namespace": "ml", "node": {"name": "n", "uid": "u"}}}, "not bound to a pod"),
        ({"kubernetes.io": {"pod": {"name": "demo-head", "uid": "uid-1"}}}, "not bound to a pod"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
async def test_token_that_is_wrong_in_one_thing_proves_nothing(
    issuer: Issuer, reviewer: KeyReviewer, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(Unauthenticated, match=message):
        await reviewer.review(issuer.token(**wrong))


async def test_token_that_its_caller_signed_with_the_public_key_as_a_secret_is_refused(
    issuer: Issuer, reviewer: KeyReviewer
) -> None:
    public = issuer._published("first", issuer.keys["first"])["n"]
    claims = jwt.decode(issuer.token(), options={"verify_signature": False})
    forged = jwt.encode(claims, public, algorithm="HS256", headers={"kid": "first"})
    unsigned = jwt.encode(claims, None, algorithm="none", headers={"kid": "first"})  # type: ignore[arg-type]
    for token in (forged, unsigned, "not.a.token", "x", issuer.token(headers={"kid": "../first"})):
        with pytest.raises(Unauthenticated):
            await reviewer.review(token)


async def test_rotated_key_is_read_anew_and_the_old_one_is_forgotten(issuer: Issuer, reviewer: KeyReviewer) -> None:
    old = issuer.token()
    await reviewer.review(old)
    issuer.rotate("second")
    assert await reviewer.review(old) == POD, "until the keys are read anew"
    issuer.now += jwks.REREAD_SECONDS
    assert await reviewer.review(issuer.token("second")) == POD
    with pytest.raises(Unauthenticated, match="does not publish"):
        await reviewer.review(old)


async def test_withdrawn_key_is_believed_for_ten_minutes_at_most(issuer: Issuer, reviewer: KeyReviewer) -> None:
    old = issuer.token()
    await reviewer.review(old)
    issuer.keys = {}
    issuer.now += jwks.KEYS_SECONDS
    with pytest.raises(Unauthenticated, match="does not publish"):
        await reviewer.review(old)


async def test_flood_of_made_up_keys_is_no_flood_of_requests(issuer: Issuer, reviewer: KeyReviewer) -> None:
    for number in range(50):
        with pytest.raises(Unauthenticated, match="does not publish"):
            await reviewer.review(issuer.token(str(number), "others"))
        issuer.now += 1
    assert issuer.reads == 2, "at the beginning, and after 30 s"


async def test_keys_out_of_reach_prove_nothing_and_are_not_asked_for_at_each_call(
    issuer: Issuer, reviewer: KeyReviewer
) -> None:
    await reviewer.review(issuer.token())
    issuer.reachable = False
    issuer.now += jwks.KEYS_SECONDS - 1
    assert await reviewer.review(issuer.token()) == POD, "keys at hand are of use"
    issuer.now += 1
    with pytest.raises(AuthenticationUnavailable, match="no answer"):
        await reviewer.review(issuer.token())
    with pytest.raises(AuthenticationUnavailable, match="a moment ago"):
        await reviewer.review(issuer.token())
    issuer.reachable = True
    issuer.now += jwks.FAILED_SECONDS
    assert await reviewer.review(issuer.token()) == POD


async def test_known_key_waits_for_nobody_who_asks_for_a_made_up_one(issuer: Issuer, reviewer: KeyReviewer) -> None:
    await reviewer.review(issuer.token())
    issuer.now += jwks.REREAD_SECONDS
    silence = asyncio.Event()

    async def hangs(path: str) -> dict[str, Any]:
        await silence.wait()
        raise errors.Unavailable("no answer in 15 s")

    issuer.read = hangs  # type: ignore[method-assign]
    stranger = asyncio.create_task(reviewer.review(issuer.token("made-up", "others")))
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        assert await reviewer.review(issuer.token()) == POD
    silence.set()
    with pytest.raises(AuthenticationUnavailable):
        await stranger


async def test_tokens_of_the_issuer_before_the_last_are_believed_after_a_rotation(
    issuer: Issuer, reviewer: KeyReviewer
) -> None:
    old = issuer.token()
    await reviewer.review(old)
    issuer.name = "https://renamed"
    issuer.now += jwks.KEYS_SECONDS
    assert await reviewer.review(issuer.token(iss="https://renamed")) == POD
    assert await reviewer.review(old) == POD
    issuer.name = "https://renamed-again"
    issuer.now += jwks.KEYS_SECONDS
    await reviewer.review(issuer.token(iss="https://renamed"))
    with pytest.raises(Unauthenticated, match="not valid"):
        await reviewer.review(old)


async def test_api_server_that_names_no_issuer_proves_nothing(issuer: Issuer, reviewer: KeyReviewer) -> None:
    issuer.name = None
    with pytest.raises(AuthenticationUnavailable, match="names no issuer"):
        await reviewer.review(issuer.token(iss="None"))


async def test_keys_that_may_not_be_read_are_told_with_the_right_that_is_missing(
    issuer: Issuer, reviewer: KeyReviewer
) -> None:
    async def refused(path: str) -> dict[str, Any]:
        raise errors.Forbidden(f"GET {path}: 403")

    issuer.read = refused  # type: ignore[method-assign]
    with pytest.raises(AuthenticationUnavailable, match="service-account-issuer-discovery"):
        await reviewer.review(issuer.token())


async def test_keys_that_are_not_understood_are_left_out(issuer: Issuer, reviewer: KeyReviewer) -> None:
    read = issuer.read

    async def more(path: str) -> dict[str, Any]:
        answer = await read(path)
        strange = [{"kty": "oct", "k": "AAAA", "kid": "s"}, {"kty": "EC", "crv": "P-0", "kid": "e"}, {"kid": "n"}]
        return answer | {"keys": [*strange, *answer["keys"]]} if "keys" in answer else answer

    issuer.read = more  # type: ignore[method-assign]
    assert await reviewer.review(issuer.token()) == POD
    with pytest.raises(Unauthenticated, match="does not publish"):
        await reviewer.review(jwt.encode({}, "A" * 32, algorithm="HS256", headers={"kid": "s"}))


@pytest.mark.apiserver
async def test_real_api_server_s_tokens_are_told_apart_by_their_audience(kube: Kube, namespace: str) -> None:
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "trainer", "namespace": namespace}}
    await kube.post(SERVICE_ACCOUNTS.path(namespace), account)
    pod = await make_pod(kube, namespace, "demo-head", "demo")
    reviewer = KeyReviewer(kube, time.monotonic)
    subject = await reviewer.review(await make_token(kube, namespace, pod))
    assert subject == Subject(namespace, "demo-head", pod["metadata"]["uid"])
    for other in (
        await make_token(kube, namespace, pod, "https://kubernetes.default.svc.cluster.local"),
        await make_token(kube, namespace, None),
    ):
        with pytest.raises(Unauthenticated):
            await reviewer.review(other)
