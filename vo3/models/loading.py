"""`vo3.models.load`: a model with everything it needs to be asked, from a directory or by name."""

from __future__ import annotations

import functools
import json
import pathlib
import tempfile
from typing import Any, get_args

import jax
import jax.numpy as jnp
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from vo3.attention import AttentionMesh
from vo3.chat.positions import MropeTime
from vo3.models import hf_io
from vo3.models.hf_io import Quantize
from vo3.models.hf_table import ShardingFn, default_sharding
from vo3.models.qwen2_5_vl import Qwen2_5_VL
from vo3.models.safetensors_io import CheckpointError

# Models that ship with the package: after RL, and what RL began with.
_ASSETS = epath.Path(pathlib.Path(__file__).parent.parent / "clueworld" / "assets")
NAMES = {"clueworld": _ASSETS, "clueworld-sft": _ASSETS / "sft"}

# The parameters of our own checkpoint directories.
PARAMS = "params"
SETTINGS = "vo3.json"
_SETTINGS = {"crop_policy": dict, "prompt_pack": str, "mrope_time": str, "dialect": str}


def load(
    path_or_name: epath.PathLike,
    *,
    dtype: Any = None,
    param_dtype: Any = None,
    mesh: Mesh | None = None,
    sharding: ShardingFn | None = None,
    quantize: Quantize | None = None,
    **options: Any,
) -> Qwen2_5_VL:
    """A model from a Hugging Face directory, a directory of `save_orbax`, or a name of `NAMES`.

    Args:
      path_or_name: a local directory, one on gs://, or a name.
      dtype: of the computation; None: as the weights.
      param_dtype: of the weights; None: `dtype`, or as stored.
      mesh: devices to spread weights and attention over.
      sharding: (dotted parameter path, shape) -> target sharding; default: `hf_table.default_sharding`.
      quantize: "int8": the decoder's matrices and the output matrix become int8 while they are read, a block of rows at a time, so
        that neither host nor device ever holds them unquantised. For inference; of a Hugging Face directory or a name only.
      **options: fields of `Qwen2_5_VLConfig` that config.json does not hold (`mrope_time`, `remat`, `scan_unroll`).

    Returns:
      The model, with `.config`, `.tokenizer`, `.source`, `.dialect`, `.crop_policy` and `.prompt_pack`. A file `vo3.json` in the
      directory sets the last three and `mrope_time`; without it they are Video-o3's, its evaluation's policy and the default pack.

    Raises:
      CheckpointError: what is wrong with the directory, and what to do.
      ValueError: an unknown `quantize`.
      QwixMissing: int8 without the package qwix.
    """
    if quantize not in (None, "int8"):
        raise ValueError(f"quantize={quantize!r}; None or 'int8'")
    directory = _directory(path_or_name)
    if (directory / "checkpoints").is_dir():
        made = directory / "export"
        remedy = f"give {made}" if made.exists() else f"make one with `vo3 convert {directory} DIR`"
        raise CheckpointError(
            f"{directory} is the workdir of a training run, no checkpoint; {remedy}"
        )
    settings = settings_of(directory)
    if settings.get("mrope_time") is not None:
        options = {"mrope_time": settings["mrope_time"], **options}
    config = hf_io.read_config(directory, **options)
    reader: Any = functools.partial(hf_io.load, quantize=quantize)
    if (directory / PARAMS).exists():
        if quantize:
            raise CheckpointError(
                f"{directory} is a checkpoint of save_orbax, int8 is made of Hugging Face directories; "
                f"run `vo3 convert {directory} DIR --to hf` and load DIR"
            )
        reader = _load_orbax
    model = reader(
        directory, config, dtype=dtype, param_dtype=param_dtype, mesh=mesh, sharding=sharding
    )
    model.assets.source = directory
    model.assets.settings = settings
    return model


def save_orbax(model: Qwen2_5_VL, directory: epath.PathLike) -> None:
    """Writes our own checkpoint: config.json, the companions of the source, and the parameters with Orbax.

    Raises:
      CheckpointError: parameters are already there, or are int8.
    """
    import orbax.checkpoint as ocp  # a second of import that Hugging Face directories do not need

    directory = epath.Path(directory)
    if model.decoder.layers.q.kernel[...].dtype == jnp.int8:
        raise CheckpointError(
            "int8 weights are not written; load the model without quantize= and save that"
        )
    if (directory / PARAMS).exists():
        raise CheckpointError(f"{directory} already holds {PARAMS}; choose an empty directory")
    directory.mkdir(parents=True, exist_ok=True)
    state = nnx.state(model, nnx.Param)
    dtype = str(model.embed.table[...].dtype)
    text = json.dumps(model.config.to_hf(dtype=dtype), indent=2) + "\n"
    (directory / "config.json").write_text(text)
    if model.source is not None:
        hf_io.copy_companions(model.source, directory)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(absolute(directory / PARAMS), state)


