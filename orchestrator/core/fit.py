"""What observed seconds teach: a line that alike workers share, and how each of them differs from it.

Were each worker's speed learned alone, one that got no work yet would look as slow as the first guess, and go on
getting none.
"""

from __future__ import annotations

import math

MEMORY = 128.0  # observations that count, while predictions are good
SHORTEST_MEMORY = 4.0  # and while they are all wrong
EARLY = 4  # observations that are taken at their word; of later ones, one that is far off is taken for an outlier
USUAL_ERRORS = 3.0  # times the mean error is not far off; and in any case
NEVER_FAR_OFF = 0.25  # this log ratio
ALWAYS_FAR_OFF = 1.4  # and never this one (a factor of 4)
SKEW = 0.25  # with it, errors that are lognormal bias nothing: what fits is their geometric mean
INERTIA = 0.5  # observations that the parts weigh as they are
MOST_AT_ONCE = 4.0  # times larger or smaller, by one observation
MOST_IN_ALL = 1e4  # and by all of them
SHORTEST = 1e-7  # seconds
LONGEST = 1e5
ERROR_GAIN = 1 / 16
TRUST_IN_PEERS = 8.0  # observations that it weighs that a worker is as fast as its peers
PACE_MEMORY = 48.0  # observations of one worker that count
RETURN = 0.05  # of what it differs from its peers: so that what all have in common ends up in the line
MOST_PACE = 3.0  # log ratio: up to 20 times faster or slower than its peers
FADE_SECONDS = 60.0  # without work, after which a worker is thought to be as fast as its peers again


def _haste(error: float) -> float:
    """The share of what is known that one observation replaces, while predictions are as bad as that."""
    return min(1.0 / SHORTEST_MEMORY, error / 8.0)


class Line:
    """``seconds = fixed + slope * units``, both always above zero.

    The first observations scale the guess as a whole. From then on least squares over relative errors, with exponential
    forgetting (Ljung, "System identification", ch. 11), tells the two parts apart as far as observations differ in
    units; the worse the predictions, the faster it forgets. ``error`` is the mean of the newest ``|log(seen /
    predicted)|``, ``seen`` the number of observations.

    Args:
        fixed: the guess, seconds; above zero.
        slope: the guess, seconds a unit; above zero.
    """

    __slots__ = ("_guess", "_s11", "_s12", "_s22", "_t1", "_t2", "error", "fixed", "seen", "slope")

    def __init__(self, fixed: float, slope: float) -> None:
        self.fixed = fixed
        self.slope = slope
        self.seen = 0
        self.error = 0.0
        self._guess = (fixed, slope)
        self._s11 = self._s12 = self._s22 = self._t1 = self._t2 = 0.0

    def at(self, units: float) -> float:
        return self.fixed + self.slope * units

    def saw(self, units: float, seconds: float) -> None:
        """Takes in one observation; one that can't be (negative, not finite) is left out."""
        if not (0.0 <= units < math.inf and SHORTEST <= seconds <= LONGEST):
            return
        off = math.log(seconds / self.at(units))
        if self.seen < EARLY:
            factor = math.exp(off / (self.seen + 1))
            self._become(self.fixed * factor, self.slope * factor)
        else:
            limit = min(ALWAYS_FAR_OFF, max(NEVER_FAR_OFF, USUAL_ERRORS * self.error))
            seconds = self.at(units) * math.exp(min(limit, max(-limit, off)))
        self.seen += 1
        self.error += (abs(off) - self.error) * max(ERROR_GAIN, 1.0 / self.seen)
        self._sum(units, seconds)
        self._solve()

    def _sum(self, units: float, seconds: float) -> None:
        keep = 1.0 - max(1.0 / MEMORY, _haste(self.error))
        predicted = self.at(units)
        weight = 1.0 / (predicted * math.pow(seconds / predicted, SKEW))
        x1, x2, y = weight, units * weight, seconds * weight
        self._s11 = keep * self._s11 + x1 * x1
        self._s12 = keep * self._s12 + x1 * x2
        self._s22 = keep * self._s22 + x2 * x2
        self._t1 = keep * self._t1 + x1 * y
        self._t2 = keep * self._t2 + x2 * y

    def _solve(self) -> None:
        """The parts that fit best, held back a little where they are: what observations can't tell stays."""
        hold1, hold2 = INERTIA / self.fixed, INERTIA / self.slope
        a11, a22 = self._s11 + hold1 / self.fixed, self._s22 + hold2 / self.slope
        b1, b2 = self._t1 + hold1, self._t2 + hold2
        determinant = a11 * a22 - self._s12 * self._s12
        fixed = (b1 * a22 - b2 * self._s12) / determinant
        slope = (b2 * a11 - b1 * self._s12) / determinant
        self._become(
            min(self.fixed * MOST_AT_ONCE, max(self.fixed / MOST_AT_ONCE, fixed)),
            min(self.slope * MOST_AT_ONCE, max(self.slope / MOST_AT_ONCE, slope)),
        )

    def _become(self, fixed: float, slope: float) -> None:
        fixed0, slope0 = self._guess
        self.fixed = min(fixed0 * MOST_IN_ALL, max(fixed0 / MOST_IN_ALL, fixed))
        self.slope = min(slope0 * MOST_IN_ALL, max(slope0 / MOST_IN_ALL, slope))


class Pace:
    """How much longer one worker takes than ``line`` says: a factor, learned from its own observations.

    ``error`` is the mean of the newest ``|log(seen / predicted)|``, ``seen`` the number of observations.
    """

    __slots__ = ("_log", "error", "factor", "line", "seen")

    def __init__(self, line: Line) -> None:
        self.line = line
        self.factor = 1.0
        self.seen = 0
        self.error = 0.0
        self._log = 0.0

    def at(self, units: float) -> float:
        return self.factor * (self.line.fixed + self.line.slope * units)

    def saw(self, units: float, seconds: float) -> None:
        """Takes in one observation, for its peers too; one that can't be is left out."""
        if not (0.0 <= units < math.inf and SHORTEST <= seconds <= LONGEST):
            return
        self.seen += 1
        off = math.log(seconds / self.at(units))
        self.error += (abs(off) - self.error) * max(ERROR_GAIN, 1.0 / self.seen)
        self.line.saw(units, seconds / self.factor)
        limit = min(ALWAYS_FAR_OFF, max(NEVER_FAR_OFF, USUAL_ERRORS * self.error))
        off = min(limit, max(-limit, math.log(seconds / self.at(units))))
        gain = max(max(1.0 / PACE_MEMORY, 1.0 / (self.seen + TRUST_IN_PEERS)), _haste(self.error))  # by two: quicker
        self._become(self._log + gain * (off - RETURN * self._log))

    def fade(self, seconds: float) -> None:
        """It had nothing to do for so long, so what was learned of it gets old."""
        if self._log:
            self._become(self._log * max(0.0, 1.0 - seconds / FADE_SECONDS))

    def _become(self, log: float) -> None:
        self._log = min(MOST_PACE, max(-MOST_PACE, log))
        self.factor = math.exp(self._log)
