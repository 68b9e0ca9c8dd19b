"""An estimate holds one chunk of samples: a million a point on the 10x10 lattice cost what a chunk costs."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import egm

SIDE, MANY = 10, 10**6
ROOT = pathlib.Path(__file__).resolve().parent.parent


def compiled(num_samples, chunk_size, num_points):
    """The compiled estimate at points [num_points, 100], the path and energy of the 10x10 Ising model."""
    path, energy = egm.paths.MaskedPath(2), egm.energies.Ising(SIDE, 0.4)

    def run(key, x_t):
        return egm.estimate(
            key, path, egm.bootstrap.terminal(energy), x_t, 0.3, 1.0,
            num_samples=num_samples, chunk_size=chunk_size,
        )  # fmt: skip

    shapes = jax.eval_shape(lambda: (jax.random.key(0), jnp.zeros((num_points, SIDE**2), jnp.int32)))
    return jax.jit(run).lower(*shapes).compile()


def test_temporary_memory_of_a_million_samples_is_that_of_a_chunk():
    chunk, points = 1024, 4

    def temporary(num_samples, chunk_size):
        return compiled(num_samples, chunk_size, points).memory_analysis().temp_size_in_bytes

    one, many, double = temporary(chunk, chunk), temporary(MANY, chunk), temporary(2 * chunk, 2 * chunk)
    # The samples themselves are there: what is compared is the estimate's memory, not overhead.
    assert one >= 4 * chunk * points * SIDE**2
    assert double > 1.8 * one
    assert many <= 1.1 * one, f"{many:,} bytes for {MANY:,} samples, {one:,} for {chunk:,}"


MEASURE = """
import json, pathlib, re, sys, time
import jax
import egm, test_memory

num_samples, chunk_size, num_points = map(int, sys.argv[1:])
fn = test_memory.compiled(num_samples, chunk_size, num_points)
path, energy = egm.paths.MaskedPath(2), egm.energies.Ising(test_memory.SIDE, 0.4)
x_t = path.sample(jax.random.key(1), energy.sample(jax.random.key(0), num_points), 0.3)
start = time.perf_counter()
out = jax.block_until_ready(fn(jax.random.key(2), x_t))
seconds = time.perf_counter() - start
# Not getrusage, whose maximum is that of the test's own process until it became this one.
peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])
print(json.dumps({"peak": peak, "seconds": seconds, "valid": bool(out.valid.all()), "ess": out.ess.tolist()}))
"""


def measured(num_samples, chunk_size, num_points=4):
    """Peak resident memory in bytes (as Linux counts it) and seconds of one estimate, in its own process."""
    command = [sys.executable, "-c", MEASURE, *map(str, (num_samples, chunk_size, num_points))]
    paths = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
    command[2] = paths + MEASURE
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_peak_resident_memory_of_a_million_samples_is_that_of_a_chunk():
    chunk = 2**17
    one, many, small = measured(chunk, chunk), measured(MANY, chunk), measured(128, 128)
    print({"one chunk": one, "a million": many, "128": small})
    assert one["valid"] and many["valid"]
    # The chunk is most of the peak, or the comparison would be one of interpreters.
    assert one["peak"] > 2 * small["peak"]
    assert many["peak"] <= 1.1 * one["peak"]
