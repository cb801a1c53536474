"""What an executor may use of its machine."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from agent import limits
from core import platforms


def container(folder: Path, monkeypatch: pytest.MonkeyPatch, **files: str) -> None:
    """Be in a control group with these files; a double underscore stands for a folder."""
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_of_", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    monkeypatch.setattr(limits, "_CGROUP", folder)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu_of_max": "800000 100000\n"}, 8),
        ({"cpu_of_max": "50000 100000\n"}, 1),
        ({"cpu_of_max": "max 100000\n"}, 64),
        ({"cpu__cpu_of_cfs_quota_us": "400000\n", "cpu__cpu_of_cfs_period_us": "100000\n"}, 4),
        ({"cpu__cpu_of_cfs_quota_us": "-1\n", "cpu__cpu_of_cfs_period_us": "100000\n"}, 64),
        ({}, 64),
    ],
)
def test_the_cores_of_a_container_are_those_it_may_use(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    container(tmp_path, monkeypatch, **files)
    assert limits.cores() == cores


@pytest.mark.parametrize(
    ("files", "is_bounded"),
    [
        ({"memory_of_max": "1000000\n"}, True),
        ({"memory_of_max": "max\n"}, False),
        ({"memory__memory_of_limit_in_bytes": "1000000\n"}, True),
        ({"memory__memory_of_limit_in_bytes": "9223372036854771712\n"}, False),
        ({}, False),
    ],
)
def test_the_memory_of_a_container_is_what_it_may_use(
    files: dict[str, str], is_bounded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    container(tmp_path, monkeypatch, **files)
    assert (limits.memory_bytes() == 1_000_000) is is_bounded
    assert limits.memory_bytes() <= psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("asked", "processes", "threads"), [(0, 1, 8), (0, 3, 2), (0, 9, 1), (5, 2, 5)]
)
def test_the_processes_of_an_executor_share_its_cores(
    asked: int, processes: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "cores", lambda: 8)
    assert limits.threads(asked, processes) == threads


BOUNDED = """
import accelerate, torch
from agent import limits
from agent.executors import stepping

def loss(module, batch):
    return module(batch["x"]).square().mean()

torch.set_num_threads(1)
module = torch.nn.Linear(1, 8192)
stepper = stepping.Stepper(
    accelerate.Accelerator(cpu=True), module, torch.optim.AdamW(module.parameters()), loss
)
limits.be_first_to_go()
limits.bound_memory(1024**3)
stepper.take({"x": torch.zeros(32768, 1)}, 0.1)
print(stepper.micro_batch, open("/proc/self/oom_score_adj").read().strip())
"""


@pytest.mark.skipif(not platforms.LINUX, reason="only Linux has such bounds")
def test_a_batch_beyond_the_bound_of_memory_is_taken_in_parts_and_nothing_is_killed() -> None:
    told = subprocess.run([sys.executable, "-c", BOUNDED], capture_output=True, text=True)
    micro_batch, adjusted = told.stdout.split() or pytest.fail(told.stderr)
    assert int(micro_batch) in (8192, 4096, 2048)
    assert int(adjusted) == limits.FIRST_TO_GO
