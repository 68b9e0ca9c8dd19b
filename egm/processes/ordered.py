"""Unmasking in a given order: any number of sites a step, with exact path weights.

`AnyOrderProcess` is the case of one uniformly chosen site a step.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from egm import checks, random
from egm.paths.masked import MaskedPath
from egm.processes import jump
from egm.typing import Array, Key, ModelFn, Order

__all__ = ["OrderedProcess"]


@dataclasses.dataclass(frozen=True)
class OrderedProcess:
    """Reveal the sites that an order says next, their tokens drawn from the denoiser at once.

    Given the sites, forward is the product of the denoiser's probabilities and backward hides what the order
    says; the probabilities of the order cancel over a whole trajectory (`egm.processes.orders`), so log_ratio
    is minus the sum of log p of the revealed tokens.

    Attributes:
      path: the masked path.
      order: of `egm.processes.orders`, or a user's own `egm.typing.Order`.

    Raises:
      TypeError: the path is not masked, or the order none.

    Examples:
      >>> path = egm.paths.MaskedPath(vocab_size=2)
      >>> order = egm.processes.orders.random_sites(16, sizes=(4, 4, 8))  # three steps for 16 sites
      >>> process = egm.processes.OrderedProcess(path, order)
      >>> times = process.times(order.num_steps)
      >>> denoiser = lambda x, t: jnp.full((*x.shape, 2), 0.5)
      >>> x_0 = path.sample_prior(jax.random.key(0), (8, 16))
      >>> trajectory = egm.simulate(jax.random.key(1), process, denoiser, x_0, times)
      >>> print(np.asarray(trajectory.log_ratio[:2]).round(3))  # 16 log 2
      [11.09 11.09]
    """

    path: MaskedPath
    order: Order

    def __post_init__(self):
        checks.instance(self.path, MaskedPath, "path")
        checks.instance(self.order, Order, "order")

    def times(self, num_steps: int) -> Array:
        """[num_steps + 1] times; a whole trajectory needs at least as many steps as the order has."""
        return self.path.times(num_steps)

    def check_steps(self, num_steps: int, event_shape: tuple[int, ...]) -> None:
        """Raises ValueError where the sites are not the order's, or the steps fewer than it has."""
        if event_shape[-1] != self.order.num_sites:
            raise ValueError(f"x_t has {event_shape[-1]} sites, this order has {self.order.num_sites}")
        if num_steps < self.order.num_steps:
            raise ValueError(
                f"num_steps must be at least the {self.order.num_steps} steps of the order, got {num_steps} "
                "(to go on from states that show some sites, give times that start later)"
            )

    def step(self, key: Key, x_t: Array, generator: ModelFn, t: Array, r: Array) -> tuple[Array, Array]:
        """Reveal the sites that come next; args and result as for `JumpProcess.step`.

        A state without masks stays as it is, with log_ratio 0.
        """
        x_t, t, r, keys = self._prepared(key, x_t, t, r, "x_t")
        k_sites, k_token = random.split(keys)
        visible = ~self.path.masked(x_t)
        sites = random.per_example(self.order.reveal, k_sites, visible)
        p = jump.denoiser_probabilities(self.path, generator, x_t, t)
        token = random.per_example(random.categorical, k_token, p)
        return jnp.where(sites, token, x_t), -_log_probability(p, token, sites)

    def reverse_step(self, key: Key, x_r: Array, generator: ModelFn, t: Array, r: Array) -> Array:
        """x_t [N, L]: hide the sites that a step to x_r has revealed; the generator is not needed."""
        del generator
        x_r, t, r, keys = self._prepared(key, x_r, t, r, "x_r")
        sites = random.per_example(self.order.hide, keys, ~self.path.masked(x_r))
        return jnp.where(sites, self.path.mask_token, x_r)

    def log_ratio(self, x_t: Array, x_r: Array, generator: ModelFn, t: Array, r: Array) -> Array:
        """[N] log backward - log forward of a given pair; -inf where no step of the order joins them."""
        x_t, x_r, t, r = jump.check_pair(self.path, x_t, x_r, t, r)
        self._check_sites(x_t, "x_t")
        before, after = ~self.path.masked(x_t), ~self.path.masked(x_r)
        p = jump.denoiser_probabilities(self.path, generator, x_t, t)
        legal = random.per_example(self.order.joins, before, after)
        legal = legal & jnp.all((x_t == x_r) | ~before, axis=-1)
        total = _log_probability(p, jnp.where(after, x_r, 0), after & ~before)
        return jnp.where(legal, -total, -jnp.inf)

    def _prepared(self, key: Key, x: Array, t: Array, r: Array, name: str) -> tuple[Array, ...]:
        prepared = jump.prepare(self.path, key, x, t, r, name)
        self._check_sites(x, name)
        return prepared

    def _check_sites(self, x: Array, name: str) -> None:
        if x.shape[-1] != self.order.num_sites:
            raise ValueError(f"{name} has {x.shape[-1]} sites, this order has {self.order.num_sites}")


def _log_probability(p: Array, token: Array, sites: Array) -> Array:
    """[N] sum over the sites of log p of their tokens."""
    chosen = jnp.take_along_axis(p, token[..., None], axis=-1)[..., 0]
    log_p = jnp.where(chosen > 0, jnp.log(jnp.where(chosen > 0, chosen, 1.0)), -jnp.inf)
    return jnp.sum(jnp.where(sites, log_p, 0.0), axis=-1)
