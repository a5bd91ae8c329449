"""Hugging Face checkpoints to parameters and back, by the table of `hf_table`.

Read: every header is checked first; then each parameter is filled layer by layer, one device's piece at a time, straight
into its target sharding. Host memory holds the parameters (where the devices are the host) and one tensor; where the decoder is
made int8 on the way, one piece and a block of its rows.
Written: one tensor at a time, with the Hub's key names.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from vo3.attention import AttentionMesh
from vo3.models import hf_pieces
from vo3.models import safetensors_io as st
from vo3.models.hf_table import Entry, ShardingFn, default_sharding, scale_of, table
from vo3.models.qwen2_5_vl import Qwen2_5_VL, Qwen2_5_VLConfig, int8
from vo3.models.safetensors_io import CheckpointError

Quantize = Literal["int8"]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# What a checkpoint directory holds besides weights and config.json; copied as it is.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
    "vo3.json",
)


def read_config(directory: epath.PathLike, **options: Any) -> Qwen2_5_VLConfig:
    """The architecture of a Hugging Face directory.

    Raises:
      CheckpointError: no such directory, no config.json in it, or not one of a Qwen2.5-VL that can be run.
    """
    directory = epath.Path(directory)
    if not directory.exists():
        raise CheckpointError(f"{directory} does not exist; give the directory of a checkpoint")
    if not directory.is_dir():
        raise CheckpointError(
            f"{directory} is no directory; give the directory that holds config.json"
        )
    file = directory / "config.json"
    if not file.exists():
        raise CheckpointError(
            f"{directory} has no config.json; give the directory that holds config.json and *.safetensors"
        )
    try:
        data = json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{file} is no JSON ({error}); download it again") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file} is no JSON object; download it again")
    try:
        return Qwen2_5_VLConfig.from_hf(data, **options)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise CheckpointError(f"{file}: {error}") from error


def load(
    directory: epath.PathLike,
    config: Qwen2_5_VLConfig,
    *,
    dtype: Any = None,
    param_dtype: Any = None,
    mesh: Mesh | None = None,
    sharding: ShardingFn | None = None,
    quantize: Quantize | None = None,
) -> Qwen2_5_VL:
    """A model with the weights of a Hugging Face directory.

    Args:
      directory: with `model.safetensors` or an index and its shards; old and new key layouts.
      config: from `read_config`.
      dtype: of the computation; None: as the weights.
      param_dtype: of the weights; None: `dtype`, or as the file holds the embedding.
      mesh: devices to spread the weights and attention over.
      sharding: (path, shape) -> target sharding; default: `hf_table.default_sharding(mesh)`.
      quantize: "int8": the decoder's matrices become int8 while they are read, see `int8`.

    Raises:
      CheckpointError: missing, extra or misshaped tensors, missing or truncated files; all of a kind in one message.
    """
    tensors = _headers(epath.Path(directory))
    _check(tensors, config, epath.Path(directory))
    stored = jnp.dtype(st.DTYPES[tensors["model.embed_tokens.weight"].dtype])
    param_dtype = jnp.dtype(param_dtype or dtype or stored)
    dtype = jnp.dtype(dtype or param_dtype)
    sharding = sharding or default_sharding(mesh)
    attention_mesh = None if mesh is None else AttentionMesh(mesh)
    graph, state = abstract(
        config, quantize=quantize, dtype=dtype, param_dtype=param_dtype, mesh=attention_mesh
    )
    values = {}
    for entry in table(config):
        fills = {entry.ours: functools.partial(hf_pieces.fill, entry, tensors, param_dtype)}
        if (name := scale_of(entry.ours)) in state:
            pieces = hf_pieces.Int8Pieces(entry, tensors, state[name].shape)
            fills = {entry.ours: pieces.kernel, name: pieces.scale}
        for path, fill in fills.items():
            shape = state[path].shape
            values[path] = hf_pieces.assemble(shape, sharding(path, shape), fill)
    return nnx.merge(graph, unflatten(state, values))


def abstract(
    config: Qwen2_5_VLConfig, *, quantize: Quantize | None = None, **options: Any
) -> tuple[nnx.GraphDef, dict[str, jax.ShapeDtypeStruct]]:
    """The model's graph and its parameters' shapes by dotted path, without memory for them."""

    def make() -> Qwen2_5_VL:
        model = Qwen2_5_VL(config, rngs=nnx.Rngs(0), **options)
        if quantize:
            int8.quantize_decoder(model)
        return model

    graph, state = nnx.split(nnx.eval_shape(make))
    return graph, flatten(state)


def flatten(state: nnx.State) -> dict[str, Any]:
    """Parameters by dotted path."""
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def unflatten(like: dict[str, Any], values: dict[str, jax.Array | np.ndarray]) -> nnx.State:
    """The state with these values; inverse of `flatten`.

    Raises:
      CheckpointError: values that are missing or left over.
    """
    if set(like) != set(values):
        missing, extra = sorted(set(like) - set(values)), sorted(set(values) - set(like))
        raise CheckpointError(f"parameters not filled: {missing}; without a place: {extra}")
    return nnx.from_flat_state([(tuple(p.split(".")), nnx.Param(v)) for p, v in values.items()])


def hub_key(key: str) -> str:
    """A tensor's key in the Hub's layout; transformers 4.52 to 4.57 nested both towers under `model`."""
    for new, old in (("model.visual.", "visual."), ("model.language_model.", "model.")):
        if key.startswith(new):
            return old + key.removeprefix(new)
    return key


def _headers(directory: epath.Path) -> dict[str, st.Tensor]:
    """All tensors of a directory, by Hub key."""
    index, single = directory / INDEX, directory / SINGLE
    if index.exists():
        try:
            placed = json.loads(index.read_text())["weight_map"]
            files = [directory / name for name in sorted(set(placed.values()))]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{index} is no shard index ({error}); download it again"
            ) from error
    elif single.exists():
        placed, files = None, [single]
    else:
        raise CheckpointError(
            f"{directory} has neither {SINGLE} nor {INDEX}; only safetensors weights can be read, "
            "convert other formats with transformers first"
        )
    found: dict[str, st.Tensor] = {}
    for file in files:
        for name, tensor in st.read_header(file).items():
            if name.endswith(("rotary_emb.inv_freq", "rotary_pos_emb.inv_freq")):
                continue  # computed, not learned; old files carry it
            key = hub_key(name)
            if key in found:
                raise CheckpointError(
                    f"tensor {name} stands in {found[key].path} and in {file}; remove the stale shard"
                )
            found[key] = tensor
    if placed is not None:
        lost = sorted(name for name in placed if hub_key(name) not in found)
        lost = [name for name in lost if "inv_freq" not in name]
        if lost:
            raise CheckpointError(
                f"{index} places {_some(lost)} in shards that do not hold them; download the shards again"
            )
    return found


def expected(config: Qwen2_5_VLConfig) -> dict[str, tuple[int, ...]]:
    """Every Hub key of this architecture with its shape there."""
    _, state = abstract(config)
    vision = config.vision
    conv = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    shapes = {}
    for entry in table(config):
        shape = state[entry.ours].shape
        layers, inner = (shape[0], shape[1:]) if entry.stacked else (1, shape)
        if entry.form == "transposed":
            inner = inner[::-1]
        elif entry.form == "patches":
            inner = (inner[1], *conv)
        shapes |= {entry.theirs.format(i=i): inner for i in range(layers)}
    return shapes


def _check(tensors: dict[str, st.Tensor], config: Qwen2_5_VLConfig, directory: epath.Path) -> None:
    wanted = expected(config)
    extra = sorted(set(tensors) - set(wanted))
    if config.tie_word_embeddings and "lm_head.weight" in extra:
        head, embed = tensors["lm_head.weight"], tensors.get("model.embed_tokens.weight")
        if embed is not None and not (
            head.shape == embed.shape
            and np.array_equal(st.read(head).view(np.uint8), st.read(embed).view(np.uint8))
        ):
            raise CheckpointError(
                f"{directory}: config.json ties the embeddings, but lm_head.weight differs from "
                "model.embed_tokens.weight; set tie_word_embeddings to false, or remove lm_head.weight"
            )
        extra.remove("lm_head.weight")
    missing = sorted(set(wanted) - set(tensors))
    if missing:
        tied = " (set tie_word_embeddings to true if they are tied)"
        hint = tied if missing == ["lm_head.weight"] else ""
        raise CheckpointError(
            f"{directory} lacks {len(missing)} tensors: {_some(missing)}{hint}; the weights and config.json must be "
            "of the same model, and every shard there"
        )
    if extra:
        raise CheckpointError(
            f"{directory} has {len(extra)} tensors that the model has no place for: {_some(extra)}; the weights and "
            "config.json must be of the same model (merge adapters first)"
        )
    wrong = [
        f"{key} is {list(tensors[key].shape)}, wanted {list(shape)}"
        for key, shape in wanted.items()
        if tensors[key].shape != shape
    ]
    if wrong:
        raise CheckpointError(
            f"{directory} has {len(wrong)} tensors of the wrong shape: {_some(wrong)}; the weights and config.json "
            "must be of the same model"
        )


def _some(names: Sequence[str], count: int = 5) -> str:
    rest = len(names) - count
    return ", ".join(names[:count]) + (f", and {rest} more" if rest > 0 else "")


def save(
    model: Qwen2_5_VL,
    directory: epath.PathLike,
    *,
    source: epath.PathLike | None = None,
    max_shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
) -> None:
    """Writes a Hugging Face directory: weights with the Hub's key names, config.json, and the source's companions.

    Args:
      model: to write; its weights keep their dtype, and may be host arrays (numpy).
      directory: made if need be.
      source: directory whose tokenizer and processor files are copied.
      max_shard_bytes: size of a shard.
      overwrite: whether weights already there may be replaced.

    Raises:
      CheckpointError: weights are already there, are int8, or lie on other hosts.
    """
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    stale = sorted(p.name for p in directory.iterdir() if p.name.endswith((".safetensors", INDEX)))
    if stale and not overwrite:
        raise CheckpointError(
            f"{directory} already holds {_some(stale)}; choose an empty directory or pass overwrite=True"
        )
    values = flatten(nnx.state(model))
    if any(value.dtype == jnp.int8 for value in values.values()):
        raise CheckpointError(
            "int8 weights are not written; load the model without quantize= and save that"
        )
    specs, dtypes = [], {entry.ours: values[entry.ours].dtype for entry in table(model.config)}
    where: dict[str, tuple[Entry, int]] = {}
    wanted = expected(model.config)
    for entry in table(model.config):
        if not getattr(values[entry.ours], "is_fully_addressable", True):
            raise CheckpointError(
                f"{entry.ours} lies on several hosts; gather the parameters before saving"
            )
        for i in range(values[entry.ours].shape[0] if entry.stacked else 1):
            key = entry.theirs.format(i=i)
            where[key] = (entry, i)
            specs.append(st.Spec(key, wanted[key], np.dtype(dtypes[entry.ours])))
    shards = st.plan_shards(specs, max_shard_bytes)
    names = (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    )
    for name, shard in zip(names, shards, strict=True):
        written = directory / f"{name}.part"
        st.write(written, shard, _tensors(shard, where, values))
        written.replace(directory / name)
    for name in set(stale) - set(names):
        (directory / name).unlink()
    if len(shards) > 1:
        placed = {s.name: name for name, shard in zip(names, shards, strict=True) for s in shard}
        total = sum(s.nbytes for s in specs)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    dtype = str(np.dtype(dtypes["embed.table"]))
    (directory / "config.json").write_text(
        json.dumps(model.config.to_hf(dtype=dtype), indent=2) + "\n"
    )
    if source is not None:
        copy_companions(source, directory)


def copy_companions(source: epath.PathLike, directory: epath.PathLike) -> None:
    """Copies the tokenizer, processor and generation files that the source has, and the prompt pack that its `vo3.json` names."""
    settings = epath.Path(source) / "vo3.json"
    pack = json.loads(settings.read_text()).get("prompt_pack") if settings.exists() else None
    # Where it is one of ours there is no such file; one elsewhere stays there.
    packs = (pack,) if isinstance(pack, str) and pack == epath.Path(pack).name else ()
    for name in (*COMPANIONS, *packs):
        file = epath.Path(source) / name
        target = epath.Path(directory) / name
        if file.exists() and not (target.exists() and file.resolve() == target.resolve()):
            target.write_bytes(file.read_bytes())


def _tensors(
    shard: Sequence[st.Spec],
    where: dict[str, tuple[Entry, int]],
    values: dict[str, jax.Array | np.ndarray],
) -> Iterator[np.ndarray]:
    for spec in shard:
        entry, layer = where[spec.name]
        value = values[entry.ours]
        # Nothing is bound here while the caller writes: two tensors at once would be held.
        yield _theirs(entry, value[layer] if entry.stacked else value).reshape(spec.shape)


def _theirs(entry: Entry, value: jax.Array | np.ndarray) -> np.ndarray:
    """One layer's parameter in the Hub's form, before its shape."""
    held = np.asarray(value)
    if entry.form == "same":
        return held
    out = np.empty(held.shape[::-1], held.dtype)
    st.copy(held.T, out, transposed=True)
    return out
