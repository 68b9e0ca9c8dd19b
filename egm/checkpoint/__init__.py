"""Checkpoints of a whole training state, by orbax, and a training loop that keeps them.

`Checkpoints` saves, finds and restores them; `run` is the loop; `plain` turns the settings of a run into
plain data, so that a run resumes only with its own settings.
"""

from egm.checkpoint.configuration import first_difference, plain
from egm.checkpoint.folder import VERSION, Checkpoints
from egm.checkpoint.loop import Call, Run, run

__all__ = ["VERSION", "Call", "Checkpoints", "Run", "first_difference", "plain", "run"]
