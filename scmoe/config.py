"""What a model is made of, how it is trained, and the presets of the four data sets.

``strict`` is the default: one recipe for every data set, without the faults of the reference
implementation. ``paper`` gives the reference's architecture, initialisation, losses and
hyper-parameters; every fault that changes its numbers is a named field below, so that each can be
switched off by itself with :func:`dataclasses.replace`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Annotated, Literal, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

Protocol = Literal["strict", "paper"]
Task = Literal["supervised", "unsupervised"]
Count = Annotated[int, Field(ge=1)]
Fours = Annotated[int, Field(ge=4, multiple_of=4)]  # 16-byte rows for grouped products
Share = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def check_fields(values) -> None:
    """Refuse, by name, values of a dataclass that are not of their fields' types and ranges."""
    for name, kind in _adapters(type(values)).items():
        value = getattr(values, name)
        try:
            kind.validate_python(value, strict=True)
        except ValidationError as error:
            wanted = "; or ".join(dict.fromkeys(told["msg"] for told in error.errors()))
            raise ValueError(f"parameter {name}={value!r}: {wanted}") from None


@cache
def _adapters(kind: type) -> dict[str, TypeAdapter]:
    hints = get_type_hints(kind, include_extras=True)
    return {f.name: TypeAdapter(hints[f.name]) for f in fields(kind) if f.repr}


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of the network."""

    members: Count = 6  # networks side by side; each holds out another part of the training cells
    n_components: Count | None = 60  # principal components read and written; None: features
    d: Fours = 64  # width of a token
    n_patches: Count = 1  # tokens per modality, each of an equal share of what is read
    n_heads: Count = 4
    n_layers: Count = 1
    n_experts: Count = 8
    top_k: Count = 2
    hidden: Fours | None = 32  # width of an expert's hidden layer; None: 2 d
    n_routers: Count | None = None  # None: one per modality; else i uses min(i, n_routers - 1)
    attention: bool = False  # False: tokens of several modalities meet in the group head alone
    dropout: Share = 0.2
    input_dropout: Share = 0.2  # of up to 1,000 cells; of n cells 1,000 / n times as much
    attention_dropout: Share = 0.0
    input_residual: bool = True  # False: the reference's a + dropout(a), which drops the input
    fastmoe_init: bool = False  # True: expert weights start sqrt(out features) too small
    # True: as the published code has them: attention without biases, its output dropped out twice;
    # decoders of width d with ReLU; positions that start at 0
    published_layers: bool = False

    def __post_init__(self):
        """Refuse impossible sizes."""
        check_fields(self)
        if self.d % self.n_heads:
            raise ValueError(f"d={self.d} must be a multiple of n_heads={self.n_heads}.")
        if self.top_k > self.n_experts:
            raise ValueError(f"top_k={self.top_k} exceeds n_experts={self.n_experts}.")


@dataclass(frozen=True)
class TrainConfig:
    """Losses, optimiser and stopping rule."""

    epochs: Count = 200
    # with many cells fewer epochs, so that there are no more steps; the learning rate falls to 0
    # along half a cosine over all of them. None: all epochs, at one rate
    max_steps: Count | None = 2000
    batch_size: Count = 128
    lr: Rate = 6e-3
    weight_decay: Weight = 0.05
    patience: Count | None = 15  # epochs without a better validation loss; None: run all epochs
    # False: nothing is held out but by members for one another; one network sees every cell
    hold_out: bool = True
    clip: Rate = 1.0  # gradient value clip
    group_weight: Weight = 1.0  # cross-entropy, supervised only
    decoder_weight: Weight = 1.0
    gate_weight: Weight = 0.01
    ddc_weight: Weight = 0.0  # deep divergence clustering
    modality_dropout: Share = 0.2  # chance that a modality is hidden from the joint view
    input_noise: dict[str, Weight] = field(default_factory=dict)  # modality -> scale x its variance
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
        check_fields(self)


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
        """Inverse of :meth:`to_dict`; a `ValueError` names what is missing or impossible."""
        try:
            return cls(ModelConfig(**values["model"]), TrainConfig(**values["train"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"No settings as Config.to_dict gives them: {error}.") from error

    def replace(self, **changes) -> Config:
        """A copy with fields changed, wherever they live: ``config.replace(d=128, epochs=10)``.

        A name that is a field of neither part is a `ValueError`.
        """
        parts = {"model": self.model, "train": self.train}
        known = {f.name: part for part, c in parts.items() for f in fields(c)}
        if unknown := set(changes) - set(known):
            raise ValueError(f"Unknown setting {sorted(unknown)}; known: {sorted(known)}.")
        values = self.to_dict()
        for name, value in changes.items():
            values[known[name]][name] = value
        return Config.from_dict(values)


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
    """The configuration for a data set, the same for all but in the ``paper`` protocol.

    That one has the reference's own architecture, losses and hyper-parameters (read from its public
    code), for ``dyngen``, ``dbitseq``, ``patchseq`` and ``atacseq``; others are a `ValueError`.
    """
    if protocol == "strict":
        return Config()
    if protocol != "paper":
        raise ValueError(f"protocol={protocol!r} must be 'strict' or 'paper'.")
    if dataset not in _PAPER:
        raise ValueError(f"No paper preset for {dataset!r}; there is one for {', '.join(_PAPER)}.")
    return Config().replace(**(_PAPER_COMMON | _PAPER[dataset]))
