"""Tables with named columns in `energymatch.fit` and its models, by a stand-in for pandas and polars."""

import json

import jax
import numpy as np
import pytest

import energymatch
from energymatch import _frames
from energymatch.model import EnergyModel

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(200, 3)) @ np.array([[1.0, 0.8, 0.0], [0.0, 0.6, 0.0], [0.0, 0.0, 5.0]])
NAMES = ("height", "weight", "age")


class Frame:
    """The least that a frame offers: columns in order, one by its name, and `to_numpy`."""

    def __init__(self, **columns):
        self._columns = {n: np.asarray(c) for n, c in columns.items()}

    @property
    def columns(self):
        return list(self._columns)

    def __getitem__(self, name):
        return self._columns[name]

    def __len__(self):
        return len(next(iter(self._columns.values())))

    def to_numpy(self):
        return np.stack([self[c].astype(object) for c in self.columns], axis=1)


def frame_of(rows, names=NAMES, order=None):
    return Frame(**{n: rows[:, names.index(n)] for n in order or names})


def with_cell(value):
    rows = ROWS.copy()
    rows[7, 2] = value
    return rows


@pytest.fixture(scope="module")
def model():
    return energymatch.fit(jax.random.key(0), frame_of(ROWS), steps=0, progress=False)


def test_the_model_is_that_of_the_array_and_has_the_names(model):
    other = energymatch.fit(jax.random.key(0), ROWS, steps=0, progress=False)
    assert (model.columns, other.columns) == (NAMES, None)
    np.testing.assert_array_equal(model.log_prob(ROWS[:9]), other.log_prob(ROWS[:9]))


def test_frames_are_read_by_name_in_any_order(model):
    turned = frame_of(ROWS[:9], order=("age", "height", "weight"))
    for function in (model.log_prob, model.energy, model.score, model.dimension):
        np.testing.assert_array_equal(function(turned), function(ROWS[:9]))
    with pytest.raises(ValueError, match=r"x must have the columns .*it lacks \['age'\]"):
        model.log_prob(Frame(height=ROWS[:3, 0], weight=ROWS[:3, 1]))


def test_imputed_frames_are_imputed_arrays(model):
    gaps = ROWS[:4].copy()
    gaps[0, 1] = gaps[2, 0] = np.nan
    key = jax.random.key(1)
    wanted = np.asarray(model.impute(key, gaps, ~np.isnan(gaps), 5))
    assert np.all(np.isfinite(wanted)) and len(np.unique(wanted[:, 0, 1])) == 5
    turned = frame_of(gaps, order=("weight", "age", "height"))
    seen = frame_of(~np.isnan(gaps), order=("age", "weight", "height"))
    for found in (model.impute(key, gaps, num=5), model.impute(key, turned, seen, 5)):
        np.testing.assert_array_equal(found, wanted)
    gaps[3, 2] = np.inf
    with pytest.raises(ValueError, match="finite where it is observed, got inf at row 3, column 'age'"):
        model.impute(key, gaps)


def test_names_are_saved(model, tmp_path):
    model.save(tmp_path / "model")
    loaded = EnergyModel.load(tmp_path / "model")
    assert loaded.columns == NAMES
    # A model of before there were names.
    about = json.loads((tmp_path / "model" / "model.json").read_text())
    del about["columns"], about["named_leaves"]
    (tmp_path / "model" / "model.json").write_text(json.dumps(about))
    assert EnergyModel.load(tmp_path / "model").columns is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (frame_of(with_cell(np.nan)), "got nan at row 7, column 'age' and 1 such cells"),
        (Frame(a=ROWS[:, 0], b=np.ones(200)), "column 'b' is constant"),
        (Frame(a=ROWS[:, 0], b=2 * ROWS[:, 0]), "column 'b' is a copy of column 'a'"),
        (Frame(a=ROWS[:, 0], city=np.array(["x"] * 200)), "column 'city' of data must hold numbers, got <U1"),
        (
            Frame(a=ROWS[:, 0], city=np.array(["1"] * 200, object)),
            "column 'city' of data must hold numbers, got obj",
        ),
    ],
)
def test_errors_name_the_column(data, message):
    with pytest.raises((TypeError, ValueError), match=message):
        energymatch.fit(jax.random.key(0), data, progress=False)


def test_two_columns_of_one_name_are_refused():
    class Twice(Frame):
        columns = ("a", "a")

    with pytest.raises(ValueError, match="different names, got 'a' twice"):
        energymatch.fit(jax.random.key(0), Twice(a=ROWS[:, 0]), progress=False)


def test_noise_is_told_by_name():
    coins = RNG.integers(0, 2, 200)
    model = energymatch.fit(
        jax.random.key(0), Frame(height=ROWS[:, 0], smoker=coins), steps=0, progress=False
    )
    assert "['smoker']" in model.report()


def test_columns_of_several_dtypes_are_one_table():
    mixed = Frame(a=np.arange(3), b=np.array([True, False, True]), c=np.ones(3, np.float32))
    np.testing.assert_array_equal(_frames.values_of(mixed, "x"), [[0, 1, 1], [1, 0, 1], [2, 1, 1]])
