"""The page at `/`: one file without anything from elsewhere, and the headers that allow it no more than it needs."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import re


def _policy(html: str) -> str:
    """The Content-Security-Policy that allows the style and the script of the page, and requests to this server."""
    sources = {
        directive: " ".join(f"'sha256-{_digest(text)}'" for text in re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.S))
        for directive, tag in (("style-src", "style"), ("script-src", "script"))
    }
    return (
        f"default-src 'none'; style-src {sources['style-src']}; script-src {sources['script-src']}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    )


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


_TEXT = (importlib.resources.files("rnnfast.server") / "page.html").read_text("utf-8")
HTML = _TEXT.encode()
HEADERS = (
    b"content-type: text/html; charset=utf-8\r\n"
    b"content-security-policy: %b\r\n"
    b"referrer-policy: no-referrer\r\n"
    b"x-content-type-options: nosniff\r\n"
    b"cache-control: no-cache\r\n"
) % _policy(_TEXT).encode()
