"""The paper's 3D and (2+1)D residual networks (Li et al. 2021, Table 3, Secs. 2.3-2.6).

Parameter names and shapes are those of 3D-ResNets-PyTorch (Hara et al. 2018), so that its public weights load.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ctcovid.kernels.depthfold import Conv3d, GlobalAverage, MaxPool3d, Prepared, convolve, prepare, shortcut, stem
from ctcovid.kernels.fusednorm import fold_norm, forgetful, norm_relu, norm_relu_pool, relu_pool

# Table 3: the stem's kernel, and the widths of Conv2 to Conv5.
STEM_KERNEL = 7
WIDTHS = (64, 128, 256, 512)


class ResNet3D(nn.Module):
    """Residual network over depth-n volumes of CT slices (Li et al. 2021, Table 3).

    Parameters
    ----------
    block : "basic" or "bottleneck"
    blocks : number of blocks in Conv2 to Conv5, N of Table 3
    factorised : (2+1)D convolutions (Sec. 2.6) in place of full 3D ones
    classes : number of classes
    plain : torch's own 3D operations throughout, as the reference for depth folding: the same function of the same parameters

    A forward pass takes float ``(B, 1 or 3, D, H, W)`` and returns logits ``(B, classes)``. One channel means three equal ones.
    """

    def __init__(self, block: str, blocks: tuple[int, ...], factorised: bool, classes: int, plain: bool = False) -> None:
        super().__init__()
        self.factorised, self.plain = factorised, plain
        add_unit(self, 1, 3, WIDTHS[0], STEM_KERNEL, (1, 2), factorised, plain)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(3, stride=2, padding=1) if plain else MaxPool3d()
        kind: type[BasicBlock] | type[Bottleneck] = BasicBlock if block == "basic" else Bottleneck
        channels = WIDTHS[0]
        for number, (width, count) in enumerate(zip(WIDTHS, blocks, strict=True), start=1):
            stage = nn.Sequential()
            for position in range(count):
                stride = 2 if number > 1 and position == 0 else 1
                stage.append(kind(channels, width, stride, factorised, plain))
                channels = width * kind.expansion
            self.add_module(f"layer{number}", stage)
        self.avgpool = nn.AdaptiveAvgPool3d(1) if plain else GlobalAverage()
        self.fc = nn.Linear(channels, classes)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        if self.plain:
            return self._logits(x.expand(-1, 3, -1, -1, -1) if x.shape[1] == 1 else x)
        # Which operation is computed in which precision is decided below, operation by operation.
        precision = _precision(x)
        with torch.autocast("cpu" if x.device.type == "meta" else x.device.type, enabled=False):
            return self._logits(x.to(precision))

    def _logits(self, x: Tensor) -> Tensor:
        first = [module for name, module in self.named_children() if name.startswith(("conv1", "bn1", "relu", "maxpool"))]
        if self.plain or _watched(first) or not _ours(units(self, 1)):
            x = self.maxpool(self.relu(unit_by_modules(self, 1, x)))
        else:
            *before, (conv, norm) = units(self, 1)
            for pair in before:
                x = conv_norm_relu(*pair, x)
            if norm.training:
                conv.kept = None
                x = norm_relu_pool(forgetful(conv, x), norm, self.maxpool)
            else:
                kernel = _with_norm(conv, norm, x)
                pooled = stem(x, kernel)
                x = relu_pool(convolve(x, kernel), self.maxpool) if pooled is None else pooled
        for number in range(1, len(WIDTHS) + 1):
            x = self.get_submodule(f"layer{number}")(x)
        features: Tensor = self.avgpool(x).flatten(1)
        logits: Tensor = self.fc(features if self.plain else features.to(self.fc.weight.dtype))
        return logits


class BasicBlock(nn.Module):
    """Two 3x3x3 convolutions with a parameter-free shortcut (Li et al. 2021, Sec. 2.4, Fig. 2)."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, factorised: bool, plain: bool = False) -> None:
        super().__init__()
        self.width, self.stride, self.plain = width, stride, plain
        add_unit(self, 1, channels, width, 3, (stride, stride), factorised, plain)
        self.relu = nn.ReLU(inplace=True)
        add_unit(self, 2, width, width, 3, (1, 1), factorised, plain)

    def forward(self, x: Tensor) -> Tensor:
        if self.plain or _watched(self.children()):
            y = self.relu(unit_by_modules(self, 1, x))
            y = unit_by_modules(self, 2, y)
            return self.relu(y + shortcut(x, self.width, self.stride))
        y = fused_unit(self, 1, x)
        return fused_unit(self, 2, y, residual=x, stride=self.stride)


