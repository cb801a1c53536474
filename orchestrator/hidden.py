"""A round's hidden cases, drawn from its secret.

Nobody without the key can train on them before the verdict, and everybody can draw them again after
it.
"""

from collections.abc import Iterator

from agent.specialists import base
from core import workloads
from orchestrator import bounds
from orchestrator.keys import seed_of

HIDDEN_CASES = 2_048
POOL_LEAST = 8
SHIFTED_CASES = 512


def rank_cases(
    specialist: base.Specialist, secret: bytes, node_id: str, round_id: str
) -> base.Cases:
    """The hidden cases that a round's candidates are ranked on."""
    if specialist.hidden_max is None:
        seed = seed_of(secret, "rank", node_id, round_id)
        return specialist.cases(seed, HIDDEN_CASES, "hidden")
    cases, ranked = _shared(specialist, secret, node_id, round_id)
    return {name: each[:ranked] for name, each in cases.items()}


def gate_cases(
    specialist: base.Specialist, secret: bytes, node_id: str, round_id: str
) -> Iterator[tuple[bounds.Stage, base.Cases]]:
    """The hidden cases of a round's gate: each stage of the judgement, and the cases it adds. None
    of them was ranked on: who was picked for being lucky there must not be lucky here."""
    if specialist.hidden_max is None:
        for stage in bounds.stages(bounds.CASES_MAX):
            label = f"gate {stage.before}" if stage.before else "gate"
            added = stage.cases - stage.before
            seed = seed_of(secret, label, node_id, round_id)
            yield stage, specialist.cases(seed, added, "hidden")
        return
    cases, ranked = _shared(specialist, secret, node_id, round_id)
    for stage in bounds.stages(len(next(iter(cases.values()))) - ranked):
        some = slice(ranked + stage.before, ranked + stage.cases)
        yield stage, {name: each[some] for name, each in cases.items()}


def _shared(
    specialist: base.Specialist, secret: bytes, node_id: str, round_id: str
) -> tuple[base.Cases, int]:
    """Hidden cases of which there are only so many, in the round's own order, and how many of them
    are for ranking: the first quarter. Of a corpus there are few: a large model takes long over
    each.
    """
    is_text = workloads.kind(specialist.name).takes_corpus
    gated = HIDDEN_CASES if is_text else bounds.CASES_MAX
    count = min(gated * 4 // 3, specialist.hidden_max or 0)
    assert count >= POOL_LEAST, "a corpus with less is refused as it is added"
    seed = seed_of(secret, "gate", node_id, round_id)
    return specialist.cases(seed, count, "hidden"), count // 4


def shifted_cases(
    specialist: base.Specialist, secret: bytes, node_id: str, round_id: str
) -> base.Cases | None:
    """Cases beyond what models are trained on; None where there are none."""
    cases = specialist.shifted(seed_of(secret, "shifted", node_id, round_id), SHIFTED_CASES)
    return cases if cases and len(next(iter(cases.values()))) else None
