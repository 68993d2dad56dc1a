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
# # Weight decay, chosen on the validation set
#
# Gal, Islam & Ghahramani (2017) start from 20 labels. So few examples say little about half a
# million weights, and how strongly the prior pulls on the weights matters. They chose it on a small
# validation set, once. This notebook makes that search, looks at how sharp its answer is, and
# compares it with the search that is saved in the repository.

# %%
import os

SCALE = os.environ.get("BAL_NOTEBOOK_SCALE", "default")
# "small" for a smoke test in seconds, "default" for minutes, "full" for the paper's protocol

# %% [markdown]
# Everything else follows from this table. `default` is the full search, with 2 seeds in the place of
# 5: one fit takes a few seconds, and there is one for each strength and seed.

# %%
import json
import pathlib

import matplotlib.pyplot as plt
import numpy as np

from bayesian_active_learning import data_utils, experiment, training, tuning

# %matplotlib inline
plt.rcParams["figure.dpi"] = 100

settings = {
    #          strengths c                      seeds     labels  steps
    "small": ((0.0, 2.5, 10.0), range(2), 40, 50),
    "default": (tuning.STRENGTHS, range(2), 100, 400),
    "full": (tuning.STRENGTHS, range(5), 100, 400),
}
strengths, seeds, num_labels, steps = settings[SCALE]

dataset = data_utils.load_dataset("digits" if SCALE == "small" else None)
dataset = data_utils.standardise(dataset, dataset.train_rows)
config = experiment.Config(fit=training.FitConfig(min_steps=steps, epochs=0))
print(f"data: {dataset.name}, {len(dataset.train_rows):,} training rows")

# %% [markdown]
# ## The idea
#
# A network with dropout, trained on $N$ labelled examples, approximates a Gaussian-process posterior
# (Gal & Ghahramani 2016). Training minimises
#
# $$
# \mathcal{L}(\omega) = -\frac{1}{N} \sum_{n=1}^{N} \log p(y_n \mid x_n, \omega)
#     + \frac{c}{N} \, \lVert W_1 \rVert^2 ,
# $$
#
# where a Gaussian prior of length-scale $l$ on the weights gives $c = (1 - p)\, l^2 / 2$ for a layer
# whose units are dropped with probability $p$. Two things follow. The strength of the decay,
# $\lambda = c / N$, *falls* as labels come in: a prior that is fixed weighs less against more data.
# And what is to be tuned is $c$, which does not depend on $N$: one search at some $N$ serves the
# whole run. As in the authors' code, only the first dense layer $W_1$ is decayed.
#
# ## The search
#
# For each $c$ a network is trained from fresh parameters on the same 100 labelled images (20
# balanced ones and 80 at random) and judged on 100 validation images, by the negative log-likelihood
# of the mean prediction over posterior samples,
#
# $$
# \mathrm{NLL} = -\frac{1}{|V|} \sum_{(x, y) \in V}
#     \log \frac{1}{K} \sum_{k=1}^{K} p(y \mid x, \hat\omega_k) .
# $$
#
# Three rules keep it honest:
#
# - **fits are independent.** A network that goes on from the last strength's weights has had more
#   training, and the order of the strengths would decide;
# - **fits are paired.** For one seed all strengths share images, initial parameters, dropout masks
#   and the order of minibatches, so differences are due to $c$;
# - **the test set is not looked at.** The labels of the 80 random images and of the validation set
#   are spent on the search. Later label counts leave them out, and say so.

# %%
searches = {
    seed: tuning.search_weight_decay(
        config, dataset, [seed], strengths=strengths, num_labels=num_labels
    )
    for seed in seeds
}
nll = np.array(
    [[trial.nll for trial in trials] for _, trials in searches.values()]
)  # [S, strengths]
accuracy = 100 * np.array([[trial.accuracy for trial in trials] for _, trials in searches.values()])

