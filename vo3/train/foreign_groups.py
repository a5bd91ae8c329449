"""Keys of LLaMA-Factory and verl that mean something only together. `convert_config` goes through `TOGETHER` after the tables of `foreign_keys`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def _batch(flat: Mapping[str, Any], gpus: int | None) -> dict[str, Any]:
    per_gpu = flat.get("per_device_train_batch_size")
    if per_gpu is None:
        return {}
    if gpus is None:
        raise ValueError(
            "per_device_train_batch_size is that of one GPU; give --gpus N, those of the original run (32 for the published ones)"
        )
    steps = flat.get("gradient_accumulation_steps") or 1
    return {"data.trajectories_per_step": int(per_gpu) * int(steps) * gpus}


def _frozen(flat: Mapping[str, Any], _: int | None) -> dict[str, Any]:
    # Their defaults: the tower and the projector are frozen, the language model is not.
    frozen = {
        r"^vision\.(?!merger\.)": flat.get("freeze_vision_tower", True),
        r"^vision\.merger\.": flat.get("freeze_multi_modal_projector", True),
        r"^(decoder|embed|unembedding)\.": flat.get("freeze_language_model", False),
    }
    if all(frozen.values()):
        raise ValueError("freeze_*: everything is frozen")
    return {"frozen": tuple(pattern for pattern, yes in frozen.items() if yes)}


def _lora(flat: Mapping[str, Any], _: int | None) -> dict[str, Any]:
    if flat.get("finetuning_type") != "lora":
        return {}
    rank = int(flat.get("lora_rank") or 8)
    changes: dict[str, Any] = {
        "lora.rank": rank,
        "lora.alpha": float(flat.get("lora_alpha") or 2 * rank),
    }
    targets = flat.get("lora_target") or "all"
    names = targets.split(",") if isinstance(targets, str) else list(targets)
    table = {f"{n}_proj": n for n in ("q", "k", "v", "o", "gate", "up", "down")}
    if names != ["all"]:
        unknown = sorted({n.strip() for n in names} - set(table))
        if unknown:
            raise ValueError(
                f"lora_target: {', '.join(unknown)}; all, or some of {', '.join(table)}"
            )
        chosen = "|".join(table[n.strip()] for n in names)
        changes["lora.targets"] = rf"^decoder\..*\.({chosen})\.kernel$"
    return changes


def _tdam(flat: Mapping[str, Any], _: int | None) -> dict[str, Any]:
    answer = bool(flat.get("mask_answer_from_first_video"))
    calls = bool(flat.get("mask_grounding_from_other_videos"))
    if answer != calls:
        raise ValueError(
            "mask_answer_from_first_video and mask_grounding_from_other_videos differ; a policy has both or neither"
        )
    if not answer:
        return {}
    return {"tdam.policy": "released", "tdam.mask_ratio": float(flat.get("mask_ratio", 0.1))}


def _warmup(flat: Mapping[str, Any], _: int | None) -> dict[str, Any]:
    # Steps go before a ratio, unless there are none.
    steps = float(flat.get("warmup_steps") or 0.0)
    return {"optim.warmup": steps or float(flat.get("warmup_ratio") or 0.0)}


def _betas(flat: Mapping[str, Any], _: int | None) -> dict[str, Any]:
    return {
        "optim.betas": (float(flat.get("adam_beta1", 0.9)), float(flat.get("adam_beta2", 0.999)))
    }


# ---------------------------------------------------------------- verl

_ACTOR = "actor_rollout_ref.actor."


def _clip(flat: Mapping[str, Any], _: int | None) -> dict[str, Any]:
    both, low, high = (flat.get(f"{_ACTOR}clip_ratio{end}") for end in ("", "_low", "_high"))
    if both is low is high is None:
        return {}
    both = 0.2 if both is None else both  # verl's default
    return {"rl.clip": tuple(float(both if x is None else x) for x in (low, high))}


def _kl(flat: Mapping[str, Any], _: int | None) -> dict[str, Any]:
    if not flat.get(f"{_ACTOR}use_kl_loss"):
        return {}
    kind = flat.get(f"{_ACTOR}kl_loss_type") or "low_var_kl"
    if kind not in ("low_var_kl", "k3"):
        raise ValueError(f"{_ACTOR}kl_loss_type: {kind!r}; rl.kl is of the estimate 'low_var_kl'")
    given = flat.get(f"{_ACTOR}kl_loss_coef")
    return {"rl.kl": float(0.001 if given is None else given)}  # verl's default


def _mini_batches(flat: Mapping[str, Any], _: int | None) -> dict[str, Any]:
    whole, part = flat.get("data.train_batch_size"), flat.get(f"{_ACTOR}ppo_mini_batch_size")
    if whole is None or part is None:
        return {}
    if not 0 < int(part) <= int(whole) or int(whole) % int(part):
        raise ValueError(
            f"{_ACTOR}ppo_mini_batch_size: {part!r} prompts do not divide the {whole!r} of data.train_batch_size"
        )
    return {"rl.mini_batches": int(whole) // int(part)}


def _options(flat: Mapping[str, Any], _: int | None) -> dict[str, Any]:
    mode = flat.get(f"{_ACTOR}policy_loss.loss_mode") or "normal"
    if mode not in ("normal", "vanilla", "gspo"):
        raise ValueError(
            f"{_ACTOR}policy_loss.loss_mode: {mode!r}; one of 'normal', 'vanilla', 'gspo'"
        )
    options = ("gspo",) if mode == "gspo" else ()
    if flat.get("algorithm.norm_adv_by_std_in_grpo") is False:
        options += ("no_std",)
    return {"rl.options": options}


Together = Callable[[Mapping[str, Any], int | None], dict[str, Any]]
# Kind of file -> keys -> what they are together: of all the file's keys and --gpus. A ValueError names what cannot be converted.
TOGETHER: Mapping[str, Mapping[tuple[str, ...], Together]] = {
    "LLaMA-Factory": {
        ("per_device_train_batch_size", "gradient_accumulation_steps"): _batch,
        ("freeze_vision_tower", "freeze_multi_modal_projector", "freeze_language_model"): _frozen,
        ("finetuning_type", "lora_rank", "lora_alpha", "lora_target"): _lora,
        ("mask_answer_from_first_video", "mask_grounding_from_other_videos", "mask_ratio"): _tdam,
        ("adam_beta1", "adam_beta2"): _betas,
        ("warmup_ratio", "warmup_steps"): _warmup,
    },
    "verl": {
        tuple(f"{_ACTOR}clip_ratio{end}" for end in ("", "_low", "_high")): _clip,
        tuple(f"{_ACTOR}{name}" for name in ("use_kl_loss", "kl_loss_coef", "kl_loss_type")): _kl,
        (f"{_ACTOR}ppo_mini_batch_size",): _mini_batches,
        (f"{_ACTOR}policy_loss.loss_mode", "algorithm.norm_adv_by_std_in_grpo"): _options,
    },
}
