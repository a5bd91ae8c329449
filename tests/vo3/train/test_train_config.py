"""The training configuration: overrides, derived values, contradictions; nothing here touches a device."""

import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import pytest

from vo3.train import config as c
from vo3.train.config import ConfigError


def config(**changes):
    return c.override(c.load("configs/sft_stage2.py"), **{"data.rows": "rows.jsonl", **changes})


def test_an_unknown_override_names_the_nearest_key():
    with pytest.raises(
        ConfigError, match=r"config\.optim\.rat; the nearest is config\.optim\.rate"
    ):
        config(**{"optim.rat": 1e-4})
    # Right last part, wrong section.
    with pytest.raises(ConfigError, match=r"nearest is config\.tdam\.mask_ratio"):
        config(mask_ratio=0.2)


@hypothesis.given(st.sampled_from(sorted(c.flatten(c.defaults()))), st.data())
def test_a_key_with_one_letter_dropped_is_found_again(key, data):
    last = key.rfind(".") + 1
    hypothesis.assume(len(key) - last >= 4)
    at = data.draw(st.integers(last, len(key) - 1))
    assert c.nearest(key[:at] + key[at + 1 :], c.flatten(c.defaults())) == key


def test_an_override_of_another_type_is_refused():
    with pytest.raises(ConfigError, match=r"data\.programs"):
        config(**{"data.programs": "many"})


