"""Where the page listens, and the names under which browsers may come."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass

from ..errors import ConfigError

DEFAULT = "127.0.0.1:8470"

UNIX = "unix:"

LONGEST_PATH = 107
"""Bytes of a socket's path that the kernel takes (unix(7))."""

_TCP = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^:\[\]/\s]+)):(?P<port>\d{1,5})")


@dataclass(frozen=True)
class Address:
    """Where the page listens.

    Attributes:
        host: An IP address, or "" for a socket.
        port: A port; 0: any that is free.
        path: The path of a socket, or "".
    """

    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read 127.0.0.1:8470, [::1]:8470, localhost:8470 or unix:/path.

        Raises:
            ConfigError: If it is none of these.
        """
        if text.startswith(UNIX):
            path = text.removeprefix(UNIX)
            if not path.startswith("/"):
                raise ConfigError(
                    "config", f"the path of a socket begins with /, such as unix:/run/user/1000/qx, not {text!r}"
                )
            if len(os.fsencode(path)) > LONGEST_PATH:
                raise ConfigError(
                    "config", f"{path} is too long for a socket: choose one of {LONGEST_PATH} bytes at most"
                )
            return cls(path=path)
        found = _TCP.fullmatch(text)
        if found is None or int(found["port"]) > 65535:
            raise ConfigError(
                "config",
                f"the page's address is an IP address and a port, such as {DEFAULT}, or unix:/path, not {text!r}",
            )
        host = "127.0.0.1" if found["host"] == "localhost" else found["v6"] or found["host"]
        try:
            return cls(str(ipaddress.ip_address(host)), int(found["port"]))
        except ValueError:
            raise ConfigError(
                "config", f"{host} is no IP address: give one of this machine's, such as 127.0.0.1:{found['port']}"
            ) from None

    @property
    def is_private(self) -> bool:
        """Whether nobody on another machine can reach it."""
        return bool(self.path) or ipaddress.ip_address(self.host).is_loopback

    def __str__(self) -> str:
        """As a user writes it."""
        if self.path:
            return f"{UNIX}{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """What a browser on this machine is given; a socket, which none can open, as it is."""
        if self.path:
            return str(self)
        if ipaddress.ip_address(self.host).is_unspecified:
            return f"http://localhost:{self.port}/"
        return f"http://{self}/"


def name_in(authority: str) -> str:
    """The host in "host:port", in small letters and without brackets; "" if there is none."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::\d{1,5})?", authority)
    return (found[1] or found[2]).lower().rstrip(".") if found else ""


def port_in(authority: str) -> str:
    """The port in "host:port"; "" if there is none."""
    found = re.search(r":(\d{1,5})$", authority)
    return found[1] if found else ""


def is_expected(name: str, names: frozenset[str]) -> bool:
    """Whether a browser that came to this name came to us, and was not sent here by a name of somebody else's.

    A site may have its own name resolved to 127.0.0.1 (DNS rebinding): to the browser that is still that site, which
    reads what we answer. It can't do so with an IP address, nor with "localhost", which browsers resolve themselves.

    Args:
        name: As `name_in` returns it.
        names: Our own names.
    """
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost" or name in names
    return True
