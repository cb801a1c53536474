"""What both AIs of a node would do next, in words: plans of three steps that say nothing but what
the node's state says. Pure functions: the same situation and the same prompt give the same plans.

Every sentence is written in both languages by hand; which of them is answered, the prompt decides.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from core.events import Reasons, Rival, Role

Language = Literal["ar", "en"]
Side = Literal["evolver", "reinventor"]
Trial = Literal["first", "again", "longer", "merge", "lora", "full", "distill", "quantize"]
"""What a side would try next. first: there is no champion yet. again: as before."""

PROMPT_CHARS_READ = 2_000
"""The language of a prompt shows in its beginning."""
TOLD_CHARS_MAX = 600
"""Of one reason that is quoted."""
TASKS_TOLD_MAX = 3
RATIO_TOLD_MAX = 1_000.0
_OWN: dict[Side, tuple[Rival, ...]] = {
    "evolver": ("evolver", "merge"),
    "reinventor": ("reinventor",),
}
_NAMES: dict[Rival, Reasons] = {
    "evolver": Reasons(en="evolver", ar="المطوِّر"),
    "reinventor": Reasons(en="reinventor", ar="المبتكِر"),
    "merge": Reasons(en="merge", ar="الدمج"),
}
_ARABIC = (
    ("\u0600", "\u06ff"),
    ("\u0750", "\u077f"),
    ("\u08a0", "\u08ff"),
    ("\ufb50", "\ufdff"),
    ("\ufe70", "\ufeff"),
)
"""Unicode's blocks of Arabic letters, first and last."""


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a situation. What is empty, 0 or None is not known, and is not spoken of."""


class Champion(Value, frozen=True, kw_only=True):
    """The reigning model. Family and steps are as its worker told them."""

    candidate_id: str
    rival: Rival
    error: float
    baseline_error: float
    evidence_rate: float
    params: int = 0
    family: str = ""
    steps: int = 0


class Attempt(Value, frozen=True, kw_only=True):
    """A candidate of a decided round. `verdict` is the judge's word for it, `budget_seconds` that
    of its whole task."""

    candidate_id: str
    rival: Rival
    verdict: str
    reasons: Reasons
    method: str = ""
    error: float | None = None
    params: int = 0
    family: str = ""
    steps: int = 0
    budget_seconds: float = 0.0


class Outcome(Value, frozen=True, kw_only=True):
    """A decided round of what the node trains now; `missing` says why a rival brought nothing."""

    round_id: str
    verdict: str
    reasons: Reasons
    promoted: str = ""
    baseline_error: float | None = None
    attempts: tuple[Attempt, ...] = ()
    missing: tuple[tuple[Rival, str], ...] = ()


class Open(Value, frozen=True, kw_only=True):
    """A task that is to be done, and the worker that is at it."""

    task_id: str
    role: Role
    worker_id: str = ""


class Failure(Value, frozen=True, kw_only=True):
    """A task that failed for good, or (`is_final` false) an open one whose last attempt did."""

    task_id: str
    role: Role
    reason: str
    is_final: bool = True


class Order(Value, frozen=True, kw_only=True):
    """What the feeder would order next: a task of this node, or why there is none."""

    node_id: str = ""
    name: str = ""
    role: Role = "dual"
    budget_seconds: float = 0.0
    obstacle: Literal["", "workers", "judges", "nodes"] = ""


class Situation(Value, frozen=True, kw_only=True):
    """A node as it stands. `rounds`, `open` and `failures` are the newest, newest last."""

    node_id: str
    name: str
    specialist: str = ""
    inherited_from: str = ""
    corpus: str = ""
    base_model: str = ""
    budget_seconds_min: float | None = None
    """Least budget of a rival that teaches it anything; 0: any."""
    champion: Champion | None = None
    rounds: tuple[Outcome, ...] = ()
    rounds_pending: int = 0
    open: tuple[Open, ...] = ()
    open_count: int = 0
    failures: tuple[Failure, ...] = ()
    runner_up: str = ""
    """A judged model, other than the champion, that it can be merged with."""
    order: Order | None = None


class Plan(Value, frozen=True, kw_only=True):
    """What one AI is after, and its three steps."""

    focus: str
    steps: list[str]


class Plans(Value, frozen=True, kw_only=True):
    """The plans of both AIs."""

    evolver: Plan
    reinventor: Plan


# ── the language ──


def language(prompt: str, names: Iterable[str] = ()) -> Language:
    """The language most words of a prompt are in, and of as many the first one; Arabic where it has
    none. Names of a node are of no language of the asker's, unless nothing else was written."""
    rest = prompt = prompt[:PROMPT_CHARS_READ]
    for name in names:
        rest = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", " ", rest) if name else rest
    spoken = _spoken(rest) or _spoken(prompt)
    arabic = spoken.count("ar")
    if 2 * arabic == len(spoken):
        return spoken[0] if spoken else "ar"
    return "ar" if 2 * arabic > len(spoken) else "en"


