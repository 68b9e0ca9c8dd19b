"""Protocols that users' own parts must satisfy, aliases, and the records that travel between modules.

Shape letters used throughout `egm`: B batch, N any number of states, K Monte-Carlo samples (a leading
axis), D continuous dimensions, L token sites, V vocabulary size. Time runs from 0 (prior) to 1 (target).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

__all__ = [
    "ENERGY_OFFERS",
    "SNIS",
    "Algorithm",
    "Apply",
    "Array",
    "Energy",
    "EnergyWithHint",
    "EnergyWithRevealed",
    "EnergyWithSites",
    "Draw",
    "Estimate",
    "EstimatingHead",
    "EvaluationCounts",
    "Horizon",
    "PreparedProposal",
    "Proposal",
    "ProbingAlgorithm",
    "ProbingHead",
    "PlacingHead",
    "FoldingProcess",
    "CountedProcess",
    "Gaussian",
    "Head",
    "HeadCounts",
    "Key",
    "LocalPath",
    "MaskingPath",
    "ModelFn",
    "Moments",
    "Order",
    "Path",
    "PriorDraw",
    "Process",
    "PyTree",
    "RelaxedEnergy",
    "State",
    "TargetMixture",
    "Time",
    "TokenPath",
    "Trajectory",
]

Array = jax.Array


Key = jax.Array
"""A typed PRNG key, `jax.random.key(seed)`; where a function has a batch, also an array [B] of them."""


Time = jax.Array | float
"""A time, or an array of them of the batch shape."""


PyTree = Any


State = Any
"""An array or a pytree of arrays with leading batch axes: [..., D] float or [..., L] int32 tokens."""


ModelFn = Callable[[State, Array], Any]
"""`fn(x, t)` with x [N, *event] and t [N], its parameters closed over."""


class SNIS(NamedTuple):
    """Self-normalised importance weights along one axis of length K.

    Attributes:
      weights: normalised weights, the shape of the log-weights; all zeros where no sample is valid.
      log_mean: log of the mean unnormalised weight, the axis removed; -inf where no sample is valid.
      ess: effective sample size as a fraction of K, in [0, 1]; the axis removed.
    """

    weights: Array
    log_mean: Array
    ess: Array


class Estimate(NamedTuple):
    """What `egm.estimate` returns for a batch of B points.

    Attributes:
      generator: estimate of the marginal generator, in the path's form, leading axis B; zeros where invalid.
      log_marginal: [B] estimate of log p~_t(x_t), unnormalised with phi_1 = -E; zero where invalid.
      ess: [B] effective sample size of the K samples, as a fraction of K.
      valid: [B] bool, False where the inputs are out of range or no sample has positive weight.
      num_nonfinite: [B] int32, how many of the K log-densities were NaN or +inf.
    """

    generator: Any
    log_marginal: Array
    ess: Array
    valid: Array
    num_nonfinite: Array


class Gaussian(NamedTuple):
    """What a model may say of the marginal of a Gaussian path at N points, more than its velocity.

    A process on a Gaussian path takes the velocity [N, D] alone or this record. Any part but the
    velocity may be None.

    Attributes:
      velocity: [N, D] the marginal velocity, the generator in the path's form.
      score: [N, D] the score of p_t; from the velocity where None, which no longer determines it at
        t = 1 on the linear path.
      posterior_variance: [N, D] Var[x_1 | x_t] of each coordinate.
    """

    velocity: Array
    score: Array | None = None
    posterior_variance: Array | None = None


class TargetMixture(NamedTuple):
    """A target as seen from N points: a mixture of K normal distributions with independent coordinates.

    What a model may say instead of a `Gaussian`: p(x_1 | x_t) is in proportion to this mixture's density at
    x_1 times p_{t|1}(x_t | x_1), so again a mixture of K. Where the target is a mixture, that is the record
    at every x_t and t; another target needs other parts at other points.

    Attributes:
      log_weights: [N, K], normalised by who uses them.
      means: [N, K, D].
      variances: [N, K, D], above 0.
    """

    log_weights: Array
    means: Array
    variances: Array


class Moments(NamedTuple):
    """Mean and variance of the data of a Gaussian path, coordinate by coordinate.

    "In the path's form" means this record for a Gaussian path, None for tokens, and a pytree of both
    for a product.

    Attributes:
      mean: [D].
      variance: [D].
    """

    mean: Array
    variance: Array


class PriorDraw(NamedTuple):
    """States at the first time with the density that they were drawn from: what `simulate` starts with.

    From `egm.draw_prior`; a user's own prior makes one by hand.

    Attributes:
      x_0: states, one batch axis N.
      log_density: [N] normalised log-density of each under the distribution that it was drawn from.
    """

    x_0: State
    log_density: Array


class Trajectory(NamedTuple):
    """Both ends of N simulated trajectories and all terms of their path weights but the energy.

    Attributes:
      x_0: states at the first time.
      x_1: states at the last time.
      log_ratio: [N] sum over steps of log backward(x_t | x_r) - log forward(x_r | x_t).
      states: None, or the states at every time, stacked on a new leading axis of length T.
      log_prior: [N] log p_0(x_0), normalised, p_0 the prior that the simulation starts from.
      num_folded: [N] int32, how many steps were refused because their map is not injective (flows,
        whose log_ratio is then NaN); None where the process has no such steps.
      origin: [N] int32, which of the N starts a trajectory goes back to, where they were resampled; then
        log_ratio has, in place of the terms up to there, what gives it the mean weight. Else None.
    """

    x_0: State
    x_1: State
    log_ratio: Array
    states: State | None
    log_prior: Array
    num_folded: Array | None = None
    origin: Array | None = None


@runtime_checkable
class Energy(Protocol):
    """A target: p(x) is proportional to exp(-E(x)), the inverse temperature inside E."""

    def __call__(self, x: State, /) -> Array:
        """E(x), [...] for a state with batch axes [...]. +inf is legal (zero density)."""
        ...


class EnergyWithSites(Energy, Protocol):
    """An energy of tokens, alone or in a mixed state, that knows its single-site conditionals cheaply."""

    def single_site_conditionals(self, x: State) -> Array:
        """Logits [N, L, V] = -E(x with site i set to v), up to a constant a site."""
        ...

    def conditional_evaluations(self, num_sites: int) -> int:
        """Evaluations of E that one call is worth for L sites; without this method it counts as one."""
        ...


class EnergyWithRevealed(Energy, Protocol):
    """An energy of tokens that knows, of some sites of a masked state, the conditionals in closed form."""

    def revealed_conditionals(self, x: State, scale: Time = 1.0, /) -> tuple[Array, Array]:
        """(logits [N, L, V], exact [N, L] bool) given the visible tokens of x [N, L], V the mask.

        Where `exact`, the softmax of the logits is the conditional of exp(-scale E) at that site, all other
        hidden sites summed over; elsewhere the logits are a guess, finite or -inf. `scale` may be traced.
        """
        ...


class RelaxedEnergy(Energy, Protocol):
    """An energy of a mixed state that also takes probabilities [..., L, V] in place of tokens."""

    def relaxed(self, state: State) -> Array:
        """[...] the energy, or its mean, with probabilities where tokens stand; its gradient is a skip."""
        ...


class EnergyWithHint(Energy, Protocol):
    """An energy that knows whether its gradient tells of all that it does: no jumps, no walls."""

    @property
    def differentiable(self) -> Any:
        """A bool or a scalar bool array."""
        ...


_CONDITIONALS = (
    "single_site_conditionals",
    "conditional_evaluations",
    "revealed_conditionals",
    "revealed_evaluations",
)
ENERGY_OFFERS = (*_CONDITIONALS, "relaxed", "differentiable")
"""The names of what an energy may offer beyond E, which its wrappers hand on."""
TOKEN_OFFERS = (*_CONDITIONALS, "masked_conditionals", "colouring")
"""Those of an energy of tokens alone, which no change of coordinates touches."""


@runtime_checkable
class Path(Protocol):
    """A probability path: the noising kernels p_{t|r} and all that follows from them in closed form.

    States have any number of leading batch axes; t and r are scalars or have the state's batch shape.
    `x_r` may have further leading axes (K) in front of those of `x_t`.
    """

    def batch_shape(self, x: State, name: str = "x") -> tuple[int, ...]:
        """The batch axes of a state; raises ValueError or TypeError where it is no state of this path."""
        ...

    def contains(self, x: State) -> Array:
        """[...] bool, whether the values of each state are legal (tokens in range)."""
        ...

    def determined(self, x: State, t: Time | None = None) -> Array:
        """[...] bool, whether x fixes x_1: no mask is left, or t = 1 on other paths (None: before)."""
        ...

    def data_state(self, x: State) -> State:
        """`x` with every value that no data has (a mask) replaced by one that an energy accepts."""
        ...

    @property
    def t_min(self) -> float:
        """The first time at which the path's proposals are finite."""
        ...

    def times(self, num_steps: int) -> Array:
        """[num_steps + 1] increasing times from `t_min` to 1."""
        ...

    def sample_prior(self, key: Key, shape: Any) -> State:
        """States at the first time, of the given full shape (for a product: a pytree of shapes)."""
        ...

    def draw_prior(self, key: Key, shape: Any, moments: Any = None) -> PriorDraw:
        """States as of `sample_prior` with their log-density, which path weights need.

        With the data's `moments`, in the path's form, the prior takes those of the marginal.
        """
        ...

    def prior_log_density(self, x_0: State, moments: Any = None) -> Array:
        """[...] normalised log-density of `draw_prior` with the same moments."""
        ...

    def moments(self, x_1: State, weights: Array) -> Any:
        """Moments of weighted data, in the path's form; x_1 [N, *event], weights [N] with sum 1."""
        ...

    def reference_energy(self, x_1: State, moments: Any) -> Array:
        """[...] energy of the product of normals with these moments; 0 for tokens."""
        ...

    def sample(self, key: Key, x_1: State, t: Time) -> State:
        """x_t ~ p_{t|1}(. | x_1)."""
        ...

    def noise(self, key: Key, x_r: State, r: Time, t: Time) -> State:
        """x_t ~ p_{t|r}(. | x_r), for t <= r."""
        ...

    def log_noising(self, x_t: State, t: Time, x_r: State, r: Time) -> Array:
        """[...] log p_{t|r}(x_t | x_r)."""
        ...

    def propose(self, key: Key, x_t: State, t: Time, r: Time, num_samples: int) -> State:
        """[K, ...] x_r ~ q_{r|t}(. | x_t), the noising kernel normalised over x_r."""
        ...

    def log_normalizer(self, x_t: State, t: Time, r: Time) -> Array:
        """[...] log Z_{r|t}(x_t), the integral of p_{t|r}(x_t | x_r) over x_r."""
        ...

    def conditional_generator(self, x_t: State, t: Time, x_r: State, r: Time) -> Any:
        """F_{t|r}^{x_r}(x_t): the generator of the path conditioned on x_r."""
        ...

    def local_generator(self, log_density: ModelFn, x_t: State, t: Time) -> Any:
        """The marginal generator from phi_t itself, the h -> 0 limit of bootstrapping; no samples."""
        ...


