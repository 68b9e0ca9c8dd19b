"""The generators of peers.py in PyTorch: torchebm's Energy Matching, the published recipe, torchcfm's OT-CFM.

Losses and network of the first two are those of em_step.py. Each phase has half of the time: so short a run
is better off with more of the warm-up than the published fifth (20,000 steps, then 2,000 that take forty
times as long). Noise is N(0, I), data are standardised. Samples follow the published dynamics from noise to
t = 2.
"""

from __future__ import annotations

import os
import time

import em_step
import numpy as np

WARM_UP = 0.5
UNTIL = 2.0


def _ends(train, seed):
    """(noise, data, mean, deviation), the first two as pools of em_step.py."""
    mean, std = train.mean(0), train.std(0)
    noise = np.random.default_rng(seed).normal(size=(10_000, train.shape[1]))
    return noise.astype(np.float32), ((train - mean) / std).astype(np.float32), mean, std


def _until(run, end):
    """Steps made until the clock is at `end`, at least one."""
    count = 0
    while count == 0 or time.perf_counter() < end:
        run(1)
        count += 1
    return count


def _begin(seed):
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(seed)
    return torch


def _energy_matching(name, model, loss_of, train, seconds, seed):
    """Both phases of one implementation, and what its samples are."""
    torch = _begin(seed)
    noise, data, mean, std = _ends(train, seed)
    began = time.perf_counter()
    first = _until(
        em_step.torch_run(model, loss_of(model, "warm-up"), (noise, data)), began + WARM_UP * seconds
    )
    start = time.perf_counter()
    second = _until(em_step.torch_run(model, loss_of(model, "main"), (noise, data)), began + seconds)
    each = 1e3 * (time.perf_counter() - start) / second

    def sample(num):
        x = torch.randn(num, data.shape[1])
        times = [torch.full((num,), k * em_step.DT) for k in range(1, round(UNTIL / em_step.DT) + 1)]
        return em_step.torch_langevin(model, x, times).numpy() * std + mean

    note = f"{first:,} and {second:,} steps, a main one {each:.0f} ms"
    return {name: {"sample": sample, "steps": first + second, "note": note}}


def torchebm(train, test, seconds, seed):
    del test
    _begin(seed)
    from torchebm.core import BaseModel

    model = em_step.torch_potential(BaseModel)
    return _energy_matching("torchebm", model, em_step.torchebm_loss, train, seconds, seed)


def published(train, test, seconds, seed):
    del test
    torch = _begin(seed)
    model = em_step.torch_potential(torch.nn.Module)
    return _energy_matching("published recipe", model, em_step.published_loss, train, seconds, seed)


def torchcfm(train, test, seconds, seed):
    """OT-CFM as in its two-dimensional tutorial: sigma .1, batch 256, Adam at 1e-3; RK4 with 100 steps."""
    del test
    torch = _begin(seed)
    from torchcfm.conditional_flow_matching import ExactOptimalTransportConditionalFlowMatcher
    from torchcfm.models import MLP

    noise, data, mean, std = _ends(train, seed)
    dim = data.shape[1]
    model = MLP(dim=dim, w=64, time_varying=True)
    matcher = ExactOptimalTransportConditionalFlowMatcher(sigma=0.1)
    optimizer, pool = torch.optim.Adam(model.parameters()), torch.tensor(data)
    began = time.perf_counter()

    def run(steps):
        for _ in range(steps):
            x_1 = pool[torch.randint(len(pool), (256,))]
            t, x_t, u_t = matcher.sample_location_and_conditional_flow(torch.randn(256, dim), x_1)
            loss = (model(torch.cat([x_t, t[:, None]], -1)) - u_t).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    steps = _until(run, began + seconds)

    @torch.no_grad()
    def sample(num, parts=100):
        field = lambda x, t: model(torch.cat([x, torch.full((num, 1), t)], -1))
        x, h = torch.randn(num, dim), 1 / parts
        for t in np.arange(parts) * h:
            a = field(x, t)
            b = field(x + 0.5 * h * a, t + 0.5 * h)
            c = field(x + 0.5 * h * b, t + 0.5 * h)
            x = x + h / 6 * (a + 2 * b + 2 * c + field(x + h * c, t + h))
        return x.numpy() * std + mean

    return {"torchcfm OT-CFM": {"sample": sample, "steps": steps}}


METHODS = {"torchebm": torchebm, "published recipe": published, "torchcfm OT-CFM": torchcfm}
