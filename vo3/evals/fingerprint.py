"""What made a number: hashes of files too large to read whole, packages, decoder, device."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from typing import Any

from etils import epath

from vo3.chat import PromptPack

_WHOLE = 16 << 20  # bytes up to which a file is read whole
_BLOCK, _BLOCKS = 1 << 20, 16
_PACKAGES = (
    "vo3",
    "jax",
    "jaxlib",
    "flax",
    "numpy",
    "transformers",
    "tokenizers",
    "av",
    "pillow",
    "libtpu",
)


def of_file(path: epath.PathLike) -> str:
    """SHA-256 over a file's size and contents; above 16 MiB over its size and 16 blocks of 1 MiB spread evenly, first and last among them.

    Two different encodings of a video, or two checkpoints, differ in it for all practical purposes; a change of single bytes in the middle
    of a large file may escape.
    """
    path = epath.Path(path)
    size = path.stat().length
    digest = hashlib.sha256(f"{size}\n".encode())
    with path.open("rb") as file:
        if size <= _WHOLE:
            digest.update(file.read())
        else:
            for i in range(_BLOCKS):
                file.seek((size - _BLOCK) * i // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()[:32]


def of_checkpoint(directory: epath.PathLike) -> str:
    """A hash over the files of a checkpoint directory that decide its answers: weights, config, tokenizer, settings."""
    directory = epath.Path(directory)
    digest = hashlib.sha256()
    for file in sorted(_files(directory), key=str):
        if file.suffix in (".md", ".jsonl", ".log"):
            continue
        digest.update(f"{file.relative_to(directory)} {of_file(file)}\n".encode())
    return digest.hexdigest()[:32]


def _files(directory: epath.Path) -> list[epath.Path]:
    files = []
    for entry in directory.iterdir():
        if entry.name.startswith("."):
            continue
        files += _files(entry) if entry.is_dir() else [entry]
    return files


def of_pack(pack: PromptPack) -> str:
    """A hash over every wording of a prompt pack."""
    return of_data(pack.to_dict())


def of_data(data: Any) -> str:
    """A hash of JSON data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:32]


def made_by(environment: dict[str, Any]) -> str:
    """Device and versions in one line, for every answer: a run may go on elsewhere."""
    versions = (
        f"{name} {environment['packages'][name]}"
        for name in ("jax", "vo3")
        if name in environment["packages"]
    )
    return ", ".join((environment["device"], *versions))


def environment() -> dict[str, Any]:
    """Versions and devices of this process."""
    import av
    import jax
    import PIL

    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    libraries = {name: ".".join(map(str, version)) for name, version in av.library_versions.items()}
    devices = jax.devices()
    return {
        "packages": packages,
        "decoder": f"PyAV {av.__version__}, libavcodec {libraries.get('libavcodec', '?')}",
        "resizer": f"Pillow {PIL.__version__}, bicubic with antialias",
        "device": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
