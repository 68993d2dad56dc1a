"""Parameters survive the disk, and nothing else passes for them."""

import jax
import numpy as np
import pytest

from bayesian_active_learning import models
from bayesian_active_learning.parameters import load_variables, save_variables
from experiments import mnist_bald

KEY = jax.random.key(0)
INPUTS = np.zeros((1, 6), np.float32)


def test_round_trip(tmp_path):
    model = models.mlp(3, hidden_sizes=(4,))
    variables = model.init(KEY, INPUTS)
    save_variables(tmp_path / "params.npz", variables)
    shapes = jax.eval_shape(model.init, KEY, INPUTS)
    found = load_variables(tmp_path / "params.npz", shapes)
    assert jax.tree.structure(found) == jax.tree.structure(variables)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(variables), strict=True):
        np.testing.assert_array_equal(one, other)


def test_another_model_is_refused(tmp_path):
    save_variables(tmp_path / "params.npz", models.mlp(3, (4,)).init(KEY, INPUTS))
    other = models.mlp(3, (5,)).init(KEY, INPUTS)
    with pytest.raises(ValueError, match=r"params\.npz: made for another model; .*dense_1.*\(5,\)"):
        load_variables(tmp_path / "params.npz", other)


@pytest.mark.parametrize("content", [b"", b"not an archive", None])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "params.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"params\.npz: not a readable parameter file"):
        load_variables(path, models.mlp(3).init(KEY, INPUTS))


def test_the_command_saves_them_on_request(tmp_path):
    options = (
        "--dataset digits --model mlp --min-steps 5 --epochs 0 --num-samples 3 "
        "--num-test-samples 2 --pool-size 50 --labels 30 --acquisition random --save-parameters"
    )
    line = [*options.split(), "--output-dir", str(tmp_path / "run")]
    assert mnist_bald.main(line[:-3] + line[-2:]) == 0
    assert not (tmp_path / "run" / "random" / "0" / "params.npz").exists()
    assert mnist_bald.main(line) == 0  # asked for later: the last round is fitted again
    model = models.mlp(10)
    shapes = jax.eval_shape(model.init, KEY, np.zeros((1, 8, 8, 1), np.float32))
    found = load_variables(tmp_path / "run" / "random" / "0" / "params.npz", shapes)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
