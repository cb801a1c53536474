"""The tree's seeds, names and bounds."""

from typing import NamedTuple

from core import errors

DEPTH_MAX = 16
CHILDREN_MAX = 64
NODES_MAX = 10_000
TREE_CHARS_MAX = 8 * 1024 * 1024
"""Of what all nodes say of themselves: who asks for the tree gets it whole, in one answer."""
ROOT = "root-math"


class Seed(NamedTuple):
    """One seeded node. `label` is its segment of the path; it trains the specialist of its id."""

    node_id: str
    parent_id: str | None
    name: str
    label: str
    ai_name: str
    description: str


SEEDS: tuple[Seed, ...] = (
    Seed(
        "root-math",
        None,
        "الرياضيات",
        "الرياضيات",
        "Math",
        "الجذر الذي تتفرع منه علوم المنطق والنمذجة",
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


def require_seeded(node_id: str) -> None:
    """Raise errors.NotFound for a node that is not seeded. One that is trains its own work, the
    specialist of its name."""
    known = [seed.node_id for seed in SEEDS]
    if node_id not in known:
        raise errors.NotFound(
            f"no seeded node is called {node_id!r}; the seeded ones are: {', '.join(known)}; of "
            "another say what it trains, by --specialist NAME or --corpus DIR"
        )