class Draw(NamedTuple):
    """What an estimate asks a proposal for: a block of its samples, for each example.

    Attributes:
      key: this block's.
      shared_key: the same for all blocks of an example.
      size: samples in a block; the last block may be cut.
      num_samples: K, the samples of the whole estimate.
      context: this example's part of what the proposal's `prepare` returned.
    """

    key: Key
    shared_key: Key
    size: int
    num_samples: int
    context: Any = None


@runtime_checkable
class Proposal(Protocol):
    """Another proposal than the path's own q_{r|t}, with the weight that mends it."""

    def propose(self, draw: Draw, path: Path, x_t: State, t: Array, r: Array) -> State:
        """[draw.size, ...] x_r; every x_r of positive probability under p_{t|r}(x_t | .) may come."""
        ...

    def log_weight(self, path: Path, x_t: State, t: Array, x_r: State, r: Array) -> Array:
        """[size, ...] log p_{t|r}(x_t | x_r) - log Z_{r|t}(x_t) - log q(x_r)."""
        ...


@runtime_checkable
class PreparedProposal(Protocol):
    """A proposal that looks at the whole batch once; what it found comes back with every call."""

    def prepare(self, path: Path, x_t: State, t: Array, r: Array) -> Any:
        """A pytree of [B, ...], or None."""
        ...

    def propose(self, draw: Draw, path: Path, x_t: State, t: Array, r: Array) -> State:
        """As that of a `Proposal`, with this example's part of it in `draw.context`."""
        ...

    def log_weight(
        self, path: Path, x_t: State, t: Array, x_r: State, r: Array, context: Any = None
    ) -> Array:
        """As that of a `Proposal`."""
        ...


