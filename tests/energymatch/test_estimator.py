"""`EnergyEstimator`: scikit-learn's methods, with scikit-learn left out (tests/test_interop.py has it)."""

import jax
import numpy as np
import pytest

import energymatch
from energymatch import EnergyEstimator

TABLE = np.random.default_rng(0).normal(size=(200, 2)) * np.array([1.0, 5.0])


@pytest.fixture(scope="module")
def fitted():
    return EnergyEstimator(steps=0, random_state=3).fit(TABLE)


def test_it_is_the_model_of_fit(fitted):
    model = energymatch.fit(jax.random.key(3), TABLE, steps=0, progress=False)
    scores = fitted.score_samples(TABLE)
    assert scores.shape == (200,) and scores.dtype == np.float64
    np.testing.assert_array_equal(scores, np.asarray(model.log_prob(TABLE), np.float64))
    assert fitted.score(TABLE) == scores.mean()
    assert fitted.n_features_in_ == 2 and not hasattr(fitted, "feature_names_in_")
    np.testing.assert_array_equal(
        fitted.score_samples(np.array([[1, 2]])), fitted.score_samples(np.array([[1.0, 2.0]]))
    )


def test_draws_follow_their_random_state(fitted):
    x = fitted.sample(5)
    assert x.shape == (5, 2)
    np.testing.assert_array_equal(x, fitted.sample(5))
    np.testing.assert_array_equal(fitted.sample(5, 1), fitted.sample(5, jax.random.key(1)))
    assert not np.array_equal(x, fitted.sample(5, random_state=1))


def test_parameters_are_got_and_set_as_they_came():
    network = object()
    estimator = EnergyEstimator(seconds=5, network=network)
    told = {"seconds": 5, "steps": None, "network": network, "random_state": 0, "progress": False}
    assert estimator.get_params() == told
    assert estimator.set_params(steps=7, random_state=2) is estimator
    assert estimator.get_params() == told | {"steps": 7, "random_state": 2}
    assert repr(estimator.set_params(network=None)) == "EnergyEstimator(seconds=5, steps=7, random_state=2)"
    with pytest.raises(ValueError, match="depth must be one of"):
        estimator.set_params(depth=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"random_state": None}, "random_state"), ({"steps": -1}, "steps"), ({"network": "mlp"}, "network")],
)
def test_arguments_are_checked_by_fit(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        EnergyEstimator(**options).fit(TABLE)


def test_what_is_not_fitted_says_so(fitted):
    for call in (lambda e: e.score_samples(TABLE), lambda e: e.score(TABLE), lambda e: e.sample(1)):
        with pytest.raises(AttributeError, match="not fitted yet"):
            call(EnergyEstimator())
    with pytest.raises(ValueError, match="n_samples"):
        fitted.sample(0)
