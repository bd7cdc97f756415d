"""Small networks for tests of training, one of which breaks, and what it takes to train them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctcovid.base.console import Console
from ctcovid.base.process_info import ProcessInfo
from ctcovid.base.signals import StopRequest
from ctcovid.distributed.ranks import Ranks
from ctcovid.distributed.session import Session
from ctcovid.models.architectures import architecture
from ctcovid.models.network import Network
from ctcovid.training.checkpoint import Progress, TrainingState
from ctcovid.training.recipe import Recipe
from ctcovid.training.step import Stepper

CPU = torch.device("cpu")


class Small(nn.Module):
    """A network with batch norm, or without it, where the pieces must not show at all."""

    def __init__(self, normed: bool) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm3d(4) if normed else nn.Identity()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(F.relu(self.norm(self.conv(x))).mean((2, 3, 4)))
        return y


class Breaking(nn.Module):
    """Gives what is not finite for a volume that is white throughout."""

    def __init__(self, always: bool = False) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.Linear(4, 3)
        self.always = always

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.norm(self.conv(x)).relu().mean((2, 3, 4)))
        broken = x.amin((1, 2, 3, 4)) >= 1
        return y / torch.where(broken | self.always, 0.0, 1.0)[:, None]


def stepper(module: nn.Module, recipe: Recipe, progress: Progress | None = None) -> Stepper:
    network = Network(module, architecture("r3d18"), ["NCP", "CP", "Normal"], CPU, torch.float32)
    network.module.train()
    state = TrainingState(network, recipe.optimiser(network.module), progress=progress or Progress())
    return Stepper(state, recipe, Ranks(ProcessInfo()))


def session(console: Console | None = None) -> Session:
    """A single process that reads by itself."""
    return Session(console or Console(quiet=True), StopRequest(), Ranks(ProcessInfo()), 0)