def _spoken(text: str) -> list[Language]:
    """The language of each word, by its first letter."""
    letters = (next(filter(str.isalpha, word), "") for word in text.split())
    return ["ar" if _is_arabic(letter) else "en" for letter in letters if letter]


def _is_arabic(letter: str) -> bool:
    return any(first <= letter <= last for first, last in _ARABIC)


# ── the plans ──


def plans(situation: Situation, prompt: str) -> Plans:
    """What both AIs of a node would do, in the language of the prompt."""
    spoken = language(prompt, (situation.node_id, situation.name))
    name = _told(situation.name) or _told(situation.node_id)
    return Plans(
        evolver=_plan(
            spoken,
            Reasons(
                en=f"Gradual improvement within {name}",
                ar=f"تحسين تدريجي داخل اختصاص {name}",
            ),
            [_beginning(situation), _history(situation, "evolver"), _next(situation, "evolver")],
        ),
        reinventor=_plan(
            spoken,
            Reasons(
                en=f"Rebuilding {name} from nothing",
                ar=f"إعادة بناء من الصفر لاختصاص {name}",
            ),
            [_target(situation), _history(situation, "reinventor"), _next(situation, "reinventor")],
        ),
    )


def _plan(spoken: Language, focus: Reasons, steps: Sequence[list[Reasons]]) -> Plan:
    def said(words: Reasons) -> str:
        return words.ar if spoken == "ar" else words.en

    return Plan(focus=said(focus), steps=[" ".join(filter(None, map(said, one))) for one in steps])


def trial(situation: Situation, side: Side) -> Trial:
    """What a side would try next.

    Without a champion a first one; as before where the last round said nothing against that; after
    one rejection more time; then another way: of the evolver a merge with the runner-up, or the
    other of full and lora, and of the reinventor a student of the champion, then an int8 model.
    """
    if situation.champion is None:
        return "first"
    rejected = _rejected(situation, side)
    if not rejected or situation.rounds[-1].verdict == "void":
        return "again"
    if len(rejected) == 1:
        return "longer"
    methods = {attempt.method for attempt in rejected}
    if side == "reinventor":
        return "quantize" if "distill" in methods else "distill"
    if situation.runner_up and not any(attempt.rival == "merge" for attempt in rejected):
        return "merge"
    return "full" if "lora" in methods else "lora"


def _rejected(situation: Situation, side: Side) -> list[Attempt]:
    """A side's attempts since the last promotion that were compared and did not win."""
    found: list[Attempt] = []
    for outcome in situation.rounds:
        if outcome.promoted:
            found = []
            continue
        found += [one for one in _own(outcome, side) if one.verdict in ("reject", "outranked")]
    return found


def _own(outcome: Outcome, side: Side) -> list[Attempt]:
    return [one for one in outcome.attempts if one.rival in _OWN[side]]


def _last(situation: Situation, side: Side) -> tuple[Outcome, Attempt] | None:
    """A side's newest candidate that was judged; of several in a round the one that went furthest:
    the promoted or compared one before those that it outranked."""
    for outcome in reversed(situation.rounds):
        own = _own(outcome, side)
        if own:
            return outcome, min(own, key=lambda one: one.verdict not in _COMPARED)
    return None


# ── first steps: where it stands ──


