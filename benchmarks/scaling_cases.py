"""What benchmarks/scaling.py measures: `run_*` takes a case, in its own process, and returns its rows."""

import functools
import os
import pathlib
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from jax.sharding import PartitionSpec as P

import egm
from egm import (
    algorithms,
    annealing,
    bootstrap,
    heads,
    iteration,
    networks,
    paths,
    processes,
    random,
)
from egm.devices import DATA, SPLIT, data_mesh, jit_step, put, shard_map_step
from egm.energies import Ising
from energymatch import losses, matching
from energymatch.networks import MLPPotential

FLAGS = flags.FLAGS
PATH = paths.MaskedPath(2)
PEAK_TFLOPS = {"H100": 67.0, "H200": 67.0, "A100": 19.5, "L4": 30.3, "V100": 15.7}
"""Float32 outside the tensor cores, by the vendor's data sheets."""


def ising_parts(side):
    """(energy, path's algorithm, initial parameters) of the weighted sampler, as examples/ising.py has it."""
    energy = Ising(side, 0.4)
    net = networks.TorusDenoiser(side=side, channels=16, expansion=1, skip=energy.masked_conditionals)
    params = net.init(jax.random.key(0), jnp.zeros((1, side**2), jnp.int32), jnp.zeros(1))
    return energy, algorithms.Weighted(PATH, heads.DenoiserHead(PATH), net.apply), params


def ising(size, axis_name):
    """(state, its layout, step, batch or None)."""
    energy, algorithm, params = ising_parts(5)
    config = iteration.IterationConfig(
        num_simulated=size, buffer_size=4 * size, num_gradient_steps=10, batch_size=size, num_times=25
    )
    init, step = iteration.make_iteration(
        algorithm,
        processes.AnyOrderProcess(PATH),
        energy,
        optax.adam(1e-3),
        config,
        event_shape=energy.event_shape,
        axis_name=axis_name,
    )
    return init(params), P(), step, None


def moons(size, axis_name):
    """Likewise, of phase 2."""
    rng, config = np.random.default_rng(0), matching.MatchingConfig()
    angle, lower = rng.uniform(0, np.pi, (size, 1)), rng.integers(2, size=(size, 1))
    arc = np.concatenate([np.cos(angle), np.sin(angle)], 1)
    x = (3 * np.where(lower, [[1.0, 0.5]] - arc, arc) - 1 + rng.uniform(size=(size, 1))).astype(np.float32)
    x_0, prior = (4 * rng.normal(size=(2, size, 2))).astype(np.float32)
    net = MLPPotential(width=128, depth=3, scale=4.0, output_scale=5.0)
    init, step = matching.make_matching(net.apply, optax.adam(1e-3), config, axis_name=axis_name)
    state = init(net.init(jax.random.key(0), x[:1]), jnp.asarray(x))
    return state, matching.state_spec(config), step, losses.Batch(x_0, x, x, prior)


def matmul_flops(jaxpr):
    """Flops of the products and convolutions of a jaxpr, a scan's times its length."""
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            contracted = eqn.params["dimension_numbers"][0][0]
            depth = np.prod([eqn.invars[0].aval.shape[i] for i in contracted])
            total += 2.0 * depth * eqn.outvars[0].aval.size
        elif eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval
            features = kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
            total += 2.0 * kernel.size / features * eqn.outvars[0].aval.size
        times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            total += times * matmul_flops(inner) if hasattr(inner, "eqns") else 0.0
    return total


def timed(run):
    """Median seconds of run(), which blocks, after one that is not counted."""
    run()
    times, start = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - start < FLAGS.seconds:
        tick = time.perf_counter()
        run()
        times.append(time.perf_counter() - tick)
    return float(np.median(times))


def share(flops, seconds, devices):
    """Of the peak, or None where that is not known."""
    kind = jax.devices()[0].device_kind
    peak = FLAGS.peak_tflops or next((v for k, v in PEAK_TFLOPS.items() if k in kind), None)
    return flops / seconds / (1e12 * peak * devices) if peak else None


