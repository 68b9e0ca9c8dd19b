"""Time, peak memory and accuracy of one step of each EGM algorithm on the Ising model.

  python benchmarks/egm_step.py --output_dir /tmp/egm_step [--quick] [--torch]

A step is the target, the loss and its gradient on B states, with the library's default MLPs. Each case
has a process of its own, in which its peer runs in turns with it: `einsum` draws K x B x L tokens with
randint, materialises their one-hot and contracts it with softmax(-E). `mse` is that of the target's
denoiser at masked sites against the exact posterior (clamped transfer matrix), with the exact g where a
network would be used: the error of the estimate alone, zero for the local forms (where K is the peer's).
`equal_ms` is the time scaled by 1/K to an mse of 1e-3, to compare with `ms` of the local forms: a lower
bound, since with most sites masked the error falls slower. jaxlib 0.10 sums slowly on a CPU from B L V =
16384 on (not jaxlib 0.12, nor XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=).
"""

import importlib.util
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from egm import algorithms, bootstrap, estimate, heads, networks, random
from egm.energies.ising import Ising
from egm.paths.masked import MaskedPath

FLAGS = flags.FLAGS
flags.DEFINE_float("seconds", 6.0, "Seconds of timing a case; three repeats at least.")
flags.DEFINE_bool("quick", False, "Only K <= 1000 and sides <= 5.")
flags.DEFINE_bool("torch", False, "Add the naive step against the estimate alone in PyTorch.")
flags.DEFINE_string("output_dir", "/tmp/egm_step", "Where results.json goes.")
flags.DEFINE_string("case", None, "One case as JSON, set by the parent process.")
PATH = MaskedPath(2)
BATCH, BETA, STEP = 300, 0.4, 0.01  # B, the inverse temperature, h = r - t of the bootstrap
HEAD = heads.DenoiserHead(PATH)
NETS = {"generator": networks.MLPDenoiser(2), "log_marginal": networks.MLPLogMarginal(2)}


def exact_g(energy):
    """g(x, t): log of the partition function clamped at x, less (number of masks) log 2."""
    n, beta = energy.side, energy.inverse_temperature
    rows = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    s = 2.0 * rows - 1
    transfer = jnp.asarray(np.exp(beta * (s @ s.T + (s * np.roll(s, 1, 1)).sum(1))))

    def g(x, t):
        x = x.reshape(-1, n, n)
        fits = jnp.all((x[:, :, None] == 2) | (x[:, :, None] == rows), axis=-1).astype(float)
        product = transfer * fits[:, 0, None, :]
        for i in range(1, n):
            product = (product @ transfer) * fits[:, i, None, :]
        return jnp.log(jnp.trace(product, axis1=1, axis2=2)) - jnp.log(2.0) * jnp.sum(x == 2, (1, 2))

    return g


def einsum_estimate(key, energy, x_t, num_samples):
    """[B, L, V] the naive estimate as one would first write it."""
    drawn = jax.random.randint(key, (num_samples, *x_t.shape), 0, 2)
    x_1 = jnp.where(x_t == 2, drawn, x_t)
    return jnp.einsum("kb,kblv->blv", jax.nn.softmax(-energy(x_1), 0), jax.nn.one_hot(x_1, 2))


def make(case, energy, params):
    apply, apply_g = (net.apply for net in NETS.values())
    size = {"num_samples": case["K"], "chunk_size": case.get("chunk")}

    def einsum_loss(keys, p, _, x_1, t, energy):
        x_t = random.per_example(PATH.sample, keys, x_1, t)
        target = einsum_estimate(keys[0], energy, x_t, case["K"])
        return HEAD.divergence(target, apply(p, x_t, t), x_t), {}

    boot = algorithms.Bootstrap.published(PATH, HEAD, apply, apply_g, step=STEP, **size)
    generator, g = params["generator"], params["log_marginal"]
    loss, own = {
        "naive": (algorithms.Naive(PATH, HEAD, apply, **size).loss, generator),
        "einsum": (einsum_loss, generator),
        "bootstrap": (boot.loss, params),
        "local bootstrap": (algorithms.LocalBootstrap(PATH, apply_g).loss, g),
        "local denoiser": (None, g),
    }[case["name"]]

    def step(p, key, x_1, t):
        keys = random.example_keys(key, len(t))
        if loss is None:
            x_t = random.per_example(PATH.sample, keys, x_1, t)
            return bootstrap.LocalGenerator(PATH, lambda x, s: apply_g(p, x, s))(x_t, t)
        return jax.grad(lambda q: jnp.mean(loss(keys, q, own, x_1, t, energy)[0]))(p)

    return step, own


