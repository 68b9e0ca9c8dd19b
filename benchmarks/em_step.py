"""Time of a training step of Energy Matching against torchebm and the published recipe, on the CPU.

  pip install -e .[benchmarks] && python benchmarks/em_step.py [--quick] [--threads 2]

Published two-dimensional problem, 8 gaussians -> two moons, batch 128, network 2-256-256-256-256-1 of SiLU
everywhere, Adam: a warm-up step (exact OT coupling, flow matching) and a main step (flow matching gated by
time, contrastive divergence with 200 Langevin steps: 64 chains from data, 64 from the prior). Each peer
draws its batch from the same pools of 10,000 points inside its step. `torchebm` runs its loss and couplings
at its defaults (exact coupling), `sinkhorn` with the coupling of its README; `published` is the recipe with
torchcfm's OT plan sampler and plain PyTorch; ours also keeps an EMA, which they do not. `/call` is the
number of steps that one call makes, under lax.scan where it is more than one. Peers run in turns; a row is
the minimum over the turns, and its ratios are over the same figure of ours (one step a call).

The limit is the time of the large matrix products alone, [128, 256] x [256, 256]: 6 a Langevin step (3 of
the potential, 3 of its gradient), 18 of the flow loss (6, and 2 for each of them in the backward pass), 18
of the contrastive one (3 x 3 for the data and for the negatives). The first and last layers, activations,
random numbers, coupling and optimiser are not in it.
"""

import functools
import importlib.metadata
import json
import os
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from energymatch import couplings, matching, networks
from energymatch.losses import Batch

FLAGS = flags.FLAGS
flags.DEFINE_integer("turns", 12, "How often each peer runs.")
flags.DEFINE_integer("scan", 20, "Steps a call in the rows with several.")
flags.DEFINE_integer("threads", None, "Threads of PyTorch; all cores by default.")
flags.DEFINE_bool("quick", False, "A smoke run: 2 turns of few steps.")
flags.DEFINE_bool("torch", True, "Run the PyTorch peers.")
flags.DEFINE_string("output_dir", "/tmp/em_step", "Where results.json goes.")
BATCH, WIDTH, LAYERS = 128, 256, 3  # B, and the W x W products of the potential
LEARNING_RATE, LAMBDA, SIGMA, TAU_STAR, EPSILON = 1e-4, 2.0, 0.1, 0.8, 0.15
STEPS, DT = 200, 0.01
PRODUCTS = {"warm-up": 6 * LAYERS, "main": 2 * LAYERS * STEPS + 12 * LAYERS}


def pools(size=10_000):
    """[size, 2] of both ends, laid out as torchcfm's: radius 5, variance .1; moons times 3 less 1."""
    rng = np.random.default_rng(0)
    angle = rng.integers(8, size=size) * np.pi / 4
    ring = 5 * np.stack([np.cos(angle), np.sin(angle)], 1) + np.sqrt(0.1) * rng.normal(size=(size, 2))
    angle, lower = rng.uniform(0, np.pi, size), rng.integers(2, size=size)[:, None]
    arc = np.stack([np.cos(angle), np.sin(angle)], 1)
    moons = np.where(lower, np.array([[1.0, 0.5]]) - arc, arc) + 0.2 * rng.uniform(size=(size, 1))
    return ring.astype(np.float32), (3 * moons - 1).astype(np.float32)


def ours(phase, per_call):
    """A call that makes `per_call` steps, jitted, with the state donated."""
    net = networks.MLPPotential(width=WIDTH, depth=LAYERS + 1)
    x_0, x_1 = (jnp.asarray(x) for x in pools())
    params, optimizer = net.init(jax.random.key(0), x_0[:1]), optax.adam(LEARNING_RATE)
    if phase == "warm-up":
        init, step = matching.make_warm_up(net.apply, optimizer, sigma=SIGMA)
        state = init(params)
    else:
        init, step = matching.make_matching(net.apply, optimizer, matching.published_2d())
        state = init(params, x_1[:BATCH])

    def one(carry, _):
        state, key = carry
        key, draw, use = jax.random.split(key, 3)
        rows = jax.random.randint(draw, (2, BATCH), 0, len(x_0))
        pairs = couplings.exact_ot(draw, x_0[rows[0]], x_1[rows[1]])
        state, metrics = step(use, state, Batch(*pairs))
        return (state, key), metrics["loss"]

    @functools.partial(jax.jit, donate_argnums=0)
    def call(carry):
        carry, losses = jax.lax.scan(one, carry, length=per_call) if per_call > 1 else one(carry, None)
        return carry, jnp.mean(losses)

    carry = [(state, jax.random.key(1))]

    def run(calls):
        for _ in range(calls):
            carry[0], mean = call(carry[0])
        return float(mean)

    return run