@runtime_checkable
class Horizon(Protocol):
    """How far ahead a bootstrapped estimate looks."""

    def look_ahead(self, path: Path, x_t: State, t: Array) -> Array:
        """[B] r, above t and at most 1; for one batch axis B."""
        ...


@runtime_checkable
class LocalPath(Path, Protocol):
    """A path that also gives local bootstrapping a target, as `egm.algorithms.LocalBootstrap` needs."""

    def num_local_states(self, event_shape: Any) -> int:
        """How many states `local_target` evaluates g at for an example."""
        ...

    def local_target(self, key: Key, boundary_g: ModelFn, x_t: State, t: Array, grid: Array) -> Array:
        """[B] targets for g(x_t, t) from g at states nearby; key [B], grid [T] the times of a simulation."""
        ...


@runtime_checkable
class TokenPath(Path, Protocol):
    """A path on [..., L] tokens; its generator is a denoiser, [..., L, V] probabilities of x_1 given x_t."""

    @property
    def vocab_size(self) -> int:
        """V, the number of data tokens 0..V-1."""
        ...

    def open_sites(self, x: Array, t: Time | None = None) -> Array:
        """[..., L] bool, where x at t does not fix the token of time 1 (None: some time before 1)."""
        ...

    def log_likelihood(self, x_t: Array, t: Time | None) -> Array:
        """[..., L, V] log p_{t|1}(x_t at the site | v), up to a constant a site; finite, 0 at closed sites.

        t may be None where the path has masks, which say nothing.
        """
        ...

    def site_weights(self, x: Array, t: Time | None = None) -> Array:
        """[..., L] what a site weighs in a denoiser's loss, 0 where it is closed (t None: before 1)."""
        ...

    def entropy_left(self, num_sites: int, t: Time) -> Array:
        """Most that the marginal of any target may lose of its entropy between t and 1, in nats."""
        ...

    def jump(self, key: Key, x_t: Array, denoiser: Array, t: Array, r: Array) -> Array:
        """[L] x_r of one state [L], each site by p(x_r | x_t, x_1) mixed over the denoiser [L, V] at t."""
        ...

    def log_jump_ratio(self, x_t: Array, x_r: Array, denoiser: Array, t: Array, r: Array) -> Array:
        """[N] log p_{t|r}(x_t | x_r) - log of the probability that `jump` leads from x_t to x_r [N, L]."""
        ...


