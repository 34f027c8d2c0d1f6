"""A plain implementation in the reference's manner: the row that every speed-up is a ratio to.

The same architecture, losses and hyper-parameters as the ``paper`` presets, written the way such
code is usually first written: a loop over experts, the mixture called once per modality, dropout by
``nn.Dropout``, one loss term per pair of modalities, a data set that hands over one cell at a time,
an optimiser that loops over parameters, losses read by ``.item()``, and two evaluations an epoch.
Nothing in it is slowed down on purpose.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, r2_score
from torch import nn
from torch.distributions.normal import Normal
from torch.utils.data import DataLoader, Dataset

from scmoe.config import Config


class NaiveGate(nn.Module):
    """Noisy top-k gate of one router."""

    def __init__(self, d, n_experts, top_k):
        super().__init__()
        self.top_k, self.n_experts, self.loss = top_k, n_experts, None
        self.w_gate = nn.Parameter(torch.zeros(d, n_experts))
        self.w_noise = nn.Parameter(torch.zeros(d, n_experts))
        for w in (self.w_gate, self.w_noise):
            nn.init.kaiming_uniform_(w, a=math.sqrt(5))

    def _cv_squared(self, x):
        if x.shape[0] == 1:
            return torch.tensor(0.0, device=x.device)
        return x.float().var() / (x.float().mean() ** 2 + 1e-10)

    def _prob_in_top_k(self, clean, noisy, scale, top):
        threshold_in = top[:, self.top_k : self.top_k + 1]
        threshold_out = top[:, self.top_k - 1 : self.top_k]
        normal = Normal(*torch.tensor([[0.0], [1.0]], device=clean.device))
        prob_in = normal.cdf((clean - threshold_in) / scale)
        prob_out = normal.cdf((clean - threshold_out) / scale)
        return torch.where(noisy > threshold_in, prob_in, prob_out)

    def forward(self, x):
        clean = logits = x @ self.w_gate
        if self.training:
            scale = F.softplus(x @ self.w_noise) + 1e-2
            logits = clean + torch.randn_like(clean) * scale
        top_logits, top_index = logits.topk(min(self.top_k + 1, self.n_experts), dim=1)
        kept, index = top_logits[:, : self.top_k], top_index[:, : self.top_k]
        gates = F.softmax(kept, dim=1)
        full = torch.zeros_like(logits).scatter(1, index, gates)
        if self.training and self.top_k < self.n_experts:
            load = self._prob_in_top_k(clean, logits, scale, top_logits).sum(0)
        else:
            load = (full > 0).sum(0)
        self.loss = self._cv_squared(full.sum(0)) + self._cv_squared(load)
        return index, gates


class NaiveMoE(nn.Module):
    """Loop over experts, one call per modality."""

    def __init__(self, d, n_experts, top_k, n_routers):
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))
            for _ in range(n_experts)
        )
        self.gates = nn.ModuleList(NaiveGate(d, n_experts, top_k) for _ in range(n_routers))

    def forward(self, x, router):
        shape, x = x.shape, x.reshape(-1, x.shape[-1])
        index, gates = self.gates[router](x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, slot = torch.where(index == e)
            if len(token):
                out.index_add_(0, token, expert(x[token]) * gates[token, slot].unsqueeze(1))
        return out.reshape(shape)


class NaiveAttention(nn.Module):
    def __init__(self, d, n_heads, dropout):
        super().__init__()
        self.n_heads, self.scale = n_heads, (d // n_heads) ** -0.5
        self.qkv, self.proj = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d)
        self.attention_dropout, self.dropout = nn.Dropout(dropout), nn.Dropout(dropout)

    def forward(self, x):
        b, t, d = x.shape
        qkv = self.qkv(x).reshape(b, t, 3, self.n_heads, d // self.n_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attention = (q @ k.transpose(-2, -1)) * self.scale
        attention = self.attention_dropout(attention.softmax(dim=-1))
        return self.dropout(self.proj((attention @ v).transpose(1, 2).reshape(b, t, d)))


class NaiveNetwork(nn.Module):
    """The reference's network for all cells measured in all modalities."""

    def __init__(self, config: Config, n_features: list[int], n_groups: int):
        super().__init__()
        c, m = config.model, len(n_features)
        self.n_patches = c.n_patches
        self.sizes = [math.ceil(f / c.n_patches) for f in n_features]
        self.embed = nn.ModuleList(nn.Linear(s, c.d) for s in self.sizes)
        starts = [nn.Parameter(torch.zeros(c.n_patches, c.d)) for _ in n_features]
        self.position = nn.ParameterList(starts)
        self.norm1, self.norm2 = nn.LayerNorm(c.d), nn.LayerNorm(c.d)
        self.attention = NaiveAttention(c.d, c.n_heads, c.attention_dropout)
        n_routers = c.n_routers or m
        self.moe = NaiveMoE(c.d, c.n_experts, c.top_k, n_routers)
        self.router_of = [min(i, n_routers - 1) for i in range(m)]
        self.dropout1, self.dropout2 = nn.Dropout(c.dropout), nn.Dropout(c.dropout)
        self.decoders = nn.ModuleList(
            nn.Sequential(nn.Linear(c.d, c.d), nn.ReLU(), nn.Linear(c.d, f)) for f in n_features
        )
        self.head, self.hidden = nn.Linear(c.d, n_groups, bias=False), nn.Linear(c.d * m, c.d)

    def forward(self, xs):
        tokens = []
        for i, x in enumerate(xs):
            padded = F.pad(x, (0, self.sizes[i] * self.n_patches - x.shape[1]))
            patches = padded.reshape(x.shape[0], self.n_patches, self.sizes[i])
            tokens.append(self.embed[i](patches) + self.position[i])
        x = self.attention(self.norm1(torch.cat(tokens, dim=1)))
        x = x + self.dropout1(x)
        gate_loss, mixed = 0.0, []
        for i, part in enumerate(self.norm2(x).chunk(len(xs), dim=1)):
            mixed.append(self.moe(part, self.router_of[i]))
            gate_loss = gate_loss + self.moe.gates[self.router_of[i]].loss
        x = x + self.dropout2(torch.cat(mixed, dim=1))
        latents = [part.mean(dim=1) for part in x.chunk(len(xs), dim=1)]
        reconstructions = [[decoder(latent) for latent in latents] for decoder in self.decoders]
        logits = self.head(torch.stack(latents).mean(dim=0))
        return reconstructions, logits, self.hidden(torch.cat(latents, dim=1)), gate_loss


