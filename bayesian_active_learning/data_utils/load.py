"""`load_dataset`: one name in, one `Dataset` out, from wherever the data can be had."""

import functools
import os
import pathlib
import textwrap
from collections.abc import Callable

from bayesian_active_learning import specs
from bayesian_active_learning.data_utils.dataset import DataError, Dataset
from bayesian_active_learning.data_utils.digits import load_digits
from bayesian_active_learning.data_utils.download import BASE_URLS, cache_folder, download_idx
from bayesian_active_learning.data_utils.idx import (
    CHECKS,
    FILE_NAMES,
    assemble,
    find_idx_folder,
    load_idx,
)
from bayesian_active_learning.data_utils.npz import load_npz
from bayesian_active_learning.data_utils.pools import POOLS
from bayesian_active_learning.data_utils.tfds import (
    default_tfds_dir,
    find_prepared,
    load_tfds,
    read_prepared,
)

DATASETS = ("mnist", "fashion_mnist", "digits", "npz:PATH", *(f"{pool}_NAME" for pool in POOLS))

DEFAULT_DEADLINE = 20.0  # seconds of download when nobody asked for this data set
ASKED_DEADLINE = 300.0  # seconds of download when somebody did

Notify = Callable[[str], object]


def load_dataset(
    name: str | None = None,
    data_dir: str | os.PathLike | None = None,
    *,
    notify: Notify = print,
    base_url: str | None = None,
) -> Dataset:
    """Loads a data set by name.

    `mnist` and `fashion_mnist` are looked for in `data_dir`, else in the folder that
    the environment variable BAL_DATA_DIR names. Both may hold the four original `.gz`
    files or a directory prepared by tensorflow-datasets as array_record, in the folder
    itself or in a subfolder of the data set's name. A folder that was named is taken at
    its word: if it does not hold the data, or holds it damaged, that is an error. With
    neither, TFDS's default directory, the cache and a download into the cache are tried,
    in this order; BAL_OFFLINE=1 leaves out the download.

    Rows and content hash are the same whichever way the data came.

    Args:
      name: "mnist", "fashion_mnist", "digits" or "npz:PATH". None takes MNIST if it can
        be had within seconds, and otherwise digits, saying so loudly. "repeated_mnist",
        "unbalanced_mnist:keep=0.05" and so on change the pool of what they name, see `POOLS`.
      data_dir: see above.
      notify: is called with text that a person should see.
      base_url: a mirror to download from.

    Raises:
      ValueError: unknown name; lists the known ones.
      DataError: data missing or damaged; names the file, or the ways to provide it.
    """
    if name is not None and name.startswith("npz:"):
        _mention_unused(name, data_dir, notify)
        return load_npz(name.removeprefix("npz:"))
    pool, _, base = (name or "").partition(":")[0].partition("_")
    if name is not None and pool in POOLS:
        settings = specs.options(name, POOLS[pool])
        loaded = load_dataset(base, data_dir, notify=notify, base_url=base_url)
        return POOLS[pool](loaded, **settings)._replace(name=name)
    if name == "digits":
        _mention_unused(name, data_dir, notify)
        return load_digits()
    if name is not None and name not in CHECKS:
        raise ValueError(f"unknown dataset {name!r}; known: {', '.join(DATASETS)}")
    wanted = "mnist" if name is None else name
    named = data_dir if data_dir is not None else os.environ.get("BAL_DATA_DIR") or None
    if named is not None:
        return _from_named_folder(wanted, pathlib.Path(named).expanduser())
    deadline = DEFAULT_DEADLINE if name is None else ASKED_DEADLINE
    found = _search(wanted, deadline, base_url, notify)
    if isinstance(found, Dataset):
        return found
    if name is not None:
        raise DataError(f"{name} cannot be had here.\n{_explain(name, found)}")
    try:
        digits = load_digits()
    except DataError as error:
        raise DataError(
            f"neither mnist nor digits can be had here: {error}\n{_explain(wanted, found)}"
        ) from error
    notify(_box("MNIST WAS NOT FOUND. THIS RUN USES DIGITS INSTEAD.", digits, found))
    return digits


def _from_named_folder(name: str, folder: pathlib.Path) -> Dataset:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder (from --data-dir or BAL_DATA_DIR)")
    if find_idx_folder(name, folder) is not None:
        return load_idx(name, folder)
    if find_prepared(name, folder) is not None:
        return load_tfds(name, folder)
    raise DataError(
        f"{folder}: holds neither the original {name} files ({', '.join(FILE_NAMES)}) nor a "
        f"{name} directory prepared by tensorflow-datasets, here or in its subfolder {name!r}"
    )


def _search(
    name: str, deadline: float, base_url: str | None, notify: Notify
) -> Dataset | list[str]:
    """The data set from a place nobody named, or what was tried and why it failed."""
    tried = []
    prepared = find_prepared(name, default_tfds_dir())
    if prepared is None:
        tried.append(f"{default_tfds_dir()}: {name} is not prepared by tensorflow-datasets")
    else:
        try:
            return read_prepared(name, prepared)
        except DataError as error:
            tried.append(str(error))
    cache = cache_folder(name)
    if find_idx_folder(name, cache) is None:
        tried.append(f"{cache}: nothing in the cache")
    else:
        try:
            return load_idx(name, cache)
        except DataError as error:
            tried.append(str(error))
    if os.environ.get("BAL_OFFLINE", "") not in ("", "0"):
        tried.append("download: left out, BAL_OFFLINE is set")
        return tried
    megabytes = sum(check.size for check in CHECKS[name].values()) / 1e6
    url = base_url or BASE_URLS[name]
    notify(f"{name}: downloading {megabytes:.0f} MB from {url} (at most {deadline:g} s) ...")
    try:
        files = download_idx(name, cache, base_url=base_url, deadline=deadline, notify=notify)
        return assemble(name, files)
    except DataError as error:
        tried.append(str(error))
    return tried


def _explain(name: str, tried: list[str]) -> str:
    failures = "\n".join(f"  - {reason}" for reason in tried)
    return (
        f"Tried:\n{failures}\n"
        f"Ways to provide {name}:\n"
        f"  - --data-dir DIR (data_dir=DIR), or the environment variable BAL_DATA_DIR=DIR, "
        f"where DIR holds the four original files {', '.join(FILE_NAMES)}\n"
        f"  - the same with a DIR prepared by tensorflow-datasets as array_record, or its "
        f"default directory (TFDS_DATA_DIR): pip install 'bayesian_active_learning[tfds]'\n"
        f"  - a network connection to {BASE_URLS[name]}\n"
        f"Or run on small data that needs none of this: --dataset digits"
    )


def _box(title: str, digits: Dataset, tried: list[str]) -> str:
    lines = [
        title,
        "",
        f"digits: {len(digits.labels):,} images of 8x8 pixels from scikit-learn. Easier and "
        "smaller than MNIST: nothing this run shows says anything about MNIST or the paper.",
        "",
        *_explain("mnist", tried).splitlines(),
    ]
    width = 76
    wrap = functools.partial(
        textwrap.wrap,
        width=width,
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    wrapped = [part for line in lines for part in (wrap(line) or [""])]
    width = max(map(len, wrapped))  # a path may be longer
    border = "#" * (width + 4)
    return "\n".join(["", border, *(f"# {line:<{width}} #" for line in wrapped), border, ""])


def _mention_unused(name: str, data_dir: str | os.PathLike | None, notify: Notify) -> None:
    if data_dir is not None:
        notify(f"data_dir {os.fspath(data_dir)} is not used: {name} does not come from a folder")
