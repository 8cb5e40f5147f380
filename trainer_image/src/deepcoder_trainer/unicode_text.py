"""Makes text encodable as UTF-8: JSON text and a tokenizer's decoder can leave half of a surrogate pair in it.

Such a half can be written neither to files nor to judges. It becomes U+FFFD, the usual replacement character. Never
fails.
"""

from __future__ import annotations


def whole(text: str) -> str:
    """Return the text with halves of surrogate pairs replaced by U+FFFD."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
