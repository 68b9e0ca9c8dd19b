"""When the training of `egm.fit` ends, at which learning rate, and what it says meanwhile."""

from __future__ import annotations

import dataclasses
import sys
import time

import numpy as np

__all__ = ["LEARNING_RATE", "OWN_ESS", "Budget", "Rule", "Voice"]

LEARNING_RATE = 2e-3
_PATIENCE = 15
"""Iterations without a higher ESS after which the learning rate falls."""
_RISES = 0.99
"""Share of the highest ESS from which one counts as high."""
_FALL = 10
"""Iterations over which it falls, at least."""
OWN_ESS = 0.3
"""From this ESS on the sampler learns from its own weighted states alone, below from the chains' too."""
_NUM_LAST = 14_336
"""States that the figures at the end take: 2,048 to choose the steps, 8,192 forward, up to 4,096 backward."""
_MOST_LAST = 0.2
"""Share of the time that is kept for them, at most."""
_MOST_TO_COMPILE = 0.1
"""Share of the time that is kept for compiling them, at most."""
_MOST_BY_CHAINS = 60
"""Iterations after which chains that led nowhere (ESS below .02) are given up for annealing."""


@dataclasses.dataclass
class Budget:
    """What time and iterations there are, and what of the time the figures at the end take."""

    began: float
    seconds: float
    iterations: int | None
    ess_target: float
    seconds_a_state: float = 0.0
    """What it takes to simulate a state, by the training's clock; 0 where it is not known."""
    seconds_to_compile: float = 0.0
    """What the training step took to compile, about what the programs of the figures at the end will."""

    @property
    def last(self) -> float:
        """Seconds that the figures at the end take, or may take."""
        states = min(self.seconds_a_state * _NUM_LAST, _MOST_LAST * self.seconds)
        return states + min(self.seconds_to_compile, _MOST_TO_COMPILE * self.seconds)

    @property
    def share_of_last(self) -> float:
        """How many of these states there is time for, as a share."""
        room = max(self.left, _MOST_LAST * self.seconds)
        return min(1.0, room / max(self.seconds_a_state * _NUM_LAST, 1e-9))

    def affords(self, num: int, factor: float) -> bool:
        """Whether there is time for `num` states and a quarter of the last, each `factor` times as long."""
        cost = factor * self.seconds_a_state * (num + _NUM_LAST // 4)
        return self.left - cost > -_MOST_LAST * self.seconds

    @property
    def left(self) -> float:
        """Seconds of all."""
        return self.seconds - (time.time() - self.began)


class Voice:
    """Says what is being done, on stderr."""

    def __init__(self, on: bool, began: float):
        self._on, self._began, self._last = on, began, 0.0

    def phase(self, text: str) -> None:
        """At once."""
        self._say(text)

    def often(self, text: str) -> None:
        """At most every second."""
        if time.time() - self._last >= 1.0:
            self._say(text)

    def _say(self, text: str) -> None:
        if self._on:
            self._last = time.time()
            print(f"[{self._last - self._began:6.1f} s] {text}", file=sys.stderr, flush=True)


class Rule:
    """When to go on, at which learning rate, and when to end."""

    def __init__(self, budget: Budget, falls: bool, num_simulated: int):
        self._budget, self._falls, self._num = budget, falls, num_simulated
        self.count, self.rate, self.stopped = 0, LEARNING_RATE, ""
        self._ess: list[float] = []
        self._hopeless = self._short = False
        self._falling_since: int | None = None
        self._fall_length = _FALL
        self._ends = time.time()
        self._seconds_each = self._first = 0.0

    def heard(self, values: dict[str, float]) -> None:
        """Takes in the metrics of an iteration, at its end."""
        now = time.time()
        if self.count == 0:
            self._first = now - self._ends
        else:
            self._seconds_each = max(self._seconds_each * 0.5, now - self._ends)
            self._budget.seconds_to_compile = max(self._first - self._seconds_each, 0.0)
            # About half of an iteration is the simulation of its states.
            self._budget.seconds_a_state = 0.5 * self._seconds_each / self._num
        self._ends = now
        self.count += 1
        full = values["level"] >= 1
        self._ess.append(values["ess"] if full else 0.0)

    def goes_on(self) -> bool:
        """Whether there is another iteration; sets its learning rate."""
        most, left = self._budget.iterations, self._left
        if most is not None and self.count >= most:
            return False
        if self.count and left < 2 * self._seconds_each:
            self.stopped = "" if self._falling_since is not None and not self._short else "out of time"
            return False
        if self._falling_since is None and self._done_climbing(left, most):
            self._falling_since = self.count
            self._fall_length = max(_FALL, self.count // 3)
            if self._seconds_each > 0:
                self._fall_length = max(1, min(self._fall_length, int(left / self._seconds_each) - 2))
            if most is not None:
                self._fall_length = max(1, min(self._fall_length, most - self.count))
        if self._falling_since is not None:
            done = (self.count - self._falling_since) / self._fall_length
            if done >= 1:
                # The rate has fallen, but the ESS still rose when it had to.
                self.stopped = "out of time" if self._short else ""
                return False
            self.rate = LEARNING_RATE * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * done)))
        return True

    def needs_chains(self) -> bool:
        """Whether the chains' states are worth more than the sampler's own, whose weights are few or none.

        An ESS that falls again asks for them again: a few heavy weights would be learned by heart. Not for
        ever: where the chains have failed the sampler climbs by itself, by annealing.
        """
        self._hopeless = self._hopeless or (self.count >= _MOST_BY_CHAINS and max(self._ess) < 0.02)
        return not self._hopeless and self._ess[-1] < OWN_ESS

    @property
    def _left(self) -> float:
        """Seconds left for training."""
        return self._budget.left - self._budget.last

    def _done_climbing(self, left: float, most: int | None) -> bool:
        recent = self._smoothed()
        if len(recent) < 3:
            return False
        if recent[-1] >= self._budget.ess_target:
            return True
        # The first that no later one is worth the time of.
        best = int(np.argmax(recent >= _RISES * recent.max()))
        own = self._hopeless or max(self._ess) >= OWN_ESS
        patience = _PATIENCE if own else _MOST_BY_CHAINS // 2
        stalled = recent[-1] > 0 and len(recent) - 1 - best >= max(patience, self.count // 2)
        short = left < self._seconds_each * max(_FALL, self.count // 3) * 1.2
        few = most is not None and most - self.count <= max(_FALL, self.count // 3)
        self._short = short and not stalled and not few
        return stalled or short or few

    def _smoothed(self) -> np.ndarray:
        ess = np.asarray(self._ess)
        return np.array([np.median(ess[max(0, i - 2) : i + 1]) for i in range(len(ess))])
