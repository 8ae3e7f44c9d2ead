"""Who may ask: a robot's program may, a web page that happens to be open on the same machine may not."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import urlsplit

from prismatic.wire.errors import ForeignPageError


def check_origin(headers: Mapping[str, str]) -> None:
    """Accepts whatever no browser sent, and pages that this server itself gave out under a number or localhost.

    A browser names the page in `Origin`, for websockets and for POST. A page that was loaded under a name whose address somebody changed
    since then (DNS rebinding) looks like one of this server; so names other than localhost are not accepted.

    Raises:
        ForeignPageError: a page of another site.
    """
    origin = headers.get("origin")
    if origin is None:
        return
    with suppress(ValueError):  # it is no address
        parts = urlsplit(origin)
        if parts.scheme in ("http", "https") and parts.netloc == headers.get("host") and _is_number_or_localhost(parts.hostname or ""):
            return
    raise ForeignPageError(f"a web page of {origin[:80]!r} asks for actions; only programs may (requests without the header Origin)")


def _is_number_or_localhost(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True
