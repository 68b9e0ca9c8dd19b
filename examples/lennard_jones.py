"""Learn a sampler of a cluster of 13 Lennard-Jones particles from its energy alone.

python examples/lennard_jones.py --seconds=1200
Writes lennard_jones.png and results.json to --output_dir. The reference chains are run once and cached.
"""

from absl import flags
from support import cluster
from support.continuous import Settings, run

import egm
from egm import networks

NUM_PARTICLES = flags.DEFINE_integer("num_particles", 13, "Particles of the cluster.")


def make_networks(path, **shape):
    args = (path, path.num_particles, path.spatial_dim)
    shape |= {"edge_width": 16}
    return networks.EGNN(*args, **shape), networks.EGNNLogMarginal(*args, **shape)


def main(_):
    energy = egm.energies.LennardJones(NUM_PARTICLES.value, 3)
    settings = Settings(
        search_radius=1.0, particles=(NUM_PARTICLES.value, 3), num_simulated=500, batch_size=128
    )
    run("lennard_jones", energy, settings, make_networks)


if __name__ == "__main__":
    cluster.run(main)
