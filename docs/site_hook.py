"""For the site alone: links to files beside docs/ become their paths, since the site holds none of them; pages with a
diagram load what draws it.

On a forge the links work as they are, and diagrams are drawn; a test holds that every link leads to a file. The theme
draws with the `mermaid` that it finds and fetches one from the internet where it finds none, so ours comes before it.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

MERMAID = "assets/mermaid/mermaid.tiny.js"
_THEME = re.compile(r'<script src="(?P<base>[^"]*)assets/javascripts/bundle')
_LINK = re.compile(r"(?<!!)\[(?P<text>(?:`[^`]*`|[^\]`])*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by MkDocs with each page's text."""
    folder = posixpath.dirname(page.file.src_uri)

    def replaced(found: re.Match[str]) -> str:
        target = found["target"]
        if re.match(r"[a-z]+:", target):
            return found[0]
        path = posixpath.normpath(posixpath.join("docs", folder, target))
        if path.startswith("docs/"):
            return found[0]
        text = found["text"]
        return f"`{path}`" if text.strip("`") in (path, posixpath.basename(path)) else f"{text} (`{path}`)"

    return _LINK.sub(replaced, markdown)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Called by MkDocs with each page as it is written."""
    if '<pre class="mermaid">' not in output:
        return output
    theme = _THEME.search(output)
    if theme is None:
        raise RuntimeError(f"{page.file.src_uri}: the theme's script is not where a diagram's is put before it")
    script = f'<script src="{theme["base"]}{MERMAID}"></script>\n    '
    return output[: theme.start()] + script + output[theme.start() :]
