"""The console: one page for whoever opens the service in a browser, read once and answered from memory.

It is as open as /docs, for it says nothing of anybody: what it shows it asks the service for, with the key that its
reader gives it. Its policy names the page's own script and style by hash and no other place than this service, so that
an id that is markup can do nothing, even if the page made a mistake with it.
"""

import base64
import hashlib
import re
from pathlib import Path

from starlette.responses import Response

_PAGE = Path(__file__).parent / "console/index.html"
_INLINE = re.compile(rb"<(script|style)\b[^>]*>(.*?)</\1>", re.DOTALL)


def console() -> Response:
    """The answer to GET /, which may be sent any number of times."""
    page = _PAGE.read_bytes()
    headers = {
        "Content-Security-Policy": _policy(page),
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",  # the page of a service that was replaced must not call the new one
    }
    return Response(page, media_type="text/html", headers=headers)


def _policy(page: bytes) -> str:
    hashes = {kind.decode(): base64.b64encode(hashlib.sha256(text).digest()) for kind, text in _INLINE.findall(page)}
    own = [f"{kind}-src 'sha256-{digest.decode()}'" for kind, digest in hashes.items()]
    none = [f"{what} 'none'" for what in ("base-uri", "form-action", "frame-ancestors", "trusted-types")]
    rest = ["connect-src 'self'", "img-src data:", "require-trusted-types-for 'script'"]  # the only image is its icon
    return "; ".join(["default-src 'none'", *own, *none, *rest])
