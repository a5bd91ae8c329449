"""What a run tells: work and FLOPs by hand, the line, TensorBoard's file, samples."""

import json
import sys
import time
from unittest import mock

import jax
import numpy as np
import pytest
from etils import epath
from tiny_rows import MODEL, config, document, rows

from vo3.models.qwen2_5_vl import Qwen2_5_VLConfig
from vo3.train import samples
from vo3.train.feed import Ahead, ListFeed, local_rows
from vo3.train.metrics import Log, Meter, Profile, Row
from vo3.train.sharding import make_mesh, param_sharding
from vo3.train.work import Work, model_flops, peak_flops, work_of

PACKED = rows([[document(0), document(1)], []], length=64, patches=80)


def test_work_of_packed_rows_by_hand():
    segments = np.array([[0, 0, 0, 1, 1, -1], [0, -1, -1, -1, -1, -1]])
    work = work_of(segments, np.array([8, 0]), trajectories=3, failed=1)
    assert work == Work(tokens=6, slots=12, patches=8, pairs=6 + 3 + 1, trajectories=3, failed=1)
    assert work + work == Work(12, 24, 16, 20, 6, 2)


def test_flops_are_six_per_parameter_and_token():
    from flax import nnx

    from vo3.models.qwen2_5_vl import Qwen2_5_VL

    params = nnx.state(nnx.eval_shape(lambda: Qwen2_5_VL(MODEL, rngs=nnx.Rngs(0))))
    matrices = lambda tree: sum(
        x.size for path, x in jax.tree_util.tree_leaves_with_path(tree) if "kernel" in jax.tree_util.keystr(path)
    )  # fmt: skip
    text = matrices(params["decoder"]) + matrices(params["unembedding"])
    work = Work(tokens=100)
    assert model_flops(work, MODEL, vision_trained=False) == pytest.approx(600 * text)
    # The tower: a quarter of its merger's products per patch; forward only while frozen, three times as much otherwise.
    merger = matrices(params["vision"]["merger"]) / MODEL.vision.merge_unit
    blocks = matrices(params["vision"]) - matrices(params["vision"]["merger"])
    patches = Work(patches=10)
    frozen, free = (model_flops(patches, MODEL, vision_trained=t) for t in (False, True))
    assert frozen == pytest.approx(20 * (blocks + 3 * merger))
    assert free == pytest.approx(60 * (blocks + merger))


def test_peaks_are_known_by_device_kind():
    assert peak_flops("TPU v5p") == 459e12 and peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("cpu") is None


def test_the_line_of_progress():
    row = Row(3, {
        "loss": 1.23456, "tokens_per_second": 12345.6, "padding": 0.0712, "mfu": 0.4, "data_wait": 0.031, "failed": 2,
        "eta": 3725,
    })  # fmt: skip
    assert row.line(10) == (
        "step 3/10  loss 1.2346  12,346 tokens/s  padding 7.1 %  MFU 40.0 %  data wait 3.1 %  left out 2  1:02:05 left"
    )


def test_the_meter_averages_over_the_steps_since_the_last_line():
    mesh = make_mesh(config(), jax.devices()[:1])
    meter = Meter(MODEL, total=10, vision_trained=True, mesh=mesh)
    meter.add(Work(tokens=60, slots=100, failed=1), 0.01)
    meter.add(Work(tokens=40, slots=100), 0.02)
    time.sleep(0.05)
    row = meter.row(2, {"loss": 1.0})
    v = row.values
    assert v["padding"] == 0.5 and v["failed"] == 1
    assert v["data_wait"] == pytest.approx(0.03 / v["seconds"])
    assert v["seconds_per_step"] == pytest.approx(v["seconds"] / 2)
    assert v["eta"] == pytest.approx(8 * v["seconds_per_step"])
    assert "mfu" not in v  # the peak of a CPU is not known
    assert meter.row(3, {"loss": 1.0}).values["tokens_per_second"] == 0


