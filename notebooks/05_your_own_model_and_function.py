# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: -all
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own data, model and acquisition function
#
# Nothing in the driver knows MNIST, Haiku or BALD. This notebook runs it on plain NumPy arrays, with a network written in Equinox, and
# with two acquisition functions that are not in the library; then it leaves the network away and puts a
# small Bayesian head on fixed features.

# %%
import os

SCALE = os.environ.get("BAL_NOTEBOOK_SCALE", "default")
# "small" for a smoke test in seconds, "default" for minutes, "full" for the paper's protocol

# %% [markdown]
# Everything else follows from this table. The network is a small one, so that the default takes minutes; `full` has more
# seeds, labels and steps.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.decomposition import PCA

from bayesian_active_learning import (
    data_utils,
    experiment,
    frozen_features,
    history,
    inference,
    models,
    plotting,
    posteriors,
    statistics,
    training,
)
from bayesian_active_learning.acquisition_functions import bald, top_k
from bayesian_active_learning.acquisition_functions.selection import greedy, needed, sortable
from bayesian_active_learning.types import Model, Outputs, Strategy, Variables

# %matplotlib inline
# %config InlineBackend.figure_format = "png"
plt.rcParams["figure.dpi"] = 100

settings = {
    #          seeds  labels  steps  epochs  K   candidates  test images
    "small": (2, 40, 50, 0, 10, 200, 200),
    "default": (8, 110, 200, 0, 50, 1000, 2000),
    "full": (20, 400, 400, 50, 100, 2000, 10_000),
}
num_seeds, budget, steps, epochs, num_samples, candidates, num_test = settings[SCALE]
seeds = range(num_seeds)
directory = f"runs/05_your_own_model_and_function/{SCALE}"  # a second execution goes on from here

# %% [markdown]
# ## Arrays
#
# All that is needed are inputs and integer labels. To have some, we take those of a data set that is at hand and halve the
# resolution; with images of your own, `pixels` and `labels` come from anywhere.

# %%
source = data_utils.load_dataset("digits" if SCALE == "small" else None)
print(f"data: {source.name}")
pixels = np.asarray(source.images[:])[..., 0]  # [N, H, W] in 0..1
if pixels.shape[1] == 28:
    pixels = pixels.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4))
name = f"{source.name}, {pixels.shape[1]} x {pixels.shape[2]} pixels"  # for captions; any words
train, test = source.train_rows, source.test_rows[:num_test]

dataset = data_utils.from_arrays(
    pixels[train], source.labels[train], pixels[test], source.labels[test], name=name
)
dataset = data_utils.standardise(dataset, dataset.train_rows)
print(
    f"images {list(dataset.images.shape)}, {len(train):,} for training and {len(test):,} for tests"
)
print(f"scaling: {dataset.scaling}")

# %% [markdown]
# `from_arrays` checks what it gets, adds the channel axis, and hashes the contents: a run remembers by that hash which data it is
# about. Without a test part it would set one aside, stratified and fixed by the contents.
#
# ## A network in Equinox
#
# A model is a record of two pure functions, `init` and `apply`. `apply` has three modes: `"train"` draws a dropout mask for each
# example, `"sample"` one mask for all examples, which makes a posterior sample *one network*, and `"mean"` none. The
# network below takes a single image, as is usual in Equinox, and a key; whether examples share the key is all that
# distinguishes training from sampling.


# %%
class Network(eqx.Module):
    dense_1: eqx.nn.Linear
    dense_2: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, key, num_classes):
        keys = jax.random.split(key, 3)
        self.dense_1 = eqx.nn.Linear(dataset.images[:1].size, 128, key=keys[0])
        self.dense_2 = eqx.nn.Linear(128, 64, key=keys[1])
        self.dropout = eqx.nn.Dropout(0.5)
        self.head = eqx.nn.Linear(64, num_classes, key=keys[2])

    def __call__(self, image, key):
        hidden = jax.nn.relu(self.dense_1(image.ravel()))
        features = jax.nn.relu(self.dense_2(hidden))
        dropped = self.dropout(features, key=key, inference=key is None)
        return Outputs(self.head(dropped), features)