def test_a_section_that_does_not_exist_cannot_be_set():
    with pytest.raises(AttributeError):
        config().data.rowz = "x"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tdam.policy": "off"}, "tdam.policy='off' with tdam.mask_ratio=0.1"),
        ({"tdam.mask_ratio": 0.0}, "a policy needs a ratio above 0"),
        ({"tdam.policy": "released_"}, "one of off, released, predictor, turn"),
        ({"data.rows": ""}, "needs data.rows"),
        ({"data.source": "clueworld"}, "encoded for model='clueworld'"),
        ({"data.feature_cache": "/tmp/x", "frozen": ()}, "leaves it free"),
        ({"param_dtype": "bfloat16"}, "updates of rate 1e-5 vanish.*; keep float32"),
        ({"param_dtype": "bfloat16", "lora.rank": 8}, "with LoRA too; keep float32"),
        ({"optim.warmup": 50.0, "steps": 50}, "does not fit a run of 50"),
        ({"optim.warmup": -1.0}, "optim.warmup=-1.0 is below 0"),
        ({"data.reject_limit": 1.5}, "lies outside of"),
        ({"optim.clip": 0.0}, "is not above 0"),
        ({"frozen": ("vision(",)}, "is no regular expression"),
        ({"sharding.rules": (("q", "fsdp,model"),)}, r"names \['model'\]"),
        ({"sharding.rules": (("q", "fsdp,fsdp"),)}, "for two dimensions"),
        ({"sharding.rules": ("q", "fsdp,tensor")}, r"'q' is not like .*one alone is \(\("),
        ({"optim.scales": (("vision(", 0.1),)}, "optim.scales: .* is no regular expression"),
        ({"optim.scales": ("vision", 0.1)}, r"'vision' is not like .*one alone is \(\("),
        ({"optim.scales": (("vision", 0.0),)}, "has the factor 0.0; .* named by frozen"),
        ({"mesh.context": 3}, "cannot be split over mesh.context=3"),
        ({"lora.rank": 8, "optim.name": "muon"}, "use 'adamw'"),
        ({"init_vision": "a.npz", "init_from": "run"}, "drop one"),
        ({"data.source": "tfds", "data.format": "json"}, "data.source='tfds' has none"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        c.resolve(config(**changes))


def test_all_faults_are_told_at_once():
    with pytest.raises(ConfigError) as error:
        c.resolve(config(**{"on_nan": "ignore", "loss.chunk": 0, "data.rows": ""}))
    assert len(str(error.value).splitlines()) == 3


def test_a_config_without_data_resolves_only_where_none_is_read():
    assert c.resolve(c.load("configs/sft_stage1.py"), needs_data=False)
    with pytest.raises(ConfigError, match=r"data\.rows"):
        c.resolve(c.load("configs/sft_stage1.py"))


def test_missing_and_added_keys_are_named():
    broken = config().unlock()
    del broken.optim["rate"]
    with pytest.raises(ConfigError, match=r"config\.optim\.rate is missing"):
        c.validate(broken)
    broken.optim.rate = 1e-5
    broken.optim.rating = 1.0
    with pytest.raises(ConfigError, match=r"unknown key config\.optim\.rating"):
        c.validate(broken)


@pytest.mark.parametrize(
    ("mesh", "devices", "sizes"),
    [
        ({"fsdp": -1}, 16, (1, 1, 16, 1, 1)),
        ({"fsdp": -1, "tensor": 4}, 16, (1, 1, 4, 4, 1)),
        ({"dcn_data": 2, "data": -1, "fsdp": 4}, 16, (2, 2, 4, 1, 1)),
        ({"fsdp": 8, "context": 2}, 16, (1, 1, 8, 1, 2)),
    ],
)
def test_the_mesh_is_filled_up(mesh, devices, sizes):
    changes = {f"mesh.{axis}": size for axis, size in mesh.items()}
    assert tuple(c.mesh_sizes(config(**changes), devices).values()) == sizes


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ({"fsdp": -1, "tensor": 3}, "does not fit 16 devices"),
        ({"fsdp": 4}, "does not fit 16 devices"),
        ({"data": -1}, "at most -1"),
        ({"tensor": 0}, "sizes are 1 or more"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(mesh, message):
    changes = {f"mesh.{axis}": size for axis, size in mesh.items()}
    with pytest.raises(ConfigError, match=message):
        c.mesh_sizes(config(**changes), 16)


def test_resolving_fills_in_what_follows():
    done = c.resolve(config(), devices=16, steps_per_epoch=676)
    # 173,000 rows / 256 = 675.8; a tenth of the steps, rounded up.
    assert (done.steps, done.optim.warmup, done.mesh.fsdp) == (676, 68.0, 16)
    assert c.row_ways(done) == 16
    assert c.row_ways(c.resolve(config(**{"mesh.tensor": 4}), devices=16)) == 4
    # What was resolved resolves to itself.
    assert c.to_text(c.resolve(done, devices=16, steps_per_epoch=1)) == c.to_text(done)


def test_a_run_of_one_step_has_no_share_of_warm_up():
    assert c.resolve(config(**{"steps": 1, "optim.warmup": 0.1}), devices=1).optim.warmup == 0
    with pytest.raises(ConfigError, match="does not fit a run of 1; lower"):
        c.resolve(config(**{"steps": 1, "optim.warmup": 1.0}), devices=1)


@pytest.mark.parametrize(
    ("warmup", "steps", "expected"),
    [(0.1, 10, 1), (0.1, 11, 2), (0.0, 9, 0), (7.0, 9, 7), (0.3, 10, 3)],
)
def test_warmup_is_a_share_below_one_and_steps_above(warmup, steps, expected):
    assert c.warmup_steps(config(**{"optim.warmup": warmup}), steps) == expected


def test_resolving_leaves_the_original_alone():
    original = config()
    before = c.to_text(original)
    c.resolve(original, devices=8, steps_per_epoch=10)
    assert c.to_text(original) == before


def test_loading_says_what_is_wrong(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        c.load(str(tmp_path / "none.py"))
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match="has no get_config"):
        c.load(str(tmp_path / "empty.py"))
    with pytest.raises(ConfigError, match="no Python file"):
        c.load(str(tmp_path / "config.yaml"))


def test_the_command_line_names_the_nearest_key_and_ends_with_2(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        "from absl import app\n"
        "from ml_collections import config_flags\n"
        "from vo3.train import config\n"
        "C = config_flags.DEFINE_config_file('config', None, '', lock_config=True)\n"
        "app.run(lambda _: print(C.value.optim.rate), flags_parser=config.parse_flags)\n"
    )

    def run(*arguments):
        command = [sys.executable, str(script), "--config=configs/debug.py", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    wrong = run("--config.optim.rat=0.5")
    assert wrong.returncode == 2
    assert wrong.stderr.strip().splitlines()[-1].endswith("the nearest is config.optim.rate")
    assert "Traceback" not in wrong.stderr
    right = run("--config.optim.rate=0.5")
    assert right.stdout.strip() == "0.5", right.stderr[-500:]
