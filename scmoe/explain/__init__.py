"""Why a model says what it says: which features, experts and concepts its answers rest on."""

from scmoe.explain import concepts, faithfulness, recovery, routing
from scmoe.explain.attribution import (
    METHODS,
    PRIMARY,
    Attributions,
    Explanation,
    attribute,
    compare_attributions,
)

__all__ = [
    "METHODS",
    "PRIMARY",
    "Attributions",
    "Explanation",
    "attribute",
    "compare_attributions",
    "concepts",
    "faithfulness",
    "recovery",
    "routing",
]