def _beginning(situation: Situation) -> list[Reasons]:
    """What the evolver goes on from."""
    champion = situation.champion
    if champion is None:
        return [
            Reasons(
                en="There is no champion yet to go on from: train a first one.",
                ar="لا بطل بعدُ ليُكمَل منه: يُدرَّب أول نموذج.",
            ),
            *_work(situation),
            *_bar(situation),
        ]
    of = _described(champion.family, champion.params, champion.steps)
    told = [
        Reasons(
            en=f"Go on from the champion {_told(champion.candidate_id)}{of.en}. "
            f"{_against_baseline(champion).en}",
            ar=f"الإكمال من البطل {_told(champion.candidate_id)}{of.ar}. "
            f"{_against_baseline(champion).ar}",
        )
    ]
    if 0 <= champion.evidence_rate <= 1:
        rate = f"{100 * champion.evidence_rate:.3g} %"
        told.append(
            Reasons(
                en=f"{rate} of its answers lie within the tolerance.",
                ar=f"نسبة إجاباته التي تقع ضمن حد التسامح {rate}.",
            )
        )
    return [*told, *_work(situation)]


def _target(situation: Situation) -> list[Reasons]:
    """What the reinventor must beat."""
    champion = situation.champion
    if champion is None:
        return [
            Reasons(
                en="Begin from nothing: there is no champion whose size and speed must be beaten.",
                ar="البدء من الصفر: لا بطل بعدُ يُطلب أن يُغلب في صغره وسرعته.",
            ),
            *_work(situation),
            *_bar(situation),
        ]
    of = _described(champion.family, champion.params, 0)
    error = _figure(champion.error)
    told = [
        Reasons(
            en=f"To be beaten: the champion {_told(champion.candidate_id)}{of.en}, which the "
            f"{_NAMES[champion.rival].en} made. {_against_baseline(champion).en}",
            ar=f"المطلوب أن يُغلب: البطل {_told(champion.candidate_id)}{of.ar}، وهو من صنع "
            f"{_NAMES[champion.rival].ar}. {_against_baseline(champion).ar}",
        )
    ]
    if not champion.error:
        told.append(
            Reasons(
                en="No error is lower than none, so only a smaller model of equal answers is left "
                "to look for, and it would not be promoted.",
                ar="ولا خطأ دون الصفر، فلا يبقى إلا البحث عن نموذج أصغر يجيب مثله، ولن يُرقّى.",
            )
        )
    elif champion.params and math.isfinite(champion.error):
        told.append(
            Reasons(
                en=f"Aim: fewer than its {champion.params:,} numbers, so that an answer costs "
                f"less, and an error surely below {error} on the same hidden cases.",
                ar=f"الهدف: أوزان أقل من أوزانه وعددها {champion.params:,} ليكون الجواب أسرع، "
                f"وخطأ دون {error} يقينًا على الحالات المخفية نفسها.",
            )
        )
    return told


def _against_baseline(champion: Champion) -> Reasons:
    """A champion's error, against the baseline's where both are above 0."""
    error, baseline = champion.error, champion.baseline_error
    if not (math.isfinite(error) and math.isfinite(baseline)):
        return Reasons(en="Its error is not known.", ar="خطؤه غير معروف.")
    if not error and not baseline:
        return Reasons(
            en="Neither it nor the baseline makes an error on the hidden cases.",
            ar="لا يخطئ هو ولا خط الأساس على الحالات المخفية.",
        )
    if not error:
        return Reasons(
            en=f"It makes no error on the hidden cases; the baseline's is {_figure(baseline)}.",
            ar=f"لا يخطئ على الحالات المخفية؛ وخطأ خط الأساس {_figure(baseline)}.",
        )
    if not baseline:
        return Reasons(
            en=f"Its error is {_figure(error)}, and the baseline makes none.",
            ar=f"خطؤه {_figure(error)}، ولا يخطئ خط الأساس.",
        )
    ratio = _ratio(error / baseline)
    goal = (
        Reasons(en=", so the baseline comes first", ar="، فأول ما يُطلب تجاوز خط الأساس")
        if error > baseline
        else Reasons(en="", ar="")
    )
    return Reasons(
        en=f"Its error is {_figure(error)}, {ratio.en} times the baseline's "
        f"{_figure(baseline)}{goal.en}.",
        ar=f"خطؤه {_figure(error)}، ونسبته إلى خطأ خط الأساس {_figure(baseline)} هي "
        f"{ratio.ar}{goal.ar}.",
    )


