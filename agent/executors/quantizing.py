"""Quantization: the int8 form of a model that was trained in float32, where that is smaller."""

import shutil
from pathlib import Path

import msgspec
import torch

from agent import checkpoints
from agent.executors import jobs, pace
from agent.specialists import evaluation, forms
from agent.specialists.base import Cases, Config, Specialist
from core import errors


class NotSmaller(errors.TrainingError):
    """The int8 form of a model has as many bytes as the model."""


def quantized(
    result: jobs.Result,
    specialist: Specialist,
    module: torch.nn.Module,
    config: Config,
    cases: Cases,
    folder: Path,
    states: Path,
) -> jobs.Result:
    """The result of a model in float32 with its int8 form, written into `folder`, in its place.

    Raises NotSmaller, and leaves no folder, where that saves no bytes.
    """
    small = forms.in_int8(module)
    config = msgspec.structs.replace(config, form=forms.INT8)
    written = checkpoints.write_candidate(folder, small, config, states)
    if written.bytes >= result.bytes:
        shutil.rmtree(folder, ignore_errors=True)
        raise NotSmaller(
            f"quantized, this model has {written.bytes} bytes, and had {result.bytes}: it has "
            "too few linear layers to become smaller"
        )
    measured = evaluation.evaluate(specialist, small, cases, result.micro_batch)
    before_ms, now_ms = pace.latencies_ms([module, small], specialist.probe())
    return msgspec.structs.replace(
        result,
        loss=measured.loss,
        evidence_rate=measured.evidence_rate,
        bytes=written.bytes,
        weights_sha256=written.sha256,
        candidate_directory=str(folder),
        latency_ms=now_ms,
        float_loss=result.loss,
        float_bytes=result.bytes,
        float_latency_ms=before_ms,
    )
