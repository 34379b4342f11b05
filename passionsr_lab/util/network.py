"""Whether a server answers at all, asked before a library that would retry for a minute."""

from __future__ import annotations

import functools
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

TIMEOUT = 5  # seconds


@functools.cache
def unreachable(host: str) -> str:
    """Why `host` does not answer within `TIMEOUT` seconds, or ""; asked once per process."""
    try:
        urlopen(Request(f"https://{host}", method="HEAD"), timeout=TIMEOUT).close()
    except HTTPError:
        return ""  # an answer, if not a kind one
    except OSError as error:
        return f"{host}: {error.reason if isinstance(error, URLError) else error}"
    return ""
