"""Why a model says what it says: which features, experts and concepts its answers rest on."""

from scmoe.explain import concepts, faithfulness, figures, routing
from scmoe.explain.answer import complete
from scmoe.explain.attribution import METHODS, PRIMARY, Explanation, attribute

__all__ = [
    "METHODS", "PRIMARY", "Explanation", "attribute", "complete", "concepts", "faithfulness",
    "figures", "routing",
]  # fmt: skip
