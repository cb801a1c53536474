"""math-physics: what advection and diffusion make of a field on a circle."""

from collections.abc import Sequence

import torch

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

SHIFT, MORE_WAVES = 1.25, 2
"""How far beyond the training ranges shifted inputs go."""
ORDINARY_WAVE = 1.5
"""The logarithm of a middling wave: logarithms are taken from here, so that inputs are near 0."""


class Advection:
    """u_t + v u_x = nu u_xx on the circle [0, 1), from u_0 at t = 0 to t = 1.

    Viscosity nu is log-uniform from viscosity_least to viscosity_ratio times that (1e-3 to 1e-2);
    speed v is uniform in +-speed_max (0.25); u_0 is made of six random waves (operators).
    The truth is exact for fields of so few waves: mode k is multiplied by
    exp(-nu (2 pi k)^2 - i 2 pi k v), in float64. Another end is another viscosity and speed, so
    there is no parameter for it. The error is |said - truth| / |truth| over the 128 points.

    Cases hold inputs [count, 3, 128] (operators.CHANNELS) and truth [count, 128].

    Mean error (share within tolerance) on 2,048 cases, median of three trainings: "fno" of width 24
    (121,185 numbers) 0.0124 (0.87) after 1,152 steps, 0.037 after 300, 0.19 after 100;
    "learned-multiplier" of width 16 (114 numbers) 0.0009 (1.00) after 28,630 steps of an eighth of
    the time, 0.0025 after 5,000. Without conditions the operator had 0.114 after 300, not 0.050, at
    half the learning rate.
    """

    name = "math-physics"
    unit = "relative L2 error of u at t = 1"
    trivial_error = 1.0
    tolerance = 0.02
    baseline_of_record = "trivial"
    batch_size = 32
    learning_rate = 8e-3
    hidden_max = None

    def __init__(
        self, *, viscosity_least: float, viscosity_ratio: float, speed_max: float, waves: float
    ) -> None:
        self._viscosity = (viscosity_least, viscosity_ratio)
        self._speed_max = speed_max
        self._waves = int(waves)

    @property
    def inputs(self) -> tuple[Field, ...]:
        """The field at t = 0, and what carries and what spreads it."""
        least, ratio = self._viscosity
        return (
            operators.START,
            operators.viscosity_field(least, ratio),
            Field(
                "speed",
                "the speed at which it is carried, rounds of the circle in a unit of time",
                "سرعة انتقاله، دورات حول الدائرة في وحدة الزمن",
                least=-self._speed_max,
                most=self._speed_max,
            ),
        )

    answers = (
        Field(
            "field", "u at t = 1 on the same points", "قيم u عند t = 1 على النقاط نفسها", (POINTS,)
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
        fields = operators.draw_fields(draw, count, self._waves)
        viscosity = operators.draw_viscosity(draw, count, *self._viscosity).unsqueeze(1)
        share = torch.rand(count, 1, generator=draw, dtype=torch.float64)
        speed = self._speed_max * (2 * share - 1)
        return {
            "inputs": operators.inputs_of(fields, viscosity, speed),
            "truth": carry(operators.diffuse(fields, viscosity), speed),
        }

    def shifted(self, seed: int, count: int) -> Cases | None:
        """Fields of two more waves, of viscosities from the greatest trained to 1.25 times that,
        carried at up to 1.25 times the greatest speed."""
        least, ratio = self._viscosity
        beyond = Advection(
            viscosity_least=least * ratio,
            viscosity_ratio=SHIFT,
            speed_max=SHIFT * self._speed_max,
            waves=self._waves + MORE_WAVES,
        )
        return beyond._draw(seeds.generator(self.name, "shifted", seed), count)

    def build(self, config: Config) -> torch.nn.Module:
        """A fresh map of fields, "fno" or "learned-multiplier"."""
        match config.family:
            case "fno":
                return operators.Fno(**sizes.read(config, operators.FNO_BOUNDS))
            case "learned-multiplier":
                return LearnedMultiplier(**sizes.read(config, {"width": (4, 64)}))
        raise sizes.unknown_family(config, self.name, ("fno", "learned-multiplier"))

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
        """What half the physics, or a coarse grid, gives.

        "trivial": u = 0, exactly 1. "transport alone" and "diffusion alone": the exact solution
        without the other, 0.94 and 0.93. "finite differences": second-order central differences on
        the 128 points, exact in time, 0.003.
        """
        inputs, truth = cases["inputs"], cases["truth"]
        fields, speed = inputs[:, 0], inputs[:, 2, :1]
        viscosity = operators.viscosity_of(inputs)
        said = {
            "trivial": torch.zeros_like(truth),
            "transport alone": carry(fields, speed),
            "diffusion alone": operators.diffuse(fields, viscosity),
            "finite differences": _central_differences(fields, viscosity, speed),
        }
        return {name: operators.relative_l2(each, truth) for name, each in said.items()}

    def families(self, role: Role) -> list[Config]:
        """Neural operators for the evolver, a learned multiplier of modes to replace them."""
        if role == "evolver":
            return [
                Config(family="fno", sizes={"width": 24, "modes": 24, "layers": 4}),
                Config(family="fno", sizes={"width": 16, "modes": 16, "layers": 4}),
            ]
        return [
            Config(family="learned-multiplier", sizes={"width": 16}),
            Config(family="learned-multiplier", sizes={"width": 8}),
        ]

    def asked(self, cases: Cases) -> Inputs:
        """Fields, viscosities and speeds of the inputs."""
        inputs = cases["inputs"]
        viscosity = operators.viscosity_of(inputs).squeeze(1)
        return {"field": inputs[:, 0], "viscosity": viscosity, "speed": inputs[:, 2, 0]}

    def answer(self, module: torch.nn.Module, inputs: Inputs) -> Answers:
        """The field at the end."""
        fields, viscosity = inputs["field"], inputs["viscosity"].unsqueeze(1)
        made = operators.inputs_of(fields, viscosity, inputs["speed"].unsqueeze(1))
        return {"field": module(made.float())}

    def probe(self) -> tuple[torch.Tensor, ...]:
        """The inputs of one case, float32 [1, 3, 128]."""
        return (self.cases(0, 1)["inputs"].float(),)


def carry(fields: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
    """Fields [n, points] moved by distance [n, 1], exactly for what the points can tell."""
    points = fields.shape[1]
    angle = operators.wave_numbers(points) * distance
    turned = operators.modes_of(fields) * torch.polar(torch.ones_like(angle), -angle)
    return operators.fields_of(turned, points)


def _central_differences(
    fields: torch.Tensor, viscosity: torch.Tensor, speed: torch.Tensor
) -> torch.Tensor:
    """u_x as (u_(j+1) - u_(j-1)) / 2h and u_xx as (u_(j+1) - 2 u_j + u_(j-1)) / h^2, exact in time.

    Every mode is an eigenvector of both, so it is multiplied by one number.
    """
    step = operators.wave_numbers(POINTS) / POINTS
    decay = viscosity * POINTS**2 * 2 * (1 - step.cos())
    angle = speed * POINTS * step.sin()
    moved = operators.modes_of(fields) * torch.polar(torch.exp(-decay), -angle)
    return operators.fields_of(moved, POINTS)


class LearnedMultiplier(torch.nn.Module):
    """Multiplies mode k by exp(-decay - i speed turn), float32 [n, 3, 128] -> [n, 128].

    One perceptron learns log decay from the logarithms of viscosity and k, another log turn from
    that of k. That the map is linear and the same at every place is built in, the law is not.
    """

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.decay = _perceptron(2, width)
        self.turn = _perceptron(1, width)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        fields, level, speed = inputs[:, 0], inputs[:, 1, :1], inputs[:, 2, :1]
        waves = POINTS // 2
        wave = torch.arange(1, waves + 1, dtype=fields.dtype, device=fields.device)
        wave = wave.log() - ORDINARY_WAVE
        shape = (len(fields), waves)
        known = torch.stack((level.expand(shape), wave.expand(shape)), 2)
        decay = self.decay(known).squeeze(2).exp()
        turn = self.turn(wave.unsqueeze(1)).squeeze(1).exp()
        modes = operators.modes_of(fields)
        others = modes[:, 1:] * torch.polar(torch.exp(-decay), -speed * turn)
        return operators.fields_of(torch.cat((modes[:, :1], others), 1), POINTS)


def _perceptron(inputs: int, width: int) -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Linear(inputs, width), torch.nn.Tanh(), torch.nn.Linear(width, 1)
    )
