"""Processes: how a marginal generator moves a state, with exact path weights."""

from egm.processes import orders
from egm.processes.diffusion import DiffusionProcess
from egm.processes.flow import FlowProcess
from egm.processes.jump import AnyOrderProcess, JumpProcess
from egm.processes.ordered import OrderedProcess
from egm.processes.product import ProductProcess
from egm.processes.superposition import SuperpositionProcess
from egm.processes.vector_jump import VectorJumpProcess

__all__ = [
    "AnyOrderProcess",
    "DiffusionProcess",
    "FlowProcess",
    "JumpProcess",
    "OrderedProcess",
    "ProductProcess",
    "SuperpositionProcess",
    "VectorJumpProcess",
    "orders",
]