def _load_orbax(
    directory: epath.Path,
    config: Any,
    *,
    dtype: Any,
    param_dtype: Any,
    mesh: Mesh | None,
    sharding: ShardingFn | None,
) -> Qwen2_5_VL:
    import orbax.checkpoint as ocp

    path = absolute(directory / PARAMS)
    with ocp.StandardCheckpointer() as checkpointer:
        if param_dtype is None and dtype is None:
            stored = checkpointer.metadata(path)
            stored = getattr(stored, "item_metadata", stored)
            leaves = [leaf.dtype for leaf in jax.tree.leaves(stored) if hasattr(leaf, "dtype")]
            dtype = leaves[0] if leaves else jnp.float32
        param_dtype = jnp.dtype(param_dtype or dtype)
        graph, shapes = hf_io.abstract(
            config,
            dtype=jnp.dtype(dtype or param_dtype),
            param_dtype=param_dtype,
            mesh=None if mesh is None else AttentionMesh(mesh),
        )
        sharding = sharding or default_sharding(mesh)
        # Restored against the target's shardings: the stored ones belong to the machines that wrote them.
        target = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(name, x.shape))
            for name, x in shapes.items()
        }
        try:
            state = checkpointer.restore(path, hf_io.unflatten(shapes, target))
        except Exception as error:  # tensorstore has errors of its own
            raise CheckpointError(
                f"{path} does not hold the parameters that {directory / 'config.json'} describes, or not all of them: {str(error)[:300]}"
            ) from error
    return nnx.merge(graph, state)


def _directory(path_or_name: epath.PathLike) -> epath.Path:
    name = str(path_or_name)
    if name in NAMES:
        directory = NAMES[name]
        if not (directory / "config.json").exists():
            raise CheckpointError(
                f"the model {name!r} is not in this installation ({directory}); train it with `make clueworld`"
            )
        return directory
    directory = epath.Path(path_or_name)
    if not directory.exists():
        raise CheckpointError(
            f"{name} does not exist; give the directory of a checkpoint, or one of {sorted(NAMES)}"
        )
    return directory


def is_checkpoint(path: epath.PathLike) -> bool:
    """Whether a directory holds parameters that `load` reads."""
    directory = epath.Path(path)
    return (directory / PARAMS).exists() or any(directory.glob("*.safetensors"))


def settings_of(directory: epath.Path) -> dict[str, Any]:
    """What the `vo3.json` of a checkpoint directory says; empty without one.

    Raises:
      CheckpointError: it cannot be used.
    """
    file = directory / SETTINGS
    if not file.exists():
        return {}
    try:
        settings = json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{file} is no JSON ({error}); correct or remove it") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{file} is no JSON object; correct or remove it")
    if unknown := sorted(set(settings) - set(_SETTINGS)):
        raise CheckpointError(f"{file} has unknown keys {unknown}; it may hold {list(_SETTINGS)}")
    for name, kind in _SETTINGS.items():
        if not isinstance(settings.get(name), kind | None):
            said = "an object" if kind is dict else "a text"
            raise CheckpointError(f"{file}: {name} is {settings[name]!r}; it must be {said}")
    times = get_args(MropeTime)
    if settings.get("mrope_time") not in (None, *times):
        raise CheckpointError(
            f"{file}: mrope_time is {settings['mrope_time']!r}; one of {list(times)}"
        )
    return settings


def record_time(model: Qwen2_5_VL, directory: epath.PathLike) -> None:
    """Has a checkpoint that was trained on exact times asked on them. One trained with `hf_int` is asked with `constant`, as the published ones are."""
    directory = epath.Path(directory)
    if model.config.mrope_time == "exact":
        settings = {**settings_of(directory), "mrope_time": "exact"}
        (directory / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n")


def absolute(path: epath.PathLike) -> epath.Path:
    """The path as Orbax takes it, which refuses relative ones; resolve() would break gs:// ones."""
    path = epath.Path(path)
    return path if "://" in str(path) else epath.Path(pathlib.Path(path).absolute())


def load_tokenizer(directory: epath.Path) -> Any:
    """The transformers tokenizer of a checkpoint directory.

    Raises:
      CheckpointError: the directory holds none, or an unreadable one.
    """
    if not any(
        (directory / n).exists() for n in ("tokenizer.json", "tokenizer_config.json", "vocab.json")
    ):
        raise CheckpointError(
            f"{directory} has no tokenizer files; copy tokenizer.json and tokenizer_config.json of the original "
            "checkpoint there"
        )
    from transformers import AutoTokenizer  # seconds of import that arithmetic does not need

    try:
        if "://" not in str(directory):
            return AutoTokenizer.from_pretrained(str(directory))
        with tempfile.TemporaryDirectory() as local:
            for name in (*hf_io.COMPANIONS, "config.json"):
                if (directory / name).exists():
                    (epath.Path(local) / name).write_bytes((directory / name).read_bytes())
            return AutoTokenizer.from_pretrained(local)
    except Exception as error:  # the tokenizers library raises errors of no class of its own
        raise CheckpointError(
            f"the tokenizer in {directory} cannot be read ({error}); copy the tokenizer files of the original there again"
        ) from error
