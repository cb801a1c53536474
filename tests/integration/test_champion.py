"""`aghsan champion history|export|run` on a real data directory, stopped and in use."""

import asyncio
import hashlib
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from click.testing import CliRunner, Result

from agent import artifacts, checkpoints
from agent.specialists import evaluation, forms, registry
from agent.specialists.base import Config
from cli import main, model
from core import chunks, commands, events, lineage, platforms
from core.bus import Bus
from core.chunks_jetstream import JetStreamChunks
from core.commands import AnyCommand
from core.log_jetstream import JetStreamLog
from core.projections.rounds import Round
from core.runtime import Runtime, new_meta
from core.values import Budget, Check, Latency, Weighed
from gateway.records import Records
from orchestrator import hidden
from tests import nats_fixture, texts
from tests.integration.test_replay_audit import (
    TOKEN,
    WORKER,
    copy_of,
    fingerprint,
    in_use,
    open_door,
    told,
)

CHECKOUT = Path(__file__).parents[2]
NODE, RETIRED = "stats-bayesian", "opt-discrete"
SMALL = "صغير"
TOGETHER = "math-statistics"
"""The node whose champion is an ensemble."""
SECRETS = [bytes([number]) * 32 for number in range(8)]
STAGES = 2
"""Of the judgements, where there are so many cases."""
TOURS = Config(family="edges", sizes={"width": 4, "layers": 1})
FILTERS = [Config(family="learned-gain", sizes={"width": width}) for width in (4, 8)]
POSTERIORS = Config(
    family="ensemble", members=tuple(registry.get(TOGETHER).families("reinventor")[:1] * 2)
)
WORDS = Config(family="gates", sizes={"width": 8, "blocks": 1})


class Built(NamedTuple):
    """A data directory that nobody uses, the weights of its last champions by node, and texts."""

    data: Path
    weights: dict[str, str]
    texts: Path


class Builder:
    """Lets models become champions, one after another."""

    def __init__(self, door: Runtime, store: chunks.ChunkStore, folder: Path) -> None:
        self._door, self._store, self._folder = door, store, folder
        self._numbers = itertools.count(1)
        self.weights: dict[str, str] = {}

    async def do(self, command: AnyCommand) -> None:
        await self._door.execute(command, new_meta("test"), lambda state: None)

    async def begin(self) -> None:
        await self.do(commands.SeedTree())
        commitments = [hashlib.sha256(secret).hexdigest() for secret in SECRETS]
        await self.do(commands.DepositCommitments(judge="j", first=0, commitments=commitments))
        await self.do(
            commands.OpenSession(
                worker_id=WORKER, session="s", hostname="h", lane="cpu", protocol=1
            )
        )

    async def promote(self, node_id: str, specialist: str, config: Config, corpus: str = "") -> str:
        """Let a fresh model of the node be trained, measured and promoted; its candidate id."""
        number = next(self._numbers)
        name, folder = f"cand-{number}", self._folder / f"model-{number}"
        one = registry.get(specialist, corpus=corpus)
        torch.manual_seed(number)
        module = forms.build(one, config)
        folder.mkdir()
        weights = self.weights[node_id] = checkpoints.write_model(folder, module, config)
        packed = artifacts.pack(folder, "candidate", TOKEN)
        for piece in packed.pieces.values():
            await self._store.put(TOKEN, piece)
        brought = events.Candidate(
            candidate_id=name,
            rival="evolver",
            manifest=await self._store.put(chunks.DESK, packed.manifest.encode()),
            writer=TOKEN,
            weights_sha256=weights,
            bytes=packed.manifest.bytes,
        )
        await self._complete(f"task-{number}", node_id, brought)
        round_id, secret = await self._door.read(
            lambda state: next(
                (row.round_id, SECRETS[row.index])
                for key in state.rounds.undecided
                for row in [state.rounds.table.rows[key]]
                if isinstance(row, Round)
            )
        )
        stages = itertools.islice(hidden.gate_cases(one, secret, node_id, round_id), STAGES)
        parts = [cases for _, cases in stages]
        cases = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        measured = evaluation.evaluate(one, module, cases)
        baseline = float(one.baseline_errors(cases)[one.baseline_of_record].mean())
        reasons = events.Reasons(ar="أفضل | حقًّا", en="better, *really*")
        verdict = events.CandidateVerdict(
            candidate_id=name,
            verdict="better",
            reasons=reasons,
            error=measured.loss,
            evidence_rate=measured.evidence_rate,
            params=sum(one.numel() for one in module.parameters()),
            bytes=packed.manifest.bytes,
            gates=(
                Check(name="latency", verdict="fail", value=1.23, bound=1.1, lower=1.2, upper=1.26),
                Check(name="of tomorrow", verdict="undecided"),
            ),
        )
        await self.do(commands.StartJudging(round_id=round_id, judge="j"))
        await self.do(
            commands.DecideRound(
                round_id=round_id,
                judge="j",
                verdict="promote",
                secret=secret.hex(),
                reasons=reasons,
                candidates=[verdict],
                promoted=name,
                alpha=0.03,
                cases=measured.count,
                baseline_error=baseline,
                weighed=(weighed(name),),
                environment={"torch": str(torch.__version__)},
                against=await self._door.read(
                    lambda state: getattr(state.graph.champions.get(node_id), "candidate_id", "")
                ),
            )
        )
        return name

    async def _complete(self, task_id: str, node_id: str, brought: events.Candidate) -> None:
        await self.do(commands.EnqueueTask(task_id=task_id, node_id=node_id, topic="جذر", seed=1))
        claim_id = f"claim-{task_id}"
        await self.do(
            commands.ClaimTask(
                worker_id=WORKER, via="nats", claim_id=claim_id, lease_seconds=60.0, session="s"
            )
        )
        token = events.Token(task_id=task_id, attempt=1, claim_id=claim_id)
        await self.do(
            commands.CompleteTask(
                task_id=task_id, candidates=[brought], token=token, worker_id=WORKER, session="s"
            )
        )


