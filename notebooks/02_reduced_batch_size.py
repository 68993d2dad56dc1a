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
# # The size of a batch
#
# Asking for one label at a time means training a network for every label. So labels are asked for in
# batches: 10 at a time in the paper. What does that cost, why does BALD in particular suffer from
# large batches, and what do BatchBALD and PowerBALD do about it?

# %%
import os

SCALE = os.environ.get("BAL_NOTEBOOK_SCALE", "default")
# "small" for a smoke test in seconds, "default" for minutes, "full" for the paper's protocol

# %% [markdown]
# Everything else follows from this table. One label at a time is a hundred networks for a hundred labels, so
# `default` takes a small network with dropout (an MLP) in the place of the paper's convolutions, with 200 training
# steps, 1,000 images scored and 50 posterior samples. `full` is the paper's network and protocol: hours.

# %%
import matplotlib.pyplot as plt
import numpy as np

import bayesian_active_learning.acquisition_functions as af
from bayesian_active_learning import (
    data_utils,
    experiment,
    history,
    inference,
    plotting,
    training,
)
from bayesian_active_learning.types import Candidates

# %matplotlib inline
plt.rcParams["figure.dpi"] = 100

quick = {"model": "mlp", "num_samples": 50, "num_test_samples": 10, "pool_size": 1000}
settings = {
    "small": {
        "sizes": (40, 20, 10),
        "batch": 20,
        "seeds": range(2),
        "labels": 60,
        "config": {**quick, "num_samples": 10, "pool_size": 100},
        "fit": {"min_steps": 50, "epochs": 0},
        "batch_bald": "batch_bald:max_exact=100,num_configs=200",
    },
    "default": {
        "sizes": (100, 20, 10, 1),
        "batch": 20,
        "seeds": range(5),
        "labels": 120,
        "config": quick,
        "fit": {"min_steps": 200, "epochs": 0},
        "batch_bald": "batch_bald:max_exact=1000,num_configs=2000",
    },
    "full": {
        "sizes": (100, 20, 10, 1),
        "batch": 20,
        "seeds": range(5),
        "labels": 320,
        "config": {},
        "fit": {},
        "batch_bald": "batch_bald",
    },
}[SCALE]

dataset = data_utils.load_dataset("digits" if SCALE == "small" else None)
dataset = data_utils.standardise(dataset, dataset.train_rows)
config = experiment.Config(**settings["config"], fit=training.FitConfig(**settings["fit"]))
labels = np.asarray(dataset.labels)
print(f"data: {dataset.name}, {len(dataset.train_rows):,} training rows")

# %% [markdown]
# ## 1. Why: two labels can say the same
#
# BALD is what *one* label tells about the parameters, $\mathbb{I}[y; \omega \mid x]$. Taking the $B$ highest scores
# maximises their sum. What a batch tells is its joint information,
#
# $$
# \mathbb{I}[y_1, \dots, y_B; \omega] = \sum_{i=1}^{B} \mathbb{I}[y_i; \omega \mid y_1, \dots, y_{i-1}]
#     \;\le\; \sum_{i=1}^{B} \mathbb{I}[y_i; \omega],
# $$
#
# with equality only where no label helps to guess another. Of two nearly equal images the second says nothing new,
# but its BALD score is as high as the first one's.
#
# - **BatchBALD** (Kirsch, van Amersfoort & Gal 2019) maximises the joint information, greedily: each pick has the
#   highest $\mathbb{I}[y; \omega \mid y_1, \dots, y_i]$.
# - **PowerBALD** (Kirsch et al. 2023) draws the batch at random, with probabilities that grow with the score,
#   $p \propto \mathrm{BALD}^\beta$: copies compete with all other good images, at no cost.
#
# ### In one batch
#
# The paper's network, trained on 20 labelled images, and the batches of 10 that each rule would ask for next.

# %%
splits = experiment.seed_splits(config, dataset, 0)
keys = experiment.round_keys(0, 0)
few = experiment.random_labelled(splits, 0, 20)
model, optimizer = experiment.network(config._replace(model="convnet"), dataset)
fitted = training.fit(
    keys.fit, model, optimizer, dataset.images, few, labels[few], config=config.fit
)
posterior = inference.mc_dropout(model, fitted.variables)
rows = data_utils.pool_subset(0, 0, splits.pool, config.pool_size)
log_probs = inference.log_probs(
    keys.score, posterior, dataset.images, rows, num_samples=config.num_samples
)  # [N, K, C]

BATCH = 10
NAMES = ("bald", "power_bald", "batch_bald", "random")


def choose(name, log_probs):
    """Positions of a batch of 10."""
    strategy = af.make_strategy(settings["batch_bald"] if name == "batch_bald" else name)
    candidates = Candidates(
        rows=np.arange(len(log_probs), dtype=np.int32),
        mask=np.ones(len(log_probs), bool),
        scores=None if strategy.score is None else strategy.score(log_probs),
        log_probs=log_probs if "log_probs" in strategy.needs else None,
    )
    picked = af.select_batch(strategy, keys.select, candidates, batch_size=BATCH)
    return af.acquire(picked, candidates)


