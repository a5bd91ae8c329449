"""The policy's update: log-probabilities of tree rows, gradients, accumulation, the optimiser step. All that an update compiles."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from vo3.models.qwen2_5_vl.model import Qwen2_5_VL
from vo3.train import sharding
from vo3.train.config import ROW_AXES
from vo3.train.group_rows import PolicyBatch
from vo3.train.logprobs import TokenScores, sharded_token_scores
from vo3.train.policy_loss import PolicyLoss, PolicySums, policy_sums
from vo3.train.state import Params, Trainable, TrainState
from vo3.train.step import advance, embed, stripes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PolicyPartial:
    """What micro-batches of an update have added up to.

    Attributes:
      gradient: of the summed loss, by path.
      sums: of the loss and its figures.
    """

    gradient: Params
    sums: PolicySums


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PolicyMetrics:
    """Of one update.

    Attributes:
      sums: of the loss and its figures.
      gradient_norm: before clipping.
      fault: 0, or a key of `vo3.train.step.FAULTS`; then the update changed nothing but its number.
    """

    sums: PolicySums
    gradient_norm: Float[Array, ""]
    fault: Array


def scores_of(
    model: Qwen2_5_VL,
    batch: PolicyBatch,
    *,
    mesh: Mesh | None = None,
    chunk: int = 512,
    temperature: float = 1.0,
) -> TokenScores:
    """Log-probabilities and entropies of the scored tokens.

    Args:
      model: to run.
      batch: rows of trees.
      mesh: where activations are pinned; its context axis splits rows too.
      chunk: tokens whose logits are held at once.
      temperature: of sampling.
    """
    rows, at = batch.rows, batch.scored.at
    seen, context = rows.visibility, mesh.shape["context"] if mesh is not None else 1
    if context > 1:
        # Runs of tokens are dealt out to the devices; the places of the scored ones move along.
        order = stripes(rows.ids.shape[1], context)
        deal = lambda x: x.at[..., order].get(mode="promise_in_bounds")
        moved = {name: deal(getattr(rows, name)) for name in ("ids", "positions", "feature_index")}
        rows, seen = dataclasses.replace(rows, **moved), jax.tree.map(deal, seen)
        at = jnp.asarray(np.argsort(order).astype(np.int32)).at[at].get(mode="promise_in_bounds")
    hidden, _ = model.decoder(
        embed(model, rows, mesh=mesh), rows.positions.transpose(1, 0, 2), seen
    )
    hidden = sharding.constrain(hidden, mesh)
    picked = jnp.take_along_axis(hidden, at[..., None], axis=1, mode="promise_in_bounds")
    return sharded_token_scores(
        picked,
        batch.scored.targets,
        model,
        mesh=mesh,
        axes=ROW_AXES,
        chunk=chunk,
        temperature=temperature,
    )


class PolicyPrograms:
    """The jitted programs of the update.

    Attributes:
      score: (params, frozen, batch) -> log-probabilities of the scored tokens.
      add: (partial, state, frozen, batch, reference) -> partial: one micro-batch; `reference` are the reference model's
        trained parameters, None without one.
      finish: (state, partial) -> (state, metrics).
      zero: () -> partial.

    `finish` is given the state for good, `add` the partial sums. One program per shape of a batch: `compiled()` counts them.
    """

    def __init__(self, run: Trainable, policy: PolicyLoss, *, temperature: float = 1.0):
        self.run, self.policy, self.temperature = run, policy, temperature
        where = lambda tree: jax.tree.map(lambda x: x.sharding, tree)
        whole = sharding.replicated(run.mesh)
        state = where(run.state)
        shapes = jax.eval_shape(self._zero)
        partial = sharding.like_params(
            shapes, run.shapes, lambda name, _: run.shapes[name].sharding, run.mesh
        )
        metrics = PolicyMetrics(jax.tree.map(lambda _: whole, shapes.sums), whole, whole)
        self.score = jax.jit(self._score)
        self.add = jax.jit(self._add, donate_argnums=0, out_shardings=partial)
        self.finish = jax.jit(self._finish, donate_argnums=0, out_shardings=(state, metrics))
        self.zero = jax.jit(self._zero, out_shardings=partial)

    def compiled(self) -> int:
        """Programs compiled so far."""
        return sum(f._cache_size() for f in (self.score, self.add, self.finish, self.zero))

    def _scores(self, params: Params, frozen: Params, batch: PolicyBatch) -> TokenScores:
        return scores_of(
            self.run.merge(params, frozen),
            batch,
            mesh=self.run.mesh,
            chunk=self.run.config.loss.chunk,
            temperature=self.temperature,
        )

    def _score(self, params: Params, frozen: Params, batch: PolicyBatch) -> Array:
        return self._scores(params, frozen, batch).logprob

    def gradients(
        self, state: TrainState, frozen: Params, batch: PolicyBatch, reference: Params | None = None
    ) -> PolicyPartial:
        """Sums of a micro-batch and their gradient; traced."""
        known = None
        if reference is not None:
            known = jax.lax.stop_gradient(self._score(reference, frozen, batch))

        def objective(params: Params) -> tuple[Array, PolicySums]:
            scores = self._scores(params, frozen, batch)
            sums = policy_sums(
                scores.logprob, scores.entropy, batch.scored, self.policy, reference=known
            )
            return sums.loss, sums

        (_, sums), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
        return PolicyPartial(gradient, sums)

    def _zero(self) -> PolicyPartial:
        shapes = self.run.part(frozen=False)
        gradient = {n: jnp.zeros(s.shape, s.dtype) for n, s in shapes.items()}
        return PolicyPartial(gradient, PolicySums.zero())

    def _add(
        self,
        partial: PolicyPartial,
        state: TrainState,
        frozen: Params,
        batch: PolicyBatch,
        reference: Params | None,
    ) -> PolicyPartial:
        new = self.gradients(state, frozen, batch, reference)
        gradient = jax.tree.map(jnp.add, partial.gradient, new.gradient)
        return PolicyPartial(gradient, partial.sums + new.sums)

    def _finish(
        self, state: TrainState, partial: PolicyPartial
    ) -> tuple[TrainState, PolicyMetrics]:
        total = jnp.maximum(partial.sums.total, jnp.float32(1e-9))
        step = advance(self.run, state, partial.gradient, partial.sums.loss, total)
        return step.state, PolicyMetrics(partial.sums, step.norm, step.fault)
