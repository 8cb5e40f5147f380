"""Removes secrets from text that is stored: known values, in the forms in which they are printed, and known patterns.

A value is searched for whole, line by line (a log prefixes each line of a PEM key), escaped as JSON and Python print
it, percent-encoded, and inside base64 at any offset. Other forms of a secret, such as part of a line or a hash, are not
found. Neither are values shorter than `SHORTEST`, which would match words everywhere in a log. Certificates are public:
a certificate in a Secret does not count as a value.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

SHORTEST = 6
MOST_FORMS = 2000
"""Largest number of forms. A text of several megabytes is searched once per form."""

REDACTED = "[redacted]"

_SHAPES = re.compile(
    r"-----BEGIN [A-Z ]*+(?<=PRIVATE KEY)-----[^-]*+(?:-(?!----)[^-]*+)*-----END [A-Z ]*+(?<=PRIVATE KEY)-----"
    r"|(?<=://)[^\s/:@]*:[^\s/@]+(?=@)"
    r"|(?i:(?<=bearer ))[\w.~+/=-]{16,}"
    r"|(?<![\w-])(?=[\w-]{13,}+\.[\w-]{10,}+\.)(?:[\w-]*-)?eyJ[\w-]{10,}+\.[\w-]{10,}+\.[\w-]*+"
    r"|\b(?:hf_[A-Za-z0-9]{16,}"
    r"|A(?:KI|SI)A[A-Z0-9]{16}"
    r"|gh[pousr]_[A-Za-z0-9]{20,}"
    r"|github_pat_\w{20,}"
    r"|glpat-[\w-]{16,}"
    r"|xox[abprs]-[\w-]{10,}"
    r"|tgp_v\d_[\w-]{20,}"
    r"|sk-[\w-]{20,})",
    re.DOTALL,
)
"""Private keys, credentials in URLs and headers, and tokens of service accounts, Hugging Face, AWS, GitHub, GitLab,
Slack, Together, and of services whose tokens start with `sk-`.

The searched text may be hostile, and the search holds the interpreter's lock. So the pattern must be linear: it may
look at each character only a few times, and an alternative that can start often must fail early. No group with a
lookahead is possessive: Python before 3.11.5, which Debian 12 ships, never matches such a group."""

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----[^-]*+(?:-(?!----)[^-]*+)*-----END CERTIFICATE-----")

SECRET_NAME = re.compile(
    r"(?:KEY|KEY_ID|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS|CREDENTIALS_JSON|CONNECTION_STRING)$"
    r"|(?:^|_|PG)(?:PASS|AUTH)$|_PWD$"
)
"""Names of environment variables that usually hold secrets, in capitals."""

_REFERENCES = frozenset({"secretKeyRef", "secretRef", "secret", "credentialsSecretRef"})
"""Fields that name a Secret: of a variable, of a whole environment, of a volume, and of a run's own settings."""

_WORDS = frozenset({"message", "note", "evidence"})


class TooManyForms(ValueError):
    """The secrets have too many forms to search for."""


class Redactor:
    """Removes a set of secrets from texts."""

    def __init__(self, values: Iterable[bytes]) -> None:
        """Prepare to remove these values. Raises `TooManyForms`."""
        forms: set[str] = set()
        for form in (form for value in values for form in _forms(value)):
            if len(form) >= SHORTEST:
                forms.add(form)
            if len(forms) > MOST_FORMS:
                raise TooManyForms(
                    f"the Secrets have too many lines and forms of lines: at most {MOST_FORMS} can be searched for"
                )
        self._forms = sorted(forms, key=len, reverse=True)

    def text(self, text: str) -> str:
        """Return the text without the secrets."""
        for form in self._forms:
            text = text.replace(form, REDACTED)
        return _SHAPES.sub(REDACTED, text)

    def document(self, value: Any) -> Any:
        """Return a JSON document without the secrets. Call it before encoding, because escaped text looks different."""
        match value:
            case str():
                return self.text(value)
            case dict():
                return {self.text(str(key)): self.document(each) for key, each in value.items()}
            case list() | tuple():
                return [self.document(each) for each in value]
            case _:
                return value


def referred_secrets(document: Any) -> dict[str, bool]:
    """Return the Secrets that programs can read, as environment or files, each with whether it is optional.

    They may be named anywhere in an object, such as a pod, a template of one, or a run.
    """
    found: dict[str, bool] = {}
    for name, optional in _references(document):
        found[name] = found.get(name, True) and optional
    return found


def _references(document: Any) -> Iterator[tuple[str, bool]]:
    for key, each in _items(document):
        if key in _REFERENCES and isinstance(each, Mapping) and (name := each.get("secretName") or each.get("name")):
            yield str(name), bool(each.get("optional"))
        else:
            yield from _references(each)


def named_values(document: Any) -> Iterator[bytes]:
    """Yield literal values of variables named like secrets, anywhere in an object such as a pod or a template."""
    if isinstance(document, Mapping):
        name, value = document.get("name"), document.get("value")
        if isinstance(value, str) and SECRET_NAME.search(str(name).upper()):
            yield value.encode()
    for _, each in _items(document):
        yield from named_values(each)


def _items(document: Any) -> Iterable[tuple[Any, Any]]:
    """Return what a JSON value holds, by key or index. What cannot be searched must not pass for free of secrets."""
    match document:
        case Mapping():
            return document.items()
        case list() | tuple():
            return enumerate(document)
        case str() | int() | float() | None:
            return ()
    raise TypeError(f"{type(document).__name__} is not searched for secrets")


def without_words(value: Any) -> Any:
    """Return an object without free text that may quote a program's output: a container's termination message, a
    probe's result, messages of conditions and events."""
    if isinstance(value, dict):
        return {key: without_words(each) for key, each in value.items() if key not in _WORDS}
    return [without_words(each) for each in value] if isinstance(value, list) else value


def _forms(value: bytes) -> Iterable[str]:
    whole = _CERTIFICATE.sub(b"", value).strip()
    lines = {whole, *(line.strip() for line in whole.splitlines())}
    for line in lines:
        if len(line) < SHORTEST:
            continue
        yield from _within_base64(line)
        try:
            text = line.decode()
        except UnicodeDecodeError:
            continue
        yield text
        yield quote(text, safe="")
        for printed in (json.dumps(text), json.dumps(text, ensure_ascii=False), repr(text), repr(line)):
            yield printed.removeprefix("b")[1:-1]


def _within_base64(value: bytes) -> Iterable[str]:
    """Yield the base64 characters that the value alone determines, for each of the three possible offsets."""
    for before in range(3):
        bits = 8 * (before + len(value))
        yield base64.b64encode(b"\0" * before + value).decode()[-(-8 * before // 6) : bits // 6]