chosen = {name: choose(name, log_probs) for name in NAMES}
gains = {
    name: np.asarray(af.joint_information(keys.provide, log_probs[picked]))
    for name, picked in chosen.items()
}

table = [
    ["batch of 10 by", "sum of BALD (nats)", "joint information (nats)", "said twice", "classes"]
]
for name, picked in chosen.items():
    total, together = float(af.bald(log_probs[picked]).sum()), float(gains[name].sum())
    classes = len(np.unique(labels[rows[picked]]))
    table.append(
        [
            plotting.function_label(name),
            f"{total:.2f}",
            f"{together:.2f}",
            f"{100 * (1 - together / total):.0f} %",
            f"{classes}",
        ]
    )
print("\n".join(history.text_table(table)))

# %%
styles = plotting.function_styles(NAMES)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
count = np.arange(1, BATCH + 1)
for name in NAMES:
    style = styles[name]
    options = {
        "color": style.colour,
        "linestyle": style.dash,
        "marker": style.marker,
        "markersize": 4,
    }
    left.plot(count, gains[name].cumsum(), label=plotting.function_label(name), **options)
    right.plot(count, gains[name], **options)
left.plot(
    count,
    np.cumsum(af.bald(log_probs[chosen["bald"]])),
    color="#555555",
    linestyle=":",
    label="sum of BALD's scores",
)
left.axhline(np.log(config.num_samples), color="#DDDDDD", zorder=0)
left.text(
    BATCH, np.log(config.num_samples), "ln K", ha="right", va="bottom", fontsize=8, color="#555555"
)
left.set_xlabel("labels of the batch")
left.set_ylabel("joint information (nats)")
right.set_xlabel("pick")
right.set_ylabel("what it adds (nats)")
left.legend(fontsize=8)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
_ = figure.suptitle(
    f"{dataset.name}: one network, {len(few)} labels, {len(rows):,} candidates, {config.num_samples} samples",
    fontsize=10,
)

# %% [markdown]
# The dotted line is what BALD's scores add up to, its own line what they tell together: they part within a few labels.
# No batch can tell more than $\ln K$ with $K$ posterior samples, as there are only $K$ networks to tell apart.
#
# The images:

# %%
figure, panels = plt.subplots(len(NAMES), 1, figsize=(7.5, 3.4), layout="constrained")
for axes, name in zip(panels, NAMES):
    images = np.asarray(dataset.images[rows[chosen[name]]])[..., 0]  # [10, H, W]
    axes.imshow(np.concatenate(list(images), axis=1), cmap="gray_r")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_ylabel(plotting.function_label(name), rotation=0, ha="right", va="center", fontsize=9)
_ = figure.suptitle(f"{dataset.name}: batches of 10, best first", fontsize=10)

# %% [markdown]
# ### With copies in the pool
#
# Real pools hold near-duplicates: frames of a video, several photographs of one thing. Here 10 copies of each of 100
# images, with a little noise (standard deviation 0.1 of an input), after BatchBALD's repeated MNIST.

# %%
originals = rows[:100]
noise = np.random.default_rng(0).normal(size=(1000, *dataset.images.shape[1:])).astype(np.float32)
copies = np.repeat(np.asarray(dataset.images[originals]), 10, axis=0) + 0.1 * noise
of_copies = inference.log_probs(
    keys.score, posterior, copies, np.arange(len(copies)), num_samples=config.num_samples
)
for name in NAMES:
    picked = choose(name, of_copies)
    together = float(af.joint_information(keys.provide, of_copies[picked]).sum())
    print(
        f"{plotting.function_label(name):10s} {len(np.unique(picked // 10)):2d} different images in a batch of 10, "
        f"joint information {together:.2f} nats"
    )

# %% [markdown]
# What BatchBALD gains over BALD depends on the pool: the two tables show how much it is among different images, and
# how much among copies.

# %% [markdown]
# ## 2. What it costs: acquisition size 100, 20, 10 and 1
#
# BALD, with the same initial images and the same seeds; only how many labels are asked for between two trainings
# differs.


# %%
def run(functions, size):
    return experiment.run(
        config._replace(acquisition_size=size),
        dataset,
        functions,
        settings["seeds"],
        labels=settings["labels"],
        directory=f"runs/02-{dataset.name}-{SCALE}-{size}",
    )


batch = settings["batch"]
by_size = {size: run(["bald"], size) for size in settings["sizes"] if size != batch}
at_batch = run(["bald", "power_bald", settings["batch_bald"], "random"], batch)
by_size[batch] = at_batch