def peak_bytes(reset=False):
    """Peak of the device, or of this process; `reset` starts it anew where Linux lets it."""
    if jax.default_backend() != "cpu":
        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    if reset and os.access("/proc/self/clear_refs", os.W_OK):
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def torch_estimate(case, energy, x_t):
    import torch

    x_t = torch.tensor(np.asarray(x_t), dtype=torch.long)
    x = torch.where(x_t == 2, torch.randint(0, 2, (case["K"], *x_t.shape)), x_t)
    s = (2.0 * x - 1).reshape(*x.shape[:2], energy.side, energy.side)
    bonds = (s * (s.roll(1, -1) + s.roll(1, -2))).sum((-1, -2))
    one_hot = torch.nn.functional.one_hot(x, 2).float()
    return torch.einsum("kb,kblv->blv", torch.softmax(BETA * bonds, 0), one_hot)


def accuracy(case, energy, x_t, t):
    g, fn, r = exact_g(energy), bootstrap.terminal(energy), jnp.ones_like(t)
    if case["name"] == "bootstrap":
        fn, r = bootstrap.boundary(energy, g, PATH), bootstrap.intermediate_time(t, STEP)
    run = lambda key, x, t, r: estimate(key, PATH, fn, x, t, r, num_samples=case["K"], chunk_size=128)
    errors = jax.jit(run)(jax.random.key(4), x_t, t, r).generator - bootstrap.LocalGenerator(PATH, g)(x_t, t)
    return float(jnp.mean(errors[..., 1] ** 2, where=PATH.masked(x_t)))


def run_case(case):
    energy = Ising(case["side"], BETA)
    keys = jax.random.split(jax.random.key(0), 4)
    x_1, t = energy.sample(keys[0], BATCH), jax.random.uniform(keys[1], (BATCH,))
    x_t = random.per_example(PATH.sample, random.example_keys(keys[2], len(t)), x_1, t)
    params = {name: net.init(keys[3], x_t, t) for name, net in NETS.items()}

    def compiled(name):
        step, own = make({**case, "name": name}, energy, params)
        args = own, jax.random.key(1), x_1, t
        program = jax.jit(step).lower(*args).compile()
        return (lambda: jax.block_until_ready(program(*args))), program.memory_analysis()

    own, memory = compiled(case["name"])
    before = peak_bytes(reset=True)
    own()
    out = {"peak_mb": (peak_bytes() - before) / 2**20, "temp_mb": memory.temp_size_in_bytes / 2**20}
    peer = compiled("einsum")[0] if case.get("peer") == "einsum" else lambda: None
    peer = peer if case.get("peer") != "torch" else lambda: torch_estimate(case, energy, x_t)
    peer()
    times, start = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - start < FLAGS.seconds:
        ticks = [time.perf_counter(), own(), time.perf_counter(), peer(), time.perf_counter()]
        times.append(np.diff(ticks[::2]))
    own_times, peer_times = np.array(times).T
    out["ms"] = 1e3 * float(np.median(own_times))
    out["ratio"] = float(np.median(own_times / peer_times)) if case.get("peer") else ""
    if case.get("accuracy"):
        out["mse"] = accuracy(case, energy, x_t, t)
        out["equal_ms"] = out["ms"] * out["mse"] / 1e-3
    return {**case, **out, "repeats": len(times), "backend": jax.default_backend()}


def cases():
    peer, full = {"peer": "einsum"}, not FLAGS.quick
    for k in (100, 300, 1000, 3000, 10000) if full else (100, 300, 1000):
        yield {"name": "naive", "side": 5, "K": k, "accuracy": True, **peer}
        chunk = {"chunk": 1024} if k > 1000 else {"accuracy": True}
        yield {"name": "bootstrap", "side": 5, "K": k, **chunk, **peer}
    if full:
        yield {"name": "naive", "side": 5, "K": 10**5, "chunk": 1024, "accuracy": True}
    yield {"name": "einsum", "side": 5, "K": 1000}
    for side in (3, 4, 5, 7, 10) if full else (3, 5):
        for name in ("naive", "bootstrap", "local bootstrap", "local denoiser"):
            if side != 5 or name.startswith("local"):
                yield {"name": name, "side": side, "K": 1000, **peer}
        yield {"name": "naive", "side": side, "K": 1000, "chunk": 256, **peer}
    if FLAGS.torch and importlib.util.find_spec("torch"):
        yield {"name": "naive", "side": 5, "K": 1000, "peer": "torch"}


def main(argv):
    if FLAGS.case:
        print(json.dumps(run_case(json.loads(FLAGS.case))))
        return
    os.makedirs(FLAGS.output_dir, exist_ok=True)
    columns = "name side K chunk ms ratio peer peak_mb temp_mb mse equal_ms".split()
    print("|" + "|".join(columns) + "|\n" + "|---" * len(columns) + "|")
    rows, command = [], [sys.executable, *sys.argv]
    for case in cases():
        done = subprocess.run([*command, f"--case={json.dumps(case)}"], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            continue  # out of memory, say; the child's stderr is ours
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        cells = [rows[-1].get(c, "") for c in columns]
        print("|".join(["", *(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells), ""]))
        record = json.dumps({"jax": jax.__version__, "batch": BATCH, "rows": rows}, indent=1)
        pathlib.Path(FLAGS.output_dir, "results.json").write_text(record)


if __name__ == "__main__":
    app.run(main)
