"""The published PyTorch weights of the image potential as parameters of `networks.UNetViTPotential`.

    python -m energymatch.convert checkpoint.pt folder

reads an official checkpoint, which needs torch, and writes parameters and configuration. To read them:

    config, params = convert.load("folder")
    network = networks.UNetViTPotential(**config)
    network.apply(params, x)  # V [B] of images x [B, H, W, C]

Where the weights are at hand as arrays, `from_official(state_dict)` gives the same `params`, without torch.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from egm.checkpoint import paths as folders
from energymatch.convert import official

__all__ = [
    "CONFIG_FILE",
    "PARAMS_FOLDER",
    "PUBLISHED",
    "configuration",
    "from_official",
    "load",
    "main",
    "save",
    "select",
]

CONFIG_FILE, PARAMS_FOLDER = "network.json", "params"


PUBLISHED = {"num_heads": 4, "num_head_channels": 64, "num_transformer_heads": 4, "output_scale": 1000.0}
"""What no weight tells, as the published CIFAR-10 and ImageNet32 networks have it."""


def from_official(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters from official weights, each used exactly once.

    How many heads there are need not be known: queries, keys and values stay in the official order.

    Args:
      state_dict: official names, as in "input_blocks.0.0.weight", with floating weights; nothing else.

    Returns:
      `{"params": ...}`, float32, for `UNetViTPotential(**configuration(state_dict)).apply`.

    Raises:
      TypeError: `state_dict` is no mapping, or weights are not floating point. ValueError: weights are
        missing, surplus, misshaped or not finite. The message names them.
    """
    shapes = official.Shapes(state_dict)
    config = official.configuration(shapes)
    weights = tuple(official.table(config, shapes.image_side(), shapes.colors()))
    _check_names(shapes, weights)
    arrays = {name: np.asarray(value) for name, value in state_dict.items()}
    _check_values(arrays)
    params: dict[str, Any] = {}
    for weight in weights:
        node = params
        for name in weight.path[:-1]:
            node = node.setdefault(name, {})
        value = arrays[weight.name].astype(np.float32).transpose(weight.axes).reshape(weight.target)
        node[weight.path[-1]] = jnp.asarray(value)
    return {"params": params}


def configuration(state_dict: Mapping[str, Any], **given: Any) -> dict[str, Any]:
    """Keyword arguments of the `UNetViTPotential` that official weights belong to.

    Args:
      state_dict: as for `from_official`.
      **given: fields of the network that no weight tells; those of `PUBLISHED` are the default.

    Raises:
      TypeError: `state_dict` is no mapping. ValueError: it does not hold such a network.
    """
    return {**official.configuration(official.Shapes(state_dict)), **PUBLISHED, **given}


def select(checkpoint: Mapping[str, Any], weights: str | None = None) -> dict[str, Any]:
    """One set of weights of an official checkpoint, without the prefix that parallel training gives names.

    Args:
      checkpoint: a mapping with "ema_model" or "net_model" or both, or a state dict itself.
      weights: which one; None for "ema_model", the averaged weights, where it is there.

    Returns:
      Names without "module." and their weights.

    Raises:
      TypeError: `checkpoint` is no mapping. ValueError: `weights` are not in it.
    """
    if not isinstance(checkpoint, Mapping):
        raise TypeError(f"checkpoint must be a mapping, got {type(checkpoint).__name__}")
    choices = [name for name in ("ema_model", "net_model") if isinstance(checkpoint.get(name), Mapping)]
    if weights is not None and weights not in choices:
        raise ValueError(
            f"weights must be in the checkpoint, got {weights!r}, not in: {official.some(choices)}"
        )
    chosen = checkpoint[weights or choices[0]] if choices else checkpoint
    return {str(name).removeprefix("module."): value for name, value in chosen.items()}


def save(folder: str | pathlib.Path, config: Mapping[str, Any], params: Any) -> None:
    """Writes params as an orbax checkpoint and config as JSON beside it.

    Args:
      folder: made where it is missing, as `egm.checkpoint.Checkpoints` takes it.
      config: keyword arguments of the network.
      params: a pytree of dicts of arrays.

    Raises:
      FileExistsError: the folder has parameters already. TypeError, ValueError: it is none that orbax reads.
    """
    home = folders.resolve(folder)
    if (home / PARAMS_FOLDER).exists():
        raise FileExistsError(f"folder must not hold {PARAMS_FOLDER} yet, got {home}")
    text = json.dumps(dict(config), indent=1)
    ocp.save(home / PARAMS_FOLDER, params)
    (home / CONFIG_FILE).write_text(text + "\n")


