"""Reading what a client sends, with a limit on bytes and on time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from fastapi import Request
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser

from vo3.serve.errors import ApiError, invalid, shown, too_large

# Bytes a second. Places for uploads are few, and one that trickles in must not keep its own.
_SLOWEST = 32 * 1024


async def read_json(request: Request, *, limit: float, timeout_s: float) -> bytes:
    """The body of a JSON request.

    Raises:
      ApiError: of another type, too large, or too slow.
    """
    _expect(request, "application/json")
    remedy = "upload the video with POST /v1/files"
    parts = []
    try:
        async with asyncio.timeout(timeout_s):
            async for part in _limited(request, limit, "the request", remedy, timeout_s):
                parts.append(part)
    except TimeoutError:
        raise _slow() from None
    return b"".join(parts)


async def read_form(request: Request, *, limit: float, timeout_s: float) -> FormData:
    """The fields and files of a form; to be closed.

    Raises:
      ApiError: of another type, no form, too large, or slower than `_SLOWEST` after `timeout_s`.
    """
    _expect(request, "multipart/form-data")
    # Beside the file there is little: boundaries and short fields.
    stream = _limited(request, limit + 65536, "the upload", "shorten the video", timeout_s)
    try:
        parser = MultiPartParser(request.headers, stream, max_files=1, max_fields=8)
        return await parser.parse()
    except MultiPartException as error:
        raise invalid(f"the form cannot be read: {shown(error.message, 200)}") from None
    except (KeyError, ValueError, UnicodeError) as error:
        raise invalid(f"the form cannot be read ({type(error).__name__}); send multipart/form-data with a boundary") from None  # fmt: skip


def declared(request: Request, otherwise: float) -> float:
    """Bytes of the body as its header has them; `otherwise` where it does not tell."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isdecimal() and len(length) < 20 else otherwise


def _expect(request: Request, kind: str) -> None:
    """Another type is refused: a page of somebody else's could send it without asking."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != kind:
        raise ApiError(415, "content_type", f"the content type is {shown(given) or 'missing'}; send {kind}")  # fmt: skip


async def _limited(
    request: Request, limit: float, what: str, remedy: str, timeout_s: float
) -> AsyncIterator[bytes]:
    if declared(request, 0) > limit:
        raise too_large(what, limit, remedy)
    size, began = 0, time.monotonic()
    stream = request.stream()
    while True:
        try:
            left = began + timeout_s + size / _SLOWEST - time.monotonic()
            part = await asyncio.wait_for(anext(stream), max(0.0, left))
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise _slow() from None
        size += len(part)
        if size > limit:
            raise too_large(what, limit, remedy)
        yield part


def _slow() -> ApiError:
    return ApiError(408, "too_slow", "the request comes too slowly; send it faster, or a smaller video")  # fmt: skip
