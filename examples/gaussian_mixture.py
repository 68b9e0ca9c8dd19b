"""Learn a sampler of a mixture of 25 normal distributions from its energy alone.

python examples/gaussian_mixture.py                       # about a minute
python examples/gaussian_mixture.py --process=superposition --algorithm=naive
Writes gaussian_mixture.png and results.json to --output_dir.
"""

from support import cluster
from support.continuous import Settings, run

import egm
from egm import networks


def make_networks(path, **shape):
    # A bootstrap step evaluates the log-marginal on batch_size * K states: a small one.
    return networks.MLPVector(path, **shape), networks.MLPVectorLogMarginal(path, **shape, width=64, depth=2)


def main(_):
    energy = egm.energies.GaussianMixture()
    run("gaussian_mixture", energy, Settings(search_radius=10.0), make_networks)


if __name__ == "__main__":
    cluster.run(main)
