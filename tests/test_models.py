import contextlib
import functools
from collections.abc import Callable

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bayesian_active_learning import compilation, models
from bayesian_active_learning.hoisting import map_draws
from bayesian_active_learning.types import Model, Outputs, Variables

KEY = jax.random.key(0)
CONVNET, MLP = models.convnet(3), models.mlp(3, hidden_sizes=(16, 8))
each_model = pytest.mark.parametrize("model", [CONVNET, MLP], ids=["convnet", "mlp"])


def images(count: int, seed: int = 0, shape: tuple[int, ...] = (8, 8, 1)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=(0, 4))
def logits(model: Model, variables: Variables, key, inputs, mode: str) -> jax.Array:
    return model.apply(variables, key, inputs, mode=mode)[0].logits


@functools.cache
def fresh(model: Model, *shape: int) -> Variables:
    """Some variables, without compiling `init`."""
    generator = np.random.default_rng(0)
    like = jax.eval_shape(model.init, KEY, jnp.zeros(shape or (1, 8, 8, 1)))
    values = jax.tree.map(lambda x: 0.2 * generator.normal(size=x.shape).astype(x.dtype), like)
    return jax.tree.map(jnp.asarray, values)


# The paper's network.


def test_convnet_has_the_papers_shapes():
    inputs = jax.ShapeDtypeStruct((2, 28, 28, 1), jnp.float32)
    variables = jax.eval_shape(models.convnet(10).init, KEY, inputs)
    shapes = {
        f"{module}.{name}": leaf.shape
        for module, leaves in variables.params.items()
        for name, leaf in leaves.items()
    }
    assert shapes == {
        "conv_1.w": (4, 4, 1, 32),
        "conv_1.b": (32,),
        "conv_2.w": (4, 4, 32, 32),
        "conv_2.b": (32,),
        "dense_1.w": (3872, 128),
        "dense_1.b": (128,),
        "dense_2.w": (128, 10),
        "dense_2.b": (10,),
    }
    assert sum(np.prod(shape) for shape in shapes.values()) == 513_994
    assert not jax.tree.leaves(variables.state)


def test_outputs_have_logits_and_the_input_of_the_last_layer():
    def apply(inputs):
        return CONVNET.apply(CONVNET.init(KEY, inputs), None, inputs, mode="mean")[0]

    outputs = jax.eval_shape(apply, jax.ShapeDtypeStruct((5, 8, 9, 3), jnp.float32))
    assert (outputs.logits.shape, outputs.features.shape) == ((5, 3), (5, 128))
    inputs = images(4)
    variables = fresh(MLP)
    outputs, _ = MLP.apply(variables, None, inputs, mode="mean")
    head = variables.params["head"]
    np.testing.assert_allclose(outputs.logits, outputs.features @ head["w"] + head["b"], rtol=1e-5)


def test_mlp_takes_any_inputs_and_any_depth():
    for hidden_sizes in ((), (4,), (4, 5)):
        model = models.mlp(3, hidden_sizes)
        shapes = jax.eval_shape(model.init, KEY, jax.ShapeDtypeStruct((2, 6), jnp.float32)).params
        assert [m["w"].shape[1] for m in shapes.values()] == [*hidden_sizes, 3]
    features = np.ones((2, 8, 8, 1), np.float32)
    variables = fresh(MLP)
    flat = features.reshape(2, -1)
    assert np.array_equal(
        logits(MLP, variables, None, flat, "mean"), logits(MLP, variables, None, features, "mean")
    )


def test_initial_weights_are_glorot_uniform_and_biases_zero():
    variables = jax.jit(models.mlp(3, (40,)).init)(jax.random.key(7), jnp.zeros((2, 60)))
    for layer in variables.params.values():
        limit = np.sqrt(6 / sum(layer["w"].shape))
        assert 0.9 * limit < np.abs(layer["w"]).max() <= limit
        assert abs(layer["w"].std() / (limit / np.sqrt(3)) - 1) < 0.1
        assert not layer["b"].any()


def test_known_models_take_the_number_of_classes():
    for make in models.MODELS.values():
        model = make(7)
        inputs = jnp.zeros((2, 16, 16, 1))
        variables = jax.eval_shape(model.init, KEY, inputs)
        apply = functools.partial(model.apply, mode="mean")
        outputs, _ = jax.eval_shape(apply, variables, None, inputs)
        assert outputs.logits.shape == (2, 7)


# Modes.


