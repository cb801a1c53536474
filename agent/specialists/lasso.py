"""opt-convex: the LASSO with one public matrix, in a dozen iterations."""

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

ROWS, COLUMNS = 64, 128
PENALTY_SHARE = 0.1
SHIFTED_PENALTY_SHARE, SHIFT = 0.08, 1.25
"""Shifted problems have a smaller penalty, so many times as many unknowns and as much noise."""
CORRECTION_SCALE = 0.02


class Lasso:
    """Minimize P(x) = |A x - b|^2 / 2 + penalty |x|_1 (Tibshirani 1996).

    A [rows, columns], by default [64, 128], is public, with unit columns; b = A x0 + `noise` e with
    e standard normal, by default 0.02 e, where x0 is standard normal in a share `density` of its
    places, by default a tenth, and 0 elsewhere; penalty = 0.1 max|A' b|. Inputs are b [count, rows]
    and penalty [count]; a module answers x [count, columns]. Shapes below are the default ones.

    The error needs no solution to compare with: it is the duality gap, in float64, divided by
    P(0) = |b|^2 / 2. It bounds (P(x) - P(best x)) / P(0) from above and is 0 only at the optimum.
    """

    name = "opt-convex"
    unit = "duality gap / objective at x = 0"
    trivial_error = 0.81
    tolerance = 0.01
    baseline_of_record = "fista 12"
    batch_size = 64
    learning_rate = 2e-2
    hidden_max = None

    def __init__(
        self,
        *,
        rows: float = ROWS,
        columns: float = COLUMNS,
        density: float = 0.1,
        noise: float = 0.02,
    ) -> None:
        self._rows, self._columns = int(rows), int(columns)
        self._density, self._noise = density, noise

    @property
    def inputs(self) -> tuple[Field, ...]:
        """b and the penalty."""
        rows, columns = self._rows, self._columns
        return (
            Field(
                "b",
                f"{rows} measurements, b = A x and noise; A [{rows}, {columns}] is the public "
                f"agent.specialists.lasso.matrix(rows={rows}, columns={columns})",
                f"{rows} قياسًا، b = A x مع ضجيج؛ والمصفوفة A [{rows}, {columns}] معلنة: "
                f"agent.specialists.lasso.matrix(rows={rows}, columns={columns})",
                (rows,),
            ),
            Field(
                "penalty",
                "the weight of |x|_1; models learn with a tenth of max|A'b|",
                "وزن |x|_1؛ وتتعلم النماذج بعُشر max|A'b|",
                least=0.0,
            ),
        )

    @property
    def answers(self) -> tuple[Field, ...]:
        """x, what it costs, and how far from the least that can be at most."""
        return (
            Field("x", "the unknowns", "المجاهيل", (self._columns,)),
            Field(
                "objective",
                "P(x) = |A x - b|^2 / 2 + penalty |x|_1",
                "الكلفة P(x) = |A x - b|^2 / 2 + penalty |x|_1",
            ),
            Field(
                "gap",
                "the most by which P(x) exceeds the least there is, a share of |b|^2 / 2",
                "أقصى ما تزيد به P(x) على أدنى قيمة ممكنة، نسبةً إلى |b|^2 / 2",
            ),
        )

    def train_batch(self, seed: int, step: int) -> Batch:
        """Fresh problems, float32; no solutions."""
        draw = seeds.generator(self.name, "train", seed, step)
        b, penalty = self._problems(draw, self.batch_size)
        return {"b": b.float(), "penalty": penalty.float()}

    def cases(self, seed: int, count: int, split: Split = "validation") -> Cases:
        """Fresh problems, float64."""
        b, penalty = self._problems(seeds.generator(self.name, split, seed), count)
        return {"b": b, "penalty": penalty}

    def _problems(self, draw: torch.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """b [count, 64] and penalty [count], float64."""
        a = matrix(rows=self._rows, columns=self._columns)
        values = torch.randn(count, self._columns, generator=draw, dtype=torch.float64)
        shares = torch.rand(count, self._columns, generator=draw, dtype=torch.float64)
        noise = torch.randn(count, self._rows, generator=draw, dtype=torch.float64)
        b = (values * (shares < self._density)) @ a.T + self._noise * noise
        return b, PENALTY_SHARE * (b @ a).abs().amax(1)

    def shifted(self, seed: int, count: int) -> Cases | None:
        """Problems with 1.25 times the share of unknowns that are not 0 and 1.25 times the noise,
        under a penalty of 0.08 max|A' b|, where training knows 0.1 alone."""
        beyond = Lasso(
            rows=self._rows,
            columns=self._columns,
            density=SHIFT * self._density,
            noise=SHIFT * self._noise,
        )
        b, penalty = beyond._problems(seeds.generator(self.name, "shifted", seed), count)
        return {"b": b, "penalty": penalty * (SHIFTED_PENALTY_SHARE / PENALTY_SHARE)}

    def build(self, config: Config) -> torch.nn.Module:
        """A fresh unrolled solver, "lista" or "learned-steps"; it starts out as FISTA."""
        shape = {"rows": self._rows, "columns": self._columns}
        match config.family:
            case "lista":
                return Lista(**sizes.read(config, {"layers": (1, 48)}), **shape)
            case "learned-steps":
                return LearnedSteps(**sizes.read(config, {"layers": (1, 48)}), **shape)
        raise sizes.unknown_family(config, self.name, ("lista", "learned-steps"))

    def ensemble(self, members: Sequence[torch.nn.Module]) -> ensembles.Ensemble:
        """The mean of what they say."""
        return ensembles.Ensemble(members)

    def loss(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The mean error itself, in float32: it can be differentiated almost everywhere."""
        x = module(batch["b"], batch["penalty"])
        return relative_gap(x, batch["b"], batch["penalty"]).mean()

    def outputs(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Answers [count, 128], in lengths of b: an answer may be 0."""
        length = batch["b"].norm(dim=1, keepdim=True)
        said: torch.Tensor = module(batch["b"], batch["penalty"]) / length
        return said

    def distance(self, outputs: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
        """Mean |said - taught|. Their squares are worse to learn from: steps that a layer bears are
        soon exceeded."""
        apart: torch.Tensor = (outputs - taught).norm(dim=1).mean()
        return apart

    def errors(self, module: torch.nn.Module, cases: Cases) -> torch.Tensor:
        """Relative duality gap of each case, float64 [count]."""
        x = module(cases["b"].float(), cases["penalty"].float()).double()
        return relative_gap(x, cases["b"], cases["penalty"])

    def baseline_errors(self, cases: Cases) -> dict[str, torch.Tensor]:
        """x = 0 ("trivial", exactly 0.81) and FISTA after 12, 24 and 48 iterations."""
        b, penalty = cases["b"], cases["penalty"]
        names = ("trivial", "fista 12", "fista 24", "fista 48")
        nothing = b.new_zeros(len(b), self._columns)
        said = (nothing, *fista(b, penalty, 12, 24, 48, columns=self._columns))
        return {name: relative_gap(x, b, penalty) for name, x in zip(names, said, strict=True)}

    def families(self, role: Role) -> list[Config]:
        """Learned matrices for the evolver, learned scalars for the reinventor."""
        if role == "evolver":
            return [Config(family="lista", sizes={"layers": 12})]
        return [
            Config(family="learned-steps", sizes={"layers": 12}),
            Config(family="learned-steps", sizes={"layers": 8}),
        ]

    def asked(self, cases: Cases) -> Inputs:
        """b and the penalty."""
        return {"b": cases["b"], "penalty": cases["penalty"]}

    def answer(self, module: torch.nn.Module, inputs: Inputs) -> Answers:
        """x, its objective, and the certificate of the duality gap."""
        b, penalty = inputs["b"], inputs["penalty"]
        said = module(b.float(), penalty.float())
        x = said.double()
        residual = b - x @ matrix(rows=self._rows, columns=self._columns).T
        objective = residual.square().sum(1) / 2 + penalty * x.abs().sum(1)
        return {"x": said, "objective": objective, "gap": relative_gap(x, b, penalty)}

    def probe(self) -> tuple[torch.Tensor, ...]:
        """One problem: b float32 [1, 64], penalty float32 [1]."""
        cases = self.cases(0, 1)
        return cases["b"].float(), cases["penalty"].float()


@functools.cache
def matrix(
    dtype: torch.dtype = torch.float64,
    device: torch.device | None = None,
    rows: int = ROWS,
    columns: int = COLUMNS,
) -> torch.Tensor:
    """The public A [64, 128]: normal entries of a public seed, columns scaled to length 1."""
    with torch.inference_mode(False):  # kept for training too, whoever asks first
        draw = seeds.generator(Lasso.name, "matrix")
        entries = torch.randn(rows, columns, generator=draw, dtype=torch.float64)
        scaled: torch.Tensor = entries / entries.norm(dim=0)
        return scaled.to(dtype=dtype, device=device)


@functools.cache
def _step(rows: int, columns: int) -> float:
    """1 / the largest eigenvalue of A'A: the longest safe gradient step."""
    a = matrix(rows=rows, columns=columns)
    return 1 / float(torch.linalg.matrix_norm(a, 2).square())


def relative_gap(x: torch.Tensor, b: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    """(P(x) - D(u)) / P(0), at least 0, for x [n, 128], b [n, 64], penalty [n].

    D(u) = |b|^2 / 2 - |b - u|^2 / 2 is the dual objective; u is the residual b - A x scaled to be
    the best point on its line with max|A'u| <= penalty (Kim et al. 2007; Mairal 2010).
    """
    a = matrix(b.dtype, b.device, b.shape[1], x.shape[1])
    tiny = torch.finfo(b.dtype).tiny
    residual = b - x @ a.T
    primal = residual.square().sum(1) / 2 + penalty * x.abs().sum(1)
    limit = penalty / (residual @ a).abs().amax(1).clamp_min(tiny)
    best = (b * residual).sum(1) / residual.square().sum(1).clamp_min(tiny)
    u = torch.minimum(torch.maximum(best, -limit), limit).unsqueeze(1) * residual
    dual = (b * u).sum(1) - u.square().sum(1) / 2
    return ((primal - dual) / (b.square().sum(1) / 2)).clamp_min(0)


def fista(
    b: torch.Tensor, penalty: torch.Tensor, *counts: int, columns: int = COLUMNS
) -> list[torch.Tensor]:
    """x [n, 128] after each of the counts of iterations, rising, of one run of FISTA.

    With constant step (Beck & Teboulle 2009).
    """
    a = matrix(b.dtype, b.device, b.shape[1], columns)
    step = _step(*a.shape)
    threshold = step * penalty.unsqueeze(1)
    x = before = b.new_zeros(len(b), columns)
    found = []
    for done, momentum in enumerate(_momenta(max(counts)), start=1):
        ahead = x + momentum * (x - before)
        before, x = x, shrink(ahead + step * ((b - ahead @ a.T) @ a), threshold)
        if done in counts:
            found.append(x)
    return found


def _momenta(iterations: int) -> list[float]:
    """(t_(k-1) - 1) / t_k with t_0 = t_1 = 1 and t_(k+1) = (1 + sqrt(1 + 4 t_k^2)) / 2."""
    before, t, momenta = 1.0, 1.0, []
    for _ in range(iterations):
        momenta.append((before - 1) / t)
        before, t = t, (1 + math.sqrt(1 + 4 * t * t)) / 2
    return momenta


def shrink(x: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Soft thresholding: towards 0 by `threshold`, and no further."""
    return torch.sign(x) * torch.relu(torch.abs(x) - threshold)


def unless_worse(x: torch.Tensor, b: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    """Answers [n, 128], and 0 where that has the lower objective: learned steps that are longer
    than is safe may diverge on a problem unlike those seen (safeguarding, Heaton et al. 2020). Not
    while training, which has to feel what went wrong."""
    a = matrix(b.dtype, b.device, b.shape[1], x.shape[1])
    objective = (b - x @ a.T).square().sum(1) / 2 + penalty * x.abs().sum(1)
    worse = ~(objective <= b.square().sum(1) / 2)
    return x.masked_fill(worse.unsqueeze(1), 0.0)


class LearnedSteps(torch.nn.Module):
    """FISTA with a learned step, threshold and momentum in every layer: 3 numbers each.

    After ALISTA (Liu et al. 2019). A'A is formed beforehand, so that a layer is one product.
    """

    gram: torch.Tensor
    a: torch.Tensor

    def __init__(self, *, layers: int, rows: int = ROWS, columns: int = COLUMNS) -> None:
        super().__init__()
        a, step = matrix(rows=rows, columns=columns), _step(rows, columns)
        self.register_buffer("a", a.float(), persistent=False)
        self.register_buffer("gram", (a.T @ a).float(), persistent=False)
        self.step = torch.nn.Parameter(torch.full((layers,), step))
        self.threshold = torch.nn.Parameter(torch.full((layers,), step))
        self.momentum = torch.nn.Parameter(torch.tensor(_momenta(layers)))

    def forward(self, b: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
        """b [n, 64], penalty [n] -> x [n, 128]."""
        goal = b @ self.a
        x = before = torch.zeros_like(goal)
        thresholds = self.threshold * penalty.unsqueeze(1)
        for layer, step in enumerate(self.step):
            ahead = x + self.momentum[layer] * (x - before)
            moved = ahead + step * (goal - ahead @ self.gram)
            before, x = x, shrink(moved, thresholds[:, layer : layer + 1])
        return x if self.training else unless_worse(x, b, penalty)


class Lista(torch.nn.Module):
    """LISTA (Gregor & LeCun 2010) with momentum: a matrix and 3 numbers in every layer.

    The matrix that brings the residual back is A + 0.02 correction; the small factor lets one
    learning rate serve the scalars and the matrices.
    """

    a: torch.Tensor

    def __init__(self, *, layers: int, rows: int = ROWS, columns: int = COLUMNS) -> None:
        super().__init__()
        a, step = matrix(rows=rows, columns=columns), _step(rows, columns)
        self.register_buffer("a", a.float(), persistent=False)
        self.correction = torch.nn.Parameter(torch.zeros(layers, rows, columns))
        self.step = torch.nn.Parameter(torch.full((layers,), step))
        self.threshold = torch.nn.Parameter(torch.full((layers,), step))
        self.momentum = torch.nn.Parameter(torch.tensor(_momenta(layers)))

    def forward(self, b: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
        """b [n, 64], penalty [n] -> x [n, 128]."""
        x = before = b.new_zeros(len(b), self.a.shape[1])
        thresholds = self.threshold * penalty.unsqueeze(1)
        for layer, back in enumerate(self.a + CORRECTION_SCALE * self.correction):
            ahead = x + self.momentum[layer] * (x - before)
            moved = ahead + self.step[layer] * ((b - ahead @ self.a.T) @ back)
            before, x = x, shrink(moved, thresholds[:, layer : layer + 1])
        return x if self.training else unless_worse(x, b, penalty)
