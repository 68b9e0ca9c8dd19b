"""Samples of the model for the contrastive term: short Langevin runs, or chains that training carries.

A source of negatives is a pair of pure functions: `init(potential, x, epsilon_max)` gives the chains that
training carries, `draw(key, potential, epsilon_max, chains, batch)` the negatives and the chains after.
The potential changes from call to call. Shape letters: M negatives, R rungs, *event the axes of a state.
"""

from energymatch.negatives.proposed import Proposed
from energymatch.negatives.restarted import Restarted, RestartedState
from energymatch.negatives.short_run import ShortRun
from energymatch.negatives.source import Negatives, NegativeSource
from energymatch.negatives.tempered import Tempered

__all__ = ["NegativeSource", "Negatives", "Proposed", "Restarted", "RestartedState", "ShortRun", "Tempered"]
