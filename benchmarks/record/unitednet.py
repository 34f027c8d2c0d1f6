"""UnitedNet (Tang et al., Nat Commun 2023), written from the description of the method.

One encoder and one decoder per modality; every latent goes through every decoder, so that a
translation never reads its target. The latents' weighted mean goes to several parallel group heads.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from mudata import MuData
from torch import Tensor, nn
from tqdm import tqdm

from scmoe.data import Split
from scmoe.method import Translator
from scmoe.nn.cells import Batch, Cells
from scmoe.nn.losses import ddc

ADVERSARIAL, DDC, ENTROPY = 0.1, 0.1, 0.1  # weights of losses; all others weigh 1
TEMPERATURE = 0.1  # of the contrastive loss
CLIP = 25.0  # gradient norm
EVAL_BATCH = 512


@dataclass(frozen=True)
class Sizes:
    """Layers and schedule of a network; the presets are the authors' where they are known."""

    widths: tuple[int, ...] = (256, 128)  # of an encoder; a decoder has them in reverse
    n_latent: int = 64
    n_heads: int = 10
    batch_norm: bool = False
    epochs: int = 40  # first phase and fine-tuning together
    batch_size: int = 16
    learning_rate: float = 1e-3


PRESETS = {
    "patchseq": Sizes((1024, 512, 256, 128), 68),
    "dbitseq": Sizes((512, 256, 128, 64), 22, epochs=30),
    "atacseq": Sizes((64, 64), 64, batch_norm=True, batch_size=128),
}


class UnitedNet(Translator):
    """UnitedNet: an autoencoder per modality, all decoders on all latents, and group heads.

    Training alternates full passes of a translation schedule (reconstruction, translation,
    contrastive and least-squares adversarial losses) and of a group schedule (class-balanced
    cross-entropy if supervised, else deep divergence clustering and the entropy of the groups'
    sizes), each with its own Adam. Translation and supervised groups each keep the weights of
    the epoch that validation cells liked best; clusters keep the last.

    ``task`` is as for :class:`scmoe.ScMoE`; ``sizes`` default to the preset of the data set, else
    to small layers.
    """

    method = "UnitedNet"

    def __init__(
        self,
        task: str = "supervised",
        sizes: Sizes | None = None,
        modalities: Sequence[str] | None = None,
        seed: int | None = None,
    ):
        super().__init__(modalities, seed)
        if task not in ("supervised", "unsupervised"):
            raise ValueError(f"task={task!r} must be 'supervised' or 'unsupervised'")
        self.task, self.sizes = task, sizes

    def fit(self, split: Split, device: str = "auto", progress: bool = False) -> UnitedNet:
        """Train on `split.train`, choose epochs on `split.val`; `split.test` is not touched."""
        self._start(split)
        self.sizes_ = self.sizes or PRESETS.get(split.name, Sizes())
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        train, val = (self._cells(part, device) for part in (split.train, split.val))
        if self.task == "supervised":
            for cells, part in ((train, split.train), (val, split.val)):
                numbers = pd.Index(self.groups_).get_indexer(part.obs[split.label_key].astype(str))
                cells.labels = torch.as_tensor(numbers).to(device)
        binary = [self.transform_.kinds[m] == "binary" for m in self.modalities_]
        n_features = [len(self.transform_.features[m]) for m in self.modalities_]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed_)
            network = _Network(n_features, binary, len(self.groups_), self.sizes_).to(device)
            self.networks_ = _train(network, train, val, self.sizes_, progress)
        return self

    def _cells(self, mdata: MuData, device, modalities: Sequence[str] | None = None) -> Cells:
        matrices, present = self._matrices(mdata, modalities)
        nowhere = np.zeros(mdata.n_obs, bool)
        present = np.stack([present.get(m, nowhere) for m in self.modalities_], 1)
        return Cells([matrices.get(m) for m in self.modalities_], present, None, device)

    def predict(self, mdata: MuData) -> pd.DataFrame:
        """Group of every cell: column ``group``, then a probability per group."""
        logits = self._run("groups", lambda network, b: network.logits(b), mdata)
        return self._group_table(logits.double().softmax(1).numpy(), mdata.obs_names)

    def _told(self, mdata, target, sources):
        """Mean over a cell's sources."""
        i = self.modalities_.index(target)
        told = self._run("translation", lambda network, b: network.translate(b, i), mdata, sources)
        values = told.numpy()
        return lambda rows: values[rows], ~np.isnan(values).any(1)

    def get_latent_representation(self, mdata: MuData) -> np.ndarray:
        """Weighted mean of the modalities' latents `(n_cells, n_latent)`."""
        fused = self._run("groups", lambda n, b: n.fuse(n.latents(b), b.present), mdata)
        return fused.numpy()

    @torch.no_grad()
    def _run(self, task: str, function, mdata: MuData, modalities=None) -> Tensor:
        network = self.networks_[task]
        cells = self._cells(mdata, network.fusion.device, modalities)
        return torch.cat([function(network, b).cpu() for b in _in_order(cells)])