def _work(situation: Situation) -> list[Reasons]:
    """What is trained, and whose work that is."""
    if not _told(situation.specialist):
        return [
            Reasons(
                en="The node trains nothing yet: give it work by `aghsan expand` or a corpus.",
                ar="لا عمل للعقدة بعد: يُعطاها بـ `aghsan expand` أو بمجموعة نصوص.",
            )
        ]
    en = ar = _told(situation.specialist)
    if _told(situation.corpus):
        en, ar = f"{en} on {_told(situation.corpus)}", f"{ar} على {_told(situation.corpus)}"
    if _told(situation.base_model):
        en += f", over the base model {_told(situation.base_model)}"
        ar += f"، فوق النموذج الأساس {_told(situation.base_model)}"
    if _told(situation.inherited_from):
        en += f" (inherited from {_told(situation.inherited_from)})"
        ar += f" (موروث من {_told(situation.inherited_from)})"
    return [Reasons(en=f"Its work is {en}.", ar=f"عملها {ar}.")]


def _bar(situation: Situation) -> list[Reasons]:
    """What a first champion has to be better than."""
    told = [
        Reasons(
            en="To reign, it must surely be better than the trivial predictor on hidden cases.",
            ar="وليصير بطلًا يجب أن يكون أفضل يقينًا من المتنبئ البديهي على حالات مخفية.",
        )
    ]
    for outcome in reversed(situation.rounds):
        baseline = outcome.baseline_error
        if baseline is not None and math.isfinite(baseline):
            told.append(
                Reasons(
                    en=f"The baseline's error in {_told(outcome.round_id)} was "
                    f"{_figure(baseline)}.",
                    ar=f"وكان خطأ خط الأساس في {_told(outcome.round_id)} {_figure(baseline)}.",
                )
            )
            break
    return told


def _described(family: str, params: int, steps: int) -> Reasons:
    """A model in brackets, "" where nothing of it is known."""
    parts: list[Reasons] = []
    if _told(family):
        parts.append(Reasons(en=f"family {_told(family)}", ar=f"العائلة {_told(family)}"))
    if params:
        parts.append(Reasons(en=_numbers(params), ar=f"عدد الأوزان {params:,}"))
    if steps:
        parts.append(Reasons(en=_steps(steps), ar=f"عدد الخطوات {steps:,}"))
    if not parts:
        return Reasons(en="", ar="")
    return Reasons(
        en=f" ({', '.join(one.en for one in parts)})", ar=f" ({'، '.join(one.ar for one in parts)})"
    )


# ── second steps: what happened ──


def _history(situation: Situation, side: Side) -> list[Reasons]:
    """What became of a side's last attempt, of the last round where that is another, and what
    failed."""
    told: list[Reasons] = []
    last = _last(situation, side)
    if last is not None:
        told.append(_judged(situation, side, *last))
    if not situation.rounds:
        told.append(
            Reasons(
                en="No round of this work has been decided yet, so nothing was promoted or "
                "rejected.",
                ar="لم تُحسم بعدُ أي جولة لهذا العمل، فلم يُرقَّ شيء ولم يُرفض شيء.",
            )
        )
    elif last is None:
        told.append(_NO_ATTEMPT[side])
    if situation.rounds and (last is None or last[0] is not situation.rounds[-1]):
        told.append(_closing(situation.rounds[-1]))
    if situation.rounds:
        told += _missing(situation.rounds[-1], side)
    return [*told, *_pending(situation), *_failed(situation, side)]


_NO_ATTEMPT: dict[Side, Reasons] = {
    "evolver": Reasons(
        en="In the last rounds no evolver was judged.", ar="لم يُحكم على مطوِّر في الجولات الأخيرة."
    ),
    "reinventor": Reasons(
        en="In the last rounds no reinvention was judged, so it is not known which family and size "
        "would be enough.",
        ar="لم يُحكم على مبتكَر في الجولات الأخيرة، فلا تُعرف العائلة التي تكفي ولا حجمها.",
    ),
}