class Bottleneck(nn.Module):
    """1x1x1, 3x3x3 and 1x1x1 convolutions; the shortcut projects where dimensions grow (Li et al. 2021, Sec. 2.5, Fig. 2)."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, factorised: bool, plain: bool = False) -> None:
        super().__init__()
        self.plain = plain
        add_unit(self, 1, channels, width, 1, (1, 1), False, plain)
        self.relu = nn.ReLU(inplace=True)
        add_unit(self, 2, width, width, 3, (stride, stride), factorised, plain)
        add_unit(self, 3, width, width * self.expansion, 1, (1, 1), False, plain)
        self.downsample = None
        if stride != 1 or channels != width * self.expansion:
            projection = (nn.Conv3d if plain else Conv3d)(channels, width * self.expansion, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm3d(width * self.expansion))

    def forward(self, x: Tensor) -> Tensor:
        if self.plain or _watched(self.children()):
            y = self.relu(unit_by_modules(self, 1, x))
            y = self.relu(unit_by_modules(self, 2, y))
            y = unit_by_modules(self, 3, y)
            return self.relu(y + (x if self.downsample is None else self.downsample(x)))
        y = fused_unit(self, 2, fused_unit(self, 1, x))
        residual = x if self.downsample is None else conv_norm_relu(*self.downsample, x, relu=False)  # type: ignore[call-arg, misc]
        return fused_unit(self, 3, y, residual=residual)


def add_unit(
    module: nn.Module, number: int, channels: int, width: int, kernel: int, stride: tuple[int, int], factorised: bool, plain: bool
) -> None:
    """Give `module` convolution `number` with its batch norm, whole or in two steps, under 3D-ResNets-PyTorch's names.

    `stride` is that in depth and that in the plane.
    """
    kind = nn.Conv3d if plain else Conv3d
    (along, across), p = stride, kernel // 2
    if not factorised:
        conv = kind(channels, width, kernel, stride=(along, across, across), padding=p, bias=False)
        module.add_module(f"conv{number}", conv)
        module.add_module(f"bn{number}", nn.BatchNorm3d(width))
        return
    middle = middle_width(channels, width, kernel)
    in_plane = kind(channels, middle, (1, kernel, kernel), stride=(1, across, across), padding=(0, p, p), bias=False)
    in_depth = kind(middle, width, (kernel, 1, 1), stride=(along, 1, 1), padding=(p, 0, 0), bias=False)
    module.add_module(f"conv{number}_s", in_plane)
    module.add_module(f"bn{number}_s", nn.BatchNorm3d(middle))
    module.add_module(f"conv{number}_t", in_depth)
    module.add_module(f"bn{number}_t", nn.BatchNorm3d(width))


def units(module: nn.Module, number: int) -> list[tuple[Conv3d, nn.BatchNorm3d]]:
    """Convolution `number` of `module` with its batch norm: one pair, or the two of a (2+1)D convolution."""
    suffixes = ("_s", "_t") if hasattr(module, f"conv{number}_s") else ("",)
    return [(getattr(module, f"conv{number}{suffix}"), getattr(module, f"bn{number}{suffix}")) for suffix in suffixes]


def unit_by_modules(module: nn.Module, number: int, x: Tensor) -> Tensor:
    """Convolution `number` with its batch norm, by calls of the modules; the ReLU after the last is the caller's."""
    *before, (conv, norm) = units(module, number)
    for first_conv, first_norm in before:
        x = module.get_submodule("relu")(first_norm(first_conv(x)))
    y: Tensor = norm(conv(x))
    return y


