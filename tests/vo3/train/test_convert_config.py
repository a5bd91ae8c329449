"""Settings of LLaMA-Factory and verl as ours: the published recipes end up at the published configs; unknown keys are named."""

import pytest
import yaml
from etils import epath

from tests.gcs_fake import fake_gcs
from vo3 import cli
from vo3.train import config as c
from vo3.train import convert_config as convert
from vo3.train import rl_config
from vo3.train.config import ConfigError
from vo3.train.foreign_defaults import DEFAULTS, left_out
from vo3.train.foreign_keys import LLAMA_FACTORY, VERL

# Keys and values of the two SFT files that Video-o3 publishes (arXiv 2601.23224); the paths are ours.
STAGE_2 = {
    "model_name_or_path": "Qwen2.5-VL-7B-Instruct",
    "image_max_pixels": 262144,
    "video_max_pixels": 602112,
    "video_min_pixels": 100352,
    "video_maxlen": 768,
    "min_token_number": 1024,
    "max_token_number": 16384,
    "trust_remote_code": True,
    "mask_answer_from_first_video": True,
    "mask_grounding_from_other_videos": True,
    "mask_ratio": 0.1,
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "full",
    "freeze_vision_tower": True,
    "freeze_multi_modal_projector": False,
    "freeze_language_model": False,
    "deepspeed": "ds_z1_config.json",
    "dataset": "rows.json",
    "template": "qwen2_vl",
    "cutoff_len": 40000,
    "overwrite_cache": False,
    "preprocessing_batch_size": 128,
    "preprocessing_num_workers": 4,
    "dataloader_num_workers": 2,
    "accelerator_config": {"dispatch_batches": False},
    "tokenized_path": "cache",
    "output_dir": "out",
    "logging_steps": 1,
    "save_steps": 50,
    "save_total_limit": 1,
    "plot_loss": True,
    "overwrite_output_dir": False,
    "save_only_model": False,
    "report_to": "none",
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "learning_rate": 1.0e-5,
    "num_train_epochs": 1.0,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "bf16": True,
    "ddp_timeout": 180000000,
    "resume_from_checkpoint": None,
}
TDAM = ("mask_answer_from_first_video", "mask_grounding_from_other_videos", "mask_ratio")
STAGE_1 = {k: v for k, v in STAGE_2.items() if k not in TDAM} | {"gradient_accumulation_steps": 4}


def configured(conversion):
    return c.flatten(c.override(c.defaults(), **conversion.changes))


@pytest.mark.parametrize(("published", "stage"), [(STAGE_1, 1), (STAGE_2, 2)])
def test_the_published_files_are_the_published_configs(published, stage):
    ours = c.flatten(c.load(f"configs/sft_stage{stage}.py"))
    got = configured(convert.convert(published, gpus=32))
    # What the file says of its own machine and place.
    place = {
        "data.rows": "rows.json",
        "data.workers": 2,
        "checkpoint.keep": 1,
        "log.tensorboard": False,
    }
    assert got == {**ours, **place}


def test_every_key_is_told_once_with_what_it_became():
    conversion = convert.convert(STAGE_2, gpus=32)
    assert {line.theirs for line in conversion.lines} == set(convert._flatten(STAGE_2)) | set(
        left_out("LLaMA-Factory", STAGE_2)
    )
    assert len({line.theirs for line in conversion.lines}) == len(conversion.lines)
    told = {line.theirs: line for line in conversion.lines}
    assert told["learning_rate"].ours == "optim.rate=1e-05"
    assert told["mask_ratio"].ours == "tdam.policy='released', tdam.mask_ratio=0.1"
    assert told["gradient_accumulation_steps"].ours == "data.trajectories_per_step=256"
    assert all(line.ours or line.why for line in conversion.lines)
    assert conversion.workdir == "out"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"learning_rat": 1e-4},
            "unknown key learning_rat.*nearest that is known is learning_rate",
        ),
        (
            {"accelerator_config": {"split_batches": True}},
            r"unknown key accelerator_config\.split_batches",
        ),
        ({"stage": "dpo"}, "only 'sft' can be converted"),
        ({"lr_scheduler_type": "polynomial"}, "lr_scheduler_type"),
        ({"video_maxlen": 64}, "only 768"),
        ({"fp16": True}, "dtype is bfloat16 or float32"),
        ({"num_train_epochs": 1.5}, "whole numbers"),
        ({"mask_answer_from_first_video": False}, "both or neither"),
        (
            {"freeze_multi_modal_projector": True, "freeze_language_model": True},
            "everything is frozen",
        ),
        ({"finetuning_type": "lora", "lora_target": "q_proj,qkv"}, "lora_target: qkv"),
        ({"report_to": "swanlab"}, "swanlab"),
    ],
)
def test_what_cannot_be_converted_is_named(change, message):
    with pytest.raises(ConfigError, match=message):
        convert.convert({**STAGE_2, **change}, gpus=32)


