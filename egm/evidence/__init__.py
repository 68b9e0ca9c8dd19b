"""Log Z from both sides: what a sampler's own weights cannot see, and chains of other starts that can.

ESS, log Z and every other figure of simulated trajectories know only the states that the sampler visits.
A sampler that has lost three of four equal modes reports an ESS near 1 and log(1/4) too little, with a
tiny error. What shows the loss are states from elsewhere: exact samples, data, or chains that start far
apart. Taken backward through the sampler (`egm.simulate_reverse`) each has a path log-weight, and where
the sampler puts no mass that is far above log Z.

With p the target's density on whole paths (its states, taken backward), q the sampler's (forward) and
w = Z p / q, for every limit c

  Z = E_q[w 1(w <= c)] + Z P_p(w > c),

the mass that the sampler visits and the mass that it misses. `two_sided` estimates the second part from
states that the sampler did not make; `tempered_chains` makes them, for any energy.

What none of it can see: a mode that no reference state reaches. Chains start from normal distributions up
to ten times wider than the one that they are given; a mode far outside them, or one so narrow that no
chain meets it on the way, stays unseen, by every number here.

`bounds` holds both sides of log Z and what they say of a sampler, `chains` the chains of other starts.
"""

from egm.evidence._kernels import by_colour
from egm.evidence.bounds import Evidence, check, from_states, message, two_sided
from egm.evidence.chains import Chains, moved, tempered_chains

__all__ = [
    "Chains",
    "Evidence",
    "by_colour",
    "check",
    "from_states",
    "message",
    "moved",
    "tempered_chains",
    "two_sided",
]
