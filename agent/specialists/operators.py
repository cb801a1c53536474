"""What the specialists of flows on a circle share: fields, errors, and learned maps of fields.

A field is a function on the circle [0, 1), known at 128 equally spaced points.
"""

import functools
import math

import torch
from torch.nn import functional

from agent.specialists.base import Field

POINTS = 128
CHANNELS = 3
"""Of an input: the field, log10(viscosity) + 2, and the speed at which it is carried."""
TAPS = 5
HEAD_WIDTH = 64
CONDITION_WIDTH = 32
FNO_BOUNDS = {"width": (4, 64), "modes": (1, POINTS // 2), "layers": (1, 8)}
CNN_BOUNDS = {"width": (4, 64), "layers": (1, 6)}


START = Field(
    "field",
    "u at t = 0 at 128 equally spaced points of the circle, between -1 and 1, with a mean of 0",
    "قيم u عند t = 0 على 128 نقطة متساوية التباعد من الدائرة، بين -1 و1، ومتوسطها 0",
    (POINTS,),
    least=-1.0,
    most=1.0,
)


def viscosity_field(least: float, ratio: float) -> Field:
    """The viscosity, within what models are trained on."""
    return Field(
        "viscosity",
        f"the viscosity, squares of rounds in a unit of time, {least:g} to {least * ratio:g}",
        f"اللزوجة، مربع الدورات في وحدة الزمن، من {least:g} إلى {least * ratio:g}",
        least=least,
        most=least * ratio,
    )


# ── fields ──


def draw_fields(
    draw: torch.Generator, count: int, waves: int, points: int = POINTS
) -> torch.Tensor:
    """Random fields, float64 [count, points]: the sum of a_k sin(2 pi k x + phase_k), k = 1..waves.

    a_k is normal with deviation 1 / k, the phase uniform; the sum is scaled to a largest size of 1
    on the 128 points, of which `points` is a multiple.
    """
    size = torch.randn(count, waves, generator=draw, dtype=torch.float64)
    size = size / torch.arange(1, waves + 1, dtype=torch.float64)
    phase = 2 * math.pi * torch.rand(count, waves, generator=draw, dtype=torch.float64)
    fields = torch.cat((size * phase.cos(), size * phase.sin()), 1) @ _modes(waves, points)
    return fields / fields[:, :: points // POINTS].abs().amax(1, keepdim=True)


@functools.lru_cache(maxsize=8)
def _modes(waves: int, points: int) -> torch.Tensor:
    """sin(2 pi k x) for k = 1..waves, then cos(2 pi k x): float64 [2 waves, points]."""
    with torch.inference_mode(False):  # kept for training too, whoever asks first
        x = torch.arange(points, dtype=torch.float64) / points
        wave = torch.arange(1, waves + 1, dtype=torch.float64).unsqueeze(1)
        angle = 2 * math.pi * wave * x
        return torch.cat((angle.sin(), angle.cos()))


def draw_viscosity(draw: torch.Generator, count: int, least: float, ratio: float) -> torch.Tensor:
    """Viscosities, float64 [count], log-uniform from `least` to `ratio` times that."""
    share = torch.rand(count, generator=draw, dtype=torch.float64)
    return least * torch.exp(math.log(ratio) * share)


def viscosity_of(inputs: torch.Tensor) -> torch.Tensor:
    """The viscosity [n, 1] that inputs [n, 3, 128] tell of."""
    return 10 ** (inputs[:, 1, :1] - 2)


def wave_numbers(points: int) -> torch.Tensor:
    """2 pi k of the modes that `modes_of` finds in so many points, float64."""
    return 2 * math.pi * torch.arange(points // 2 + 1, dtype=torch.float64)


def modes_of(fields: torch.Tensor) -> torch.Tensor:
    """The complex modes [..., points / 2 + 1] of fields [..., points], at least in float32: there
    is no transform of bfloat16."""
    if fields.dtype == torch.bfloat16:
        fields = fields.float()
    modes: torch.Tensor = torch.fft.rfft(fields)
    return modes


def fields_of(modes: torch.Tensor, points: int) -> torch.Tensor:
    """The fields [..., points] that have these modes, and no higher ones."""
    fields: torch.Tensor = torch.fft.irfft(modes, n=points)
    return fields


def diffuse(fields: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """The heat equation: fields [n, points] after viscosity x time = amount [n, 1], exactly."""
    points = fields.shape[1]
    kept = torch.exp(-amount * wave_numbers(points).square())
    return fields_of(modes_of(fields) * kept, points)


def inputs_of(fields: torch.Tensor, viscosity: torch.Tensor, speed: torch.Tensor) -> torch.Tensor:
    """Inputs [n, 3, 128] of fields [n, 128], viscosity [n, 1], and speed [n, 1] or [n, 128]."""
    level = viscosity.log10() + 2
    return torch.stack((fields, level.expand_as(fields), speed.expand_as(fields)), 1)


def relative_l2(said: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """|said - truth| / |truth| of each field: [n, points] twice give [n]."""
    error: torch.Tensor = (said - truth).norm(dim=1) / truth.norm(dim=1)
    return error


# ── maps of fields ──


class Fno(torch.nn.Module):
    """A Fourier neural operator (Li et al. 2021), float32 [n, 3, 128] -> [n, 128].

    A layer takes x to gelu(scale (mix(x) + spectral(x)) + shift). A perceptron makes scale and
    shift of each channel from the means of the last two inputs (FiLM, Perez et al. 2018): viscosity
    and speed multiply the modes of the truth, which sums of channels alone learn slowly.
    """

    def __init__(self, *, width: int, modes: int, layers: int) -> None:
        super().__init__()
        self.lift = torch.nn.Conv1d(CHANNELS, width, 1)
        self.spectral = torch.nn.ModuleList(Spectral(width, modes) for _ in range(layers))
        self.mix = torch.nn.ModuleList(torch.nn.Conv1d(width, width, 1) for _ in range(layers))
        self.condition = torch.nn.Sequential(
            torch.nn.Linear(CHANNELS - 1, CONDITION_WIDTH),
            torch.nn.GELU(),
            torch.nn.Linear(CONDITION_WIDTH, layers * 2 * width),
        )
        self.head = torch.nn.Sequential(
            torch.nn.Conv1d(width, HEAD_WIDTH, 1),
            torch.nn.GELU(),
            torch.nn.Conv1d(HEAD_WIDTH, 1, 1),
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        conditions = self.condition(inputs[:, 1:].mean(2))
        conditions = conditions.view(len(inputs), len(self.mix), 2, -1, 1)
        x = self.lift(inputs)
        for layer, (mix, spectral) in enumerate(zip(self.mix, self.spectral, strict=True)):
            scale, shift = conditions[:, layer].unbind(1)
            x = functional.gelu((1 + scale) * (mix(x) + spectral(x)) + shift)
        told: torch.Tensor = self.head(x).squeeze(1)
        return told


class Spectral(torch.nn.Module):
    """Mixes the channels of each of the lowest modes, [n, width, points] to the same.

    Each mode has a complex matrix of its own, kept as real numbers (the last dimension: real,
    imaginary): safetensors know no complex ones.
    """

    def __init__(self, width: int, modes: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(modes, width, width, 2) / width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = modes_of(x)[:, :, : len(self.weight)].permute(2, 0, 1)
        mixed = (low @ torch.view_as_complex(self.weight)).permute(1, 2, 0)
        return fields_of(mixed, x.shape[2])


class CircularCnn(torch.nn.Module):
    """Residual convolutions around the circle, float32 [n, 3, 128] -> [n, 128].

    Five taps each, 1, 2, 4, ... points apart: six layers see the whole circle.
    """

    def __init__(self, *, width: int, layers: int) -> None:
        super().__init__()
        self.lift = torch.nn.Conv1d(CHANNELS, width, 1)
        self.convolutions = torch.nn.ModuleList(
            torch.nn.Conv1d(
                width,
                width,
                TAPS,
                dilation=2**layer,
                padding=(TAPS // 2) * 2**layer,
                padding_mode="circular",
            )
            for layer in range(layers)
        )
        self.head = torch.nn.Sequential(
            torch.nn.Conv1d(width, width, 1), torch.nn.GELU(), torch.nn.Conv1d(width, 1, 1)
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        x = self.lift(inputs)
        for convolution in self.convolutions:
            x = x + functional.gelu(convolution(x))
        told: torch.Tensor = self.head(x).squeeze(1)
        return told
