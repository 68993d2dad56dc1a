"""What strategies are given: against the networks, asked one input at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from driver import CONFIG, digits

import bayesian_active_learning.acquisition_functions as af
from bayesian_active_learning import experiment, inference, losses, providers, training
from bayesian_active_learning.types import Candidates, Strategy

DATA = digits()
SPLITS = experiment.seed_splits(CONFIG, DATA, 0)
MODEL, OPTIMIZER = experiment.network(CONFIG, DATA)
KEYS = jax.random.split(jax.random.key(0), 2)
K, CAPACITY = 3, 16


def situation(**changes) -> providers.Situation:
    rows = SPLITS.pool[:9]
    variables = MODEL.init(jax.random.key(7), jnp.asarray(DATA.images[rows[:1]]))
    known = providers.Situation(
        model=MODEL,
        variables=variables,
        posterior=inference.mc_dropout(MODEL, variables),
        source=DATA.images,
        num_samples=K,
        rows=np.append(rows, rows[:3]),
        mask=np.arange(12) < 9,
        pool=SPLITS.pool,
        test=SPLITS.test,
        labelled_rows=SPLITS.initial,
        labels=np.asarray(DATA.labels)[SPLITS.initial],
        capacity=CAPACITY,
        optimizer=OPTIMIZER,
        fit=CONFIG.fit,
    )
    return known._replace(**changes)


def collect(*needs: str, score=None, settings=(), **changes) -> Candidates:
    strategy = Strategy(af.select_top, frozenset(needs), score=score, settings=settings)
    return providers.collect(*KEYS, situation(**changes), strategy)


def target_key():
    place = list(providers.PROVIDERS).index("target_log_probs")
    return jax.random.split(KEYS[1], len(providers.PROVIDERS))[place]


def test_only_what_is_needed_is_provided():
    candidates = collect("features")
    given = {name for name, value in candidates._asdict().items() if value is not None}
    assert given == {"rows", "mask", "features"}


def test_every_field_has_a_provider_but_the_labels():
    fields = set(Candidates._fields) - {"rows", "mask"}
    assert fields - set(providers.PROVIDERS) == {"labels", "target_labels"}
    assert set(providers.PROVIDERS) <= fields


def test_shapes_are_those_of_the_buffers():
    found = collect(
        *(set(providers.PROVIDERS) - {"unlabelled_log_odds"}),
        score=af.bald,
        settings=(("members", 2), ("num_targets", 7), ("vaal", (("max_steps", 1),))),
    )
    shapes = {name: np.shape(getattr(found, name)) for name in providers.PROVIDERS}
    width = found.features.shape[1]
    assert shapes == {
        "scores": (12,),
        "log_probs": (12, K, 10),
        "target_log_probs": (7, K, 10),
        "predictions": (12, 10),
        "features": (12, width),
        "labelled_mask": (CAPACITY,),
        "labelled_labels": (CAPACITY,),
        "labelled_scores": (CAPACITY,),
        "labelled_predictions": (CAPACITY, 10),
        "labelled_features": (CAPACITY, width),
        "input_gradients": (12,),
        "committee_log_probs": (12, 2, 10),
        "unlabelled_log_odds": (),
        "latents": (12, 32),
        "labelled_latents": (CAPACITY, 32),
    }


def test_scores_and_log_probs_speak_of_the_same_networks():
    found = collect("scores", "log_probs", score=af.bald)
    np.testing.assert_allclose(found.scores, af.bald(found.log_probs), atol=1e-6)
    # and targets too: a target that is a candidate has the candidate's predictions
    rows = SPLITS.pool[:9]
    targets = collect("log_probs", "target_log_probs", pool=rows, settings=(("num_targets", 9),))
    order = np.searchsorted(rows, providers.draw_rows(target_key(), rows, 9))
    np.testing.assert_allclose(targets.target_log_probs, targets.log_probs[order], atol=1e-5)


def test_predictions_and_features_are_the_networks_own():
    found = collect("predictions", "features", "labelled_predictions", "labelled_features")
    now = situation()
    for rows, predictions, features in (
        (now.rows, found.predictions, found.features),
        (now.labelled_rows, found.labelled_predictions, found.labelled_features),
    ):
        for place, row in enumerate(rows):
            inputs = jnp.asarray(DATA.images[[row]])
            outputs, _ = MODEL.apply(now.variables, None, inputs, mode="mean")
            expected = jax.nn.log_softmax(outputs.logits)[0]
            np.testing.assert_allclose(predictions[place], expected, atol=1e-5)
            np.testing.assert_allclose(features[place], outputs.features[0], atol=1e-5)


def test_labelled_rows_come_with_their_mask_and_labels():
    found = collect("labelled_mask", "labelled_labels", "labelled_scores", score=af.max_entropy)
    assert found.labelled_mask.tolist() == [True] * 10 + [False] * 6
    np.testing.assert_array_equal(found.labelled_labels[:10], DATA.labels[SPLITS.initial])
    log_probs = collect("log_probs", rows=SPLITS.initial, mask=np.ones(10, bool)).log_probs
    np.testing.assert_allclose(found.labelled_scores[:10], af.max_entropy(log_probs), atol=1e-5)


def test_input_gradients_are_each_inputs_own():
    """By finite differences of the loss of one input, in one pixel after another."""
    now = situation()
    found = collect("input_gradients").input_gradients
    image = np.asarray(DATA.images[[now.rows[2]]])
    label = jnp.argmax(MODEL.apply(now.variables, None, image, mode="mean")[0].logits, axis=-1)
    step = 1e-2
    pixels = step * np.eye(image.size).reshape(-1, *image.shape[1:])
    moved = jnp.asarray(np.concatenate([image + pixels, image - pixels]), jnp.float32)
    logits = MODEL.apply(now.variables, None, moved, mode="mean")[0].logits
    loss = -np.asarray(jax.nn.log_softmax(logits))[:, int(label[0])]
    expected = np.abs((loss[: image.size] - loss[image.size :]) / (2 * step)).sum()
    np.testing.assert_allclose(found[2], expected, rtol=2e-2)


def test_committee_members_are_trained_on_the_labels():
    fit = training.FitConfig(batch_size=8, epochs=0, min_steps=60, weight_decay=0.0)
    now = situation(rows=SPLITS.initial, mask=np.ones(10, bool), fit=fit)
    strategy = af.make_strategy("qbc:members=2")
    found = providers.collect(*KEYS, now, strategy).committee_log_probs
    for member in range(2):
        assert losses.cross_entropy(found[:, member], now.labels) < 0.3  # ln 10 = 2.3 untrained
    assert np.abs(found[:, 0] - found[:, 1]).max() > 1e-3


def test_targets_come_from_where_they_are_asked_for():
    def target_rows(where: str) -> set[int]:
        strategy = af.make_strategy(f"epig:targets={where},num_targets=6")
        now = situation()
        rows = providers.draw_rows(target_key(), now.pool if where == "pool" else now.test, 6)
        found = providers.collect(*KEYS, now, strategy).target_log_probs
        direct = inference.log_probs(KEYS[0], now.posterior, now.source, rows, num_samples=K)
        np.testing.assert_allclose(found, direct, atol=1e-6)
        return set(rows.tolist())

    assert target_rows("pool") <= set(SPLITS.pool.tolist())
    assert target_rows("test") <= set(SPLITS.test.tolist())


def test_few_targets_are_repeated_to_the_same_shape():
    found = collect("target_log_probs", pool=SPLITS.pool[:2], settings=(("num_targets", 5),))
    assert found.target_log_probs.shape == (5, K, 10)
    np.testing.assert_array_equal(found.target_log_probs[0], found.target_log_probs[2])
    assert np.abs(found.target_log_probs[0] - found.target_log_probs[1]).max() > 0


def test_draw_rows_goes_by_row():
    rows = np.arange(100, 200)
    drawn = providers.draw_rows(KEYS[0], rows, 20)
    assert len(set(drawn.tolist())) == 20 and set(drawn.tolist()) <= set(rows.tolist())
    np.testing.assert_array_equal(drawn, providers.draw_rows(KEYS[0], rows[::-1], 20))
    fewer = providers.draw_rows(KEYS[0], np.setdiff1d(rows, drawn[:1]), 20)
    assert len(np.setdiff1d(fewer, drawn)) == 1
    assert set(drawn.tolist()) != set(providers.draw_rows(KEYS[1], rows, 20).tolist())
    assert sorted(providers.draw_rows(KEYS[0], rows, 500).tolist()) == rows.tolist()


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (Strategy(af.select_top, frozenset({"labels"})), "needs labels, which is not provided"),
        (Strategy(af.select_top, frozenset({"scores"})), "needs scores, but has no score function"),
        (Strategy(af.select_top, frozenset({"labelled_scores"})), "has no score function"),
    ],
)
def test_refusals(strategy: Strategy, message: str):
    with pytest.raises(ValueError, match=message):
        providers.check_provided(strategy)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((("targets", "train"),), "unknown targets 'train'; known: pool, test"),
        ((("target", "test"),), "the strategy has unknown settings target"),
        ((("vaal", (("beta", -1.0),)),), "beta must be at least 0 and finite, got -1.0"),
    ],
)
def test_unknown_settings(settings: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        collect("target_log_probs", settings=settings)