def test_all_faults_are_told_at_once():
    with pytest.raises(ConfigError) as error:
        convert.convert({**STAGE_2, "a_key": 1, "stage": "dpo"})
    assert len(str(error.value).splitlines()) == 3
    assert "give --gpus N" in str(error.value)


def test_lora_and_its_targets():
    lora = {"finetuning_type": "lora", "lora_rank": 16, "lora_target": "q_proj, v_proj"}
    got = configured(convert.convert({**STAGE_1, **lora}, gpus=32))
    assert (got["lora.rank"], got["lora.alpha"]) == (16, 32.0)
    assert got["lora.targets"] == r"^decoder\..*\.(q|v)\.kernel$"


def test_their_defaults_freeze_tower_and_projector():
    plain = {k: v for k, v in STAGE_1.items() if not k.startswith("freeze_")}
    got = configured(convert.convert(plain, gpus=32))
    assert got["frozen"] == (r"^vision\.(?!merger\.)", r"^vision\.merger\.")


def test_what_a_file_leaves_out_is_their_default_and_told():
    silent = ("learning_rate", "num_train_epochs", "lr_scheduler_type", "warmup_ratio")
    short = {k: v for k, v in STAGE_1.items() if k not in silent}
    conversion = convert.convert(short, gpus=32)
    got = configured(conversion)
    assert (got["optim.rate"], got["epochs"]) == (5e-5, 3)
    assert (got["optim.schedule"], got["optim.warmup"]) == ("linear", 0.0)
    told = convert.report(conversion)
    for name in silent:
        assert any(x.startswith(name) and "LLaMA-Factory's default" in x for x in told.splitlines())
    assert told.count("LLaMA-Factory's default") == len(left_out("LLaMA-Factory", short))


@pytest.mark.parametrize(
    ("given", "warmup"),
    [
        ({"warmup_steps": 0, "warmup_ratio": 0.03}, 0.03),
        ({"warmup_ratio": 0.03, "warmup_steps": 0}, 0.03),
        ({"warmup_steps": 20, "warmup_ratio": 0.03}, 20.0),
        ({"warmup_steps": 20}, 20.0),
        ({"warmup_steps": 0}, 0.0),
    ],
)
def test_steps_of_warm_up_go_before_a_ratio_unless_there_are_none(given, warmup):
    plain = {k: v for k, v in STAGE_1.items() if k != "warmup_ratio"}
    assert configured(convert.convert(plain | given, gpus=32))["optim.warmup"] == warmup


