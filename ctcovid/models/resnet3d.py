"""The paper's 3D and (2+1)D residual networks (Li et al. 2021, Table 3, Secs. 2.3-2.6).

Parameter names and shapes are those of 3D-ResNets-PyTorch (Hara et al. 2018), so that its public weights load.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctcovid.models.conv import DepthConv, PointConv, SpatialConv
from ctcovid.models.recompute import recomputed

# Table 3: the stem's kernel, and the widths of Conv2 to Conv5.
STEM_KERNEL = 7
WIDTHS = (64, 128, 256, 512)
# In training, the stem's activations are more than half of all. From this many input values on (8 volumes of 3x4x512x512) they are
# computed anew in the backward pass, which costs a sixth of the time and lets the paper's batch of 32 fit into 24 GiB.
RECOMPUTE_FROM = 8 * 3 * 4 * 512 * 512


class ResNet3D(nn.Module):
    """Residual network over depth-n volumes of CT slices (Li et al. 2021, Table 3).

    Parameters
    ----------
    block : "basic" or "bottleneck"
    blocks : number of blocks in Conv2 to Conv5, N of Table 3
    factorised : (2+1)D convolutions (Sec. 2.6) in place of full 3D ones
    classes : number of classes

    A forward pass takes float ``(B, 1 or 3, D, H, W)`` and returns logits ``(B, classes)``. One channel means three equal ones.
    """

    def __init__(self, block: str, blocks: tuple[int, ...], factorised: bool, classes: int) -> None:
        super().__init__()
        self.factorised = factorised
        if factorised:
            middle = middle_width(3, WIDTHS[0], STEM_KERNEL)
            self.conv1_s = SpatialConv(3, middle, STEM_KERNEL, stride=2)
            self.bn1_s = nn.BatchNorm3d(middle)
            self.conv1_t = DepthConv(middle, WIDTHS[0], STEM_KERNEL)
            self.bn1_t = nn.BatchNorm3d(WIDTHS[0])
        else:
            self.conv1 = nn.Conv3d(3, WIDTHS[0], STEM_KERNEL, stride=(1, 2, 2), padding=STEM_KERNEL // 2, bias=False)
            self.bn1 = nn.BatchNorm3d(WIDTHS[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(3, stride=2, padding=1)

        kind: type[BasicBlock] | type[Bottleneck] = BasicBlock if block == "basic" else Bottleneck
        channels = WIDTHS[0]
        for number, (width, count) in enumerate(zip(WIDTHS, blocks, strict=True), start=1):
            stage = nn.Sequential()
            for position in range(count):
                stride = 2 if number > 1 and position == 0 else 1
                stage.append(kind(channels, width, stride, factorised))
                channels = width * kind.expansion
            self.add_module(f"layer{number}", stage)
        self.avgpool = nn.AdaptiveAvgPool3d(1)
        self.fc = nn.Linear(channels, classes)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1, -1)
        if torch.is_grad_enabled() and self.training and x.numel() >= RECOMPUTE_FROM:
            x = recomputed(self._stem, x, [module for module in self.children() if isinstance(module, nn.BatchNorm3d)])
        else:
            x = self._stem(x)
        for number in range(1, len(WIDTHS) + 1):
            x = self.get_submodule(f"layer{number}")(x)
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits

    def _stem(self, x: Tensor) -> Tensor:
        """Conv1 of Table 3 and the max pooling behind it, at a quarter of whose resolution all else works."""
        if self.factorised:
            x = self.relu(self.bn1_s(self.conv1_s(x)))
            x = self.relu(self.bn1_t(self.conv1_t(x)))
        else:
            x = self.relu(self.bn1(self.conv1(x)))
        # A maximum is exact in any precision, but autocast on a CPU would pool in float32, and all residual sums behind it follow suit.
        with torch.autocast("cpu", enabled=False) if x.device.type == "cpu" else nullcontext():
            pooled: Tensor = self.maxpool(x)
        return pooled


class BasicBlock(nn.Module):
    """Two 3x3x3 convolutions with a parameter-free shortcut (Li et al. 2021, Sec. 2.4, Fig. 2)."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, factorised: bool) -> None:
        super().__init__()
        self.width, self.stride, self.factorised = width, stride, factorised
        self.relu = nn.ReLU(inplace=True)
        for number, inputs in ((1, channels), (2, width)):
            add_convolution(self, number, inputs, width, stride if number == 1 else 1, factorised)

    def forward(self, x: Tensor) -> Tensor:
        y = convolve(self, 1, x, last=False)
        y = convolve(self, 2, y, last=True)
        return self.relu(y + zero_padded_shortcut(x, self.width, self.stride))


class Bottleneck(nn.Module):
    """1x1x1, 3x3x3 and 1x1x1 convolutions; the shortcut projects where dimensions grow (Li et al. 2021, Sec. 2.5, Fig. 2)."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, factorised: bool) -> None:
        super().__init__()
        self.factorised = factorised
        self.relu = nn.ReLU(inplace=True)
        self.conv1 = PointConv(channels, width)
        self.bn1 = nn.BatchNorm3d(width)
        add_convolution(self, 2, width, width, stride, factorised)
        self.conv3 = PointConv(width, width * self.expansion)
        self.bn3 = nn.BatchNorm3d(width * self.expansion)
        self.downsample = None
        if stride != 1 or channels != width * self.expansion:
            self.downsample = nn.Sequential(
                PointConv(channels, width * self.expansion, stride),
                nn.BatchNorm3d(width * self.expansion),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = convolve(self, 2, y, last=False)
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


def add_convolution(block: nn.Module, number: int, channels: int, width: int, stride: int, factorised: bool) -> None:
    """Give `block` its 3x3x3 convolution `number` with batch norm, whole or in two steps, under 3D-ResNets-PyTorch's names."""
    if factorised:
        middle = middle_width(channels, width, 3)
        block.add_module(f"conv{number}_s", SpatialConv(channels, middle, 3, stride))
        block.add_module(f"bn{number}_s", nn.BatchNorm3d(middle))
        block.add_module(f"conv{number}_t", DepthConv(middle, width, 3, stride))
        block.add_module(f"bn{number}_t", nn.BatchNorm3d(width))
    else:
        block.add_module(f"conv{number}", nn.Conv3d(channels, width, 3, stride=stride, padding=1, bias=False))
        block.add_module(f"bn{number}", nn.BatchNorm3d(width))


def convolve(block: nn.Module, number: int, x: Tensor, last: bool) -> Tensor:
    """Convolution `number` of `block`; the ReLU after the `last` one belongs behind the residual sum."""
    relu = block.get_submodule("relu")
    for suffix in ("_s", "_t") if block.factorised else ("",):
        x = block.get_submodule(f"bn{number}{suffix}")(block.get_submodule(f"conv{number}{suffix}")(x))
        if suffix == "_s" or not last:
            x = relu(x)
    return x


def zero_padded_shortcut(x: Tensor, width: int, stride: int) -> Tensor:
    """Identity; where dimensions grow, every `stride`-th voxel with zeros for the new channels (Li et al. 2021, Sec. 2.4)."""
    if stride != 1:
        x = x[:, :, ::stride, ::stride, ::stride]
    if x.shape[1] != width:
        x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, width - x.shape[1]))
    return x


def middle_width(channels: int, width: int, kernel: int) -> int:
    """Channels between the two steps of a (2+1)D convolution, such that both together have the parameters of the 3D one.

    Tran et al. 2018, Sec. 3.5, to which Li et al. 2021, Sec. 2.6 refers.
    """
    return channels * width * kernel**3 // (channels * kernel**2 + width * kernel)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