def fused_unit(module: nn.Module, number: int, x: Tensor, residual: Tensor | None = None, stride: int = 1) -> Tensor:
    """Convolution `number` with batch norm, residual sum and ReLU."""
    *before, last = units(module, number)
    for pair in before:
        x = conv_norm_relu(*pair, x)
    return conv_norm_relu(*last, x, residual=residual, stride=stride)


def conv_norm_relu(
    conv: Conv3d, norm: nn.BatchNorm3d, x: Tensor, relu: bool = True, residual: Tensor | None = None, stride: int = 1
) -> Tensor:
    """``relu(norm(conv(x)) + shortcut(residual))``; in use, the batch norm is part of the convolution."""
    if not _ours([(conv, norm)]):
        # Somebody has put another layer here, such as a synchronised batch norm.
        y = norm(conv(x))
    elif norm.training:
        conv.kept = None
        return norm_relu(forgetful(conv, x), norm, relu, residual, stride)
    else:
        added = None if residual is None else shortcut(residual, norm.num_features, stride)
        return convolve(x, _with_norm(conv, norm, x), relu, added)
    if residual is not None:
        y = y + shortcut(residual, y.shape[1], stride)
    return y.relu_() if relu else y


def _with_norm(conv: Conv3d, norm: nn.BatchNorm3d, x: Tensor) -> Prepared:
    """The convolution's kernel for `x`, with the batch norm's running statistics in it.

    The kernel is kept where the weights are frozen, as those of a trained model are. Where they may learn it is made anew each time:
    not every optimiser leaves a trace of having changed them.
    """
    assert norm.running_mean is not None and norm.running_var is not None
    numbers: list[Tensor] = [conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var]

    def ready() -> Prepared:
        weight, bias = fold_norm(conv.kernel_for(x), norm)
        return prepare(weight, bias, *conv.geometry, x)

    if any(tensor.requires_grad or tensor.is_inference() or tensor.is_meta for tensor in numbers):
        conv.kept = None
        return ready()
    key = (x.shape[1:], x.dtype, [(tensor.data_ptr(), tensor._version) for tensor in numbers])
    # One look at what is kept: another thread may replace it at any moment.
    kept = conv.kept
    if kept is None or kept[0] != key:
        with torch.inference_mode(False), torch.no_grad():
            kept = (key, ready())
        conv.kept = kept
    return kept[1]


def _ours(pairs: Iterable[tuple[nn.Module, nn.Module]]) -> bool:
    """Whether convolution and batch norm are the layers that the fused passes stand for, and no replacements or subclasses."""
    return all(type(conv) is Conv3d and type(norm) is nn.BatchNorm3d and norm.affine and norm.track_running_stats for conv, norm in pairs)


def _watched(modules: Iterable[nn.Module]) -> bool:
    """Whether somebody has hooks on one of the modules or inside of them, or traces them, and so wants each of them to be called."""
    if torch.jit.is_tracing():
        return True
    parts = [part for module in modules for part in module.modules()]
    return any(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks for part in parts)


def _precision(x: Tensor) -> torch.dtype:
    """What autocast asks for, where it is on; like autocast itself, it leaves float64 alone."""
    kind = x.device.type
    asked = x.dtype != torch.float64 and kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if asked else x.dtype


def middle_width(channels: int, width: int, kernel: int) -> int:
    """Channels between the two steps of a (2+1)D convolution, such that both together have the parameters of the 3D one.

    Tran et al. 2018, Sec. 3.5, to which Li et al. 2021, Sec. 2.6 refers.
    """
    return channels * width * kernel**3 // (channels * kernel**2 + width * kernel)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
