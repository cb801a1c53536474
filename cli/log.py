"""`aghsan replay` and `aghsan audit`: what needs the log alone."""

import asyncio
import contextlib
import json
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from cli import options

if TYPE_CHECKING:
    from core.audit import Auditor
    from core.audit.artifacts import Stored
    from core.audit.findings import Violation
    from core.replay import Access, Replayed

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

EXIT_VIOLATIONS = 1


def data_option(command: F) -> F:
    """`--data`: the directory whose log is read."""
    return click.option(
        "--data",
        envvar="AGHSAN_DATA",
        default="data",
        show_default=True,
        show_envvar=True,
        type=options.Folder(),
        help="Data directory of `aghsan up`, whether that runs or not.",
    )(command)


@click.command()
@data_option
@click.option("--at", type=click.IntRange(0), help="Stop after this sequence.  [default: the end]")
@options.as_json
def replay(data: Path, at: int | None, as_json: bool) -> None:
    """Rebuild the state from the log alone, and say what it hashes to.

    The hash equals that of `GET log/state` at the same sequence. Nothing in the directory changes:
    without a running server a copy of the log is read.
    """
    from core.replay import LOG_ALONE, serving
    from core.replay import replay as fold_log

    with ending_on_sigterm(), serving(data, LOG_ALONE) as access:
        replayed = asyncio.run(_with_log(access, lambda log: fold_log(log, at)))
        running = access.running
    if as_json:
        click.echo(json.dumps({**_plain(replayed), "running": running}))
    else:
        _show_state(data, replayed, running)


@click.command()
@data_option
@click.option(
    "--rejudge",
    "round_ids",
    metavar="ROUND",
    multiple=True,
    help="Judge a decided round again as well, and compare; may be repeated.",
)
@options.as_json
def audit(data: Path, round_ids: tuple[str, ...], as_json: bool) -> None:
    """Check that the log keeps the rules, and that what it names is stored.

    Nothing in the directory changes: without a running server a copy is audited, and its stored
    blocks are checked too. Exit code 1 where a rule is broken; 0 where all that is wrong follows
    from records that were lost, and that a person accepted by `aghsan up --accept-loss`.

    --rejudge draws a round's hidden cases from its revealed secret, measures the stored models on
    them, and compares: bit for bit in the environment that the verdict records, else but for
    rounding. Exit code 1 where it differs, 4 where a model that decides it is not to be had any
    more, 5 where nobody can tell from here.
    """
    from cli import rejudge
    from core.replay import ALL_AUDITED, serving

    # First: a round that is not there is said before anybody waits for the rest.
    outcomes = rejudge.judged(data, round_ids) if round_ids else []
    with ending_on_sigterm(), serving(data, ALL_AUDITED) as access:
        auditor, stored, refusals = asyncio.run(_audit(access, data))
        running = access.running
    findings = auditor.findings
    if as_json:
        report = {
            "ok": not findings.total,
            "events": auditor.events,
            "violations": [_plain(one) for one in findings.shown],
            "refusals": refusals,
            "violations_total": findings.total,
            "violations_by_rule": findings.counts,
            "artifacts": stored.artifacts,
            "artifact_bytes": stored.bytes,
            "sealed": auditor.sealed,
            "running": running,
            "accepted": [_plain(one) for one in findings.accepted_shown],
            "accepted_total": findings.accepted_total,
            "accepted_by_rule": findings.accepted_counts,
        }
        again = rejudge.told(outcomes) if round_ids else {}
        click.echo(json.dumps({**report, **again}, ensure_ascii=False))
    else:
        rejudge.show(outcomes)
        _show_audit(data, auditor, stored, refusals, running)
    if code := EXIT_VIOLATIONS if findings.total else rejudge.exit_code(outcomes):
        raise click.exceptions.Exit(code)


