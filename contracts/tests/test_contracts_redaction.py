"""No form in which a secret is commonly printed is left in a text that is kept."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

import pytest

from deepcoder_contracts import redaction
from deepcoder_contracts.redaction import REDACTED, Redactor, TooManyForms, named_values, referred_secrets

ACCOUNT = """{
  "type": "service_account",
  "private_key_id": "0f3378a1b2c355a46c6d"
}
"""
VALUES = {
    "plain": "correct-horse-battery",
    "quote": 'pass"word\\of the team',
    "umlaut": "schlüssel-der-Gruppe",
    "lines": ACCOUNT,
    "slashes": "wJalr/XUtnFEMI+K7MDENG=",
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_a_value_is_found_as_it_is_printed(value: str) -> None:
    redactor = Redactor([value.encode()])
    prefixed = "\n".join(f"12:00 {line}" for line in value.splitlines())
    basic = base64.b64encode(f"user:{value}".encode()).decode()
    printed = {
        "itself": value,
        "a log's lines": prefixed,
        "JSON": json.dumps({"key": value}),
        "JSON as it is": json.dumps({"key": value}, ensure_ascii=False),
        "repr": repr({"key": value}),
        "bytes": repr(value.encode()),
        "URL": f"https://host/?key={quote(value, safe='')}",
        "base64": base64.b64encode(value.encode()).decode(),
    }
    for what, text in printed.items():
        left = redactor.text(text)
        assert REDACTED in left, what
        for line in value.split():
            assert line not in left or len(line) < redaction.SHORTEST, what
    for start in ("", "a", "ab"):
        encoded = base64.b64encode(f"{start}{value.strip()}!".encode()).decode()
        assert len(redactor.text(encoded)) < len(REDACTED) + 12
    assert REDACTED in redactor.text(f"Authorization: Basic {basic}")


@pytest.mark.parametrize(
    "token",
    [
        "hf_AbCdEfGhIjKlMnOpQrSt",
        "AKIAIOSFODNN7EXAMPLE",
        "ASIAIOSFODNN7EXAMPLE",
        "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJlIn0.c2lnbmF0dXJl",
        "token-eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJlIn0.c2lnbmF0dXJl",
        "-----BEGIN PRIVATE KEY-----\nMIIEow\n-----END PRIVATE KEY-----",
        "ghp_0123456789abcdefghijABCDEFGHIJ012345",
        "github_pat_11ABCDEFG0123456789_abcdefghij",
        "sk-proj-0123456789abcdefghij",
        "glpat-0123456789abcdefghij",
        "Bearer 0123456789abcdefghij",
        "https://user:pa55word@registry/",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_a_token_is_known_by_its_shape(token: str) -> None:
    left = Redactor([]).text(f"login with {token} failed")
    assert REDACTED in left
    assert not [part for part in token.split() if len(part) > 10 and part in left]
    assert left.startswith("login with ")


@pytest.mark.parametrize(
    "part",
    [
        "eyJ-",
        "eyJhbGciOi.",
        "eyJhbGciOiJSUzI1NiJ9-",
        "-----BEGIN PRIVATE KEY-----",
        "-----BEGIN " + "A " * 40,
        "://a:",
        "bearer ",
        "sk-",
        "xoxb-",
    ],
)
def test_a_log_that_its_writer_made_to_be_slow_is_searched_in_its_length(part: str) -> None:
    text = (part * (1 + (1 << 20) // len(part)))[: 1 << 20]
    began = time.process_time()
    Redactor([]).text(text)
    assert time.process_time() - began < 5, "a megabyte takes hours where its letters are gone through again and again"


def test_a_secret_that_its_owner_made_to_be_slow_is_refused_at_once() -> None:
    began = time.process_time()
    Redactor([b"-----BEGIN CERTIFICATE-----" * 38_000])
    with pytest.raises(TooManyForms):
        Redactor(["\n".join(f"line {i}" for i in range(100_000)).encode()])
    assert time.process_time() - began < 5


def test_ordinary_text_stays() -> None:
    text = "step 12 loss 0.25 https://host:8000/ask-me s3://bucket/run 55a46c6d0f3378a1b2c3\n"
    assert Redactor([b"12", b""]).text(text) == text


def test_a_document_is_redacted_before_it_is_encoded() -> None:
    value = 'a "quoted"\nsecret of Müller'
    document = {"status": [{"message": f"exited with {value}"}], f"label-{value}": 1, "code": None}
    left = Redactor([value.encode()]).document(document)
    assert left == {"status": [{"message": f"exited with {REDACTED}"}], f"label-{REDACTED}": 1, "code": None}


def test_bytes_that_are_no_text_are_found_in_base64() -> None:
    value = bytes(range(200, 240))
    assert Redactor([value]).text(base64.b64encode(value).decode()).startswith(REDACTED)


def test_certificates_are_no_secret_however_many() -> None:
    lines = "\n".join(f"MIIBszCCAVmgAwIBAgIU{i}" for i in range(redaction.MOST_FORMS))
    bundle = f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n"
    assert Redactor([bundle.encode()]).text(bundle) == bundle


def test_more_than_can_be_sought_is_refused() -> None:
    lines = "\n".join(f"line number {i}" for i in range(redaction.MOST_FORMS))
    with pytest.raises(TooManyForms, match="at most"):
        Redactor([lines.encode()])


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *[(n, True) for n in ("WANDB_API_KEY", "APIKEY", "secretKey", "DB_PWD", "PGPASS", "PROXY_AUTH", "HF_TOKEN")],
        *[(n, True) for n in ("GOOGLE_CREDENTIALS_JSON", "CONNECTION_STRING", "AWS_ACCESS_KEY_ID", "password")],
        *[(n, False) for n in ("PWD", "TOKEN_FILE", "KEY_LENGTH", "COMPASS", "AUTHOR", "PATH")],
    ],
)
def test_variables_that_are_named_as_secrets_are_known(name: str, secret: bool) -> None:
    template = {"spec": {"containers": [{"env": [{"name": name, "value": "some-value"}]}]}}
    assert list(named_values([template])) == ([b"some-value"] if secret else [])


@pytest.mark.parametrize("search", [named_values, referred_secrets])
def test_what_cannot_be_searched_does_not_pass_for_free_of_secrets(search: Callable[[Any], Iterable[Any]]) -> None:
    pod = {"env": [{"name": "API_KEY", "value": "hunter2", "secretKeyRef": {"name": "s"}}], "n": [1, 0.5, True, None]}
    assert list(search({"pods": (pod,)}))
    for pods in ({"a": pod}.values(), iter([pod])):
        with pytest.raises(TypeError, match="not searched"):
            list(search(pods))
