"""The card of an exported champion: two halves with the same facts, Arabic and English."""

import hashlib
import html
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from cli import card_evidence, terminal
from cli.card_evidence import Measured
from cli.card_words import BY, CHECKS, GATES, RIVALS, WORKS, Words, same
from cli.model import Head
from cli.stored import Served
from core import events, platforms

if TYPE_CHECKING:
    from agent.specialists.base import Field, Specialist
    from core.lineage import Reign
    from core.values import Check, Weighed

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"


class Table(NamedTuple):
    """Rows under headings."""

    columns: Sequence[Words]
    rows: Sequence[Sequence[Words]]


class Code(NamedTuple):
    """Lines to type, the same for everybody."""

    language: str
    text: str


class Section(NamedTuple):
    """A part of a card."""

    title: Words
    parts: Sequence["Words | Table | Code"]


Sections: TypeAlias = Sequence[Section]


def write(served: Served, head: Head, specialist: "Specialist") -> str:
    """A card. Each half is made of the same sections, so that neither says more."""
    name = _text(served.node.added.name)
    sections = [
        _about(served, specialist),
        _evidence(served, specialist),
        *_costs(served),
        _drawing(served),
        _lineage(served.node.reigns),
        _files(served),
        _using(head, specialist),
    ]
    arabic = "\n".join(_half(sections, 0))
    english = "\n".join(_half(sections, 1))
    return (
        f"{head.encode()}\n"
        f'<div dir="rtl" lang="ar">\n\n# {name}: بطل العقدة {_code(head.node)}\n\n{arabic}\n'
        "</div>\n"
        f"\n# {name}: the champion of {_code(head.node)}\n\n{english}"
    )


def _half(sections: Sections, language: int) -> Iterator[str]:
    for title, parts in sections:
        yield f"## {title[language]}\n"
        for part in parts:
            match part:
                case Table():
                    yield from _table(part, language)
                case Code():
                    yield f"```{part.language}\n{part.text}\n```\n"
                case _:
                    yield part[language] + "\n"


def _table(table: Table, language: int) -> Iterator[str]:
    yield _row(column[language] for column in table.columns)
    yield _row("---" for _ in table.columns)
    yield from (_row(cell[language] for cell in row) for row in table.rows)
    yield ""


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(given: str) -> str:
    """Words of others on one line, as words and not as markup."""
    escaped = html.escape(terminal.clean(given), quote=False)
    return "".join(f"\\{letter}" if letter in "\\`*_[]|#" else letter for letter in escaped)


def _code(given: object) -> str:
    plain = terminal.clean(str(given)).replace("`", "'").replace("|", "\\|")
    return f"`{plain}`"


def _number(given: float | None) -> Words:
    return same("–" if given is None else f"{given + 0.0:.6g}")  # -0.0 is 0


def _facts(rows: Iterable[tuple[Words, Words]]) -> Table:
    return Table((Words("المعلومة", "what"), Words("القيمة", "value")), list(rows))


# ── what it is ──


def _about(served: Served, specialist: "Specialist") -> Section:
    champion, added = served.champion, served.node.added
    work = WORKS[specialist.name]
    return Section(
        Words("ما هذا النموذج", "What it is"),
        [
            Words(
                f"نموذج {work.does.ar}. درّبه عامل، وقاسه حَكَم لم يدرّبه، على حالات لا يعرضها "
                "التدريب.",
                f"A model that {work.does.en}. A worker trained it, and a judge that did not train "
                "it measured it on cases that training never shows.",
            ),
            _facts(
                [
                    (Words("العقدة", "node"), same(_code(champion.node_id))),
                    (Words("اسمها", "its name"), same(_text(added.name))),
                    (Words("عنها", "about it"), same(_text(added.description) or "–")),
                    (Words("العمل", "specialist"), same(_code(specialist.name))),
                    (Words("معاملاته", "its parameters"), _parameters(champion.workload)),
                    (Words("خطؤه", "its error"), work.error),
                    *(
                        [
                            (
                                Words("بطل الميزانية", "champion of the budget"),
                                same(_text(served.budget)),
                            )
                        ]
                        if served.budget
                        else []
                    ),
                    (Words("المرشَّح", "candidate"), same(_code(champion.candidate_id))),
                    (Words("الدور", "rival"), RIVALS[champion.rival]),
                    (Words("المعاملات المتعلَّمة", "learned numbers"), same(f"{champion.params:,}")),
                    (Words("البايتات", "bytes"), same(f"{champion.bytes:,}")),
                ]
            ),
        ],
    )