@each_model
def test_train_masks_differ_between_examples(model: Model):
    inputs = np.repeat(images(1), 16, axis=0)
    variables = fresh(model)
    found = logits(model, variables, KEY, inputs, "train")
    assert len(np.unique(found.round(4), axis=0)) > 12
    assert np.array_equal(found, logits(model, variables, KEY, inputs, "train"))
    assert not np.array_equal(found, logits(model, variables, jax.random.key(1), inputs, "train"))


@each_model
def test_sample_is_one_network_whatever_else_is_in_the_batch(model: Model):
    inputs = images(70)  # more than the convolutions take at once
    variables = fresh(model)
    found = np.asarray(logits(model, variables, KEY, inputs, "sample"))
    for part in (slice(0, 1), np.array([69, 0, 5])):
        alone = logits(model, variables, KEY, inputs[part], "sample")
        np.testing.assert_allclose(alone, found[part], atol=1e-5)
    same = np.asarray(logits(model, variables, KEY, np.repeat(inputs[:1], 70, axis=0), "sample"))
    np.testing.assert_allclose(same, np.broadcast_to(found[:1], same.shape), atol=1e-5)
    other = np.asarray(logits(model, variables, jax.random.key(1), inputs, "sample"))
    assert (np.abs(other - found).max(axis=1) > 1e-3).all()


@each_model
def test_mean_needs_no_key_and_ignores_one(model: Model):
    inputs = images(3)
    variables = fresh(model)
    found = logits(model, variables, None, inputs, "mean")
    assert np.array_equal(found, logits(model, variables, jax.random.key(5), inputs, "mean"))


@pytest.mark.parametrize("mode", ["sample", "train"])
def test_mean_is_the_expectation_of_what_is_linear_in_the_mask(mode: str):
    model = models.mlp(3, hidden_sizes=(16,), rate=0.3)  # one mask, just before the logits
    inputs = images(2)
    variables = fresh(model)
    keys = jax.random.split(jax.random.key(1), 4000)
    draws = np.asarray(
        jax.vmap(lambda key: logits(model, variables, key, inputs, mode))(keys), np.float64
    )
    error = draws.std(axis=0) / np.sqrt(len(keys))
    distance = draws.mean(axis=0) - logits(model, variables, None, inputs, "mean")
    assert (np.abs(distance) < 5 * error).all()


@pytest.mark.parametrize("jit", [compilation.jit, jax.jit], ids=["ours", "another's"])
@pytest.mark.parametrize("method", ["__call__", "after_relu"])
def test_images_are_flattened_in_training(method: str, jit: Callable):
    """Where it is not a product of matrices: values, gradients, several at once."""

    def layer(inputs: jax.Array, mode: str) -> jax.Array:
        return getattr(models.DropoutLinear(6, 0.5, name="layer"), method)(inputs, mode)

    layer = hk.transform(layer)
    params = {"layer": {"w": jnp.asarray(images(1, 1, (60, 6))[0]), "b": jnp.ones(6)}}

    def loss(params: dict, key: jax.Array, inputs: jax.Array) -> jax.Array:
        return (layer.apply(params, key, inputs, "train") ** 2).sum()

    def expected(params: dict, key: jax.Array, inputs: jax.Array) -> jax.Array:
        inputs = jax.nn.relu(inputs) if method == "after_relu" else inputs
        # The layer's own key, as Haiku makes it.
        dropped = models.dropout(hk.PRNGSequence(key).next(), 0.5, inputs)
        return ((dropped.reshape(len(dropped), 60) @ params["layer"]["w"] + 1) ** 2).sum()

    inputs, keys = images(3 * 4, shape=(3, 5, 4)).reshape(3, 4, 3, 5, 4), jax.random.split(KEY, 3)
    ours, plain = (jax.value_and_grad(f, argnums=(0, 2)) for f in (loss, expected))
    together = jit(jax.vmap(ours, (None, 0, 0)))(params, keys, inputs)
    for index in range(3):
        found = jit(ours)(params, keys[index], inputs[index])
        value, (params_bar, inputs_bar) = plain(params, keys[index], inputs[index])
        for one in (found, jax.tree.map(lambda x, i=index: x[i], together)):
            np.testing.assert_allclose(one[0], value, rtol=1e-5)
            np.testing.assert_allclose(
                one[1][0]["layer"]["w"], params_bar["layer"]["w"], rtol=1e-4, atol=1e-4
            )
            np.testing.assert_allclose(one[1][1], inputs_bar, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["train", "sample", "mean"])
