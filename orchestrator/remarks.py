"""What a judge says of candidates, and of rounds that it cannot judge, in Arabic and English."""

from core import errors, events
from core.values import Reasons
from orchestrator import models
from orchestrator.models import brief_of
from orchestrator.rulings import Ruling


def in_arabic(error: Exception) -> str:
    """What kind of error it is."""
    if isinstance(error, models.Slow):
        return "تستغرق إجاباته وقتًا أطول من المسموح"
    if isinstance(error, errors.NotFound):
        return "لم توجد ملفاته أو لا يُعرف عمل هذه العقدة"
    return "ملفاته أو أوزانه ليست كما يجب"


def picked(ruling: Ruling, rank_error: float) -> Reasons:
    """Of the one that ranked first."""
    return Reasons(
        en=f"{ruling.reasons.en} It was picked by the lowest mean error, {rank_error:.4g}, on the "
        "ranking cases; the other figures are of the gate's cases.",
        ar=f"{ruling.reasons.ar} واختير لأن متوسط خطئه {rank_error:.4g} هو الأدنى على حالات "
        "الترتيب؛ وسائر الأرقام من حالات البوابة.",
    )


def picked_beside(ruling: Ruling, rank_error: float) -> Reasons:
    """Of the other one that was put to the gate."""
    return Reasons(
        en=f"{ruling.reasons.en} It was picked for costing less, with a mean error of "
        f"{rank_error:.4g} on the ranking cases; the other figures are of the gate's cases.",
        ar=f"{ruling.reasons.ar} واختير لأن كلفته أقل، ومتوسط خطئه {rank_error:.4g} على حالات "
        "الترتيب؛ وسائر الأرقام من حالات البوابة.",
    )


def outranked(error: float, best: float, cases: int) -> Reasons:
    """Of one that was not put to the gate. Of two that err alike only one is."""
    how_en, how_ar = ("as low a", "مساوٍ") if error == best else ("a lower", "أدنى")
    return Reasons(
        en=f"Another candidate had {how_en} mean error on the same {cases:,} hidden ranking "
        f"cases: {best:.4g} against {error:.4g}. The figures here are of those cases.",
        ar=f"لمرشح آخر متوسط خطأ {how_ar} على حالات الترتيب المخفية نفسها وعددها {cases:,}: "
        f"{best:.4g} مقابل {error:.4g}. والأرقام هنا من تلك الحالات.",
    )


def unjudged(error: float, model: str, is_champion: bool) -> Reasons:
    """Of a sound one where nothing can be compared."""
    whom_en, whom_ar = ("champion", "البطل") if is_champion else ("best ever", "الأفضل على الإطلاق")
    return Reasons(
        en=f"Sound, with a mean error of {error:.4g} on the ranking cases, but not judged: the "
        f"{whom_en} {model} could not be measured.",
        ar=f"سليم، ومتوسط خطئه {error:.4g} على حالات الترتيب، لكن لم يُحكم عليه: "
        f"تعذّر قياس {whom_ar} {model}.",
    )


NO_CANDIDATE = Reasons(en="No candidate stood in this round.", ar="لم يتقدم أي مرشح في هذه الجولة.")
NONE_SOUND = Reasons(
    en="No candidate of this round was sound; each one's reasons say why.",
    ar="لم يكن أي مرشح في هذه الجولة سليمًا؛ والأسباب عند كل مرشح.",
)


def refused(error: Exception) -> Reasons:
    """Of one that is not sound."""
    why = brief_of(error).rstrip(".")
    return Reasons(
        en=f"Refused without a measurement: {why}.",
        ar=f"رُفض قبل القياس: {in_arabic(error)} ({why}).",
    )


def not_comparable(model: events.Base, is_champion: bool, error: Exception) -> Reasons:
    """Where the champion, or the best ever, cannot be measured."""
    what_en, what_ar = ("champion", "البطل") if is_champion else ("best ever", "الأفضل على الإطلاق")
    stays_en = "it goes on reigning" if is_champion else "the champion goes on reigning"
    stays_ar = "يبقى بطلًا" if is_champion else "يبقى البطل"
    why, manifest = brief_of(error).rstrip("."), f"{model.manifest[:12]}…"
    return Reasons(
        en=f"Void: the stored model of the {what_en} {model.candidate_id} (manifest {manifest}) "
        f"cannot be measured: {why}. Nothing could be compared with it, so {stays_en}, and the "
        f"candidates stay stored. Restore its artifact from a backup.",
        ar=f"لا حكم: نموذج {what_ar} {model.candidate_id} المخزّن (البيان {manifest}) "
        f"لا يمكن قياسه: {in_arabic(error)} ({why}). فلم يمكن أن يُقارن به شيء؛ {stays_ar} وتبقى "
        f"نماذج المرشحين مخزّنة. استعد ملفاته من نسخة احتياطية.",
    )


KEY_LOST = Reasons(
    en="Void: the key behind this round's commitment is lost, so its hidden cases can never be "
    "drawn. The candidates stay stored and may be trained further.",
    ar="لا حكم: ضاع المفتاح الذي أُبرم به التزام هذه الجولة، فلا يمكن استخراج حالاتها المخفية أبدًا. "
    "تبقى نماذج المرشحين مخزّنة ويمكن متابعة تدريبها.",
)


OUTDATED = Reasons(
    en="Void: the node trains something else since this round's candidates were asked for. They "
    "stay stored, and none of them can be its champion.",
    ar="لا حكم: صارت العقدة تتدرب على عمل آخر بعد طلب مرشحي هذه الجولة. تبقى نماذجهم مخزّنة، "
    "ولا يصلح أي منها بطلًا لها.",
)


def tripped(error: Exception, times: int) -> Reasons:
    """Where the judge cannot measure a round, for a reason that nobody foresaw."""
    why = f"{type(error).__name__}: {brief_of(error)}".rstrip(".")
    return Reasons(
        en=f"Void: the judge failed {times} times while it measured this round, the last "
        f"time with {why}. Its log says more.",
        ar=f"لا حكم: تعثّر الحَكَم {times} مرات أثناء قياس هذه الجولة، وآخرها: {why}. "
        "وفي سجله تفصيل ذلك.",
    )
