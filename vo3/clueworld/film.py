"""Writes worlds as real h264 mp4 files.

python -m vo3.clueworld.film --seed=7 --out=world.mp4
"""

from __future__ import annotations

import argparse
import json
import os
import uuid

import av
from etils import epath

from vo3.clueworld.pixels import Renderer
from vo3.clueworld.world import FPS, HEIGHT, WIDTH, World, WorldError, make_world


def write_video(world: World, path: epath.PathLike, *, crf: int = 18) -> epath.Path:
    """Encodes the whole world at its native rate and size; the file appears when it is complete.

    Args:
      path: where to write, ending in .mp4.
      crf: h264 quality, lower is better.
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{uuid.uuid4().hex}-{path.name}")
    try:
        _encode(world, part, crf)
        part.replace(path)
    except BaseException:  # also where it is interrupted: nobody would look for a hidden file
        part.unlink(missing_ok=True)
        raise
    return path


def _encode(world: World, path: epath.Path, crf: int) -> None:
    renderer = Renderer(world)
    with av.open(os.fspath(path), "w", format="mp4") as container:
        options = {"crf": str(crf), "preset": "veryfast", "g": "240", "threads": "1"}
        stream = container.add_stream("libx264", rate=int(FPS), options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(world.frames):
            frame = av.VideoFrame.from_ndarray(renderer.frame(number / FPS), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def main(argv: list[str] | None = None) -> None:
    """Writes one world and prints what is in it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--duration", type=int, help="seconds; log-uniform from 2 to 60 minutes unless given"
    )
    parser.add_argument("--out", required=True)
    args = parser.parse_args(argv)
    try:
        world = make_world(args.seed, duration=args.duration)
    except WorldError as error:
        raise SystemExit(f"film: {error}") from error
    write_video(world, args.out)
    cards = [{"color": c.color, "digit": c.digit, "seconds": [c.start, c.end]} for c in world.cards]
    print(json.dumps({"video": args.out, "seconds": world.duration, "cards": cards}))


if __name__ == "__main__":
    main()