@pytest.mark.parametrize(
    ("model", "side"), [(CONVNET, 8), (models.batchbald_convnet(3), 16), (MLP, 8)]
)
def test_a_batch_may_be_empty(model: Model, side: int, mode: str):
    variables = fresh(model, 1, side, side, 1)

    def total(params: hk.MutableParams) -> jax.Array:
        inputs = images(0, shape=(side, side, 1))
        found = logits(model, variables._replace(params=params), KEY, inputs, mode)
        assert found.shape == (0, 3)
        return found.sum()

    gradients = jax.grad(total)(variables.params)
    chex.assert_trees_all_equal(gradients, jax.tree.map(jnp.zeros_like, variables.params))


@each_model
@pytest.mark.parametrize("mode", ["train", "sample"])
def test_gradients_have_gradients(model: Model, mode: str):
    variables, inputs = fresh(model), images(2)

    def length(params: dict) -> jax.Array:
        def loss(params: dict) -> jax.Array:
            found, _ = model.apply(Variables(params, {}), KEY, inputs, mode=mode)
            return (found.logits**2).sum()

        return sum((x**2).sum() for x in jax.tree.leaves(jax.grad(loss)(params)))

    for plainly in (contextlib.nullcontext, compilation.plain_convolutions):
        with plainly():
            jax.make_jaxpr(jax.grad(length))(variables.params)


def test_an_mlp_has_derivatives_forward():
    variables = fresh(MLP)

    def loss(params: dict) -> jax.Array:
        return MLP.apply(Variables(params, {}), KEY, images(2), mode="train")[0].logits.sum()

    jax.eval_shape(jax.hessian(loss), variables.params)


def test_masks_folded_into_weights_are_masks_on_inputs():
    inputs = images(6, shape=(20,))

    def folded(x):
        return models.DropoutLinear(4, 0.5, name="layer")(x, "sample")

    def explicit(x):
        mask = models.dropout(hk.next_rng_key(), 0.5, jnp.ones(20))
        return models.DropoutLinear(4, 0.5, name="layer")(x * mask, "mean")

    folded, explicit = hk.transform(folded), hk.transform(explicit)
    params = {"layer": {"w": jnp.asarray(images(1, 1, (20, 4))[0]), "b": jnp.ones(4)}}
    both = folded.apply, explicit.apply
    apply = jax.jit(lambda key: tuple(each(params, key, inputs) for each in both))
    for key in jax.random.split(KEY, 3):
        found, expected = apply(key)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert np.abs(found - apply(KEY)[0]).max() > 1e-3


def revealing(variables: Variables) -> tuple[Variables, Variables]:
    """Parameters for which the convnet's features, and its logits, are its masks."""
    zeros = jax.tree.map(jnp.zeros_like, variables.params)
    ones = jnp.ones(32)
    first = zeros | {
        "conv_2": {"w": zeros["conv_2"]["w"], "b": ones},
        "dense_1": {"w": jnp.eye(32, 128), "b": jnp.zeros(128)},
    }
    second = zeros | {
        "dense_1": {"w": jnp.zeros((32, 128)), "b": jnp.ones(128)},
        "dense_2": {"w": jnp.eye(128, 3), "b": jnp.zeros(3)},
    }
    return Variables(first, {}), Variables(second, {})


@pytest.mark.parametrize("mode", ["sample", "train"])
def test_convnet_drops_a_quarter_and_then_a_half(mode: str):
    inputs = images(8)
    before_dense, before_head = revealing(fresh(CONVNET))

    @jax.jit
    @jax.vmap
    def masks(key):
        features = CONVNET.apply(before_dense, key, inputs, mode=mode)[0].features[:, :32]
        return features, CONVNET.apply(before_head, key, inputs, mode=mode)[0].logits

    for found, rate in zip(masks(jax.random.split(KEY, 500)), (0.25, 0.5)):
        found = np.asarray(found)  # [500, 8, units]
        kept = found > 0
        np.testing.assert_allclose(found[kept], 1 / (1 - rate), rtol=1e-6)
        draws = kept[:, :1] if mode == "sample" else kept
        assert (kept == kept[:, :1]).all() == (mode == "sample")
        # Five standard errors, over all units and for each of them.
        for share, count in ((draws.mean(), draws.size), (draws.mean((0, 1)), draws[..., 0].size)):
            assert np.abs(share - (1 - rate)).max() < 5 * np.sqrt(rate * (1 - rate) / count)


# BatchBALD's network.


def test_batchbald_convnet_has_its_shapes():
    inputs = jax.ShapeDtypeStruct((2, 28, 28, 1), jnp.float32)
    variables = jax.eval_shape(models.batchbald_convnet(10).init, KEY, inputs)
    shapes = {
        f"{module}.{name}": leaf.shape
        for module, leaves in variables.params.items()
        for name, leaf in leaves.items()
    }
    assert shapes == {
        "conv_1.w": (5, 5, 1, 32),
        "conv_1.b": (32,),
        "conv_2.w": (5, 5, 32, 64),
        "conv_2.b": (64,),
        "dense_1.w": (1024, 128),
        "dense_1.b": (128,),
        "dense_2.w": (128, 10),
        "dense_2.b": (10,),
    }
    assert sum(np.prod(shape) for shape in shapes.values()) == 184_586


