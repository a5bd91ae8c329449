"""Videos that were extracted to image files: a folder or a list of them, at a known rate."""

from __future__ import annotations

import contextlib
import io
import os
import re
import warnings
from collections.abc import Iterable, Iterator

import numpy as np
from etils import epath
from PIL import Image

from vo3.video.deadline import Deadline
from vo3.video.decode import Decoded
from vo3.video.errors import VideoError
from vo3.video.pages import frame_pages
from vo3.video.resize import resize
from vo3.video.source import is_remote, plain_path, read_error, unreadable

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
        self._files = [epath.Path(plain_path(file)) for file in files]
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
    def folder(cls, path: str, fps: float) -> FrameFiles:
        """The images of a folder, numbers in their names counting as numbers (frame_10 after frame_9).

        Raises:
          VideoError: kind "missing" or "read" where it cannot be listed; "empty"; or what its first frame raises.
        """
        with _listing(path):
            files = [
                file for file in epath.Path(path).iterdir() if file.suffix.lower() in _SUFFIXES
            ]
        return cls(sorted(files, key=lambda file: _natural(file.name)), fps, path)

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
            data = file.read_bytes()
        except FileNotFoundError as error:
            raise VideoError(
                "missing", f"the frame {file} does not exist", "check the list of frames"
            ) from error
        except (PermissionError, IsADirectoryError) as error:
            raise unreadable(f"the frame {file}", error) from error
        except Exception as error:  # object stores have errors of their own
            raise read_error(f"the frame {file}", error) from error
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                return Image.open(io.BytesIO(data)).convert("RGB")
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise VideoError(
                "size", f"the frame {file} is too large: {error}", "extract smaller frames"
            ) from error
        except Exception as error:  # every format has errors of its own
            raise VideoError(
                "corrupt", f"the frame {file} cannot be read: {error}", "extract the frames again"
            ) from error


def is_folder(path: str) -> bool:
    """Whether a plain path is a folder.

    Raises:
      VideoError: kind "missing" or "read" where an object store does not say.
    """
    if not is_remote(path):
        return os.path.isdir(path)
    # An object store has no folders: a name with a suffix is taken for a file without asking.
    with _listing(path):
        return not epath.Path(path).suffix and epath.Path(path).is_dir()


@contextlib.contextmanager
def _listing(path: str) -> Iterator[None]:
    """Turns what goes wrong with a folder (permissions, a stale mount, an object store) into a VideoError that names it."""
    try:
        yield
    except OSError as error:
        raise unreadable(path, error) from error
    except Exception as error:  # object stores have errors of their own
        raise read_error(path, error) from error


def _natural(name: str) -> list[tuple[int, int, str]]:
    return [
        (0, int(part), part) if part.isdigit() else (1, 0, part)
        for part in re.split(r"(\d+)", name)
        if part
    ]
