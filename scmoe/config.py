"""What a model is made of, how it is trained, and the presets of the four data sets.

``strict`` is the default: one recipe for every data set, without the faults of the reference
implementation. ``paper`` gives the reference's architecture, initialisation, losses and
hyper-parameters; every fault that changes its numbers is a named field below, so that each can be
switched off by itself with :func:`dataclasses.replace`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Literal

Protocol = Literal["strict", "paper"]
Task = Literal["supervised", "unsupervised"]


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of the network."""

    members: int = 6  # networks side by side; each holds out another part of the training cells
    n_components: int | None = 60  # principal components read and written; None: features
    d: int = 64  # width of a token
    n_patches: int = 1  # tokens per modality, each of an equal share of what is read
    n_heads: int = 4
    n_layers: int = 1
    n_experts: int = 8
    top_k: int = 2
    hidden: int | None = 32  # width of an expert's hidden layer; None: 2 d
    n_routers: int | None = None  # None: one per modality; else i uses min(i, n_routers - 1)
    attention: bool = False  # False: tokens of several modalities meet in the group head alone
    dropout: float = 0.2
    input_dropout: float = 0.2  # of up to 1,000 cells; of n cells 1,000 / n times as much
    attention_dropout: float = 0.0
    input_residual: bool = True  # False: the reference's a + dropout(a), which drops the input
    fastmoe_init: bool = False  # True: expert weights start sqrt(out features) too small
    # True: as the published code has them: attention without biases, its output dropped out twice;
    # decoders of width d with ReLU; positions that start at 0
    published_layers: bool = False

    def __post_init__(self):
        """Refuse impossible sizes."""
        _check(self)
        if self.d % self.n_heads:
            raise ValueError(f"d={self.d} must be a multiple of n_heads={self.n_heads}.")
        if self.d % 4:
            raise ValueError(f"d={self.d} must be a multiple of 4 (16-byte rows for grouped GEMM).")
        if self.top_k > self.n_experts:
            raise ValueError(f"top_k={self.top_k} exceeds n_experts={self.n_experts}.")
        if self.hidden is not None and self.hidden % 4:
            raise ValueError(f"hidden={self.hidden} must be a positive multiple of 4, or None.")


@dataclass(frozen=True)
class TrainConfig:
    """Losses, optimiser and stopping rule."""

    epochs: int = 200
    # with many cells fewer epochs, so that there are no more steps; the learning rate falls to 0
    # along half a cosine over all of them. None: all epochs, at one rate
    max_steps: int | None = 2000
    batch_size: int = 128
    lr: float = 6e-3
    weight_decay: float = 0.05
    patience: int | None = 15  # epochs without a better validation loss; None: run all epochs
    # False: nothing is held out but by members for one another; one network sees every cell
    hold_out: bool = True
    clip: float = 1.0  # gradient value clip
    group_weight: float = 1.0  # cross-entropy, supervised only
    decoder_weight: float = 1.0
    gate_weight: float = 0.01
    ddc_weight: float = 0.0  # deep divergence clustering
    modality_dropout: float = 0.2  # chance that a modality is hidden from the joint view
    input_noise: dict[str, float] = field(default_factory=dict)  # modality -> scale x its variance
    precision: Literal["float32", "bf16"] = "float32"
    # what the reference does differently, one switch each
    sum_pairs: bool = False  # decoder loss summed over all M x M pairs, not averaged over i != j
    target_visible: bool = False  # decoders see latents that have attended to the target
    ce_on_softmax: bool = False  # cross-entropy of softmax outputs: its floor is not 0
    own_scaling: bool = False  # features only standardised, scored cells by their own statistics
    score_training_cells: bool = False  # training cells are among those scored
    r2_upper_pairs_only: bool = False  # score only pairs target < source
    test_chooses_epoch: bool = False  # also keep, and score, the epoch with the best test ARI

    def __post_init__(self):
        """Refuse impossible schedules."""
        _check(self)
        for name, value in {"lr": self.lr, "clip": self.clip}.items():
            if value == 0 or (name == "lr" and math.isinf(value)):
                raise ValueError(f"{name}={value} must be above 0, and lr finite.")
        if self.precision not in ("float32", "bf16"):
            raise ValueError(f"precision={self.precision!r} must be 'float32' or 'bf16'.")


