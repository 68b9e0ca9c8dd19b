"""The algorithms of EGM as losses over one batch of terminal states; the outer loop is `iteration`.

Each is a frozen dataclass with `generator(params, energy)`, what a process simulates, and
`loss(keys, params, target_params, x_1, t, energy)` [B] on x_t ~ p_{t|1}(. | x_1).

Source: EGM (arXiv 2505.19646); the weighted conditional loss is close to the objective of the masked
diffusion neural sampler (arXiv 2508.10684).
"""

from egm.algorithms.bootstrapped import Bootstrap
from egm.algorithms.local import LocalBootstrap
from egm.algorithms.naive import Naive
from egm.algorithms.weighted import Weighted

__all__ = ["Bootstrap", "LocalBootstrap", "Naive", "Weighted"]