def _parameters(workload: events.Workload) -> Words:
    from core import workloads

    parts = [f"{name} = {one:g}" for name, one in workloads.parameters(workload).items()]
    arabic, english = list(parts), list(parts)
    if workload.corpus is not None:
        name, digest = _text(workload.corpus.name), _code(workload.corpus.manifest)
        arabic.append(f"المدوّنة {name}، بيانها {digest}")
        english.append(f"the corpus {name}, manifest {digest}")
    if workload.base_model is not None:
        name, digest = _text(workload.base_model.name), _code(workload.base_model.digest)
        arabic.append(f"فوق نموذج الأساس {name}، بصمته {digest}")
        english.append(f"over the base model {name}, digest {digest}")
    return Words("، ".join(arabic) or "لا شيء", ", ".join(english) or "none")


# ── evidence ──


def _evidence(served: Served, specialist: "Specialist") -> Section:
    from orchestrator import hidden

    champion, one, met = served.champion, served.round, card_evidence.measured(served)
    decision = card_evidence.decision(served)
    baseline, first = specialist.baseline_of_record, hidden.HIDDEN_CASES
    if met.cases:
        first = min(first, met.cases)
    rows = [
        *_error(champion, met),
        (
            Words(
                f"خطأ خط الأساس ({baseline}) على أول {first:,} من حالات البوابة",
                f"error of the baseline ({baseline}) on the first {first:,} cases of the gate",
            ),
            _number(champion.baseline_error),
        ),
        (Words("هل تجاوز خط الأساس", "is the baseline beaten"), _yes(not champion.below_baseline)),
        (
            Words(
                f"نسبة الإجابات المثبتة، أي ما خطؤه {specialist.tolerance:g} أو أقل",
                "evidence rate: the share of cases with an error of "
                f"{specialist.tolerance:g} or less",
            ),
            same(f"{champion.evidence_rate:.4f}"),
        ),
        *_meeting(met),
        (Words("الجولة", "round"), same(_code(one.round_id))),
        (Words("وقت الحكم", "decided"), same(events.isoformat(decision.decided_at))),
        (Words("الحَكَم", "judge"), same(_code(one.judge))),
        *(
            (Words(f"بيئة الحكم: {_text(name)}", f"environment of the judgement: {_text(name)}"),
             same(_code(value)))
            for name, value in decision.environment.items()
        ),
    ]  # fmt: skip
    reasons = met.reasons
    said = [Words(f"الحكم: {_text(reasons.ar)}", f"The verdict: {_text(reasons.en)}")]
    reign = served.node.reigns[-1]
    if reign.by == "person":
        why = _text(reign.because)
        said.append(
            Words(
                "وصار بطلًا باختيار إنسان، لا بالحكم" + (f": {why}" if why else "."),
                "A person made it champion, not that verdict" + (f": {why}" if why else "."),
            )
        )
    return Section(
        Words("الدليل على حالات مخفية", "Evidence on hidden cases"), [_facts(rows), *said]
    )


def _error(champion: events.Champion, met: Measured) -> Iterator[tuple[Words, Words]]:
    if not met.cases:
        yield (
            Words("متوسط الخطأ على حالات الترتيب", "mean error on the ranking cases"),
            _number(champion.error),
        )
        return
    yield Words("الحالات المخفية", "hidden cases"), same(f"{met.cases:,}")
    yield Words("متوسط الخطأ عليها", "mean error on them"), _number(champion.error)