@dataclass(frozen=True)
class Config:
    """A model and its training."""

    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def to_dict(self) -> dict:
        """Plain dictionary, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> Config:
        """Inverse of :meth:`to_dict`.

        Raises
        ------
        ValueError
            If a setting is missing, unknown or impossible; it is named.
        """
        try:
            return cls(ModelConfig(**values["model"]), TrainConfig(**values["train"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"No settings as Config.to_dict gives them: {error}.") from error

    def replace(self, **changes) -> Config:
        """A copy with fields changed, wherever they live: ``config.replace(d=128, epochs=10)``.

        Raises
        ------
        ValueError
            If a name is a field of neither part.
        """
        parts = {"model": self.model, "train": self.train}
        known = {f.name: part for part, c in parts.items() for f in fields(c)}
        if unknown := set(changes) - set(known):
            raise ValueError(f"Unknown setting {sorted(unknown)}; known: {sorted(known)}.")
        values = self.to_dict()
        for name, value in changes.items():
            values[known[name]][name] = value
        return Config.from_dict(values)


def _check(config: ModelConfig | TrainConfig) -> None:
    """Refuse values that are not of their fields' types, or of no sense in any of that type."""
    for name, kind in ((f.name, f.type) for f in fields(config)):
        value, optional = getattr(config, name), kind.endswith(" | None")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if kind.startswith("int"):
            fine, takes = number and isinstance(value, int) and value >= 1, "a whole number from 1"
        elif kind == "bool":
            fine, takes = isinstance(value, bool), "True or False"
        elif kind == "float" and name.endswith("dropout"):
            fine, takes = number and 0 <= value < 1, "a number from 0 to below 1"
        elif kind == "float":
            fine, takes = number and value >= 0, "a number of at least 0"
        elif name == "input_noise":
            fine = isinstance(value, dict) and all(
                isinstance(m, str) and isinstance(v, int | float) and 0 <= v < math.inf
                for m, v in value.items()
            )
            takes = "numbers of at least 0 by modality"
        else:
            continue
        if not (fine or (optional and value is None)):
            raise ValueError(f"{name}={value!r} must be {takes}{', or None' * optional}.")


# Reference hyper-parameters, as its code has them. Two data sets ask for top_k = 4 there, but the
# value never reaches their model: 2 is what ran.
_PAPER = {
    "dyngen": dict(d=64, n_patches=8, n_heads=1, n_experts=16, batch_size=64, epochs=100, lr=1e-4,
                   own_scaling=True),
    "dbitseq": dict(d=128, n_patches=4, n_heads=4, n_experts=32, batch_size=256, epochs=500,
                    lr=1e-2, own_scaling=True),
    "patchseq": dict(d=128, n_patches=64, n_heads=4, n_experts=32, batch_size=64, epochs=300,
                     lr=4e-3, input_noise={"morph": 0.01}, own_scaling=True,
                     score_training_cells=True),
    "atacseq": dict(d=256, n_patches=4, n_heads=16, n_experts=32, n_routers=2, batch_size=16,
                    epochs=40, lr=1e-3),
}  # fmt: skip
_PAPER_COMMON = dict(
    members=1, n_components=None, attention=True, hidden=None, n_routers=1, top_k=2, dropout=0.1,
    input_dropout=0.0, attention_dropout=0.1, input_residual=False, fastmoe_init=True,
    published_layers=True, weight_decay=0.0, max_steps=None, patience=None, hold_out=False,
    clip=1.0, group_weight=10.0, decoder_weight=1.0, gate_weight=0.1, ddc_weight=0.01,
    modality_dropout=0.0, sum_pairs=True, target_visible=True, ce_on_softmax=True,
    r2_upper_pairs_only=True, test_chooses_epoch=True,
)  # fmt: skip


def preset(dataset: str | None = None, protocol: Protocol = "strict") -> Config:
    """The configuration for a data set.

    Parameters
    ----------
    dataset
        ``dyngen``, ``dbitseq``, ``patchseq`` or ``atacseq``. The strict recipe is the same for all.
    protocol
        ``strict``, or ``paper`` for the reference's own architecture, losses and hyper-parameters
        (facts read from its public code).

    Raises
    ------
    ValueError
        For an unknown protocol, or a data set that has no ``paper`` preset.
    """
    if protocol == "strict":
        return Config()
    if protocol != "paper":
        raise ValueError(f"protocol={protocol!r} must be 'strict' or 'paper'.")
    if dataset not in _PAPER:
        raise ValueError(f"No paper preset for {dataset!r}; there is one for {', '.join(_PAPER)}.")
    return Config().replace(**(_PAPER_COMMON | _PAPER[dataset]))
