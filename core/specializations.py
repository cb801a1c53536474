"""The tree's seeds, names and bounds."""

from typing import NamedTuple

from core import errors

DEPTH_MAX = 16
CHILDREN_MAX = 64
NODES_MAX = 10_000
ROOT = "root-math"


class Seed(NamedTuple):
    """One seeded node. `label` is its segment of the path, `specialist` what it trains itself."""

    node_id: str
    parent_id: str | None
    name: str
    label: str
    ai_name: str
    description: str
    specialist: str = ""


SEEDS: tuple[Seed, ...] = (
    Seed(
        "root-math",
        None,
        "الرياضيات",
        "الرياضيات",
        "Math",
        "الجذر الذي تتفرع منه علوم المنطق والنمذجة",
        "root-math",
    ),
    Seed(
        "math-physics",
        "root-math",
        "الرياضيات الفيزيائية",
        "الرياضيات الفيزيائية",
        "PhysMath",
        "معادلات تفاضلية تصف حركة الأنظمة الفيزيائية",
    ),
    Seed(
        "math-statistics",
        "root-math",
        "الإحصاء والاحتمالات",
        "الإحصاء",
        "Stats",
        "الاستدلال من البيانات تحت عدم اليقين",
    ),
    Seed(
        "math-optimization",
        "root-math",
        "التحسين",
        "التحسين",
        "Opt",
        "البحث عن أفضل الحلول تحت القيود",
    ),
    Seed(
        "physics-fluid",
        "math-physics",
        "ميكانيكا الموائع",
        "ميكانيكا الموائع",
        "Fluid",
        "جريان الموائع والصدمات واللزوجة",
    ),
    Seed(
        "physics-quantum",
        "math-physics",
        "النمذجة الكمية",
        "النمذجة الكمية",
        "Quantum",
        "مستويات الطاقة والدوال الموجية",
    ),
    Seed(
        "stats-bayesian",
        "math-statistics",
        "الاستدلال البايزي",
        "الاستدلال البايزي",
        "Bayes",
        "تحديث الاعتقاد مع كل مشاهدة جديدة",
        "stats-bayesian",
    ),
    Seed(
        "stats-time-series",
        "math-statistics",
        "السلاسل الزمنية",
        "السلاسل الزمنية",
        "TS",
        "التنبؤ بما يتغير مع الزمن",
    ),
    Seed(
        "opt-convex",
        "math-optimization",
        "التحسين المحدب",
        "التحسين المحدب",
        "Convex",
        "مسائل لها قاع واحد وبرهان على بلوغه",
        "opt-convex",
    ),
    Seed(
        "opt-discrete",
        "math-optimization",
        "التحسين المتقطع",
        "التحسين المتقطع",
        "Discrete",
        "مسارات وجداول واختيارات لا تتجزأ",
    ),
)

_BY_ID = {seed.node_id: seed for seed in SEEDS}


def workload_of(node_id: str) -> tuple[str, bool]:
    """The specialist a seeded node trains, and whether it is inherited from an ancestor.

    Raises errors.NotFound for a node that is not seeded.
    """
    seed = _BY_ID.get(node_id)
    if seed is None:
        known = ", ".join(_BY_ID)
        raise errors.NotFound(f"no seeded node is called {node_id!r}; the seeded ones are: {known}")
    inherited = False
    while not seed.specialist:
        assert seed.parent_id is not None, "the root has a specialist of its own"
        seed, inherited = _BY_ID[seed.parent_id], True
    return seed.specialist, inherited
