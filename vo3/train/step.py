"""The train step: loss, gradients, accumulation, update. Everything a run compiles is here.

A step minimises  sum(weight * loss) / sum(weight)  over all its tokens, however they are cut into rows and micro-batches: the
sums are added up and divided once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from vo3.attention import striping
from vo3.models.qwen2_5_vl.model import Qwen2_5_VL
from vo3.models.qwen2_5_vl.vision import vision_inputs
from vo3.train import sharding
from vo3.train.batch import Batch, RowBatch
from vo3.train.config import ROW_AXES
from vo3.train.features import merged
from vo3.train.losses import Sums, summed_cross_entropy
from vo3.train.pixels import normalize, patchify_traced
from vo3.train.sharded_loss import sharded_cross_entropy
from vo3.train.state import Params, Trainable, TrainState

# A spike is judged against a mean of so many steps at least, and the mean forgets at this rate.
SPIKE_AFTER = 10
NORM_DECAY = 0.95

OK, NOT_FINITE, SPIKE = 0, 1, 2
FAULTS = {NOT_FINITE: "loss or gradient is not finite", SPIKE: "the gradient norm is a spike"}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Partial:
    """What micro-batches of a step have added up to.

    Attributes:
      gradient: of the summed loss, by path.
      sums: of the loss.
    """

    gradient: Params
    sums: Sums


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Metrics:
    """Of one step, scalars.

    Attributes:
      loss: what was minimised, mean over the weight.
      entropy: the plain cross-entropy, mean over the weight.
      accuracy: share of the weight that was predicted right.
      weight: sum of the loss weights: the trained tokens.
      gradient_norm: before clipping.
      masked: whether the TDAM policy was in force.
      fault: 0, or a key of `FAULTS`; then the step changed nothing but its number.
    """

    loss: Float[Array, ""]
    entropy: Float[Array, ""]
    accuracy: Float[Array, ""]
    weight: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    masked: Array
    fault: Array


# ---------------------------------------------------------------- loss


def features_of(model: Qwen2_5_VL, frames: jax.Array) -> jax.Array:
    """Vision tokens [N * tokens, D] of N videos of equal size, uint8 [N, T, h, w, 3]."""
    config = model.config.vision
    patches = patchify_traced(frames, config)
    videos, steps, count, _ = patches.shape
    h, w = frames.shape[2] // config.patch_size, frames.shape[3] // config.patch_size
    one = vision_inputs([(1, h, w)], config)
    rows = jax.tree.map(lambda f: jnp.broadcast_to(f, (videos * steps, *f.shape)), one)
    features = model.encode_vision(patches.reshape(videos * steps, count, -1), rows)
    return features.reshape(-1, features.shape[-1])


def embed(model: Qwen2_5_VL, batch: RowBatch, *, mesh: Mesh | None = None) -> Float[Array, "B L D"]:
    """Token embeddings with each row's own vision tokens in their places."""
    x = model.embed(batch.ids)
    if batch.features is not None:
        features = merged(model.vision, batch.features)
    else:
        patches = batch.patches
        if patches.dtype == jnp.uint8:
            patches = normalize(patches)
        features = model.encode_vision(sharding.constrain(patches, mesh), batch.vision)
    # Row by row, so that no device needs the vision tokens of another's rows.
    index = jnp.maximum(batch.feature_index, 0)[..., None]
    shown = jnp.take_along_axis(features.astype(x.dtype), index, axis=1, mode="clip")
    return sharding.constrain(jnp.where((batch.feature_index >= 0)[..., None], shown, x), mesh)