async def _with_log(access: "Access", ask: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    from core.replay import connect

    async with connect(access) as connected:
        return await ask(connected.log)


async def _audit(access: "Access", data: Path) -> "tuple[Auditor, Stored, int]":
    from core.audit import artifacts, read_log
    from core.replay import connect, count_refusals, find_lost_chunks
    from core.seals import find_losses, find_unreadable

    async with connect(access) as connected:
        losses = await find_losses(connected.log, data)
        auditor = await read_log(connected.log, access.stored)
        for seq, words in losses:
            auditor.findings.add("head", seq, words)
        for words in await find_unreadable(connected.log, data):
            auditor.findings.add("head", auditor.last_seq, words)
        for words in access.damage:
            auditor.findings.add("blocks", auditor.last_seq, words)
        named = list(auditor.named())
        if lost := await find_lost_chunks(access, connected):
            first = named[0].seq if named else auditor.last_seq
            auditor.findings.add("artifacts", first, lost)
            stored = artifacts.Stored(len(named))
        else:
            stored = await artifacts.check(
                connected.store, named, auditor.findings, auditor.lost_chunks
            )
        return auditor, stored, await count_refusals(connected.control)


def _plain(struct: Any) -> dict[str, Any]:
    import msgspec

    plain: dict[str, Any] = msgspec.to_builtins(struct)
    return plain


@contextlib.contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """End as on Ctrl-C, so that a server of our own stops and a copy is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def times(count: int) -> str:
    """How often, in words."""
    return "once" if count == 1 else f"{count} times"


def source(data: Path, running: bool) -> str:
    """Which log is read, in words."""
    return f"{data}, {'read beside its running server' if running else 'no server runs on it'}"


def _show_state(data: Path, replayed: "Replayed", running: bool) -> None:
    from cli import terminal

    tasks = ", ".join(f"{count} {status}" for status, count in replayed.tasks.items() if count)
    rate = f"{replayed.seconds:g} s, {replayed.events_per_second:,.0f} events/s"
    terminal.show(
        terminal.facts(
            [
                ("log", source(data, running)),
                ("events", replayed.events),
                ("last seq", replayed.last_seq),
                ("state hash", replayed.state_hash),
                ("quarantined", replayed.quarantined),
                ("nodes", replayed.nodes),
                ("champions", replayed.champions),
                ("tasks", tasks or "none"),
                ("workers", replayed.workers),
                ("rounds", replayed.rounds),
                ("writer epoch", replayed.writer_epoch),
                ("took", rate),
            ]
        )
    )


def _show_audit(
    data: Path, auditor: "Auditor", stored: "Stored", refusals: int, running: bool
) -> None:
    from cli import terminal
    from core.audit.findings import RULES

    findings = auditor.findings
    unbroken = {"blocks": "not checked"} if running else {}
    terminal.show(
        terminal.facts(
            [
                ("log", source(data, running)),
                ("events", f"{auditor.events}, sealed up to {auditor.sealed}"),
                ("artifacts", f"{stored.artifacts}, {stored.bytes:,} bytes read"),
                ("refusals", refusals),
            ]
        ),
        "",
        terminal.table(
            ["rule", "broken", "what it says"],
            [
                (rule, findings.counts.get(rule, unbroken.get(rule, "no")), words)
                for rule, words in RULES.items()
            ],
        ),
    )
    _show_findings("violates", findings.shown, findings.total)
    _show_findings("accepted loss", findings.accepted_shown, findings.accepted_total)
    terminal.show("", *_verdict(findings.total, findings.accepted_total))


def _show_findings(heading: str, shown: "list[Violation]", total: int) -> None:
    from cli import terminal

    if not shown:
        return
    rows = [(one.seq, one.rule, one.detail) for one in shown]
    terminal.show("", terminal.table(["seq", heading, "how"], rows))
    if total > len(rows):
        terminal.show(f"Not shown: {total - len(rows)} more.")


def _verdict(violations: int, accepted: int) -> list[str]:
    """What to say at the end, English and Arabic."""
    if violations:
        words = [
            f"The log breaks its rules {times(violations)}.",
            f"يخالف السجلّ قواعده: عدد المخالفات {violations}.",
        ]
    elif accepted:
        words = [
            "The log keeps all rules but for what follows from a loss that was accepted.",
            "السجلّ يلتزم بجميع القواعد، إلا ما ترتّب على فقدان قُبل.",
        ]
    else:
        return ["The log keeps all rules.", "السجلّ يلتزم بجميع القواعد."]
    if accepted:
        words += [
            f"Findings that follow from an accepted loss, and do not count: {accepted}.",
            f"ما ترتّب على فقدان قُبل، ولا يُحسب مخالفة: {accepted}.",
        ]
    return words
