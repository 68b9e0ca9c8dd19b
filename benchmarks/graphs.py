"""Largest cuts and independent sets by one call of `egm.fit`, beside greedy search and an exact solver.

python benchmarks/graphs.py                           # all: about 300 s a graph and problem
python benchmarks/graphs.py cut_64 set_150 --seconds=60
Cuts: Barabasi-Albert graphs of four edges a new node. Independent sets: graphs of the RB model (Xu and Li,
2000; cliques of 5) that have one node of each clique. `fit` draws 512 states; the greedy search has 512
random starts (cuts: flips as long as one helps; sets: random orders); HiGHS (scipy.optimize.milp) the same
seconds, and its bound says how far from the best all of them can be.
"""

from __future__ import annotations

import argparse
import itertools
import time

import jax
import numpy as np
from scipy import optimize, sparse

import egm

NUM = 512


def barabasi_albert(rng, nodes, new=4):
    """Edges of a graph in which each node after the first `new` joins that many, by their degree."""
    edges, ends = [], list(range(new))
    for node in range(new, nodes):
        chosen: set[int] = set()
        while len(chosen) < new:
            chosen.add(int(rng.choice(ends)))
        edges += [(other, node) for other in sorted(chosen)]
        ends += [*chosen, *[node] * new]
    return tuple(edges)


def rb_model(rng, cliques, size=5, density=3.0):
    """Edges of `cliques` cliques and random edges between them that spare one node of each."""
    groups = np.arange(cliques * size).reshape(cliques, size)
    edges = {pair for group in groups for pair in itertools.combinations(group.tolist(), 2)}
    spared = set(groups[:, 0].tolist())
    wanted = len(edges) + int(density * cliques * np.log(cliques) * size)
    while len(edges) < wanted:
        a, b = (int(rng.choice(groups[g])) for g in rng.choice(cliques, 2, replace=False))
        if not (a in spared and b in spared):
            edges.add((min(a, b), max(a, b)))
    return tuple(sorted(edges))


def greedy_cut(rng, nodes, edges):
    """Best of NUM starts, each flipped where it helps most until nothing does."""
    joined = np.zeros((nodes, nodes))
    for a, b in edges:
        joined[a, b] = joined[b, a] = 1
    best = 0.0
    for _ in range(NUM):
        s = rng.choice([-1.0, 1.0], nodes)
        while (gain := s * (joined @ s)).max() > 0:
            s[np.argmax(gain)] *= -1
        best = max(best, 0.25 * np.sum(joined * (1 - np.outer(s, s))))
    return best


def greedy_set(rng, nodes, edges):
    """Best of NUM random orders, each node taken that may be."""
    near = [set() for _ in range(nodes)]
    for a, b in edges:
        near[a].add(b)
        near[b].add(a)
    best = 0
    for _ in range(NUM):
        chosen: set[int] = set()
        for node in rng.permutation(nodes):
            if not near[node] & chosen:
                chosen.add(int(node))
        best = max(best, len(chosen))
    return float(best)


def solved(kind, nodes, edges, seconds):
    """(best, bound) of HiGHS: sum of y_e, y_e <= x_i + x_j <= 2 - y_e, or sum of x_i, x_i + x_j <= 1."""
    rows = sparse.lil_matrix((len(edges), nodes))
    for e, (a, b) in enumerate(edges):
        rows[e, a] = rows[e, b] = 1
    if kind == "set":
        cost, limits = -np.ones(nodes), optimize.LinearConstraint(rows.tocsr(), -np.inf, 1)
    else:
        cost, one = np.r_[np.zeros(nodes), -np.ones(len(edges))], sparse.identity(len(edges))
        limits = [
            optimize.LinearConstraint(sparse.hstack([rows, -one]).tocsr(), 0, np.inf),
            optimize.LinearConstraint(sparse.hstack([rows, one]).tocsr(), -np.inf, 2),
        ]
    found = optimize.milp(
        cost, integrality=np.ones(len(cost)), bounds=optimize.Bounds(0, 1), constraints=limits,
        options={"time_limit": seconds},
    )  # fmt: skip
    best = 0.0 if found.x is None else -float(found.fun)
    bound = best if found.status == 0 else -float(found.mip_dual_bound)
    return best, bound


def row(name, seed, seconds, beta):
    """The figures of a problem."""
    kind, nodes = name.split("_")
    rng, nodes = np.random.default_rng(seed), int(nodes)
    edges = barabasi_albert(rng, nodes) if kind == "cut" else rb_model(rng, nodes // 5)
    cls = egm.energies.MaximumCut if kind == "cut" else egm.energies.IndependentSet
    energy = cls(nodes, edges, inverse_temperature=beta)
    began = time.time()
    sampler = egm.fit(jax.random.key(seed), energy, seconds=seconds, progress=False)
    taken = time.time() - began
    x = sampler.sample(jax.random.key(1000 + seed), NUM).x
    ours = energy.cut(x) if kind == "cut" else energy.size(energy.repaired(x))
    greedy = (greedy_cut if kind == "cut" else greedy_set)(rng, nodes, edges)
    best, bound = solved(kind, nodes, edges, seconds)
    return ours, sampler, greedy, best, bound, taken


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("problems", nargs="*", default=["cut_32", "cut_64", "cut_128", "set_60", "set_150"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--beta", type=float, default=2.0)
    options = parser.parse_args()
    print(
        f"{'problem':<10}{'seed':>5}{'fit, best':>11}{'mean':>8}{'ESS':>7}{'greedy':>8}{'HiGHS':>7}"
        f"{'bound':>8}{'seconds':>9}"
    )
    for name, seed in itertools.product(options.problems, range(options.seeds)):
        ours, sampler, greedy, best, bound, taken = row(name, seed, options.seconds, options.beta)
        print(
            f"{name:<10}{seed:>5}{float(ours.max()):>11.0f}{float(ours.mean()):>8.1f}{sampler.ess:>7.3f}"
            f"{greedy:>8.0f}{best:>7.0f}{bound:>8.1f}{taken:>9.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