def _mlp(widths: Sequence[int], batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in zip(widths[:-2], widths[1:-1], strict=True):
        layers += [nn.Linear(a, b), *([nn.BatchNorm1d(b)] if batch_norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(*widths[-2:]))


class _Head(nn.Module):
    """Projector and clusters: logits are products with unit vectors, one per group."""

    def __init__(self, n_latent: int, n_groups: int):
        super().__init__()
        linear, norm = nn.Linear(n_latent, n_latent), nn.LayerNorm(n_latent)
        self.project = nn.Sequential(linear, norm, nn.ReLU())
        self.clusters = nn.Parameter(nn.init.orthogonal_(torch.empty(n_groups, n_latent)))

    def forward(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.project(fused)  # (B, n_latent)
        return hidden @ F.normalize(self.clusters, dim=1).T, hidden


class _Network(nn.Module):
    """All parts. Shapes: B cells, M modalities, F_m features."""

    def __init__(self, n_features: list[int], binary: list[bool], n_groups: int, sizes: Sizes):
        super().__init__()
        inner = (*sizes.widths, sizes.n_latent)
        self.binary = binary
        self.encoders = nn.ModuleList(_mlp((f, *inner), sizes.batch_norm) for f in n_features)
        self.decoders = nn.ModuleList(_mlp((*inner[::-1], f), sizes.batch_norm) for f in n_features)
        self.critics = nn.ModuleList(_mlp((f, inner[-2], 1), False) for f in n_features)
        self.heads = nn.ModuleList(_Head(sizes.n_latent, n_groups) for _ in range(sizes.n_heads))
        self.fusion = nn.Parameter(torch.zeros(len(n_features)))
        self.register_buffer("best_head", torch.tensor(0))

    def latents(self, batch: Batch) -> list[Tensor | None]:
        return [None if x is None else e(x) for e, x in zip(self.encoders, batch.x, strict=True)]

    def fuse(self, latents: list[Tensor | None], present: Tensor) -> Tensor:
        weights = self.fusion.softmax(0) * present  # (B, M)
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-9)
        return sum(weights[:, j, None] * z for j, z in enumerate(latents) if z is not None)

    def logits(self, batch: Batch) -> Tensor:
        return self.heads[int(self.best_head)](self.fuse(self.latents(batch), batch.present))[0]

    def translate(self, batch: Batch, i: int) -> Tensor:
        """Mean over each cell's sources of modality `i` `(B, F_i)`; NaN where there is none."""
        total = 0
        for j, z in enumerate(self.latents(batch)):
            if z is not None:
                part = self.activation(i, self.decoders[i](z))
                total = total + torch.where(batch.present[:, j, None], part, 0.0)
        return total / batch.present.sum(1, keepdim=True)

    def activation(self, i: int, decoded: Tensor) -> Tensor:
        return decoded.sigmoid() if self.binary[i] else decoded

    def translation_loss(self, batch: Batch) -> tuple[Tensor, list]:
        """Loss of one step, and for the critics the `(modality, decoded)` that were translated."""
        latents, total, fakes = self.latents(batch), 0, []
        for i, decoder in enumerate(self.decoders):
            error = F.binary_cross_entropy_with_logits if self.binary[i] else F.mse_loss
            for j, z in enumerate(latents):
                both = batch.present[:, i] & batch.present[:, j]
                if not both.any():
                    continue
                decoded = decoder(z[both]) if both.sum() > 1 else decoder(z)[both]
                total = total + error(decoded, batch.x[i][both])
                if i != j:
                    fake = self.activation(i, decoded)
                    total = total + ADVERSARIAL * (self.critics[i](fake) - 1).square().mean()
                    fakes.append((i, fake.detach()))
        for i, j in combinations(range(len(latents)), 2):
            both = batch.present[:, i] & batch.present[:, j]
            if both.sum() > 1:
                total = total + contrastive(latents[i][both], latents[j][both])
        return total, fakes

    def critic_loss(self, batch: Batch, fakes: list) -> Tensor:
        total = torch.zeros(())
        for i, fake in fakes:
            real = batch.x[i][batch.present[:, i]]
            right = (self.critics[i](real) - 1).square().mean()
            total = total + ADVERSARIAL * (right + self.critics[i](fake).square().mean())
        return total

    def group_losses(self, batch: Batch, balance: Tensor | None) -> Tensor:
        """Loss of each head `(n_heads,)`."""
        fused = self.fuse(self.latents(batch), batch.present)
        losses = []
        for head in self.heads:
            logits, hidden = head(fused)
            if balance is not None:
                losses.append(F.cross_entropy(logits, batch.labels, balance))
            else:
                shares = logits.softmax(1).mean(0)
                entropy = (shares * shares.clamp(min=1e-9).log()).sum()
                losses.append(DDC * ddc(logits, hidden) + ENTROPY * entropy)
        return torch.stack(losses)


def contrastive(a: Tensor, b: Tensor) -> Tensor:
    """A cell's two latents are to be closer than those of different cells (InfoNCE, cosine)."""
    similarity = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / TEMPERATURE  # (B, B)
    same = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(similarity, same) + F.cross_entropy(similarity.T, same)) / 2


def _train(network: _Network, train: Cells, val: Cells, sizes: Sizes, progress: bool) -> dict:
    """Train, and return the networks that `predict` and `translate` are to use."""
    balance = None
    if train.labels is not None:
        counts = torch.bincount(train.labels, minlength=len(network.heads[0].clusters))
        balance = len(train) / (counts.clamp(min=1) * len(counts))
    critics = list(network.critics.parameters())
    rest = [p for name, p in network.named_parameters() if not name.startswith("critics")]
    adam = lambda parameters: torch.optim.Adam(parameters, sizes.learning_rate)  # noqa: E731
    translate, group, critic = adam(rest), adam(rest), adam(critics)
    best = {}
    for _ in tqdm(range(sizes.epochs), "UnitedNet", disable=not progress):
        network.train()
        for batch in _shuffled(train, sizes.batch_size):
            loss, fakes = network.translation_loss(batch)
            _step(translate, loss, rest)
            if fakes:
                _step(critic, network.critic_loss(batch, fakes), critics)
        losses = []
        for batch in _shuffled(train, sizes.batch_size):
            losses.append(network.group_losses(batch, balance))
            _step(group, losses[-1].mean(), rest)
        network.best_head.copy_(torch.stack(losses).mean(0).argmin())
        _keep_best(best, network, val)
    return {task: kept.eval() for task, (_, kept) in best.items()}


@torch.no_grad()
def _keep_best(best: dict, network: _Network, val: Cells) -> None:
    """Copy the network for each task whose validation loss is the least so far."""
    network.eval()
    error, entropy, n = 0.0, 0.0, len(network.decoders)
    for batch in _in_order(val):
        latents = network.latents(batch)
        for i, j in permutations(range(n), 2):
            decoded = network.activation(i, network.decoders[i](latents[j]))
            both = batch.present[:, i] & batch.present[:, j]
            error += (decoded - batch.x[i])[both].square().mean(1).sum().item()
        if val.labels is not None:
            entropy += F.cross_entropy(network.logits(batch), batch.labels, reduction="sum").item()
    for task, loss in (("translation", error), ("groups", entropy)):
        if task not in best or loss < best[task][0] or val.labels is None and task == "groups":
            best[task] = loss, copy.deepcopy(network)


def _shuffled(cells: Cells, size: int):
    """Batches in random order; a last batch of one cell is left out (batch norm needs two)."""
    for index in torch.randperm(len(cells)).split(size):
        if len(index) > 1:
            yield _alone(cells.batch(index[None]))


def _in_order(cells: Cells):
    return map(_alone, cells.batches(EVAL_BATCH))


def _alone(batch: Batch) -> Batch:
    """The batch without its axis of members, as this network has none."""
    x = [None if values is None else values[0] for values in batch.x]
    return Batch(x, batch.present[0], None if batch.labels is None else batch.labels[0])


def _step(optimiser: torch.optim.Optimizer, loss: Tensor, parameters: list) -> None:
    for p in parameters:
        p.grad = None
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, CLIP)
    optimiser.step()