def _meeting(met: Measured) -> Iterator[tuple[Words, Words]]:
    """Whom a champion met at the gate, and with what certainty."""
    if not met.cases:
        return
    opponent = Words("لا أحد: هو أول بطل", "nobody: it is the first")
    if met.against:
        opponent = same(f"{_code(met.against)}: {_number(met.against_error).en}")
    whom = Words("البطل الذي لقيه وخطؤه", "the champion it met, and its error")
    if met.is_of_budget:
        whom = Words(
            "بطل الميزانية الذي لقيه وخطؤه", "the champion of the budget that it met, and its error"
        )
    yield whom, opponent
    look = Words("النظرة", "look")
    if met.against:
        look = Words("النظرة إلى ذلك البطل", "look at that champion")
    yield look, same(met.look)
    yield Words("مستوى الدلالة α", "significance α"), _number(met.alpha)


def _yes(given: bool) -> Words:
    return Words("نعم", "yes") if given else Words("لا", "no")


# ── cost ──


def _costs(served: Served) -> Iterator[Section]:
    """What it takes, and each gate that it came to; nothing where the log has neither."""
    name, said = served.champion.candidate_id, card_evidence.said(served)
    weighed = next(
        (one for one in card_evidence.decision(served).weighed if one.candidate_id == name), None
    )
    parts: list[Words | Table | Code] = []
    if weighed is not None:
        parts.append(_facts(_weight(weighed)))
    if said is not None and said.gates:
        parts.append(_gates(said.gates))
    if parts:
        yield Section(Words("الكلفة والبوابات", "Cost and gates"), parts)


def _weight(one: "Weighed") -> Iterator[tuple[Words, Words]]:
    if one.latency is not None:
        timed = one.latency
        yield (
            Words(
                "زمن مدخل واحد بالقياس إلى نواة المرجع (وما بينهما يقع يقينًا)",
                "time for one input, in times of the reference kernel (surely between)",
            ),
            same(f"{timed.ratio:.3g} ({timed.lower:.3g}–{timed.upper:.3g})"),
        )
        yield (
            Words(
                "الوسيط والمئين 95 بالملي ثانية، على جهاز الحَكَم",
                "median and 95th percentile, ms, on the judge's machine",
            ),
            same(f"{timed.p50_ms:.3g} · {timed.p95_ms:.3g}"),
        )
        if timed.against is not None:
            yield (
                Words("زمنه بالقياس إلى البطل الذي لقيه", "in times of the champion it met"),
                same(f"{timed.against:.3g}"),
            )
    if one.memory_bytes:
        yield Words("ذروة الذاكرة بالبايتات", "peak memory, bytes"), same(f"{one.memory_bytes:,}")
    if one.shifted_error is not None:
        yield (
            Words("خطؤه على مدخلات خارج نطاق التدريب", "error on inputs beyond those of training"),
            _number(one.shifted_error),
        )
    yield (
        Words("لا يفوقه نموذج في الخطأ والزمن والحجم معًا", "no model beats it in all of these"),
        _yes(one.is_front),
    )


def _gates(checks: Sequence["Check"]) -> Table:
    columns = (
        Words("البوابة", "gate"),
        Words("الحكم", "verdict"),
        Words("القيمة", "value"),
        Words("الحد", "bound"),
        Words("يقع يقينًا بين", "surely between"),
    )
    rows = [
        (
            GATES.get(one.name, same(_text(one.name))),
            CHECKS[one.verdict],
            _number(one.value),
            _number(one.bound),
            _between(one),
        )
        for one in checks
    ]
    return Table(columns, rows)


def _between(one: "Check") -> Words:
    lower, upper = _number(one.lower).en, _number(one.upper).en
    if one.lower is None and one.upper is None:
        return same("–")
    if one.lower is None:
        return Words(f"لا يزيد على {upper}", f"at most {upper}")
    if one.upper is None:
        return Words(f"لا يقل عن {lower}", f"at least {lower}")
    return Words(f"من {lower} إلى {upper}", f"{lower} to {upper}")


