"""What a state is: spaces of numbers, angles, tokens and particles; any pytree of them is a mixed one.

    {"mu": Real(), "tau": Positive(), "theta": Real(8)}      # states {"mu": [N], "tau": [N], "theta": [N, 8]}
    Tokens((16, 16), vocab_size=2, periodic=True)            # a lattice on a torus, states [N, 16, 16]
    Circle((8, 8), periodic=True)                            # angles on one

`egm.fit` takes one; `like` makes one from an example of a state, `of` from one of the library's energies.
A space of your own in place of `Real` needs `shape`, `constrain` and `unconstrain` (`Continuous`).
"""

from egm.spaces.circle import Circle
from egm.spaces.layout import Layout, like, of
from egm.spaces.particles import Particles
from egm.spaces.real import Continuous, Interval, Positive, Real
from egm.spaces.tokens import Tokens

__all__ = [
    "Circle",
    "Continuous",
    "Interval",
    "Layout",
    "Particles",
    "Positive",
    "Real",
    "Tokens",
    "like",
    "of",
]
