"""Orders and sizes of the lattice examples."""

from __future__ import annotations

from absl import flags

import egm
from egm import iteration
from egm.processes import orders

ORDER = flags.DEFINE_enum(
    "order",
    None,
    ["random", "checkerboard", "coarse_to_fine"],
    "Which sites are revealed when; checkerboard by default, random for odd sides and bootstraps.",
)


def make_order(energy: egm.energies.Ising, algorithm: str) -> orders.StagedOrder:
    """The order of --order."""
    plain = energy.side % 2 or algorithm != "weighted"
    name = ORDER.value or ("random" if plain else "checkerboard")
    if name == "random":
        return orders.random_sites(energy.num_sites)
    if name == "checkerboard":
        return orders.colouring(energy.colouring)
    # One site a step on the coarsest three sublattices, then blocks of sites far apart.
    return orders.coarse_to_fine((energy.side, energy.side), (1, 1, 1, 2, 4, 8))


def settings(side: int, algorithm: str, num_times: int) -> tuple[iteration.IterationConfig, float, int]:
    """Sizes of an iteration, the peak learning rate and the number of iterations."""
    small = side <= 6
    config = iteration.IterationConfig(
        num_simulated=500 if small else 150,
        buffer_size=5000 if small else 1500,
        num_gradient_steps=100,
        batch_size=300 if algorithm == "naive" else 128,
        num_times=num_times,
        ema_decay=0.95 if "bootstrap" in algorithm else 0.995,
        weight_clip=5.0,
    )
    iterations = {"naive": 40, "published_bootstrap": 12}.get(algorithm, 25)
    return config, 4e-3, iterations if small else 120