# The RL recipe that Video-o3 publishes (arXiv 2601.23224), as overrides of its nested defaults.
RL = {
    "algorithm": {"adv_estimator": "grpo", "kl_ctrl": {"kl_coef": 0.001}},
    "data": {
        "train_files": "rl.json", "train_batch_size": 32, "max_prompt_length": 18432, "max_response_length": 8192,
        "acc_reward_weight": 1.0, "format_reward_weight": 1.0, "decay_penalty_weight": 0.05, "tool_call": "crop",
        "extract_answer_tags": "strict", "video_key": "video",
    },
    "actor_rollout_ref": {
        "model": {"path": "out/stage2", "enable_gradient_checkpointing": True},
        "actor": {
            "optim": {"lr": 1e-6, "warmup_style": "constant", "lr_warmup_steps_ratio": 0.0},
            "clip_ratio_low": 0.2, "clip_ratio_high": 0.3, "use_kl_loss": False, "entropy_coeff": 0.0,
            "grad_clip": 1.0, "ignore_exceed": True, "ppo_mini_batch_size": 32, "ppo_micro_batch_size_per_gpu": 1,
        },
        "rollout": {
            "n": 16, "temperature": 1.0, "top_p": 1, "max_generation_round": 6, "max_total_response_length": 32768,
            "limit_mm_per_prompt": {"video": 12}, "stop": ["</grounding>"], "name": "vllm",
        },
    },
    "trainer": {
        "total_epochs": 1, "save_freq": 10, "logger": ["console", "wandb"], "project_name": "mine",
        "rejection_sample": True, "default_local_dir": "out/rl", "n_gpus_per_node": 8,
    },
    "critic": {"optim": {"lr": 1e-5}},
}  # fmt: skip


def written(conversion, folder):
    """The config of the file that a conversion writes."""
    out = folder / "mine.py"
    out.write_text(convert.source(conversion, origin="rl.yaml"))
    assert f"vo3.train.{'grpo' if conversion.kind == 'verl' else 'sft'} --config" in out.read_text()
    return c.load(str(out))


def test_the_rl_recipe_is_the_published_config(tmp_path):
    conversion = convert.convert(RL)
    assert (conversion.kind, conversion.workdir) == ("verl", "out/rl")
    place = {
        "model": "out/stage2", "data.rows": "rl.json", "log.wandb": "mine", "log.tensorboard": False,
    }  # fmt: skip
    made = written(conversion, tmp_path)
    assert c.flatten(made) == {**c.flatten(c.load("configs/rl.py")), **place}
    assert rl_config.resolve(made, devices=8, prompts=320).steps == 10


def test_what_differs_from_the_recipe_reaches_the_run(tmp_path):
    changes = {
        "data.train_batch_size": 64, "data.max_response_length": 4096, "data.decay_penalty_weight": 0.1,
        "actor_rollout_ref.rollout.n": 8, "actor_rollout_ref.rollout.max_generation_round": 4,
        "actor_rollout_ref.rollout.max_total_response_length": 20_000, "actor_rollout_ref.rollout.top_k": 50,
        "actor_rollout_ref.rollout.temperature": 0.9, "actor_rollout_ref.actor.clip_ratio_high": 0.28,
        "actor_rollout_ref.actor.use_kl_loss": True, "actor_rollout_ref.actor.kl_loss_coef": 0.01,
        "actor_rollout_ref.actor.policy_loss.loss_mode": "gspo", "algorithm.norm_adv_by_std_in_grpo": False,
    }  # fmt: skip
    flat = {**convert._flatten(RL), **changes}
    made = rl_config.resolve(written(convert.convert(flat), tmp_path), devices=8, prompts=640)
    rl = made.rl
    assert (rl.prompts_per_step, rl.mini_batches, rl.group) == (64, 2, 8)
    assert (rl.clip, rl.kl, rl.options) == ((0.2, 0.28), 0.01, ("gspo", "no_std"))
    assert (rl.rollout.temperature, rl.rollout.top_k) == (0.9, 50)
    policy = rl_config.rollout_policy(made)
    assert (policy.max_turns, policy.max_new_tokens, policy.max_length) == (4, 4096, 20_000)
    assert rl_config.reward_policy(made).decay == 0.1


