"""A trained sampler: states with exact weights, the evidence from both sides, saved and loaded.

`egm.fit` returns a `Sampler`. Everything that it draws carries its path log-weight, so that log Z and
expectations have no bias but that of a ratio, whatever the sampler is worth, and errors are inf where the
weights do not determine them (`egm.importance.reliability`).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egm import (
    _saved,
    algorithms,
    batching,
    checks,
    evidence,
    heads,
    importance,
    metrics,
    modules,
    random,
)
from egm.checkpoint import paths as folders
from egm.coordinates import Coordinates
from egm.design import Design, inputs, parts_of
from egm.simulate import draw_prior, path_log_weights, simulate
from egm.spaces import Layout
from egm.typing import Array, Energy, Key, PyTree, State

__all__ = ["Sampler", "Samples", "summarize"]

VERSION = 1
"""Of the format of saved samplers."""
_CHUNK = 2048


summarize = jax.jit(metrics.summarize)
"""Compiled whole, as the next: operations one by one take longer to compile than to run."""
_mean = jax.jit(metrics.reweighted_mean)


class Samples(NamedTuple):
    """States with what they weigh.

    Attributes:
      x: the user's pytree, leaves [N, *shape]. Unweighted they are the sampler's own distribution; with
        their weights they are the target's.
      log_weights: [N] path log-weights, whose mean weight is Z.
      summary: `egm.metrics.PathWeightSummary` of them.

    Examples:
      >>> draw = sampler.sample(jax.random.key(1), 1000)
      >>> mean, error = draw.expectation(lambda x: jnp.sum(x**2, axis=-1))  # exact: 4
      >>> bool(abs(mean - 4.0) < 4 * error)
      True
      >>> draw.resample(jax.random.key(2), 100).shape  # of equal weight
      (100, 2)
    """

    x: PyTree
    log_weights: Array
    summary: metrics.PathWeightSummary

    @property
    def weights(self) -> Array:
        """[N] normalised weights."""
        return importance.snis(self.log_weights).weights

    @property
    def ess(self) -> float:
        """Effective sample size as a fraction of N."""
        return float(self.summary.ess)

    @property
    def tail_index(self) -> float:
        """k-hat, the Pareto index of the largest weights; up to .7 the weights may be trusted."""
        return float(self.summary.tail_index)

    def expectation(self, function: Callable[[PyTree], Array]) -> tuple[Array, Array]:
        """(mean, standard error) of an observable under the target, weighted.

        Args:
          function: of all states at once, `[N, ...] = function(x)`.

        Returns:
          (mean [...], standard error [...]); the error is inf where the weights do not determine it.

        Raises:
          ValueError: the function returns another leading size than N.
        """
        checks.function(function, "function")
        return _mean(function(self.x), self.log_weights)

    def resample(self, key: Key, num: int | None = None) -> PyTree:
        """`num` (by default N) states of equal weight, drawn by weight, evenly (systematic resampling)."""
        n = self.log_weights.shape[0]
        num = n if num is None else checks.positive_int(num, "num")
        chosen = importance.systematic(key, self.log_weights, num)
        chosen = jax.random.permutation(random.derive(key, "order"), chosen)
        return jax.tree.map(lambda a: a[chosen], self.x)

    def to_arviz(self, key: Key | None = None) -> Any:
        """The resampled states as one chain of arviz, which must be installed: of any of its versions.

        Diagnostics of chains take them for independent draws: how many of them there really are,
        `ess` times N, only the weights tell.

        Args:
          key: of the resampling; None for that of seed 0.

        Returns:
          A DataTree (InferenceData before arviz 1) with a group "posterior", whose variables are the leaves
          of `x` by their place: "mu", "layer.0", and "x" where there is one alone.
        """
        import arviz  # pyright: ignore[reportMissingImports]

        x = self.resample(jax.random.key(0) if key is None else key)
        leaves = jax.tree_util.tree_leaves_with_path(x)
        named = {
            jax.tree_util.keystr(path, simple=True, separator=".") or "x": np.asarray(leaf)[None]
            for path, leaf in leaves
        }
        if int(arviz.__version__.split(".")[0]) < 1:
            return arviz.from_dict(posterior=named)
        return arviz.from_dict({"posterior": named})


class Sampler:
    """A sampler of exp(-E), with exact weights. Made by `egm.fit` or `Sampler.load`.

    Attributes:
      energy: E on the user's states, batched.
      space: the user's pytree of spaces.
      design, coordinates, moments, params: what it is made of; `parts` are the library's own, for who
        wants to go on by hand (`egm.simulate`, `make_iteration`).
      log_z: log Z, the log of the integral (sum) of exp(-E) over the space.
      log_z_error: its standard error, never below half of what separates the evidence of both sides; inf
        where the weights say nothing.
      ess: effective sample size of its samples as a fraction.
      converged: whether errors are finite, no mass was found missing, and the full energy was reached.
      reason: why not, in words.
      evidence: `egm.evidence.Evidence`.
      history: metrics of the training's iterations, {name: [iterations]}.
      seconds: of the whole fit.

    Examples:
      >>> draw = sampler.sample(jax.random.key(1), 1000)
      >>> mean, error = draw.expectation(lambda x: x[:, 0])
      >>> bool(abs(mean - 1.0) < 4 * error)
      True
      >>> print(f"log Z {sampler.log_z:.2f}, ESS above .9: {draw.ess > 0.9}")
      log Z 1.84, ESS above .9: True
    """

    def __init__(
        self,
        energy: Callable[[PyTree], Array],
        design: Design,
        coordinates: Coordinates,
        moments: Any,
        params: PyTree,
        *,
        network: Any = None,
        figures: dict[str, Any] | None = None,
        history: dict[str, np.ndarray] | None = None,
        evidence_: evidence.Evidence | None = None,
        canonical: Energy | None = None,
    ):
        self.energy, self.design, self.coordinates = energy, design, coordinates
        self.moments, self.params = moments, params
        if canonical is None:
            canonical = design.layout.energy(energy)
            canonical = batching.with_pairs(canonical, design.layout) if design.pairs else canonical
            canonical = coordinates.energy(canonical)
        self._canonical = canonical
        self.parts, self._own_network = parts_of(design, self._canonical, network), network is not None
        self._figures = figures or {}
        self.history, self.evidence = history or {}, evidence_

    @property
    def space(self) -> PyTree:
        """The user's pytree of spaces."""
        return self.design.layout.spaces

    def __getattr__(self, name: str):
        if name in ("log_z", "log_z_error", "ess", "converged", "reason", "seconds"):
            return self.__dict__["_figures"].get(name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        ess = "?" if self.ess is None else f"{self.ess:.3f}"
        return f"Sampler({self.space!r}, log_z={self.log_z}, log_z_error={self.log_z_error}, ess={ess})"

    def generator(self, x: State, t: Array) -> Any:
        """The marginal generator in the path's form, on the library's states."""
        return self._generator(self.params)(x, t)

    def _generator(self, params):
        algorithm = algorithms.Weighted(self.parts.path, self.parts.head, self.parts.apply)
        return algorithm.generator(params, self._canonical)

    def sample(self, key: Key, num: int, *, num_times: int | None = None) -> Samples:
        """`num` weighted states.

        Args:
          key: a typed key.
          num: how many.
          num_times: steps of the simulation; by default those that `fit` has chosen. More of them cost
            more and raise the ESS.

        Returns:
          Samples.

        Examples:
          >>> draw = sampler.sample(jax.random.key(1), 1000)
          >>> draw.x.shape, draw.log_weights.shape
          ((1000, 2), (1000,))
          >>> print(f"Z of these alone: {jnp.exp(draw.summary.log_z):.1f}")  # exact: 2 pi
          Z of these alone: 6.3
        """
        checks.one_key(key)
        num = checks.positive_int(num, "num")
        num_times = (
            self.design.num_times if num_times is None else checks.positive_int(num_times, "num_times")
        )
        size = min(_CHUNK, num)
        chunks = [
            self._run(random.derive(key, f"chunk {i}"), self.params, self.moments, size, num_times)
            for i in range(math.ceil(num / size))
        ]
        state, log_weights = jax.tree.map(lambda *a: jnp.concatenate(a)[:num], *chunks)
        return Samples(self._to_user(state), log_weights, summarize(log_weights))

    def trajectory(self, key: Key, num: int, num_times: int) -> Any:
        """`egm.Trajectory` of `num` states in the sampler's coordinates; traceable."""
        return self._trajectory(key, self.params, self.moments, num, num_times)

    def _trajectory(self, key, params, moments, num, num_times):
        generator = self._generator(params)
        k_prior, k_run = random.split(key)
        x_0 = draw_prior(
            random.example_keys(k_prior, num), self.parts.path, self.design.layout.event_shape, moments
        )
        keys = random.example_keys(k_run, num)
        return simulate(keys, self.parts.process, generator, x_0, self.parts.process.times(num_times))

    @functools.cached_property
    def _run(self):
        @functools.partial(jax.jit, static_argnums=(3, 4))
        def run(key, params, moments, num, num_times):
            trajectory = self._trajectory(key, params, moments, num, num_times)
            return trajectory.x_1, path_log_weights(self._canonical, self.parts.path, trajectory)

        return run

    @functools.cached_property
    def _to_user(self):
        return jax.jit(lambda state: self.design.layout.to_user(self.coordinates.apply(state))[0])

    def log_prob(self, x: PyTree) -> Array:
        """[N] the target's normalised log-density, -E(x) - log Z, at the user's states [N, ...].

        Examples:
          >>> log_p = sampler.log_prob(jnp.array([[1.0, 1.0], [2.0, 1.0]]))
          >>> print(np.asarray(log_p).round(1))
          [-1.8 -2.3]
        """
        return -checks.wide(self.energy(x)) - self.log_z

    def report(self) -> str:
        """What was found and how far it may be trusted, as a table in text.

        Examples:
          >>> print(sampler.report())
          space                  Real(shape=(2,), periodic=False)
          dimensions             2 numbers
          log Z                  1.8... +- ...
          ESS                    0.9... of the samples
          converged              yes
          ...
        """
        d = self.design
        rows = [
            ("space", repr(self.space)),
            ("dimensions", _sizes(d.layout)),
            ("log Z", f"{self.log_z:.5g} +- {self.log_z_error:.2g}"),
            ("ESS", f"{self.ess:.3f} of the samples"),
            ("converged", "yes" if self.converged else f"no: {self.reason}"),
            ("iterations", str(len(self.history.get("ess", ())))),
            ("steps a sample", str(d.num_times)),
            ("finest length / width", f"{d.length_scale / d.data_scale:.3g}"),
            ("seconds", f"{self.seconds:.0f}"),
        ]
        if self.evidence is not None:
            rows.append(("other side", evidence.message(self.evidence)))
        return "\n".join(f"{name:<22} {value}" for name, value in rows)

    def plot(self, key: Key | None = None, num: int = 2000) -> Any:
        """A figure of the first coordinates' weighted histograms and of the training; needs matplotlib."""
        from matplotlib import pyplot

        draw = self.sample(jax.random.key(0) if key is None else key, num)
        flat = np.concatenate([np.asarray(a).reshape(num, -1) for a in jax.tree.leaves(draw.x)], axis=1)
        shown = min(flat.shape[1], 5)
        axes: Any
        figure, axes = pyplot.subplots(
            1, shown + 1, figsize=(2.6 * (shown + 1), 2.6), constrained_layout=True
        )
        for i, axis in enumerate(axes[:-1]):
            axis.hist(flat[:, i], bins=50, weights=np.asarray(draw.weights), density=True, color="#4477aa")
            axis.set_xlabel(f"coordinate {i}")
        axes[-1].plot(self.history.get("ess", []), color="#aa3377")
        axes[-1].set_xlabel("iteration")
        axes[-1].set_ylabel("ESS")
        axes[-1].set_ylim(0, 1)
        return figure

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write everything but the energy and the code of a network of the user's own into a new folder.

        Arrays by orbax, the rest as JSON; nothing is pickled.

        Raises:
          ValueError: the folder exists and is not empty. TypeError: a space of the user's own.

        Examples:
          >>> import tempfile
          >>> folder = tempfile.mkdtemp()
          >>> sampler.save(folder)
          >>> same = egm.Sampler.load(folder, energy)
          >>> same.log_z == sampler.log_z
          True
        """
        from orbax.checkpoint import v1 as ocp

        root = folders.resolve(folder)
        if os.path.isdir(root) and os.listdir(root):
            raise ValueError(f"folder must be new or empty, got {root}")
        folders.make(root)
        spaces = [_saved.plain_space(leaf) for leaf in self.design.layout.leaves]
        curved = self.coordinates.transport
        # Arrays of no elements are not saved by orbax.
        numbers = self.design.layout.num_coordinates
        fields = {
            f.name: getattr(self.design, f.name)
            for f in dataclasses.fields(Design)
            if f.name not in ("layout", "mixture")
        }
        about = {
            "version": VERSION,
            "own_network": self._own_network,
            "spaces": spaces,
            "structure": _saved.structure(self.space),
            "design": fields,
            "log_det": self.coordinates.log_det,
            "transport": None if curved is None else curved.module.sizes,
            "figures": {k: _saved.plain(v) for k, v in self._figures.items()},
            "evidence": None if self.evidence is None else [_saved.plain(v) for v in self.evidence],
            "history": {k: np.asarray(v).tolist() for k, v in self.history.items()},
        }
        arrays = {
            "params": modules.named_leaves(self.params) if self._own_network else self.params,
            "transport": {} if curved is None else curved.params,
            "moments": [np.asarray(a) for a in jax.tree.leaves(self.moments)] or [np.zeros(1)],
            "center": np.asarray(self.coordinates.center).reshape(-1) if numbers else np.zeros(1),
            "matrix": np.atleast_1d(np.asarray(self.coordinates.matrix, np.float64)),
            "mixture": {} if self.design.mixture is None else dataclasses.asdict(self.design.mixture),
        }
        ocp.save(os.path.join(root, "arrays"), arrays)
        with open(os.path.join(root, "sampler.json"), "w", encoding="utf-8") as file:
            json.dump(about, file)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        energy: Callable[[PyTree], Array],
        *,
        network: Any = None,
        batched: bool | None = None,
    ) -> Sampler:
        """A saved sampler, on any number of devices.

        Args:
          folder: as saved.
          energy: E as it was given to `egm.fit`.
          network: that given to `egm.fit`, where one was; its parameters are those of the folder.
          batched: as for `egm.fit`.

        Raises:
          ValueError: the folder holds no sampler, or one of another format, or of another network.

        Examples:
          >>> import tempfile
          >>> folder = tempfile.mkdtemp()
          >>> sampler.save(folder)
          >>> same = egm.Sampler.load(folder, energy)
          >>> same.sample(jax.random.key(1), 10).x.shape
          (10, 2)
        """
        from orbax.checkpoint import v1 as ocp

        root = folders.resolve(folder)
        try:
            with open(os.path.join(root, "sampler.json"), encoding="utf-8") as file:
                about = json.load(file)
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError) as error:
            raise ValueError(f"folder must hold a saved sampler, got {root}: {error}") from error
        if about.get("version") != VERSION:
            raise ValueError(f"the sampler in {root} has format {about.get('version')}, this is {VERSION}")
        if about.get("own_network", network is not None) != (network is not None):
            given = "one was given to egm.fit" if network is None else "none was given to egm.fit"
            raise ValueError(f"network must be that of the sampler in {root}: {given}")
        leaves = iter([_saved.KINDS[s.pop("kind")](**_saved.tuples(s)) for s in about["spaces"]])
        layout = Layout(_saved.rebuilt(about["structure"], leaves))
        with np.errstate(all="ignore"):
            arrays = ocp.load(os.path.join(root, "arrays"))
        arrays = jax.tree.map(np.asarray, arrays)
        mixture = heads.NormalMixture(**arrays["mixture"]) if arrays.get("mixture") else None
        design = Design(layout, **_saved.tuples(about["design"]), mixture=mixture)
        params = arrays["params"]
        if about.get("own_network"):
            params = modules.with_leaves(modules.given(network), inputs(layout, 1), params)
        coordinates = _saved.coordinates(layout, about, arrays)
        function = batching.batched_energy(energy, layout, batched)
        found = cls(
            function,
            design,
            coordinates,
            None,
            params,
            network=network,
            figures=about["figures"],
            history={k: np.asarray(v) for k, v in about["history"].items()},
            evidence_=_saved.evidence_of(about["evidence"]),
        )
        found.moments = _saved.moments(layout, arrays["moments"])
        return found


def _sizes(layout: Layout) -> str:
    parts = []
    if layout.num_coordinates:
        parts.append(f"{layout.num_coordinates} numbers")
    if layout.num_sites:
        parts.append(f"{layout.num_sites} tokens of {layout.vocab_size}")
    return ", ".join(parts)