def equinox_mlp(num_classes):
    static = eqx.filter(Network(jax.random.key(0), num_classes), eqx.is_array, inverse=True)

    def init(key, inputs):
        return Variables(eqx.filter(Network(key, num_classes), eqx.is_array), ())

    def apply(variables, key, inputs, *, mode):
        network = eqx.combine(variables.params, static)
        keys, axis = (jax.random.split(key, len(inputs)), 0) if mode == "train" else (key, None)
        return jax.vmap(network, in_axes=(0, axis))(inputs, keys), variables.state

    return Model(init, apply)


models.MODELS["equinox_mlp"] = equinox_mlp  # now the driver knows it by name

# %% [markdown]
# For Flax NNX see the documentation page "Models of other frameworks". Everything in front of the first dropout runs once per
# image and not once per sample; the library finds that out by tracing, in any framework.
#
# ## A score
#
# An acquisition function is a function of log-probabilities `[N, K, C]`. BALD is the entropy of the mean prediction minus the mean
# entropy of the predictions. What if uncertainty is measured not by entropy but by the Gini impurity $G(p) = 1 - \sum_c p_c^2$, the expected
# error of guessing by $p$?
#
# $$
# G\big(\mathbb{E}_\omega\, p\big) - \mathbb{E}_\omega\, G(p)
#   = \sum_c \Big( \mathbb{E}_\omega\, p_c^2 - (\mathbb{E}_\omega\, p_c)^2 \Big)
#   = \sum_c \mathrm{Var}_\omega\,[\,p_c\,] ,
# $$
#
# the variance of the predicted probabilities, summed over classes: one line of code.


# %%
def gini_information(log_probs):  # [N, K, C] -> [N], higher = more worth labelling
    return jnp.var(jnp.exp(log_probs), axis=1).sum(axis=-1)


# %% [markdown]
# ## A rule for a batch
#
# The ten highest scores of one moment may all be sevens. A `Strategy` looks at the candidates together. This one goes
# down the BALD scores but halves the score of a candidate for each pick of the same *predicted* class already in
# the batch. It says what it needs; the driver provides that and nothing else.


# %%
def select(key, candidates, *, batch_size):
    scores = sortable(needed(candidates, "scores"))  # [N]
    predicted = jnp.argmax(needed(candidates, "predictions"), axis=-1)  # [N]

    def evaluate(taken, step):
        value = scores * 0.5 ** taken[predicted]
        return value, value

    def update(taken, position):
        return taken.at[predicted[position]].add(1)

    picked = jnp.zeros(dataset.num_classes)
    return greedy(evaluate, update, picked, candidates.mask, batch_size)


strategies = {
    "gini_information": top_k(gini_information),
    "bald_many_classes": Strategy(select, needs=frozenset({"scores", "predictions"}), score=bald),
}

# %% [markdown]
# `greedy` keeps the rules that all strategies keep: distinct picks, none that is masked out, ties to the lower position. Now the run, side by
# side with BALD and random, in pairs of seeds.

# %%
config = experiment.Config(
    model="equinox_mlp",
    num_validation=0,
    num_samples=num_samples,
    pool_size=candidates,
    fit=training.FitConfig(min_steps=steps, epochs=epochs),
)
functions = ["gini_information", "bald_many_classes", "bald", "random"]
found = experiment.run(
    config,
    dataset,
    functions,
    seeds,
    labels=budget,
    strategies=strategies,
    directory=f"{directory}/network",
)
figure = plotting.learning_curves_figure(found, thresholds=())
figure.set_dpi(100)
figure


# %%
def versus(found, baseline):
    """Mean accuracy over the curve, each function minus `baseline` in pairs of seeds."""
    mean = {
        name: np.array([100 * curve.test["accuracy"].mean() for curve in by_seed.values()])
        for name, by_seed in history.curves_by_function(found).items()
    }
    lines = [
        f"{history.dataset_label(found)}, accuracy averaged over the curve (%), {len(mean[baseline])} paired seeds"
    ]
    for name, values in mean.items():
        line = f"  {name:18s} {values.mean():5.1f}"
        if name != baseline:
            low, high = statistics.t_interval(values - mean[baseline])
            word = "better" if low > 0 else "worse" if high < 0 else "not shown to differ"
            line += f"   minus {baseline} {(values - mean[baseline]).mean():+5.2f} ({low:+.2f} to {high:+.2f})  {word}"
        lines.append(line)
    return "\n".join(lines)


