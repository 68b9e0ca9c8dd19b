"""An energy learned from data, in the user's own units: densities, samples, what is missing, dimension.

`energymatch.fit` returns an `EnergyModel`. Its potential is V(z) = -log q(z) + f(z) in whitened coordinates
z, q a mixture of normals fitted to the data and f a network; exp(-V)/Z is the data's density there. Since q
is normalised, can be drawn from and is near the model, log Z, samples and conditional samples come by
importance sampling from it, and carry the reliability of their weights.
"""

from __future__ import annotations

import functools
import json
import os
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, importance, metrics, modules, random
from egm.checkpoint import paths as folders
from egm.typing import Array, Key, PyTree
from energymatch import _frames, curvature, langevin, posterior
from energymatch.likelihood import MixturePrior
from energymatch.networks import MLPPotential

__all__ = ["EnergyModel", "Whitening", "bent", "log_partition_of", "network_of", "waves"]

VERSION = 2
"""Of the format of saved models."""

_MOST_DRAWS = 8
"""Times that `impute` draws for a row."""
_FEWEST = 10
"""Effective draws below which it warns."""


class Whitening(NamedTuple):
    """x = mean + z root, the data's mean and a square root of their covariance.

    Attributes:
      mean: [D].
      root: [D, D].
      inverse: [D, D].
      log_det: log |det root|.
    """

    mean: np.ndarray
    root: np.ndarray
    inverse: np.ndarray
    log_det: float

    def apply(self, x: Array) -> Array:
        """[N, D] z of x."""
        return jnp.matmul(x - jnp.asarray(self.mean, x.dtype)[None], jnp.asarray(self.inverse, x.dtype))

    def invert(self, z: Array) -> Array:
        """[N, D] x of z."""
        return jnp.asarray(self.mean, z.dtype)[None] + jnp.matmul(z, jnp.asarray(self.root, z.dtype))


def network_of(dim: int, width: int, depth: int = 3) -> MLPPotential:
    """The network of a table of D columns; in few dimensions it sees waves as well, for thin structures."""
    return MLPPotential(width=width, depth=depth, features=waves if dim <= 4 else bent)


def waves(z: Array) -> Array:
    """[N, 11 D] `bent` z with sines and cosines of z at frequencies 1, 2, 4, 8 and 16."""
    angles = jnp.concatenate([z * 2.0**k for k in range(5)], axis=1)
    return jnp.concatenate([bent(z), jnp.sin(angles), jnp.cos(angles)], axis=1)


def bent(z: Array) -> Array:
    """[N, D] z among the data, its logarithm far out: what a network adds must not grow there as z does."""
    return 10.0 * jnp.arcsinh(z / 10.0)