def torch_potential(base):
    import torch
    from torch import nn

    class Potential(base):
        def __init__(self):
            super().__init__()
            sizes = [2] + [WIDTH] * (LAYERS + 1)
            layers = [m for a, b in zip(sizes, sizes[1:]) for m in (nn.Linear(a, b), nn.SiLU())]
            self.net = nn.Sequential(*layers, nn.Linear(WIDTH, 1))

        def forward(self, x):
            return self.net(x).squeeze(-1)

    torch.manual_seed(0)
    return Potential()


def torch_run(model, loss, ends=None):
    """A loop of Adam steps on loss(x_0, x_1), batches drawn from the pools of both ends."""
    import torch

    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    x_0, x_1 = (torch.as_tensor(x) for x in ends or pools())

    def run(steps):
        for _ in range(steps):
            batch = (x[torch.randint(len(x), (BATCH,))] for x in (x_0, x_1))
            value = loss(*batch)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        return value.item()

    return run


def torchebm_loss(model, phase, sinkhorn=False):
    """loss(x_0, x_1) of torchebm, for a model that is one of its own."""
    from torchebm.couplings import SinkhornCoupling
    from torchebm.losses import EnergyMatchingLoss

    loss = EnergyMatchingLoss(
        model=model,
        coupling=SinkhornCoupling(reg=0.01) if sinkhorn else "ot",
        sigma=SIGMA,
        lambda_cd=LAMBDA if phase == "main" else 0.0,
        epsilon_max=EPSILON,
        tau_star=TAU_STAR,
        n_langevin_steps=STEPS,
        langevin_dt=DT,
        device="cpu",
    )
    return lambda x_0, x_1: loss(x_1, x0=x_0)


def torchebm_peer(phase, sinkhorn=False):
    from torchebm.core import BaseModel

    model = torch_potential(BaseModel)
    return torch_run(model, torchebm_loss(model, phase, sinkhorn))


def torch_slope(model, x, create_graph=False):
    """[B, D] the gradient of the potential."""
    import torch

    x = x.detach().requires_grad_(True)
    return torch.autograd.grad(model(x).sum(), x, create_graph=create_graph)[0]


def torch_langevin(model, x, times):
    """Steps of the published dynamics, x to x - dt grad V + noise of temperature epsilon(t), at `times`."""
    import torch

    for t in times:
        scale = torch.sqrt(2 * DT * EPSILON * torch.clamp((t - TAU_STAR) / (1 - TAU_STAR), 0, 1))
        x = x - DT * torch_slope(model, x) + scale[:, None] * torch.randn_like(x)
    return x


def published_loss(model, phase):
    """loss(x_0, x_1) of the recipe."""
    import torch
    from torchcfm.optimal_transport import OTPlanSampler

    sampler, half = OTPlanSampler(method="exact"), BATCH // 2
    start = torch.cat([torch.ones(half), torch.zeros(half)])
    times = [start + (1 - start) * k / STEPS for k in range(1, STEPS + 1)]

    def loss(x_0, x_1):
        a, b = sampler.sample_plan(x_0, x_1)
        t = torch.rand(BATCH, 1)
        x_t = (1 - t) * a + t * b + SIGMA * torch.randn_like(a)
        error = (torch_slope(model, x_t, create_graph=True) + b - a).square().mean(1)
        if phase == "warm-up":
            return error.mean()
        gate = torch.clamp((1 - t[:, 0]) / (1 - TAU_STAR), 0, 1)
        negatives = torch_langevin(model, torch.cat([x_1[:half], x_0[:half]]), times)
        return (gate * error).mean() + LAMBDA * (model(x_1).mean() - model(negatives).mean())

    return loss


def published_peer(phase):
    import torch

    model = torch_potential(torch.nn.Module)
    return torch_run(model, published_loss(model, phase))