@pytest.mark.parametrize("mode", ["mean", "sample", "train"])
def test_batchbald_convnet_is_the_published_order_of_layers(mode: str):
    """Dropout straight after each convolution, then pooling, then ReLU, in textbook form."""
    model = models.batchbald_convnet(3)
    inputs, variables = images(3, shape=(16, 17, 2)), fresh(model, 1, 16, 17, 2)

    def textbook(inputs: jax.Array) -> jax.Array:
        def dropped(values: jax.Array) -> jax.Array:
            if mode == "mean":
                return values
            axes = {1, 2} if values.ndim == 4 else set()
            shape = [1 if axis in axes else size for axis, size in enumerate(values.shape)]
            shape[0] = len(inputs) if mode == "train" else 1
            return values * models.dropout(hk.next_rng_key(), 0.5, jnp.ones(shape))

        for layer in ("conv_1", "conv_2"):
            w, b = (variables.params[layer][name] for name in "wb")
            inputs = lax.conv_general_dilated(
                inputs, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            inputs = dropped(inputs + b)
            inputs = lax.reduce_window(
                inputs, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
            )
            inputs = jax.nn.relu(inputs)
        w, b = (variables.params["dense_1"][name] for name in "wb")
        inputs = dropped(jax.nn.relu(inputs.reshape(len(inputs), -1) @ w + b))
        w, b = (variables.params["dense_2"][name] for name in "wb")
        return inputs @ w + b

    expected = jax.jit(hk.transform(textbook).apply)
    for key in jax.random.split(KEY, 3):
        found = logits(model, variables, key, inputs, mode)
        np.testing.assert_allclose(found, expected({}, key, inputs), rtol=1e-4, atol=1e-4)
    if mode != "mean":
        assert np.abs(found - logits(model, variables, KEY, inputs, mode)).max() > 1e-2


def test_mlp_drops_before_all_but_the_first_layer():
    model = models.mlp(3, hidden_sizes=(5, 6), rate=0.0)
    inputs = images(2)
    variables = fresh(model)
    expected = logits(model, variables, None, inputs, "mean")
    assert np.array_equal(logits(model, variables, KEY, inputs, "sample"), expected)
    assert np.array_equal(logits(model, variables, KEY, inputs, "train"), expected)
    linear = models.mlp(3, hidden_sizes=(), rate=0.5)
    variables = fresh(linear)
    program = jax.make_jaxpr(lambda key: logits(linear, variables, key, inputs, "train"))(KEY)
    assert "random" not in str(program)


def batch_norm(inputs: jax.Array, mode: str) -> Outputs:
    features = hk.BatchNorm(True, True, 0.9)(inputs, is_training=True)  # updates in any mode
    return Outputs(hk.Linear(3)(features), features)


def test_only_training_changes_the_state():
    model = models.from_haiku(batch_norm)
    inputs = images(8, shape=(4,))
    variables = jax.jit(model.init)(KEY, inputs)
    apply = jax.jit(model.apply, static_argnames="mode")
    assert jax.tree.leaves(variables.state)
    for mode, key in (("sample", KEY), ("mean", None)):
        state = apply(variables, key, inputs, mode=mode)[1]
        assert jax.tree.all(jax.tree.map(np.array_equal, state, variables.state))
    state = apply(variables, KEY, inputs, mode="train")[1]
    assert jax.tree.structure(state) == jax.tree.structure(variables.state)
    averages = [s["average"] for name, s in state.items() if "mean" in name]
    np.testing.assert_allclose(averages[0][0], inputs.mean(axis=0), rtol=1e-4)


def test_networks_are_pure_under_jit_and_vmap():
    inputs, variables = images(3), fresh(MLP)
    plain = MLP.apply(variables, KEY, inputs, mode="sample")[0].logits
    np.testing.assert_allclose(logits(MLP, variables, KEY, inputs, "sample"), plain, atol=1e-6)
    keys = jnp.stack([KEY, jax.random.key(1)])
    several = jax.vmap(lambda key: logits(MLP, variables, key, inputs, "sample"))(keys)
    for key, found in zip(keys, several):
        expected = logits(MLP, variables, key, inputs, "sample")
        np.testing.assert_allclose(found, expected, atol=1e-6)


# The layers.


@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (1, 5, 7, 2), (3, 2, 3, 1)])
def test_max_pool(shape: tuple):
    def reference(x: jax.Array) -> jax.Array:
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected, pullback = jax.vjp(reference, x)
    found, ours = jax.vjp(models.max_pool_2x2, x)
    assert np.array_equal(found, expected)
    cotangent = np.arange(1, found.size + 1, dtype=np.float32).reshape(found.shape)
    np.testing.assert_allclose(ours(cotangent)[0], pullback(cotangent)[0])


