"""A training run that is killed and resumed ends like an undisturbed one (long: kill_and_resume.py)."""

import kill_and_resume


def test_killed_runs_end_like_an_undisturbed_one(tmp_path):
    done, wrong = kill_and_resume.check(kills=3, folder=tmp_path)
    assert not wrong
    assert [one.moment for one in done][0] == "SIGTERM" and len(done) == 4
    # Two of the three kills wait for a checkpoint that is being written.
    assert any(one.unfinished for one in done)
