"""The parts of examples/proteins.py: the task, edit distances, regressors, the density of sites."""

import functools
import json
import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_modules import EXAMPLES, importable


@pytest.fixture(scope="module")
def parts():
    """The example's modules."""
    with importable():
        from data import proteins as data
        from support import protein_tokens, proteins
    return types.SimpleNamespace(data=data, regressors=proteins, tokens=protein_tokens)


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory):
    return parts.data.write(tmp_path_factory.mktemp("made_up"), num=600)


def recursive(a, b):
    @functools.cache
    def distance(i, j):
        if not i or not j:
            return i + j
        same = a[i - 1] == b[j - 1]
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (not same))

    return distance(len(a), len(b))


@pytest.mark.parametrize(("length", "other", "vocab"), [(28, 28, 20), (28, 28, 3), (32, 20, 2), (5, 9, 2)])
def test_edit_distances_are_those_of_the_recursion(parts, length, other, vocab):
    rng = np.random.default_rng(length)
    a, b = rng.integers(0, vocab, (6, length)), rng.integers(0, vocab, (7, other))
    size = min(length, other) - 1
    b[0, :size] = a[0, 1 : size + 1]  # a shift: far by sites, near by edits
    found = np.asarray(parts.data.levenshtein(a, b))
    assert found.tolist() == [[recursive(tuple(x), tuple(y)) for y in b] for x in a]


def test_edit_distances_refuse_sequences_of_more_than_a_word(parts):
    with pytest.raises(ValueError, match="1 to 32 tokens, got 33"):
        parts.data.levenshtein(np.zeros((1, 33), int), np.zeros((1, 33), int))


def test_a_regressor_is_read_as_a_plain_loop_reads_it(parts):
    rng = np.random.default_rng(0)
    arrays = {
        "encoder.weight": rng.normal(size=(7, 20, 5)),
        "encoder.bias": rng.normal(size=7),
        "embedding.layer.weight": rng.normal(size=(9, 7)),
        "embedding.layer.bias": rng.normal(size=9),
        "decoder.weight": rng.normal(size=(1, 9)),
        "decoder.bias": rng.normal(size=1),
    }
    x = rng.integers(0, 20, (4, 28))
    expected = []
    for row in x:
        one_hot = np.eye(20)[row]
        hidden = []
        for start in range(24):
            encoded = arrays["encoder.bias"].copy()
            for place in range(5):
                encoded = encoded + arrays["encoder.weight"][:, :, place] @ one_hot[start + place]
            embedded = arrays["embedding.layer.weight"] @ encoded + arrays["embedding.layer.bias"]
            hidden.append(np.maximum(embedded, 0.0))
        expected.append(arrays["decoder.weight"][0] @ np.max(hidden, axis=0) + arrays["decoder.bias"][0])
    regressor = parts.regressors.read_regressor(arrays, scale=2.0)
    np.testing.assert_allclose(parts.regressors.values(regressor, x), np.array(expected) / 2, rtol=1e-4)
    soft = parts.regressors.predict(regressor, jax.nn.one_hot(x, 20))
    np.testing.assert_allclose(soft, np.array(expected) / 2, rtol=1e-4)


def test_the_task_shows_what_lies_between_the_quantiles_and_far_from_the_top(parts, folder):
    variants = parts.data.load_variants(folder)
    task = parts.data.make_task(variants, "medium")
    low, high, top = np.quantile(variants.y, [0.2, 0.4, 0.99])
    best = variants.x[variants.y >= top]
    expected = [
        i
        for i in np.flatnonzero((variants.y >= low) & (variants.y <= high))
        if min(recursive(tuple(variants.x[i]), tuple(b)) for b in best) >= 6
    ]
    np.testing.assert_array_equal(task.x, variants.x[expected])
    np.testing.assert_allclose(task.y, variants.y[expected] / variants.y.max())


def test_a_missing_file_is_named_and_its_source_told(parts, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lacks ground_truth.csv.*kirjner/GGS"):
        parts.data.check_folder(tmp_path)


def test_the_power_of_p_data_has_the_diversity_asked_for_and_its_log_z(parts):
    rng = np.random.default_rng(0)
    x = np.where(rng.random((300, 28)) < 0.4, rng.integers(0, 20, (300, 28)), 3)
    log_site = parts.tokens.fit_sites(x)
    gamma = parts.tokens.sharpness(log_site, 5.5)
    p = np.exp(gamma * np.asarray(log_site))
    assert np.log(p.sum(1)).sum() == pytest.approx(parts.tokens.closed_log_z(log_site, gamma), rel=1e-4)
    p /= p.sum(1, keepdims=True)
    drawn = [np.stack([rng.choice(20, 4000, p=row) for row in p], 1) for _ in range(2)]
    assert np.mean(np.sum(drawn[0] != drawn[1], axis=1)) == pytest.approx(5.5, abs=0.15)


def test_the_best_are_distinct_and_by_all_judges_asked(parts):
    rng = np.random.default_rng(0)
    x = np.repeat(rng.integers(0, 20, (20, 28)), 3, axis=0)
    random = lambda k, f: parts.regressors.Regressor(
        *(jnp.asarray(rng.normal(size=(*k, *s))) for s in ((5, 20, f), (f,), (f,), ()))
    )
    judges = parts.regressors.Judges(random((), 8), random((3,), 8), parts.tokens.fit_sites(x))
    first, both, _ = parts.regressors.RANKINGS
    scores = judges.scores(np.unique(x, axis=0))
    chosen = parts.regressors.best(judges, x, first, 5)
    assert len(np.unique(chosen, axis=0)) == 5
    np.testing.assert_allclose(judges.scores(chosen)[0], np.sort(scores[0])[::-1][:5])
    ranks = scores.argsort(1).argsort(1)[:2].sum(0)
    chosen = parts.regressors.best(judges, x, both, 1)
    index = np.flatnonzero(np.all(np.unique(x, axis=0) == chosen[0], axis=1))[0]
    assert ranks[index] == ranks.max()


@pytest.mark.slow
def test_the_example_runs_on_a_made_up_problem(folder, tmp_path):
    command = [sys.executable, str(EXAMPLES / "proteins.py"), f"--data_dir={folder}", "--quick"]
    command += ["--join_seconds=0", "--tasks=hard", f"--output_dir={tmp_path}"]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "MPLBACKEND": "Agg",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    subprocess.run(command, check=True, env=environment, timeout=600)
    results = json.loads((tmp_path / "results.json").read_text())
    assert (tmp_path / "proteins.png").stat().st_size > 10_000
    hard = results["tasks"]["hard"]
    start = hard["told"][0]["tilts"][0]
    assert start["ess"] == pytest.approx(1.0, abs=1e-3)  # the closed form is exact
    assert start["log_z"] == pytest.approx(hard["told"][0]["log_z_at_0"], abs=1e-2)
    assert hard["mean"]["latents, all"]["diversity"] > 0
