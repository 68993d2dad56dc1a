"""Parameters on disk: one `.npz` of plain arrays, written atomically, read without pickle."""

import os
import pathlib
import zipfile

import jax
import numpy as np

from bayesian_active_learning.types import PyTree, Variables
from bayesian_active_learning.utils import atomic_write


def save_variables(path: str | os.PathLike, variables: Variables) -> None:
    """Writes every array under its path in the tree, such as `.params['dense_1']['w']`.

    Raises OSError where the file cannot be written; an older file is then still there.
    """
    leaves = jax.tree_util.tree_flatten_with_path(variables)[0]
    arrays = {jax.tree_util.keystr(place): np.asarray(leaf) for place, leaf in leaves}
    with atomic_write(path, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_variables(path: str | os.PathLike, like: PyTree) -> PyTree:
    """What `save_variables` wrote, in the structure of `like` (arrays, or their shapes as
    `jax.eval_shape(model.init, key, inputs)` gives them).

    Raises:
      ValueError: not such a file, or arrays whose names, shapes or types differ from `like`.
    """
    try:
        with np.load(pathlib.Path(path), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a readable parameter file ({error})") from error
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    expected = {jax.tree_util.keystr(place): (leaf.shape, leaf.dtype) for place, leaf in leaves}
    found = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    if found != expected:
        names = [n for n in {**expected, **found} if found.get(n) != expected.get(n)]
        raise ValueError(
            f"{path}: made for another model; {names[0]} is {found.get(names[0], 'absent')}, "
            f"expected {expected.get(names[0], 'absent')}"
        )
    return jax.tree.unflatten(structure, [arrays[name] for name in expected])
