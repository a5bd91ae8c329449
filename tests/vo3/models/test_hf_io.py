"""Hugging Face checkpoints in and out: bitwise, sharded, both layouts, and every way a directory can be broken."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
from flax import nnx
from jax.sharding import Mesh
from tiny_models import CONFIGS, hf_model

import vo3.models
from vo3.models import CheckpointError, hf_io, hf_table
from vo3.models.qwen2_5_vl import Qwen2_5_VL, Qwen2_5_VLConfig


def weights(folder: pathlib.Path) -> dict[str, torch.Tensor]:
    """Every tensor of a directory, as the reference library reads it."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= safetensors.torch.load_file(file)
    return found


def new_layout(key: str) -> str:
    if key.startswith("visual."):
        return f"model.{key}"
    return key.replace("model.", "model.language_model.", 1) if key.startswith("model.") else key


def write(
    folder: pathlib.Path, tensors: dict[str, torch.Tensor], config: dict, shards: int = 1
) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        safetensors.torch.save_file(tensors, folder / hf_io.SINGLE)
        return
    names = list(tensors)
    placed = {}
    for n in range(shards):
        file = f"model-{n + 1:05d}-of-{shards:05d}.safetensors"
        # Layers of one parameter are spread over the shards, as in reality.
        part = {name: tensors[name] for name in names[n::shards]}
        safetensors.torch.save_file(part, folder / file)
        placed |= dict.fromkeys(part, file)
    (folder / hf_io.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    bits = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
    return set(a) == set(b) and all(
        a[k].dtype == b[k].dtype
        and torch.equal(a[k].view(bits[a[k].dtype]), b[k].view(bits[b[k].dtype]))
        for k in a
    )


@pytest.mark.parametrize("name", ["plain", "tied", "small-windows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["old", "new"])
def test_there_and_back_is_bitwise(pairs, tmp_path, name, dtype, layout):
    original = {k: v.to(dtype) for k, v in weights(pairs(name).folder).items()}
    # Patterns that arithmetic would lose.
    original["model.norm.weight"][:3] = torch.tensor([float("nan"), -0.0, 1e-40]).to(dtype)
    given = {new_layout(k): v for k, v in original.items()} if layout == "new" else original
    write(
        tmp_path / "in",
        given,
        json.loads((pairs(name).folder / "config.json").read_text()),
        shards=3,
    )
    model = vo3.models.load(tmp_path / "in")
    assert model.dtype == jnp.dtype(str(dtype).removeprefix("torch."))
    model.save_hf(tmp_path / "out", max_shard_bytes=100_000)
    files = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert same(weights(tmp_path / "out"), original)


def test_shards_hold_at_most_their_size_and_the_index_is_right(pairs, tmp_path):
    pairs("plain").ours.save_hf(tmp_path, max_shard_bytes=60_000)
    index = json.loads((tmp_path / hf_io.INDEX).read_text())
    total = 0
    for file in sorted(tmp_path.glob("*.safetensors")):
        tensors = safetensors.torch.load_file(file)
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        assert size <= 60_000 or len(tensors) == 1
        assert all(index["weight_map"][name] == file.name for name in tensors)
        total += size
    assert index["metadata"]["total_size"] == total
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("shard", [5_000_000_000, 90_000])
def test_transformers_loads_what_we_write(pairs, tmp_path, name, shard):
    import transformers

    pair = pairs(name)
    pair.ours.save_hf(tmp_path, max_shard_bytes=shard)
    read, report = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert read.config.text_config.rope_parameters["mrope_section"] == list(
        CONFIGS[name].text.mrope_section
    )
    theirs, ours = pair.theirs.state_dict(), read.state_dict()
    assert set(theirs) == set(ours)
    assert all(torch.equal(theirs[k], ours[k]) for k in theirs)
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        assert torch.equal(read.eval()(input_ids=ids).logits, pair.theirs(input_ids=ids).logits)


def test_companions_travel(tiny_hf_checkpoint, tmp_path):
    (tiny_hf_checkpoint / "preprocessor_config.json").write_text('{"image_processor_type": "X"}')
    model = vo3.models.load(tiny_hf_checkpoint)
    model.save_hf(tmp_path)
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "preprocessor_config.json",
    ):
        assert (tmp_path / name).read_bytes() == (tiny_hf_checkpoint / name).read_bytes()
    again = vo3.models.load(tmp_path)
    assert again.tokenizer.encode("look again") == model.tokenizer.encode("look again")
    assert again.source == tmp_path


def test_saving_does_not_overwrite_unasked(pairs, tmp_path):
    pairs("plain").ours.save_hf(tmp_path, max_shard_bytes=60_000)
    with pytest.raises(CheckpointError, match=r"already holds .*overwrite=True"):
        pairs("plain").ours.save_hf(tmp_path)
    pairs("plain").ours.save_hf(tmp_path, overwrite=True)
    assert [p.name for p in tmp_path.glob("*safetensors*")] == [hf_io.SINGLE]


def test_dtypes_are_chosen_apart(pairs):
    half = vo3.models.load(pairs("plain").folder, dtype=jnp.bfloat16, param_dtype=jnp.float32)
    assert half.dtype == jnp.bfloat16 and half.embed.table[...].dtype == jnp.float32
    both = vo3.models.load(pairs("plain").folder, dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(nnx.state(both))} == {jnp.dtype(jnp.bfloat16)}


def test_a_mesh_spreads_the_weights(pairs):
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("fsdp", "model"))
    alone, spread = pairs("plain").ours, vo3.models.load(pairs("plain").folder, mesh=mesh)
    for (path, a), (_, b) in zip(
        nnx.to_flat_state(nnx.state(alone)), nnx.to_flat_state(nnx.state(spread)), strict=True
    ):
        assert np.array_equal(a.get_value(), b.get_value()), path
        assert len(b.get_value().sharding.device_set) == 8
    q = spread.decoder.layers.q.kernel[...]
    assert q.sharding.spec == jax.sharding.PartitionSpec(None, ("fsdp",), ("model",))
    assert q.addressable_shards[0].data.nbytes * 8 == q.nbytes
    ids = np.arange(1, 20)
    ours = vo3.models.run(spread, ids)
    assert np.abs(np.asarray(ours) - np.asarray(vo3.models.run(alone, ids))).max() <= 1e-4


def test_an_axis_that_does_not_divide_stays_whole(pairs, caplog):
    mesh = Mesh(
        np.array(jax.devices()), ("model",)
    )  # 8 ways; 2 kv heads of 16 give 32, 3 vision heads 48
    model = vo3.models.load(pairs("uneven").folder, mesh=mesh)
    assert np.array_equal(
        model.vision.merger.fc2.kernel[...], pairs("uneven").ours.vision.merger.fc2.kernel[...]
    )
    assert "is not split 8 ways" in caplog.text or model.embed.table[...].shape[0] % 8 == 0


def test_a_loaded_model_survives_donation(pairs):
    """On CPU a parameter may live in the loader's own memory, on eight devices at once."""
    mesh = Mesh(np.array(jax.devices()), ("data",))
    model = vo3.models.load(pairs("plain").folder, mesh=mesh)
    _, params = nnx.split(model)
    before = [np.array(x) for x in jax.tree.leaves(params)]
    step = jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0)
    after = jax.tree.leaves(step(params))
    for old, new in zip(before, after, strict=True):
        for shard in new.addressable_shards:
            assert np.array_equal(shard.data, old + 1)


