"""Couplings of prior samples with data: independent, exact minibatch optimal transport, Sinkhorn.

`independent`, `exact_ot` and `sinkhorn` pair samples; `exact_assignment` and `sinkhorn_plan` work on a
cost matrix that the user brings. All run inside jit. With `axis_name` the batch is the global one: every
device solves the whole problem and keeps its own rows, so that N devices pair as one does.

No gradient flows through a cost or a plan; the pairs are differentiable as the rows they are.
"""

from energymatch.couplings.costs import CostFn, line_of_sight, squared_euclidean
from energymatch.couplings.pairs import exact_ot, independent, sinkhorn
from energymatch.couplings.plans import exact_assignment, sinkhorn_plan

__all__ = [
    "CostFn",
    "exact_assignment",
    "exact_ot",
    "independent",
    "line_of_sight",
    "sinkhorn",
    "sinkhorn_plan",
    "squared_euclidean",
]
