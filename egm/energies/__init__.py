"""Targets: energies E(x), beta inside, with exact samples and log Z where they are known."""

from egm.energies import lattices
from egm.energies.conditionals import WithColouring, WithConditionals
from egm.energies.double_well import DoubleWell4
from egm.energies.gaussian_mixture import GaussianMixture
from egm.energies.gb_rbm import GaussianBernoulliRBM
from egm.energies.graphs import IndependentSet, MaximumCut
from egm.energies.ising import Ising
from egm.energies.joint_double_well import JointDoubleWell
from egm.energies.joint_mixture import CoupledJointMixture, JointGaussianMixture
from egm.energies.lattices import check_colouring
from egm.energies.lennard_jones import LennardJones
from egm.energies.pairs import WithPairs, pair_terms
from egm.energies.reference import ChainSettings
from egm.energies.spin_models import Potts, SpinGlass

__all__ = [
    "ChainSettings",
    "CoupledJointMixture",
    "DoubleWell4",
    "GaussianBernoulliRBM",
    "GaussianMixture",
    "IndependentSet",
    "Ising",
    "JointDoubleWell",
    "JointGaussianMixture",
    "LennardJones",
    "MaximumCut",
    "Potts",
    "SpinGlass",
    "WithColouring",
    "WithConditionals",
    "WithPairs",
    "check_colouring",
    "lattices",
    "pair_terms",
]