@runtime_checkable
class MaskingPath(TokenPath, Protocol):
    """A path on tokens with a further one, V, that hides a site: what orders and closed conditionals need."""

    @property
    def mask_token(self) -> int:
        """V."""
        ...

    def kappa(self, t: Time) -> Array:
        """Probability that a site is visible at time t."""
        ...

    def masked(self, x: Array) -> Array:
        """[..., L] bool, where the mask stands."""
        ...


@runtime_checkable
class Process(Protocol):
    """How a marginal generator moves a state, with the backward kernel that its path weights need.

    `generator(x, t)` is a `ModelFn` in the path's form. States are [N, *event], t and r scalars or [N].

    A process may offer more: `CountedProcess`, `FoldingProcess`.
    """

    @property
    def path(self) -> Path:
        """The path whose marginals the process keeps."""
        ...

    def times(self, num_steps: int) -> Array:
        """[num_steps + 1] times to simulate on."""
        ...

    def step(self, key: Key, x_t: State, generator: ModelFn, t: Array, r: Array) -> tuple[State, Array]:
        """(x_r, log_ratio [N]) with x_r ~ forward(. | x_t)."""
        ...

    def reverse_step(self, key: Key, x_r: State, generator: ModelFn, t: Array, r: Array) -> State:
        """x_t ~ backward(. | x_r)."""
        ...

    def log_ratio(self, x_t: State, x_r: State, generator: ModelFn, t: Array, r: Array) -> Array:
        """[N] log backward(x_t | x_r) - log forward(x_r | x_t) of a given pair."""
        ...


