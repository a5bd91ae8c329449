"""RL with the Verifiable Trajectory-Guided Reward: GRPO over multi-turn rollouts, from one core to a pod by the same command.

    python -m vo3.train.grpo --config=configs/rl.py --workdir=DIR [--config.rl.group=8 ...]

A step rolls out `rl.group` conversations of every prompt, scores them, and updates the policy on the groups whose rewards differ. It reads top to
bottom: config, data, model, loop. A step is a function of (config, step, place in the data, parameters), up to the rounding of the rollouts' buckets, so
a run that is killed and started again goes on from its newest checkpoint; one that was interrupted between rollouts and update keeps the rollouts.

Where this departs from GRPO as first written (Shao et al. 2024, arXiv 2402.03300), by what Video-o3's settings amount to, unless marked *ours*:

* no KL term and no reference model (`rl.kl` brings both back, with the k3 estimate of that paper);
* the ratio is clipped unevenly, to [1 - 0.2, 1 + 0.3] (`rl.clip`; clip-higher of DAPO);
* one update a batch, so old and new policy are the same in it and the ratio is 1; the old log-probabilities are the trainer's own, not the
  sampler's (`rl.mini_batches`, `rl.epochs` take more updates; old log-probabilities are then computed before the first);
* the standard deviation of a group has n - 1 and 1e-6 beside it;
* groups whose rewards deviate by less than 1e-4 are dropped and further prompts drawn until the batch is full (dynamic sampling of DAPO);
* exceeded rollouts count in a group's statistics and in the denominator, and carry no loss;
* only sampled tokens carry loss: observations, error turns and tags that were appended do not, nor a last turn that was cut by length;
* outcome supervision alone: one advantage for all tokens of a rollout;
* the vision tower trains with the decoder (`frozen`);
* *ours*: a group is one row of tokens, [prefix | leaf 1 | ... | leaf n], so the prompt and its video are computed once, forward and backward;
* *ours*: a prompt has no limit of its own (18,432 tokens there); `rl.rollout.max_length` holds the whole context;
* *ours*: a rollout that is lost for reasons that are not the policy's (its video vanished, its reward raised) is in neither statistics nor loss;
* *ours*, off by default: `rl.options` gspo, no_std, overlong, tis, and `rl.aggregation="token-mean"`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
from absl import logging
from etils import epath

from vo3.chat import PromptPack
from vo3.models.qwen2_5_vl import Qwen2_5_VLConfig
from vo3.rollout import GroupEngine
from vo3.rollout.run import Video
from vo3.train import checkpoints as ckpt
from vo3.train import command, processes, rl_config, samples, sharding
from vo3.train import config as config_lib
from vo3.train.collect import (
    Collected,
    CollectError,
    Collector,
    GroupRoller,
    Roller,
    sum_over_processes,
)
from vo3.train.faults import Faults
from vo3.train.finished import export
from vo3.train.metrics import Log, Profile
from vo3.train.pending import Kept, Pending
from vo3.train.policy_step import PolicyPrograms
from vo3.train.policy_update import Update, Updater, check_processes
from vo3.train.prompts import Prompts, make_prompts, opener
from vo3.train.publish import Publisher
from vo3.train.rl_metrics import Alarms, StepRow, rollout_figures, update_figures
from vo3.train.scoring import ScoredGroup, kept, with_reward
from vo3.train.sft import Result, start
from vo3.train.state import Params, Trainable, TrainState, trainable
from vo3.train.step import FAULTS
from vo3.train.workdir import claim
from vo3.trajectory import Task


@dataclasses.dataclass(frozen=True)
class Setting:
    """What belongs to the model's name: tokenizer, prompts, how videos are shown."""

    tokenizer: Any
    pack: PromptPack
    crop_policy: Any

    @classmethod
    def of(cls, config: ml_collections.ConfigDict) -> Setting:
        """That of `config.model`, with the pack of `config.data.prompt_pack`.

        Raises:
          ConfigError: no such pack.
        """
        from vo3.train.row_feed import crop_policy_of, tokenizer_of

        try:
            pack = PromptPack.load(config.data.prompt_pack)
        except ValueError as error:
            raise config_lib.ConfigError(f"data.prompt_pack: {error}") from error
        return cls(tokenizer_of(config), pack, crop_policy_of(config))


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a run is made of, where it is not what the config names: for tests and small studies."""

    prompts: Prompts | None = None
    roller: Roller | None = None
    model: Qwen2_5_VLConfig | None = None
    setting: Setting | None = None
    open_video: Callable[[Task], Video] | None = None


def train(
    config: ml_collections.ConfigDict,
    workdir: epath.PathLike,
    *,
    parts: Parts = Parts(),
    devices: list[Any] | None = None,
    stop_after: float | None = None,
) -> Result:
    """Runs to `config.steps`, or to the end of the data's epochs, from the newest checkpoint in `workdir` on.

    Args:
      config: of `vo3.train.rl_config.defaults()`.
      workdir: checkpoints, logs, trajectories.
      parts: instead of those that the config names.
      devices: to use; None: all.
      stop_after: save and end after this step, as SIGTERM does; 2.5: in the third step, between rollouts and update.

    Raises:
      ConfigError: the configuration contradicts itself, or the workdir is another run's.
      CheckpointError: checkpoints cannot be read or written.
      CollectError: too few groups to learn from.
      TrainingFault: an update that is not finite, or a spike, with `on_nan="stop"`; or many in a row.
    """
    workdir = epath.Path(workdir)
    rl_config.validate(config)
    devices = devices or jax.devices()
    if config.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
    workdir.mkdir(parents=True, exist_ok=True)
    with processes.Preemption() as preemption:
        prompts = parts.prompts or make_prompts(config, workdir)
        config = rl_config.resolve(config, devices=len(devices), prompts=prompts.per_epoch)
        claim(workdir, config)
        mesh = sharding.make_mesh(config, devices)
        check_processes(mesh)
        run = trainable(rl_config.for_optimizer(config), mesh, model=parts.model)
        if processes.first():
            logging.info("configuration:\n%s", config_lib.to_text(config))
        with ckpt.Checkpoints(workdir, run, plan=prompts.plan) as checkpoints:
            state, frozen = start(run, checkpoints)
            position = checkpoints.position
            done, cursor = (position.step, position.cursor) if position else (0, 0)
            parts = dataclasses.replace(parts, prompts=prompts)
            loop = Loop(config, run, parts, frozen, workdir, checkpoints)
            try:
                state, done, finished = loop.go(state, done, cursor, preemption, stop_after)
            finally:
                loop.collector.close()
        params = {**state.params, **frozen}
        if finished and config.checkpoint.export_hf:
            export(run, params, workdir / "export")
    return Result(params, done, finished)


class Loop:
    """The steps of a run."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        run: Trainable,
        parts: Parts,
        frozen: Params,
        workdir: epath.Path,
        checkpoints: ckpt.Checkpoints,
    ):
        self.config, self.run, self.frozen = config, run, frozen
        self.workdir, self.checkpoints = workdir, checkpoints
        setting = parts.setting or Setting.of(config)
        self.tokenizer = setting.tokenizer
        self._open = parts.open_video or opener(setting.crop_policy, config.data.time_limit)
        self.publish = Publisher(run)
        self.roller = parts.roller or make_roller(config, setting, self._open, self.publish.sets)
        epoch = parts.prompts.per_epoch
        last = None if epoch is None else config.epochs * epoch
        self.collector = Collector(config, parts.prompts, self.roller, last=last)
        self.programs = PolicyPrograms(
            run, rl_config.policy_loss(config), temperature=config.rl.rollout.temperature
        )
        self.updater = Updater(config, run, self.programs, frozen, self.tokenizer)
        self.pending = Pending(workdir)
        self.faults = Faults(config.on_nan, checkpoints.steps)
        self._waited_before = 0.0

    def go(
        self,
        state: TrainState,
        done: int,
        cursor: int,
        preemption: processes.Preemption,
        stop_after: float | None,
    ) -> tuple[TrainState, int, bool]:
        """Steps until the end; returns (state, steps done, whether all are)."""
        config, checkpoints = self.config, self.checkpoints
        total, saved = config.steps, done
        log, profile = Log(self.workdir, config, start=done), Profile(self.workdir, config)
        alarms = Alarms(self.workdir, start=done)
        finished = done >= total
        unlogged: StepRow | None = None

        def leave(rollouts: Collected | None = None) -> None:
            """Writes down where the run stands, which ends before the next update, with the rollouts for it."""
            if unlogged is not None:
                log.write(unlogged)
            if rollouts is not None:
                self._keep(rollouts, done, cursor)
            if saved != done or (rollouts is not None and done not in checkpoints.steps()):
                checkpoints.save(state, done, cursor=cursor)

        with log:
            ending = preemption.reached()
            while not finished and not ending:
                profile.before(done + 1)
                begin = time.monotonic()
                try:
                    collected = self._collect(state, done, cursor)
                except CollectError:  # in every process: what it counts is agreed on
                    leave()
                    raise
                if collected.ended and not collected.complete:
                    logging.info("the data ended after %d steps", done)
                    finished = True
                    leave()
                    self.pending.drop()
                    break
                if preemption.reached() or stop_after == done + 0.5:
                    leave(collected)
                    logging.info("asked to end: kept the rollouts of step %d", done + 1)
                    break
                self.publish.release()
                if done + 1 < total and not collected.ended:
                    self.collector.ahead(collected.cursor)
                try:
                    state, update = self.updater.update(state, kept(collected.groups))
                except config_lib.ConfigError:  # in every process, before anything is updated
                    leave(collected)
                    raise
                done, cursor = done + 1, collected.cursor
                profile.after(done)
                self._watch(update, done)
                finished = done == total or collected.ended
                seconds = time.monotonic() - begin
                row = self._row(done, collected, update, seconds)
                for alarm in alarms.add(row.values) if config.rl.alarms else ():
                    logging.warning("step %d: %s", done, alarm)
                unlogged = row
                if done % config.log.every == 0 or finished:
                    log.write(row)
                    unlogged = None
                self._write(collected.groups, done)
                if update.sample is not None and self._due(config.log.samples_every, done):
                    log.sample(done, samples.text_of(update.sample, self.tokenizer), None)
                ending = preemption.reached() or done == stop_after
                if done % config.checkpoint.every == 0 or finished or ending:
                    checkpoints.save(state, done, cursor=cursor)
                    saved = done
                    self.pending.drop()
            if ending and not finished:
                logging.info("asked to end after step %d", done)
            profile.after(10**9)
            checkpoints.wait()
        return state, done, finished

    def _collect(self, state: TrainState, done: int, cursor: int) -> Collected:
        begin = time.monotonic()
        known = self.pending.read(self._header(done, cursor))
        if processes.agree(known is not None):
            groups = self.collector.restore(known.trajectories, self._open)
            count = sum_over_processes(len(kept(groups)))
            seconds = {"rollout": time.monotonic() - begin, "videos": 0.0, "reward": 0.0}
            if count:
                return Collected(tuple(groups), known.cursor, count, known.ended, seconds)
            logging.warning("step %d: every kept rollout is lost; rolling out anew", done + 1)
        self.roller.update(self.publish(state.params, self.frozen))
        collected = self.collector.step(done, cursor)
        collected.seconds["publish"] = time.monotonic() - begin - sum(collected.seconds.values())
        return collected

    def _keep(self, collected: Collected, done: int, cursor: int) -> None:
        trajectories = tuple(_trajectories(collected.groups, done + 1))
        kept_now = Kept(trajectories, collected.cursor, collected.ended)
        self.pending.write(self._header(done, cursor), kept_now)

    def _header(self, done: int, cursor: int) -> str:
        return f"step {done}, prompt {cursor}, processes {jax.process_count()}"

    def _row(self, done: int, collected: Collected, update: Update, seconds: float) -> StepRow:
        sampled = sum(r.sampled for g in collected.groups for r in g.rollouts)
        spent = {**collected.seconds, **update.seconds}
        values = {
            **update_figures(update.metrics),
            **rollout_figures(collected.groups),
            "rate": float(self.run.rate((done - 1) * rl_config.updates(self.config))),
            "prompts": collected.cursor,
            "groups": collected.complete,
            "rows": update.rows,
            "padding": 1 - update.tokens / max(update.slots, 1),
            "seconds": seconds,
            **{f"seconds_{name}": value for name, value in spent.items()},
            "host_wait": 1 - (spent["rollout"] - self._waited() + spent["update"]) / seconds,
            "rollout_tokens_per_second": sampled / max(spent["rollout"], 1e-9),
            "update_tokens_per_second": update.tokens / max(spent["update"], 1e-9),
            "programs": self.programs.compiled(),
            "rollout_programs": getattr(getattr(self.roller, "engine", None), "compilations", 0),
            "eta": seconds * (self.config.steps - done),
        }
        return StepRow(done, values)

    def _waited(self) -> float:
        """Seconds of the step's rollouts in which the device had nothing to do, every rollout waiting for a video."""
        counts = getattr(getattr(self.roller, "engine", None), "counts", None)
        total = 0.0 if counts is None else counts.waited_s
        waited, self._waited_before = total - self._waited_before, total
        return waited

    def _watch(self, update: Update, done: int) -> None:
        """Reports faults of the step's updates."""
        for number, metrics in enumerate(update.metrics):
            fault = int(metrics.fault)
            if not fault:
                self.faults.none()
                continue
            self.faults.add(
                fault,
                f"step {done}, update {number + 1}: {FAULTS[fault]} (gradient norm {float(metrics.gradient_norm):g}); "
                f"prompts {', '.join(update.names[:5])}",
            )

    def _write(self, groups: tuple[ScoredGroup, ...], done: int) -> None:
        """The step's trajectories, for `vo3 view`."""
        if not self._due(self.config.rl.trajectories_every, done):
            return
        folder = self.workdir / "trajectories"
        folder.mkdir(parents=True, exist_ok=True)
        process = "" if jax.process_count() == 1 else f"-{jax.process_index()}"
        lines = [t.dumps() + "\n" for t in _trajectories(groups, done)]
        (folder / f"step-{done:06d}{process}.jsonl").write_text("".join(lines))

    @staticmethod
    def _due(every: int, done: int) -> bool:
        return bool(every) and done % every == 1 % every