def load(folder: str | pathlib.Path) -> tuple[dict[str, Any], Any]:
    """(config, params) as `save` wrote them; params on the default device, wherever they were before.

    Raises:
      FileNotFoundError: the folder has no config or no params. TypeError, ValueError: as `save`.
    """
    home = folders.resolve(folder)
    for name in (CONFIG_FILE, PARAMS_FOLDER):
        if not (home / name).exists():
            raise FileNotFoundError(f"folder must hold {name}, as energymatch.convert writes it, got {home}")
    config = json.loads((home / CONFIG_FILE).read_text())
    config = {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}
    # Asked for as host arrays, it does not matter which devices wrote them.
    stored = ocp.metadata(home / PARAMS_FOLDER).metadata
    host = ocp.load(home / PARAMS_FOLDER, jax.tree.map(lambda a: np.empty(a.shape, a.dtype), stored))
    return config, jax.tree.map(jnp.asarray, host)


def _check_names(shapes, weights):
    expected = {weight.name: weight.shape for weight in weights}
    wrong = [
        f"{name} must have shape {expected[name]}, got {shape}"
        for name, shape in shapes.items()
        if name in expected and shape != expected[name]
    ]
    problems = {
        "missing": expected.keys() - shapes.keys(),
        "surplus": shapes.keys() - expected.keys(),
        "misshaped": wrong,
    }
    if any(problems.values()):
        found = "; ".join(f"{kind}: {official.some(names)}" for kind, names in problems.items() if names)
        raise ValueError(f"state_dict must hold each weight of the network once, got {found}")


def _check_values(arrays):
    other = [f"{name} ({a.dtype})" for name, a in arrays.items() if not jnp.issubdtype(a.dtype, jnp.floating)]
    if other:
        raise TypeError(f"state_dict must hold floating point weights, got {official.some(other)}")
    bad = [name for name, a in arrays.items() if not np.all(np.isfinite(a.astype(np.float32)))]
    if bad:
        raise ValueError(f"state_dict must hold finite weights, got others in {official.some(bad)}")


def _read(file, weights):
    """Those weights of a .pt file as numpy arrays; nothing in the file is executed."""
    try:
        torch = importlib.import_module("torch")  # not a dependency: only this function wants it
    except ImportError as error:
        raise SystemExit("reading a .pt file needs PyTorch: pip install torch") from error
    chosen = select(torch.load(file, map_location="cpu", weights_only=True), weights)
    tensors = {name: value for name, value in chosen.items() if isinstance(value, torch.Tensor)}
    # numpy has no bfloat16.
    narrow = {name: value.float() for name, value in tensors.items() if value.dtype == torch.bfloat16}
    return {name: np.asarray(value) for name, value in {**chosen, **tensors, **narrow}.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line, `python -m energymatch.convert`."""
    parser = argparse.ArgumentParser(
        prog="python -m energymatch.convert", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("checkpoint", help="an official .pt file")
    parser.add_argument("folder", help="to write, without parameters in it")
    parser.add_argument(
        "--weights", choices=("ema_model", "net_model"), help="default: ema_model where there is one"
    )
    for name, default in PUBLISHED.items():
        note = "; 0: as many as num_heads tells" if name == "num_head_channels" else ""
        parser.add_argument(
            f"--{name}", type=type(default), default=default, help=f"default: {default}{note}"
        )
    flags = vars(parser.parse_args(arguments))
    state_dict = _read(flags["checkpoint"], flags["weights"])
    given = {name: flags[name] for name in PUBLISHED}
    config = configuration(state_dict, **{**given, "num_head_channels": given["num_head_channels"] or None})
    save(flags["folder"], config, from_official(state_dict))
    count = sum(np.size(value) for value in state_dict.values())
    print(f"{count:,} parameters in {flags['folder']}: {config}")


if __name__ == "__main__":
    main()
