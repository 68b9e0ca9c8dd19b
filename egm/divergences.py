"""Bregman divergences between a target and a prediction of the marginal generator, per example.

Terms that depend on the target alone are dropped. The gradient in the prediction is affine in the
target, so a noisy unbiased target moves the gradient's mean nowhere: the minimiser is the mean of the
target. An SNIS target is biased by O(1/K), and so is the minimiser. No gradient flows into a target.

Source: Generator Matching (arXiv 2410.20587), Bregman divergences; EGM (arXiv 2505.19646).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from egm import checks
from egm.typing import Array

__all__ = ["denoiser_kl", "exponential", "itakura_saito", "rate_kl", "squared_difference", "squared_error"]


def squared_error(target: Array, prediction: Array) -> Array:
    """Bregman divergence of ||.||^2, for velocities and scores.

    Args:
      target: [B, D] estimate of the marginal generator.
      prediction: [B, D] the model's generator at the same points.

    Returns:
      [B] sum over D of the squared difference.

    Raises:
      ValueError: the shapes differ.
    """
    target, prediction = _checked(target, prediction)
    return jnp.sum((prediction - target) ** 2, axis=-1)


def itakura_saito(target: Array, log_prediction: Array) -> Array:
    """Bregman divergence of -log, for variances: its minimiser is the mean of the target.

    Args:
      target: [B, D] non-negative, for instance squared residuals.
      log_prediction: [B, D] logarithm of the predicted variance.

    Returns:
      [B] sum over D of target / prediction + log prediction.

    Raises:
      ValueError: the shapes differ.
    """
    target, log_prediction = _checked(target, log_prediction, "log_prediction")
    return jnp.sum(target * jnp.exp(-log_prediction) + log_prediction, axis=-1)


def denoiser_kl(target: Array, logits: Array, site_weights: Array | None = None) -> Array:
    """Kullback-Leibler divergence from a denoiser's target to softmax(logits), summed over sites.

    Args:
      target: [B, L, V] probabilities over the data tokens at each site, or an estimate of them: entries may
        be below 0 (`UniformPath` at r < 1); the gradient stays affine in the target.
      logits: [B, L, V] unnormalised log-probabilities of the model.
      site_weights: optional [B, L]; None weighs every site 1. A site of weight 0 adds exactly 0.

    Returns:
      [B] sum over sites of site_weights times the cross-entropy (the KL without the target's entropy).

    Raises:
      ValueError: the shapes differ.
    """
    target, logits = _checked(target, logits, "logits")
    log_p = jax.nn.log_softmax(logits, axis=-1)
    per_site = -jnp.sum(jnp.where(jnp.abs(target) > 0, target * log_p, 0.0), axis=-1)
    if site_weights is None:
        return jnp.sum(per_site, axis=-1)
    site_weights = checks.wide(checks.float_array(site_weights, "site_weights"))
    if site_weights.shape != per_site.shape:
        raise ValueError(f"site_weights must have shape {per_site.shape}, got {site_weights.shape}")
    return jnp.sum(jnp.where(site_weights > 0, site_weights * per_site, 0.0), axis=-1)


def rate_kl(target: Array, log_rates: Array) -> Array:
    """Generalised Kullback-Leibler divergence between jump rates, that of Poisson processes.

    Args:
      target: [B, ...] non-negative rates.
      log_rates: [B, ...] logarithms of the model's rates.

    Returns:
      [B] sum over all other axes of exp(log_rates) - target * log_rates.

    Raises:
      ValueError: the shapes differ.
    """
    target, log_rates = _checked(target, log_rates, "log_rates")
    terms = jnp.exp(log_rates) - jnp.where(target > 0, target * log_rates, 0.0)
    return jnp.sum(terms, axis=tuple(range(1, terms.ndim)))


def exponential(target: Array, prediction: Array, max_difference: float = 20.0) -> Array:
    """e^d - d - 1 with d = target - prediction, for log-marginals.

    The Bregman divergence of exp: its gradient in the prediction is 1 - e^d, affine in exp(target), so
    the minimiser for a random target is the log of its mean exponential, where squared error would give
    the mean of the log, which is lower (Jensen).

    Args:
      target: [B] log-marginals, estimated.
      prediction: [B] the model's.
      max_difference: where d is larger the loss goes on as its tangent, so that a bad start gives a
        large finite gradient and not an overflow; the minimiser is exact while d stays below it.

    Returns:
      [B] e^d - d - 1, zero exactly where they agree.

    Raises:
      ValueError: the shapes differ.
    """
    target, prediction = _checked(target, prediction, min_ndim=0)
    checks.positive_float(max_difference, "max_difference")
    d = target - prediction
    capped = jnp.minimum(d, max_difference)
    tangent = jnp.exp(capped) * (d - capped)
    return jnp.expm1(capped) + tangent - d


def squared_difference(target: Array, prediction: Array) -> Array:
    """(target - prediction)^2, for log-marginals whose targets have no noise.

    For a random target the minimiser is its mean, below the log of the mean exponential by half the
    target's variance. Unlike that of `exponential` its gradient grows no faster than the error.

    Args:
      target: [B] log-marginals. prediction: [B] the model's.

    Returns:
      [B].

    Raises:
      ValueError: the shapes differ.
    """
    target, prediction = _checked(target, prediction, min_ndim=0)
    return (target - prediction) ** 2


def _checked(
    target: Array, prediction: Array, name: str = "prediction", min_ndim: int = 1
) -> tuple[Array, Array]:
    """Both as floating arrays of one shape, the target without gradient."""
    target = checks.float_array(target, "target", min_ndim=min_ndim)
    prediction = checks.float_array(prediction, name, min_ndim=min_ndim)
    if target.shape != prediction.shape:
        raise ValueError(f"target has shape {target.shape}, the {name} has shape {prediction.shape}")
    return jax.lax.stop_gradient(checks.wide(target)), checks.wide(prediction)
