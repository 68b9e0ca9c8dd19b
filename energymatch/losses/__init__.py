"""The losses of Energy Matching: transport by -grad V, and the contrast of data with the model's samples.

A potential is `potential(params, x) -> [B]` here, since losses differentiate in the parameters. Losses
are local: under a mapped axis take `pmean` of the loss and of its gradient, as
`egm.training.make_train_step` does. Shape letters: B batch, M negatives, *event the axes of one state.
"""

from energymatch.losses.contrast import contrastive_divergence_loss, negative_limit
from energymatch.losses.energy_matching import Batch, energy_matching_loss
from energymatch.losses.flow import Gate, energy_gate, flow_matching_loss, time_gate

__all__ = [
    "Batch",
    "Gate",
    "contrastive_divergence_loss",
    "energy_gate",
    "energy_matching_loss",
    "flow_matching_loss",
    "negative_limit",
    "time_gate",
]
