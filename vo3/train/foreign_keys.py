"""What the keys of LLaMA-Factory's and verl's configuration files are called here: those of the published Video-o3 recipes and the
commonest others. `convert_config` reads these tables; keys that mean something together are in `foreign_groups`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Rule:
    """What becomes of a foreign key.

    Attributes:
      ours: dotted keys of our config that take the value: of `vo3.train.config`, for verl of `vo3.train.rl_config`.
      value: makes our value of theirs; None takes it as it is.
      only: the values that mean what we do; any other is refused. None accepts all.
      why: where the meaning went when `ours` is empty, or a remark.
    """

    ours: tuple[str, ...] = ()
    value: Callable[[Any], Any] | None = None
    only: tuple[Any, ...] | None = None
    why: str = ""


def _set(*ours: str, value: Callable[[Any], Any] | None = None, why: str = "") -> Rule:
    return Rule(ours, value, None, why)


def _only(*values: Any, why: str) -> Rule:
    return Rule((), None, values, why)


def _none(why: str) -> Rule:
    return Rule((), None, None, why)


def _one_of(table: Mapping[Any, Any]) -> Callable[[Any], Any]:
    def value(given: Any) -> Any:
        if given not in table:
            raise ValueError(f"one of {', '.join(map(repr, table))} is expected")
        return table[given]

    return value


def _reports(given: Any) -> dict[str, Any]:
    names = given if isinstance(given, list) else [given]
    wrong = sorted({str(n) for n in names} - {"none", "tensorboard", "wandb", "console", "all"})
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: this trainer writes to tensorboard and wandb")
    return {
        "log.tensorboard": bool({"tensorboard", "all"} & set(names)),
        "log.wandb": "video-o3" if {"wandb", "all"} & set(names) else "",
    }


_PACKED = "trajectories are always packed, and never see each other"
_LENGTHS = "lengths are computed once and stored beside the rows"
_SFT_POLICY = "fixed by data.crop_policy='sft'"

LLAMA_FACTORY: Mapping[str, Rule] = {
    # model
    "model_name_or_path": _set("model", why="a local or gs:// directory; nothing is downloaded"),
    "image_max_pixels": _none("rows hold videos only"),
    "image_min_pixels": _none("rows hold videos only"),
    "video_max_pixels": _only(602_112, why=f"768 tokens a temporal patch, {_SFT_POLICY}"),
    "video_min_pixels": _only(100_352, 25_088, why=f"at least 32 tokens a patch, {_SFT_POLICY}"),
    "video_maxlen": _only(768, why=f"frames of the overview, {_SFT_POLICY}"),
    "video_fps": _only(2, 2.0, why=f"frames a second, {_SFT_POLICY}"),
    "min_token_number": _only(1024, why=f"least tokens of the overview, {_SFT_POLICY}"),
    "max_token_number": _only(16_384, why=f"most tokens of the overview, {_SFT_POLICY}"),
    "trust_remote_code": _none("no code is taken from a checkpoint"),
    "flash_attn": _none("splash attention, TDAM included"),
    "enable_liger_kernel": _none("the loss is always computed in chunks (loss.chunk)"),
    "cache_dir": _none("nothing is downloaded"),
    # TDAM; together, see foreign_groups
    "mask_answer_from_first_video": _none("tdam.policy"),
    "mask_grounding_from_other_videos": _none("tdam.policy"),
    "mask_ratio": _none("tdam.mask_ratio"),
    # method
    "stage": _only("sft", why="vo3.train.sft; RL is another command"),
    "do_train": _only(True, why="what the command does"),
    "finetuning_type": _only("full", "lora", why="lora.rank above 0 is LoRA"),
    "freeze_vision_tower": _none("frozen"),
    "freeze_multi_modal_projector": _none("frozen"),
    "freeze_language_model": _none("frozen"),
    "lora_rank": _none("lora.rank"),
    "lora_alpha": _none("lora.alpha"),
    "lora_target": _none("lora.targets"),
    "lora_dropout": _only(0, 0.0, why="adapters have no dropout"),
    "deepspeed": _none("weights and optimiser are sharded by mesh and sharding.rules"),
    "fsdp": _none("weights and optimiser are sharded by mesh and sharding.rules"),
    "gradient_checkpointing": _set("remat", value=_one_of({True: "full", False: "none"})),
    "disable_gradient_checkpointing": _set("remat", value=_one_of({False: "full", True: "none"})),
    # data
    "dataset": _set(
        "data.rows", why="the file behind the name in dataset_info.json, here by its path"
    ),
    "dataset_dir": _none("data.rows is a path"),
    "media_dir": _set("data.videos"),
    "template": _set(
        "data.mrope_time",
        value=_one_of({"qwen2_vl": "hf_int", "qwen2_5_vl": "hf_int"}),
        why="the chat format is the tokenizer's; seconds become positions as in transformers, which LLaMA-Factory asks",
    ),
    "cutoff_len": _set(
        "data.tokens_per_row", why="a longer trajectory is left out and counted, not cut"
    ),
    "max_samples": _only(None, why="cut the file of rows"),
    "overwrite_cache": _none(_LENGTHS),
    "preprocessing_batch_size": _none(_LENGTHS),
    "preprocessing_num_workers": _none(_LENGTHS),
    "tokenized_path": _none(_LENGTHS),
    "dataloader_num_workers": _set("data.workers"),
    "accelerator_config.dispatch_batches": _none("every host reads its own rows"),
    "packing": _none(_PACKED),
    "neat_packing": _none(_PACKED),
    "streaming": _only(False, why="the plan needs the length of every row"),
    "mask_history": _only(False, why="loss on every assistant turn"),
    "train_on_prompt": _only(False, why="loss on assistant turns only"),
    "val_size": _only(0, 0.0, why="evaluation is vo3.evals.runner"),
    # output
    "output_dir": _none("--workdir"),
    "logging_dir": _none("--workdir"),
    "logging_steps": _set("log.every"),
    "save_strategy": _only("steps", why="checkpoint.every counts steps"),
    "save_steps": _set("checkpoint.every"),
    "save_total_limit": _set("checkpoint.keep"),
    "plot_loss": _none("log.jsonl and TensorBoard hold the curves"),
    "overwrite_output_dir": _only(False, why="a run goes on where it was; choose a new --workdir"),
    "save_only_model": _only(False, why="checkpoints hold all that resuming needs"),
    "report_to": Rule(("log.tensorboard", "log.wandb"), _reports),
    "run_name": _none("--workdir names the run"),
    # training; the batch together, see foreign_groups
    "per_device_train_batch_size": _none("data.trajectories_per_step"),
    "gradient_accumulation_steps": _none(
        "data.trajectories_per_step; how often rows accumulate follows"
    ),
    "learning_rate": _set("optim.rate", value=float),
    "num_train_epochs": _set("epochs", value=lambda x: _whole(x, "epochs")),
    "max_steps": _set("steps", value=lambda x: max(int(x), 0)),
    "lr_scheduler_type": _set(
        "optim.schedule",
        value=_one_of(
            {
                "linear": "linear",
                "cosine": "cosine",
                "constant": "constant",
                "constant_with_warmup": "constant",
            }
        ),
    ),
    "warmup_ratio": _none("optim.warmup, below 1 a share of the steps"),
    "warmup_steps": _none("optim.warmup, from 1 on steps"),
    "weight_decay": _set("optim.weight_decay", value=float),
    "max_grad_norm": _set("optim.clip", value=float),
    "optim": _set(
        "optim.name", value=_one_of({"adamw_torch": "adamw", "adamw_torch_fused": "adamw"})
    ),
    "adam_beta1": _none("optim.betas"),
    "adam_beta2": _none("optim.betas"),
    "adam_epsilon": _set("optim.eps", value=float),
    "label_smoothing_factor": _set("loss.label_smoothing", value=float),
    "bf16": _set("dtype", value=_one_of({True: "bfloat16", False: "float32"})),
    "fp16": _only(False, why="dtype is bfloat16 or float32"),
    "pure_bf16": _only(False, why="master weights stay float32 (param_dtype)"),
    "seed": _set("seed"),
    "ddp_timeout": _none("no such limit"),
    "resume_from_checkpoint": _only(
        None, why="a run goes on from the newest checkpoint of its --workdir"
    ),
}

_ROLLOUT = "actor_rollout_ref.rollout."
_ACTOR = "actor_rollout_ref.actor."
_ENGINE = "the rollout engine is ours, on the trainer's chips; it needs no such setting"
_REFERENCE = "the reference model, where rl.kl is above 0, is scored as the policy is"
_KL = "rl.kl is of the loss; the reward has no KL term"
_CRITIC = "GRPO has no critic"
_JUDGE = "rewards follow rules; no judge is asked while training"

VERL: Mapping[str, Rule] = {
    "data.train_files": _set("data.rows"),
    "data.val_files": _none("evaluation is vo3.evals.runner"),
    "data.train_batch_size": _set("rl.prompts_per_step"),
    "data.max_prompt_length": _none(
        "no limit of its own; rl.rollout.max_length holds the whole context"
    ),
    "data.max_response_length": _set("rl.rollout.max_new_tokens", why="of a turn"),
    "data.system_prompt": _none("data.prompt_pack"),
    "data.tool_call": _only("crop", why="VideoCrop is the only tool"),
    "data.prompt_key": _none("read from the row"),
    "data.answer_key": _none("read from the row"),
    "data.image_key": _none("rows hold videos only"),
    "data.video_key": _none("read from the row"),
    "data.max_pixels": _none("data.crop_policy (tokens of the overview)"),
    "data.min_pixels": _none("data.crop_policy (tokens of the overview)"),
    "data.patch_size": _none("read from the checkpoint"),
    "data.nframes": _none("data.crop_policy ('qwen3_vl' takes 128 frames)"),
    "data.mask_blank": _none("padding is never seen"),
    "data.use_tgt_size": _none("data.crop_policy"),
    "data.return_raw_chat": _none("sampled ids are kept, never encoded again"),
    "data.return_raw_input_ids": _none("sampled ids are kept, never encoded again"),
    "data.shuffle": _only(True, why="the plan is a seeded shuffle"),
    "data.acc_reward_weight": _set("rl.reward.accuracy_weight", value=float),
    "data.format_reward_weight": _set("rl.reward.format_weight", value=float),
    "data.decay_penalty_weight": _set("rl.reward.decay", value=float),
    "data.use_tool_reward_weight": _only(0, 0.0, why="the bonus depends on the row's data_source"),
    "data.extract_answer_tags": _only("strict", why="the last <answer> of the last turn"),
    "data.general_qa_reward_fn": _none("the row's data_source selects the reward"),
    "data.gpt_general_qa_reward_fn": _none(_JUDGE),
    "data.gpt_extract_answer": _none(_JUDGE),
    "data.gpt_threads": _none(_JUDGE),
    "actor_rollout_ref.model.path": _set("model"),
    "actor_rollout_ref.model.enable_gradient_checkpointing": _set(
        "remat", value=_one_of({True: "full", False: "none"})
    ),
    "actor_rollout_ref.model.use_remove_padding": _none(_PACKED),
    "actor_rollout_ref.model.trust_remote_code": _none("no code is taken from a checkpoint"),
    "actor_rollout_ref.hybrid_engine": _none(_ENGINE),
    f"{_ACTOR}strategy": _none("mesh and sharding.rules"),
    f"{_ACTOR}fsdp_config.param_offload": _only(False, why="weights stay on the chips"),
    f"{_ACTOR}fsdp_config.optimizer_offload": _only(False, why="the optimiser stays on the chips"),
    f"{_ACTOR}ulysses_sequence_parallel_size": _set("mesh.context"),
    f"{_ACTOR}ppo_mini_batch_size": _none("rl.mini_batches, with data.train_batch_size"),
    f"{_ACTOR}ppo_micro_batch_size_per_gpu": _none(
        "rows of whole groups accumulate; rl.shapes bounds them"
    ),
    f"{_ACTOR}ppo_epochs": _set("rl.epochs"),
    f"{_ACTOR}grad_clip": _set("optim.clip", value=float),
    f"{_ACTOR}optim.lr": _set("optim.rate", value=float),
    f"{_ACTOR}optim.weight_decay": _set("optim.weight_decay", value=float),
    f"{_ACTOR}optim.lr_warmup_steps_ratio": _set("optim.warmup", value=float),
    f"{_ACTOR}optim.warmup_style": _set(
        "optim.schedule", value=_one_of({"constant": "constant", "cosine": "cosine"})
    ),
    # Together, see foreign_groups.
    f"{_ACTOR}clip_ratio": _none("rl.clip"),
    f"{_ACTOR}clip_ratio_low": _none("rl.clip"),
    f"{_ACTOR}clip_ratio_high": _none("rl.clip"),
    f"{_ACTOR}use_kl_loss": _none("rl.kl"),
    f"{_ACTOR}kl_loss_coef": _none("rl.kl"),
    f"{_ACTOR}kl_loss_type": _none("rl.kl"),
    f"{_ACTOR}entropy_coeff": _only(0, 0.0, why="no entropy bonus"),
    f"{_ACTOR}ignore_exceed": _only(True, why="exceeded rollouts carry no loss"),
    f"{_ACTOR}ignore_void": _only(False, why="void rollouts keep their loss"),
    f"{_ACTOR}skip_overlong_prompt": _none("a prompt that does not fit is counted and named"),
    f"{_ACTOR}use_multi_turn_response_mask": _only(True, why="only sampled tokens carry loss"),
    f"{_ACTOR}policy_loss.loss_mode": _none("rl.options"),
    f"{_ACTOR}policy_loss.loss_agg_mode": _set(
        "rl.aggregation",
        value=_one_of(dict.fromkeys(("token-mean", "seq-mean-token-mean"), "seq-mean-token-mean")),
        why="verl's token mean is of a micro-batch: with one rollout in each, the mean over rollouts of their token means",
    ),
    f"{_ROLLOUT}name": _none(_ENGINE),
    f"{_ROLLOUT}mode": _none(_ENGINE),
    f"{_ROLLOUT}n": _set("rl.group", why="rollouts of a prompt"),
    f"{_ROLLOUT}temperature": _set("rl.rollout.temperature", value=float),
    f"{_ROLLOUT}top_p": _set("rl.rollout.top_p", value=float),
    f"{_ROLLOUT}top_k": _set("rl.rollout.top_k", value=lambda x: max(int(x), 0), why="0: all"),
    f"{_ROLLOUT}stop": _only(["</grounding>"], why="where a turn of RL stops"),
    f"{_ROLLOUT}max_generation_round": _set("rl.rollout.max_turns"),
    f"{_ROLLOUT}max_total_response_length": _set("rl.rollout.max_length"),
    f"{_ROLLOUT}limit_mm_per_prompt.video": _set("rl.rollout.max_videos"),
    f"{_ROLLOUT}limit_mm_per_prompt.image": _none("rows hold videos only"),
    f"{_ROLLOUT}val_max_generation_round": _none("evaluation is vo3.evals.runner"),
    f"{_ROLLOUT}val_limit_mm_per_prompt.video": _none("evaluation is vo3.evals.runner"),
    f"{_ROLLOUT}val_limit_mm_per_prompt.image": _none("evaluation is vo3.evals.runner"),
    f"{_ROLLOUT}use_relative_coordinates": _none("times are seconds of the whole video"),
    f"{_ROLLOUT}use_raw_image": _none(
        "clips are decoded from the video, not cut from the overview"
    ),
    f"{_ROLLOUT}multi_turn_prompt_type": _none("data.prompt_pack"),
    f"{_ROLLOUT}crop_frames_sample_fps": _only(2, 2.0, why="data.crop_policy"),
    **{
        f"{_ROLLOUT}{name}": _none("data.crop_policy ('rl', or 'qwen3_vl')")
        for name in (
            "crop_min_tokens",
            "crop_max_tokens_coarse",
            "crop_max_tokens_medium",
            "crop_max_tokens_fine",
            "crop_max_tokens_per_frame_cap",
        )
    },
    **{
        f"{_ROLLOUT}{name}": _none(_ENGINE)
        for name in (
            "log_prob_micro_batch_size_per_gpu",
            "tensor_model_parallel_size",
            "max_num_batched_tokens",
            "max_model_len",
            "max_num_seqs",
            "gpu_memory_utilization",
            "enable_chunked_prefill",
            "enforce_eager",
            "free_cache_engine",
            "load_format",
            "dtype",
            "ignore_eos",
            "vllm_infer_batch_size",
            "micro_rollout_batch_size",
            "disable_log_stats",
        )
    },
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": _none(_REFERENCE),
    "actor_rollout_ref.ref.fsdp_config.param_offload": _none(_REFERENCE),
    "reward_model.enable": _only(False, why=_JUDGE),
    "reward_model.reward_manager": _none("rewards follow rules, in worker processes"),
    "algorithm.adv_estimator": _only("grpo", why="the only algorithm"),
    "algorithm.norm_adv_by_std_in_grpo": _none("rl.options"),
    "algorithm.use_kl_in_reward": _only(False, why=_KL),
    "algorithm.kl_ctrl.kl_coef": _none(_KL),
    "algorithm.kl_ctrl.type": _none(_KL),
    "algorithm.kl_penalty": _none(_KL),
    "algorithm.gamma": _only(1, 1.0, why="GRPO does not discount"),
    "algorithm.lam": _only(1, 1.0, why="GRPO does not discount"),
    "trainer.rejection_sample": _only(
        True, why="groups of equal rewards are dropped, and others drawn"
    ),
    "trainer.rejection_sample_multiplier": _none(
        "as many prompts are drawn as the batch still needs"
    ),
    "trainer.rejection_sample_chunk_size": _none(
        "as many prompts are drawn as the batch still needs"
    ),
    "trainer.critic_warmup": _none(_CRITIC),
    "trainer.total_epochs": _set("epochs"),
    "trainer.total_training_steps": _set("steps", value=lambda x: int(x or 0)),
    "trainer.logger": Rule(("log.tensorboard", "log.wandb"), _reports),
    "trainer.project_name": _none("log.wandb"),
    "trainer.experiment_name": _none("--workdir names the run"),
    "trainer.log_training_rollouts_freq": _set(
        "rl.trajectories_every", value=lambda x: max(int(x), 0)
    ),
    "trainer.train_generations_to_log_to_wandb": _none("rl.trajectories_every"),
    "trainer.val_generations_to_log_to_wandb": _none("evaluation is vo3.evals.runner"),
    "trainer.n_gpus_per_node": _none("the slice"),
    "trainer.nnodes": _none("the slice"),
    "trainer.save_freq": _set("checkpoint.every"),
    "trainer.test_freq": _none("evaluation is vo3.evals.runner"),
    "trainer.val_before_train": _none("evaluation is vo3.evals.runner"),
    "trainer.val_only": _only(False, why="evaluation is vo3.evals.runner"),
    "trainer.resume_mode": _only(
        "auto", why="a run goes on from the newest checkpoint of its --workdir"
    ),
    "trainer.resume_from_path": _none("a run goes on from the newest checkpoint of its --workdir"),
    "trainer.default_local_dir": _none("--workdir"),
    "trainer.use_3drope": _only(True, why="M-RoPE"),
    "trainer.num_workers": _set("data.workers"),
}
# Whole sections that belong to parts we have none of.
VERL_SECTIONS = {
    "critic.": _none(_CRITIC),
    "ray_kwargs.": _none("no Ray"),
    "hydra.": _none("no Hydra"),
}


def _whole(value: Any, what: str) -> int:
    if float(value) != int(float(value)) or float(value) < 1:
        raise ValueError(f"{what} are whole numbers from 1 on; use steps for a part")
    return int(float(value))