def run_training(case):
    """Seconds of a step of both problems on all devices of all processes."""
    if case.get("address"):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(case["address"], case["processes"], case["index"])
    mesh, size, out = data_mesh(jax.devices()[: case["devices"]]), case["size"], []
    for problem in (ising, moons):
        sharded = FLAGS.way == "shard_map"
        wrap = shard_map_step if sharded else jit_step
        plain_state, spec, step, batch = problem(size, None)
        arguments = () if batch is None else (batch,)
        flops = matmul_flops(jax.make_jaxpr(step)(jax.random.key(0), plain_state, *arguments).jaxpr)
        state, _, step, _ = problem(size, DATA) if sharded else (plain_state, spec, step, batch)
        state = put(state, mesh, spec)
        rest = () if batch is None else (put(batch, mesh, SPLIT),)
        key = put(jax.random.key(1), mesh)
        holder, start = [state], time.perf_counter()
        program = wrap(step, mesh, state=spec).lower(key, state, *rest).compile()
        compile_s = time.perf_counter() - start

        def run(program=program, key=key, rest=rest, holder=holder):
            holder[0], metrics = program(key, holder[0], *rest)
            jax.block_until_ready((holder[0], metrics))
            if not np.isfinite(metrics["loss"].addressable_shards[0].data):
                raise RuntimeError("the loss is not finite")

        seconds = timed(run)
        out.append({**case, "problem": problem.__name__, "ms": 1e3 * seconds, "steps_per_s": 1 / seconds})
        out[-1] |= {"examples_per_s": size / seconds, "compile_s": compile_s}
        out[-1] |= {"share": share(flops, seconds, case["devices"]), "backend": jax.default_backend()}
    return out


def peak_bytes(reset=False):
    """Peak of the device, or of this process; `reset` starts it anew where Linux lets it."""
    if jax.default_backend() != "cpu":
        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    if reset and os.access("/proc/self/clear_refs", os.W_OK):
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def estimator(energy, x_t, num_samples, chunk):
    """(program, its key) of a naive estimate at x_t, half of it masked."""
    fn = lambda key, x: egm.estimate(
        key, PATH, bootstrap.terminal(energy), x, 0.5, 1.0, num_samples=num_samples, chunk_size=chunk
    )
    key = jax.random.key(2)
    return jax.jit(fn).lower(key, x_t).compile(), key


def run_memory(case):
    energy = Ising(10, 0.4)
    x_t = PATH.sample(jax.random.key(0), PATH.sample(jax.random.key(1), jnp.ones((4, 100), int), 1.0), 0.5)
    program, key = estimator(energy, x_t, case["K"], case["chunk"])
    out = {**case, "temp_mib": program.memory_analysis().temp_size_in_bytes / 2**20}
    if case["run"]:
        before = peak_bytes(reset=True)
        tick = time.perf_counter()
        jax.block_until_ready(program(key, x_t))
        out |= {"seconds": time.perf_counter() - tick, "rise_mib": (peak_bytes() - before) / 2**20}
        out["peak_mib"] = peak_bytes() / 2**20
    return [out]


def run_sites(case):
    side = case["side"]
    energy, algorithm, params = ising_parts(side)
    keys = jax.random.split(jax.random.key(3), 4)
    x_1, t = jax.random.randint(keys[0], (16, side**2), 0, 2), jax.random.uniform(keys[1], (16,))
    process = processes.AnyOrderProcess(PATH)

    def simulated(params, key):
        x_0 = jnp.full((8, side**2), 2, jnp.int32)
        return egm.simulate(key, process, algorithm.generator(params, energy), x_0, process.times(side**2))

    def gradient(params, key):
        tempered = annealing.AnnealedEnergy(energy, jnp.ones(()))
        loss = lambda p: algorithm.loss(random.example_keys(key, 16), p, p, x_1, t, tempered)[0]
        return jax.grad(lambda p: jnp.mean(loss(p)))(params)

    x_t = PATH.sample(keys[2], x_1[:4], 0.5)
    program, key = estimator(energy, x_t, 1000, None)
    out = {
        **case,
        "sites": side**2,
        "estimate_ms": 1e3 * timed(lambda: jax.block_until_ready(program(key, x_t))),
    }
    for name, fn in (("simulate", simulated), ("gradient", gradient)):
        run = jax.jit(fn)
        out[f"{name}_ms"] = 1e3 * timed(
            functools.partial(lambda f: jax.block_until_ready(f(params, key)), run)
        )
        flops = matmul_flops(jax.make_jaxpr(fn)(params, key).jaxpr)
        out[f"{name}_share"] = share(flops, out[f"{name}_ms"] / 1e3, 1)
    return [out]