def named(found, function, name):
    """The curves of one function under another name."""
    return {(name, seed): c for (each, seed), c in found.cells.items() if each == function}


sizes = at_batch._replace(
    cells={
        key: curve
        for size in settings["sizes"]
        for key, curve in named(by_size[size], "bald", f"BALD, {size} at a time").items()
    }
    | named(at_batch, "random", "random")
)
looks = [
    plotting.Style("#D55E00", (0, (6, 2, 1, 2)), "D"),
    plotting.Style("#E69F00", (0, (6, 2)), "^"),
    plotting.Style("#009E73", (0, (3, 1.5)), "v"),
    plotting.Style("#0072B2", "-", "o"),
]
looks = {
    f"BALD, {size} at a time": look
    for size, look in zip(settings["sizes"], looks[-len(settings["sizes"]) :])
}
words = (
    f"{dataset.name}, {len(settings['seeds'])} seeds, model {config.model}, {config.num_samples} posterior samples, "
    f"pool subset {config.pool_size:,}; {config.num_validation} validation labels not counted"
)
plotting.learning_curves_figure(sizes, words=words, thresholds=(), band="ci", styles=looks)

# %%
end = settings["labels"]
smallest = min(settings["sizes"])
baseline = f"BALD, {smallest} at a time"
print(
    f"test accuracy (%) at {end} labels, mean over {len(settings['seeds'])} seeds; networks trained a seed:"
)
for size in settings["sizes"]:
    name = f"BALD, {size} at a time"
    curves = [curve for (each, _), curve in sizes.cells.items() if each == name]
    final = 100 * np.mean([curve.test["accuracy"][-1] for curve in curves])
    words = f"{name:25s} {final:5.2f} {len(curves[0].labels):5d} networks"
    if size != smallest:
        pair = history.paired_difference(sizes, name, baseline, rounds=1)
        words += f"   minus {smallest} at a time: {100 * pair.mean:+.2f}"
        if pair.interval:
            low, high = (100 * x for x in pair.interval)
            words += f" (95 % interval {low:+.2f} to {high:+.2f})"
    print(words)
final = [curve.test["accuracy"][-1] for (each, _), curve in sizes.cells.items() if each == "random"]
print(f"{'random':25s} {100 * np.mean(final):5.2f}")

# %% [markdown]
# In the saved outputs (an MLP, 5 seeds) a batch of 100 costs about 5 points against one at a time; 20, 10 and 1 are not
# told apart at the end, and none is clearly ahead of random, which asks for 20 at a time. A tenth of the networks does as
# well as all of them.
#
# A batch of 100 is one decision made from 20 labels; one at a time is a hundred decisions, each with all labels before
# it. Two things are lost in a large batch: what the first labels would have taught about the last ones, and
# what they say twice. Only the second can be mended without training more often.
#
# ## 3. What helps
#
# The same batch of 20, chosen in other ways.

# %%
rules = at_batch._replace(
    cells={
        ("batch_bald" if each == settings["batch_bald"] else each, seed): curve
        for (each, seed), curve in at_batch.cells.items()
    }
)
plotting.learning_curves_figure(rules, thresholds=(), band="ci")

# %%
rounds = len(next(iter(rules.cells.values())).labels) - 1
print(
    f"difference in test accuracy, {batch} at a time, mean over all rounds but the first, in points:"
)
for name, other in (
    ("random", "bald"),
    ("power_bald", "bald"),
    ("batch_bald", "bald"),
    ("power_bald", "random"),
    ("batch_bald", "random"),
):
    difference = history.paired_difference(rules, name, other, rounds=rounds)
    text = f"{plotting.function_label(name)} minus {plotting.function_label(other)}"
    text = f"{text:23s} {100 * difference.mean:+.2f}"
    if difference.interval:
        low, high = (100 * x for x in difference.interval)
        text += f"  95 % interval {low:+.2f} to {high:+.2f}: " + (
            "better" if low > 0 else "worse" if high < 0 else "not told apart"
        )
    print(text)

# %% [markdown]
# - In the saved outputs (an MLP, 5 seeds) BALD in batches of 20 is *worse* than random, and PowerBALD and BatchBALD,
#   which use the same score, are better than BALD: the batch was to blame, not the score alone. Whether they beat
#   random is a question of its own, and the last two lines answer it.
# - PowerBALD costs nothing. BatchBALD's cost grows with the batch, and with more than 5 labels its joint entropies are
#   estimated; for batches of 100 it is not practical.
# - How redundant a batch is depends on the posterior: the more alike the posterior samples are, the more labels
#   repeat each other. Section 1 measures it for one network; it is worth measuring for yours
#   (`acquisition_functions.joint_information`).
#
# Limits: at most 5 seeds, one network, few labels. The saved run of the paper's protocol
# (`experiments/results/mnist-paper`) asks for 10 at a time. `SCALE = "full"` repeats all of this with it.
