"""The one error type of this package: what is wrong with a video or a window, and what to do about it."""

from __future__ import annotations

from typing import Literal, get_args

# missing     no such file, or it cannot be opened for reading
# read        the storage failed while reading
# source      the source is of a type that cannot be read (not a path, file object, bytes or list)
# directory   a folder where a file (or a folder with `frame_fps`) is needed
# empty       zero bytes, or a folder or list without frames
# format      not a video container, or its index is cut off
# no_video    a container without a picture stream (audio only, cover art)
# codec       no decoder for the stream
# corrupt     the stream decodes to nothing, or to nothing where frames are asked for, or its time stamps start again
# truncated   the stream ends well before the length that it declares
# window      the window is not numbers, is empty, too short, or outside the video
# strategy    not one of coarse, medium, fine (and what the recipe adds)
# aspect      one side is more than 200 times the other
# size        too many pixels to decode safely
# timeout     the time limit of the call ran out
VideoErrorKind = Literal[
    "missing",
    "read",
    "source",
    "directory",
    "empty",
    "format",
    "no_video",
    "codec",
    "corrupt",
    "truncated",
    "window",
    "strategy",
    "aspect",
    "size",
    "timeout",
]
KINDS: tuple[VideoErrorKind, ...] = get_args(VideoErrorKind)
# Those that tell of the storage, not of the video: with the path mended or the bucket back, it can be read.
STORAGE: tuple[VideoErrorKind, ...] = ("missing", "read", "timeout")


class VideoError(Exception):
    """A video or a window that cannot be used.

    Attributes:
      kind: one of `KINDS`; decide on this, never on the text.
      message: what is wrong, naming the thing.
      remedy: what the user can do.
    """

    def __init__(self, kind: VideoErrorKind, message: str, remedy: str):
        if kind not in KINDS:
            raise ValueError(f"unknown kind of video error {kind!r}; one of {KINDS}")
        super().__init__(kind, message, remedy)  # all three in args: the error survives pickling
        self.kind = kind
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} ({self.remedy})" if self.remedy else self.message
