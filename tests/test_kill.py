"""A training run that is killed and resumed ends like an undisturbed one (long: kill_and_resume.py)."""

import kill_and_resume
import pytest


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_runs_end_like_an_undisturbed_one(tmp_path, kills):
    done, wrong = kill_and_resume.check(kills=kills, folder=tmp_path)
    assert not wrong
    assert [one.moment for one in done][0] == "SIGTERM" and len(done) == kills + 1
    if kills > 1:  # two of three kills wait for a checkpoint that is being written
        assert any(one.unfinished for one in done)