def test_max_pool_shares_the_gradient_among_equals():
    windows = np.array([[3, 1, 1, 0], [2, 2, 0, 1], [2, 0, 2, 2], [5, 5, 5, 5], [-1, -2, -3, -1]])
    shares = [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0, 0.25, 0.5], [0.25] * 4, [0.5, 0, 0, 0.5]]
    x = windows.astype(np.float32).reshape(5, 2, 2, 1)

    def by_maxima(x: jax.Array) -> jax.Array:
        larger = jnp.maximum(x[:, 0], x[:, 1])
        return jnp.maximum(larger[:, 0], larger[:, 1])

    cotangent = np.arange(1, 6, dtype=np.float32)
    (expected,) = jax.vjp(by_maxima, x)[1](cotangent[:, None])
    (found,) = jax.vjp(models.max_pool_2x2, x)[1](cotangent.reshape(5, 1, 1, 1))
    assert np.array_equal(found, expected)
    assert np.array_equal(found.reshape(5, 4).sum(axis=1), cotangent)
    assert np.array_equal(found.reshape(5, 4) / cotangent[:, None], shares)


def test_one_hidden_layer_on_the_inputs_is_computed_once():
    """It has no dropout: nothing of it depends on the sample."""
    model, inputs = models.mlp(3), images(4, shape=(5,))
    variables = fresh(model, 1, 5)
    keys = jax.random.split(KEY, 6)

    def network(key: jax.Array, variables: Variables, inputs: jax.Array) -> jax.Array:
        return model.apply(variables, key, inputs, mode="sample")[0].logits

    program = jax.make_jaxpr(lambda *a: map_draws(network, *a))(keys, variables, inputs)
    (loop,) = (e for e in program.jaxpr.eqns if e.primitive.name == "scan")
    assert "128,3" in str(loop.params["jaxpr"]) and "5,128" not in str(loop.params["jaxpr"])


# Refusals.


def convnet_on(*shape: int) -> None:
    CONVNET.init(KEY, jnp.zeros(shape))


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: models.convolution(jnp.zeros((2, 8, 8)), jnp.zeros((3, 3, 1, 1))),
            r"images \[B, H, W, C\] .* got \(2, 8, 8\) .*add the channel axis: images\[..., None\]",
        ),
        (
            lambda: models.convolution(jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 1, 4))),
            r"images \(2, 8, 8, 3\) have 3 channels, a kernel \(3, 3, 1, 4\) takes 1",
        ),
        (
            lambda: models.convolution(jnp.zeros((2, 8, 3, 1)), jnp.zeros((3, 4, 1, 4))),
            r"a kernel of \(3, 4\) pixels is larger than images \(2, 8, 3, 1\)",
        ),
        (lambda: convnet_on(2, 28, 28), r"convnet expects images \[B, H, W, C\] .*\(2, 28, 28\)"),
        (lambda: convnet_on(2, 64), r"for feature vectors \[B, D\] use mlp"),
        (lambda: convnet_on(2, 7, 28, 1), r"at least 8x8, got \(2, 7, 28, 1\)"),
        (
            lambda: models.batchbald_convnet(3).init(KEY, images(2)),
            r"batchbald_convnet expects images \[B, H, W, C\] of at least 16x16, got \(2, 8",
        ),
        (lambda: models.batchbald_convnet(0), "num_classes must be positive, got 0"),
        (lambda: models.convnet(0), "num_classes must be positive, got 0"),
        (lambda: models.mlp(-1), "num_classes must be positive, got -1"),
        (lambda: models.mlp(3, rate=1.0), r"rate must lie in \[0, 1\), got 1.0"),
        (lambda: models.mlp(3, rate=-0.1), r"rate must lie in \[0, 1\), got -0.1"),
        (
            lambda: MLP.apply(Variables({}, {}), KEY, jnp.zeros((1, 2)), mode="test"),
            "unknown mode 'test'; known: train, sample, mean",
        ),
    ],
)
def test_refusals(call: Callable, message: str):
    with pytest.raises(ValueError, match=message):
        call()