def _judged(situation: Situation, side: Side, outcome: Outcome, attempt: Attempt) -> Reasons:
    """How a side's last attempt ended, and why."""
    of = _described(attempt.family, attempt.params, attempt.steps)
    name = f"{_told(attempt.candidate_id)}"
    method = _told(attempt.method)
    by = Reasons(en=f", method {method}", ar=f"، بالطريقة {method}") if method else _NOTHING
    error = _error_of(attempt)
    champion = situation.champion
    if attempt.candidate_id == outcome.promoted:
        verdict = _PROMOTED
    elif champion is not None and attempt.candidate_id == champion.candidate_id:
        verdict = _CHOSEN
    else:
        verdict = _VERDICTS.get(attempt.verdict, _UNCOMPARED)
    why = _because(attempt.reasons)
    share = _share(situation, attempt) if side == "reinventor" else _NOTHING
    return Reasons(
        en=f"The last attempt, {name}{of.en}{by.en}, {verdict.en} in {_told(outcome.round_id)}"
        f"{error.en}.{share.en}{why.en}",
        ar=f"المحاولة الأخيرة {name}{of.ar}{by.ar}: {verdict.ar} في {_told(outcome.round_id)}"
        f"{error.ar}.{share.ar}{why.ar}",
    )


_NOTHING = Reasons(en="", ar="")
_PROMOTED = Reasons(en="was promoted", ar="رُقّيت")
_CHOSEN = Reasons(
    en="was promoted by a person, after its verdict", ar="رقّاها إنسان بعد الحكم عليها"
)
_UNCOMPARED = Reasons(en="was compared with nothing", ar="لم تُقارن بشيء")
_VERDICTS = {
    "reject": Reasons(en="was rejected", ar="رُفضت"),
    "outranked": Reasons(en="was outranked by another candidate", ar="سبقها مرشح آخر"),
    "refused": Reasons(en="was refused before it was measured", ar="رُدّت قبل القياس"),
    "better": Reasons(en="was better, and another was promoted", ar="كانت أفضل ورُقّي غيرها"),
    "cheaper": Reasons(
        en="was as good and cheaper, and another was promoted",
        ar="كانت بالجودة نفسها وأقل كلفة، ورُقّي غيرها",
    ),
    "trade-off": Reasons(
        en="was better and costs more than the gates allow, so that a person decides,",
        ar="كانت أفضل وكلفتها فوق ما تسمح به البوابات، فالقرار لإنسان،",
    ),
    "undecided": Reasons(
        en="was neither surely better nor surely worse",
        ar="لم يتيقّن أنها أفضل ولا أنها أسوأ",
    ),
}
_COMPARED = ("better", "cheaper", "trade-off", "undecided", "reject")


def _error_of(attempt: Attempt) -> Reasons:
    if attempt.error is None or not math.isfinite(attempt.error):
        return _NOTHING
    error = _figure(attempt.error)
    return Reasons(en=f" with an error of {error}", ar=f" وخطؤها {error}")


def _share(situation: Situation, attempt: Attempt) -> Reasons:
    """How large an attempt is beside the champion, if it is another model."""
    champion = situation.champion
    if champion is None or champion.candidate_id == attempt.candidate_id:
        return _NOTHING
    if not champion.params or not attempt.params:
        return _NOTHING
    if champion.params == attempt.params:
        return Reasons(
            en=" It has as many numbers as the champion.", ar=" وعدد أوزانها عدد أوزان البطل."
        )
    ratio = _ratio(attempt.params / champion.params)
    return Reasons(
        en=f" It has {ratio.en} times as many numbers as the champion.",
        ar=f" ونسبة عدد أوزانها إلى عدد أوزان البطل {ratio.ar}.",
    )


def _because(reasons: Reasons) -> Reasons:
    """What the judge said, if anything."""
    en, ar = _told(reasons.en), _told(reasons.ar)
    return Reasons(
        en=f" The judge: “{en}”" if en else "",
        ar=f" قال الحَكَم: «{ar}»" if ar else "",
    )


def _closing(outcome: Outcome) -> Reasons:
    """How a round ended."""
    name, why = _told(outcome.round_id), _because(outcome.reasons)
    if outcome.promoted:
        promoted = _told(outcome.promoted)
        return Reasons(
            en=f"The last round {name} promoted {promoted}.{why.en}",
            ar=f"رقّت الجولة الأخيرة {name} المرشح {promoted}.{why.ar}",
        )
    if outcome.verdict == "void":
        return Reasons(
            en=f"The last round {name} came to no verdict.{why.en}",
            ar=f"لم تنته الجولة الأخيرة {name} إلى حكم.{why.ar}",
        )
    if outcome.verdict == "trade-off":
        return Reasons(
            en=f"The last round {name} left it to a person whom to promote.{why.en}",
            ar=f"تركت الجولة الأخيرة {name} لإنسان أن يقرر من يُرقّى.{why.ar}",
        )
    return Reasons(
        en=f"The last round {name} promoted nobody.{why.en}",
        ar=f"لم ترقِّ الجولة الأخيرة {name} أحدًا.{why.ar}",
    )


