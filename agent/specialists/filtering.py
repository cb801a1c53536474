"""stats-bayesian: where a drifting quantity is now, given 32 noisy readings of it."""

import abc
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch.nn import functional

from agent.specialists import ensembles, seeds, sizes
from agent.specialists.base import (
    Answers,
    Batch,
    Cases,
    Config,
    Field,
    Inputs,
    Role,
    Split,
)

READINGS = 32
FIXED_GAIN = 0.74
FIXED_GAIN_EXACT_SPREAD = 0.33
GAINS = 100
"""A hundredth to ninety-nine of them are tried where a relative's best is looked for."""
SHIFT = 1.5
"""Shifted walks drift up to so many times as fast as the fastest of training."""
POINTS = 24
"""Of each scale, where a mean over scales is a sum over a grid of midpoints."""


class Ranges(NamedTuple):
    """Between what q and R are drawn: the parameters of the specialist."""

    drift_least: float = 0.02
    drift_most: float = 1.0
    noise_least: float = 0.1
    noise_most: float = 2.0

    def limits(self) -> torch.Tensor:
        """Least and most of (log q, log R), float64 [2, 2]."""
        return torch.tensor(self, dtype=torch.float64).view(2, 2).log().T


class FixedGains(NamedTuple):
    """The best for some ranges: with the spread of a steady filter, and with the exact one."""

    steady: float
    exact_spread: float


