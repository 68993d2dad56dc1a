"""From axes to a figure of its own, and from a figure to a PNG."""

import io
import os
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING

from bayesian_active_learning.history.errors import HistoryError, writing
from bayesian_active_learning.plotting.styles import GREY, SMALL, plain
from bayesian_active_learning.utils import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INCHES = (6.5, 4.2)
DPI = 150
_LINE = 115  # characters of the caption in a line, at 6.5 inches


def new_figure(inches: tuple[float, float] = INCHES, caption: str = "") -> "tuple[Figure, Axes]":
    """A figure with one pair of axes and the caption below; pyplot is not used."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if caption:
        width = int(_LINE * inches[0] / INCHES[0])
        count = len(textwrap.wrap(caption, width))
        lines = textwrap.wrap(caption, width if count == 1 else len(caption) // count + 15)
        figure.supxlabel(plain("\n".join(lines)), fontsize=SMALL - 1, color=GREY)
    return figure, axes


def png(draw: "Callable[[], Figure]", *, title: str, description: str = "") -> bytes:
    """The figure that `draw` makes, with matplotlib's own settings and not the reader's.
    Equal figures give equal bytes with the same matplotlib. Raises ImportError without it."""
    import matplotlib

    content = io.BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        metadata = {"Software": None, "Title": title, "Description": description}
        draw().savefig(content, format="png", dpi=DPI, metadata=metadata)
    return content.getvalue()


def save_png(
    path: str | os.PathLike, draw: "Callable[[], Figure]", *, title: str, description: str = ""
) -> None:
    """`png` as a file, written whole or not at all.

    Raises ValueError where `path` does not end in .png, HistoryError where it cannot be
    written or matplotlib is not installed.
    """
    if not os.fspath(path).lower().endswith(".png"):
        raise ValueError(f"a figure is saved as PNG, expected a path that ends in .png, got {path}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise HistoryError(
            f"cannot write {path}: figures need matplotlib, which is not installed; install the "
            "'experiments' extra"
        ) from error
    content = png(draw, title=title, description=description)
    with writing(path), atomic_write(path, "wb") as file:
        file.write(content)
