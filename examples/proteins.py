"""Design of AAV capsid variants with both packages: propose 128 sequences fitter than any that were shown.

python examples/proteins.py --data_dir=FOLDER             # the published variants and regressors
python examples/data/proteins.py /tmp/made_up             # a small made-up problem in the same files
python examples/proteins.py --data_dir=/tmp/made_up --quick
Writes proteins.png and results.json to --output_dir.
"""

import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from data.proteins import check_folder, load_regressor, load_variants, make_task
from reports.proteins import report
from support import cluster, protein_latents, protein_tokens, proteins

DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder with ground_truth.csv and the regressors' .npz.")
TASKS = flags.DEFINE_list("tasks", ["medium", "hard"], "Which of the two tasks.")
SEED = flags.DEFINE_integer("seed", 0, "First seed.")
SEEDS = flags.DEFINE_integer("seeds", 1, "How many seeds; figures are means over them.", lower_bound=1)
JOIN_SECONDS = flags.DEFINE_float("join_seconds", 0.0, "For egm.fit on the latents, first seed; 0 for none.")
QUICK = flags.DEFINE_boolean("quick", False, "A few steps of everything, to see that it runs.")
OUTPUT_DIR = flags.DEFINE_string("output_dir", "results/proteins", "Where the figure and the numbers go.")


def run(key, name, task, regressor, join_seconds):
    """({method: sequences before ranking}, judges, what else is to be told) of one task and seed."""
    keys = jax.random.split(key, 6)
    steps = (20, 10, 10, 64) if QUICK.value else (1000, 300, 300, protein_latents.NUM_SAMPLES)
    x, y = jnp.asarray(task.x), jnp.asarray(task.y, jnp.float32)
    log_site = protein_tokens.fit_sites(task.x)
    ensemble = proteins.fit_ensemble(keys[0], x, y, steps=10 if QUICK.value else proteins.STEPS)
    judges = proteins.Judges(regressor, ensemble, log_site)

    gamma = protein_tokens.sharpness(log_site, protein_tokens.DIVERSITY[name])
    spread = float(np.std(proteins.values(regressor, task.x)))
    start = time.time()
    few = {"tilts": (0.0, protein_tokens.TILT[name]), "iterations": 1, "num": 256} if QUICK.value else {}
    draws = protein_tokens.sample(keys[1], regressor, log_site, gamma, spread, **few)
    tilts = few.get("tilts", protein_tokens.TILTS)
    found = {f"tokens, tilt {tilt:g}": draw.x for tilt, draw in zip(tilts, draws, strict=True)}
    seconds = {"tokens": time.time() - start}

    start = time.time()
    autoencoder, z, history = protein_latents.fit_autoencoder(keys[2], x, steps[0])
    potential, metrics = protein_latents.fit_potential(keys[3], z, *steps[1:3])
    interactions = {
        "latents": (np.inf, np.inf),
        "latents, published interaction": (protein_latents.WIDTHS[name], np.inf),
        "latents, interaction": (np.inf, protein_latents.DECODED_WIDTH),
    }
    for label, widths in interactions.items():
        drawn, _ = protein_latents.sample(
            keys[4], autoencoder, potential, regressor, name, widths, num=steps[3]
        )
        found[label] = np.asarray(drawn)
    seconds["latents"] = time.time() - start
    joined = None
    if join_seconds:
        start = time.time()
        beta = protein_tokens.TILT[name] / spread
        drawn, joined = protein_latents.join(
            keys[5], autoencoder, potential, regressor, beta, join_seconds, num=steps[3]
        )
        found["latents by egm"] = drawn
        seconds["joined"] = time.time() - start
    told = {
        "gamma": gamma,
        "predictor_spread": spread,
        "log_z_at_0": protein_tokens.closed_log_z(log_site, gamma),
        "tilts": [
            {"tilt": tilt, "beta": d.beta} | {k: float(v) for k, v in d.summary._asdict().items()}
            for tilt, d in zip(tilts, draws, strict=True)
        ],
        "autoencoder_loss": float(np.mean(history[-50:])),
        "energy_gap": float(np.mean(metrics["energy_gap"])),
        "joined": joined,
        "seconds": seconds,
    }
    return found, judges, told


def main(_):
    started = time.time()
    folder = check_folder(DATA_DIR.value)
    variants = load_variants(folder)
    oracle = proteins.read_regressor(load_regressor(folder / "oracle.npz"), variants.largest)
    runs = []
    for name in TASKS.value:
        task = make_task(variants, name)
        regressor = proteins.read_regressor(
            load_regressor(folder / f"predictor_{name}.npz"), variants.largest
        )
        for seed in range(SEED.value, SEED.value + SEEDS.value):
            first = seed == SEED.value
            key = jax.random.key(seed)
            found, judges, told = run(key, name, task, regressor, JOIN_SECONDS.value if first else 0.0)
            runs.append((name, seed, task, found, judges, told))
            print(f"{name}, seed {seed}: {time.time() - started:.0f} s", flush=True)
    if not cluster.is_main():
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    settings = {"seeds": SEEDS.value, "cpu_seconds": used.ru_utime + used.ru_stime, "started": started}
    report(variants, oracle, runs, OUTPUT_DIR.value, settings)


if __name__ == "__main__":
    cluster.run(main)
