"""When a run gives up: rows may come to nothing one by one, but not all of them."""

from __future__ import annotations

from data_prep.models.base import ModelError

# A failing endpoint fails every row, storage that is not mounted every video: after so many without a reply between them the run ends.
PATIENCE = 50


class EndpointFailed(RuntimeError):
    """The run cannot go on; what is done is stored."""


class Patience:
    """Counts what failed since the last reply."""

    def __init__(self):
        self._failed: set[str] = set()

    def succeeded(self) -> None:
        """A reply came: what failed before it has causes of its own."""
        self._failed.clear()

    def failed(self, row: str, video: str, error: ModelError) -> None:
        """A row, or stage 0 of a video, came to nothing.

        Raises:
          EndpointFailed: the key was refused, or the patience is over.
        """
        if error.kind == "auth":
            raise EndpointFailed(error.advice) from None
        # A video that is not there counts once, however many questions it has.
        self._failed.add(f"video {video}" if error.kind == "storage" else row)
        if len(self._failed) >= PATIENCE:
            what = "videos" if error.kind == "storage" else "rows"
            raise EndpointFailed(
                f"{len(self._failed)} {what} in a row came to nothing, and have no verdict; the last: {error.advice}"
            ) from None