@runtime_checkable
class CountedProcess(Process, Protocol):
    """A process that cannot end in data in any number of steps."""

    def check_steps(self, num_steps: int, event_shape: Any) -> None:
        """Raises ValueError where a trajectory of so many steps cannot end in data."""
        ...


@runtime_checkable
class Order(Protocol):
    """Which sites a jump reveals when: a Markov chain on sets of visible sites that sees no tokens.

    From none to all of L sites in `num_steps` steps. `hide` is the exact time reversal of `reveal`, so that
    the probabilities of both are equal over a whole trajectory. Each method is for one state.
    """

    @property
    def num_sites(self) -> int:
        """L."""
        ...

    @property
    def num_steps(self) -> int:
        """Steps from no visible site to all of them."""
        ...

    @property
    def num_closed(self) -> int:
        """How many of the last steps need no network."""
        ...

    def visible(self, key: Key, step: Array) -> Array:
        """[L] bool, a draw of the visible sites before `step`, an integer scalar."""
        ...

    def reveal(self, key: Key, visible: Array) -> Array:
        """[L] bool, a draw of the sites that are revealed next; none where all are visible."""
        ...

    def hide(self, key: Key, visible: Array) -> Array:
        """[L] bool, a draw of the sites that the step which led here has revealed."""
        ...

    def weights(self, visible: Array) -> Array:
        """[L] the probability of each site to be among those that are revealed next."""
        ...

    def joins(self, before: Array, after: Array) -> Array:
        """Scalar bool, whether a step leads from visible sites to others; True where all are visible."""
        ...


@runtime_checkable
class FoldingProcess(Process, Protocol):
    """A process with deterministic steps, which are refused where they are not injective."""

    def step_with_folds(
        self, key: Key, x_t: State, generator: ModelFn, t: Array, r: Array
    ) -> tuple[State, Array, Array]:
        """(x_r, log_ratio [N], refused [N], bool or int32)."""
        ...


Apply = Callable[[PyTree, State, Array], Any]
"""`output = apply(params, x [N, *event], t [N])`, as a Flax module's."""


class EvaluationCounts(NamedTuple):
    """Evaluations of E that an algorithm takes.

    Attributes:
      trajectory: for each simulated state, that at its end not counted.
      call: for each call of the generator.
      example: for each training example.
    """

    trajectory: int
    call: int
    example: int


