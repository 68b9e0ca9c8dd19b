"""A call of image_potential.py: some steps of training on images that the host has read."""

from __future__ import annotations

import functools

import jax
from jax.sharding import PartitionSpec as P

from egm import devices, random
from energymatch import couplings, losses


def make_call(make, network, optimizer, batch_size, mesh, chunk):
    """(init, call) of a phase: `call(key, state, flow, data)` takes `chunk` steps on images of the host."""
    init, _ = make(network.apply, optimizer)

    def step(key, state, flow, data):
        keys = random.split(key, 5)
        normals = lambda k: jax.vmap(lambda one: jax.random.normal(one, flow.shape[1:]))(
            random.example_keys(k, batch_size)
        )
        x_0, x_1 = couplings.exact_ot(keys[4], normals(keys[0]), flow)
        # One choice of what drops a step: chains and losses see the same potential.
        potential = functools.partial(network.apply, key=keys[2])
        return make(potential, optimizer)[1](keys[3], state, losses.Batch(x_0, x_1, data, normals(keys[1])))

    def call(key, state, flow, data):
        body = lambda state, each: step(each[0], state, *each[1:])
        every = (jax.random.split(key, chunk), flow, data)
        state, metrics = jax.lax.scan(body, state, every, unroll=chunk == 1)
        return state, jax.tree.map(lambda m: m.mean(), metrics)

    return init, devices.jit_step(call, mesh, batch=P(None, devices.DATA))