def weighed(name: str) -> Weighed:
    latency = Latency(
        ratio=2.34, lower=2.3, upper=2.4, p50_ms=0.111, p95_ms=0.222, reference_ms=0.05,
        spread=0.1, against=1.23,
    )  # fmt: skip
    return Weighed(
        candidate_id=name, error=0.1, evidence_rate=1.0, params=1, bytes=1,
        memory_bytes=7_654_321, latency=latency, shifted_error=0.4321, is_front=True,
    )  # fmt: skip


async def crown(nats: nats_fixture.Nats, folder: Path) -> dict[str, str]:
    """A node with two champions, and one whose champion's reign ended for that of a corpus."""
    await nats.apply()
    async with (
        nats.connect("control") as control,
        nats.connect("desk") as fleet,
        open_door(control) as door,
    ):
        store = JetStreamChunks(fleet)
        builder = Builder(door, store, folder)
        await builder.begin()
        for config in FILTERS:
            await builder.promote(NODE, NODE, config)
            if config == FILTERS[0]:
                builder.weights[SMALL] = builder.weights[NODE]
                first = await door.read(lambda state: state.graph.champions.rows[NODE])
        stated = (Budget(name=SMALL, bytes_max=10**6),)
        await builder.do(commands.SetGates(node_id=NODE, budgets=stated))
        chosen = lineage.measured(await records(door, control).round(first.round_id), "cand-1")
        await builder.do(
            commands.ChooseChampion(
                node_id=NODE, kind="promote", champion=chosen, budget=SMALL, reason="*small*"
            )
        )
        await builder.promote(RETIRED, RETIRED, TOURS)
        packed = texts.packed()
        for piece in packed.pieces.values():
            await store.put(chunks.DESK, piece)
        for manifest in (packed.public, packed.hidden):
            await store.put(chunks.DESK, manifest.encode())
        await builder.do(commands.BindCorpus(node_id=RETIRED, corpus=packed.corpus))
        corpus = texts.unpack(folder / "corpus", hidden=True)
        await builder.promote(RETIRED, "text", WORDS, str(corpus))
        await builder.promote(TOGETHER, TOGETHER, POSTERIORS)
        return builder.weights


