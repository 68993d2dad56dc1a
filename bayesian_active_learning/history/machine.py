"""What the bytes of a result depend on besides the run's identity."""

import importlib.metadata
import os
import platform
from typing import Any

from bayesian_active_learning import __version__
from bayesian_active_learning.utils import cpu_model, num_cpus

# The last two choose batches by clustering and by a solver.
_PACKAGES = ("jax", "jaxlib", "dm-haiku", "optax", "numpy", "scipy", "scikit-learn")


def environment() -> dict[str, Any]:
    """Versions, device, processor, threads and flags. Starts JAX's backend.

    XLA:CPU's results change with the number of threads, which is the number of CPUs
    this process may use, or NPROC where that is set.
    """
    import jax

    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        # Its arithmetic may change from one version to the next, in the last digits.
        "bayesian_active_learning": __version__,
        **{name: _version(name) for name in _PACKAGES},
        "platform": device.platform,
        "device_kind": device.device_kind,
        "num_devices": jax.device_count(),
        "cpu_model": cpu_model(),
        "num_cpus": num_cpus(),
        "nproc": os.environ.get("NPROC", ""),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "enable_x64": bool(jax.config.values["jax_enable_x64"]),
        "matmul_precision": str(jax.config.values["jax_default_matmul_precision"] or "default"),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
