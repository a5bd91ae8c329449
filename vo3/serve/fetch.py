"""Fetching a video from a host that the operator allows, and from no other: no redirects, no private addresses behind public names."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import ipaddress
import os
import socket
import ssl
import tempfile
import time
import urllib.parse
from collections.abc import Collection

from vo3.serve.errors import ApiError, invalid, shown, too_large

_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Url:
    """An address on an allowed host.

    Attributes:
      text: as given; secure: https; host, port, target: where it leads.
      literal: whether the host is an address, listed as such.
    """

    text: str
    secure: bool
    host: str
    port: int
    target: str
    literal: bool


def check(url: str, allowed: Collection[str], *, param: str) -> Url:
    """The address, if its host is allowed. Nothing is looked up or opened.

    Raises:
      ApiError: 403 for a host that is not allowed; 400 for what is no address.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or any(ord(letter) <= 32 for letter in url):
        raise invalid(f"{shown(url)} is no web address; write it as https://host/path", param=param)
    if parts.username is not None:
        raise invalid("a web address with a name or password in it is not accepted; leave them out", param=param)  # fmt: skip
    if host not in allowed:
        remedy = "upload the file with POST /v1/files, or have the operator start the server with"
        raise ApiError(403, "host_not_allowed", f"this server fetches nothing from {shown(host)}; {remedy} --allow-host {shown(host)}", param=param)  # fmt: skip
    secure = parts.scheme == "https"
    target = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    if parts.query:
        target += "?" + urllib.parse.quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
    return Url(url, secure, host, port or (443 if secure else 80), target, _address(host) is not None)  # fmt: skip


def download(url: Url, *, limit: float, timeout_s: float) -> str:
    """Fetches into a temporary file; returns its path. The caller removes it.

    Raises:
      ApiError: it cannot be reached, is not there, is too large, or takes too long.
    """
    end = time.monotonic() + timeout_s
    name = shown(url.host)
    connection = _Pinned(url, _resolve(url), timeout_s)
    handle, path = tempfile.mkstemp(prefix="vo3-fetched-")
    try:
        with os.fdopen(handle, "wb") as file, contextlib.closing(connection):
            connection.request("GET", url.target, headers={"Accept": "video/*, */*"})
            answer = connection.getresponse()
            if answer.status != 200:
                what = "redirects are not followed" if 300 <= answer.status < 400 else "give an address that answers 200"  # fmt: skip
                raise ApiError(400, "fetch_failed", f"{name} answered {answer.status}; {what}")
            size = 0
            while block := answer.read(_CHUNK):
                size += len(block)
                if size > limit:
                    raise too_large(f"the video on {name}", limit, "shorten it")
                if time.monotonic() > end:
                    raise TimeoutError
                file.write(block)
        return path
    except BaseException as error:
        os.unlink(path)
        if isinstance(error, TimeoutError):
            raise ApiError(400, "fetch_failed", f"{name} took more than {timeout_s:g} s") from None
        if isinstance(error, (OSError, http.client.HTTPException)):
            raise ApiError(400, "fetch_failed", f"the video on {name} cannot be fetched: {type(error).__name__}") from error  # fmt: skip
        raise


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _resolve(url: Url) -> str:
    """The address to connect to. A name that leads to a private one is refused: whoever owns a name decides where it leads."""
    try:
        found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ApiError(400, "fetch_failed", f"the host {shown(url.host)} is not known") from error
    addresses = [entry[4][0] for entry in found]
    if not url.literal:
        for address in addresses:
            if not ipaddress.ip_address(address.partition("%")[0]).is_global:
                raise ApiError(403, "private_address", f"{shown(url.host)} leads to a private address, which is fetched from only where the operator allows the address itself")  # fmt: skip
    return addresses[0]


class _Pinned(http.client.HTTPConnection):
    """A connection to the address that was checked, whatever the name leads to a moment later."""

    def __init__(self, url: Url, address: str, timeout_s: float):
        super().__init__(url.host, url.port, timeout=min(timeout_s, 30.0))
        self._url, self._to = url, address

    def connect(self) -> None:
        """Connects; with TLS the certificate is checked against the name."""
        self.sock = socket.create_connection((self._to, self.port), self.timeout)
        if self._url.secure:
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(self.sock, server_hostname=self._url.host)
