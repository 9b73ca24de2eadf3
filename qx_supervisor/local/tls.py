"""TLS with a certificate authority of the service's own, which is made when it is first needed."""

from __future__ import annotations

import ssl
import threading

from .records import HOST


class Tls:
    """The service's certificates. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._authority = ""
        self._context: ssl.SSLContext | None = None

    def authority(self) -> str:
        """The certificate of the authority, in PEM form, for clients to trust."""
        self.context()
        return self._authority

    def context(self) -> ssl.SSLContext:
        """The settings of the server's side."""
        with self._lock:
            if self._context is None:
                import trustme

                authority = trustme.CA(organization_name="qx_supervisor's embedded service")
                # A wildcard stands for one label: the catalogue of instances is at api.global-search-tagging.
                names = (HOST, f"*.{HOST}", f"*.global-search-tagging.{HOST}", "localhost", "127.0.0.1")
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                authority.issue_cert(*names).configure_cert(context)
                self._authority = authority.cert_pem.bytes().decode()
                self._context = context
            return self._context
