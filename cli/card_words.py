"""What each specialist does and measures, in both languages, for the card of a model."""

from typing import NamedTuple


class Words(NamedTuple):
    """The same in both languages."""

    ar: str
    en: str


def same(text: object) -> Words:
    """What needs no translation."""
    return Words(str(text), str(text))


class Work(NamedTuple):
    """What a specialist's models do, and what their error is."""

    does: Words
    error: Words


WORKS = {
    "root-math": Work(
        Words("يجمع عددين", "adds two numbers"),
        Words("نسبة المجاميع التي أخطأ في رقم منها", "the share of sums with a wrong digit"),
    ),
    "math-physics": Work(
        Words(
            "يقول ما يصير إليه حقل على دائرة بعد أن ينتقل وينتشر (معادلة الانتقال والانتشار)",
            "says what advection and diffusion make of a field on a circle",
        ),
        Words("الخطأ النسبي L2 للحقل عند t = 1", "relative L2 error of u at t = 1"),
    ),
    "math-statistics": Work(
        Words(
            "يستدل من قراءات قليلة على المتوسط الذي وراءها وعلى مدى التيقن منه",
            "says what a few readings tell of the mean behind them, and how surely",
        ),
        Words(
            "تباعد KL عن التوزيع البعدي الدقيق، بالنات",
            "KL divergence from the exact posterior, nats",
        ),
    ),
    "math-optimization": Work(
        Words(
            "يجد أدنى نقطة لدالة تربيعية بعدد قليل من الضرب في مصفوفتها",
            "finds the lowest point of a quadratic from a few products with its matrix",
        ),
        Words("|x - الحل| / |الحل|", "|x - solution| / |solution|"),
    ),
    "physics-fluid": Work(
        Words(
            "يقول ما يصير إليه جريان لزج على دائرة (معادلة بيرغرز)",
            "says what becomes of a viscous flow on a circle (Burgers' equation)",
        ),
        Words("الخطأ النسبي L2 للحقل في الزمن الأخير", "relative L2 error of u at the final time"),
    ),
    "physics-quantum": Work(
        Words(
            "يقول أدنى ثلاث طاقات لجسيم في بئر جهد على خط",
            "says the three lowest energies of a particle in a well on a line",
        ),
        Words(
            "أكبر أخطاء الطاقات الثلاث، بالهارتري",
            "the largest error of the three energies, hartree",
        ),
    ),
    "stats-bayesian": Work(
        Words(
            "يقول أين صار مقدار ينجرف، من 32 قراءة ضاجّة له، وبأي يقين",
            "says where a drifting quantity is now, from 32 noisy readings, and how surely",
        ),
        Words(
            "تباعد KL عن التوزيع البعدي الدقيق، بالنات",
            "KL divergence from the exact posterior, nats",
        ),
    ),
    "stats-time-series": Work(
        Words(
            "يتنبأ بما يلي من سلسلة شهرية بعد ستة أعوام منها",
            "forecasts what follows six years of a monthly series",
        ),
        Words(
            "زيادة MASE على أفضل ما يمكن، نسبةً إلى زيادة التنبؤ الموسمي الساذج",
            "MASE beyond the best possible, over that of the seasonal naive forecast",
        ),
    ),
    "opt-convex": Work(
        Words(
            "يحل مسألة LASSO بمصفوفة معلنة في عدد قليل من الخطوات",
            "solves the LASSO with a public matrix in a few iterations",
        ),
        Words(
            "فجوة الثنوية نسبةً إلى قيمة الهدف عند x = 0",
            "duality gap, over the objective at x = 0",
        ),
    ),
    "opt-discrete": Work(
        Words("يجد جولة قصيرة تمر بمدن وتعود", "finds a short closed tour through cities"),
        Words(
            "الطول / طول أقصر جولة - 1",
            "length / length of the shortest tour - 1",
        ),
    ),
    "text": Work(
        Words(
            "يقول كم يُتوقع نص في مدوّنة، بايتًا بعد بايت",
            "says how likely a text is in a corpus, byte by byte",
        ),
        Words("بت لكل بايت", "bits per byte"),
    ),
}
RIVALS = {
    "evolver": Words("المطوِّر الحالي", "current evolver"),
    "reinventor": Words("المبتكِر من الصفر", "zero reinventor"),
    "merge": Words("الدمج", "merge"),
}

BY = {"judge": Words("الحَكَم", "judge"), "person": Words("إنسان", "person")}

CHECKS = {
    "pass": Words("اجتاز", "pass"),
    "fail": Words("لم يجتز", "fail"),
    "undecided": Words("لم يتضح", "undecided"),
}

GATES = {
    "error": Words("الخطأ", "error"),
    "best": Words("الخطأ أمام أفضل ما كان", "error against the best ever"),
    "evidence": Words("نسبة الإجابات المثبتة", "evidence rate"),
    "latency": Words("الزمن", "latency"),
    "size": Words("الحجم", "size"),
    "memory": Words("الذاكرة", "memory"),
    "shifted": Words("مدخلات خارج نطاق التدريب", "shifted inputs"),
}