def ddc(assignments, hidden, n_groups):
    """First and third term of deep divergence clustering."""
    squared = (hidden**2).sum(1, keepdim=True)
    distance = F.relu(squared + squared.T - 2 * hidden @ hidden.T)
    sigma = 0.15 * distance.detach().median().clamp(min=1e-9)
    kernel = torch.exp(-distance / (2 * sigma)).clamp(min=1e-9)

    def divergence(a):
        nominator = a.T @ kernel @ a
        diagonal = torch.diagonal(nominator).clamp(min=1e-9)
        norm = torch.sqrt(diagonal.unsqueeze(0) * diagonal.unsqueeze(1)).clamp(min=1e-9)
        upper = torch.triu(nominator / norm, diagonal=1)
        return 2 / (n_groups * (n_groups - 1)) * upper.sum()

    eye = torch.eye(n_groups, device=assignments.device)
    corners = torch.exp(-((assignments.unsqueeze(1) - eye.unsqueeze(0)) ** 2).sum(2))
    return divergence(assignments) + divergence(corners)


class CellByCell(Dataset):
    """One cell at a time, as tensors."""

    def __init__(self, matrices, labels):
        self.matrices, self.labels = matrices, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return [torch.tensor(m[i]) for m in self.matrices], int(self.labels[i])


class Naive:
    """Training as the reference does it; ``epoch`` trains once over all cells, evaluates twice.

    ``train`` and ``evaluated`` are dense matrices and group numbers of cells.
    """

    def __init__(self, config: Config, train, evaluated, n_groups, supervised, device="cpu"):
        torch.manual_seed(0)
        self.config, self.supervised, self.n_groups = config.train, supervised, n_groups
        self.device = device
        self.network = NaiveNetwork(config, [m.shape[1] for m in train[0]], n_groups).to(device)
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=config.train.lr)
        size = config.train.batch_size
        self.train_loader = DataLoader(CellByCell(*train), batch_size=size, shuffle=True)
        self.evaluation_loader = DataLoader(CellByCell(*evaluated), batch_size=size)

    def losses(self, xs, labels):
        xs, labels = [x.to(self.device) for x in xs], labels.to(self.device)
        reconstructions, logits, hidden, gate_loss = self.network(xs)
        c = self.config
        total, items = 0.0, {}
        for i, row in enumerate(reconstructions):
            for j, reconstruction in enumerate(row):
                loss = F.mse_loss(reconstruction, xs[i])
                items[f"decoder {i} {j}"] = loss.item()
                total = total + c.decoder_weight * loss
        assignments = F.softmax(logits, dim=1)
        clustering = ddc(assignments, hidden, self.n_groups)
        items["ddc"] = clustering.item()
        total = total + c.ddc_weight * clustering + c.gate_weight * gate_loss
        if self.supervised:
            group = F.cross_entropy(assignments if c.ce_on_softmax else logits, labels)
            items["group"] = group.item()
            total = total + c.group_weight * group
        items["loss"] = total.item()
        return total, items, reconstructions, assignments

    def step(self, xs, labels):
        self.optimiser.zero_grad()
        loss, items, *_ = self.losses(xs, labels)
        loss.backward()
        nn.utils.clip_grad_value_(self.network.parameters(), self.config.clip)
        self.optimiser.step()
        return items

    def train_epoch(self):
        self.network.train()
        for xs, labels in self.train_loader:
            self.step(xs, labels)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Losses, group scores and R² of every pair of modalities."""
        self.network.eval()
        truth, predicted, true, found = [], [], [], []
        for xs, labels in self.evaluation_loader:
            _, _, reconstructions, assignments = self.losses(xs, labels)
            truth.append([x.cpu().numpy() for x in xs])
            predicted.append([[r.cpu().numpy() for r in row] for row in reconstructions])
            true.append(labels.numpy())
            found.append(assignments.argmax(1).cpu().numpy())
        true, found, r2 = np.concatenate(true), np.concatenate(found), []
        for i in range(len(truth[0])):
            x = np.concatenate([xs[i] for xs in truth])
            for j in range(len(truth[0])):
                y = np.concatenate([grid[i][j] for grid in predicted])
                r2.append(r2_score(x, y, multioutput="variance_weighted"))
        return {
            "accuracy": float((true == found).mean()),
            "ari": adjusted_rand_score(true, found),
            "nmi": normalized_mutual_info_score(true, found),
            "r2": float(np.mean(r2)),
        }

    def epoch(self) -> dict[str, float]:
        self.train_epoch()
        self.evaluate()
        return self.evaluate()