class EnergyModel:
    """An energy of the data in the user's units. Made by `energymatch.fit` or `EnergyModel.load`.

    Attributes:
      event_shape: of one example.
      whitening, base, network, params: what it is made of; `potential(z)` is V.
      noise: [D] standard deviation of the noise that training added to columns of few values; the density
        is that of data with it. Zeros elsewhere.
      log_z: log of the integral of exp(-energy(x)) over x, in the user's units.
      log_z_error: its standard error, inf where the weights say nothing.
      log_z_upper: the bound from the other side, by the held-out data.
      held_out: mean log-density of the held-out part, in nats; `base_held_out` that of the mixture alone.
        Rows far out are never in that part, so that of heavy tails it says a little too much.
      converged, reason: whether the figures may be trusted, and why not.
      columns: names of the columns, where the data were a frame. Frames given to the model's functions are
        then read by name, in whatever order.
      history: what training measured, {name: [times]}.
      seconds: of the fit.

    Examples:
      >>> half = model.impute(jax.random.key(1), np.array([[180.0, np.nan]]), np.array([True, False]), 100)
      >>> bool(abs(half[:, 0, 1].mean() - 77.0) < 3.0)  # weights of people of 180 cm
      True
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        whitening: Whitening,
        base: MixturePrior,
        network: Any,
        params: PyTree,
        *,
        noise: np.ndarray,
        figures: dict[str, Any] | None = None,
        history: dict[str, np.ndarray] | None = None,
        columns: tuple[str, ...] | None = None,
    ):
        self.columns = None if columns is None else tuple(columns)
        self.event_shape, self.whitening, self.base = tuple(event_shape), whitening, base
        self.network, self.params, self.noise = network, params, np.asarray(noise)
        self._figures, self.history = figures or {}, history or {}

    def __getattr__(self, name: str):
        known = (
            "log_z",
            "log_z_error",
            "log_z_upper",
            "held_out",
            "base_held_out",
            "converged",
            "reason",
            "seconds",
        )
        if name in known:
            return self.__dict__["_figures"].get(name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __getstate__(self) -> dict[str, Any]:
        # Compiled functions are made anew where a pickle is read (scikit-learn sends models to processes).
        lazy = functools.cached_property
        return {n: v for n, v in self.__dict__.items() if not isinstance(getattr(type(self), n, None), lazy)}

    def __repr__(self) -> str:
        return f"EnergyModel({self.event_shape}, held_out={self.held_out}, log_z_error={self.log_z_error})"

    # Densities.

    def potential(self, z: Array) -> Array:
        """[N] V in whitened coordinates z [N, D]; lower on data."""
        return -self.base.log_density(z) + self.correction(z)

    def correction(self, z: Array) -> Array:
        """[N] f: what the network adds to the mixture's energy; 0 where no network was better."""
        if self.params is None:
            return jnp.zeros(z.shape[:1], z.dtype)
        return self.network.apply(self.params, z)

    def energy(self, x: Array) -> Array:
        """[N] E(x) = V of x [N, *event], so that p(x) = exp(-E(x)) / Z; a function for `egm.fit`.

        Examples:
          >>> x = np.array([[170.0, 68.0]])
          >>> bool(jnp.allclose(-model.energy(x) - model.log_z, model.log_prob(x)))
          True
        """
        return self.potential(self.whitening.apply(self._flat(x)))

    def log_prob(self, x: Array) -> Array:
        """[N] log-density of x [N, *event] in the user's units, in nats.

        Examples:
          >>> log_p = model.log_prob(np.array([[170.0, 68.0], [170.0, 30.0]]))
          >>> bool(log_p[0] > log_p[1] + 10)
          True
        """
        return -self.energy(x) - self.log_z

    def score(self, x: Array) -> Array:
        """[N, *event] the gradient of the log-density.

        Examples:
          >>> slope = model.score(np.array([[170.0, 90.0]]))
          >>> slope.shape, bool(slope[0, 1] < 0)  # down in weight
          ((1, 2), True)
        """
        return -jax.grad(lambda y: jnp.sum(self.energy(y)))(self._values(x).astype(float))

    # Samples.

    def sample(self, key: Key, num: int) -> Array:
        """[num, *event] samples: draws of the mixture, resampled by weight and moved by MALA.

        Exact in the limit of many draws; as good as the weights, whose reliability `log_z_error` tells.

        Examples:
          >>> x = model.sample(jax.random.key(1), 100)
          >>> x.shape, bool(abs(x[:, 0].mean() - 170.0) < 5.0)
          ((100, 2), True)
        """
        num = checks.positive_int(num, "num")
        k_draw, k_pick, k_move = random.split(checks.one_key(key), 3)
        z = self.base.sample(k_draw, 4 * num)
        return self._event(self._picked(k_pick, k_move, z, -self.correction(z), num))

    def impute(self, key: Key, x: Any, observed: Any = None, num: int = 1) -> Array:
        """Samples of what was not observed, given what was.

        The mixture's own conditional density is drawn from exactly, draws are weighted by the network's
        part, and one is picked by weight: no scale of noise is made up for the observed entries, which
        come back as they are. Where the weights leave fewer draws than two a sample, up to eight times as
        many are made; where that is not enough a warning says so.

        Args:
          key: a typed key.
          x: [N, *event], or a frame; what is not observed may be anything.
          observed: bool, [N, *event] or [*event] for all rows, or a frame; None for what is not NaN.
          num: samples a row.

        Returns:
          [num, N, *event], columns in the order of `columns`.

        Raises:
          TypeError, ValueError: `observed` is no array of booleans of such a shape, a frame has other
            columns, or x is not finite where it is observed.

        Examples:
          >>> x = np.array([[180.0, np.nan], [np.nan, 60.0]])
          >>> filled = model.impute(jax.random.key(1), x, ~np.isnan(x), 50)
          >>> filled.shape, bool(jnp.all(filled[:, 0, 0] == 180.0))
          ((50, 2, 2), True)
        """
        num = checks.positive_int(num, "num")
        checks.one_key(key)
        rows = np.asarray(_frames.values_of(x, "x", self.columns), np.float64)
        if rows.shape[1:] != self.event_shape:
            raise ValueError(f"x must have shape [N, *{self.event_shape}], got {rows.shape}")
        known = ~np.isnan(rows) if observed is None else observed
        mask = np.asarray(_frames.values_of(known, "observed", self.columns))
        if mask.dtype != bool:
            raise TypeError(f"observed must be an array of booleans, got dtype {mask.dtype}")
        if mask.shape not in (rows.shape, self.event_shape):
            raise ValueError(f"observed must have shape {rows.shape} or {self.event_shape}, got {mask.shape}")
        rows = rows.reshape(len(rows), -1)
        mask = np.broadcast_to(mask.reshape(-1, rows.shape[1]), rows.shape)
        bad = np.argwhere(mask & ~np.isfinite(rows))
        if len(bad):
            row, column = bad[0]
            where = f"row {row}, {_frames.label(self.columns, column)}"
            raise ValueError(f"x must be finite where it is observed, got {rows[row, column]} at {where}")
        parts = [
            self._imputed(random.derive(key, f"row {i}"), rows[i], mask[i], num) for i in range(len(rows))
        ]
        return jnp.asarray(np.stack(parts, axis=1), float).reshape(num, len(rows), *self.event_shape)

    def _imputed(self, key, row, seen, num):
        """[num, D] samples of one row."""
        if seen.all():
            return np.broadcast_to(row, (num, row.size)).copy()
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        log_w, mean, root = self._components
        hidden = ~seen
        if seen.any():
            gap = row[seen] - mean[:, seen]
            covariance = np.einsum("kij,klj->kil", root, root)
            inner = covariance[:, seen][:, :, seen]
            gain = np.linalg.solve(inner, covariance[:, seen][:, :, hidden])
            log_w = log_w - 0.5 * np.einsum("ki,ki->k", gap, np.linalg.solve(inner, gap[..., None])[..., 0])
            log_w = log_w - 0.5 * np.linalg.slogdet(inner)[1]
            mean = mean[:, hidden] + np.einsum("kij,ki->kj", gain, gap)
            left = covariance[:, hidden][:, :, hidden] - np.einsum(
                "kij,kil->kjl", covariance[:, seen][:, :, hidden], gain
            )
            values, vectors = np.linalg.eigh(left)
            root = vectors * np.sqrt(np.maximum(values, 0.0))[:, None]
        else:
            mean, root = mean[:, hidden], root[:, hidden]
        size = max(512, 16 * num)
        p = np.exp(log_w - log_w.max())
        drawn, f = np.zeros((0, row.size)), np.zeros(0)
        for _ in range(_MOST_DRAWS):
            which = rng.choice(len(p), size, p=p / p.sum())
            x = np.tile(row, (size, 1))
            x[:, hidden] = mean[which] + np.einsum(
                "nij,nj->ni", root[which], rng.normal(size=(size, root.shape[2]))
            )
            corrected = self._jitted_correction(self.params, self.whitening.apply(jnp.asarray(x, float)))
            drawn, f = np.concatenate([drawn, x]), np.append(f, np.asarray(corrected, np.float64))
            weights, effective = _weights_of(-f)
            if effective >= 2 * num:
                break
        if effective < max(num, _FEWEST):
            warnings.warn(
                f"impute: {len(f)} draws of the mixture are worth {effective:.1f} by the network's weights, "
                f"for {num} samples of a row: samples repeat, and their spread is too small",
                stacklevel=3,
            )
        return drawn[rng.choice(len(f), num, replace=True, p=weights)]

    @functools.cached_property
    def _jitted_correction(self):
        @jax.jit
        def run(params, z):
            return jnp.zeros(z.shape[:1]) if params is None else self.network.apply(params, z)

        return run

    @functools.cached_property
    def _components(self):
        """(log weights [C], means [C, D], roots [C, D, D]) of the mixture in the user's units, in float64."""
        mean = self.whitening.mean + np.asarray(self.base.mean, np.float64) @ self.whitening.root
        scale = np.asarray(self.base.scale, np.float64)
        if scale.shape == self.base.mean.shape:
            scale = scale[:, :, None] * np.eye(scale.shape[1])
        root = np.einsum("ji,cjk->cik", self.whitening.root, scale)
        return np.asarray(self.base.log_weights, np.float64), mean, root

    def posterior(
        self, key: Key, operator: Callable[[Array], Array], y: Array, *, scale: float | Array, num: int = 1024
    ) -> posterior.PosteriorSamples:
        """Samples of x given y = A(x) + noise of standard deviation `scale` (`energymatch.posterior.sample`).

        Args:
          key: a typed key.
          operator: A, of x [N, *event], see `energymatch.operators`.
          y: one measurement.
          scale: of its noise, in the units of y.
          num: samples, a multiple of 16.

        Returns:
          `PosteriorSamples`, x in the user's units.

        Examples:
          >>> total = lambda x: x[:, :1] + x[:, 1:]  # what was measured: the sum, 250 +- 1
          >>> found = model.posterior(jax.random.key(1), total, jnp.array([250.0]), scale=1.0, num=64)
          >>> found.x.shape, bool(jnp.all(jnp.abs(found.x.sum(axis=1) - 250.0) < 6.0))
          ((64, 2), True)
        """
        measured = posterior.gaussian_measurement(lambda z: operator(self._event(z)), y, scale)
        found = posterior.sample(
            key, self.potential, energies=(measured,), epsilon=1.0, prior=self.base, num_samples=num
        )
        return found._replace(x=self._event(found.x))

    def dimension(self, x: Array, threshold: float = 3.0) -> Array:
        """[N] local intrinsic dimension at x, in whitened coordinates.

        By `curvature.local_intrinsic_dimension`.

        A direction counts where the curvature of V is below `threshold`; 1 is that of a normal density as
        wide as the data.

        Examples:
          >>> print(model.dimension(np.array([[170.0, 68.0]])))
          [2.]
        """
        z = self.whitening.apply(self._flat(x))
        return curvature.local_intrinsic_dimension(self.potential, z, threshold=threshold)

    def report(self) -> str:
        """What was found and how far it may be trusted, as a table in text.

        Examples:
          >>> print(model.report())
          event                    (2,)
          held-out log-density     -6.7... nats (mixture alone -6.7...)
          log Z                    4.0... +- 0, from above 4.0...
          components               2
          network                  none: not trained
          ...
        """
        rows = [
            ("event", repr(self.event_shape)),
            ("held-out log-density", f"{self.held_out:.4g} nats (mixture alone {self.base_held_out:.4g})"),
            ("log Z", f"{self.log_z:.4g} +- {self.log_z_error:.2g}, from above {self.log_z_upper:.4g}"),
            ("components", str(self.base.log_weights.size)),
            ("network", self._told_network()),
            ("converged", "yes" if self.converged else f"no: {self.reason}"),
            ("seconds", f"{self.seconds:.0f}"),
        ]
        if self.noise.any():
            noisy = np.flatnonzero(self.noise).tolist()
            noisy = noisy if self.columns is None else [self.columns[j] for j in noisy]
            rows.append(("noise added to columns", str(noisy)))
        return "\n".join(f"{name:<24} {value}" for name, value in rows)

    def _told_network(self) -> str:
        if self.params is None:
            looks = np.asarray(self.history.get("held_out", ()))
            if looks.size and not np.isfinite(looks).any():
                return "none: it was too far from the mixture to be judged"
            return "none: it was no better" if looks.size else "none: not trained"
        return "your own" if isinstance(self.network, modules.Module) else repr(self.network)[:60]

    # Storage.

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the model into a new folder: arrays by orbax, the rest as JSON, nothing pickled.

        Raises:
          ValueError: the folder exists and is not empty.

        Examples:
          >>> import tempfile
          >>> folder = tempfile.mkdtemp()
          >>> model.save(folder)
          >>> same = energymatch.EnergyModel.load(folder)
          >>> same.log_z == model.log_z
          True
        """
        from orbax.checkpoint import v1 as ocp

        root = folders.resolve(folder)
        if os.path.isdir(root) and os.listdir(root):
            raise ValueError(f"folder must be new or empty, got {root}")
        folders.make(root)
        plain = {k: np.asarray(v).item() if not isinstance(v, str) else v for k, v in self._figures.items()}
        about = {
            "version": VERSION,
            "event_shape": list(self.event_shape),
            "log_det": float(self.whitening.log_det),
            "network": self._default_sizes(),
            "has_params": self.params is not None,
            "named_leaves": self._default_sizes() is None,
            "columns": self.columns,
            "figures": plain,
            "history": {k: np.asarray(v).tolist() for k, v in self.history.items()},
        }
        arrays = {
            "base": {n: np.asarray(a) for n, a in self.base._asdict().items()},
            "whitening": {n: np.asarray(a) for n, a in self.whitening._asdict().items() if n != "log_det"},
            "noise": self.noise,
            "params": self._saved_params(),
        }
        arrays = {name: value for name, value in arrays.items() if jax.tree.leaves(value)}
        ocp.save(os.path.join(root, "arrays"), arrays)
        with open(os.path.join(root, "model.json"), "w", encoding="utf-8") as file:
            json.dump(about, file)

    def _saved_params(self) -> PyTree:
        if self.params is None:
            return {}
        if self._default_sizes() is None:
            return modules.named_leaves(self.params)
        return jax.device_get(self.params)

    def _default_sizes(self) -> list[int] | None:
        """[width, depth] of the library's own network, from which `load` makes it; None for a user's."""
        net: Any = self.network
        if not isinstance(net, MLPPotential) or net != network_of(self.noise.size, net.width, net.depth):
            return None
        return [net.width, net.depth]

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, network: Any = None) -> EnergyModel:
        """A saved model.

        Args:
          folder: as saved.
          network: that given to `fit`, where one was; its parameters are those of the folder.

        Raises:
          ValueError: the folder holds no model, or one of another format, or of another network.

        Examples:
          >>> import tempfile
          >>> folder = tempfile.mkdtemp()
          >>> model.save(folder)
          >>> same = energymatch.EnergyModel.load(folder)
          >>> x = np.array([[170.0, 68.0]])
          >>> bool(same.log_prob(x) == model.log_prob(x))
          True
        """
        from orbax.checkpoint import v1 as ocp

        root = folders.resolve(folder)
        try:
            with open(os.path.join(root, "model.json"), encoding="utf-8") as file:
                about = json.load(file)
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError) as error:
            raise ValueError(f"folder must hold a saved model, got {root}: {error}") from error
        if about.get("version") != VERSION:
            raise ValueError(f"the model in {root} has format {about.get('version')}, this is {VERSION}")
        arrays: Any = jax.tree.map(np.asarray, ocp.load(os.path.join(root, "arrays")))
        base = MixturePrior(**{n: jnp.asarray(a) for n, a in arrays["base"].items()})
        whitening = Whitening(**arrays["whitening"], log_det=about["log_det"])
        params = arrays.get("params") if about["has_params"] else None
        if about["network"] is not None:
            if network is not None:
                raise ValueError(f"network must be None for the model in {root}: none was given to fit")
            network = network_of(len(arrays["noise"]), *about["network"])
        elif network is not None:
            network = network if isinstance(network, MLPPotential) else modules.given(network)
            example = (jnp.zeros((1, len(arrays["noise"]))),)
            if about.get("named_leaves") and params is not None:
                params = modules.with_leaves(modules.given(network), example, params)
        elif params is not None:
            raise ValueError(f"network must be the one that was given to fit, for the model in {root}")
        return cls(
            tuple(about["event_shape"]),
            whitening,
            base,
            network,
            params,
            noise=arrays["noise"],
            figures=about["figures"],
            history={k: np.asarray(v) for k, v in about["history"].items()},
            columns=about.get("columns"),
        )

    def _picked(self, k_pick, k_move, z, log_weights, num):
        """[num, D] states picked by weight, set apart by Metropolis-adjusted moves that keep the model."""
        z = z[importance.systematic(k_pick, log_weights, num)]
        z = z[jax.random.permutation(random.derive(k_pick, "order"), num)]
        moved = langevin.sample(
            k_move, self.potential, z, num_steps=20, step_size=0.01, temperature=1.0, method="mala"
        )
        return moved.x

    def _values(self, x: Any) -> Array:
        """An array of what came, the columns of a frame by their names."""
        if _frames.is_frame(x):
            return jnp.asarray(_frames.values_of(x, "x", self.columns), float)
        return checks.as_array(x, "x")

    def _flat(self, x: Array) -> Array:
        x = checks.wide(checks.float_array(self._values(x), "x", min_ndim=1))
        if x.shape[1:] != self.event_shape:
            raise ValueError(f"x must have shape [N, *{self.event_shape}], got {x.shape}")
        return x.reshape(x.shape[0], -1)

    def _event(self, z: Array) -> Array:
        x = self.whitening.invert(z)
        return x.reshape(x.shape[0], *self.event_shape)


def _weights_of(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    """(weights [N] of sum 1, even where none is positive; their effective number)."""
    usable = np.isfinite(log_weights)
    if not usable.any():
        return np.full(len(log_weights), 1 / len(log_weights)), 0.0
    weights = np.exp(np.where(usable, log_weights, -np.inf) - log_weights[usable].max())
    weights /= weights.sum()
    return weights, float(1 / np.sum(weights**2))


def log_partition_of(key: Key, model: EnergyModel, num: int) -> tuple[float, float]:
    """(log Z in the user's units, its error) by importance sampling from the mixture."""
    z = model.base.sample(key, num)
    summary = jax.device_get(metrics.summarize(-model.correction(z)))
    return float(summary.log_z) + model.whitening.log_det, float(summary.log_z_error)
