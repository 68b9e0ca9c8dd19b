"""Learn a sampler of continuous and discrete variables together, from their joint energy alone.

python examples/mixed.py                                     # a Gaussian-Bernoulli RBM with six modes
python examples/mixed.py --target=coupled_joint_mixture      # 10 + 10 variables, all coupled
python examples/mixed.py --target=joint_double_well          # 4 particles of 2 types
Writes TARGET.png and results.json to --output_dir.
"""

import functools

from absl import flags
from support import cluster
from support.continuous import Settings, run

import egm
from egm import networks

TARGETS = {
    "gb_rbm": (egm.energies.GaussianBernoulliRBM, Settings(search_radius=10.0)),
    "joint_mixture": (
        egm.energies.JointGaussianMixture,
        Settings(search_radius=3.0, iterations=70, symmetric=True),
    ),
    "coupled_joint_mixture": (
        egm.energies.CoupledJointMixture,
        Settings(search_radius=3.0, iterations=80, sampler_num_times=200, symmetric=True),
    ),
    "joint_double_well": (
        egm.energies.JointDoubleWell,
        Settings(
            search_radius=4.0,
            iterations=50,
            learning_rate=4e-3,
            sampler_num_times=200,
            particles=(4, 2),
            width=64,
        ),
    ),
}
TARGET = flags.DEFINE_enum("target", "gb_rbm", list(TARGETS), "Which energy.")


def make_networks(energy, settings, path, **shape):
    """(generator, log-marginal): equivariant ones for particles."""
    shape |= {"width": settings.width}
    if settings.particles is not None:
        args, shape = (path, *settings.particles, energy.vocab_size), shape | {"edge_width": 16}
        return networks.EGNNMixed(*args, **shape), networks.EGNNMixedLogMarginal(*args, **shape)
    args = (path, energy.vocab_size)
    symmetric = shape | {"flip": settings.symmetric}
    # A bootstrap step evaluates the log-marginal on batch_size * K states: a small one.
    small = shape | {"width": 64, "depth": 2}
    return networks.MLPMixed(*args, **symmetric), networks.MLPMixedLogMarginal(*args, **small)


def main(_):
    target, settings = TARGETS[TARGET.value]
    energy = target()
    run(TARGET.value, energy, settings, functools.partial(make_networks, energy, settings))


if __name__ == "__main__":
    cluster.run(main)
