"""Learn a sampler of a cluster of particles from its energy alone.

python examples/lennard_jones.py --seconds=1200                # 13 Lennard-Jones particles in 3D
python examples/lennard_jones.py --target=dw4 --seconds=300    # 4 particles in 2D, pairs in double wells
Writes TARGET.png and results.json to --output_dir. The reference chains are run once and cached.
"""

from absl import flags
from support import cluster
from support.continuous import Settings, run

import egm
from egm import networks

TARGET = flags.DEFINE_enum("target", "lennard_jones", ["lennard_jones", "dw4"], "Which energy.")
NUM_PARTICLES = flags.DEFINE_integer("num_particles", 13, "Particles of the Lennard-Jones cluster.")


def make_networks(path, **shape):
    args = (path, path.num_particles, path.spatial_dim)
    shape |= {"edge_width": 16}
    return networks.EGNN(*args, **shape), networks.EGNNLogMarginal(*args, **shape)


def main(_):
    if TARGET.value == "dw4":
        energy = egm.energies.DoubleWell4()
        settings = Settings(
            search_radius=4.0,
            learning_rate=4e-3,
            sampler_num_times=200,
            num_simulated=1000,
            num_moves=20,
            ess_target=2.0,
        )
    else:
        energy = egm.energies.LennardJones(NUM_PARTICLES.value, 3)
        settings = Settings(
            search_radius=1.0,
            sampler_num_times=200,
            num_simulated=100,
            num_gradient_steps=400,
            batch_size=128,
            num_moves=40,
            buffer_size=25,
            ess_target=10.0,
        )
    settings = settings._replace(particles=(energy.num_particles, energy.spatial_dim))
    run(TARGET.value, energy, settings, make_networks)


if __name__ == "__main__":
    cluster.run(main)
