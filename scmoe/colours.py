"""Colours, and names as figures say them: the same throughout the book.

Colours hold for readers with any colour vision: Okabe and Ito (2008) for modalities, Paul Tol's
schemes (technical note SRON/EPS/TN/09-002) for methods and groups. A colour never carries a
meaning alone: panels, markers or words repeat it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from natsort import natsorted

INK, FAINT = "#222222", "#9a9a9a"
MODALITIES = {
    "rna": "#0072B2", "mrna": "#0072B2", "pre_mrna": "#56B4E9", "niche": "#56B4E9",
    "protein": "#E69F00", "atac": "#009E73", "dna": "#009E73", "ephys": "#D55E00",
    "morph": "#CC79A7",
}  # fmt: skip
METHODS = {
    "scMoE": "#332288", "scMoE experts": "#7C71B8", "scMoE linear": "#44AA99", "ridge": "#999933",
    "logistic regression": "#DDAA33", "k-means": "#DDAA33", "UnitedNet": "#882255",
}  # fmt: skip
TITLES = {"rna": "RNA", "mrna": "mRNA", "pre_mrna": "pre-mRNA", "dna": "DNA", "atac": "ATAC",
          "ephys": "ephys", "morph": "morphology"}  # fmt: skip
_TOL_RAINBOW = [
    "#E8ECFB", "#D9CCE3", "#CAACCB", "#BA8DB4", "#AA6F9E", "#994F88", "#882E72", "#1965B0",
    "#437DBF", "#6195CF", "#7BAFDE", "#4EB265", "#90C987", "#CAE0AB", "#F7F056", "#F7CB45",
    "#F4A736", "#EE8026", "#E65518", "#DC050C", "#A5170E", "#72190E", "#42150A",
]  # fmt: skip
TOL_MUTED = ["#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677",
              "#882255", "#AA4499"]  # fmt: skip
SHARES = LinearSegmentedColormap.from_list("shares", ["#FFFFFF", "#C9C4E3", "#332288"])


def modality_colour(name: str) -> str:
    """Give the colour that a modality has throughout the book (grey for unknown names)."""
    return MODALITIES.get(name, "#777777")


def method_colour(name: str) -> str:
    """Give the colour that a method has throughout the book (by its longest known beginning)."""
    known = [method for method in METHODS if name.startswith(method)]
    return METHODS[max(known, key=len)] if known else FAINT


def contrast(one, other) -> float:
    """Give how well two colours are told apart, 1 to 21 (WCAG 2.2)."""
    dark, light = sorted(map(_luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def ink_on(ground) -> str:
    """Give black or white, whichever is read on the ground: always by a contrast above 4.5."""
    return max(("black", "white"), key=lambda ink: contrast(ink, ground))


def ink_of(colour) -> str:
    """Give a colour as words have it: as dark as they need to be read on white."""
    steps = (to_hex(_mix(colour, amount, 0)) for amount in np.linspace(0, 1, 21))
    return next(ink for ink in steps if contrast(ink, "white") >= 4.5)


def title_of(modality: str) -> str:
    """Give a modality's name as prose and axes say it."""
    return TITLES.get(modality, modality)


def in_order(names: Iterable[str]) -> list[str]:
    """Sort names as people do: numbers by value ("Sst-MET-2" before "Sst-MET-10")."""
    return natsorted(sorted(set(map(str, names))))


def group_colours(groups: Iterable[str]) -> dict[str, str]:
    """Give each group its colour; the groups come back sorted.

    Up to nine groups get Tol's muted scheme and up to 23 his discrete rainbow. Where more groups
    fall into few families (the word before the first space or dash: "Sst-MET-3", "Sst-MET-4"),
    a family is one hue and its members are shades.
    """
    groups = in_order(groups)
    families = list(dict.fromkeys(_family(group) for group in groups))
    if len(groups) <= len(TOL_MUTED):
        return dict(zip(groups, TOL_MUTED, strict=False))
    if len(groups) > len(_TOL_RAINBOW) and len(families) <= 6:
        hues = ["#EE7733", "#0077BB", "#AA3377", "#009988", "#CC3311", "#666633"]  # Tol's vibrant
        colours = {}
        for family, hue in zip(families, hues, strict=False):
            members = [group for group in groups if _family(group) == family]
            shades = LinearSegmentedColormap.from_list(
                "", [_mix(hue, 0.45, 1), hue, _mix(hue, 0.6, 0)]
            )
            at = np.linspace(0, 1, len(members)) if len(members) > 1 else [0.5]
            colours |= {group: to_hex(shades(x)) for group, x in zip(members, at, strict=True)}
        return {group: colours[group] for group in groups}
    steps = np.linspace(2, len(_TOL_RAINBOW) - 1, len(groups))  # the palest do not show on white
    rainbow = LinearSegmentedColormap.from_list("", _TOL_RAINBOW, N=1024)
    return {
        g: to_hex(rainbow(s / (len(_TOL_RAINBOW) - 1))) for g, s in zip(groups, steps, strict=True)
    }


def _family(group: str) -> str:
    return group.replace("-", " ").split(" ")[0]


def _luminance(colour) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def _mix(colour, amount, towards) -> tuple:
    """Mix a colour with white (`towards` 1) or black (0)."""
    return tuple((1 - amount) * channel + amount * towards for channel in to_rgb(colour))
