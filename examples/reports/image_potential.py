"""What image_potential.py draws from a potential and shows: samples at tau_s, their energies, the losses."""

from __future__ import annotations

import functools
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tqdm
from support.cluster import is_main
from support.tables import table, write_results

from egm import (
    devices,
)
from energymatch import images, langevin, schedules

plt.switch_backend("Agg")  # no screen is needed

STEP_SIZE, EPSILON_MAX = 0.01, 0.01
NUM_SHOWN = 64


def image_shape(network, params):
    """(H, W, C) of the square images that the parameters are for."""
    weights = params["params"]
    side = network.patch_size * round(weights["position"].shape[0] ** 0.5)
    return side, side, weights["conv_in"]["kernel"].shape[2]


def make_sampler(network, shape, tau_s, mesh):
    """`draw(key, params, index [N]) -> (params, {x [N, *shape], energy [N], held})`, N split over the mesh.

    Sample i depends on the key and on i alone. Euler-Heun, no noise before t = 1, epsilon_max after.
    """
    temperature = functools.partial(schedules.temperature, tau_star=1.0, epsilon_max=EPSILON_MAX)

    def draw(key, params, index):
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(index)
        prior_keys, chain_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        potential = functools.partial(network.apply, params)
        out = langevin.sample(
            chain_keys,
            potential,
            jax.vmap(lambda k: jax.random.normal(k, shape))(prior_keys),
            num_steps=max(1, round(tau_s / STEP_SIZE)),
            step_size=STEP_SIZE,
            temperature=temperature,
            method="heun",
        )
        held = jnp.sum(out.num_nonfinite > 0)
        return params, {"x": out.x, "energy": potential(jnp.clip(out.x, -1, 1)), "held": held}

    return devices.jit_step(draw, mesh)


def draw_samples(key, network, params, preset, batch, mesh):
    """(uint8 samples [N, H, W, C], V [N], fraction of values outside [-1, 1], chains held, seconds)."""
    batch = min(batch, preset.num_samples)
    batch = -(-batch // mesh.size) * mesh.size
    draw = make_sampler(network, image_shape(network, params), preset.tau_s, mesh)
    key, params = devices.put((key, params), mesh)
    x, energy, outside, held, start = [], [], 0.0, 0, time.time()
    for first in tqdm.trange(0, preset.num_samples, batch, desc="sampling", disable=not is_main()):
        index = devices.put(np.arange(first, first + batch), mesh, devices.SPLIT)
        out = jax.device_get(draw(key, params, index)[1])
        outside, held = outside + float(np.mean(np.abs(out["x"]) > 1)), held + int(out["held"])
        x.append(images.to_uint8(out["x"]))
        energy.append(out["energy"])
    num = len(x)
    x, energy = (np.concatenate(a)[: preset.num_samples] for a in (x, energy))
    return x, energy, outside / num, held, time.time() - start


def report(network, params, data, phases, preset, mesh, output, settings, sample_batch):
    """Draw, save, plot, print and write."""
    output.mkdir(parents=True, exist_ok=True)
    key = jax.random.fold_in(jax.random.key(settings["seed"]), 1_000_000)
    x, energy, outside, held, seconds = draw_samples(key, network, params, preset, sample_batch, mesh)
    if not is_main():
        return
    images.save_samples(output / "samples.npz", x)
    energies, real = {"samples": energy}, None
    if data is not None:
        real = data.take(np.arange(min(len(data), NUM_SHOWN)))
        values = jax.jit(network.apply)(jax.device_get(params), images.to_float(real))
        energies["data"] = np.asarray(values)
    history = [row for phase in phases for row in phase.history]
    results = dict(settings) | {
        "tau_s": preset.tau_s,
        "num_samples": len(x),
        "parameters": sum(a.size for a in jax.tree.leaves(params)),
        "energy_samples": float(energy.mean()),
        "energy_data": float(energies["data"].mean()) if data is not None else None,
        "outside_fraction": outside,
        "chains_held": held,
        "flow_loss_first": history[0]["flow_loss"] if history else None,
        "flow_loss_last": history[-1]["flow_loss"] if history else None,
        "energy_gap": history[-1].get("energy_gap") if history else None,
        "train_seconds": sum(phase.train_seconds for phase in phases),
        "compile_seconds": sum(phase.compile_seconds for phase in phases),
        "sample_seconds": seconds,
    }
    figure(output / "image_potential.png", x, real, energies, phases, preset)
    results["total_seconds"] = time.time() - results.pop("started")
    rows = [[name, value] for name, value in results.items() if isinstance(value, float)]
    print(table(f"\n{len(x)} samples at t = {preset.tau_s}", ["", "value"], rows))
    path = write_results(str(output), results)
    print(f"\nWrote {output / 'image_potential.png'}, {output / 'samples.npz'} and {path}")


def tiled(x):
    """[N, H, W, C] as one picture of 8 to a row, a line between them."""
    columns = min(8, len(x))
    x = np.pad(x, ((0, -len(x) % columns), (1, 0), (1, 0), (0, 0)), constant_values=255)
    rows = x.reshape(-1, columns, *x.shape[1:]).transpose(0, 2, 1, 3, 4)
    picture = rows.reshape(rows.shape[0] * rows.shape[1], columns * rows.shape[3], -1)
    return picture.repeat(3, -1) if picture.shape[-1] == 1 else picture


def figure(path, x, real, energies, phases, preset):
    """The samples; beside them data, energies and losses, where there are."""
    num = 1 + (real is not None) + 1 + bool(phases)
    fig, axes = plt.subplots(1, num, figsize=(5 * num, 5.2), layout="constrained")
    axes = iter(axes)
    shown = [(f"samples at t = {preset.tau_s:g} (not selected)", x[:NUM_SHOWN])]
    shown += [("data", real)] if real is not None else []
    for title, pixels in shown:
        ax = next(axes)
        ax.imshow(tiled(pixels), interpolation="nearest")
        ax.set_title(title)
        ax.set_xticks([])
        ax.set_yticks([])
    ax = next(axes)
    edges = np.histogram_bin_edges(np.concatenate(list(energies.values())), 30)
    for name, values in energies.items():
        ax.hist(
            values, edges, weights=np.full(len(values), 1 / len(values)), histtype="step", lw=2, label=name
        )
    ax.set(xlabel="V", ylabel="share", title="potential")
    ax.legend()
    if phases:
        ax = next(axes)
        steps = 0
        sizes = (preset.warm_up, preset.iterations)
        for name, phase, size in zip(("transport", "transport and density"), phases, sizes, strict=True):
            losses = [row["flow_loss"] for row in phase.history]
            if losses:
                ax.plot(
                    steps + size / len(losses) * np.arange(1, len(losses) + 1), losses, "o-", ms=3, label=name
                )
            steps += size
        ax.set(xlabel="step", ylabel="flow loss (mean over elements)", title="training", ylim=(0, None))
        ax.legend()
    fig.savefig(path, dpi=100)
    plt.close(fig)
