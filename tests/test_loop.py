"""The loop of the examples: resumed training is the training that was interrupted, or is refused."""

import itertools
import os
import pathlib
import signal
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from egm.checkpoint import loop as checkpoint_loop

EXAMPLES = str(pathlib.Path(__file__).resolve().parent.parent / "examples")


@pytest.fixture(scope="module")
def loop():
    """examples/support/loop.py, with its flags parsed."""
    sys.path.insert(0, EXAMPLES)
    try:
        from support import loop
    finally:
        sys.path.remove(EXAMPLES)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])
    return loop


def call(key, state):
    x = 0.9 * state["x"] + state["rate"] * jax.random.normal(key, (3,))
    return {"x": x, "rate": state["rate"]}, {"loss": jnp.sum(x**2)}


def prepare(state, done):
    return state | {"rate": jnp.asarray(1.0 - done, jnp.float32)}


STATE = {"x": jnp.ones(3), "rate": jnp.ones(())}


def train(loop, calls=6, step=call, **kwargs):
    arguments = {"label": "a: phase", "configuration": {"seed": 1}, "prepare": prepare} | kwargs
    return loop.train(step, STATE, jax.random.key(3), calls=calls, **arguments)


def stopped_after(calls):
    """`call` and a `prepare` that sends this process SIGTERM before call number `calls`."""
    seen = []

    def prepare_and_stop(state, done):
        seen.append(done)
        if len(seen) == calls:
            signal.raise_signal(signal.SIGTERM)
        return prepare(state, done)

    return prepare_and_stop


def test_resumes_where_sigterm_stopped_it(loop, tmp_path, capsys):
    whole = train(loop)
    assert STATE["x"].tolist() == [1, 1, 1]  # the caller's own
    handler = signal.getsignal(signal.SIGTERM)
    with flagsaver.flagsaver(checkpoint_dir=str(tmp_path), checkpoint_every="1000"):
        with pytest.raises(SystemExit) as exit_:
            train(loop, prepare=stopped_after(2))
        assert exit_.value.code == loop.EXIT_PREEMPTED == 75
        assert signal.getsignal(signal.SIGTERM) is handler
        assert "SIGTERM at 33%: saved for --resume, exit status 75" in capsys.readouterr().out
        with pytest.raises(ValueError, match="a_phase is not empty: give --resume"):
            train(loop)
        with flagsaver.flagsaver(resume=True):
            with pytest.raises(ValueError, match="seed is 1 there, and 2 was asked for"):
                train(loop, configuration={"seed": 2})
            with pytest.raises(ValueError, match="calls is 6 there, and 7 was asked for"):
                train(loop, calls=7)
            resumed = train(loop)
            assert "resumed after call 2" in capsys.readouterr().out
            # Finished: read, not run.
            again = train(loop, prepare=lambda state, done: 1 / 0)
    for run in (resumed, again):
        assert run.state["x"].tobytes() == whole.state["x"].tobytes()
        assert [row["loss"] for row in run.history] == [row["loss"] for row in whole.history]
        seconds = [row["seconds"] for row in run.history]
        assert len(seconds) == 6 and seconds == sorted(seconds) and run.train_seconds == seconds[-1]
    assert again.history == resumed.history and again.compile_seconds == 0


def test_the_clock_goes_on(loop, tmp_path, monkeypatch):
    """A run for 4 seconds that is stopped has only the rest of them afterwards, by a clock of its own."""
    ticks = itertools.count()
    monkeypatch.setattr(checkpoint_loop, "time", types.SimpleNamespace(time=lambda: 0.1 * next(ticks)))
    with flagsaver.flagsaver(checkpoint_dir=str(tmp_path), resume=True, checkpoint_every="0.5s"):
        with pytest.raises(SystemExit):
            train(loop, seconds=4.0, prepare=stopped_after(20))
        run = train(loop, seconds=4.0)
    spent = np.array([row["seconds"] for row in run.history])
    # One reading a call, and one lost at each start.
    assert len(spent) == 40 and (np.diff(spent) > 0).all() and spent[-2] < 4.0 <= spent[-1] < 4.2


def test_says_that_it_starts_from_scratch(loop, tmp_path, capsys):
    with flagsaver.flagsaver(checkpoint_dir=str(tmp_path / "new"), resume=True):
        train(loop, calls=1)
    assert "a: phase: no checkpoint to resume from, training starts from scratch" in capsys.readouterr().out
    with flagsaver.flagsaver(checkpoint_dir=None, resume=True):
        with pytest.raises(ValueError, match="--resume needs --checkpoint_dir"):
            train(loop)


def test_how_often(loop, tmp_path):
    for bad in ("0", "s", "-1", "3m", "1.5"):
        with pytest.raises(flags.IllegalFlagValueError, match="number of calls"):
            with flagsaver.flagsaver(checkpoint_every=bad):
                pass
    with flagsaver.flagsaver(checkpoint_dir=str(tmp_path), checkpoint_every="4"):
        train(loop, calls=10)
    # Every fourth call, and the last one.
    assert sorted(int(p.name) for p in (tmp_path / "a_phase").iterdir()) == [4, 8, 10]


def test_a_bucket_stays_an_address(loop, monkeypatch):
    asked = []

    class Enough(Exception):
        pass

    def checkpoints(folder, configuration):
        asked.append(folder)
        raise Enough

    monkeypatch.setattr(loop.checkpoint, "Checkpoints", checkpoints)
    with flagsaver.flagsaver(checkpoint_dir="gs://bucket/run", resume=True), pytest.raises(Enough):
        train(loop)
    assert [os.fspath(folder) for folder in asked] == ["gs://bucket/run/a_phase"]
