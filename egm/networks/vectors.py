"""MLPs on vectors of a Gaussian path: raw generators, log-marginals, and closed forms to add them to.

`module.apply(params, x [N, D], t [N])`. A generator's raw output [N, D, 2] holds F and G: a head in
`egm.heads` makes F / sqrt(sigma^2 + alpha^2 s^2) a correction of the score, G one of the log of the
posterior variance. Outputs are near zero at the start. The field of the path is called `gaussian_path`
because Flax keeps `Module.path` for itself.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn

from egm.networks._features import Features, ResidualMLP, check_fields, small_init
from egm.paths.gaussian import GaussianPath
from egm.typing import Array

Skip = Callable[[Array, Array], Array]


class MLPVector(nn.Module):
    """Raw outputs [N, D, num_outputs] of a time-conditioned residual MLP.

    Attributes:
      gaussian_path: the path; a centred one also fixes D.
      length_scale: s, the finest length of the target.
      data_scale: S, its standard deviation about `center`.
      center: c, a number or D numbers.
      width: of the hidden layers.
      depth: number of hidden layers.
      num_frequencies: of the Fourier features of x, from pi / (2 S) upwards in octaves; None goes up to
        about pi / (2 s), with at most 8.
      num_outputs: numbers a coordinate.
    """

    gaussian_path: GaussianPath
    length_scale: float = 1.0
    data_scale: float = 1.0
    center: float | tuple[float, ...] = 0.0
    width: int = 128
    depth: int = 3
    num_frequencies: int | None = None
    num_outputs: int = 2

    @nn.compact
    def __call__(self, x: Array, t: Array) -> Array:
        check_fields(self, sizes=("width", "depth", "num_outputs"))
        x, _, hidden = _hidden(self, x, t)
        out = nn.Dense(x.shape[-1] * self.num_outputs, kernel_init=small_init)(hidden)
        return out.reshape(*x.shape, self.num_outputs)


class MLPVectorLogMarginal(nn.Module):
    """g [N] from the same network; attributes as for `MLPVector`, `skip(x, t)` a closed form of g."""

    gaussian_path: GaussianPath
    length_scale: float = 1.0
    data_scale: float = 1.0
    center: float | tuple[float, ...] = 0.0
    width: int = 128
    depth: int = 3
    num_frequencies: int | None = None
    skip: Skip | None = None

    @nn.compact
    def __call__(self, x: Array, t: Array) -> Array:
        check_fields(self, sizes=("width", "depth"))
        x, t, hidden = _hidden(self, x, t)
        out = nn.Dense(1, kernel_init=small_init)(hidden)[:, 0]
        return out if self.skip is None else out + self.skip(x, t)


def _hidden(module, x, t):
    features = Features(
        module.gaussian_path, module.length_scale, module.data_scale, module.center, module.num_frequencies
    )
    x, t = features.inputs(x, t)
    trunk = ResidualMLP(module.width, module.depth)
    return x, t, trunk(features.position(x, t), features.time(t, x.dtype))
