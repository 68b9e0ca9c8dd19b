"""Heads: how a network's output stands for the marginal generator of a path, and what trains it.

A head turns the output into what a process takes (`generator`), says which Bregman divergence compares
it with a target (`divergence`), and makes conditional targets for states drawn by path weight
(`conditional_target`). A target is the `generator` of an `Estimate`, or what `conditional_target` gives.
The energy that a head is handed is the one that training is at (annealed); where it is differentiable
it is a starting point for the score near t = 1 and a target there.
"""

from egm.heads.denoiser import DenoiserHead
from egm.heads.mixture import MixtureHead, MixtureTarget
from egm.heads.normals import Noised, NormalMixture
from egm.heads.product import ProductHead
from egm.heads.score import ConditionalScore, EstimatedScore, ScoreHead

__all__ = [
    "ConditionalScore",
    "DenoiserHead",
    "EstimatedScore",
    "MixtureHead",
    "MixtureTarget",
    "Noised",
    "NormalMixture",
    "ProductHead",
    "ScoreHead",
]