def records(door: Runtime, control: Bus) -> Records:
    log = JetStreamLog(control)
    return Records(door, log, JetStreamChunks(control))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A data directory as a stopped `up` leaves it."""
    folder = tmp_path_factory.mktemp("بيانات و فراغ")
    with nats_fixture.running(folder / "data") as nats:
        weights = asyncio.run(crown(nats, folder))
    with platforms.DataLock(folder / "data" / "lock"):
        pass
    return Built(folder / "data", weights, folder / "corpus")


@pytest.fixture(scope="module")
def exported(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the exports of all nodes."""
    folder = tmp_path_factory.mktemp("exports")
    for node in (NODE, RETIRED, TOGETHER):
        assert champion("export", node, folder / node, "--data", built.data).exit_code == 0
    return folder


def champion(verb: str, *arguments: object, given: str | bytes | None = None) -> Result:
    words = ["champion", verb, *(str(one) for one in arguments)]
    return CliRunner().invoke(main.aghsan, words, input=given)


def answers(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


# ── history ──


def test_the_history_tells_every_reign_and_how_it_ended(built: Built) -> None:
    first, second = told(champion("history", NODE, "--data", built.data, "--json"))["lineage"]
    assert [first["candidate_id"], second["candidate_id"]] == ["cand-1", "cand-2"]
    assert (first["instead_of"], second["instead_of"]) == (None, "cand-1")
    assert (first["retired_at"], second["retired_at"]) == (None, None)
    assert second["weights_sha256"] == built.weights[NODE]
    assert second["task_id"] == "task-2"
    assert {"error", "baseline_error", "evidence_rate", "params", "bytes"} <= second.keys()
    with in_use(built.data):
        old, new = told(champion("history", RETIRED, "--data", built.data, "--json"))["lineage"]
    assert old["promoted_at"] < old["retired_at"] < new["promoted_at"]
    assert "its node trains text" in old["reason"]
    assert new["instead_of"] is None
    before = fingerprint(built.data)
    shown = champion("history", RETIRED, "--data", built.data).stdout
    assert all(part in shown for part in ("cand-3", "cand-4", "ended", "its node trains text"))
    assert fingerprint(built.data) == before


def test_a_node_without_champions_is_told_from_a_node_that_is_not_there(built: Built) -> None:
    none = champion("history", "root-math", "--data", built.data)
    assert (none.exit_code, none.stdout, none.stderr) == (0, "", "no champion yet\n")
    unknown = champion("history", "nope", "--data", built.data)
    assert unknown.exit_code == main.EXIT_NOT_FOUND
    assert "there is no node nope" in unknown.stderr


# ── budgets ──


def test_the_champion_of_a_budget_is_told_exported_and_asked(built: Built, tmp_path: Path) -> None:
    where = ("--data", built.data, "--budget", SMALL)
    (reign,) = told(champion("history", NODE, *where, "--json"))["lineage"]
    assert (reign["candidate_id"], reign["by"], reign["because"]) == ("cand-1", "person", "*small*")
    facts = told(champion("export", NODE, tmp_path / "x", *where, "--json"))
    assert facts["weights_sha256"] == built.weights[SMALL] != built.weights[NODE]
    card = (tmp_path / "x" / "card.md").read_text("utf-8")
    assert f"| champion of the budget | {SMALL} |" in card
    assert f"| بطل الميزانية | {SMALL} |" in card
    assert "A person made it champion, not that verdict: \\*small\\*" in card
    assert "وصار بطلًا باختيار إنسان، لا بالحكم: \\*small\\*" in card
    example = champion("run", NODE, "--example", *where)
    (answer,) = answers(champion("run", NODE, *where, given=example.stdout))
    assert answer
    none = champion("export", NODE, tmp_path / "y", "--data", built.data, "--budget", "large")
    assert (none.exit_code, "no champion for the budget 'large'" in none.stderr) == (4, True)
    both = champion("run", NODE, "--model", tmp_path / "x", "--budget", SMALL)
    assert both.exit_code == main.EXIT_USAGE


def test_a_card_tells_what_its_champion_takes_and_each_gate(exported: Path) -> None:
    arabic, english = (exported / NODE / "card.md").read_text("utf-8").split("</div>")
    for half in (arabic, english):
        for fact in ("2.34 (2.3–2.4)", "0.111 · 0.222", "7,654,321", "0.4321"):
            assert fact in half, fact
    assert "| latency | fail | 1.23 | 1.1 |" in english
    assert "| of tomorrow | undecided | – | – |" in english
    assert "| 1.2 to 1.26 |" in english
    assert "| الزمن | لم يجتز | 1.23 | 1.1 | من 1.2 إلى 1.26 |" in arabic
    assert "A person" not in english


# ── export ──


def test_an_export_holds_the_model_and_its_evidence(built: Built, tmp_path: Path) -> None:
    place = tmp_path / "نموذج" / "bayes"
    with in_use(built.data):
        facts = told(champion("export", NODE, place, "--data", built.data, "--json"))
    before = fingerprint(built.data)
    again = told(champion("export", NODE, tmp_path / "x", "--data", built.data, "--json"))
    assert again == facts | {"directory": str(tmp_path / "x")}
    assert facts["weights_sha256"] == built.weights[NODE]
    assert set(facts["files"]) == {"model.safetensors", "config.json", "card.md"}
    assert facts["files"] == {path.name: path.stat().st_size for path in place.iterdir()}
    assert [path.name for path in place.parent.iterdir()] == ["bayes"]
    card = (place / "card.md").read_text("utf-8")
    arabic, english = card.split("</div>")
    (_, last) = told(champion("history", NODE, "--data", built.data, "--json"))["lineage"]
    weights = hashlib.sha256((place / "model.safetensors").read_bytes()).hexdigest()
    for half in (arabic, english):
        for fact in (
            *("cand-1", "cand-2", "task-1", "task-2", WORKER, last["round_id"]),
            *(f"{last[figure]:.6g}" for figure in ("error", "baseline_error")),
            *(f"{last['evidence_rate']:.4f}", SECRETS[1].hex(), f"{last['params']:,}"),
            *(hashlib.sha256(SECRETS[1]).hexdigest(), built.weights[NODE], weights),
            *(str(torch.__version__), "aghsan champion run", "readings", "drift", "noise"),
        ):
            assert str(fact) in half, fact
    assert "nats" in english
    assert "بالنات" in arabic
    assert "better, \\*really\\*" in english
    assert "أفضل \\| حقًّا" in arabic
    assert fingerprint(built.data) == before


@pytest.mark.parametrize("node", [NODE, RETIRED, TOGETHER])
def test_the_cases_are_drawn_again_as_the_card_says(
    built: Built, exported: Path, node: str
) -> None:
    card = (exported / node / "card.md").read_text("utf-8")
    recipes = set(re.findall(r"```python\n(.*?)```", card, re.DOTALL))
    (recipe,) = recipes
    place = exported / node
    if node == RETIRED:
        assert "hidden.txt" in card
        (place / "hidden.txt").write_bytes((built.texts / "hidden.txt").read_bytes())
    ran = subprocess.run(
        [sys.executable, "-c", recipe],
        cwd=place,
        env={"PYTHONPATH": str(CHECKOUT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    (place / "hidden.txt").unlink(missing_ok=True)
    *_, last = told(champion("history", node, "--data", built.data, "--json"))["lineage"]
    assert float(ran.stdout) == pytest.approx(last["error"], rel=1e-6), ran.stderr


def test_both_halves_of_a_card_have_the_same_rows(exported: Path) -> None:
    for node in (NODE, RETIRED):
        arabic, english = (exported / node / "card.md").read_text("utf-8").split("</div>")
        shapes = [
            [line.count("|") for line in half.splitlines() if line.startswith("|")]
            for half in (arabic, english)
        ]
        assert shapes[0] == shapes[1]
        assert len(shapes[0]) > 30


def test_a_corpus_goes_with_its_champion_but_for_its_hidden_documents(exported: Path) -> None:
    names = {path.name for path in (exported / RETIRED).iterdir()}
    assert names == {
        *("model.safetensors", "config.json", "card.md", "training.txt", "validation.txt")
    }


def test_what_cannot_be_exported_leaves_nothing(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "there"
    place.mkdir()
    again = champion("export", NODE, place, "--data", built.data)
    assert (again.exit_code, "there already" in again.stderr) == (main.EXIT_USAGE, True)
    place.rmdir()
    none = champion("export", "root-math", place, "--data", built.data)
    assert none.exit_code == main.EXIT_NOT_FOUND
    assert "root-math has no champion yet" in none.stderr

    def full(*_: Path) -> None:
        raise OSError(28, "No space left on device", str(place))

    with monkeypatch.context() as patched:
        patched.setattr(artifacts, "settle", full)
        failed = champion("export", NODE, place / "in" / "here", "--data", built.data)
    assert (failed.exit_code, "No space left" in failed.stderr) == (main.EXIT_FAILED, True)
    assert list(tmp_path.iterdir()) == []
    data = copy_of(built.data, tmp_path)
    with nats_fixture.running(data) as nats:
        asyncio.run(_lose(nats, told(champion("history", NODE, "--data", built.data, "--json"))))
    gone = champion("export", NODE, place, "--data", data)
    assert (gone.exit_code, "is not whole" in gone.stderr) == (main.EXIT_NOT_FOUND, True)
    assert not place.exists()


async def _lose(nats: nats_fixture.Nats, history: dict[str, Any]) -> None:
    """Delete the manifest of the champion's artifact."""
    wanted = history["lineage"][-1]["weights_sha256"]
    async with nats.connect("desk") as fleet:
        store = JetStreamChunks(fleet)
        async for item in store.stored():
            if item.writer != chunks.DESK:
                continue
            data = await store.get(chunks.DESK, item.digest)
            if b"candidate" in data:
                await store.delete(chunks.DESK, item.digest)
    assert wanted


# ── run ──


def example(node: str, *more: object) -> dict[str, Any]:
    (line,) = answers(champion("run", node, "--example", *more))
    return line


def test_a_champion_answers_lines_in_order_from_a_file_a_pipe_and_an_export(
    built: Built, exported: Path, tmp_path: Path
) -> None:
    asked = example(NODE, "--data", built.data)
    lines = [{**asked, "drift": 0.02 + number / 1_000} for number in range(150)]
    text = "\n".join(map(json.dumps, lines)) + "\n\n"
    (tmp_path / "in.jsonl").write_text(text)
    piped = champion("run", NODE, "--data", built.data, given=text)
    assert piped.exit_code == 0, piped.stderr
    found = answers(piped)
    assert [set(one) for one in found] == [{"mean", "sd"}] * 150
    one = registry.get(NODE)
    module = forms.build(one, FILTERS[-1])
    checkpoints.load_weights(exported / NODE / "model.safetensors", module)
    readings = torch.tensor([asked["readings"]]).repeat(150, 1)
    scales = [[line["drift"], line["noise"]] for line in lines]
    said = module(readings, torch.tensor(scales).log()).tolist()
    assert [answer["mean"] for answer in found] == pytest.approx([one[0] for one in said], rel=1e-4)
    with in_use(built.data):
        filed = champion("run", NODE, tmp_path / "in.jsonl", "--data", built.data)
    of_folder = ("--model", exported / NODE)
    beside = champion("run", NODE, tmp_path / "in.jsonl", *of_folder, "-o", tmp_path / "out.jsonl")
    assert filed.stdout == piped.stdout == (tmp_path / "out.jsonl").read_text()
    assert (beside.exit_code, beside.stdout) == (0, "")
    dash = champion("run", NODE, "-", *of_folder, given=text)
    assert dash.stdout == piped.stdout


def test_a_champion_of_a_corpus_scores_texts(built: Built, exported: Path) -> None:
    lines = "".join(json.dumps({"text": one}) + "\n" for one in (texts.document(3), "zqxj" * 40))
    stored = answers(champion("run", RETIRED, "--data", built.data, given=lines))
    saved = answers(champion("run", RETIRED, "--model", exported / RETIRED, given=lines))
    assert stored == saved
    assert stored[0]["bits_per_byte"] < stored[1]["bits_per_byte"]
    assert "text" in example(RETIRED, "--model", exported / RETIRED)


@pytest.mark.parametrize("batched", [True, False])
def test_a_wrong_line_is_named_after_those_before_it_are_answered(
    exported: Path, batched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not batched:
        monkeypatch.setattr("cli.asking.BATCH_LINES", 1)
    of_folder = ("--model", exported / NODE)
    asked = example(NODE, *of_folder)
    sound = json.dumps(asked)
    for wrong, words in (
        ("nonsense", "it is no JSON"),
        (json.dumps({**asked, "noise": None}), "noise: it is null, not a number"),
        (json.dumps({"readings": [1]}), "drift: it is missing"),
        (json.dumps({**asked, "readings": [1]}), "readings: it has 1 entries, not 32 numbers"),
        (sound.replace("[", "[NaN, ", 1), "readings"),
        (json.dumps({**asked, "drift": -1}), "drift: it is -1, and must be from 0.02 to 1"),
        ("x" * (1 << 20) + "x", "it has more than 1048576 bytes"),
    ):
        result = champion("run", NODE, *of_folder, given=f"{sound}\n\n{sound}\n{wrong}\n{sound}\n")
        assert result.exit_code == main.EXIT_USAGE, result.stderr
        assert len(answers(result)) == 2, words
        assert f"line 4: {words}" in result.stderr
    unended = champion("run", NODE, *of_folder, given=sound)
    assert (unended.exit_code, len(answers(unended))) == (0, 1)
    assert champion("run", NODE, *of_folder, given="").stdout == ""


def test_lines_are_answered_as_they_arrive(exported: Path) -> None:
    command = [sys.executable, "-m", "cli.main", "champion", "run", NODE, "--model"]
    with subprocess.Popen(
        [*command, str(exported / NODE)],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        line = (json.dumps(example(NODE, "--model", exported / NODE)) + "\n").encode()
        first = None
        for _ in range(3):
            running.stdin.write(line)
            running.stdin.flush()
            said = running.stdout.readline()
            assert first in (None, said)
            first = said
        running.stdin.close()
        assert running.stdout.read() == b""
    assert running.returncode == 0


def test_what_is_no_export_of_the_node_is_refused(
    built: Built, exported: Path, tmp_path: Path
) -> None:
    both = champion("run", NODE, "--data", built.data, "--model", exported / NODE, given="")
    assert (both.exit_code, "--data or --model" in both.stderr) == (main.EXIT_USAGE, True)
    other = champion("run", RETIRED, "--model", exported / NODE, given="")
    assert (other.exit_code, f"the champion of {NODE}" in other.stderr) == (main.EXIT_USAGE, True)
    none = champion("run", NODE, "--model", tmp_path, given="")
    assert (none.exit_code, "holds no card.md" in none.stderr) == (main.EXIT_NOT_FOUND, True)
    files = {path.name: path.read_bytes() for path in (exported / NODE).iterdir()}
    model.write(files | {"model.safetensors": files["model.safetensors"][:-1] + b"x"}, tmp_path)
    damaged = champion("run", NODE, "--model", tmp_path, given="")
    assert (damaged.exit_code, "hashes to" in damaged.stderr) == (main.EXIT_FAILED, True)
    (tmp_path / "card.md").write_text("# a card by hand\n")
    by_hand = champion("run", NODE, "--model", tmp_path, given="")
    assert (by_hand.exit_code, "card" in by_hand.stderr) == (main.EXIT_FAILED, True)
    (tmp_path / "in.jsonl").write_text("")
    onto = ("run", NODE, tmp_path / "in.jsonl", "--model", exported / NODE, "-o")
    same = champion(*onto, tmp_path / "in.jsonl")
    assert (same.exit_code, "that is read" in same.stderr) == (main.EXIT_USAGE, True)


def test_help_tells_of_the_example_and_loads_no_torch() -> None:
    assert "--example" in champion("run", "--help").stdout
    checked = "import sys; import cli.champion; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", checked], cwd=CHECKOUT, check=False).returncode == 0
    )


def test_an_ensemble_that_reigns_is_asked_like_any_champion(built: Built, exported: Path) -> None:
    example = champion("run", TOGETHER, "--data", built.data, "--example").stdout
    served = champion("run", TOGETHER, "--data", built.data, given=example)
    saved = champion("run", TOGETHER, "--model", exported / TOGETHER, given=example)
    assert answers(served) == answers(saved) != []