def products():
    """Orthogonal matrices, so that a chain of products keeps its scale, and a first factor."""
    rng = np.random.default_rng(0)
    weights = [np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0] for _ in range(LAYERS)]
    return [w.astype(np.float32) for w in weights], rng.normal(size=(BATCH, WIDTH)).astype(np.float32)


def jax_limit(phase, num=2 * LAYERS):
    weights, start = jax.tree.map(jnp.asarray, products())

    @jax.jit
    def call(h, weights):
        def body(h, _):
            for w in weights:
                h = h @ w
            for w in weights[::-1]:
                h = jax.lax.dot_general(h, w, (((1,), (1,)), ((), ())))  # h @ w.T
            return h, None

        return jax.lax.scan(body, h, length=PRODUCTS[phase] // num)[0]

    return lambda calls: [call(start, weights).block_until_ready() for _ in range(calls)]


def torch_limit(phase, num=2 * LAYERS):
    import torch

    weights, start = products()
    weights, start = [torch.tensor(w) for w in weights], torch.tensor(start)

    @torch.inference_mode()
    def run(calls):
        for _ in range(calls):
            h = start
            for _ in range(PRODUCTS[phase] // num):
                for w in weights:
                    h = h @ w
                for w in weights[::-1]:
                    h = h @ w.T
        return h

    return run


def peers(phase):
    """Name -> (run, steps a call)."""
    many = 2 if FLAGS.quick else FLAGS.scan
    found = {"ours": (ours(phase, 1), 1), "ours, scan": (ours(phase, many), many)}
    found["limit, jax"] = (jax_limit(phase), 1)
    if FLAGS.torch:
        found["torchebm"] = (torchebm_peer(phase), 1)
        found["torchebm, sinkhorn"] = (torchebm_peer(phase, sinkhorn=True), 1)
        found["published"] = (published_peer(phase), 1)
        found["limit, torch"] = (torch_limit(phase), 1)
    return found


def measure(phase):
    """Rows of one phase; each turn times every peer once, after a call that is not timed."""
    found = peers(phase)
    # A turn of about a tenth of a second of our own, and no less than a step.
    calls = {name: max(1, (20 if phase == "warm-up" else 1) // each) for name, (_, each) in found.items()}
    calls |= {name: 3 for name in found if phase == "warm-up" and name.startswith("torchebm")}
    times = {name: [] for name in found}
    for _ in range(2 if FLAGS.quick else FLAGS.turns):
        for name, (run, each) in found.items():
            if not FLAGS.quick or not times[name]:
                run(1)
            start = time.perf_counter()
            run(1 if FLAGS.quick else calls[name])
            times[name].append((time.perf_counter() - start) / (1 if FLAGS.quick else calls[name]) / each)
    least = {name: 1e3 * min(values) for name, values in times.items()}
    flops = PRODUCTS[phase] * 2 * BATCH * WIDTH**2
    for name, (_, each) in found.items():
        yield {
            "step": phase,
            "peer": name,
            "/call": each,
            "ms": least[name],
            "median ms": 1e3 * float(np.median(times[name])),
            "x ours": least[name] / least["ours"],
            "x ours, scan": least[name] / least["ours, scan"],
            "share of the limit": least["limit, jax"] / least[name],
            "GFLOP/s": flops / least[name] / 1e6,
        }


def main(argv):
    versions = {"jax": jax.__version__}
    if FLAGS.torch:
        import torch

        torch.set_num_threads(FLAGS.threads or os.cpu_count())
        names = ("torch", "torchebm", "torchcfm")
        versions |= {name: importlib.metadata.version(name) for name in names}
        versions["torch threads"] = torch.get_num_threads()
    print(f"{versions}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    rows = []
    for phase in PRODUCTS:
        for row in measure(phase):
            if not rows:
                print("|" + "|".join(row) + "|\n" + "|---" * len(row) + "|")
            rows.append(row)
            cells = (f"{c:.3g}" if isinstance(c, float) else str(c) for c in row.values())
            print("|".join(["", *cells, ""]), flush=True)
    os.makedirs(FLAGS.output_dir, exist_ok=True)
    record = json.dumps({"versions": versions, "rows": rows}, indent=1)
    pathlib.Path(FLAGS.output_dir, "results.json").write_text(record)


if __name__ == "__main__":
    app.run(main)
