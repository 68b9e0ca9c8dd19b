"""Spaces: bijections with their log-determinants, layouts of pytrees, energies of one state or of many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egm
from egm import spaces
from egm.batching import batched_energy
from egm.spaces import Circle, Interval, Layout, Particles, Positive, Real, Tokens

CONTINUOUS = [Circle(3), Real(3), Positive(3), Interval(-2.0, 5.0, 3), Positive(()), Interval(shape=(2, 2))]
MIXED = {"a": Positive((2, 2)), "b": (Tokens(3, 4), Tokens((2, 1))), "c": Interval(0, 2), "d": Real()}


@pytest.mark.parametrize("space", CONTINUOUS, ids=repr)
def test_log_determinants_are_those_of_the_jacobian(space):
    y = jax.random.normal(jax.random.key(0), (5, *space.shape))
    x, log_det = space.constrain(y)
    np.testing.assert_allclose(space.unconstrain(x), y, rtol=2e-5, atol=2e-5)
    size = int(np.prod(space.shape))

    def flat(row):
        return space.constrain(row.reshape(1, *space.shape))[0].reshape(size)

    for row, value in zip(y.reshape(5, size), log_det, strict=True):
        jacobian = np.asarray(jax.jacobian(flat)(row), np.float64).reshape(size, size)
        assert abs(np.linalg.slogdet(jacobian)[1] - value) < 1e-4


def test_a_layout_goes_there_and_back():
    layout = Layout(MIXED)
    assert layout.event_shape == {"x": (6,), "h": (5,)}
    assert layout.vocab_size == 4
    assert layout.vocab_sizes.tolist() == [4, 4, 4, 2, 2]
    k_x, k_h = jax.random.split(jax.random.key(0))
    state = {"x": jax.random.normal(k_x, (7, 6)), "h": jax.random.randint(k_h, (7, 5), 0, 2)}
    x, log_det = layout.to_user(state)
    assert jax.tree.map(lambda a: a.shape, x) == {
        "a": (7, 2, 2),
        "b": ((7, 3), (7, 2, 1)),
        "c": (7,),
        "d": (7,),
    }
    np.testing.assert_allclose(
        log_det, MIXED["a"].constrain(x["a"] * 0)[1] * 0 + jnp.sum(state["x"][:, :4], 1)
        + MIXED["c"].constrain(state["x"][:, 4])[1], rtol=1e-5, atol=1e-5,
    )  # fmt: skip
    back = layout.from_user(x)
    np.testing.assert_array_equal(back["h"], state["h"])
    np.testing.assert_allclose(back["x"], state["x"], atol=1e-5)


def test_tokens_that_a_leaf_does_not_have_have_no_density():
    layout = Layout((Tokens(2, 3), Tokens(1, 2)))
    energy = layout.energy(lambda x: jnp.zeros(x[0].shape[0]))
    e = energy(jnp.array([[2, 0, 1], [0, 0, 2]]))
    assert e.tolist() == [0.0, np.inf]


def test_particles_are_centred():
    space = Particles(3, 2)
    x = Layout(space).from_user(jax.random.normal(jax.random.key(0), (4, 6)) + 5)
    np.testing.assert_allclose(x.reshape(4, 3, 2).mean(1), 0, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Layout({}), "at least one space"),
        (lambda: Layout({"a": 3}), "space must be a space"),
        (lambda: Layout({"a": Real}), "space must be a space"),
        (lambda: Layout([Particles(3), Real(2)]), "Particles stand alone"),
        (lambda: Real(0), "every size in shape"),
        (lambda: Real(2.5), "every size in shape"),
        (lambda: Real((3, 4), periodic=True), "two equal axes"),
        (lambda: Circle((3, 4), periodic=True), "two equal axes"),
        (lambda: Circle(0), "every size in shape"),
        (lambda: Tokens(4, 1), "vocab_size"),
        (lambda: Tokens(5, 2, periodic=(2, 3)), "a grid of the 5 sites"),
        (lambda: Interval(1, 1), "low must be below high"),
        (lambda: Interval(0, np.inf), "high"),
        (lambda: Layout(Real(2)).from_user(jnp.zeros((3, 3))), "x must have shape"),
        (lambda: Layout({"a": Real(2)}).from_user(jnp.zeros((3, 2))), "structure"),
        (lambda: spaces.of(lambda x: x), "event_shape"),
    ],
)
def test_messages(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.parametrize("make", [egm.energies.Ising, egm.energies.GaussianBernoulliRBM,
                                  egm.energies.JointDoubleWell, egm.energies.LennardJones,
                                  egm.energies.DoubleWell4])  # fmt: skip
def test_the_librarys_energies_know_their_space(make):
    energy = make(3, 0.4) if make is egm.energies.Ising else make()
    layout = Layout(spaces.of(energy))
    assert batched_energy(energy, layout)(layout.example(3)).shape == (3,)
    assert layout.event_shape == energy.event_shape


QUADRATIC = {"mu": Real(), "theta": Real(4)}
ENERGIES = [
    (Real(3), lambda x: jnp.sum(x**2)),
    (Real(3), lambda x: jnp.sum(x**2, axis=-1)),
    (Real(3), lambda x: x @ jnp.eye(3) @ x),
    (Real(), lambda x: x**2),
    # On a batch it returns [N] too, each number with the others' in it.
    (QUADRATIC, lambda s: s["mu"] ** 2 + jnp.sum(s["theta"] ** 2)),
    (QUADRATIC, lambda s: s["mu"] ** 2 + jnp.sum(s["theta"] ** 2, axis=-1)),
    (Tokens((2, 2), 3), lambda x: jnp.sum(x == x.T)),
]


@pytest.mark.parametrize(("space", "function"), ENERGIES)
def test_energies_of_one_state_and_of_many(space, function):
    layout = Layout(space)
    x = layout.to_user(
        layout.joined(jax.random.normal(jax.random.key(0), (5, layout.num_coordinates)),
                      jnp.ones((5, layout.num_sites), jnp.int32)))[0]  # fmt: skip
    one = [float(function(jax.tree.map(lambda a, i=i: a[i], x))) for i in range(5)]
    np.testing.assert_allclose(batched_energy(function, layout)(x), one, rtol=1e-6)


@pytest.mark.parametrize("function", [lambda x: x, lambda x: None, lambda x: x[..., 5]])
def test_energies_that_return_no_number(function):
    with pytest.raises(ValueError, match="energy must return one number a state"):
        batched_energy(function, Layout(Real((3, 2))))
