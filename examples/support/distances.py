"""Distances between sets of points that need SciPy."""

import numpy as np
import scipy.optimize
import scipy.spatial


def w2(a, b):
    """Exact W2 between two equally large sets of points, (min mean ||a_i - b_pi(i)||^2)^(1/2)."""
    return assigned(scipy.spatial.distance.cdist(a, b, "sqeuclidean"))


def assigned(cost):
    """The root of the smallest mean of squared distances [N, N] over assignments."""
    return np.sqrt(np.mean(cost[scipy.optimize.linear_sum_assignment(cost)]))