def test_what_a_verl_file_leaves_out_is_verls_default(tmp_path):
    flat = convert._flatten(RL)
    actor, rollout = "actor_rollout_ref.actor.", "actor_rollout_ref.rollout."
    for key in ("clip_ratio_low", "clip_ratio_high", "optim.lr", "grad_clip"):
        del flat[actor + key]
    del flat["data.max_response_length"]
    made = written(convert.convert(flat), tmp_path)
    assert (made.rl.clip, made.rl.rollout.max_new_tokens) == ((0.2, 0.2), 512)
    assert (made.optim.rate, made.optim.weight_decay) == (1e-6, 0.01)
    for key, message in ((f"{rollout}n", "rl.group=1"), ("algorithm.adv_estimator", "'gae'.*left out: verl's default")):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            convert.convert({k: v for k, v in flat.items() if k != key})


# On, so that its kind is read.
KL = {"actor_rollout_ref.actor.use_kl_loss": True}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("actor_rollout_ref.actor.kl_loss_type", "mse", "low_var_kl"),
        ("actor_rollout_ref.actor.ppo_mini_batch_size", 5, "do not divide the 32"),
        ("actor_rollout_ref.actor.policy_loss.loss_mode", "clip_cov", "one of 'normal'"),
        ("actor_rollout_ref.actor.policy_loss.loss_agg_mode", "seq-mean-token-sum", "is expected"),
        ("actor_rollout_ref.rollout.n", 1, "rl.group=1 is below 2"),
        ("algorithm.use_kl_in_reward", True, "only False"),
        ("algorithm.adv_estimator", "gae", "only 'grpo'"),
        (
            "actor_rollout_ref.rollout.top_q",
            1,
            "unknown key actor_rollout_ref.rollout.top_q.*top_p",
        ),
        ("data.train_files", ["a.json", "b.json"], "2 files; join them"),
    ],
)
def test_other_algorithms_are_refused(key, value, message):
    with pytest.raises(ConfigError, match=message):
        convert.convert({**convert._flatten(RL), **KL, key: value})


def test_every_key_of_ours_that_the_tables_name_exists():
    for table, defaults in ((LLAMA_FACTORY, c.defaults()), (VERL, rl_config.defaults())):
        known = c.flatten(defaults)
        for rule in table.values():
            assert set(rule.ours) <= set(known), rule
            assert rule.ours or rule.why


def test_the_command_writes_a_config_that_runs(tmp_path, capsys):
    (tmp_path / "stage2.yaml").write_text(yaml.safe_dump(STAGE_2))
    out = tmp_path / "mine.py"
    assert (
        cli.main(
            ["convert-config", str(tmp_path / "stage2.yaml"), "--gpus", "32", "--out", str(out)]
        )
        == 0
    )
    captured = capsys.readouterr()
    assert "learning_rate: 1e-05  ->  optim.rate=1e-05" in captured.err
    made = c.resolve(c.load(str(out)), devices=8, steps_per_epoch=10)
    assert (made.data.trajectories_per_step, made.tdam.policy) == (256, "released")


def test_numbers_in_scientific_notation_are_numbers(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("stage: sft\nlearning_rate: 2e-5\n")
    assert convert.read(file, gpus=1).changes["optim.rate"] == 2e-5


@pytest.mark.parametrize("kind", DEFAULTS)
def test_every_default_is_of_a_known_key(kind):
    assert set(DEFAULTS[kind]) <= set({"LLaMA-Factory": LLAMA_FACTORY, "verl": VERL}[kind])


@pytest.mark.parametrize("text", ["", "- a\n", "a: [\n"])
def test_a_file_that_is_no_configuration_is_refused(tmp_path, text, capsys):
    (tmp_path / "bad.yaml").write_text(text)
    assert cli.main(["convert-config", str(tmp_path / "bad.yaml")]) == 2
    assert "bad.yaml" in capsys.readouterr().err
    assert cli.main(["convert-config", str(tmp_path / "none.yaml")]) == 2


def test_both_files_may_lie_in_a_bucket():
    with fake_gcs() as files:
        source = epath.Path("gs://bucket/stage2.yaml")
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text(yaml.safe_dump(STAGE_2))
        command = ["convert-config", str(source), "--gpus", "32", "--out", "gs://bucket/mine.py"]
        assert cli.main(command) == 0
        assert sorted(files) == ["/bucket/mine.py", "/bucket/stage2.yaml"]