def _missing(outcome: Outcome, side: Side) -> list[Reasons]:
    """Why a side brought nothing to a round."""
    return [
        Reasons(
            en=f"{_told(outcome.round_id)} got no candidate of the {_NAMES[rival].en}: {reason}.",
            ar=f"ولم يصل {_told(outcome.round_id)} مرشح من {_NAMES[rival].ar}: {reason}.",
        )
        for rival, said in outcome.missing
        if rival in _OWN[side] and (reason := _told(said).rstrip("."))
    ]


def _pending(situation: Situation) -> list[Reasons]:
    count = situation.rounds_pending
    if not count:
        return []
    rounds = "1 round is" if count == 1 else f"{count:,} rounds are"
    return [
        Reasons(en=f"{rounds} still undecided.", ar=f"وعدد الجولات التي لم تُحسم بعد {count:,}.")
    ]


def _failed(situation: Situation, side: Side) -> list[Reasons]:
    """The newest failure that concerns a side."""
    for failure in reversed(situation.failures):
        if failure.role not in ("dual", *_OWN[side]):
            continue
        name, reason = _told(failure.task_id), _told(failure.reason).rstrip(".")
        why = f": {reason}" if reason else ""
        if failure.is_final:
            return [Reasons(en=f"{name} failed for good{why}.", ar=f"وأخفقت {name} نهائيًا{why}.")]
        return [
            Reasons(
                en=f"The last attempt at {name} failed, and it is queued again{why}.",
                ar=f"وأخفقت آخر محاولة في {name} فأُعيدت إلى الطابور{why}.",
            )
        ]
    return []


# ── third steps: what next ──


def _next(situation: Situation, side: Side) -> list[Reasons]:
    """What a side would try, for how long, after what is open, and whose turn it is."""
    return [
        _attempted(situation, side),
        *_budget(situation, side),
        *_waiting(situation, side),
        *_turn(situation),
    ]


def _attempted(situation: Situation, side: Side) -> Reasons:
    chosen = trial(situation, side)
    champion = situation.champion
    if champion is None or chosen == "first":
        return _FIRST[side]
    count = len(_rejected(situation, side))
    whom = _told(champion.candidate_id)
    match chosen:
        case "again" if side == "evolver":
            return Reasons(
                en=f"Next: go on from {whom} as before, since no comparison speaks against that.",
                ar=f"التالي: الإكمال من {whom} كما سبق، إذ لا مقارنة تدل على خلاف ذلك.",
            )
        case "again":
            return _rebuilt(situation)
        case "longer":
            return Reasons(
                en="Next: the same with a longer budget, since one rejection may be want of time.",
                ar="التالي: الشيء نفسه بميزانية أطول، فقد يكون الرفض الواحد من ضيق الوقت.",
            )
        case "merge":
            other = _told(situation.runner_up)
            return Reasons(
                en=f"Next, after {count} rejections since the last promotion: merge {whom} with "
                f"the runner-up {other} (method merge).",
                ar=f"التالي، وعدد مرات الرفض منذ آخر ترقية {count}: دمج {whom} مع الوصيف {other} "
                "(الطريقة merge).",
            )
        case "lora" | "full":
            return Reasons(
                en=f"Next, after {count} rejections since the last promotion: go on from {whom} by "
                f"another method, {chosen}.",
                ar=f"التالي، وعدد مرات الرفض منذ آخر ترقية {count}: الإكمال من {whom} بطريقة أخرى "
                f"هي {chosen}.",
            )
        case "distill":
            return Reasons(
                en=f"Next, after {count} rejections since the last promotion: a smaller student "
                f"that learns from {whom} too (method distill).",
                ar=f"التالي، وعدد مرات الرفض منذ آخر ترقية {count}: تلميذ أصغر يتعلم من {whom} "
                "أيضًا (الطريقة distill).",
            )
        case "quantize":
            return Reasons(
                en=f"Next, since a student of the champion did not win either ({count} rejections "
                "since the last promotion): a model whose linear layers are kept in 8 bits "
                "(method quantize).",
                ar=f"التالي، إذ لم يفز تلميذ البطل أيضًا (عدد مرات الرفض منذ آخر ترقية {count}): "
                "نموذج تُحفظ طبقاته الخطية في 8 بتات (الطريقة quantize).",
            )


