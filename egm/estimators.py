"""`estimate`: the marginal generator and the log-marginal by SNIS, naive or bootstrapped.

With x_r^k ~ q_{r|t}(. | x_t) and w_k proportional to exp phi_r(x_r^k):
  F_t(x_t) = sum_k w_k F_{t|r}^{x_r^k}(x_t),    phi_t(x_t) = log Z_{r|t}(x_t) + log mean_k exp phi_r(x_r^k).
Naive is r = 1 with phi_1 = -E; bootstrapping is any r < 1. There is nothing else to choose.

Source: EGM (arXiv 2505.19646), the SNIS and bootstrapped estimators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from egm import checks, collectives, importance, random
from egm.typing import Array, Draw, Estimate, Key, ModelFn, Path, PreparedProposal, Proposal, State, Time

__all__ = ["BLOCK", "check_chunk_size", "estimate"]

BLOCK = 128
"""Samples drawn from one key: `num_samples` is cut into blocks of this size, whatever holds them."""


def estimate(
    key: Key,
    path: Path,
    log_density: ModelFn,
    x_t: State,
    t: Time,
    r: Time,
    *,
    num_samples: int,
    chunk_size: int | None = None,
    axis_name: str | None = None,
    proposal: Proposal | PreparedProposal | None = None,
    values: Callable[[State, Array], Any] | None = None,
) -> Estimate:
    """SNIS estimate of the marginal generator and the log-marginal at (x_t, t).

    The generator is biased by O(1/K), the log-marginal low by O(1/K); exp(log_marginal) is unbiased.
    Samples depend on the key, the example's index and the sample's index alone: any chunk size and any
    number of devices give the same estimate, up to rounding.

    Args:
      key: a typed key, or [B] keys (one an example).
      path: the probability path.
      log_density: phi_r, `[N] = log_density(x_r, r)` with x_r flattened to [N, *event] and r to [N];
        `bootstrap.terminal(energy)` for r = 1, `bootstrap.boundary(energy, g, path)` for any r.
      x_t: state with one batch axis B.
      t: scalar or [B], below r.
      r: scalar or [B], at most 1.
      num_samples: K, the number of samples an example, over all devices.
      chunk_size: most samples an example that are held at once on a device, a multiple of 128; None for
        all of them.
      axis_name: mapped axis over which the K samples are split; x_t, t, r and key are the same on it.
      proposal: what draws the samples, with its weight; None for the path's own q_{r|t}. See
        `egm.proposals`.
      values: what is averaged in place of the conditional generators, [K, B, ...] of x_r [K, B, ...] and
        r [B]; it becomes the `generator` of the result.

    Returns:
      Estimate. Log-densities of NaN or +inf have weight zero, are counted, and stay in K. Examples with
      no sample of positive weight, at states of probability zero (a visible token at t = 0), or with
      traced inputs that are out of range, are zeros with valid = False.

    Raises:
      ValueError: a shape, size or concrete value is out of range (t >= r, tokens, chunk_size).
      TypeError: a dtype is wrong.

    Source: EGM (arXiv 2505.19646); design of the split over K and devices: this library.

    Examples:
      >>> path, energy = egm.paths.MaskedPath(vocab_size=2), egm.energies.Ising(3, inverse_temperature=0.4)
      >>> x_t = path.sample(jax.random.key(0), energy.sample(jax.random.key(1), 16), 0.3)  # 2 is the mask
      >>> phi_1 = egm.bootstrap.terminal(energy)
      >>> estimate = egm.estimate(jax.random.key(2), path, phi_1, x_t, 0.3, 1.0, num_samples=100)
      >>> estimate.generator.shape, estimate.log_marginal.shape, bool(estimate.valid.all())
      ((16, 9, 2), (16,), True)
    """
    batch = _check_parts(path, log_density, proposal, values, x_t, chunk_size)
    num_samples = checks.positive_int(num_samples, "num_samples")
    concrete_r = checks.concrete(r)
    naive = concrete_r is not None and bool((concrete_r == 1).all())
    t, r = checks.time_pair(t, r, batch)
    keys = random.derive(random.example_keys(key, batch[0]), "estimate")
    x_t = jax.tree.map(checks.wide, x_t)
    in_range = (t >= 0) & (t < r) & (r <= 1) & path.contains(x_t)
    safe_t = jnp.where(in_range, jnp.maximum(t, path.t_min), path.t_min)
    safe_r = jnp.where(in_range, r, 1.0)

    split = _split(num_samples, chunk_size, axis_name)
    context = None
    if isinstance(proposal, PreparedProposal):
        context = jax.lax.stop_gradient(proposal.prepare(path, x_t, safe_t, safe_r))
    draw = _drawing(keys, path, proposal, context, x_t, safe_t, safe_r, num_samples, naive)
    if values is None:
        values = lambda x_r, r_: path.conditional_generator(x_t, safe_t, x_r, r_)

    def chunk(index: Array) -> importance.Running:
        start = split.first_block + index * split.blocks_a_chunk
        drawn = jax.vmap(draw)(start + jnp.arange(split.blocks_a_chunk))
        x_r = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[: split.size], drawn)
        flat = jax.tree.map(collectives.merge, x_r)
        flat_r = collectives.merge(jnp.broadcast_to(safe_r, (split.size, *batch)))
        log_w = checks.model_output(log_density(flat, flat_r), "log_density", flat_r.shape)
        log_w = collectives.unmerge(log_w, split.size)
        if isinstance(proposal, PreparedProposal):
            log_w = log_w + proposal.log_weight(path, x_t, safe_t, x_r, safe_r, context)
        elif proposal is not None:
            log_w = log_w + proposal.log_weight(path, x_t, safe_t, x_r, safe_r)
        averaged = _checked_values(values(x_r, safe_r), log_w.shape)
        return importance.running_chunk(log_w, averaged, counted=split.counted(start))

    record = importance.running_collect(_accumulated(chunk, split.num_chunks), axis_name)
    log_z = path.log_normalizer(x_t, safe_t, safe_r)
    return _finished(record, num_samples, in_range, log_z)


def check_chunk_size(chunk_size: int | None) -> None:
    """Raises unless it is None or a positive multiple of a block."""
    if chunk_size is None:
        return
    if checks.positive_int(chunk_size, "chunk_size") % BLOCK:
        raise ValueError(f"chunk_size must be a multiple of {BLOCK}, got {chunk_size}")


def _check_parts(
    path: Path, log_density: ModelFn, proposal: Any, values: Any, x_t: State, chunk_size: int | None
) -> tuple[int, ...]:
    """The batch shape (B,) of x_t."""
    checks.instance(path, Path, "path")
    checks.function(log_density, "log_density")
    if proposal is not None:
        checks.instance(proposal, Proposal, "proposal")
    if values is not None:
        checks.function(values, "values")
    batch = path.batch_shape(x_t, "x_t")
    if len(batch) != 1:
        raise ValueError(f"x_t must have one batch axis, got batch shape {batch}")
    checks.not_empty(x_t, "x_t")
    check_chunk_size(chunk_size)
    return batch


def _checked_values(found: Any, shape: tuple[int, ...]) -> Any:
    """`found`; raises where a leaf is no array of [K, B, ...], `shape` being (K, B)."""
    for leaf in jax.tree.leaves(found):
        if jnp.shape(leaf)[:2] != shape:
            wanted = f"[{shape[0]}, {shape[1]}, ...]"
            raise ValueError(f"values must return arrays of shape {wanted}, got shape {jnp.shape(leaf)}")
    return found


class _Split(NamedTuple):
    """How K samples are cut into blocks, chunks of blocks, and devices."""

    size: int  # of a chunk, in samples
    blocks_a_chunk: int
    num_chunks: int
    first_block: Array | int  # of this device
    end: Array | None  # one past this device's last sample; None where there is no surplus to mask

    def counted(self, start: Array) -> Array | None:
        """[size, 1] which samples of the chunk that begins at block `start` are among the K."""
        if self.end is None:
            return None
        return (start * BLOCK + jnp.arange(self.size) < self.end)[:, None]


def _split(num_samples: int, chunk_size: int | None, axis_name: str | None) -> _Split:
    shards = collectives.axis_size(axis_name)
    blocks = -(-num_samples // BLOCK)
    blocks_here = -(-blocks // shards)
    blocks_a_chunk = blocks_here if chunk_size is None else min(chunk_size // BLOCK, blocks_here)
    num_chunks = -(-blocks_here // blocks_a_chunk)
    first_block = collectives.axis_index(axis_name) * blocks_here
    # Only a whole estimate in one piece can leave its surplus samples out instead of masking them.
    if shards == 1 and num_chunks == 1:
        return _Split(num_samples, blocks_a_chunk, num_chunks, first_block, None)
    end = jnp.minimum((first_block + blocks_here) * BLOCK, num_samples)
    return _Split(blocks_a_chunk * BLOCK, blocks_a_chunk, num_chunks, first_block, end)


def _drawing(
    keys: Array,
    path: Path,
    proposal: Proposal | PreparedProposal | None,
    context: Any,
    x_t: State,
    t: Array,
    r: Array,
    num_samples: int,
    naive: bool,
) -> Callable[[Array], State]:
    """The proposals of one block, [BLOCK, B, ...] of its index."""

    def draw(block: Array) -> State:
        def one(example_key, context_, x, t_, r_):
            here = jax.random.fold_in(example_key, block)
            if proposal is None:
                return path.propose(here, x, t_, 1.0 if naive else r_, BLOCK)
            shared = random.derive(example_key, "proposal")
            return proposal.propose(Draw(here, shared, BLOCK, num_samples, context_), path, x, t_, r_)

        return jax.vmap(one, out_axes=1)(keys, context, x_t, t, r)

    return draw


def _accumulated(chunk: Callable[[Array], importance.Running], num_chunks: int) -> importance.Running:
    if num_chunks == 1:
        return chunk(jnp.zeros((), jnp.int32))
    # `chunk(0)` is only traced here, for the shapes and mapped axes of its result.
    like = jax.eval_shape(chunk, jnp.zeros((), jnp.int32))
    start = collectives.varying_like(importance.running_empty(like), like)
    merge = lambda carry, i: (importance.running_merge(carry, chunk(i)), None)
    return jax.lax.scan(merge, start, jnp.arange(num_chunks))[0]


def _finished(record: importance.Running, num_samples: int, in_range: Array, log_z: Array) -> Estimate:
    generator, log_mean, ess = importance.running_finish(record, num_samples)
    valid = in_range & jnp.isfinite(log_mean) & jnp.isfinite(log_z)
    return Estimate(
        generator=jax.tree.map(lambda g: _where(valid, g), generator),
        log_marginal=jnp.where(valid, log_mean + log_z, 0.0),
        ess=_where(valid, ess),
        valid=valid,
        num_nonfinite=record.num_nonfinite,
    )


def _where(valid: Array, x: Array) -> Array:
    return jnp.where(valid.reshape(valid.shape + (1,) * (x.ndim - 1)), x, jnp.zeros((), x.dtype))