# ── drawing the cases again ──

_RECIPE = """\
from pathlib import Path
import torch
from agent import checkpoints
from agent.specialists import evaluation, forms, registry
from core.events import BaseModel
from orchestrator import hidden, models

specialist = registry.get({specialist!r}, {parameters!r}, {corpus!r}, {base})
module = forms.build(specialist, checkpoints.read_config(Path({config!r})))
checkpoints.load_weights(Path({weights!r}), module)
secret = bytes.fromhex({secret!r})
errors = []
for stage, cases in hidden.gate_cases(specialist, secret, {node!r}, {round!r}):
    errors.append(evaluation.case_errors(specialist, module, cases, models.CASES_AT_ONCE))
    if stage.cases >= {cases}:
        break
print(float(torch.cat(errors).mean()))"""


def _drawing(served: Served) -> Section:
    champion, one, decision = served.champion, served.round, card_evidence.decision(served)
    met = card_evidence.measured(served)
    workload, base = champion.workload, champion.workload.base_model
    recipe = _RECIPE.format(
        specialist=workload.specialist,
        parameters=dict(workload.parameters),
        corpus="." if workload.corpus else "",
        base=base and f"BaseModel(name={base.name!r}, digest={base.digest!r}, bytes={base.bytes})",
        secret=decision.secret,
        node=champion.node_id,
        round=one.round_id,
        cases=met.cases,
        config=CONFIG_FILE,
        weights=WEIGHTS_FILE,
    )
    if not met.cases:
        rejudge = _code(f"aghsan audit --rejudge {one.round_id}")
        words = Words(
            f"لم يبلغ هذا النموذج حالات البوابة: خطؤه من حالات الترتيب. ويعيد {rejudge} قياسه.",
            "It did not come to the cases of the gate: its error is that of the cases by which its "
            f"round ranked. {rejudge} measures it again.",
        )
        return Section(Words("سحب الحالات من جديد", "Drawing the cases again"), [words])
    parts: list[Words | Table | Code] = [
        Words(
            "سُحبت الحالات من سرّ التُزم ببصمته قبل التدريب وكُشف مع الحكم، فلكل أحد أن يسحبها من "
            "جديد:",
            "The cases were drawn from a secret, whose hash was committed to before the training, "
            "and which was revealed with the verdict. So anyone can draw them again:",
        ),
        _facts(
            [
                (Words("السرّ", "secret"), same(_code(decision.secret))),
                (
                    Words("الالتزام (SHA-256 للسرّ)", "commitment (SHA-256 of the secret)"),
                    same(_code(one.commitment)),
                ),
            ]
        ),
        Words(
            "يطبع هذا في هذا المجلد، حيث أغصان مثبّت، متوسط الخطأ المذكور أعلاه:",
            "In this folder, where Aghsan is installed, this prints the mean error above:",
        ),
        Code("python", recipe),
    ]
    if workload.corpus is not None:
        hidden = workload.corpus.hidden
        parts.append(
            Words(
                "والحالات من وثائق المدوّنة المخفية، فضع هنا أولًا `hidden.txt` من "
                f"{_code(hidden)} "
                f"(`aghsan artifact get {hidden[:16]} DIR`).",
                "The cases are pieces of the hidden documents of the corpus: first put "
                f"`hidden.txt` of {_code(hidden)} here (`aghsan artifact get {hidden[:16]} DIR`).",
            )
        )
    return Section(Words("سحب الحالات من جديد", "Drawing the cases again"), parts)


# ── lineage ──


