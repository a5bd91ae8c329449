"""What LLaMA-Factory and verl do where their files are silent, of what changes the training. `convert_config` reads a file as if it said so: our own defaults are other ones.

LLaMA-Factory's are those of `transformers.TrainingArguments`; verl's those of `verl/trainer/config/ppo_trainer.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ACTOR = "actor_rollout_ref.actor."
_ROLLOUT = "actor_rollout_ref.rollout."

# Kind of file -> key -> value.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "LLaMA-Factory": {
        "per_device_train_batch_size": 8,
        "learning_rate": 5e-5,
        "num_train_epochs": 3.0,
        "lr_scheduler_type": "linear",
        "warmup_ratio": 0.0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "adam_epsilon": 1e-8,
    },
    "verl": {
        "algorithm.adv_estimator": "gae",
        "data.train_batch_size": 1024,
        "data.max_response_length": 512,
        f"{_ACTOR}ppo_mini_batch_size": 256,
        f"{_ACTOR}ppo_epochs": 1,
        f"{_ACTOR}optim.lr": 1e-6,
        f"{_ACTOR}optim.warmup_style": "constant",
        f"{_ACTOR}optim.lr_warmup_steps_ratio": 0.0,
        f"{_ACTOR}optim.weight_decay": 0.01,
        f"{_ACTOR}grad_clip": 1.0,
        f"{_ACTOR}clip_ratio": 0.2,
        f"{_ACTOR}policy_loss.loss_agg_mode": "token-mean",
        f"{_ROLLOUT}n": 1,
        f"{_ROLLOUT}temperature": 1.0,
        f"{_ROLLOUT}top_p": 1.0,
        f"{_ROLLOUT}top_k": -1,
        "trainer.total_epochs": 30,
    },
}
# Key -> those that say the same, or make it idle.
_INSTEAD: Mapping[str, tuple[str, ...]] = {
    "num_train_epochs": ("max_steps",),
    "warmup_ratio": ("warmup_steps",),
    f"{_ACTOR}clip_ratio": (f"{_ACTOR}clip_ratio_low", f"{_ACTOR}clip_ratio_high"),
    "trainer.total_epochs": ("trainer.total_training_steps",),
}


def left_out(kind: str, flat: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults that a file of a kind relies on: of the keys that it leaves out or sets to null."""
    return {
        key: value
        for key, value in DEFAULTS[kind].items()
        if all(flat.get(name) is None for name in (key, *_INSTEAD.get(key, ())))
    }
