"""Fetching a video from a host and port that the operator allows, and from no other: no redirects, no private addresses behind public names."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import ipaddress
import os
import socket
import ssl
import tempfile
import threading
import urllib.parse
from collections.abc import Collection, Iterator, Sequence

from vo3.serve.errors import ApiError, invalid, shown, too_large

_CHUNK = 1 << 20
_PORTS = {"http": 80, "https": 443}


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

    Args:
      url: as the client gives it.
      allowed: `host`, which allows the scheme's own port alone, or `host:port`; IPv6 addresses without brackets.
      param: the part of the request that it stands in.

    Raises:
      ApiError: 403 for a host or port that is not allowed; 400 for what is no address.
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
    usual = _PORTS[parts.scheme]
    port = usual if port is None else port
    if f"{host}:{port}" not in allowed and (port != usual or host not in allowed):
        where = shown(host if port == usual else f"[{host}]:{port}" if ":" in host else f"{host}:{port}")  # fmt: skip
        remedy = "upload the file with POST /v1/files, or have the operator start the server with"
        raise ApiError(403, "host_not_allowed", f"this server fetches nothing from {where}; {remedy} --allow-host {where}", param=param)  # fmt: skip
    target = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    if parts.query:
        target += "?" + urllib.parse.quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
    return Url(url, parts.scheme == "https", host, port, target, _address(host) is not None)


def download(url: Url, *, limit: float, timeout_s: float) -> str:
    """Fetches into a temporary file; returns its path. The caller removes it.

    Raises:
      ApiError: it cannot be reached, is not there, is too large, or takes too long.
    """
    name = shown(url.host)
    handle, path = tempfile.mkstemp(prefix="vo3-fetched-")
    connection = None
    try:
        with os.fdopen(handle, "wb") as file, contextlib.ExitStack() as stack:
            connection = stack.enter_context(contextlib.closing(_Pinned(url, _resolve(url), timeout_s)))  # fmt: skip
            stack.enter_context(connection.ending_after(timeout_s))
            connection.request("GET", url.target, headers={"Accept": "video/*, */*"})
            answer = connection.getresponse()
            if answer.status != 200:
                what = "redirects are not followed" if 300 <= answer.status < 400 else "give an address that answers 200"  # fmt: skip
                raise ApiError(400, "fetch_failed", f"{name} answered {answer.status}; {what}")
            size = 0
            while block := answer.read1(_CHUNK):
                size += len(block)
                if size > limit:
                    raise too_large(f"the video on {name}", limit, "shorten it")
                file.write(block)
            if connection.late:
                raise TimeoutError
            if (
                answer.length
            ):  # of what was announced; `read1` ends without a word when the host does
                raise http.client.IncompleteRead(b"", answer.length)
        return path
    except BaseException as error:
        os.unlink(path)
        if isinstance(error, TimeoutError) or (connection is not None and connection.late):
            raise ApiError(400, "fetch_failed", f"{name} took more than {timeout_s:g} s") from None
        if isinstance(error, (OSError, http.client.HTTPException)):
            raise ApiError(400, "fetch_failed", f"the video on {name} cannot be fetched: {type(error).__name__}") from error  # fmt: skip
        raise


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _resolve(url: Url) -> list[str]:
    """The addresses to connect to. A name that leads to a private one is refused: whoever owns a name decides where it leads."""
    try:
        found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ApiError(400, "fetch_failed", f"the host {shown(url.host)} is not known") from error
    addresses = [entry[4][0] for entry in found]
    if not url.literal and not all(map(is_public, addresses)):
        raise ApiError(403, "private_address", f"{shown(url.host)} leads to a private address, which is fetched from only where the operator allows the address itself")  # fmt: skip
    return addresses


# IPv6 addresses that routers turn into the IPv4 address in their last four bytes, whatever that is.
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether an address is one of the internet's, and no way around to one that is not."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if found.version == 6:
        inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF) if found in _TRANSLATED else found.sixtofour  # fmt: skip
        found = inner or found
    return found.is_global and not found.is_multicast


class _Pinned(http.client.HTTPConnection):
    """A connection to the addresses that were checked, whatever the name leads to a moment later.

    Attributes:
      late: whether it was ended because it took too long.
    """

    def __init__(self, url: Url, addresses: Sequence[str], timeout_s: float):
        # Of the scheme: `Host` names a port only where it is another, as servers of several names expect it.
        self.default_port = _PORTS["https" if url.secure else "http"]
        super().__init__(url.host, url.port, timeout=min(timeout_s, 30.0))
        self._url, self._addresses = url, addresses
        self.late = False
        self._wire: socket.socket | None = (
            None  # `sock` is None as soon as the answer is the last one
        )

    def connect(self) -> None:
        """Connects to the first address that answers; with TLS the certificate is checked against the name."""
        for number, address in enumerate(self._addresses, 1):
            try:
                self.sock = socket.create_connection((address, self.port), self.timeout)
                break
            except OSError:
                if number == len(self._addresses) or self.late:
                    raise
        if self._url.secure:
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(self.sock, server_hostname=self._url.host)
        self._wire = self.sock
        if self.late:
            raise TimeoutError

    @contextlib.contextmanager
    def ending_after(self, seconds: float) -> Iterator[None]:
        """Ends the connection then, whatever it is at: a host that sends a byte now and then never runs into a socket's own limit."""
        timer = threading.Timer(seconds, self._end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _end(self) -> None:
        self.late = True
        if self._wire is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._wire, socket.SHUT_RDWR)  # of the wire, below TLS