def _trajectories(groups: tuple[ScoredGroup, ...], step: int) -> list[Any]:
    return [
        with_reward(rollout, step=step, number=group.number, index=i)
        for group in groups
        for i, rollout in enumerate(group.rollouts)
    ]


# ---------------------------------------------------------------- rollouts and the command


def make_roller(
    config: ml_collections.ConfigDict, setting: Setting, open_video: Any, sets: int = 1
) -> Roller:
    """The group engine with the limits of `config.rl.rollout`, for `sets` sets of devices."""
    rollout = config.rl.rollout
    make = lambda model: GroupEngine(
        model,
        tokenizer=setting.tokenizer,
        pack=setting.pack,
        policy=rl_config.rollout_policy(config),
        buckets=rl_config.buckets(config),
        slots=rollout.slots * sets,
        rollouts=config.rl.group,
        lanes=rollout.lanes,
        workers=rollout.workers,
        timeout_s=config.data.time_limit,
    )
    return GroupRoller(
        make, open_video, rl_config.sampling(config), warm_up=config.rl.rollout.warm_up
    )


def main(_: list[str]) -> int:
    """Entry point of `python -m vo3.train.grpo`; see `command.run`."""
    return command.run("vo3.train.grpo", train, CollectError)


if __name__ == "__main__":
    command.start(main)
