"""Backbones of simulated development: modules of genes and how they regulate each other."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Backbone:
    """Modules, named by their stage and a number, how they regulate, and the ways cells can go."""

    edges: tuple[tuple[str, str, int], ...]  # regulator, target, sign
    paths: tuple[tuple[tuple[str, str], ...], ...]  # milestones, the module that marks each
    share: dict[str, float]  # of the target genes that each stage drives
    silent: tuple[tuple[str, ...], ...] = ((),)  # modules that stay off on each path
    rivals: tuple[str, ...] = ()  # compete by chance: equal kinetics, few molecules
    linger: float = 0.0  # hours past the last milestone, for cells that the contest made late

    @property
    def modules(self) -> list[str]:
        """Names of the modules, in order of first mention."""
        return list(dict.fromkeys(name for edge in self.edges for name in edge[:2]))


def _series(letter: str, length: int) -> list[str]:
    return [f"{letter}{i + 1}" for i in range(length)]


def _chain(*names: str) -> list[tuple[str, str, int]]:
    return [(a, b, 1) for a, b in zip(names, names[1:], strict=False)]


def _exclusive(*arms: list[str]) -> list[tuple[str, str, int]]:
    """The head of each arm keeps itself on, and all other arms off: a cell ends up in one."""
    others = [(arm, other) for arm in arms for other in arms if other is not arm]
    edges = [(arm[0], arm[0], 1) for arm in arms]
    return edges + [(arm[0], module, -1) for arm, other in others for module in other]


def _linear() -> Backbone:
    line = [*_series("Burn", 4), *_series("A", 6), *_series("B", 6), *_series("C", 4)]
    return Backbone(
        edges=tuple(_chain(*line)),
        paths=((("sA", "Burn3"), ("sB", "B2"), ("sC", "C3")),),
        share={"Burn": 0.24, "A": 0.17, "B": 0.2, "C": 0.39},  # near dyngen's reference output
    )


def _branching(arms: str) -> Backbone:
    trunk = [*_series("Burn", 3), *_series("A", 5)]
    branches = {arm: _series(arm, 5) for arm in arms}
    edges = _chain(*trunk) + _exclusive(*branches.values())
    for branch in branches.values():
        edges += _chain(trunk[-1], *branch)
    return Backbone(
        edges=tuple(edges),
        paths=tuple(
            (("sA", "Burn3"), ("sB", "A5"), (f"s{arm}", branch[-1]))
            for arm, branch in branches.items()
        ),
        share={"Burn": 0.3, "A": 0.2} | {arm: 0.5 / len(arms) for arm in arms},
        silent=tuple(tuple(m for a in arms if a != arm for m in branches[a]) for arm in arms),
        rivals=tuple(branch[0] for branch in branches.values()),
        linger=25.0 * len(arms),
    )


def _converging() -> Backbone:
    burn, a, b = _series("Burn", 3), _series("A", 4), _series("B", 4)
    end = [*_series("C", 3), *_series("D", 6)]
    edges = _chain(*burn, *a, *end) + _chain(burn[-1], *b, end[0]) + _exclusive(a, b)
    edges += [("C1", "C1", 1), *(("C2", module, -1) for module in a + b)]  # forget the way here
    return Backbone(
        edges=tuple(edges),
        paths=tuple(((f"s{x}", f"{x}1"), ("sC", "C3"), ("sD", "D6")) for x in "AB"),
        share={"Burn": 0.3, "A": 0.15, "B": 0.15, "C": 0.2, "D": 0.2},
        silent=(tuple(b), tuple(a)),
        rivals=("A1", "B1"),
    )


def _cycle() -> Backbone:
    """Three stages in a ring: each switches the next one on and the one before off."""
    stages = [_series(letter, 4) for letter in "ABC"]
    edges = _chain("Burn1", *sum(stages, []))
    for stage, before in zip(stages, stages[-1:] + stages[:-1], strict=True):
        edges += [(stage[-1], module, -1) for module in before]
    # The first lap, from empty cells, is shorter: follow the next one, from C on.
    lap = (("sC", "C2"), ("sA", "A2"), ("sB", "B2"), ("sC", "C2"))
    return Backbone(tuple(edges), (lap,), {"Burn": 0.1, "A": 0.3, "B": 0.3, "C": 0.3})


BACKBONES = {
    "linear": _linear(),
    "bifurcating": _branching("CD"),
    "converging": _converging(),
    "cycle": _cycle(),
    "trifurcating": _branching("CDE"),
}
