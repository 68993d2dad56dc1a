"""How long the phases of a round took."""

import contextlib
import json
import os
import time


class Clock:
    """Seconds by round and phase, in a file of their own: results must not differ by them.

    fit, evaluate, provide (what the strategy needs: samples, networks for the choice alone) and
    acquire (its choice).
    """

    def __init__(self, path: str | os.PathLike | None):
        self._path, self._started = path, time.perf_counter()
        self.cells = 1  # at work together, among whom the seconds are shared out

    def lap(self, round: int, phase: str) -> None:
        now = time.perf_counter()
        seconds = (now - self._started) / self.cells
        line = json.dumps({"round": round, "phase": phase, "seconds": seconds})
        self._started = now
        if self._path is not None:
            with contextlib.suppress(OSError), open(self._path, "a", encoding="utf-8") as file:
                file.write(line + "\n")