_FIRST: dict[Side, Reasons] = {
    "evolver": Reasons(
        en="Next: train a first model of the evolver's own family, every weight of it (method "
        "full).",
        ar="التالي: تدريب أول نموذج من عائلة المطوِّر بكل أوزانه (الطريقة full).",
    ),
    "reinventor": Reasons(
        en="Next: train a first model of the reinventor's smaller family, from nothing (method "
        "full).",
        ar="التالي: تدريب أول نموذج من عائلة المبتكِر الأصغر، من الصفر (الطريقة full).",
    ),
}


def _rebuilt(situation: Situation) -> Reasons:
    """From nothing, with the family that was measured last, if any was."""
    last = _last(situation, "reinventor")
    of = _described(last[1].family, last[1].params, 0) if last is not None else _NOTHING
    if of.en:
        return Reasons(
            en=f"Next: rebuild it from nothing like the last attempt{of.en}, since no comparison "
            "speaks against that.",
            ar=f"التالي: إعادة بنائه من الصفر كالمحاولة الأخيرة{of.ar}، إذ لا مقارنة تدل على خلاف "
            "ذلك.",
        )
    return Reasons(
        en="Next: rebuild it from nothing with the first of the reinventor's own families, and "
        "have it measured.",
        ar="التالي: إعادة بنائه من الصفر بأولى عائلات المبتكِر، ثم قياسه.",
    )


def _budget(situation: Situation, side: Side) -> list[Reasons]:
    """How much it had last, how much it gets, and the least that is of use."""
    told: list[Reasons] = []
    last = _last(situation, side)
    is_longer = trial(situation, side) == "longer"
    if last is not None and (spent := last[1]) and (spent.budget_seconds or spent.steps):
        told.append(_spent(spent, is_longer=is_longer))
    least = situation.budget_seconds_min
    if least is None or not math.isfinite(least):
        return told
    if not least:
        return [*told, _ANY_BUDGET]
    needed = _seconds(least)
    return [
        *told,
        Reasons(
            en=f"Less than {needed} s on one core teaches it next to nothing.",
            ar=f"وما دون {_seconds_ar(least)} على نواة واحدة يكاد لا يعلّمه شيئًا.",
        ),
    ]


_ANY_BUDGET = Reasons(
    en="No least budget is set for this work.", ar="ولا حد أدنى مقرر لميزانية هذا العمل."
)


def _spent(spent: Attempt, *, is_longer: bool) -> Reasons:
    if spent.budget_seconds and math.isfinite(spent.budget_seconds):
        had, double = spent.budget_seconds, 2 * spent.budget_seconds
        more = Reasons(en=f"; now {_seconds(double)} s", ar=f"، والآن {_seconds_ar(double)}")
        more = more if is_longer else _NOTHING
        return Reasons(
            en=f"The task before had {_seconds(had)} s{more.en}.",
            ar=f"كان للمهمة السابقة {_seconds_ar(had)}{more.ar}.",
        )
    more = Reasons(en=f"; now {_steps(2 * spent.steps)}", ar=f"، والآن {2 * spent.steps:,}")
    more = more if is_longer else _NOTHING
    return Reasons(
        en=f"It took {_steps(spent.steps)} before{more.en}.",
        ar=f"كان عدد خطواته {spent.steps:,}{more.ar}.",
    )


def _waiting(situation: Situation, side: Side) -> list[Reasons]:
    """The open tasks of the node that bring a candidate of this side."""
    own = [one for one in situation.open if one.role in ("dual", *_OWN[side])]
    if not own:
        if not situation.open_count:
            return [Reasons(en="No task of the node is open.", ar="لا مهمة مفتوحة للعقدة.")]
        return []
    some = own[:TASKS_TOLD_MAX]
    en = ", ".join(f"{_told(one.task_id)}{_by(one).en}" for one in some)
    ar = "، ".join(f"{_told(one.task_id)}{_by(one).ar}" for one in some)
    if len(own) > len(some):
        en, ar = f"{en} and {len(own) - len(some):,} more", f"{ar} وغيرها {len(own) - len(some):,}"
    return [Reasons(en=f"First what is open: {en}.", ar=f"وقبل ذلك المهام المفتوحة: {ar}.")]


