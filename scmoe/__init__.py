"""Sparse mixture of experts for multi-modal single-cell data: measured, explained, compared."""

from scmoe import baselines, data, paper
from scmoe.audit import audit, write_report
from scmoe.claim import claim
from scmoe.config import Config, ModelConfig, TrainConfig, preset
from scmoe.metrics import evaluate
from scmoe.model import ScMoE
from scmoe.record import read_records, start_run

__all__ = [
    "Config",
    "ModelConfig",
    "ScMoE",
    "TrainConfig",
    "audit",
    "baselines",
    "claim",
    "data",
    "evaluate",
    "paper",
    "preset",
    "read_records",
    "start_run",
    "write_report",
]
