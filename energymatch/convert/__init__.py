"""The published PyTorch weights of the image potential as parameters of `networks.UNetViTPotential`.

    python -m energymatch.convert checkpoint.pt folder

reads an official checkpoint, which needs torch, and writes parameters and configuration. To read them:

    config, params = convert.load("folder")
    network = networks.UNetViTPotential(**config)
    network.apply(params, x)  # V [B] of images x [B, H, W, C]

Where the weights are at hand as arrays, `from_official(state_dict)` gives the same `params`, without torch.
"""

from energymatch.convert.published import (
    CONFIG_FILE,
    PARAMS_FOLDER,
    PUBLISHED,
    configuration,
    from_official,
    load,
    main,
    save,
    select,
)

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