print(versus(found, "random"), versus(found, "bald"), sep="\n\n")

# %% [markdown]
# The second table is the one a new function has to face: being better than random is not being better than BALD. In the committed run
# nothing is shown to differ from anything: with so few labels and so small a network BALD itself is not ahead of random, and eight
# seeds would only show a difference of some points. That is the usual state of a new acquisition function, and the
# figure alone, without the intervals, would invite another story. More labels and seeds (`full`), and another data set, come
# before one believes in it. A function that is wrong in form (a NaN, another shape) is refused with its name.
#
# ## Embeddings and a small Bayesian head
#
# Often an encoder is there, trained without these labels, and only a head is left to learn. Here the encoder is the simplest one:
# principal components of the training images, which look at no label. A logistic head with a Gaussian prior is fitted
# exactly, and its posterior is a Gaussian around the mode (Laplace),
#
# $$
# p(W \mid \mathcal{D}) \approx \mathcal{N}\big(\hat W,\, A^{-1}\big), \qquad
# A = \lambda I + \sum_l \big(\mathrm{diag}(p_l) - p_l p_l^\top\big) \otimes x_l x_l^\top .
# $$
#
# By hand, for once:

# %%
flat = pixels.reshape(len(pixels), -1)
encoder = PCA(32, svd_solver="covariance_eigh").fit(flat[train])
features = [encoder.transform(flat[rows]).astype(np.float32) for rows in (train, test)]
embedded = data_utils.from_arrays(
    features[0],
    source.labels[train],
    features[1],
    source.labels[test],
    name=f"{name}, 32 components",
)
embedded = data_utils.unit_norm(embedded, embedded.train_rows)  # angles count, not lengths

labelled, pool = embedded.train_rows[:50], embedded.train_rows[50:550]
head = posteriors.fit_logistic(
    embedded.images[labelled],
    embedded.labels[labelled],
    np.ones(50, bool),
    num_classes=embedded.num_classes,
    prior_precision=0.03,
    posterior_precision=1.0,
)
posterior = posteriors.logistic(head)
(scores,) = inference.score_pool(
    jax.random.key(0), posterior, embedded.images, pool, [bald], num_samples=num_samples
)
(log_probs,) = inference.predict(
    jax.random.key(1), [posterior], embedded.images, embedded.test_rows, num_samples=[num_samples]
)
right = log_probs.argmax(axis=1) == embedded.labels[embedded.test_rows]
print(f"{int(head.steps)} Newton steps; accuracy with 50 random labels {right.mean():.1%}")
print(
    f"the most informative of {len(pool)} candidates: rows {pool[np.argsort(-scores)[:5]].tolist()}"
)

# %% [markdown]
# `frozen_features.run` makes whole runs of that in one compiled program, one label a round. The first ten images are chosen by
# k-means, without a look at their labels, and strategies of one's own run here as well.

# %%
heads = frozen_features.run(
    frozen_features.FrozenConfig(
        num_initial_per_class=1, initial="kmeans", initial_pool_size=500, pool_size=candidates // 2
    ),
    embedded,
    ["gini_information", "bald", "margin", "random"],
    range(2 * num_seeds),
    labels=20 if SCALE == "small" else 50,
    strategies=strategies,
    directory=f"{directory}/head",
)
figure = plotting.learning_curves_figure(heads, thresholds=())
figure.set_dpi(100)
figure

# %%
print(versus(heads, "random"))

# %% [markdown]
# What is shown to be better than random here, if anything, the table says; three intervals are read at once, so one that
# only just leaves 0 out is weak evidence. How far all this goes depends on the encoder. The repository has a run of 20 paired seeds on features of MNIST by SimCLR, an encoder trained
# on the images without labels (`python -m experiments.embeddings` on such a file makes it); drawn from its saved history:

# %%
saved = history.load_history("../experiments/results/mnist-simclr/history.json")
figure = plotting.learning_curves_figure(saved)
figure.set_dpi(100)
figure

# %% [markdown]
# The greedy oracle looks at labels of candidates and test images: it is an upper bound and no method. In that figure margin, EPIG and
# BALD lie between random and the oracle.
#
# Limits: half the resolution, a small network and principal components are chosen for speed, and the precisions of the head are those chosen for
# SimCLR features; for features of your own, choose them on data you hold out.
