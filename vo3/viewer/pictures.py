"""Frames as data URIs, and times as people read them."""

from __future__ import annotations

import base64
import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vo3.viewer.markup import Markup, tag

# Browsers blur what they enlarge. A frame below this width is enlarged here, by whole pixels, so that it stays legible.
LEGIBLE_WIDTH = 480


def data_uri(frame: UInt8[np.ndarray, "h w 3"], *, width: int = LEGIBLE_WIDTH) -> str:
    """A frame as a JPEG data URI, about `width` pixels wide: enlarged by a whole factor or reduced smoothly."""
    image = Image.fromarray(np.ascontiguousarray(frame))
    factor = width // image.width
    if factor >= 2:
        image = image.resize(
            (image.width * factor, image.height * factor), Image.Resampling.NEAREST
        )
    elif image.width > (most := width * 4 // 3):
        height = max(1, round(image.height * most / image.width))
        image = image.resize((most, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    # Small frames have no detail to lose: full chroma keeps coloured edges where they are.
    image.save(buffer, "JPEG", quality=82, subsampling=0 if factor >= 2 else 2, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def clock(seconds: float, *, decimals: int = 0) -> str:
    """Seconds as 0:07, 12:34 or 1:02:03, with decimals of a second where asked."""
    unit = 10**decimals
    total = round(seconds * unit)
    whole, part = divmod(total, unit)
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    text = f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"
    return f"{text}.{part:0{decimals}d}" if decimals else text


def rate(fps: float) -> str:
    """Frames per second as people say it: `2 a second`, or `one every 6.1 s` below one."""
    return f"{fps:.3g} a second" if fps >= 0.995 or fps <= 0 else f"one every {1 / fps:.3g}\u00a0s"


def window(start: float, end: float) -> str:
    """A window as `12:34 - 12:41`, with tenths when the ends need them."""
    decimals = 0 if all(abs(x - round(x)) < 0.05 for x in (start, end)) else 1
    return f"{clock(start, decimals=decimals)} \u2013 {clock(end, decimals=decimals)}"


def figure(
    frame: UInt8[np.ndarray, "h w 3"], seconds: float, *, what: str, width: int = LEGIBLE_WIDTH
) -> Markup:
    """A frame with its time below. `what` names it for those who do not see it."""
    text = clock(seconds, decimals=0 if abs(seconds - round(seconds)) < 0.05 else 1)
    height, w = frame.shape[:2]
    image = tag(
        "img",
        src=data_uri(frame, width=width),
        alt=f"{what} at {text}",
        width=w,
        height=height,
        loading="lazy",
    )
    return tag("figure", image, tag("figcaption", text))
