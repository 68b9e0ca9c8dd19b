# %% [markdown]
# # Inverse problems on images
#
# For whoever has pictures, and a measurement that does not determine one: half of it is missing, or it was
# recorded with fewer pixels and noise. You get several pictures that fit, not one guess, and checks that
# tell how far to believe them.
#
# The pictures are the handwritten digits of scikit-learn, 8 x 8 pixels, grey levels 0 to 16. A hundred are
# kept apart, to be measured.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import energymatch

digits = np.random.default_rng(0).permutation(load_digits().images[..., None])  # [N, 8, 8, 1]
train, held_out = digits[:-100], digits[-100:]

# %% [markdown]
# One call learns the energy. `steps=0` leaves out the network and keeps the mixture of normals that `fit`
# finds first. In 64 dimensions a network's density moves so far away from the mixture that draws of the
# mixture no longer tell its log Z: `fit` then says that it is too far to be judged, and keeps the mixture
# all the same, after the seconds that training it took.

# %%
model = energymatch.fit(jax.random.key(0), train, steps=0, progress=False)
upside_down = held_out[:, ::-1]
above = float(model.log_prob(held_out).mean() - model.log_prob(upside_down).mean())
print(f"converged: {model.converged}")
print(f"digits score higher than digits upside down: {above > 5}")
assert model.converged and above > 5

# %% [markdown]
# ## Half of the picture is missing
#
# `impute` draws what was not seen given what was, here 32 members for each of the hundred digits. What was
# seen comes back as it is.

# %%
seen = np.zeros((8, 8, 1), bool)
seen[:4] = True
filled = np.asarray(model.impute(jax.random.key(1), held_out, seen, 32))  # [32, 100, 8, 8, 1]
assert np.allclose(filled[:, :, seen], held_out[:, seen])

# %% Five held-out digits: the truth, the half that was seen, five members, their mean and their spread


def show(truth, measured, members):
    """A row for each digit; members are [num, rows, 8, 8, 1]."""
    columns = [truth, measured, *members[:5], members.mean(axis=0), members.std(axis=0)]
    names = ["truth", "measured", *[f"member {i}" for i in range(1, 6)], "mean", "spread"]
    figure, axes = plt.subplots(len(truth), 9, figsize=(9, len(truth) + 0.4), layout="constrained")
    for column, name, line in zip(columns, names, axes.T):
        line[0].set_title(name, fontsize=10)
        for picture, axis in zip(column, line):
            top, colours = (6, "magma") if name == "spread" else (16, "gray_r")
            axis.imshow(picture[..., 0], cmap=colours, vmin=0, vmax=top, interpolation="nearest")
            axis.set(xticks=[], yticks=[])


show(held_out[:5], np.where(seen, held_out[:5], np.nan), filled[:, :5])

# %% [markdown]
# How good are they? The mean of the members is the best single guess in the sense of squares. Beside it
# stand the mean digit and a linear regression from the seen half. All errors are mean squares over missing
# pixels, in squared grey levels.

# %%


def error(guess, truth):
    return float(np.mean((np.asarray(guess) - truth) ** 2))


missing = held_out[:, ~seen]
members = filled[:, :, ~seen]  # [32, 100, 32]
given = lambda x: np.column_stack([x[:, seen], np.ones(len(x))])
regression = given(held_out) @ np.linalg.lstsq(given(train), train[:, ~seen], rcond=None)[0]
of_mean, of_member = error(members.mean(axis=0), missing), error(members, missing)
of_digit, of_regression = error(train.mean(axis=0)[~seen], missing), error(regression, missing)
print(f"mean of the members {of_mean:.1f}, one member {of_member:.1f}")
print(f"mean digit {of_digit:.1f}, linear regression {of_regression:.1f}")
assert of_mean < 0.7 * of_digit and of_mean < 0.95 * of_regression

# %% [markdown]
# One member is no better than the mean digit, and that is no fault: a sample of an exact posterior has twice
# the square error of its mean. Take the mean for the least error, members for what is possible.
#
# The spread of the members says how large the error of their mean should be. The ratio of the two is 1 for
# an exact posterior. Here it is above 1: the members are a little too sure of themselves.

# %%
ratio = np.sqrt(of_mean / members.var(axis=0, ddof=1).mean())
print(f"error of the mean over spread: {ratio:.2f}")
assert 1 < ratio < 1.3

# %% [markdown]
# ## Fewer pixels, and noise
#
# The same model, another measurement: means over blocks of 2 x 2 pixels, 16 numbers for 64, each with noise
# of one grey level. `posterior` takes any function A of a batch of pictures and y = A(x) + noise;
# `energymatch.operators` has blurs, projections and masks besides. One call is for one measurement; `vmap`
# does twenty at once.

# %%
NOISE, NUM = 1.0, 64
shrink = energymatch.operators.downsampling(2)
truth = held_out[:20].astype(np.float32)
y = shrink(jnp.asarray(truth))
y = y + NOISE * jax.random.normal(jax.random.key(2), y.shape)  # [20, 4, 4, 1]


@jax.jit
@jax.vmap
def solve(key, y):
    return model.posterior(key, shrink, y, scale=NOISE, num=NUM).x


members = np.asarray(solve(jax.random.split(jax.random.key(3), 20), y))  # [20, 64, 8, 8, 1]

# %% Five held-out digits: the truth, what was measured, five members, their mean and their spread
show(truth[:5], np.asarray(y[:5]), members[:5, :: NUM // 5].swapaxes(0, 1))

# %% [markdown]
# Three checks. First, members reproduce what was measured: the residual y - A(x) is as large as the noise.
# Much less means that noise was fitted, much more that the model refuses what was measured.

# %%
again = np.asarray(jax.vmap(shrink)(members))  # [20, 64, 4, 4, 1]
residual = np.sqrt(error(again, np.asarray(y)[:, None])) / NOISE
print(f"residual: {residual:.2f} of the noise")
assert 0.85 < residual < 1.15

# %% [markdown]
# Second, the spread is larger where nothing was measured: that of a block's mean is below the noise, that of
# a pixel within its block is not.

# %%
details = members - again.repeat(2, axis=2).repeat(2, axis=3)
known, unknown = again.std(axis=1).mean(), details.std(axis=1).mean()
print(f"spread of block means {known:.1f}, of pixels within their blocks {unknown:.1f}")
assert known < NOISE < unknown and unknown > 2 * known

# %% [markdown]
# Third, the mean of the members is nearer to the truth than what needs no model of digits: the mean digit,
# and interpolation.

# %%
of_mean, of_digit = error(members.mean(axis=1), truth), error(train.mean(axis=0), truth)
bilinear, cubic = (error(jax.image.resize(y, truth.shape, m), truth) for m in ("bilinear", "cubic"))
print(f"mean of the members {of_mean:.1f}, mean digit {of_digit:.1f}")
print(f"interpolation: bilinear {bilinear:.1f}, cubic {cubic:.1f}")
assert of_mean < 0.75 * min(of_digit, bilinear, cubic)

# %% [markdown]
# The best linear guess, a Wiener filter by the covariance of the training digits (not shown), had 7.5 on
# these digits: most of the gain is linear. What this does not give. Members look rough: a mixture of
# normals knows how pixels vary together, but not what a pen can draw. `posterior` is exact in the limit
# of many chains, and 64 are few: some members share an ancestor, and for log p(y) with an error take the
# default of 1,024. An energy by a convolutional network, which takes minutes of training and a loop of
# your own, is in [Posteriors of a learned energy](../inverse_problems.md) for these digits and in
# [Digits of 28x28 pixels](../digits28.md) for larger ones.
