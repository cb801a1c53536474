"""Pictures of what a model learned, beside the truth: one kind for each specialist.

matplotlib is imported here and nowhere else; who wants no picture does not import this module.
Labels are English: matplotlib neither joins the letters of Arabic nor orders them.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from agent.specialists import (
    addition,
    energies,
    evaluation,
    filtering,
    forecasting,
    lasso,
    operators,
    posterior,
    quadratics,
    tours,
)
from agent.specialists.base import Cases, Specialist
from core import platforms

TRUTH, MODEL, DATA, WRONG = "#8db8e0", "#b3431c", "#6b6b6b", "#d62728"
PANELS = 3
SIZE_INCHES, DOTS_PER_INCH = (9.0, 3.3), 100
SUMS_LISTED = 14
FISTA_ITERATIONS = 1_000
CONVERGENCE_CASES = 256
SPREADS = 2.0
"""A band reaches so many standard deviations to either side."""


class Scene(NamedTuple):
    """A model, cases of its specialist, and its error in each [count]."""

    specialist: Specialist
    module: torch.nn.Module
    cases: Cases
    errors: torch.Tensor

    def typical(self, *shares: float) -> list[tuple[str, int]]:
        """A name and the place of the case that so large a share of the others is below."""
        order = self.errors.argsort(stable=True)
        last = len(order) - 1
        return [(_name(share), int(order[round(share * last)])) for share in shares]

    def only(self, places: Sequence[int]) -> Cases:
        """The cases at these places."""
        return {name: each[list(places)] for name, each in self.cases.items()}


def _name(share: float) -> str:
    return {0.1: "an easy case", 0.5: "the median case", 1.0: "the worst case"}.get(
        share, "a hard case"
    )


def save(
    path: Path, specialist: Specialist, module: torch.nn.Module, cases: Cases, title: str
) -> None:
    """Draw the model on these cases and write the picture, as `path` ends in: .png or .svg.

    Raises OSError.
    """
    figure = draw(specialist, module, cases, title)
    written = io.BytesIO()
    if path.suffix.lower() == ".svg":
        # Neither the date nor random names: the same model gives the same file.
        with mpl.rc_context({"svg.hashsalt": "aghsan"}):
            figure.savefig(written, format="svg", metadata={"Date": None})
    else:
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png")
        # A palette of 256 colours takes a third of the bytes.
        Image.open(drawn).convert("RGB").quantize().save(written, "png", optimize=True)
    platforms.write_atomically(path, written.getvalue(), 0o644)


def draw(specialist: Specialist, module: torch.nn.Module, cases: Cases, title: str) -> Figure:
    """The picture of a model of this specialist; of one without a kind of its own, its errors."""
    errors = evaluation.case_errors(specialist, module, cases)
    figure = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    figure.suptitle(title, fontsize=9)
    module.eval()
    with torch.inference_mode():
        _KINDS.get(specialist.name, _shares)(figure, Scene(specialist, module, cases, errors))
    return figure


def _plain(axes: Axes, title: str = "") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7)
    axes.set_title(title, fontsize=8)


# ── the two flows ──


def _flow(figure: Figure, scene: Scene) -> None:
    """The field at the end over the circle, and below it what the model is off by."""
    upper, lower = figure.subplots(2, PANELS, sharex=True, height_ratios=(3, 1))
    chosen = scene.typical(0.1, 0.5, 0.9)
    cases = scene.only([at for _, at in chosen])
    inputs, truth = cases["inputs"], cases["truth"]
    said = scene.module(inputs.float())
    x = torch.arange(operators.POINTS) / operators.POINTS
    viscosity = operators.viscosity_of(inputs)[:, 0]
    for row, (name, at) in enumerate(chosen):
        above, below = upper[row], lower[row]
        above.plot(x, inputs[row, 0], color=DATA, lw=0.8, ls=":", label="u at the start")
        above.plot(x, truth[row], color=TRUTH, lw=4, label="truth at the end")
        above.plot(x, said[row], color=MODEL, lw=1.2, label="model")
        error = float(scene.errors[at])
        _plain(above, f"{name}: viscosity {float(viscosity[row]):.3g}, error {error:.2g}")
        below.plot(x, said[row] - truth[row], color=MODEL, lw=0.8)
        below.axhline(0, color=TRUTH, lw=0.8)
        below.set_xlabel("x", fontsize=8)
        _plain(below)
    upper[0].legend(fontsize=7, frameon=False)
    lower[0].set_ylabel("model − truth", fontsize=8)


# ── statistics ──


def _posterior(figure: Figure, scene: Scene) -> None:
    """The density of the mean, given the readings."""
    chosen = scene.typical(0.1, 0.5, 0.9)
    cases = scene.only([at for _, at in chosen])
    y, mask = cases["y"], cases["mask"]
    said = posterior.as_t(scene.module(y.float(), mask.float()).double())
    exact = cases["exact"]
    reach = torch.linspace(-5, 5, 201, dtype=torch.float64)
    x = exact[:, :1] + exact[:, 1:2].exp() * reach
    densities = [posterior.log_density(x, t).exp() for t in (exact, said)]
    for row, (axes, (name, at)) in enumerate(zip(figure.subplots(1, PANELS), chosen, strict=True)):
        truth, model = (each[row] for each in densities)
        axes.fill_between(x[row], truth, color=TRUTH, alpha=0.5, label="exact posterior")
        axes.plot(x[row], model, color=MODEL, lw=1.2, label="model")
        readings = y[row][mask[row] > 0]
        axes.plot(readings, torch.zeros_like(readings), "|", color=DATA, ms=10, label="readings")
        axes.set_xlim(float(x[row, 0]), float(x[row, -1]))
        axes.set_xlabel("mean", fontsize=8)
        error = float(scene.errors[at])
        _plain(axes, f"{name}: {len(readings)} readings, {error:.2g} nats")
    figure.axes[0].legend(fontsize=7, frameon=False)


def _filter(figure: Figure, scene: Scene) -> None:
    """Means and bands after each reading; of a model that speaks of the last alone, only there."""
    assert isinstance(scene.module, filtering.Filter)
    chosen = scene.typical(0.1, 0.5, 0.9)
    cases = scene.only([at for _, at in chosen])
    readings, scales = cases["readings"], cases["scales"]
    exact_mean, exact_sd = filtering.kalman(readings, scales)
    said = scene.module.posteriors(readings.float(), scales.float())
    mean, band = said[..., 0], SPREADS * said[..., 1].exp()
    time = torch.arange(1, readings.shape[1] + 1)
    spoken = time[-mean.shape[1] :]
    for row, (axes, (name, at)) in enumerate(zip(figure.subplots(1, PANELS), chosen, strict=True)):
        low, high = (exact_mean[row] + way * SPREADS * exact_sd[row] for way in (-1, 1))
        axes.fill_between(time, low, high, color=TRUTH, alpha=0.5, label="Kalman, ± 2 sd")
        axes.plot(time, exact_mean[row], color=TRUTH, lw=3)
        axes.plot(time, readings[row], ".", color=DATA, ms=4, label="readings")
        if len(spoken) == 1:
            axes.errorbar(
                spoken, mean[row], band[row], color=MODEL, fmt="o", ms=3, capsize=4, label="model"
            )
        else:
            axes.plot(spoken, mean[row], color=MODEL, lw=1.2, label="model, ± 2 sd")
            for way in (-1, 1):
                axes.plot(spoken, mean[row] + way * band[row], color=MODEL, lw=0.8, ls="--")
        axes.set_xlabel("reading", fontsize=8)
        drift, noise = scales[row].exp().tolist()
        error = float(scene.errors[at])
        _plain(axes, f"{name}: drift {drift:.2g}, noise {noise:.2g}, {error:.2g} nats")
    figure.axes[0].legend(fontsize=7, frameon=False)


def _forecast(figure: Figure, scene: Scene) -> None:
    """The quantiles 0.1, 0.5 and 0.9 of the months to come, said and true."""
    chosen = scene.typical(0.1, 0.5, 0.9)
    cases = scene.only([at for _, at in chosen])
    history, mean, sd = cases["history"], cases["mean"], cases["sd"]
    said = scene.module(history.float())
    reach = float(torch.special.ndtri(torch.tensor(forecasting.LEVELS[-1])))
    past = torch.arange(1 - history.shape[1], 1)
    ahead = torch.arange(1, mean.shape[1] + 1)
    for row, (axes, (name, at)) in enumerate(zip(figure.subplots(1, PANELS), chosen, strict=True)):
        axes.plot(past, history[row], color=DATA, lw=0.8, label="history")
        low, high = (mean[row] + way * reach * sd[row] for way in (-1, 1))
        axes.fill_between(ahead, low, high, color=TRUTH, alpha=0.5, label="who knows the kernel")
        axes.plot(ahead, mean[row], color=TRUTH, lw=3)
        low, middle, high = said[row].unbind(1)
        axes.plot(ahead, middle, color=MODEL, lw=1.2, label="model")
        for edge in (low, high):
            axes.plot(ahead, edge, color=MODEL, lw=0.8, ls="--")
        axes.set_xlabel("month", fontsize=8)
        _plain(axes, f"{name}: error {float(scene.errors[at]):.2g}")
    figure.axes[0].legend(fontsize=7, frameon=False)


# ── optimization ──


def _convergence(figure: Figure, scene: Scene) -> None:
    """Error by product with the matrix, and the share of cases below an error."""
    assert isinstance(scene.specialist, quadratics.Quadratics)
    assert isinstance(scene.module, quadratics.Solver)
    one = scene.specialist
    left, right = figure.subplots(1, 2)
    few = {name: each[:CONVERGENCE_CASES] for name, each in scene.cases.items()}
    counts = range(1, one.products + 1)
    curves: dict[str, list[torch.Tensor]] = {
        "conjugate gradients": [],
        "nearest they could find": [],
    }
    for count in counts:
        trace = quadratics.conjugate_gradients(
            quadratics.Products(few["matrix"], count), few["goal"]
        )
        basis = torch.linalg.qr(trace.directions.mT).Q
        inside = basis @ (basis.mT @ few["solution"].unsqueeze(2))
        for name, x in zip(curves, (trace.x, inside.squeeze(2)), strict=True):
            curves[name].append(quadratics.relative_error(x, few["solution"]))
    for (name, found), color in zip(curves.items(), (DATA, TRUTH), strict=True):
        left.plot(counts, [float(each.mean()) for each in found], color=color, label=name, lw=2)
    spread = scene.errors.quantile(torch.tensor([0.1, 0.9], dtype=scene.errors.dtype))
    middle = scene.errors.mean()
    reach = (spread - middle).abs().unsqueeze(1)
    left.errorbar(
        [scene.module.products],
        [middle],
        reach,
        color=MODEL,
        fmt="o",
        ms=4,
        capsize=4,
        label="model (bar: 80 % of the cases)",
    )
    left.set_yscale("log")
    left.set_xlabel("products with the matrix", fontsize=8)
    left.set_ylabel("mean error", fontsize=8)
    left.legend(fontsize=7, frameon=False)
    _plain(left)
    _below(right, scene)


def _sparse(figure: Figure, scene: Scene) -> None:
    """The unknowns that are not 0: of the optimum, and of the model."""
    chosen = scene.typical(0.1, 0.5, 0.9)
    cases = scene.only([at for _, at in chosen])
    b, penalty = cases["b"], cases["penalty"]
    said = scene.module(b.float(), penalty.float())
    (best,) = lasso.fista(b, penalty, FISTA_ITERATIONS, columns=said.shape[1])
    for row, (axes, (name, at)) in enumerate(
        zip(figure.subplots(PANELS, 1, sharex=True), chosen, strict=True)
    ):
        for x, color, width, label in (
            (best[row], TRUTH, 5.0, "optimum"),
            (said[row], MODEL, 1.5, "model"),
        ):
            there = x.nonzero()[:, 0]
            axes.vlines(there, 0, x[there], color=color, lw=width, label=label)
        axes.axhline(0, color=DATA, lw=0.5)
        _plain(axes, f"{name}: duality gap {float(scene.errors[at]):.2g}")
    figure.axes[0].legend(fontsize=7, frameon=False, ncols=2)
    figure.axes[-1].set_xlabel("unknown", fontsize=8)


def _tours(figure: Figure, scene: Scene) -> None:
    """The shortest tour, and the one the model finds."""
    chosen = scene.typical(0.5, 0.95, 1.0)
    cities = scene.only([at for _, at in chosen])["cities"]
    best = tours.shortest(cities)
    found = scene.module(cities.float()).clamp_min(0)
    rows = torch.arange(len(cities))
    found = found[rows, tours.length(cities, found).argmin(1)]
    for row, (axes, (name, at)) in enumerate(zip(figure.subplots(1, PANELS), chosen, strict=True)):
        for tour, color, width, label in (
            (best[row], TRUTH, 6.0, "shortest"),
            (found[row], MODEL, 1.2, "model"),
        ):
            way = cities[row][torch.cat((tour, tour[:1]))]
            axes.plot(way[:, 0], way[:, 1], color=color, lw=width, label=label)
        axes.plot(cities[row, :, 0], cities[row, :, 1], "o", color="black", ms=4)
        axes.set_aspect("equal")
        error = float(scene.errors[at])
        _plain(axes, f"{name}: " + (f"{100 * error:.2g} % longer" if error else "the shortest"))
        axes.axis("off")
    figure.axes[0].legend(fontsize=7, frameon=False)


# ── the well, and sums ──


def _well(figure: Figure, scene: Scene) -> None:
    """The potential with its three lowest levels, and where the particle is in them."""
    chosen = scene.typical(0.1, 0.5, 0.9)
    cases = scene.only([at for _, at in chosen])
    potential = cases["potential"]
    said = scene.module(potential.float())
    levels, waves = torch.linalg.eigh(energies.kinetic() + torch.diag_embed(potential))
    x = energies.points()
    for row, (axes, (name, at)) in enumerate(zip(figure.subplots(1, PANELS), chosen, strict=True)):
        axes.plot(x, potential[row], color=DATA, lw=1.2, label="potential")
        room = float(levels[row, 2] - levels[row, 0]) / 2
        for level in range(energies.LEVELS):
            true, model = float(levels[row, level]), float(said[row, level])
            density = waves[row, :, level].square()
            axes.fill_between(
                x, true, true + density * room / density.amax(), color=TRUTH, alpha=0.5
            )
            axes.axhline(true, color=TRUTH, lw=3, label="truth" if not level else None)
            axes.axhline(model, color=MODEL, lw=1.0, ls="--", label="model" if not level else None)
        axes.set_ylim(float(potential[row].amin()) - room / 2, float(levels[row, 2]) + 2 * room)
        axes.set_xlim(-5, 5)
        axes.set_xlabel("x, bohr", fontsize=8)
        _plain(axes, f"{name}: off by {1_000 * float(scene.errors[at]):.2g} mHa")
    figure.axes[0].set_ylabel("hartree", fontsize=8)
    figure.axes[0].legend(fontsize=7, frameon=False, loc="upper right")


def _sums(figure: Figure, scene: Scene) -> None:
    """Every held-out sum, right or wrong; some of them are written out, wrong ones first."""
    assert isinstance(scene.module, addition.Decoder)
    prompt, answer = scene.cases["prompt"], scene.cases["answer"]
    said = scene.module.answer(prompt)
    digits = (prompt.shape[1] - 2) // 2
    a, b = (_number(each.flip(1)) for each in (prompt[:, :digits], prompt[:, digits + 1 : -1]))
    is_wrong = (said != answer).any(1)
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    for which, color, label in ((~is_wrong, TRUTH, "right"), (is_wrong, WRONG, "wrong")):
        count = int(which.sum())
        left.plot(a[which], b[which], "s", ms=3, color=color, label=f"{label}: {count:,}")
    left.set_xlabel("a", fontsize=8)
    left.set_ylabel("b", fontsize=8)
    left.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    _plain(left, f"{len(a):,} sums a + b that were held out of training")
    right.axis("off")
    first = is_wrong.int().argsort(descending=True, stable=True)[:SUMS_LISTED].tolist()
    for line, at in enumerate(first):
        total, told = int(_number(answer[at : at + 1])), _written(said[at])
        wrong = bool(is_wrong[at])
        text = f"{int(a[at])} + {int(b[at])} = {told}" + (f", not {total}" if wrong else "")
        height = 1 - line / SUMS_LISTED
        color = WRONG if wrong else "black"
        right.text(0, height, text, color=color, family="monospace", fontsize=8, va="top")


def _number(digits: torch.Tensor) -> torch.Tensor:
    """Digits [n, places], the least significant first, to numbers [n]."""
    return (digits * 10 ** torch.arange(digits.shape[1])).sum(1)


def _written(digits: torch.Tensor) -> str:
    """As a person would write them; what is no digit stands as the sign it is."""
    return "".join("0123456789+="[digit] for digit in digits.flip(0).tolist()).lstrip("0") or "0"


# ── whatever else ──


def _shares(figure: Figure, scene: Scene) -> None:
    _below(figure.subplots(1, 1), scene)


def _below(axes: Axes, scene: Scene) -> None:
    """The share of the cases below an error: of the model, and of what needs no learning."""
    share = torch.arange(1, len(scene.errors) + 1) / len(scene.errors)
    for name, found in scene.specialist.baseline_errors(scene.cases).items():
        axes.plot(found.sort().values, share, lw=1.0, label=name)
    axes.plot(scene.errors.sort().values, share, color=MODEL, lw=2.5, label="model")
    axes.axvline(scene.specialist.tolerance, color=DATA, ls=":", lw=0.8, label="tolerance")
    axes.set_xscale("log")
    axes.set_xlabel(f"error: {scene.specialist.unit}", fontsize=8)
    axes.set_ylabel("share of the cases below it", fontsize=8)
    axes.legend(fontsize=7, frameon=False)
    _plain(axes)


_KINDS: dict[str, Callable[[Figure, Scene], None]] = {
    "root-math": _sums,
    "math-physics": _flow,
    "math-statistics": _posterior,
    "math-optimization": _convergence,
    "physics-fluid": _flow,
    "physics-quantum": _well,
    "stats-bayesian": _filter,
    "stats-time-series": _forecast,
    "opt-convex": _sparse,
    "opt-discrete": _tours,
}
