"""The typed user's program runs, resumes where it stopped, and its weights give the exact log Z and mass."""

import math

import jax.numpy as jnp
import numpy as np
import user_program

import egm


def test_the_program_trains_resumes_and_is_right(tmp_path):
    first, _, _ = user_program.train(str(tmp_path), calls=2)
    run, trajectory, log_weights = user_program.train(str(tmp_path), calls=6)
    assert run.resumed == 2
    np.testing.assert_array_equal(run.history["loss"][:2], first.history["loss"])
    summary = egm.metrics.summarize(log_weights)
    exact = math.log(2 * math.pi * (math.exp(0.5) + math.exp(-0.5)))
    assert abs(summary.log_z - exact) < 4 * summary.log_z_error < 0.3
    mass, error = egm.metrics.reweighted_mean(jnp.asarray(trajectory.x_1["h"][:, 0], float), log_weights)
    assert abs(mass - 1 / (1 + math.exp(-1.0))) < 4 * error
