"""What a command leaves behind: the table, the curves, the exports, and their names said."""

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bayesian_active_learning.history import History


def report(
    directory: str | os.PathLike,
    found: "History",
    say: Callable[[str], object],
    *,
    with_paper: bool = False,
    thresholds: Sequence[float] = (0.90, 0.95),
) -> None:
    """Prints the table, draws the curves, writes the exports, names every file.

    with_paper: draw the paper's numbers too, where the data is MNIST.
    """
    from bayesian_active_learning import history, plotting
    from bayesian_active_learning.utils import atomic_write

    directory = pathlib.Path(directory)
    text = f"{history.summary_table(found, thresholds)}\n\n{history.notice(found)}\n"
    files: list[Any] = [
        directory / name for name in ("history.json", "history.csv", "history.xlsx")
    ]
    history.write_history(files[0], found)
    history.export_csv(files[1], found)
    history.export_xlsx(files[2], found)
    files.append(directory / "summary.txt")
    with history.writing(files[-1]), atomic_write(files[-1]) as file:
        file.write(text)
    say("\n" + text)
    files.append(directory / "learning_curves.png")
    is_mnist = found.config["identity"]["dataset"] == "mnist"
    references = plotting.PAPER_LABELS if with_paper and is_mnist else None
    plotting.save_learning_curves(files[-1], found, references=references, thresholds=thresholds)
    cell = f"{directory}/<function>/<seed>"
    files += [f"{directory}/{history.CONFIG}  what the results depend on"]
    files += [f"{cell}/{history.LOG}  every label asked for, in order, and every result"]
    if any(directory.glob(f"*/*/{history.CLOCK}")):
        files += [f"{cell}/{history.CLOCK}  seconds"]
    files += [f"{path}  last parameters" for path in sorted(directory.glob("*/*/params.npz"))]
    say("Written:\n" + "\n".join(f"  {path}" for path in files))
