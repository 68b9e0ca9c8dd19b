"""The version of the distribution, the one place that holds it: pyproject.toml reads it from here."""

__all__ = ["__version__"]

__version__ = "0.2.0"
