"""Reference samples of energies that cannot be drawn from exactly: long checked chains, kept on disk."""

from egm.energies.reference.chains import ChainSettings, Reference, check_settings, run, split_r_hat
from egm.energies.reference.pool import cache_path, draw, load_or_run, reference

__all__ = [
    "ChainSettings",
    "Reference",
    "cache_path",
    "check_settings",
    "draw",
    "load_or_run",
    "reference",
    "run",
    "split_r_hat",
]