# ---------------------------------------------------------------- broken directories


@pytest.fixture
def broken(pairs, tmp_path) -> pathlib.Path:
    """A sharded checkpoint to break."""
    write(
        tmp_path,
        weights(pairs("plain").folder),
        json.loads((pairs("plain").folder / "config.json").read_text()),
        shards=3,
    )
    return tmp_path


def test_no_such_directory(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere does not exist.*'clueworld'"):
        vo3.models.load(tmp_path / "nowhere")


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"is no directory.*config\.json"):
        vo3.models.load(tmp_path / "x.safetensors")


def test_no_config(broken):
    (broken / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        vo3.models.load(broken)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is no JSON"), ("[]", "is no JSON object"), ('{"model_type": "llama"}', "llama")],
)
def test_a_wrong_config(broken, text, message):
    (broken / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"config\.json.*{message}"):
        vo3.models.load(broken)


def test_no_weights(broken):
    for file in broken.glob("model*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="has neither"):
        vo3.models.load(broken)


def test_a_missing_shard(broken):
    (broken / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"model-00002-of-00003\.safetensors does not exist.*download"
    ):
        vo3.models.load(broken)


@pytest.mark.parametrize("keep", [0, 5, 100, 20_000, -1])
def test_a_truncated_shard(broken, keep):
    file = broken / "model-00002-of-00003.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:keep])
    with pytest.raises(
        CheckpointError, match=r"model-00002-of-00003\.safetensors is .*truncated.*download"
    ):
        vo3.models.load(broken)


def test_a_shard_that_is_no_safetensors_file(broken):
    file = broken / "model-00001-of-00003.safetensors"
    file.write_bytes((3).to_bytes(8, "little") + b"{x}" + bytes(100))
    with pytest.raises(CheckpointError, match="unreadable header"):
        vo3.models.load(broken)


@pytest.mark.parametrize(
    "text", ["{", "{}", "[]", '{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}']
)
def test_a_broken_index(broken, text):
    (broken / hf_io.INDEX).write_text(text)
    with pytest.raises(CheckpointError, match="is no shard index"):
        vo3.models.load(broken)


def edit(folder: pathlib.Path, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    tensors = weights(folder)
    change(tensors, config)
    shutil.rmtree(folder)
    write(folder, tensors, config)


def test_missing_tensors_are_named(broken):
    def change(tensors, _):
        for i in range(3):
            del tensors[f"model.layers.{i}.self_attn.q_proj.bias"]

    edit(broken, change)
    with pytest.raises(
        CheckpointError, match=r"lacks 3 tensors: model\.layers\.0\.self_attn\.q_proj\.bias, "
    ):
        vo3.models.load(broken)


def test_a_missing_output_matrix_points_to_tying(broken):
    edit(broken, lambda tensors, _: tensors.pop("lm_head.weight"))
    with pytest.raises(CheckpointError, match="set tie_word_embeddings to true"):
        vo3.models.load(broken)


def test_extra_tensors_are_named(broken):
    edit(broken, lambda tensors, _: tensors.update({"model.layers.3.lora_A": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=r"no place for: model\.layers\.3\.lora_A.*adapters"):
        vo3.models.load(broken)


def test_misshaped_tensors_are_named(broken):
    edit(broken, lambda tensors, _: tensors.update({"visual.merger.mlp.0.bias": torch.zeros(7)}))
    with pytest.raises(
        CheckpointError, match=r"visual\.merger\.mlp\.0\.bias is \[7\], wanted \[192\]"
    ):
        vo3.models.load(broken)


def test_a_config_of_another_depth_is_noticed(broken):
    edit(
        broken,
        lambda _, config: config["text_config"].update(num_hidden_layers=2, layer_types=None),
    )
    with pytest.raises(CheckpointError, match=r"no place for: model\.layers\.2\."):
        vo3.models.load(broken)


def test_quantised_tensors_are_refused(broken):
    edit(
        broken,
        lambda tensors, _: tensors.update({"model.norm.weight": torch.zeros(64, dtype=torch.int8)}),
    )
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has dtype I8.*unquantised"):
        vo3.models.load(broken)


def test_a_stale_shard_is_noticed(broken):
    index = json.loads((broken / hf_io.INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = "old.safetensors"
    (broken / hf_io.INDEX).write_text(json.dumps(index))
    safetensors.torch.save_file({"model.norm.weight": torch.zeros(64)}, broken / "old.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight stands in"):
        vo3.models.load(broken)


def test_inverse_frequencies_of_old_files_are_passed_over(broken):
    edit(
        broken,
        lambda tensors, _: tensors.update({"visual.rotary_pos_emb.inv_freq": torch.zeros(8)}),
    )
    vo3.models.load(broken)


def test_a_tied_file_may_carry_an_equal_output_matrix(pairs, tmp_path):
    tensors = weights(pairs("tied").folder)
    config = json.loads((pairs("tied").folder / "config.json").read_text())
    head = tensors["model.embed_tokens.weight"].clone()
    write(tmp_path / "equal", {**tensors, "lm_head.weight": head}, config)
    assert vo3.models.load(tmp_path / "equal").unembedding is None
    write(tmp_path / "other", {**tensors, "lm_head.weight": head + 1}, config)
    with pytest.raises(CheckpointError, match="set tie_word_embeddings to false"):
        vo3.models.load(tmp_path / "other")


def test_the_table_covers_both_sides_exactly():
    """Every parameter of ours and every key of transformers stands in the table once."""
    for name, config in CONFIGS.items():
        _, state = hf_io.abstract(config)
        entries = hf_table.table(config)
        assert sorted(e.ours for e in entries) == sorted(state), name
        theirs = {k for k, _ in hf_model(config).named_parameters()}
        assert {hf_io.hub_key(k) for k in theirs} == set(hf_io.expected(config)), name


# ---------------------------------------------------------------- memory

MEASURE = """
import resource, sys
import numpy as np
import jax
from vo3.models import hf_io, load

def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024

def forget():
    open("/proc/self/clear_refs", "w").write("5")  # forget the peak
    return peak()

load(sys.argv[1]).save_hf(sys.argv[3] + "/small")  # code, caches and thread pools count before
jax.clear_caches()
before = forget()
model = load(sys.argv[2])
jax.block_until_ready(jax.tree.leaves(model))
print(peak() - before)
before = forget()
model.save_hf(sys.argv[3] + "/large", max_shard_bytes=int(sys.argv[4]))
print(peak() - before)
"""


def test_peak_memory_is_the_parameters_and_one_shard(pairs, tmp_path):
    config = Qwen2_5_VLConfig.tiny(
        4096,
        text={"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "mrope_section": (16, 24, 24)},
        vision={"out_hidden_size": 512},
    )  # fmt: skip
    model = Qwen2_5_VL(config, rngs=nnx.Rngs(0))
    total = sum(x.nbytes for x in jax.tree.leaves(nnx.state(model)))
    shard = 20_000_000
    stored = tmp_path / "stored"
    model.save_hf(stored, max_shard_bytes=shard)
    assert total > 8 * shard
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(pairs("plain").folder), str(stored), str(tmp_path), str(shard)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    reading, writing = map(int, done.stdout.split())
    assert total * 0.9 < reading <= total + shard, (reading, total)
    # A tensor and its transpose, and some 30 MB for compiling the slices of stacked parameters.
    assert writing <= shard + 50_000_000 < total / 2, writing
    assert (tmp_path / "large" / "model.safetensors.index.json").exists()
