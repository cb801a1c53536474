"""physics-fluid: what the viscous Burgers equation makes of a field on a circle."""

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from agent.specialists import ensembles, operators, seeds, sizes
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
from agent.specialists.operators import POINTS

FINE_POINTS = 512
LONGEST_STEP = 3.0
"""Of `split_steps`, in viscosities: beyond it transport grows waves faster than diffusion damps."""
SHIFT, MORE_WAVES = 1.25, 2
"""How far beyond the training ranges shifted inputs go."""
TURNS = 2
SCORE_WAVES = 24
SCORE_SCALE = 1 / 16
STEEPNESS = 10.0
QUICKNESS = 8.0


class Burgers:
    """u_t + u u_x = nu u_xx on the circle [0, 1), from u_0 at t = 0 to t = final_time (0.5).

    Viscosity nu is log-uniform from viscosity_least to viscosity_ratio times that (0.01 to 0.05);
    u_0 is made of six random waves (operators), so its mean is 0 and its largest size 1.
    The truth is that of Hopf (1950) and Cole (1951), on 512 points in float64; see `cole_hopf`.
    The error is |said - truth| / |truth| over 128 points.

    Cases hold inputs [count, 3, 128] (operators.CHANNELS; the speed is u_0 itself, as the equation
    has it) and truth [count, 128]. The shapes are those of math-physics, so that a model of it can
    be started from.

    Mean error (share within tolerance) on 2,048 cases, median of three trainings: "fno" of width 24
    (121,185 numbers) 0.0093 (0.93) after 825 steps; "weighted-origins" (594 numbers) 0.0060 (0.97)
    after 796 steps of a quarter of the time. One training each: "circular-cnn" (18,145) 0.0104
    (0.89) after 796; "weighted-origins" 0.0027 (1.00) after 4,000, where coarse `split_steps` come
    to 0.004. Nothing learned here replaces a solver.
    """

    name = "physics-fluid"
    unit = "relative L2 error of u at the final time"
    trivial_error = 1.0
    tolerance = 0.02
    baseline_of_record = "linear heat"
    batch_size = 32
    learning_rate = 8e-3
    hidden_max = None

    def __init__(
        self, *, viscosity_least: float, viscosity_ratio: float, final_time: float, waves: float
    ) -> None:
        self._viscosity = (viscosity_least, viscosity_ratio)
        self._final_time = final_time
        self._waves = int(waves)
        self._steps = math.ceil(final_time / (LONGEST_STEP * viscosity_least))

    @property
    def inputs(self) -> tuple[Field, ...]:
        """The field at t = 0, of mean 0, and its viscosity."""
        return (operators.START, operators.viscosity_field(*self._viscosity))

    @property
    def answers(self) -> tuple[Field, ...]:
        """The field at the end."""
        time = f"{self._final_time:g}"
        return (
            Field(
                "field",
                f"u at t = {time} on the same points",
                f"قيم u عند t = {time} على النقاط نفسها",
                (POINTS,),
            ),
        )

    def train_batch(self, seed: int, step: int) -> Batch:
        """Fresh fields with the truth, float32."""
        drawn = self._draw(seeds.generator(self.name, "train", seed, step), self.batch_size)
        return {name: tensor.float() for name, tensor in drawn.items()}

    def cases(self, seed: int, count: int, split: Split = "validation") -> Cases:
        """Fresh fields with the truth, float64."""
        return self._draw(seeds.generator(self.name, split, seed), count)

    def _draw(self, draw: torch.Generator, count: int) -> dict[str, torch.Tensor]:
        fine = operators.draw_fields(draw, count, self._waves, FINE_POINTS)
        viscosity = operators.draw_viscosity(draw, count, *self._viscosity).unsqueeze(1)
        every = FINE_POINTS // POINTS
        fields = fine[:, ::every]
        return {
            "inputs": operators.inputs_of(fields, viscosity, fields),
            "truth": cole_hopf(fine, viscosity, self._final_time)[:, ::every],
        }

    def shifted(self, seed: int, count: int) -> Cases | None:
        """Fields of two more waves, of viscosities from the greatest trained to 1.25 times that:
        below the least the truth would be less exact."""
        least, ratio = self._viscosity
        beyond = Burgers(
            viscosity_least=least * ratio,
            viscosity_ratio=SHIFT,
            final_time=self._final_time,
            waves=self._waves + MORE_WAVES,
        )
        return beyond._draw(seeds.generator(self.name, "shifted", seed), count)

    def build(self, config: Config) -> torch.nn.Module:
        """A fresh map of fields: "fno", "circular-cnn" or "weighted-origins"."""
        match config.family:
            case "fno":
                return operators.Fno(**sizes.read(config, operators.FNO_BOUNDS))
            case "circular-cnn":
                return operators.CircularCnn(**sizes.read(config, operators.CNN_BOUNDS))
            case "weighted-origins":
                return WeightedOrigins(**sizes.read(config, {"width": (4, 64)}))
        known = ("fno", "circular-cnn", "weighted-origins")
        raise sizes.unknown_family(config, self.name, known)

    def ensemble(self, members: Sequence[torch.nn.Module]) -> ensembles.Ensemble:
        """The mean of what they say."""
        return ensembles.Ensemble(members)

    def loss(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The mean error itself."""
        return operators.relative_l2(module(batch["inputs"]), batch["truth"]).mean()

    def outputs(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Fields [count, 128]."""
        said: torch.Tensor = module(batch["inputs"])
        return said

    def distance(self, outputs: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
        """Mean relative L2 distance."""
        return operators.relative_l2(outputs, taught).mean()

    def errors(self, module: torch.nn.Module, cases: Cases) -> torch.Tensor:
        """Relative L2 error of each case, float64 [count]."""
        return operators.relative_l2(module(cases["inputs"].float()).double(), cases["truth"])

    def baseline_errors(self, cases: Cases) -> dict[str, torch.Tensor]:
        """What is said without the nonlinearity, or with coarse steps.

        "trivial": u = 0, exactly 1. "linear heat": diffusion alone, exact, 0.41. "split steps":
        17 steps of exact diffusion and spectral transport on the 128 points, 0.004; up to
        67 steps for less viscosity or a later end.
        """
        inputs, truth = cases["inputs"], cases["truth"]
        fields, viscosity = inputs[:, 0], operators.viscosity_of(inputs)
        said = {
            "trivial": torch.zeros_like(truth),
            "linear heat": operators.diffuse(fields, viscosity * self._final_time),
            "split steps": split_steps(fields, viscosity, self._final_time, self._steps),
        }
        return {name: operators.relative_l2(each, truth) for name, each in said.items()}

    def families(self, role: Role) -> list[Config]:
        """Neural operators for the evolver; weighted origins, or convolutions, to replace them."""
        if role == "evolver":
            return [
                Config(family="fno", sizes={"width": 24, "modes": 24, "layers": 4}),
                Config(family="fno", sizes={"width": 16, "modes": 16, "layers": 4}),
            ]
        return [
            Config(family="weighted-origins", sizes={"width": 8}),
            Config(family="circular-cnn", sizes={"width": 24, "layers": 6}),
        ]

    def asked(self, cases: Cases) -> Inputs:
        """Fields and viscosities of the inputs."""
        inputs = cases["inputs"]
        viscosity = operators.viscosity_of(inputs).squeeze(1)
        return {"field": inputs[:, 0], "viscosity": viscosity}

    def answer(self, module: torch.nn.Module, inputs: Inputs) -> Answers:
        """The field at the end."""
        fields, viscosity = inputs["field"], inputs["viscosity"].unsqueeze(1)
        made = operators.inputs_of(fields, viscosity, fields)
        return {"field": module(made.float())}

    def probe(self) -> tuple[torch.Tensor, ...]:
        """The inputs of one case, float32 [1, 3, 128]."""
        return (self.cases(0, 1)["inputs"].float(),)


def cole_hopf(fields: torch.Tensor, viscosity: torch.Tensor, time: float) -> torch.Tensor:
    """The exact u at `time`, float64 [n, points], from u_0 [n, points] of mean 0; viscosity [n, 1].

    u = -2 nu phi_x / phi, where phi_t = nu phi_xx and phi_0 = exp(-integral of u_0 / 2 nu).
    The exponent is counted from its largest value, so that exp never overflows. What is lost is
    what float64 cannot hold beside that: more points do not help where nu and time are small. Of
    the integral itself, summed without cancelling, this is at most 2e-11 off for viscosities from
    0.01 and ends from 0.25 on, and 2e-5 at 0.005 (worst of 96 fields each); at 0.003 it fails.
    """
    points = fields.shape[1]
    derivative = 1j * operators.wave_numbers(points)
    modes = operators.modes_of(fields)
    integral = torch.cat((torch.zeros_like(modes[:, :1]), modes[:, 1:] / derivative[1:]), 1)
    exponent = operators.fields_of(integral, points) / (-2 * viscosity)
    heated = operators.modes_of(torch.exp(exponent - exponent.amax(1, keepdim=True)))
    heated = heated * torch.exp(viscosity * time * derivative.square().real)
    phi, slope = (operators.fields_of(each, points) for each in (heated, heated * derivative))
    return -2 * viscosity * slope / phi


def split_steps(
    fields: torch.Tensor, viscosity: torch.Tensor, time: float, steps: int
) -> torch.Tensor:
    """u at `time` by splitting (Strang 1968): half a step's diffusion, its transport, the rest.

    Diffusion is exact, transport a step of Heun's for u_t = -(u^2 / 2)_x, differentiated by FFT.
    """
    points = fields.shape[1]
    step = time / steps
    derivative = 1j * operators.wave_numbers(points)

    def change(u: torch.Tensor) -> torch.Tensor:
        return operators.fields_of(
            operators.modes_of(u.square()) * (-step / 2 * derivative), points
        )

    u = fields
    for _ in range(steps):
        u = operators.diffuse(u, viscosity * step / 2)
        first = change(u)
        u = u + (first + change(u + first)) / 2
        u = operators.diffuse(u, viscosity * step / 2)
    return u


class WeightedOrigins(torch.nn.Module):
    """A mean of velocities over where the flow may come from, float32 [n, 3, 128] -> [n, 128].

    u(x) is the mean of velocity(y - x) with the weights exp(a score(y) + b window(y - x)), where y
    runs over two turns around x. Learned are the kernel whose correlation with u_0 is the score (as
    24 waves), the tables `window` and `velocity` of the displacement, and a and b, by a perceptron
    of the viscosity. The Cole-Hopf solution is of this form (window -d^2, velocity -d / time);
    training starts from another, told only that nearer origins weigh more and that flow comes from
    behind: told the opposite, it stays at 0.28.
    """

    waveforms: torch.Tensor

    def __init__(self, *, width: int) -> None:
        super().__init__()
        wave = torch.arange(1, SCORE_WAVES + 1, dtype=torch.float32).unsqueeze(1)
        angle = 2 * math.pi * wave * torch.arange(POINTS) / POINTS
        forms = torch.stack((angle.cos() / wave, angle.sin() / wave)) * SCORE_SCALE
        self.register_buffer("waveforms", forms, persistent=False)
        displacement = torch.arange(-TURNS * POINTS // 2, TURNS * POINTS // 2) / POINTS
        # Divided by QUICKNESS and multiplied again in use, so that one learning rate serves these
        # numbers, which must go far, and the perceptron.
        self.score = torch.nn.Parameter(0.1 / QUICKNESS * torch.randn(2, SCORE_WAVES, 1))
        self.window = torch.nn.Parameter(-STEEPNESS / QUICKNESS * displacement.abs())
        self.velocity = torch.nn.Parameter(-torch.sin(math.pi * displacement) / QUICKNESS)
        self.sharpness = torch.nn.Sequential(
            torch.nn.Linear(1, width), torch.nn.Tanh(), torch.nn.Linear(width, 2)
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        fields, level = inputs[:, 0], inputs[:, 1, :1]
        a, b = self.sharpness(level).exp().split(1, 1)
        kernel = QUICKNESS * (self.score * self.waveforms).sum((0, 1))
        score = a * functional.linear(_windows(fields), kernel)
        origins = (score - score.amax(1, keepdim=True)).exp()
        window = QUICKNESS * (self.window - self.window.amax())
        near = torch.exp(b * window)
        # Two circular correlations of each case with tables of its own: groups of one convolution.
        tables = torch.stack((near, QUICKNESS * self.velocity * near), 1).flatten(0, 1)
        around = torch.cat((*(origins for _ in range(TURNS)), origins[:, :-1]), 1)
        sums = functional.conv1d(around.unsqueeze(0), tables.unsqueeze(1), groups=len(fields))
        weight, flow = sums.view(len(fields), 2, POINTS).unbind(1)
        return flow / weight.clamp_min(torch.finfo(weight.dtype).tiny)


def _windows(fields: torch.Tensor) -> torch.Tensor:
    """[n, 128] seen from each point on: [n, 128, 128], the second index counts from the first."""
    return torch.cat((fields, fields[:, :-1]), 1).unfold(1, POINTS, 1)