class Filtering:
    """The posterior of the last state of a random walk seen through noise.

    state_0 ~ N(0, 1); state_t = state_(t-1) + q e_t; reading_t = state_t + R n_t for t = 1..32;
    e, n standard normal; q log-uniform in 0.02..1, R log-uniform in 0.1..2, or between what the
    parameters say, both given to the model. The truth is the Kalman filter (1960) in float64:
    state_32 | readings ~ N(mean, sd^2). A module says (mean, log sd); its error is
    KL(exact || said), in nats.

    Cases hold readings [count, 32], scales = (log q, log R) [count, 2], mean and sd [count];
    training batches hold mean and sd after every reading, [count, 32].
    """

    name = "stats-bayesian"
    unit = "KL(exact posterior || model), nats"
    trivial_error = 3.6
    tolerance = 0.02
    baseline_of_record = "fixed gain"
    batch_size = 64
    learning_rate = 8e-3
    hidden_max = None

    def __init__(
        self,
        *,
        drift_least: float = 0.02,
        drift_most: float = 1.0,
        noise_least: float = 0.1,
        noise_most: float = 2.0,
    ) -> None:
        self._ranges = Ranges(drift_least, drift_most, noise_least, noise_most)
        if self._ranges != Ranges():
            self.trivial_error = _expected_of_prior(self._ranges)

    @property
    def inputs(self) -> tuple[Field, ...]:
        """The readings, and how large drift and noise are."""
        drift_least, drift_most, noise_least, noise_most = self._ranges
        return (
            Field(
                "readings",
                "32 readings of the quantity, the oldest first; it began near 0, within about 1",
                "32 قراءة للمقدار، الأقدم أولًا؛ وقد بدأ قريبًا من 0، في حدود 1",
                (READINGS,),
            ),
            Field(
                "drift",
                "standard deviation of its step from one reading to the next, "
                f"{drift_least:g} to {drift_most:g}, in the unit of the readings",
                "الانحراف المعياري لخطوته بين قراءة وتاليتها، "
                f"من {drift_least:g} إلى {drift_most:g}، بوحدة القراءات",
                least=drift_least,
                most=drift_most,
            ),
            Field(
                "noise",
                f"standard deviation of the noise of a reading, {noise_least:g} to {noise_most:g}, "
                "in the unit of the readings",
                f"الانحراف المعياري لضجيج القراءة، من {noise_least:g} إلى {noise_most:g}، "
                "بوحدة القراءات",
                least=noise_least,
                most=noise_most,
            ),
        )

    answers = (
        Field(
            "mean",
            "where the quantity is at the last reading, on average, in the unit of the readings",
            "موضع المقدار عند آخر قراءة في المتوسط، بوحدة القراءات",
        ),
        Field(
            "sd",
            "how sure that is: the standard deviation of where it is",
            "مدى التيقن من ذلك: الانحراف المعياري لموضعه",
        ),
    )

    def train_batch(self, seed: int, step: int) -> Batch:
        """Fresh walks with the exact posterior after every reading, float32."""
        draw = seeds.generator(self.name, "train", seed, step)
        readings, scales = _walks(draw, self.batch_size, self._ranges)
        mean, sd = kalman(readings, scales)
        return {
            "readings": readings.float(),
            "scales": scales.float(),
            "mean": mean.float(),
            "sd": sd.float(),
        }

    def cases(self, seed: int, count: int, split: Split = "validation") -> Cases:
        """Fresh walks with the exact posterior after the last reading, float64."""
        return _posteriors(seeds.generator(self.name, split, seed), count, self._ranges)

    def shifted(self, seed: int, count: int) -> Cases | None:
        """Walks that drift faster than any of training, up to 1.5 times, under noise as there."""
        most = self._ranges.drift_most
        beyond = self._ranges._replace(drift_least=most, drift_most=SHIFT * most)
        return _posteriors(seeds.generator(self.name, "shifted", seed), count, beyond)

    def build(self, config: Config) -> torch.nn.Module:
        """A fresh filter: "gain-gru", "gru" or "learned-gain"."""
        match config.family:
            case "gain-gru":
                return GainGru(**sizes.read(config, {"width": (4, 128)}))
            case "gru":
                return PlainGru(**sizes.read(config, {"width": (4, 128)}))
            case "learned-gain":
                return LearnedGain(**sizes.read(config, {"width": (4, 64)}))
        raise sizes.unknown_family(config, self.name, ("gain-gru", "gru", "learned-gain"))

    def ensemble(self, members: Sequence[torch.nn.Module]) -> ensembles.Ensemble:
        """The mean of what they say, of the moments that all of them speak of."""
        return Filters(members)

    def loss(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Mean KL over the cases and over every moment the module speaks of."""
        assert isinstance(module, Filter)
        mean, log_sd = module.posteriors(batch["readings"], batch["scales"]).unbind(2)
        moments = mean.shape[1]
        return _kl(batch["mean"][:, -moments:], batch["sd"][:, -moments:], mean, log_sd).mean()

    def outputs(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """(mean, log sd) [count, 2] after the last reading."""
        said: torch.Tensor = module(batch["readings"], batch["scales"])
        return said

    def distance(self, outputs: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
        """Mean KL(taught || said), nats."""
        (mean, log_sd), (said_mean, said_log_sd) = taught.unbind(1), outputs.unbind(1)
        return _kl(mean, log_sd.exp(), said_mean, said_log_sd).mean()

    def errors(self, module: torch.nn.Module, cases: Cases) -> torch.Tensor:
        """KL of each case in nats, float64 [count]."""
        said = module(cases["readings"].float(), cases["scales"].float()).double()
        return _kl(cases["mean"], cases["sd"], said[:, 0], said[:, 1])

    def baseline_errors(self, cases: Cases) -> dict[str, torch.Tensor]:
        """What can be said without a filter; figures are those of the defaults.

        "trivial": N(0, 1), the belief before the first reading, 3.6 nats. "fixed gain":
        exponential smoothing with one gain g for all cases, its spread R sqrt(g) as for a steady
        filter of that gain, 0.57 nats. "fixed gain, exact spread": the same with the spread that
        this smoother has for the true q and R, 0.39 nats. The gains are the best on 200,000 cases
        of a public seed, for other ranges the best hundredths in expectation.
        """
        gains = fixed_gains(self._ranges)
        noise = cases["scales"][:, 1]
        steady = noise + math.log(gains.steady) / 2
        exact_spread = _smoothing_variance(gains.exact_spread, cases["scales"]).log() / 2
        said = {
            "trivial": (torch.zeros_like(noise), torch.zeros_like(noise)),
            "fixed gain": (_smoothed(gains.steady, cases["readings"]), steady),
            "fixed gain, exact spread": (
                _smoothed(gains.exact_spread, cases["readings"]),
                exact_spread,
            ),
        }
        return {
            name: _kl(cases["mean"], cases["sd"], mean, log_sd)
            for name, (mean, log_sd) in said.items()
        }

    def families(self, role: Role) -> list[Config]:
        """Recurrent filters for the evolver, a closed form with learned numbers to replace them."""
        if role == "evolver":
            return [
                Config(family="gain-gru", sizes={"width": 48}),
                Config(family="gru", sizes={"width": 48}),
            ]
        return [
            Config(family="learned-gain", sizes={"width": 16}),
            Config(family="learned-gain", sizes={"width": 8}),
        ]

    def asked(self, cases: Cases) -> Inputs:
        """Readings, drift and noise."""
        drift, noise = cases["scales"].exp().unbind(1)
        return {"readings": cases["readings"], "drift": drift, "noise": noise}

    def answer(self, module: torch.nn.Module, inputs: Inputs) -> Answers:
        """The normal distribution of the last state."""
        scales = torch.stack((inputs["drift"], inputs["noise"]), 1).log()
        mean, log_sd = module(inputs["readings"].float(), scales.float()).unbind(1)
        return {"mean": mean, "sd": log_sd.exp()}

    def probe(self) -> tuple[torch.Tensor, ...]:
        """One case: readings float32 [1, 32], scales float32 [1, 2]."""
        cases = self.cases(0, 1)
        return cases["readings"].float(), cases["scales"].float()


def _walks(draw: torch.Generator, count: int, ranges: Ranges) -> tuple[torch.Tensor, torch.Tensor]:
    """Readings [count, 32] and scales (log q, log R) [count, 2], float64."""

    def normal(width: int) -> torch.Tensor:
        return torch.randn(count, width, generator=draw, dtype=torch.float64)

    low, high = ranges.limits().unbind(0)
    share = torch.rand(count, 2, generator=draw, dtype=torch.float64)
    scales = low + (high - low) * share
    drift, noise = scales[:, :1].exp(), scales[:, 1:].exp()
    states = normal(1) + drift * normal(READINGS).cumsum(1)
    return states + noise * normal(READINGS), scales


def _posteriors(draw: torch.Generator, count: int, ranges: Ranges) -> dict[str, torch.Tensor]:
    """Cases of such scales, float64."""
    readings, scales = _walks(draw, count, ranges)
    mean, sd = kalman(readings, scales)
    return {"readings": readings, "scales": scales, "mean": mean[:, -1], "sd": sd[:, -1]}


def kalman(readings: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact posterior mean and standard deviation after each reading (Kalman 1960).

    readings [n, t] and scales (log q, log R) [n, 2] in float64 give two tensors [n, t].
    """
    drift, noise = torch.exp(2 * scales).unbind(1)
    mean, variance = torch.zeros_like(drift), torch.ones_like(drift)
    means, variances = [], []
    for reading in readings.unbind(1):
        variance = variance + drift
        gain = variance / (variance + noise)
        mean = mean + gain * (reading - mean)
        variance = (1 - gain) * variance
        means.append(mean)
        variances.append(variance)
    return torch.stack(means, 1), torch.stack(variances, 1).sqrt()


def _kl(
    mean: torch.Tensor, sd: torch.Tensor, said_mean: torch.Tensor, said_log_sd: torch.Tensor
) -> torch.Tensor:
    """KL(N(mean, sd^2) || N(said_mean, exp(said_log_sd)^2)) in nats, element by element."""
    spread = (sd.square() + (mean - said_mean).square()) * torch.exp(-2 * said_log_sd)
    return (said_log_sd - sd.log() + spread / 2 - 0.5).clamp_min(0)


def _smoothed(gain: float, readings: torch.Tensor) -> torch.Tensor:
    """Exponential smoothing from 0: the sum of gain (1 - gain)^age reading, [n, 32] -> [n]."""
    age = torch.arange(READINGS - 1, -1, -1, dtype=readings.dtype, device=readings.device)
    return readings @ (gain * (1 - gain) ** age)


def _smoothing_variance(gain: float, scales: torch.Tensor) -> torch.Tensor:
    """Mean squared error of `_smoothed` for the true q and R: [n, 2] -> [n]."""
    drift, noise = torch.exp(2 * scales).unbind(1)
    variance = torch.ones_like(drift)
    for _ in range(READINGS):
        variance = (1 - gain) ** 2 * (variance + drift) + gain**2 * noise
    return variance


@functools.cache
def fixed_gains(ranges: Ranges) -> FixedGains:
    """The best gains: as documented for the defaults, the best hundredths for other ranges."""
    if ranges == Ranges():
        return FixedGains(FIXED_GAIN, FIXED_GAIN_EXACT_SPREAD)
    scales = _grid(ranges)
    exact = _last_sd(scales).log()
    found: tuple[list[float], list[float]] = ([], [])
    hundredths = [step / GAINS for step in range(1, GAINS)]
    for gain in hundredths:
        # What the smoother misses beside the exact mean is independent of what this one misses,
        # so the mean squares of the two misses differ by that of their difference.
        missed = _smoothing_variance(gain, scales)
        for spread, expected in zip(
            (gain * torch.exp(2 * scales[:, 1]), missed), found, strict=True
        ):
            kl = spread.log() / 2 - exact + missed / spread / 2 - 0.5
            expected.append(float(kl.mean()))
    return FixedGains(*(hundredths[each.index(min(each))] for each in found))


def _expected_of_prior(ranges: Ranges) -> float:
    """Mean KL of N(0, 1): (sd^2 + mean^2) / 2 is 1 / 2 + 16 q^2 on average, given q and R."""
    scales = _grid(ranges)
    expected = READINGS / 2 * torch.exp(2 * scales[:, 0]) - _last_sd(scales).log()
    return float(expected.mean())


def _grid(ranges: Ranges) -> torch.Tensor:
    """Scales at the midpoints of a grid over their ranges, all of one weight."""
    share = (torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS
    low, high = ranges.limits().unbind(0)
    return low + (high - low) * torch.cartesian_prod(share, share)


def _last_sd(scales: torch.Tensor) -> torch.Tensor:
    """The last posterior's spread, which does not depend on the readings: [n, 2] -> [n]."""
    return kalman(scales.new_zeros(len(scales), READINGS), scales)[1][:, -1]


class Filter(torch.nn.Module, abc.ABC):
    """Readings [n, 32] and scales [n, 2] to the posterior (mean, log sd) [n, 2] of the last."""

    @abc.abstractmethod
    def posteriors(self, readings: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """(mean, log sd) after each of the last readings: [n, moments, 2]."""

    def forward(self, readings: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        return self.posteriors(readings, scales)[:, -1]


class Filters(ensembles.Ensemble, Filter):
    """Several filters as one."""

    def posteriors(self, readings: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        members = (cast(Filter, member) for member in self.members)
        said = [member.posteriors(readings, scales) for member in members]
        moments = min(one.shape[1] for one in said)
        return self.mean([one[:, -moments:] for one in said])


class Gru(Filter):
    """A gated recurrent unit (Cho et al. 2014) over the steps from reading to reading.

    A step, read_t - read_(t-1), is divided by its own standard deviation, so that the network
    sees numbers of one size whatever q and R are. The head starts at zero.
    """

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.memory = torch.nn.GRU(3, width, batch_first=True)
        self.head = torch.nn.Linear(width, 2)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def read(self, readings: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """Two numbers after each reading: [n, 32, 2]."""
        drift, noise = scales[:, :1], scales[:, 1:]
        drifts, noises = torch.exp(2 * drift), torch.exp(2 * noise)
        first = readings[:, :1] / torch.sqrt(1 + drifts + noises)
        steps = readings.diff(dim=1) / torch.sqrt(drifts + 2 * noises)
        seen = torch.cat((first, steps), 1)
        inputs = (seen, (drift - noise).expand_as(seen), noise.expand_as(seen))
        told: torch.Tensor = self.head(self.memory(torch.stack(inputs, 2))[0])
        return told


class PlainGru(Gru):
    """The GRU says how far the state is from the last reading, in units of R."""

    def posteriors(self, readings: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        noise = scales[:, 1:]
        offset, log_spread = self.read(readings, scales).unbind(2)
        return torch.stack((readings + noise.exp() * offset, noise + log_spread), 2)


class GainGru(Gru):
    """The GRU says the gain of a Kalman-like filter (KalmanNet, Revach et al. 2022).

    mean_t = mean_(t-1) + gain_t (reading_t - mean_(t-1)), and the spread in units of R.
    """

    def posteriors(self, readings: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        raw_gain, log_spread = self.read(readings, scales).unbind(2)
        mean, means = torch.zeros_like(readings[:, 0]), []
        for reading, gain in zip(readings.unbind(1), raw_gain.sigmoid().unbind(1), strict=True):
            mean = torch.lerp(mean, reading, gain)
            means.append(mean)
        return torch.stack((torch.stack(means, 1), scales[:, 1:] + log_spread), 2)


class LearnedGain(Filter):
    """Three learned numbers per case put into the closed form of the smoother's weights.

    The exact weight of a reading solves a second-order recurrence with constant coefficients
    (stationary states of the Kalman gain), so weight(age) = k (r^age + c r^(62 - age)) /
    (1 + c r^62) for some 0 < k, r < 1 and c, and the posterior variance is k R^2. A perceptron
    learns k, r and c from (log q, log R); all else is one weighted sum.
    """

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.numbers = torch.nn.Sequential(
            torch.nn.Linear(2, width),
            torch.nn.Tanh(),
            torch.nn.Linear(width, width),
            torch.nn.Tanh(),
            torch.nn.Linear(width, 3),
        )

    def posteriors(self, readings: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        raw_gain, raw_decay, raw_start = self.numbers(scales).unsqueeze(1).unbind(2)
        log_gain, log_decay = functional.logsigmoid(raw_gain), functional.logsigmoid(raw_decay)
        start = raw_start.tanh()
        longest = 2 * (READINGS - 1)
        age = torch.arange(READINGS - 1, -1, -1, dtype=readings.dtype, device=readings.device)
        shape = torch.exp(log_decay * age) + start * torch.exp(log_decay * (longest - age))
        weights = log_gain.exp() * shape / (1 + start * torch.exp(log_decay * longest))
        mean = (weights * readings).sum(1, keepdim=True)
        return torch.stack((mean, scales[:, 1:] + log_gain / 2), 2)
