"""Run as a script: what does importing the library cost and touch? One JSON object on stdout.

Only the standard library and the package are used, so that the same probe serves the tests
and the empty environment in which CI tries the wheel.
"""

import importlib
import json
import sys
import time

HEAVY = ("tensorflow", "tensorflow_datasets", "matplotlib", "sklearn", "openpyxl", "PIL")


def devices_touched() -> bool:
    """Whether jax has initialised a backend."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    if bridge is None:
        return False
    for name in ("backends_are_initialized", "_backends"):
        found = getattr(bridge, name, None)
        if found is not None:
            return bool(found() if callable(found) else found)
    raise RuntimeError("this jax does not say whether a backend was initialised")


def main(modules: list[str]) -> None:
    start = time.process_time()
    for name in modules:
        importlib.import_module(name)
    seconds = time.process_time() - start
    report = {
        "processor_seconds": seconds,
        "devices_touched": devices_touched(),
        "heavy": [name for name in HEAVY if name in sys.modules],
        "file": sys.modules["bayesian_active_learning"].__file__,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1:])