def test_tensorboard_files_hold_scalars_text_and_pictures(tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra `train`")
    from tensorboardX.event_file_writer import EventFileWriter  # noqa: F401
    from tensorboardX.proto.event_pb2 import Event

    chosen = config(**{"log.tensorboard": True})
    with Log(tmp_path, chosen) as log:
        values = {"loss": 2.5, "padding": 0.1, "data_wait": 0.0, "eta": 1.0}
        log.write(Row(1, values))
        log.sample(1, "text of it", np.full((4, 6, 3), 200, np.uint8))
    events = []
    for file in (tmp_path / "tensorboard").iterdir():
        data, at = file.read_bytes(), 0
        while at < len(data):  # TFRecord: length, its checksum, the record, its checksum
            size = int.from_bytes(data[at : at + 8], "little")
            events.append(Event.FromString(data[at + 12 : at + 12 + size]))
            at += 16 + size
    tags = {v.tag: v for e in events if e.HasField("summary") for v in e.summary.value}
    assert tags["train/loss"].simple_value == 2.5
    assert any("sample" in t for t in tags) and any(v.HasField("image") for v in tags.values())
    assert json.loads((tmp_path / "log.jsonl").read_text())["loss"] == 2.5
    assert (tmp_path / "samples" / "step-000001.txt").read_text() == "text of it"
    assert (tmp_path / "samples" / "step-000001.png").read_bytes().startswith(b"\x89PNG")


def test_what_a_run_shows_may_lie_in_a_bucket(bucket):
    pytest.importorskip("tensorboardX", reason="the extra `train`")
    chosen = config(**{"log.tensorboard": True, "log.profile_start": 1, "log.profile_steps": 1})
    values = {"loss": 2.5, "padding": 0.1, "data_wait": 0.0, "eta": 1.0}
    workdir = epath.Path("gs://bucket/run")
    for start in (0, 2):  # the second time as a run that goes on after its second step
        profile = Profile(workdir, chosen)
        with Log(workdir, chosen, start=start) as log:
            for step in (1, 2, 3):
                if step > start:
                    log.write(Row(step, values))
            log.sample(1, "text of it", np.full((4, 6, 3), 200, np.uint8))
        if not start:
            profile.before(1)
            jax.block_until_ready(jax.numpy.ones(3) + 1)
            profile.after(1)
    lines = (workdir / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    names = set(bucket.find("bucket/run"))
    for part in (
        "/samples/step-000001.txt",
        "/samples/step-000001.png",
        "/tensorboard/events",
        "/profile/",
    ):
        assert any(part in name for name in names), (part, names)
    boards = [bucket.cat(name) for name in names if "/tensorboard/" in name]
    assert any(b"train/loss" in data for data in boards)


def test_killed_while_repeated_steps_are_dropped_the_log_is_the_one_before(tmp_path, monkeypatch):
    def killed(self, text, **_):
        with self.open("w") as file:
            file.write(text[: len(text) // 2])
        raise KeyboardInterrupt

    log, chosen = epath.Path(tmp_path) / "log.jsonl", config()
    log.write_text("".join(f'{{"step": {step}}}\n' for step in (1, 2, 3)))
    before = log.read_text()
    with monkeypatch.context() as patch:
        patch.setattr(type(log), "write_text", killed)
        Log(tmp_path, chosen, start=3)  # nothing is to be dropped: nothing is written
        with pytest.raises(KeyboardInterrupt):
            Log(tmp_path, chosen, start=2)
    assert log.read_text() == before
    with log.open("a") as file:
        file.write('{"step": 4')  # the line that was being written
    Log(tmp_path, chosen, start=2)
    assert log.read_text() == before.removesuffix('{"step": 3}\n')


def test_wandb_is_imported_when_it_is_asked_for(tmp_path, monkeypatch):
    chosen = config(**{"log.tensorboard": False, "log.wandb": "mine"})
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r"pip install wandb, or --config.log.wandb=''"):
        Log(tmp_path, chosen)
    Log(tmp_path, config(**{"log.tensorboard": False}))  # nobody asked: nothing is imported

    run, started = mock.Mock(), mock.Mock()
    started.init.return_value = run
    monkeypatch.setitem(sys.modules, "wandb", started)
    values = {"loss": 2.5, "padding": 0.1, "data_wait": 0.0, "eta": 1.0}
    (tmp_path / "a" / "stage1").mkdir(parents=True)
    with Log(tmp_path / "a" / "stage1", chosen) as log:
        log.write(Row(4, values))
    given = started.init.call_args.kwargs
    assert (given["project"], given["name"], given["resume"]) == ("mine", "stage1", "allow")
    # A run that goes on, goes on in the same curve, and that of another has another.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b" / "stage1").mkdir(parents=True)
    ids = []
    for workdir in ("a/stage1", "b/stage1"):
        Log(workdir, chosen)
        ids.append(started.init.call_args.kwargs["id"])
    assert ids[0] == given["id"] != ids[1]
    run.log.assert_called_once_with(values, step=4)
    run.finish.assert_called_once_with()


class Words:
    def decode(self, ids, skip_special_tokens):
        return " ".join(map(str, ids))


def test_the_text_of_a_sample_marks_what_is_trained():
    text = samples.text_of(PACKED, Words())
    first, second = text.split("-" * 40)
    doc = document(0)
    trained = " ".join(map(str, doc.ids[doc.weight > 0]))
    assert f"«{trained}»" in first
    assert "[4 video tokens]" in first and "[4 video tokens]" in second
    assert "3 3 3" not in text  # padding is left out
    assert samples.text_of(PACKED, Words(), row=1).strip() == ""


def test_the_picture_of_a_sample_puts_patches_where_they_were():
    from vo3.data.items import patchify_levels

    frames = np.random.default_rng(0).integers(0, 256, (2, 56, 84, 3), dtype=np.uint8)
    import dataclasses

    from vo3.models.qwen2_5_vl import stack_vision_inputs, vision_inputs

    batch = dataclasses.replace(
        PACKED,
        patches=patchify_levels(frames)[None],
        vision=stack_vision_inputs([vision_inputs([(1, 4, 6)], MODEL.vision)]),
    )
    np.testing.assert_array_equal(samples.picture_of(batch)[:, :84], frames[0])
    assert samples.picture_of(dataclasses.replace(batch, patches=None)) is None


def test_work_ahead_keeps_the_order_and_hands_over_errors():
    with Ahead(range(5), lambda x: x * x) as ahead:
        assert list(ahead) == [0, 1, 4, 9, 16]

    def broken():
        yield 1
        raise OSError("the shard is gone")

    with Ahead(broken(), lambda x: x) as ahead:
        items = iter(ahead)
        assert next(items) == 1
        with pytest.raises(OSError, match="the shard is gone"):
            next(items)


def test_work_ahead_ends_with_its_iterator_when_left_early():
    closed = []

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.append(True)

    with Ahead(endless(), lambda x: x) as ahead:
        next(iter(ahead))
    assert closed == [True] and not ahead._thread.is_alive()


def test_a_list_is_dealt_out_to_groups_of_processes():
    parts = [
        next(ListFeed([[PACKED]], group=g, groups=2).micro_batches(0, 1)).batch.ids for g in (0, 1)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), PACKED.ids)
    with pytest.raises(ValueError, match="do not divide"):
        local_rows(PACKED, 0, 3)


def test_rules_place_parameters():
    mesh = make_mesh(config(**{"mesh.fsdp": 4, "mesh.tensor": 2}))
    where = param_sharding(mesh, config().sharding.rules)
    plain = lambda axes: axes[0] if isinstance(axes, tuple) and len(axes) == 1 else axes
    spec = lambda path, *shape: tuple(map(plain, where(path, shape).spec))
    assert spec("decoder.layers.q.kernel", 2, 64, 64) == (None, "fsdp", "tensor")
    assert spec("decoder.layers.o.kernel", 2, 64, 64) == (None, "tensor", "fsdp")
    assert spec("decoder.layers.mlp.down.kernel", 2, 128, 64) == (None, "tensor", "fsdp")
    assert spec("embed.table", 256, 64) == ("tensor", "fsdp")
    assert spec("decoder.norm.scale", 64) == (None,)
    assert spec("something.else", 64, 64) == (None, None)
    # 6 is no multiple of 4: that dimension stays whole, the other is split.
    assert spec("decoder.layers.q.kernel", 2, 6, 64) == (None, None, "tensor")
    joined = param_sharding(mesh, [("x", "fsdp+tensor,-")])
    assert tuple(joined("x", (3, 16, 5)).spec) == (None, ("fsdp", "tensor"), None)


def test_every_matrix_of_the_model_is_split_by_the_default_rules():
    from vo3.models import hf_io

    _, shapes = hf_io.abstract(Qwen2_5_VLConfig.tiny())
    mesh = make_mesh(config(**{"mesh.fsdp": 4, "mesh.tensor": 2}))
    where = param_sharding(mesh, config().sharding.rules)
    whole = [n for n, s in shapes.items() if not any(where(n, s.shape).spec)]
    assert all(n.endswith((".scale", ".bias")) for n in whole)
