"""math-statistics: what 2 to 24 readings of unknown spread say of the mean behind them."""

import functools
import math
from collections.abc import Sequence

import torch

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

READINGS_MIN = 2
PRIOR_RATE = 2.0
ERROR_POINTS, LOSS_POINTS = 200, 32
FREEDOM_LEAST = 2.0
SHIFT = 1.25
"""Shifted cases have up to so many times the most readings of training."""


class Posterior:
    """The posterior of the mean of a normal distribution, under a Normal-Gamma prior.

    tau ~ Gamma(shape 3, rate 2); mu ~ N(0, 1 / (1 tau)); n uniform in 2..24;
    y_i ~ N(mu, 1 / tau), i = 1..n. The truth, with Y the mean of the y_i and S the sum of
    (y_i - Y)^2, is Student's t (Murphy 2007, "Conjugate Bayesian analysis of the Gaussian
    distribution", section 3):

        location = n Y / (k + n),    freedom = 2 shape + n,
        scale^2 = (rate + S / 2 + k n Y^2 / (2 (k + n))) / ((shape + n / 2) (k + n)),  k = 1.

    A module says (location, log scale, log(freedom - 2)); its error is KL(exact || said) in nats,
    by quadrature. Cases hold y, 0 where nothing was read, and mask, 1 where something was, both
    [count, readings_max], and exact [count, 3]: location, log scale, freedom.

    Parameters: `prior_freedom` is 2 shape, `prior_weight` is k: how many readings the prior is
    worth; `readings_max` is the most there may be. Another rate is another unit of y.
    `trivial_error` is exact for all of them, 1.300 by default.

    Error on 2,048 cases, three seeds: deep-sets of 12,867 parameters after 2,608 steps 0.0004 (of
    300: 0.006), sufficient-statistics of 771 after 8,492 steps 2e-6 (of 300: 0.005).
    """

    name = "math-statistics"
    unit = "KL(exact posterior || model), nats"
    tolerance = 0.02
    baseline_of_record = "classical t"
    batch_size = 128
    learning_rate = 5e-3
    hidden_max = None

    def __init__(self, *, prior_freedom: float, prior_weight: float, readings_max: float) -> None:
        self._freedom, self._weight = int(prior_freedom), prior_weight
        self._readings_max = int(readings_max)
        self.trivial_error = expected_gain(self._freedom, prior_weight, self._readings_max)

    @property
    def inputs(self) -> tuple[Field, ...]:
        """The readings."""
        few, many = READINGS_MIN, self._readings_max
        return (
            Field(
                "readings",
                f"{few} to {many} readings of one normal distribution, in any order",
                f"من {few} إلى {many} قراءة من توزيع طبيعي واحد، بأي ترتيب",
                (many,),
                fewest=few,
            ),
        )

    answers = (
        Field(
            "location",
            "of Student's t, the posterior of the distribution's mean: its middle, in the unit of "
            "the readings",
            "من توزيع ستيودنت t، وهو التوزيع البعدي لمتوسط التوزيع: منتصفه، بوحدة القراءات",
        ),
        Field("scale", "its scale, in the unit of the readings", "مقياسه، بوحدة القراءات"),
        Field("freedom", "its degrees of freedom", "درجات حريته"),
    )

    def train_batch(self, seed: int, step: int) -> Batch:
        """Fresh readings with the exact posterior, float32."""
        draw = seeds.generator(self.name, "train", seed, step)
        return {name: each.float() for name, each in self._draw(draw, self.batch_size).items()}

    def cases(self, seed: int, count: int, split: Split = "validation") -> Cases:
        """Fresh readings with the exact posterior, float64."""
        return self._draw(seeds.generator(self.name, split, seed), count)

    def shifted(self, seed: int, count: int) -> Cases | None:
        """More readings than training ever shows: from one more to 1.25 times as many."""
        fewest, most = self._readings_max + 1, math.ceil(SHIFT * self._readings_max)
        return self._draw(seeds.generator(self.name, "shifted", seed), count, fewest, most)

    def _draw(
        self, draw: torch.Generator, count: int, fewest: int = READINGS_MIN, most: int = 0
    ) -> dict[str, torch.Tensor]:
        """Cases of so many readings, of `readings_max` at most where no most is said."""
        most = most or self._readings_max

        def normal(width: int) -> torch.Tensor:
            return torch.randn(count, width, generator=draw, dtype=torch.float64)

        # A chi-squared variable of 2 shape degrees of freedom, over 2 rate, is Gamma(shape, rate).
        spread = (2 * PRIOR_RATE / normal(self._freedom).square().sum(1, keepdim=True)).sqrt()
        mean = normal(1) / math.sqrt(self._weight) * spread
        n = torch.randint(fewest, most + 1, (count, 1), generator=draw)
        mask = (torch.arange(most) < n).double()
        y = (mean + spread * normal(most)) * mask
        return {"y": y, "mask": mask, "exact": exact(y, mask, self._freedom, self._weight)}

    def build(self, config: Config) -> torch.nn.Module:
        """A fresh model: "deep-sets" or "sufficient-statistics"."""
        match config.family:
            case "deep-sets":
                return DeepSets(**sizes.read(config, {"width": (4, 256)}))
            case "sufficient-statistics":
                return SufficientStatistics(**sizes.read(config, {"width": (4, 128)}))
        raise sizes.unknown_family(config, self.name, ("deep-sets", "sufficient-statistics"))

    def ensemble(self, members: Sequence[torch.nn.Module]) -> ensembles.Ensemble:
        """The mean of what they say."""
        return ensembles.Ensemble(members)

    def loss(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Mean KL over the cases, with fewer points of quadrature than the error."""
        said = as_t(module(batch["y"], batch["mask"]))
        return divergence(batch["exact"], said, LOSS_POINTS).mean()

    def outputs(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """(location, log scale, log(freedom - 2)) [count, 3]."""
        said: torch.Tensor = module(batch["y"], batch["mask"])
        return said

    def distance(self, outputs: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
        """Mean KL(taught || said), nats."""
        return divergence(as_t(taught), as_t(outputs), LOSS_POINTS).mean()

    def errors(self, module: torch.nn.Module, cases: Cases) -> torch.Tensor:
        """KL of each case in nats, float64 [count]."""
        said = as_t(module(cases["y"].float(), cases["mask"].float()).double())
        return divergence(cases["exact"], said, ERROR_POINTS).clamp_min(0)

    def baseline_errors(self, cases: Cases) -> dict[str, torch.Tensor]:
        """What can be said without learning.

        "trivial": the prior's t, whatever was read. "classical t": location Y, scale^2
        S / (n (n - 1)), freedom n - 1 (Student 1908), the answer without a prior, 0.105 nats;
        where the prior is worth more than the readings (weight 10, at most 3 of them) 1.2 nats,
        worse than the prior's 0.11.
        """
        y, mask = cases["y"], cases["mask"]
        n, mean, squares = statistics(y, mask)
        log_scale = (squares / (n * (n - 1))).log() / 2
        said = {
            "trivial": prior(self._freedom, self._weight).expand(len(y), 3),
            "classical t": torch.cat((mean, log_scale, n - 1), 1),
        }
        return {
            name: divergence(cases["exact"], t, ERROR_POINTS).clamp_min(0)
            for name, t in said.items()
        }

    def families(self, role: Role) -> list[Config]:
        """A network over the set of readings, and one over the three numbers that suffice."""
        if role == "evolver":
            return [
                Config(family="deep-sets", sizes={"width": 64}),
                Config(family="deep-sets", sizes={"width": 32}),
            ]
        return [
            Config(family="sufficient-statistics", sizes={"width": 24}),
            Config(family="sufficient-statistics", sizes={"width": 12}),
        ]

    def asked(self, cases: Cases) -> Inputs:
        """The readings there are."""
        return {"readings": cases["y"].masked_fill(cases["mask"] == 0, torch.nan)}

    def answer(self, module: torch.nn.Module, inputs: Inputs) -> Answers:
        """Student's t of the mean."""
        y = inputs["readings"].float()
        mask = (~y.isnan()).float()
        location, log_scale, freedom = as_t(module(y.nan_to_num(0.0), mask)).unbind(1)
        return {"location": location, "scale": log_scale.exp(), "freedom": freedom}

    def probe(self) -> tuple[torch.Tensor, ...]:
        """One case: y and mask, float32 [1, readings_max]."""
        cases = self.cases(0, 1)
        return cases["y"].float(), cases["mask"].float()


def statistics(
    y: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """n, Y and S, each [count, 1], of y and mask [count, readings]."""
    n = mask.sum(1, keepdim=True)
    mean = y.sum(1, keepdim=True) / n
    return n, mean, ((y - mean) * mask).square().sum(1, keepdim=True)


def exact(y: torch.Tensor, mask: torch.Tensor, freedom: int, weight: float) -> torch.Tensor:
    """(location, log scale, freedom) [count, 3] of the posterior (Murphy 2007)."""
    n, mean, squares = statistics(y, mask)
    rate = PRIOR_RATE + squares / 2 + weight * n * mean.square() / (2 * (weight + n))
    variance = rate / ((freedom + n) / 2 * (weight + n))
    return torch.cat((n * mean / (weight + n), variance.log() / 2, freedom + n), 1)


def prior(freedom: int, weight: float) -> torch.Tensor:
    """(location, log scale, freedom) [3] of the mean before anything is read."""
    log_scale = math.log(PRIOR_RATE / (freedom / 2 * weight)) / 2
    return torch.tensor([0.0, log_scale, freedom], dtype=torch.float64)


def expected_gain(freedom: int, weight: float, readings_max: int) -> float:
    """Mean KL(posterior || prior) of the mean, in nats, exactly.

    It is the entropy of the prior less the mean entropy of the posterior (Lindley 1956). The
    entropy of a t is log scale + g(freedom), and the posterior's log scale has a known mean:
    the prior's rate over the posterior's is Beta(shape, n / 2), as y is jointly multivariate t.
    """
    n = torch.arange(READINGS_MIN, readings_max + 1, dtype=torch.float64)
    shape, shapes = torch.tensor(freedom / 2, dtype=torch.float64), (freedom + n) / 2
    log_rate_ratio = torch.digamma(shapes) - torch.digamma(shape)
    log_scale_ratio = (log_rate_ratio - ((shapes / shape) * (weight + n) / weight).log()) / 2
    gains = _entropy_of_t(2 * shape) - log_scale_ratio - _entropy_of_t(2 * shapes)
    return float(gains.mean())


def _entropy_of_t(freedom: torch.Tensor) -> torch.Tensor:
    """Differential entropy of Student's t of scale 1, nats."""
    half, more = freedom / 2, (freedom + 1) / 2
    log_beta = torch.lgamma(half) + math.lgamma(0.5) - torch.lgamma(more)
    return more * (torch.digamma(more) - torch.digamma(half)) + freedom.log() / 2 + log_beta


def as_t(said: torch.Tensor) -> torch.Tensor:
    """(location, log scale, log(freedom - 2)) to (location, log scale, freedom), [n, 3]."""
    location, log_scale, log_excess = said[:, :, None].unbind(1)
    return torch.cat((location, log_scale, FREEDOM_LEAST + log_excess.exp()), 1)


def divergence(truth: torch.Tensor, said: torch.Tensor, points: int) -> torch.Tensor:
    """KL(truth || said) [n] in nats of two t distributions (location, log scale, freedom) [n, 3].

    By the midpoint rule in the angle a, where x = location + scale sqrt(freedom) tan a: the truth
    has the density cos(a)^(freedom - 1) there, times a constant, which vanishes at both ends.
    """
    location, log_scale, freedom = truth[:, :, None].unbind(1)
    tangent, log_cosine = _angles(points, truth.dtype, truth.device)
    log_weights = (freedom - 1) * log_cosine
    weights = log_weights.softmax(1)
    x = location + log_scale.exp() * freedom.sqrt() * tangent
    exact_density = -log_scale - _log_normalizer(freedom) + (freedom + 1) * log_cosine
    return (weights * (exact_density - log_density(x, said))).sum(1)


@functools.cache
def _angles(
    points: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """tan and log cos of the midpoints of -pi/2..pi/2, [points] each."""
    with torch.inference_mode(False):  # kept for training too, whoever asks first
        middles = (torch.arange(points, dtype=torch.float64) + 0.5) / points
        angles = math.pi * (middles - 0.5)
        tangent, log_cosine = angles.tan(), angles.cos().log()
        return tangent.to(device, dtype), log_cosine.to(device, dtype)


def log_density(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """log density of a t (location, log scale, freedom) [n, 3] at x [n, points]."""
    location, log_scale, freedom = t[:, :, None].unbind(1)
    squares = ((x - location) * torch.exp(-log_scale)).square() / freedom
    return -log_scale - _log_normalizer(freedom) - (freedom + 1) / 2 * torch.log1p(squares)


def _log_normalizer(freedom: torch.Tensor) -> torch.Tensor:
    """log of the integral of (1 + z^2 / freedom)^(-(freedom + 1) / 2) over z."""
    half = freedom / 2
    return torch.lgamma(half) - torch.lgamma(half + 0.5) + (freedom * math.pi).log() / 2


class DeepSets(torch.nn.Module):
    """Deep Sets (Zaheer et al. 2017): every reading alone, their mean, then what it means.

    Whatever the order of the readings, the answer is the same.
    """

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.each = torch.nn.Sequential(
            torch.nn.Linear(1, width),
            torch.nn.SiLU(),
            torch.nn.Linear(width, width),
        )
        self.together = torch.nn.Sequential(
            torch.nn.Linear(width + 1, width),
            torch.nn.SiLU(),
            torch.nn.Linear(width, width),
            torch.nn.SiLU(),
            torch.nn.Linear(width, 3),
        )

    def forward(self, y: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """y and mask [n, readings] -> (location, log scale, log(freedom - 2)) [n, 3]."""
        count = mask.sum(1, keepdim=True)
        features = self.each(y.unsqueeze(2))
        pooled = (features * mask.unsqueeze(2)).sum(1) / count
        told: torch.Tensor = self.together(torch.cat((pooled, count.log()), 1))
        return told


class SufficientStatistics(torch.nn.Module):
    """A perceptron over n, the mean and the sum of squares, which hold all that the readings say.

    It says by how much to shrink the mean, and the logarithms of scale and freedom.
    """

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.numbers = torch.nn.Sequential(
            torch.nn.Linear(3, width),
            torch.nn.Tanh(),
            torch.nn.Linear(width, width),
            torch.nn.Tanh(),
            torch.nn.Linear(width, 3),
        )

    def forward(self, y: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """y and mask [n, readings] -> (location, log scale, log(freedom - 2)) [n, 3]."""
        n, mean, squares = statistics(y, mask)
        seen = torch.cat((n.log(), squares.log1p(), mean.square().log1p()), 1)
        shrinking, log_scale, log_excess = self.numbers(seen)[:, :, None].unbind(1)
        location = mean * shrinking.sigmoid()
        return torch.cat((location, log_scale, log_excess), 1)
