"""`energymatch.fit` as an estimator of scikit-learn: in pipelines, searches and cross-validation.

Nothing is inherited from scikit-learn, which is imported where it asks for its own records (tags) only.
"""

from __future__ import annotations

import inspect
from typing import Any

import jax
import numpy as np

from egm import checks, random
from egm.typing import Array, Key
from energymatch import _frames
from energymatch.fitting import fit

__all__ = ["EnergyEstimator"]


class EnergyEstimator:
    """A density estimator with the methods of `sklearn.neighbors.KernelDensity`.

        pipe = make_pipeline(StandardScaler(), EnergyEstimator(seconds=60))
        pipe.fit(table).score_samples(table), cross_val_score(pipe, table)

    Arguments are kept as they come and checked by `fit`.

    Args:
      seconds, steps, network, progress: as for `energymatch.fit`; progress is off here.
      random_state: an integer, or a typed key.

    Attributes:
      model_: the `EnergyModel`, after `fit`.
      n_features_in_: D.
      feature_names_in_: [D] the names of the columns, where the data were a frame.
    """

    def __init__(
        self,
        *,
        seconds: float = 300.0,
        steps: int | None = None,
        network: Any = None,
        random_state: int | Key = 0,
        progress: bool = False,
    ):
        self.seconds, self.steps, self.network = seconds, steps, network
        self.random_state, self.progress = random_state, progress

    @classmethod
    def _names(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments as they are now; none of them is an estimator, so that `deep` says nothing."""
        del deep
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **params: Any) -> EnergyEstimator:
        """Changes arguments and returns the estimator; raises ValueError for one that there is not."""
        for name, value in params.items():
            if name not in self._names():
                raise ValueError(f"{name} must be one of {self._names()}, for {type(self).__name__}")
            setattr(self, name, value)
        return self

    def fit(self, X: Any, y: Any = None) -> EnergyEstimator:
        """Learns the density of X [N, D], an array or a frame; `y` is not looked at.

        Raises: as `energymatch.fit`.
        """
        del y
        key = _key(self.random_state, "random_state")
        options = {"seconds": self.seconds, "steps": self.steps, "progress": self.progress}
        self.model_ = fit(key, X, network=self.network, **options)
        self.n_features_in_ = int(np.prod(self.model_.event_shape))
        names = self.model_.columns
        if names is None:
            self.__dict__.pop("feature_names_in_", None)
        else:
            self.feature_names_in_ = np.asarray(names, object)
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """[N] log-densities of X [N, D], in nats."""
        return np.asarray(self._fitted().log_prob(_numbers(X)), np.float64)

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log-density of X [N, D], the higher the better; `y` is not looked at."""
        del y
        return float(np.mean(self.score_samples(X)))

    def sample(self, n_samples: int = 1, random_state: int | Key | None = None) -> np.ndarray:
        """[n_samples, D] draws; None for those of the estimator's own `random_state`, always the same."""
        state = self.random_state if random_state is None else random_state
        key = random.derive(_key(state, "random_state"), "sample")
        return np.asarray(self._fitted().sample(key, checks.positive_int(n_samples, "n_samples")))

    def _fitted(self) -> Any:
        if not self.__sklearn_is_fitted__():
            raise AttributeError(f"{type(self).__name__} is not fitted yet: call fit(X) first")
        return self.model_

    def __sklearn_is_fitted__(self) -> bool:
        return "model_" in self.__dict__

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import Tags, TargetTags  # pyright: ignore[reportMissingImports]

        return Tags(estimator_type="density_estimator", target_tags=TargetTags(required=False))

    def __repr__(self) -> str:
        defaults = {n: p.default for n, p in inspect.signature(type(self).__init__).parameters.items()}
        told = {n: v for n, v in self.get_params().items() if v is not defaults[n]}
        return f"{type(self).__name__}({', '.join(f'{n}={v!r:.40}' for n, v in told.items())})"


def _numbers(x: Any) -> Any:
    """Integers as floats: a table of counts is a table."""
    if _frames.is_frame(x):
        return x
    array: Array | np.ndarray = np.asarray(x)
    return array.astype(np.float32) if array.dtype.kind in "iub" else x


def _key(state: Any, name: str) -> Key:
    if isinstance(state, jax.Array):
        return checks.one_key(state, name)
    return jax.random.key(checks.positive_int(state, name, 0))
