"""The targets of benchmarks/energies.py: an energy, its space, log Z from elsewhere, and what else is known.

Each function of `TARGETS` returns a `Target`. Truths come from closed forms, quadrature, transfer matrices,
importance sampling from a wide t distribution in float64, or long Hamiltonian chains in NumPy; none of them
uses the library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import integrate, linalg, optimize, special

import egm
from egm import spaces


class Target(NamedTuple):
    """A target and what is known of it.

    Attributes:
      energy, space: as `egm.fit` takes them.
      log_z: from elsewhere; None where it is not known.
      facts: {name: (function of states [N, ...] -> [N], its mean)}, or None in place of the mean.
      modes: function of states to the index of their mode, and the modes' masses; or None.
    """

    energy: Callable[..., Any]
    space: Any = None
    log_z: float | None = None
    facts: dict[str, Any] = {}
    modes: tuple[Callable[[Any], Any], np.ndarray] | None = None


def gaussian(dim=50, condition=1e4):
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    variance = np.geomspace(1.0, condition, dim)
    precision = jnp.asarray((turn / variance) @ turn.T, jnp.float32)
    energy = lambda x: 0.5 * jnp.sum((x @ precision) * x, -1)
    return Target(energy, spaces.Real(dim), 0.5 * np.sum(np.log(2 * np.pi * variance)))


def funnel(dim=10, sd=3.0):
    def energy(x):
        v, rest = x[..., 0], x[..., 1:]
        own = 0.5 * (v / sd) ** 2 + 0.5 * np.log(2 * np.pi * sd**2)
        return own + 0.5 * jnp.sum(rest**2 * jnp.exp(-v)[..., None] + v[..., None] + np.log(2 * np.pi), -1)

    return Target(energy, spaces.Real(dim), 0.0, {"v^2": (lambda x: x[:, 0] ** 2, sd**2)})


def many_well(dim=32):
    def energy(x):
        a, b = x[..., 0::2], x[..., 1::2]
        return jnp.sum(a**4 - 6 * a**2 - 0.5 * a + 0.5 * b**2, -1)

    well = lambda a: np.exp(-(a**4) + 6 * a**2 + 0.5 * a)
    left, right = integrate.quad(well, -6, 0)[0], integrate.quad(well, 0, 6)[0]
    log_z = dim / 2 * (np.log(left + right) + 0.5 * np.log(2 * np.pi))
    facts = {"right wells": (lambda x: jnp.mean(x[:, 0::2] > 0, -1), right / (left + right))}
    weights = 2 ** np.arange(5)
    # By the signs of the first five wells.
    signs = (np.arange(32)[:, None] & weights) > 0
    masses = np.prod(np.where(signs, right, left) / (left + right), axis=1)
    return Target(energy, spaces.Real(dim), log_z, facts, (lambda x: (x[:, 0:10:2] > 0) @ weights, masses))


def mixture(dim=2, num=40):
    rng = np.random.default_rng(0)
    means = jnp.asarray(rng.uniform(-40, 40, (num, dim)), jnp.float32)

    def energy(x):
        square = jnp.sum((x[..., None, :] - means) ** 2, -1)
        return -jax.nn.logsumexp(-0.5 * square, -1) + np.log(num) + 0.5 * dim * np.log(2 * np.pi)

    nearest = lambda x: np.argmin(((x[:, None] - np.asarray(means)) ** 2).sum(-1), 1)
    return Target(energy, spaces.Real(dim), 0.0, {}, (nearest, np.full(num, 1 / num)))


def eight_schools():
    y = jnp.array([28.0, 8, -3, 7, -1, 1, 18, 12])
    error = jnp.array([15.0, 10, 16, 11, 9, 11, 10, 18])
    normal = lambda x, sd: -0.5 * (x / sd) ** 2 - jnp.log(sd) - 0.5 * np.log(2 * np.pi)

    def log_density(p):
        theta = p["mu"] + p["tau"] * p["z"]
        cauchy = np.log(2 / np.pi) - jnp.log(5.0) - jnp.log1p((p["tau"] / 5) ** 2)
        return normal(p["mu"], 5.0) + cauchy + jnp.sum(normal(p["z"], 1.0) + normal(y - theta, error))

    def inner(tau):
        # mu and the effects are normal given tau.
        variance = np.asarray(error, float) ** 2 + tau**2
        precision = np.sum(1 / variance) + 1 / 25
        mean = np.sum(np.asarray(y) / variance) / precision
        square = np.sum(np.asarray(y) ** 2 / variance) - mean**2 * precision
        log_p = -0.5 * (square + np.sum(np.log(2 * np.pi * variance)) + np.log(precision)) - np.log(5)
        return np.exp(log_p) * 2 / np.pi / 5 / (1 + (tau / 5) ** 2), mean

    total = lambda f: integrate.quad(f, 0, np.inf, epsabs=0, epsrel=1e-10, limit=500)[0]
    z = total(lambda t: inner(t)[0])
    facts = {
        "mu": (lambda p: p["mu"], total(lambda t: inner(t)[0] * inner(t)[1]) / z),
        "log tau": (lambda p: jnp.log(p["tau"]), total(lambda t: inner(t)[0] * np.log(t)) / z),
    }
    space = {"mu": spaces.Real(), "tau": spaces.Positive(), "z": spaces.Real(8)}
    return Target(lambda p: -log_density(p), space, float(np.log(z)), facts)


def logistic(columns=10):
    from sklearn import datasets

    data = datasets.load_breast_cancer()
    x = data.data[:, :columns]
    x = np.concatenate([(x - x.mean(0)) / x.std(0), np.ones((len(x), 1))], 1)
    sign = 2.0 * data.target - 1
    dim = columns + 1

    def log_p(w):
        prior = -0.5 * np.sum(w**2, -1) - 0.5 * dim * np.log(2 * np.pi)
        return prior - np.sum(np.logaddexp(0, -sign * (w @ x.T)), -1)

    design, signs = jnp.asarray(x, jnp.float32), jnp.asarray(sign, jnp.float32)

    def energy(w):
        prior = 0.5 * jnp.sum(w**2, -1) + 0.5 * dim * np.log(2 * np.pi)
        return prior + jnp.sum(jax.nn.softplus(-signs * jnp.matmul(w, design.T)), -1)

    def gradient(w):
        return w - (special.expit(-sign * (x @ w)) * sign) @ x

    best = optimize.minimize(lambda w: -log_p(w), np.zeros(dim), jac=gradient, method="BFGS").x
    p = special.expit(x @ best)
    hessian = (x.T * (p * (1 - p))) @ x + np.eye(dim)
    log_z, mean = _by_importance(log_p, best, np.linalg.inv(hessian))
    facts = {f"w{i}": (lambda w, i=i: w[:, i], mean[i]) for i in range(2)}
    return Target(energy, spaces.Real(dim), log_z, facts)


def _by_importance(log_p, center, covariance, num=400_000, freedom=8):
    """(log Z, mean) by importance sampling from a t distribution."""
    rng, dim = np.random.default_rng(1), len(center)
    root = np.linalg.cholesky(1.3 * covariance)
    total = []
    for _ in range(num // 20_000):
        noise = rng.normal(size=(20_000, dim)) / np.sqrt(rng.chisquare(freedom, (20_000, 1)) / freedom)
        w = center + noise @ root.T
        norm = special.gammaln((freedom + dim) / 2) - special.gammaln(freedom / 2)
        log_q = norm - 0.5 * dim * np.log(freedom * np.pi) - np.linalg.slogdet(root)[1]
        log_q = log_q - 0.5 * (freedom + dim) * np.log1p(np.sum(noise**2, 1) / freedom)
        total.append((log_p(w) - log_q, w))
    log_w = np.concatenate([a for a, _ in total])
    weight = np.exp(log_w - special.logsumexp(log_w))
    return float(special.logsumexp(log_w) - np.log(num)), weight @ np.concatenate([b for _, b in total])


def phi4(side=8, mass=-1.0, coupling=0.5):
    """E = sum of (grad phi)^2 / 2 + m^2 phi^2 / 2 + lambda phi^4 on a torus."""

    def energy(f):
        bonds = sum((f - jnp.roll(f, 1, axis)) ** 2 for axis in (-2, -1))
        return jnp.sum(0.5 * bonds + 0.5 * mass * f**2 + coupling * f**4, (-2, -1))

    def value(f):
        bonds = sum((f - np.roll(f, 1, axis)) ** 2 for axis in (-2, -1))
        return np.sum(0.5 * bonds + 0.5 * mass * f**2 + coupling * f**4, (-2, -1))

    def force(f):
        laplace = sum(2 * f - np.roll(f, 1, axis) - np.roll(f, -1, axis) for axis in (-2, -1))
        return laplace + mass * f + 4 * coupling * f**3

    chains = _hamiltonian(value, force, (side, side))
    square, volume = lambda f: np.mean(f**2, (-2, -1)), side**2
    susceptibility = lambda f: volume * np.mean(f, (-2, -1)) ** 2
    facts = {
        "phi^2": (lambda f: square(np.asarray(f)), float(np.mean(square(chains)))),
        "susceptibility": (lambda f: susceptibility(np.asarray(f)), float(np.mean(susceptibility(chains)))),
    }
    return Target(energy, spaces.Real((side, side), periodic=True), None, facts)


def _hamiltonian(value, force, shape, chains=400, sweeps=3000, steps=10):
    """[chains * 100, *shape] states of Hamiltonian Monte Carlo, with a global flip, float64."""
    rng = np.random.default_rng(2)
    x, size, kept = rng.normal(size=(chains, *shape)), 0.15, []
    column = (-1,) + (1,) * len(shape)
    for sweep in range(sweeps):
        p = rng.normal(size=x.shape)
        y, h = x.copy(), size * rng.uniform(0.8, 1.2)
        q = p - 0.5 * h * force(y)
        for step in range(steps):
            y = y + h * q
            q = q - (h if step < steps - 1 else 0.5 * h) * force(y)
        axes = tuple(range(1, x.ndim))
        delta = value(y) - value(x) + 0.5 * np.sum(q**2 - p**2, axes)
        accept = np.log(rng.uniform(size=chains)) < -delta
        x = np.where(accept.reshape(column), y, x)
        x = x * rng.choice([-1.0, 1.0], chains).reshape(column)
        if sweep < sweeps // 6:
            size *= np.exp(0.05 * (accept.mean() - 0.8))
        elif sweep % (sweeps // 120) == 0:
            kept.append(x)
    return np.concatenate(kept)


def xy(side=4, beta=1.0):
    """The XY model; <cos> of a bond by Metropolis chains with over-relaxation in NumPy."""

    def energy(a):
        return -beta * sum(jnp.sum(jnp.cos(a - jnp.roll(a, 1, axis)), (-2, -1)) for axis in (-2, -1))

    rng = np.random.default_rng(3)
    a = rng.uniform(-np.pi, np.pi, (600, side, side))
    i, j = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    colours, kept = (i + j) % 2, []
    for sweep in range(4000):
        for colour in (0, 1):
            here = colours == colour
            around = sum(np.exp(1j * np.roll(a, k, axis)) for axis in (-2, -1) for k in (1, -1))
            field, strength = np.angle(around), np.abs(around)
            proposed = 2 * field - a if sweep % 3 else a + rng.uniform(-2, 2, a.shape)
            delta = beta * strength * (np.cos(a - field) - np.cos(proposed - field))
            take = here & (np.log(rng.uniform(size=a.shape)) < -delta)
            a = np.where(take, proposed, a)
        if sweep > 600 and sweep % 30 == 0:
            kept.append(a)
    bond = lambda a: sum(np.mean(np.cos(a - np.roll(a, 1, axis)), (-2, -1)) for axis in (-2, -1)) / 2
    magnet = lambda a: np.abs(np.mean(np.exp(1j * a), (-2, -1)))
    chains = np.concatenate(kept)
    facts = {
        "bond": (lambda a: bond(np.asarray(a)), float(np.mean(bond(chains)))),
        "|m|": (lambda a: magnet(np.asarray(a)), float(np.mean(magnet(chains)))),
    }
    return Target(energy, spaces.Circle((side, side), periodic=True), None, facts)


def von_mises():
    """A ring of 6 angles with couplings 2 and a field 1, log Z by the transfer operator on a grid."""
    n = 6

    def energy(a):
        return -2.0 * jnp.sum(jnp.cos(a - jnp.roll(a, 1, -1)), -1) - jnp.sum(jnp.cos(a), -1)

    grid = 2 * np.pi * np.arange(256) / 256
    step = np.exp(2 * np.cos(grid[:, None] - grid) + 0.5 * np.cos(grid)[:, None] + 0.5 * np.cos(grid))
    log_z = np.log(np.sum(linalg.eigvalsh(step * 2 * np.pi / 256) ** n))
    return Target(energy, spaces.Circle(n), float(log_z))


def angle_and_number():
    """theta uniform in a von Mises ring whose strength is a number: k = exp(y), y ~ N(0, 1)."""

    def energy(p):
        k = jnp.exp(p["y"])
        return 0.5 * p["y"] ** 2 - k * (jnp.cos(p["theta"] - p["y"]) - 1)

    density = lambda y: np.exp(-0.5 * y**2) * 2 * np.pi * special.i0e(np.exp(y))
    z = integrate.quad(density, -9, 6)[0]
    return Target(energy, {"theta": spaces.Circle(), "y": spaces.Real()}, float(np.log(z)))


def ising(side=8, beta=0.440686793509772):
    energy = egm.energies.Ising(side, beta)
    return Target(energy, None, float(energy.log_partition()))


def potts(side=8, colours=3, beta=0.9):
    def energy(x):
        bonds = sum(jnp.sum(x == jnp.roll(x, 1, axis), (-2, -1)) for axis in (-2, -1))
        return -beta * bonds.astype(float)

    # Trace of the transfer matrix of a row, by its squares.
    rows = np.stack(np.meshgrid(*[np.arange(colours)] * side, indexing="ij"), -1).reshape(-1, side)
    inside = 0.5 * beta * np.sum(rows == np.roll(rows, 1, 1), 1)
    between = np.zeros((len(rows), len(rows)))
    for site in range(side):
        between += beta * (rows[:, site, None] == rows[None, :, site])
    transfer = np.exp(between + inside[:, None] + inside - beta * 2 * side)
    log_z, power = side * beta * 2 * side, 1
    while power < side // 2:
        transfer, power = transfer @ transfer, 2 * power
    log_z += np.log(np.sum(transfer * transfer.T))
    return Target(energy, spaces.Tokens((side, side), colours, periodic=True), float(log_z))


def spin_glass(side=8, beta=1.0, seed=0):
    rng = np.random.default_rng(seed)
    right, down = rng.choice([-1.0, 1.0], (2, side, side))

    def energy(x):
        s = 2.0 * x - 1
        return -beta * jnp.sum(right * s * jnp.roll(s, -1, -1) + down * s * jnp.roll(s, -1, -2), (-2, -1))

    rows = 2.0 * (np.arange(2**side)[:, None] >> np.arange(side) & 1) - 1
    total, log_z = np.eye(2**side), 0.0
    for i in range(side):
        inside = np.sum(right[i] * rows * np.roll(rows, -1, 1), 1)
        step = np.exp(beta * (inside[:, None] + (rows * down[i]) @ rows.T - 2 * side))
        total, log_z = total @ step, log_z + 2 * side * beta
        log_z += np.log(total.max())
        total /= total.max()
    return Target(energy, spaces.Tokens((side, side), periodic=True), float(log_z + np.log(np.trace(total))))


def rbm():
    energy = egm.energies.GaussianBernoulliRBM()
    return Target(energy, None, float(energy.log_partition()))


def coupled():
    energy = egm.energies.CoupledJointMixture()
    return Target(energy, None, float(energy.log_partition()))


def joint_double_well():
    return Target(egm.energies.JointDoubleWell(), None, None)


def lennard_jones(num=13):
    return Target(egm.energies.LennardJones(num), None, None)


def banana(dim=10):
    """Rosenbrock in pairs, in normalised form: a ~ N(1, 1), b | a ~ N(a^2, 1/20)."""

    def energy(x):
        a, b = x[..., 0::2], x[..., 1::2]
        return jnp.sum(0.5 * (a - 1) ** 2 + 10 * (b - a**2) ** 2, -1)

    return Target(energy, spaces.Real(dim), dim / 2 * (np.log(2 * np.pi) - 0.5 * np.log(20)))


def ring(radius=4.0, width=0.2):
    def energy(x):
        return 0.5 * ((jnp.sqrt(jnp.sum(x**2, -1)) - radius) / width) ** 2

    area = integrate.quad(lambda r: r * np.exp(-0.5 * ((r - radius) / width) ** 2), 0, 2 * radius)[0]
    return Target(energy, spaces.Real(2), np.log(2 * np.pi * area))


def student(dim=5, freedom=4.0):
    def energy(x):
        return 0.5 * (freedom + dim) * jnp.log1p(jnp.sum(x**2, -1) / freedom)

    log_z = special.gammaln(freedom / 2) - special.gammaln((freedom + dim) / 2)
    return Target(energy, spaces.Real(dim), float(log_z + 0.5 * dim * np.log(freedom * np.pi)))


def unequal(dim=5):
    """Two modes of masses .2 and .8, of widths .3 and 1, at -4 and 4 in every coordinate."""

    def energy(x):
        narrow = jnp.log(0.2) - 0.5 * jnp.sum(((x + 4) / 0.3) ** 2, -1) - dim * np.log(0.3)
        wide = jnp.log(0.8) - 0.5 * jnp.sum((x - 4) ** 2, -1)
        return -jnp.logaddexp(narrow, wide) + 0.5 * dim * np.log(2 * np.pi)

    return Target(energy, spaces.Real(dim), 0.0, {"narrow": (lambda x: jnp.mean(x, -1) < 0, 0.2)})


def gas(num=6):
    """A lattice gas on a ring of L sites with occupation 0, 1, 2 and a chemical potential, by enumeration."""
    length = 2 * num

    def energy(x):
        return jnp.sum(0.7 * x * jnp.roll(x, 1, -1) - 0.4 * x - 0.6 * (x == 1), -1).astype(float)

    one = np.array([0.0, 1, 2])
    step = np.exp(-0.7 * one[:, None] * one + 0.4 * one + 0.6 * (one == 1))
    log_z = np.log(np.sum(linalg.eigvals(step) ** length).real)
    return Target(energy, spaces.Tokens(length, 3), float(log_z))


TARGETS = {
    "gaussian": gaussian,
    "funnel": funnel,
    "many_well": many_well,
    "mixture_2d": mixture,
    "mixture_50d": lambda: mixture(50),
    "eight_schools": eight_schools,
    "logistic_10": logistic,
    "logistic_30": lambda: logistic(30),
    "phi4_8": phi4,
    "phi4_16": lambda: phi4(16),
    "xy_4": xy,
    "xy_8": lambda: xy(8),
    "von_mises": von_mises,
    "angle_and_number": angle_and_number,
    "ising_8": ising,
    "ising_16": lambda: ising(16),
    "potts_8": potts,
    "spin_glass_8": spin_glass,
    "rbm": rbm,
    "coupled": coupled,
    "joint_double_well": joint_double_well,
    "lj13": lennard_jones,
    "banana": banana,
    "ring": ring,
    "student": student,
    "unequal": unequal,
    "gas": gas,
}
