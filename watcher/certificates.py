"""The certificates of the authorities that are trusted, in memory.

`requests` looks for their file at every new connection, and reads it. Once an environment has been deleted, rebuilt or
unmounted, every https request would fail.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from pathlib import Path
from typing import Literal

import certifi
from urllib3.util.ssl_ import create_urllib3_context


def trusted(verify: bool) -> str | bool:
    """What `requests` makes of `verify`: the environment may name a file or a folder."""
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or verify


_known: dict[str | Literal[False], tuple[tuple[int, int], ssl.SSLContext]] = {}
"""No lock guards it, which a child that is forked meanwhile could never have: two threads may both read a file."""


def tls(verify: str | bool) -> ssl.SSLContext:
    """The TLS settings for a value of `verify`, as `requests` takes it; the same object while the certificates are.

    Args:
        verify: Whether certificates are verified, or the file or folder of the CA certificates.

    Raises:
        OSError: If the CA certificates can't be read.
    """
    where: str | Literal[False] = certifi.where() if verify is True else verify
    made = _known.get(where)
    try:
        version = _version(where)
    except OSError:
        if made is None:
            raise
        return made[1]  # it has been deleted since
    if made is None or made[0] != version:
        made = _known[where] = version, _load(where)
    return made[1]


def _version(where: str | Literal[False]) -> tuple[int, int]:
    if where is False:
        return 0, 0
    found = Path(where).stat()
    return found.st_mtime_ns, found.st_size


def _load(where: str | Literal[False]) -> ssl.SSLContext:
    context = create_urllib3_context()
    if where is False:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif Path(where).is_dir():
        # OpenSSL would look for each certificate in the folder when it meets it.
        for file in sorted(Path(where).iterdir()):
            if file.is_file():
                with contextlib.suppress(OSError):  # no certificates
                    context.load_verify_locations(file)
    else:
        context.load_verify_locations(where)
    return context