def _lineage(reigns: Sequence["Reign"]) -> Section:
    columns = (
        Words("رُقّي", "promoted"),
        Words("البطل", "champion"),
        Words("الدور", "rival"),
        Words("الخطأ", "error"),
        Words("خط الأساس", "baseline"),
        Words("المهمة", "task"),
        Words("العامل", "worker"),
        Words("بقرار", "by"),
        Words("انتهى بلا خلف", "ended without successor"),
    )
    rows = [
        (
            same(events.isoformat(reign.promoted_at)),
            same(_code(reign.champion.candidate_id)),
            RIVALS[reign.champion.rival],
            _number(reign.champion.error),
            _number(reign.champion.baseline_error),
            same(_code(reign.champion.task_id)),
            same(_code(reign.champion.worker_id)),
            BY[reign.by],
            same(events.isoformat(reign.retired_at) if reign.retired_at else "–"),
        )
        for reign in reigns
    ]
    said = Words(
        "أبطال العقدة بترتيب حكمهم، وآخرهم هذا النموذج. وحيث انتهى حكم بلا خلف كان للعقدة قبله "
        "عمل آخر.",
        "The champions of the node in the order they reigned; the last is this model. Where one "
        "ended without a successor, the node trained something else until then.",
    )
    return Section(Words("النسب", "Lineage"), [said, Table(columns, rows)])


# ── files and use ──


def _files(served: Served) -> Section:
    rows = [
        (same(_code(name)), same(f"{len(data):,}"), same(_code(hashlib.sha256(data).hexdigest())))
        for name, data in served.files.items()
    ]
    columns = (Words("الملف", "file"), Words("البايتات", "bytes"), same("SHA-256"))
    return Section(
        Words("الملفات", "Files"),
        [
            Table(columns, rows),
            Words(
                f"بصمة الأوزان كما يسجلها السجلّ (الأعداد بأسمائها وأنواعها وأشكالها، كيفما رُتبت): "
                f"{_code(served.champion.weights_sha256)}",
                "The hash of the weights as the log has it (tensors by name, with type and shape, "
                f"however laid out): {_code(served.champion.weights_sha256)}",
            ),
        ],
    )


def _using(head: Head, specialist: "Specialist") -> Section:
    from agent.specialists import questions

    run = ["aghsan", "champion", "run", head.node]
    lines = [
        platforms.shell_line([*run, "--model", "DIR", "--example"]),
        platforms.shell_line([*run, "inputs.jsonl", "--model", "DIR", "-o", "answers.jsonl"]),
    ]
    columns = (Words("الحقل", "field"), Words("الشكل", "shape"), Words("المعنى", "meaning"))
    parts: list[Words | Table | Code] = [
        Words(
            "DIR هو هذا المجلد. الأمر الأول يطبع سطرًا مثالًا، والثاني يجيب عن كل سطر JSON من ملف:",
            "DIR is this folder. The first prints an example line, the second answers each line of "
            "JSON of a file:",
        ),
        Code("console", "\n".join(f"$ {line}" for line in lines)),
        Words("المدخلات:", "Inputs:"),
        Table(columns, [_field(field) for field in specialist.inputs]),
        Words("الأجوبة:", "Answers:"),
        Table(columns, [_field(field) for field in specialist.answers]),
        Words("مثال لسطر:", "An example line:"),
        Code("json", questions.example(specialist)),
    ]
    if head.base_model is not None:
        name = _text(head.base_model.name)
        parts.append(
            Words(
                f"ويحتاج نموذج الأساس {name} على هذا الجهاز (docs/corpora.md).",
                f"It needs the base model {name} on this machine (docs/corpora.md).",
            )
        )
    return Section(Words("كيف يُستعمل", "How to use it"), parts)


def _field(field: "Field") -> tuple[Words, Words, Words]:
    return same(_code(field.name)), _shape(field), Words(_text(field.ar), _text(field.en))


def _shape(field: "Field") -> Words:
    if field.is_text:
        return Words("نص", "a text")
    if not field.shape:
        return Words("عدد", "a number")
    count = f"{field.fewest}–{field.shape[0]}" if field.fewest else f"{field.shape[0]}"
    return same(f"[{', '.join((count, *map(str, field.shape[1:])))}]")
