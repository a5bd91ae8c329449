"""What a client is told when something is wrong: a status, a code to decide on, and a sentence that names the thing and the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# OpenAI's names for kinds of errors, by status; every other status below 500 is the request's fault.
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}  # fmt: skip


class ApiError(Exception):
    """A request that is answered with an error.

    Attributes:
      status: of HTTP.
      code: a word for programs.
      message: a sentence for people.
      param: the part of the request that is at fault, if one is.
      headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.param, self.headers = param, dict(headers or {})

    def body(self, request_id: str) -> dict[str, Any]:
        """The JSON that OpenAI's clients read, with the request's id."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, kind),
                "param": self.param,
                "code": self.code,
                "request_id": request_id,
            }
        }


def invalid(message: str, *, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """400: the request says something that cannot be meant."""
    return ApiError(400, code, message, param=param)


def too_large(what: str, limit: float, remedy: str) -> ApiError:
    """413: `what` has more bytes than `limit`."""
    return ApiError(
        413, "too_large", f"{what} is larger than {limit / 2**20:g} MiB, the most that this server takes; {remedy}"
    )  # fmt: skip


def shown(value: Any, most: int = 60) -> str:
    """A value of the client's as it may stand in a message: short, and never a whole data URL."""
    text = str(value)
    if text.startswith("data:"):
        text = text.partition(",")[0] + ",..."
    text = "".join(letter if letter.isprintable() else " " for letter in text[: most + 1])
    return text if len(text) <= most else text[: most - 3] + "..."
