"""The libraries to compare with: which are here, and the one way each is called."""

import importlib
import importlib.metadata
import importlib.util
import logging
import os
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

NAMES: dict[str, str] = {
    "torch": "torch",
    "baal": "baal",
    "batchbald_redux": "batchbald_redux",
    "scikit-activeml": "skactiveml",
}
"""Package -> the module that it brings."""


class Peers(NamedTuple):
    """What is installed: package -> version. `in` asks whether a package is there."""

    versions: Mapping[str, str]

    def __contains__(self, name: object) -> bool:
        return name in self.versions

    @property
    def missing(self) -> list[str]:
        return [name for name in NAMES if name not in self.versions]

    @property
    def torch(self) -> Any:
        """The module, or None."""
        return module("torch") if "torch" in self else None

    def threads(self) -> dict[str, Any]:
        return {"torch_threads": self.torch.get_num_threads()} if "torch" in self else {}


def find() -> Peers:
    """The peers whose packages are installed and can be imported."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars are no part of the work
    found = {}
    for name, top in NAMES.items():
        if importlib.util.find_spec(top) is not None:
            try:
                module(top)
                found[name] = importlib.metadata.version(name)
            except ImportError:
                continue  # without torch, baal and batchbald_redux cannot be imported
    return Peers(found)


def quiet_baal() -> None:
    """Its log would stand between the tables."""
    structlog = module("structlog")
    level = structlog.make_filtering_bound_logger(logging.ERROR)
    structlog.configure(wrapper_class=level)


def module(name: str) -> Any:
    """A peer's module, imported without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)