def loss_sums(
    model: Qwen2_5_VL,
    batch: Batch | RowBatch,
    *,
    masked: Bool[Array, ""] | bool = True,
    mesh: Mesh | None = None,
    chunk: int = 512,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> Sums:
    """Summed loss of the batch.

    Args:
      model: to run.
      batch: either form.
      masked: whether `visibility.hide` counts.
      mesh: where activations are pinned; a `RowBatch` may be split over its context axis too.
      chunk, z_loss, label_smoothing: see `summed_cross_entropy`.
    """
    seen = batch.visibility
    if masked is not True:
        seen = dataclasses.replace(seen, hide=jnp.where(masked, seen.hide, 0))
    # The state at a token predicts the next one of the same trajectory.
    following = lambda x: jnp.concatenate([x[:, 1:], jnp.zeros_like(x[:, :1])], axis=1)
    same = following(seen.enter + 1) == seen.enter + 1
    weight = jnp.where(same, following(batch.weight), jnp.float32(0))
    targets = following(batch.ids)
    options = {"chunk": chunk, "z_loss": z_loss, "label_smoothing": label_smoothing}
    if isinstance(batch, Batch):
        shown = [features_of(model, frames) for frames in (batch.overviews, batch.clips)]
        hidden = model(
            batch.ids,
            batch.positions,
            seen,
            features=jnp.concatenate(shown),
            feature_index=batch.feature_index,
            logits="none",
        ).hidden
        return summed_cross_entropy(hidden, targets, weight, model.unembed, **options)

    context = mesh.shape["context"] if mesh is not None else 1
    if context > 1:
        # Runs of tokens are dealt out so that every device has as much to attend to; all that goes with a token moves along.
        order = stripes(batch.ids.shape[1], context)
        deal = lambda x: x.at[..., order].get(mode="promise_in_bounds")
        moved = {name: deal(getattr(batch, name)) for name in ("ids", "positions", "feature_index")}
        batch = dataclasses.replace(batch, **moved)
        seen, targets, weight = jax.tree.map(deal, (seen, targets, weight))
    positions = batch.positions.transpose(1, 0, 2)
    hidden, _ = model.decoder(embed(model, batch, mesh=mesh), positions, seen)
    hidden = sharding.constrain(hidden, mesh)
    if context > 1:
        # Each device's stretch becomes a row, so that the chunks are cut from what it has.
        apart = lambda x: x.reshape(-1, x.shape[1] // context, *x.shape[2:])
        hidden, targets, weight = apart(hidden), apart(targets), apart(weight)
    axes = (*ROW_AXES, "context")
    return sharded_cross_entropy(hidden, targets, weight, model, mesh=mesh, axes=axes, **options)


def stripes(length: int, context: int) -> Int[np.ndarray, " L"]:
    """`striping` in the longest runs, up to 512 tokens, that the length allows."""
    if length % context:
        raise ValueError(
            f"rows of {length} tokens cannot be split over mesh.context={context}; make data.length_multiple a multiple of it"
        )
    return striping(length, context, run=math.gcd(length // context, 512))


# ---------------------------------------------------------------- programs


class Programs:
    """The jitted programs of a run.

    Attributes:
      update: (state, frozen, batch) -> (state, metrics): a step of one micro-batch, in one program.
      add: (partial, state, frozen, batch) -> partial: one micro-batch of several.
      finish: (state, partial) -> (state, metrics).
      zero: () -> partial.

    `update` and `finish` are given the state for good, `add` the partial sums. One program per shape of a batch: `compiled()` counts them.
    """

    def __init__(self, run: Trainable):
        self.run = run
        where = lambda tree: jax.tree.map(lambda x: x.sharding, tree)
        whole = sharding.replicated(run.mesh)
        state = where(run.state)
        partial_shapes = jax.eval_shape(self._zero)
        partial = sharding.like_params(
            partial_shapes, run.shapes, lambda n, _: run.shapes[n].sharding, run.mesh
        )
        metrics = jax.tree.map(lambda _: whole, Metrics(*[0] * 7))
        self.update = jax.jit(self._update, donate_argnums=0, out_shardings=(state, metrics))
        self.add = jax.jit(self._add, donate_argnums=0, out_shardings=partial)
        self.finish = jax.jit(self._finish, donate_argnums=0, out_shardings=(state, metrics))
        self.zero = jax.jit(self._zero, out_shardings=partial)

    def compiled(self) -> int:
        """Programs compiled so far."""
        return sum(f._cache_size() for f in (self.update, self.add, self.finish, self.zero))

    def step(
        self, state: TrainState, frozen: Params, batches: Callable[[], Any] | list
    ) -> tuple[TrainState, Metrics]:
        """A step of one or more micro-batches (an iterable of batches on the devices)."""
        partial = self.zero()
        for batch in batches:
            partial = self.add(partial, state, frozen, batch)
        return self.finish(state, partial)

    def gradients(self, state: TrainState, frozen: Params, batch: Batch | RowBatch) -> Partial:
        """Loss sums of a micro-batch and their gradients; traced."""
        config = self.run.config

        def objective(params: Params) -> tuple[Array, Sums]:
            sums = loss_sums(
                self.run.merge(params, frozen),
                batch,
                masked=self._masked(state),
                mesh=self.run.mesh,
                chunk=config.loss.chunk,
                z_loss=config.loss.z_loss,
                label_smoothing=config.loss.label_smoothing,
            )
            return sums.loss, sums

        (_, sums), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
        return Partial(gradient, sums)

    def _masked(self, state: TrainState) -> Any:
        """Whether the policy is in force: drawn once per optimiser step, from the step's own key."""
        tdam = self.run.config.tdam
        if tdam.policy == "off" or tdam.mask_ratio == 1:
            return True
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        return jax.random.uniform(key) < tdam.mask_ratio

    def _zero(self) -> Partial:
        shapes = self.run.part(frozen=False)
        return Partial({n: jnp.zeros(s.shape, s.dtype) for n, s in shapes.items()}, Sums.zero())

    def _add(self, partial: Partial, state: TrainState, frozen: Params, batch: Any) -> Partial:
        return jax.tree.map(jnp.add, partial, self.gradients(state, frozen, batch))

    def _update(self, state: TrainState, frozen: Params, batch: Any) -> tuple[TrainState, Metrics]:
        return self._finish(state, self.gradients(state, frozen, batch))

    def _finish(self, state: TrainState, partial: Partial) -> tuple[TrainState, Metrics]:
        run, sums = self.run, partial.sums
        total = jnp.maximum(sums.weight, jnp.float32(1e-9))
        step = advance(run, state, partial.gradient, sums.loss, total)
        metrics = Metrics(
            loss=sums.loss / total,
            entropy=sums.entropy / total,
            accuracy=sums.hits / total,
            weight=sums.weight,
            gradient_norm=step.norm,
            masked=jnp.asarray(run.config.tdam.policy != "off") & self._masked(state),
            fault=step.fault,
        )
        return step.state, metrics


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Advance:
    """What an optimiser step made.

    Attributes:
      state: after the step.
      norm: of the gradient, before clipping.
      fault: 0, or a key of `FAULTS`; then only the step's number changed, and after a spike the mean of the norms.
    """

    state: TrainState
    norm: Float[Array, ""]
    fault: Int[Array, ""]


def advance(
    run: Trainable,
    state: TrainState,
    gradient: Params,
    loss: Float[Array, ""],
    total: Float[Array, ""],
) -> Advance:
    """One optimiser step with the gradient of a sum over `total`; traced.

    Args:
      run: gives the optimiser and the limit of a spike.
      state: before the step.
      gradient: of the summed loss.
      loss: the sum; a step whose loss or gradient is not finite changes nothing.
      total: what the sum is divided by.
    """
    gradient = jax.tree.map(lambda g: g / total.astype(g.dtype), gradient)
    norm = optax.tree.norm(gradient)
    updates, optimizer = run.optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    fault = jnp.where(jnp.isfinite(norm) & jnp.isfinite(loss), OK, NOT_FINITE)
    seen = norm
    if run.config.spike_factor:
        known = (state.step >= SPIKE_AFTER) & (state.norm > 0)
        limit = run.config.spike_factor * state.norm
        fault = jnp.where((fault == OK) & known & (norm > limit), SPIKE, fault)
        # A spike counts as much as one that just is none: norms that have risen for good are taken after a while.
        seen = jnp.where(known, jnp.minimum(norm, limit), norm)
    mean = jnp.where(state.norm > 0, NORM_DECAY * state.norm + (1 - NORM_DECAY) * seen, norm)
    keep = functools.partial(jnp.where, fault == OK)
    new = TrainState(
        step=state.step + 1,
        key=state.key,
        params=jax.tree.map(keep, params, state.params),
        optimizer=jax.tree.map(keep, optimizer, state.optimizer),
        norm=jnp.where(fault == NOT_FINITE, state.norm, mean.astype(jnp.float32)),
    )
    return Advance(new, norm.astype(jnp.float32), fault.astype(jnp.int32))