print("strength c   validation NLL (nats)   validation accuracy (%)")
for number, strength in enumerate(strengths):
    print(f"{strength:10g}   {nll[:, number].mean():21.3f}   {accuracy[:, number].mean():23.1f}")
best = strengths[int(nll.mean(axis=0).argmin())]
print(f"\nlowest mean NLL: c = {best:g}, {len(seeds)} seeds")
for seed, (chosen, _) in searches.items():
    print(f"seed {seed} alone would choose c = {chosen:g}")

# %% [markdown]
# Beside it, where the data is MNIST, the saved search: 5 seeds, the same protocol
# (`python -m experiments.mnist_bald --preset paper --weight-decay auto` makes it).

# %%
saved_file = pathlib.Path("../experiments/results/weight-decay.json")
saved = json.loads(saved_file.read_text())["trials"] if dataset.name == "mnist" else None

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for axes, values, words in (
    (left, nll, "validation NLL (nats)"),
    (right, accuracy, "validation accuracy (%)"),
):
    for one in values:
        axes.plot(strengths, one, color="#56B4E9", linewidth=0.9, alpha=0.8)
    axes.plot(
        strengths, values.mean(axis=0), "o-", color="#0072B2", label=f"this run, {len(seeds)} seeds"
    )
    if saved is not None:
        column = 1 if axes is left else 2
        factor = 1 if axes is left else 100
        axes.plot(
            [trial[0] for trial in saved],
            [factor * trial[column] for trial in saved],
            "s--",
            color="#D55E00",
            label="saved search, 5 seeds",
        )
    axes.axvline(2.5, color="#555555", linewidth=0.8, linestyle=":", label="authors' code")
    axes.set_xscale("symlog", linthresh=0.1, linscale=0.5)
    axes.set_xlim(-0.03, 12)
    axes.set_xticks(strengths, [f"{strength:g}" for strength in strengths])
    axes.minorticks_off()
    axes.set_xlabel("strength c of the decay c / N")
    axes.set_ylabel(words)
    axes.spines[["top", "right"]].set_visible(False)
left.legend(fontsize=8)
_ = figure.suptitle(
    f"{dataset.name}, {num_labels} labels, 100 validation images, {steps} steps; "
    "thin lines: single seeds",
    fontsize=10,
)
# %% [markdown]
# ## What to conclude
#
# How far apart are the strengths, and could it be the luck of the draw? Differences are taken seed by
# seed.

# %%
reference = strengths.index(2.5)
print("NLL above that of c = 2.5, seed by seed (nats):")
for number, strength in enumerate(strengths):
    differences = nll[:, number] - nll[:, reference]
    print(f"c = {strength:4g}: " + "  ".join(f"{value:+.3f}" for value in differences))
if saved is not None:
    table = {strength: loss for strength, loss, _ in saved}
    print("\nsaved search, 5 seeds, means:")
    print("  ".join(f"c = {c:g}: {loss - table[2.5]:+.3f}" for c, loss in table.items()))

# %% [markdown]
# - In the saved search, no decay at all is the worst choice for the likelihood, and the curve is flat from
#   $c = 2.5$ on: 5 is best by less than 0.02 nats. The search says "some decay", not "exactly this one".
# - Accuracy hardly moves: in the saved search all strengths lie within 1.2 points, little
#   more than one image of 100. What decay mends is overconfidence, and likelihood sees that. Acquisition
#   functions read probabilities, not only the winning class, so this is the right measure.
# - All runs of this repository use $c = 2.5$, the value in the authors' code, which was fixed before the
#   search. The choice between 2.5 and 5 is smaller than what changes from seed to seed.
#
# The level of a curve says little: seeds differ in their 100 validation images, which is why two of them can lie well
# above the mean of five.
#
# Limits: one validation set of 100 images per seed, one label count. That $c$ is the same for all $N$ is
# what the theory says; it was not searched again at other $N$ here.