class HeadCounts(NamedTuple):
    """Evaluations of E that a head takes.

    Attributes:
      generator, target: for each state in a call of `generator` and of `conditional_target`.
    """

    generator: int
    target: int


@runtime_checkable
class Algorithm(Protocol):
    """What an outer iteration trains."""

    @property
    def path(self) -> Path:
        """The path whose generator is learned."""
        ...

    @property
    def draws_by_weight(self) -> bool:
        """Whether x_1 must be drawn by path weight (else uniformly from the buffer)."""
        ...

    def energy_evaluations(self, energy: Energy, event_shape: Any) -> EvaluationCounts:
        """Evaluations of E, for the count in the metrics."""
        ...

    def generator(self, params: PyTree, energy: Energy) -> ModelFn:
        """The marginal generator that `params` stand for, in the path's form.

        The energy is that of the boundary of phi; algorithms that learn a generator do not need it.
        """
        ...

    def loss(
        self, keys: Key, params: PyTree, target_params: PyTree, x_1: State, t: Array, energy: Energy
    ) -> tuple[Array, dict[str, Array]]:
        """([B] loss, metrics, each a scalar)."""
        ...


@runtime_checkable
class Head(Protocol):
    """What an algorithm asks of a head; states have one batch axis, t is [B]."""

    @property
    def path(self) -> Path:
        """The path of the generator."""
        ...

    def generator(self, output: PyTree, x_t: State, t: Array, energy: Energy) -> PyTree:
        """The generator in the path's form, as a process takes it."""
        ...

    def conditional_target(self, x_1: State, x_t: State, t: Array, energy: Energy | None) -> PyTree:
        """A target given x_1, its mean over x_1 given x_t the marginal one; without E the plain one."""
        ...

    def divergence(self, target: PyTree, output: PyTree, x_t: State, t: Array, energy: Energy) -> Array:
        """[B] Bregman divergence, up to terms of the target alone; no gradient flows into the target."""
        ...

    def metrics(
        self, target: PyTree, output: PyTree, x_t: State, t: Array, energy: Energy
    ) -> dict[str, Array]:
        """Scalars to report beside the divergence: what was clipped."""
        ...

    def energy_evaluations(self, energy: Energy, event_shape: Any) -> HeadCounts:
        """Evaluations of E, a gradient being one."""
        ...


@runtime_checkable
class EstimatingHead(Head, Protocol):
    """A head that learns from the samples of an estimate more than their mean generator."""

    def estimated_values(
        self, output: PyTree, x_t: State, t: Array, energy: Energy | None
    ) -> Callable[[State, Array], Any]:
        """`values` for `egm.estimate`; their weighted mean is a target for `divergence`."""
        ...


@runtime_checkable
class ProbingHead(Head, Protocol):
    """A head whose conditional targets may use the energy's gradient, and that asks first."""

    def probe_evaluations(self, energy: Energy) -> int:
        """Evaluations of E an example in `differentiable`."""
        ...

    def differentiable(self, x_1: State, x_t: State, t: Array, energy: Energy) -> Array:
        """Whether conditional targets may use grad E: a scalar bool."""
        ...


@runtime_checkable
class ProbingAlgorithm(Algorithm, Protocol):
    """An algorithm that asks once an iteration whether its targets may use the energy's gradient."""

    def differentiable(self, keys: Key, x_1: State, t: Array, energy: Energy) -> tuple[Array, int]:
        """(whether they may, a scalar bool; evaluations of E spent)."""
        ...


@runtime_checkable
class PlacingHead(Head, Protocol):
    """A head that says at which states it is trained and asked."""

    def training_states(self, keys: Key, x_1: State, t: Array) -> State:
        """[B, ...] states to train at, from data x_1; keys [B], t [B]."""
        ...

    def needs_output(self, x_t: State, energy: Energy) -> Array:
        """[B] bool, False where the generator does not depend on the network's output."""
        ...
