"""Continuous-time Markov chains on tokens, simulated exactly for a frozen denoiser.

The generator is a denoiser, `[N, L, V] = generator(x, t)` of probabilities, normalised here in float32 or
wider, so that what is drawn is what the path weight knows. The backward kernel is the path's own p_{t|r},
so path weights are exact for any denoiser and any number of steps.

Source: the step is the posterior of D3PM (Austin et al., arXiv 2107.03006) mixed over the denoiser.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from egm import checks, random
from egm.paths.masked import MaskedPath
from egm.typing import Array, Key, ModelFn, TokenPath

__all__ = ["AnyOrderProcess", "JumpProcess", "check_pair", "denoiser_probabilities", "prepare"]


@dataclasses.dataclass(frozen=True)
class JumpProcess:
    """The chain of a path on tokens on a grid of times: p(x_r | x_t, x_1) over the denoiser, site by site.

    Masked: a site is revealed in a step with probability (kappa_r - kappa_t)/(1 - kappa_t), the exact
    probability of a chain whose denoiser stays as it is at t; its token is drawn from the denoiser. Uniform:
    every site may change in every step, so that what was drawn early is mended later.

    Attributes:
      path: the masked or the uniform path, or any `egm.typing.TokenPath`.

    Examples:
      >>> path = egm.paths.MaskedPath(vocab_size=3)
      >>> process = egm.processes.JumpProcess(path)
      >>> denoiser = lambda x, t: jnp.full((*x.shape, 3), 1 / 3)
      >>> x_0 = path.sample_prior(jax.random.key(0), (8, 4))  # masks
      >>> trajectory = egm.simulate(jax.random.key(1), process, denoiser, x_0, process.times(10))
      >>> bool(path.masked(trajectory.x_1).any())
      False
    """

    path: TokenPath

    def __post_init__(self):
        checks.instance(self.path, TokenPath, "path")

    def times(self, num_steps: int) -> Array:
        """[num_steps + 1] times from 0 to 1, from the path."""
        return self.path.times(num_steps)

    def step(self, key: Key, x_t: Array, generator: ModelFn, t: Array, r: Array) -> tuple[Array, Array]:
        """One step forward.

        Args:
          key: a typed key, or [N] of them.
          x_t: [N, L] tokens, and masks on the masked path.
          generator: the denoiser.
          t: scalar or [N], before r.
          r: scalar or [N].

        Returns:
          (x_r [N, L], log_ratio [N] = log p_{t|r}(x_t | x_r) - log forward(x_r | x_t)).
        """
        x_t, t, r, keys = prepare(self.path, key, x_t, t, r, "x_t")
        p = denoiser_probabilities(self.path, generator, x_t, t)
        x_r = random.per_example(self.path.jump, keys, x_t, p, t, r)
        return x_r, self.path.log_jump_ratio(x_t, x_r, p, t, r)

    def reverse_step(self, key: Key, x_r: Array, generator: ModelFn, t: Array, r: Array) -> Array:
        """x_t [N, L] ~ p_{t|r}(. | x_r); the generator is not needed."""
        del generator
        x_r, t, r, keys = prepare(self.path, key, x_r, t, r, "x_r")
        return random.per_example(self.path.noise, keys, x_r, r, t)

    def log_ratio(self, x_t: Array, x_r: Array, generator: ModelFn, t: Array, r: Array) -> Array:
        """[N] log backward - log forward of a given pair, as in `step`."""
        x_t, x_r, t, r = check_pair(self.path, x_t, x_r, t, r)
        p = denoiser_probabilities(self.path, generator, x_t, t)
        return self.path.log_jump_ratio(x_t, x_r, p, t, r)


@dataclasses.dataclass(frozen=True)
class AnyOrderProcess:
    """Any-order unmasking: one masked site a step, uniformly chosen; the chain without its time grid.

    Forward reveals a random site and backward hides a random one; over a whole trajectory the
    probabilities of the order cancel (1/L! both ways), so log_ratio is -log p of the revealed token.
    A generator with a method `at_sites(x, t, sites) -> [N, V]` is asked for the chosen sites only.

    Attributes:
      path: the masked path.

    Examples:
      >>> path = egm.paths.MaskedPath(vocab_size=3)
      >>> process = egm.processes.AnyOrderProcess(path)
      >>> denoiser = lambda x, t: jnp.full((*x.shape, 3), 1 / 3)
      >>> x_0, times = path.sample_prior(jax.random.key(0), (8, 4)), process.times(4)  # a step a site
      >>> trajectory = egm.simulate(jax.random.key(1), process, denoiser, x_0, times)
      >>> print(np.asarray(trajectory.log_ratio[:2]).round(3))  # -log p of what was revealed: 4 log 3
      [4.394 4.394]
    """

    path: MaskedPath

    def __post_init__(self):
        checks.instance(self.path, MaskedPath, "path")

    def times(self, num_steps: int) -> Array:
        """[num_steps + 1] times; a whole trajectory needs at least as many steps as there are sites."""
        return self.path.times(num_steps)

    def check_steps(self, num_steps: int, event_shape: tuple[int, ...]) -> None:
        """Raises ValueError where there are fewer steps than sites: masks would be left at the end."""
        if num_steps < event_shape[-1]:
            raise ValueError(
                f"num_steps must be at least the {event_shape[-1]} sites, as any-order unmasking reveals one "
                f"a step, got {num_steps} (to go on from states that show some, give times that start later)"
            )

    def step(self, key: Key, x_t: Array, generator: ModelFn, t: Array, r: Array) -> tuple[Array, Array]:
        """Reveal one uniformly chosen masked site; args and result as for `JumpProcess.step`.

        A state without masks stays as it is, with log_ratio 0.
        """
        x_t, t, r, keys = prepare(self.path, key, x_t, t, r, "x_t")
        hidden = self.path.masked(x_t)
        k_site, k_token = random.split(keys)
        site = random.per_example(random.categorical, k_site, hidden)
        p = self._at_sites(generator, x_t, t, site)
        token = random.per_example(random.categorical, k_token, p)
        done = ~jnp.any(hidden, axis=-1)
        here = (jnp.arange(x_t.shape[-1])[None] == site[:, None]) & ~done[:, None]
        x_r = jnp.where(here, token[:, None], x_t)
        return x_r, jnp.where(done, 0.0, -_log(_pick(p, token)))

    def reverse_step(self, key: Key, x_r: Array, generator: ModelFn, t: Array, r: Array) -> Array:
        """x_t [N, L]: hide one uniformly chosen visible site; the generator is not needed."""
        del generator
        x_r, t, r, keys = prepare(self.path, key, x_r, t, r, "x_r")
        visible = ~self.path.masked(x_r)
        site = random.per_example(random.categorical, keys, visible)
        here = (jnp.arange(x_r.shape[-1])[None] == site[:, None]) & visible
        return jnp.where(here, self.path.mask_token, x_r)

    def log_ratio(self, x_t: Array, x_r: Array, generator: ModelFn, t: Array, r: Array) -> Array:
        """[N] log backward - log forward of a given pair.

        0 where x_t = x_r (a state without masks stays), -inf where no other step joins them.
        """
        x_t, x_r, t, r = check_pair(self.path, x_t, x_r, t, r)
        changed = x_t != x_r
        count = jnp.sum(changed, axis=-1)
        site = jnp.argmax(changed, axis=-1)
        log_p = _log(self._at_sites(generator, x_t, t, site))
        token = _pick(x_r, site)
        legal = (count == 1) & self.path.masked(_pick(x_t, site)) & ~self.path.masked(token)
        log_p = _pick(log_p, jnp.where(legal, token, 0))
        return jnp.where(legal, -log_p, jnp.where(count == 0, 0.0, -jnp.inf))

    def _at_sites(self, generator: ModelFn, x: Array, t: Array, site: Array) -> Array:
        at_sites = getattr(generator, "at_sites", None)
        if at_sites is not None:
            p = at_sites(x, t, site)
            return _normalised(checks.model_output(p, "generator", (x.shape[0], self.path.vocab_size)))
        p = denoiser_probabilities(self.path, generator, x, t)
        return jnp.take_along_axis(p, site[:, None, None], axis=1)[:, 0]


def denoiser_probabilities(path: TokenPath, generator: ModelFn, x: Array, t: Array) -> Array:
    """`generator(x, t)`, checked to be [N, L, V], with sum 1 over V (zeros where no entry is positive)."""
    out = checks.function(generator, "generator")(x, t)
    return _normalised(checks.model_output(out, "generator", (*x.shape, path.vocab_size)))


def _normalised(p: Array) -> Array:
    # Probabilities rounded to bfloat16 miss a sum of 1 by up to several percent.
    p = jnp.where(p > 0, p, 0.0)
    total = jnp.sum(p, axis=-1, keepdims=True)
    return p / jnp.where(total > 0, total, 1.0)


def check_pair(path: TokenPath, x_t: Array, x_r: Array, t: Array, r: Array) -> tuple[Array, ...]:
    """(x_t, x_r, both int32, t [N], r [N]), checked."""
    batch = path.batch_shape(x_t, "x_t")
    if len(batch) != 1:
        raise ValueError(f"x_t must have shape [N, L], got {x_t.shape}")
    path.batch_shape(x_r, "x_r")
    if x_r.shape != x_t.shape:
        raise ValueError(f"x_r must have the shape of x_t, {x_t.shape}, got {x_r.shape}")
    tokens = (checks.tokens(x, path.vocab_size) for x in (x_t, x_r))
    return *tokens, *checks.time_pair(t, r, batch)


def prepare(path: TokenPath, key: Key, x: Array, t: Array, r: Array, name: str) -> tuple[Array, ...]:
    """(x int32, t [N], r [N], keys [N]), checked."""
    batch = path.batch_shape(x, name)
    if len(batch) != 1:
        raise ValueError(f"{name} must have shape [N, L], got {x.shape}")
    keys = random.derive(random.example_keys(key, batch[0]), "jump")
    return checks.tokens(x, path.vocab_size), *checks.time_pair(t, r, batch), keys


def _pick(values: Array, index: Array) -> Array:
    return jnp.take_along_axis(values, index[..., None], axis=-1)[..., 0]


def _log(p: Array) -> Array:
    return jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1.0)), -jnp.inf)
