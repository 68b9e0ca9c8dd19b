"""Tokens of any integer dtype are what they are in int32 wherever one meets V, which it may not hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egm
from egm import algorithms, bootstrap, buffer, energies, heads, networks, processes

KEY = jax.random.key(0)
# Each dtype with the largest vocabulary whose data tokens it holds, or nearly; the mask V is one beyond.
CASES = [("uint8", 256), ("uint8", 255), ("int8", 128), ("int8", 127), ("int16", 300), ("uint16", 300)]
CASES += [("uint32", 300), ("int64", 300)]
FAST = [("uint8", 256), ("int8", 128)]  # the mask is one beyond what the dtype holds
CASES = [case if case in FAST else pytest.param(*case, marks=pytest.mark.slow) for case in CASES]


def energy(x):
    """[N] of tokens [N, L]: no symmetry, large tokens matter."""
    return jnp.sum(jnp.sin(x * jnp.arange(1.0, 1 + x.shape[-1])[None]), axis=-1)


def results(path, x_1, x_t):
    """Everything of the library that takes tokens, at states [4, 3]; keys and shapes the same for all."""
    v, t, r = path.vocab_size, 0.3, 0.7
    keys = jax.random.split(KEY, 4)
    x_r = path.noise(KEY, x_1, 1.0, r)
    logits = jax.random.normal(KEY, (*x_1.shape, v))
    head = heads.DenoiserHead(path)
    net = networks.MLPDenoiser(vocab_size=v, width=4, depth=1)
    params = net.init(KEY, jnp.zeros((1, 3), jnp.int32))
    denoise = lambda x, t: head.generator(net.apply(params, x), x)
    with_conditionals = energies.WithConditionals(energy, v)
    jump, any_order = processes.JumpProcess(path), processes.AnyOrderProcess(path)
    x_0 = path.sample_prior(KEY, x_1.shape)
    relative = bootstrap.relative_boundary(energy, lambda x, t: -energy(x), path)
    product = egm.paths.ProductPath({"h": path})
    weighted = algorithms.Weighted(path, head, net.apply)
    return {
        "masked": path.masked(x_1),
        "contains": path.contains(x_1),
        "determined": path.determined(x_1),
        "data_state": path.data_state(x_1),
        "prior_log_density": path.prior_log_density(x_1),
        "sample": path.sample(KEY, x_1, t),
        "noise": path.noise(KEY, x_t, r, t),
        "log_noising": path.log_noising(path.sample(KEY, x_1, t), t, x_1, 1.0),
        "log_noising of data": path.log_noising(x_1, t, x_1, r),
        "propose": path.propose(KEY, x_t, t, r, 5),
        "propose data": path.propose(KEY, x_t, t, 1.0, 5),
        "log_normalizer": path.log_normalizer(x_t, t, r),
        "conditional_generator": path.conditional_generator(x_t, t, x_1, 1.0),
        "local_generator": path.local_generator(lambda x, t: -energy(x), x_t, t),
        "product": product.sample(KEY, {"h": x_1}, t)["h"],
        "jump": jump.step(KEY, x_t, denoise, t, r),
        "jump log_ratio": jump.log_ratio(x_r, x_1, denoise, r, 1.0),
        "jump back": jump.reverse_step(KEY, x_1, denoise, t, r),
        "any order": any_order.step(KEY, x_t, denoise, t, r),
        "any order back": any_order.reverse_step(KEY, x_1, denoise, t, r),
        "simulate": egm.simulate(KEY, jump, denoise, x_0, path.times(4))[1:3],
        "simulate back": egm.simulate_reverse(KEY, jump, denoise, x_1, path.times(4))[:3:2],
        "estimate": egm.estimate(KEY, path, bootstrap.terminal(energy), x_t, t, 1.0, num_samples=10),
        "with_tokens": bootstrap.with_tokens(x_1, jnp.zeros(4, jnp.int32), v),
        "relative_boundary": relative(x_1, jnp.full(4, t)),
        "local_target": bootstrap.local_target(KEY, relative, path, x_t, jnp.full(4, t)),
        "conditionals": with_conditionals.single_site_conditionals(x_1),
        "denoiser": net.apply(params, x_t),
        "head target": head.conditional_target(x_1, x_t, t, None),
        "head divergence": head.divergence(jax.nn.softmax(logits), logits, x_t),
        "weighted": weighted.loss(keys, params, params, x_1, jnp.full(4, t), energy)[0],
    }


@pytest.mark.parametrize(("dtype", "vocab"), CASES)
def test_any_dtype_is_int32(dtype, vocab, request):
    if dtype == "int64":
        request.getfixturevalue("x64")
    path = egm.paths.MaskedPath(vocab)
    x_1 = np.array([[0, 1, vocab - 1], [vocab // 2, vocab - 1, 0], [3, 2, 1], [vocab - 2, vocab - 2, 5]])
    x_t = x_1.copy()
    holds_mask = np.iinfo(dtype).max >= vocab
    if holds_mask:
        x_t[:3, 1] = vocab
    wide = jax.jit(results, static_argnums=0)(path, x_1.astype(np.int32), x_t.astype(np.int32))
    came = jax.jit(results, static_argnums=0)(path, x_1.astype(dtype), x_t.astype(dtype))
    for name in wide:
        for a, b in zip(jax.tree.leaves(came[name]), jax.tree.leaves(wide[name]), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)
    assert not np.any(wide["masked"])
    assert came["sample"].dtype == came["noise"].dtype == came["data_state"].dtype == jnp.int32


def test_the_reported_cases():
    path = egm.paths.MaskedPath(256)
    np.testing.assert_array_equal(path.masked(np.array([0, 1, 255], np.uint8)), [False] * 3)
    low = egm.paths.MaskedPath(128)
    np.testing.assert_array_equal(low.masked(np.array([-128, 0, 127], np.int8)), [False] * 3)
    traced = jax.jit(low.contains)(np.array([[-128, 0], [127, 0]], np.int8))
    np.testing.assert_array_equal(traced, [False, True])


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "uint32", "int64"])
def test_what_is_no_token_stays_none(dtype, request):
    """Narrowing must not wrap 2^32 + 1 to token 1, nor 258 to token 2."""
    if dtype == "int64":
        request.getfixturevalue("x64")
    path = egm.paths.MaskedPath(2)
    info = np.iinfo(dtype)
    values = [
        v for v in (-(2**32) + 1, -1, 3, 258, 2**31, 2**32 - 1, 2**32 + 1, 2**62) if info.min <= v <= info.max
    ]
    x = np.array(values, dtype)[:, None]
    assert not np.any(jax.jit(path.contains)(x))
    assert not np.any(jax.jit(path.masked)(x))
    ising = energies.Ising(2, 1.0)
    spins = np.asarray(ising._spins(np.tile(x, 4)))
    assert not np.any((spins == 1) | (spins == -1) | (spins == 3))


def test_mixed_networks_and_energies():
    path = egm.paths.VarianceExplodingPath(0.1, 3.0)
    for dtype, vocab in (("uint8", 256), ("int8", 128)):
        net = networks.MLPMixed(path, vocab, width=4, depth=1)
        h = np.array([[0, vocab - 1], [1, 0]])
        state = {"x": jnp.ones((2, 2)), "h": h.astype(np.int32)}
        params = net.init(KEY, state, jnp.ones(2))
        wide, narrow = (net.apply(params, state | {"h": h.astype(d)}, jnp.ones(2)) for d in ("int32", dtype))
        jax.tree.map(np.testing.assert_array_equal, narrow, wide)
    rbm = energies.GaussianBernoulliRBM()
    state = rbm.sample(KEY, 5)
    for dtype in ("uint8", "int8", "uint32"):
        narrow = state | {"h": state["h"].astype(dtype)}
        np.testing.assert_array_equal(rbm(narrow), rbm(state))


def test_a_buffer_refuses_what_its_dtype_cannot_hold():
    ring = buffer.init(8, {"h": jnp.zeros(3, jnp.uint8)})
    with pytest.raises(TypeError, match="uint8.*int32"):
        buffer.add(ring, {"h": jnp.full((2, 3), 256, jnp.int32)})
    wide = buffer.init(8, {"h": jnp.zeros(3, jnp.int32)})
    added = buffer.add(wide, {"h": jnp.full((2, 3), 255, jnp.uint8)})
    np.testing.assert_array_equal(added.items["h"][:2], 255)


def test_vocabularies_beyond_int32_raise():
    with pytest.raises(ValueError, match="vocab_size must be at most"):
        egm.paths.MaskedPath(2**31)
