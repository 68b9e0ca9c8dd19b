"""Densities that can be drawn from and evaluated: where annealed importance sampling starts.

Shape letters: B examples, *event the axes of one state, D their product.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, collectives, random
from egm.checks import number
from egm.typing import Array, Key
from energymatch.likelihood import mixture_fit

__all__ = [
    "Frames",
    "GaussianPrior",
    "MixturePrior",
    "Prior",
    "fit_gaussian",
    "fit_mixture",
    "gaussian_prior",
    "mixture_prior",
    "widened",
]


@runtime_checkable
class Prior(Protocol):
    """A normalised density with exact samples."""

    def sample(self, key: Key, num: int) -> Array:
        """[num, *event] independent draws; `key` is one key or [num] keys, one a draw."""
        ...

    def log_density(self, x: Array) -> Array:
        """[B] normalised log-density of x [B, *event]."""
        ...


class GaussianPrior(NamedTuple):
    """A normal density over events of any rank: x = mean + A z, z standard normal.

    A pytree of arrays, so it may be an argument of a jitted function.

    Attributes:
      mean: [*event].
      scale: A, as standard deviations [*event] or as a lower-triangular matrix [D, D].
    """

    mean: Array
    scale: Array

    def sample(self, key: Key, num: int) -> Array:
        """[num, *event] draws; `key` is one key or [num] keys."""
        keys = random.derive(random.example_keys(key, num), "prior")
        normal = lambda k: jax.random.normal(k, self.mean.shape, self.mean.dtype)
        return self.mean[None] + self.stretch(random.per_example(normal, keys))

    def log_density(self, x: Array) -> Array:
        """[B] log N(x; mean, A A^T)."""
        z = self.unstretch(x - self.mean[None]).reshape(x.shape[0], -1)
        diagonal = self.scale if self._is_diagonal else jnp.diagonal(self.scale)
        log_volume = jnp.sum(jnp.log(diagonal)) + 0.5 * self.mean.size * math.log(2 * math.pi)
        return -0.5 * jnp.sum(z**2, axis=-1) - log_volume

    def stretch(self, z: Array) -> Array:
        """[B, *event] A z."""
        if self._is_diagonal:
            return self.scale[None] * z
        flat = z.reshape(z.shape[0], -1)
        # What lies above the diagonal is no part of A: not here, as not in `unstretch`.
        return jnp.matmul(flat, jnp.tril(self.scale).T, precision=jax.lax.Precision.HIGHEST).reshape(z.shape)

    def unstretch(self, x: Array) -> Array:
        """[B, *event] z with A z = x."""
        if self._is_diagonal:
            return x / self.scale[None]
        flat = x.reshape(x.shape[0], -1)
        return jax.scipy.linalg.solve_triangular(self.scale, flat.T, lower=True).T.reshape(x.shape)

    @property
    def _is_diagonal(self) -> bool:
        return self.scale.shape == self.mean.shape


class MixturePrior(NamedTuple):
    """A mixture of C normals over events of any rank: sum_c w_c N(mean_c, A_c A_c^T).

    A pytree of arrays, so it may be an argument of a jitted function; made by `fit_mixture` or
    `mixture_prior`.

    Attributes:
      log_weights: [C] log w_c, whose exponentials sum to 1.
      mean: [C, *event].
      scale: A_c, as standard deviations [C, *event] or as lower-triangular matrices [C, D, D].
      inverse: their inverses, in the same form: products serve accelerators better than solves.
    """

    log_weights: Array
    mean: Array
    scale: Array
    inverse: Array

    def sample(self, key: Key, num: int) -> Array:
        """[num, *event] draws; `key` is one key or [num] keys."""
        key_label, key_normal = random.split(random.example_keys(key, num))
        labels = random.per_example(lambda k: jax.random.categorical(k, self.log_weights), key_label)
        normal = lambda k: jax.random.normal(k, self.mean.shape[1:], self.mean.dtype)
        return self.frames(labels).event(random.per_example(normal, key_normal))

    def log_density(self, x: Array) -> Array:
        """[B] log sum_c w_c N(x; mean_c, A_c A_c^T)."""
        return jax.nn.logsumexp(self.log_joint(x), axis=1)

    def log_joint(self, x: Array) -> Array:
        """[B, C] log of w_c N(x; mean_c, A_c A_c^T); normalised, the responsibilities of the components."""
        return _log_joint(self, x)

    def frames(self, labels: Array) -> Frames:
        """The components of labels [B], one a state."""
        return Frames(self.mean[labels], self.scale[labels], self.inverse[labels])


# Compiled whole: on the host its operations take longer to compile one by one, for each number of components.
@jax.jit
def _log_joint(mixture: MixturePrior, x: Array) -> Array:
    centred = x[:, None] - mixture.mean[None]
    if mixture.scale.shape == mixture.mean.shape:
        z, diagonal = centred * mixture.inverse[None], mixture.scale
    else:
        centred = centred.reshape(*centred.shape[:2], -1)
        z = jnp.einsum("cij,bcj->bci", mixture.inverse, centred, precision=jax.lax.Precision.HIGHEST)
        diagonal = jnp.diagonal(mixture.scale, axis1=1, axis2=2)
    count, size = mixture.log_weights.size, math.prod(mixture.mean.shape[1:])
    log_volume = jnp.sum(jnp.log(diagonal).reshape(count, -1), axis=1)
    peaks = mixture.log_weights - log_volume - 0.5 * size * math.log(2 * math.pi)
    return peaks[None] - 0.5 * jnp.sum(z.reshape(*z.shape[:2], -1) ** 2, axis=2)


class Frames(NamedTuple):
    """Coordinates of one's own for each of B states: x = mean + A z.

    Attributes:
      mean: [B, *event].
      scale: A, [B, *event] standard deviations or [B, D, D] lower-triangular.
      inverse: of A, in the same form.
    """

    mean: Array
    scale: Array
    inverse: Array

    def event(self, z: Array) -> Array:
        """[B, *event] x of the coordinates z."""
        return self.mean + self._apply(self.scale, z)

    def coordinates(self, x: Array) -> Array:
        """[B, *event] z of the states x."""
        return self._apply(self.inverse, x - self.mean)

    def pull(self, gradient: Array) -> Array:
        """[B, *event] A^T g, the gradient in z of what has gradient g in x."""
        return self._apply(self.scale, gradient, transpose=True)

    def push(self, gradient: Array) -> Array:
        """[B, *event] the gradient in x of what has this gradient in z."""
        return self._apply(self.inverse, gradient, transpose=True)

    def _apply(self, matrix: Array, z: Array, transpose: bool = False) -> Array:
        if matrix.shape == self.mean.shape:
            return matrix * z
        form = "bji,bj->bi" if transpose else "bij,bj->bi"
        flat = z.reshape(z.shape[0], -1)
        return jnp.einsum(form, matrix, flat, precision=jax.lax.Precision.HIGHEST).reshape(z.shape)


def gaussian_prior(mean: Array, scale: Array | float) -> GaussianPrior:
    """A Gaussian prior from its mean and standard deviations or Cholesky factor.

    Args:
      mean: [*event].
      scale: a number, standard deviations [*event], or a lower-triangular A [D, D] with A A^T the
        covariance of the flattened event.

    A traced scale that is not as described gives NaN, so that its chains count as invalid.

    Raises:
      TypeError: not floating. ValueError: a shape does not fit, or a concrete scale is not finite, not
        positive on its diagonal or not zero above it (a covariance, an upper factor).
    """
    mean = checks.wide(checks.float_array(mean, "mean"))
    if mean.size == 0:
        raise ValueError(f"mean must have at least one element, got shape {mean.shape}")
    scale = checks.float_array(scale, "scale").astype(mean.dtype)
    size = mean.size
    if scale.shape == ():
        scale = jnp.broadcast_to(scale, mean.shape)
    if scale.shape not in (mean.shape, (size, size)):
        raise ValueError(
            f"scale must be a scalar or have shape {mean.shape} or {(size, size)}, got shape {scale.shape}"
        )
    return GaussianPrior(mean, _checked_scale(scale, diagonal=scale.shape == mean.shape))


def _checked_scale(scale: Array, diagonal: bool) -> Array:
    """Positive deviations or lower-triangular matrices [..., D, D]; raises, or NaN where they are traced."""
    known = checks.concrete(scale)
    numeric = jnp if known is None else np
    value = scale if known is None else known
    entries = value if diagonal else numeric.diagonal(value, axis1=-2, axis2=-1)
    upper = numeric.zeros_like(entries) if diagonal else numeric.triu(value, 1)
    if known is None:
        good = jnp.all(entries > 0) & jnp.all(upper == 0) & jnp.all(jnp.isfinite(scale))
        return jnp.where(good, scale, jnp.nan)
    if not np.all(np.isfinite(known)):
        raise ValueError(f"scale must be finite, got {known[~np.isfinite(known)].ravel()[0]}")
    if not np.all(entries > 0):
        raise ValueError(f"scale must be positive, got {entries.min()}")
    if np.any(upper != 0):
        raise ValueError(
            "scale must be lower-triangular, A with A A^T the covariance, got entries above the diagonal "
            f"up to {np.abs(upper).max():.3g}: give cholesky(C) of a covariance C, R.T of an R with R^T R = C"
        )
    return scale


def mixture_prior(weights: Array, mean: Array, scale: Array) -> MixturePrior:
    """A mixture of normals from its parts; `fit_mixture` finds them from data.

    Args:
      weights: [C] positive; they are divided by their sum.
      mean: [C, *event].
      scale: standard deviations [C, *event], or lower-triangular A_c [C, D, D] with A_c A_c^T the
        covariance of the flattened event.

    A traced scale that is not as described gives NaN, as in `gaussian_prior`.

    Raises:
      TypeError: not floating. ValueError: a shape does not fit, a concrete weight is not finite and
        positive, or a concrete scale is not finite, not positive on its diagonal or not zero above it.
    """
    mean = checks.float_array(mean, "mean", min_ndim=1)
    mean = mean.astype(jnp.promote_types(mean.dtype, jnp.float32))
    count, size = mean.shape[0], math.prod(mean.shape[1:])
    weights = number(weights, "weights", "finite and positive", (count,)).astype(mean.dtype)
    scale = checks.float_array(scale, "scale").astype(mean.dtype)
    if weights.shape != (count,) or count == 0:
        raise ValueError(f"weights must have shape [C] = ({count},) as mean has, got {weights.shape}")
    if scale.shape not in (mean.shape, (count, size, size)):
        raise ValueError(
            f"scale must have shape {mean.shape} or {(count, size, size)}, got shape {scale.shape}"
        )
    diagonal = scale.shape == mean.shape
    scale = _checked_scale(scale, diagonal)
    invert = lambda a: jax.scipy.linalg.solve_triangular(a, jnp.eye(size, dtype=a.dtype), lower=True)
    inverse = 1 / scale if diagonal else jax.vmap(invert)(scale)
    return MixturePrior(jnp.log(weights / jnp.sum(weights)), mean, scale, inverse)


def fit_gaussian(
    x: Array,
    *,
    full: bool | None = None,
    widen: float = 2.0,
    floor: float = 1e-3,
    axis_name: str | None = None,
) -> GaussianPrior:
    """The Gaussian with the mean and twice the width of data, a prior that covers all modes they have.

    Annealed importance sampling wants it wider than the model, whose tails it else finds too rarely. For
    a banana of width .2 (32 runs of 512 chains, 200 levels) a factor of 1 gave log Z a mean error of
    -.018 (a reported error near .03, mean square z 2.9 where 1.15 is calibrated), a factor of 2 a root
    mean square error of .037 (.054 before) and a mean square z of 1.25.

    Args:
      x: [B, *event].
      full: whether to fit the whole covariance; None for: where D <= 32 and B >= 10 D.
      widen: factor on the standard deviations; 1 for the data's own moments.
      floor: least standard deviation as a fraction of the largest one (a pixel that never changes).
      axis_name: mapped axis over which the data are split as well.

    Returns:
      GaussianPrior.

    Raises:
      TypeError: `x` is not floating. ValueError: it has fewer than 2 examples, or concrete ones that are
        not finite or all the same; or a number is not positive.

    Examples:
      >>> data = 3.0 + 0.5 * jax.random.normal(jax.random.key(0), (1000, 2))
      >>> prior = energymatch.likelihood.fit_gaussian(data)  # twice as wide as the data
      >>> spread = prior.sample(jax.random.key(1), 2000).std()
      >>> print(np.asarray(prior.mean).round(1), f"{spread:.1f}")
      [3. 3.] 1.0
    """
    x = checks.wide(checks.float_array(x, "x", min_ndim=1))
    if full is not None:
        checks.flag(full, "full")
    widen = checks.positive_float(widen, "widen")
    floor = checks.positive_float(floor, "floor")
    count = x.shape[0] * collectives.axis_size(axis_name)
    if count < 2:
        raise ValueError(f"x must have at least 2 examples, got shape {x.shape}")
    mean = collectives.pmean(jnp.mean(x, axis=0), axis_name)
    # Under jit data may be known where nothing else is: then nothing is said, as for traced ones.
    known = None if checks.concrete(mean) is None else checks.concrete(x)
    if known is not None and not np.isfinite(known).all():
        raise ValueError("x must be finite, got values that are not")
    if known is not None and axis_name is None and (known == known[:1]).all():
        raise ValueError(f"x must vary, got {count} examples that are all the same")
    centred = x - mean[None]
    size = mean.size
    if full is None:
        full = size <= 32 and count >= 10 * size
    if not full:
        deviation = jnp.sqrt(collectives.pmean(jnp.mean(centred**2, axis=0), axis_name))
        return GaussianPrior(mean, widen * jnp.maximum(deviation, floor * jnp.max(deviation)))
    flat = centred.reshape(x.shape[0], size)
    product = jnp.matmul(flat.T, flat, precision=jax.lax.Precision.HIGHEST)
    covariance = collectives.pmean(product / x.shape[0], axis_name)
    values, vectors = jnp.linalg.eigh(covariance)
    values = widen**2 * jnp.maximum(values, floor**2 * values[-1])
    covariance = jnp.matmul(vectors * values[None], vectors.T, precision=jax.lax.Precision.HIGHEST)
    return GaussianPrior(mean, jnp.linalg.cholesky(0.5 * (covariance + covariance.T)))


def fit_mixture(
    key: Key,
    x: Array,
    *,
    max_components: int = 32,
    full: bool | None = None,
    widen: float = 1.5,
    floor: float = 1e-3,
    background: float = 0.1,
    max_examples: int = 10_000,
) -> MixturePrior:
    """A mixture of normals that covers every cluster of the data: the start of a bridge to any model of them.

    From one normal the bridge to a density of separate modes of different widths is wrong with a small
    error bar: chains leave the wide mode's basin too late or never. From a mixture each chain starts in
    its mode, with that mode's width in its moves.

    EM from k-means++ for 1, 2, 3, ... components; the likelihood of a fifth of the data, held out, picks
    their number, and EM goes on from there on all of them. Widths are then multiplied by `widen` and, for
    components of few points, by what those leave unknown. A background, `fit_gaussian`'s normal about all
    of the data, is the last component. Half of the weight of the others goes by the data, half is spread
    evenly, so that chains start in small modes too.

    The fit is made on the host, in float64, once: outside jit, from concrete data (the same on all
    processes). The same key and data give the same prior on any number of devices.

    Args:
      key: a typed key, for the held-out part and for starts.
      x: [N, *event], at least 2, finite.
      max_components: most components, the background not counted.
      full: whether to fit whole covariances; None for: where D <= 32 and N >= 10 D. A component of fewer
        than 2 D + 2 points gets variances alone.
      widen: factor on the standard deviations.
      floor: least standard deviation of a component before that, as a fraction of the whole data's in the
        same direction (many equal points); a column that never changes gets it as a fraction of the
        widest column's.
      background: weight of the background, in (0, 1).
      max_examples: the fit looks at no more data than so many, drawn by the key.

    Returns:
      MixturePrior of at most max_components + 1 components.

    Raises:
      TypeError: `x` is not floating, or traced. ValueError: it has fewer than 2 examples, values that are
        not finite, or is constant; a number is out of range.

    Examples:
      >>> x = jnp.concatenate([jax.random.normal(jax.random.key(0), (300, 2)) + c for c in (-8.0, 8.0)])
      >>> prior = energymatch.likelihood.fit_mixture(jax.random.key(1), x)
      >>> print(len(prior.log_weights))  # two clusters and the background
      3
    """
    checks.one_key(key)
    array = checks.float_array(x, "x", min_ndim=1)
    known = checks.concrete(x if isinstance(x, np.ndarray) else array)
    if known is None:
        raise TypeError("x must be known data, outside jit: fit_mixture chooses its shapes by them")
    max_components = checks.positive_int(max_components, "max_components")
    max_examples = checks.positive_int(max_examples, "max_examples", 2)
    if full is not None:
        checks.flag(full, "full")
    widen, floor = checks.positive_float(widen, "widen"), checks.positive_float(floor, "floor")
    if not 0 < checks.positive_float(background, "background") < 1:
        raise ValueError(f"background must be in (0, 1), got {background}")
    if known.shape[0] < 2:
        raise ValueError(f"x must have at least 2 examples, got shape {known.shape}")
    event, dtype = known.shape[1:], jnp.promote_types(array.dtype, jnp.float32)
    rng = np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))
    flat = known.reshape(known.shape[0], -1)
    bad = ~np.all(np.isfinite(flat), axis=1)
    if np.any(bad):
        raise ValueError(f"x must be finite, got {int(bad.sum())} examples of {bad.size} that are not")
    if flat.shape[0] > max_examples:
        flat = flat[rng.choice(flat.shape[0], max_examples, replace=False)]
    flat = flat.astype(np.float64)
    if not np.any(np.ptp(flat, axis=0) > 0):
        raise ValueError(f"x must not be constant: all of its {flat.shape[0]} examples are equal")
    if full is None:
        full = bool(flat.shape[1] <= 32 and flat.shape[0] >= 10 * flat.shape[1])
    units = _units(flat, full, floor)
    found = mixture_fit.fit(rng, units.z, full, max_components, floor, background)
    counts = found.counts / found.counts.sum()
    weights = (1 - background) * 0.5 * (counts + 1 / counts.size)
    means = np.zeros((counts.size + 1, flat.shape[1]))
    means[:-1, units.moves] = found.mean @ units.turn.T
    scales = (_factors if full else _deviations)(found, units, widen)
    inverses = np.linalg.inv(scales) if full else 1 / scales
    scales, inverses = (a if full else a.reshape(-1, *event) for a in (scales, inverses))
    log_weights = np.log(np.append(weights, background))
    means = (units.mean + means * units.deviation).reshape(-1, *event)
    return MixturePrior(*(jnp.asarray(a, dtype) for a in (log_weights, means, scales, inverses)))


class _Units(NamedTuple):
    """Data [N, D] in coordinates of their own: x = mean + deviation * (turn z on the columns that move).

    Attributes:
      z: [N, d] with mean 0 and variance 1, d the number of columns that are not constant.
      turn: [d, d], the root of the correlations where matrices are fitted, else 1.
      mean, deviation, moves: [D].
    """

    z: np.ndarray
    turn: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    moves: np.ndarray


def _units(flat: np.ndarray, full: bool, floor: float) -> _Units:
    """Standardised, and where matrices are fitted decorrelated: what EM finds does not depend on units."""
    mean, deviation = flat.mean(axis=0), flat.std(axis=0)
    moves = np.ptp(flat, axis=0) > 0
    deviation = np.where(moves, deviation, floor * deviation.max())
    z = ((flat - mean) / deviation)[:, moves]
    turn = np.eye(z.shape[1])
    if full:
        values, vectors = np.linalg.eigh(z.T @ z / z.shape[0])
        values = np.maximum(values, (floor * 1e-3) ** 2 * values[-1])
        turn = vectors * np.sqrt(values)
        z = (z @ vectors) / np.sqrt(values)
    return _Units(z, turn, mean, deviation, moves)


def _deviations(found: mixture_fit.Mixture, units: _Units, widen: float) -> np.ndarray:
    """[C + 1, D] standard deviations of the widened components, the background last."""
    factors = widen**2 * mixture_fit.predictive_factors(found.counts, units.z.shape[1], False)
    scales = np.ones((found.counts.size + 1, units.mean.size))
    scales[:-1] = widen
    scales[:-1, units.moves] = np.sqrt(factors[:, None] * found.covariance)
    scales[-1] = mixture_fit.BACKGROUND_WIDTH
    return scales * units.deviation


def _factors(found: mixture_fit.Mixture, units: _Units, widen: float) -> np.ndarray:
    """[C + 1, D, D] lower-triangular A of the widened components, the background last."""
    size, moves = units.z.shape[1], np.flatnonzero(units.moves)
    factors = widen**2 * mixture_fit.predictive_factors(found.counts, size, True)
    scales = np.zeros((found.counts.size + 1, units.mean.size, units.mean.size))
    scales[:, ~units.moves, ~units.moves] = widen
    wide = mixture_fit.BACKGROUND_WIDTH**2 * np.eye(size)[None]
    covariance = np.concatenate([factors[:, None, None] * found.covariance, wide])
    # A lower-triangular factor of turn covariance turn^T, by QR of its root: no squared condition.
    values, vectors = np.linalg.eigh(covariance)
    roots = units.turn[None] @ (vectors * np.sqrt(values)[:, None, :])
    lower = np.swapaxes(np.linalg.qr(np.swapaxes(roots, 1, 2), mode="r"), 1, 2)
    lower = lower * np.sign(np.diagonal(lower, axis1=1, axis2=2))[:, None, :]
    scales[np.ix_(np.arange(scales.shape[0]), moves, moves)] = lower
    return scales * units.deviation[:, None]


def widened(prior: Prior, factor: float) -> Prior:
    """A Gaussian or mixture prior with all its widths multiplied by a factor, the means where they are.

    Raises:
      TypeError: the prior is of another class, or the factor no number. ValueError: it is not positive.
    """
    factor = checks.positive_float(factor, "factor")
    if isinstance(prior, MixturePrior):
        return prior._replace(scale=factor * prior.scale, inverse=prior.inverse / factor)
    if isinstance(prior, GaussianPrior):
        return prior._replace(scale=factor * prior.scale)
    raise TypeError(f"prior must be a GaussianPrior or a MixturePrior, got {prior!r:.80}")