def _alone(rival: Reasons) -> Reasons:
    """A task of one rival, within the words about it."""
    return Reasons(en=f", for the {rival.en} alone", ar=f"، يتولاها {rival.ar} وحده")


def _by(task: Open) -> Reasons:
    worker = _told(task.worker_id)
    if not worker:
        return Reasons(en=" (queued)", ar=" (في الطابور)")
    return Reasons(en=f" (trained by {worker})", ar=f" (يدرّبها {worker})")


def _turn(situation: Situation) -> list[Reasons]:
    """Whose turn it is with the orchestrator."""
    order = situation.order
    if order is None:
        return []
    if order.obstacle:
        return [_OBSTACLES[order.obstacle]]
    needed = order.budget_seconds
    whose = _told(order.name) or _told(order.node_id)
    alone = _NOTHING if order.role == "dual" else _alone(_NAMES[order.role])
    budget = (
        Reasons(en=f", of {_seconds(needed)} s", ar=f"، مدتها {_seconds_ar(needed)}")
        if needed > 0 and math.isfinite(needed)
        else _NOTHING
    )
    if order.node_id == situation.node_id:
        return [
            Reasons(
                en=f"The orchestrator's next task would be one of this node{alone.en}{budget.en}.",
                ar=f"وأول ما يطلبه المنسّق مهمة لهذه العقدة{alone.ar}{budget.ar}.",
            )
        ]
    return [
        Reasons(
            en=f"The orchestrator's next task would be one of {whose}{alone.en}{budget.en}: it "
            "expects more of that.",
            ar=f"وأول ما يطلبه المنسّق مهمة لعقدة {whose}{alone.ar}{budget.ar}: إذ يتوقع منها أكثر.",
        )
    ]


_OBSTACLES = {
    "workers": Reasons(
        en="The orchestrator orders nothing while no worker is online.",
        ar="ولا يطلب المنسّق شيئًا ما دام لا عامل متصلًا.",
    ),
    "judges": Reasons(
        en="The orchestrator orders nothing until the judge has caught up.",
        ar="ولا يطلب المنسّق شيئًا حتى يلحق الحَكَم بما تأخر.",
    ),
    "nodes": Reasons(
        en="The orchestrator knows no node that a worker online can train.",
        ar="ولا يعرف المنسّق عقدة يستطيع عامل متصل تدريبها.",
    ),
}


# ── figures ──


def _figure(error: float) -> str:
    return f"{error:.4g}"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.4g}"


def _seconds_ar(seconds: float) -> str:
    """With the form that the number takes."""
    if seconds in (1, 2):
        return "ثانية واحدة" if seconds == 1 else "ثانيتان"
    is_few = seconds == int(seconds) and 3 <= seconds % 100 <= 10
    return f"{_seconds(seconds)} {'ثوانٍ' if is_few else 'ثانية'}"


def _numbers(count: int) -> str:
    return "1 number" if count == 1 else f"{count:,} numbers"


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count:,} steps"


def _ratio(ratio: float) -> Reasons:
    """A ratio; beyond a thousand either way nobody reads its digits."""
    if ratio < 1 / RATIO_TOLD_MAX:
        return Reasons(en=f"less than {1 / RATIO_TOLD_MAX:g}", ar=f"أقل من {1 / RATIO_TOLD_MAX:g}")
    if ratio > RATIO_TOLD_MAX:
        return Reasons(en=f"more than {RATIO_TOLD_MAX:,.0f}", ar=f"أكثر من {RATIO_TOLD_MAX:,.0f}")
    return Reasons(en=f"{ratio:.3g}", ar=f"{ratio:.3g}")


def _told(text: str) -> str:
    """Words of others on one line, and no more of them than anybody reads."""
    line = " ".join(text.split())
    return line if len(line) <= TOLD_CHARS_MAX else line[: TOLD_CHARS_MAX - 1] + "…"
