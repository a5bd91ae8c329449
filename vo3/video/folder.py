"""Videos that were extracted to image files: a folder or a list of them, at a known rate."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterable

import numpy as np
from etils import epath
from PIL import Image

from vo3.video.deadline import Deadline
from vo3.video.decode import Decoded
from vo3.video.errors import VideoError
from vo3.video.pages import frame_pages
from vo3.video.resize import resize

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff"})


class FrameFiles:
    """Image files in order. Nothing is kept but their names."""

    def __init__(self, files: Iterable[os.PathLike | str], fps: float, name: str):
        """`files` in order of time, extracted at `fps`; `name` is for messages."""
        if not (isinstance(fps, (int, float)) and 0 < fps < float("inf")):
            raise VideoError(
                "source",
                f"{name}: frame_fps {fps!r} is not a rate",
                "give frames per second, such as 4.0",
            )
        self.name = name
        self.fps = float(fps)
        self._files = [epath.Path(file) for file in files]
        if not self._files:
            raise VideoError(
                "empty",
                f"{name} holds no frames",
                f"frames are files ending in {', '.join(sorted(_SUFFIXES))}",
            )
        image = self._open(self._files[0])
        self.height, self.width = image.height, image.width

    def __len__(self) -> int:
        return len(self._files)

    @classmethod
    def folder(cls, path: epath.Path, fps: float) -> FrameFiles:
        """The images of a folder, numbers in their names counting as numbers (frame_10 after frame_9)."""
        files = [file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES]
        return cls(sorted(files, key=lambda file: _natural(file.name)), fps, os.fspath(path))

    def read(self, indices: np.ndarray, *, height: int, width: int, deadline: Deadline) -> Decoded:
        """The frames with these numbers, resized.

        Raises:
          VideoError: kind "missing", "corrupt" or "timeout".
        """
        frames = frame_pages(len(indices), height, width)
        before, opened = -1, 0
        for i, index in enumerate(indices.tolist()):
            deadline.check()
            if index == before:
                frames[i] = frames[i - 1]
                continue
            frames[i] = resize(np.asarray(self._open(self._files[index])), height, width)
            before, opened = index, opened + 1
        return Decoded(frames, indices / self.fps, decoded=opened, seeks=0)

    def _open(self, file: epath.Path) -> Image.Image:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                return Image.open(io.BytesIO(file.read_bytes())).convert("RGB")
        except FileNotFoundError as error:
            raise VideoError(
                "missing", f"the frame {file} does not exist", "check the list of frames"
            ) from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise VideoError(
                "size", f"the frame {file} is too large: {error}", "extract smaller frames"
            ) from error
        except (OSError, ValueError, SyntaxError) as error:
            raise VideoError(
                "corrupt", f"the frame {file} cannot be read: {error}", "extract the frames again"
            ) from error


def _natural(name: str) -> list[tuple[int, int, str]]:
    return [
        (0, int(part), part) if part.isdigit() else (1, 0, part)
        for part in re.split(r"(\d+)", name)
        if part
    ]
