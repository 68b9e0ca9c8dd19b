"""Processes: how a marginal generator moves a state, with exact path weights."""

from egm.processes.jump import AnyOrderProcess, JumpProcess

__all__ = ["AnyOrderProcess", "JumpProcess"]
