"""The paper's 3D and (2+1)D residual networks (Li et al. 2021, Table 3, Secs. 2.3-2.6).

Parameter names and shapes are those of 3D-ResNets-PyTorch (Hara et al. 2018), so that its public weights load.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ctcovid.kernels import passes
from ctcovid.kernels.depthfold import Conv3d, GlobalAverage, MaxPool3d, Order, Prepared, convolve, prepare, shortcut, stem
from ctcovid.kernels.fusednorm import Activation, fold_norm, forgetful, norm_relu, norm_relu_pool, relu_pool
from ctcovid.kernels.gpu_convolutions import aligned

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
        add_unit(self, 1, Unit(3, WIDTHS[0], STEM_KERNEL, (1, 2), factorised, plain))
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
        # The functions below choose the precision of each operation.
        precision = _precision(x)
        with torch.autocast("cpu" if x.device.type == "meta" else x.device.type, enabled=False):
            return self._logits(x.to(precision))

    def _logits(self, x: Tensor) -> Tensor:
        first = [module for name, module in self.named_children() if name.startswith(("conv1", "bn1", "relu", "maxpool"))]
        if self.plain or _observed(first) or not _ours(units(self, 1)):
            x = self.maxpool(self.relu(unit_by_modules(self, 1, x)))
        else:
            x = self._fused_stem(x)
        for number in range(1, len(WIDTHS) + 1):
            x = self.get_submodule(f"layer{number}")(x)
        features: Tensor = self.avgpool(x).flatten(1)
        logits: Tensor = self.fc(features if self.plain else features.to(self.fc.weight.dtype))
        return logits

    def _fused_stem(self, x: Tensor) -> Tensor:
        """Conv1 with batch norm, ReLU and max pooling."""
        entering = Activation(x)
        *before, (conv, norm) = units(self, 1)
        for pair in before:
            entering = conv_norm_relu(*pair, entering, Behind(then=conv, inside=True))
        x = entering.values
        if norm.training:
            conv.kept = None
            y = forgetful(conv, entering)
            following = units(self.get_submodule("layer1.0"), 1)[0][0]
            return norm_relu_pool(y, norm, self.maxpool, _order_for(following, (y.shape[2] + 1) // 2))
        kernel = _with_norm(conv, norm, x)
        pooled = stem(x, kernel)
        # The ReLU is a part of a GPU's convolutions; a second one changes nothing.
        return relu_pool(convolve(x, kernel, relu=kernel.on_gpu), self.maxpool) if pooled is None else pooled


class BasicBlock(nn.Module):
    """Two 3x3x3 convolutions with a parameter-free shortcut (Li et al. 2021, Sec. 2.4, Fig. 2)."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, factorised: bool, plain: bool = False) -> None:
        super().__init__()
        self.width, self.stride, self.plain = width, stride, plain
        add_unit(self, 1, Unit(channels, width, 3, (stride, stride), factorised, plain))
        self.relu = nn.ReLU(inplace=True)
        add_unit(self, 2, Unit(width, width, 3, (1, 1), factorised, plain))

    def forward(self, x: Tensor) -> Tensor:
        if self.plain or _observed(self.children()):
            y = self.relu(unit_by_modules(self, 1, x))
            y = unit_by_modules(self, 2, y)
            return self.relu(y + shortcut(x, self.width, self.stride))
        second = units(self, 2)[0][0]
        first = fused_unit(self, 1, Activation(x), Behind(then=second))
        # The next block begins as this one goes on.
        return fused_unit(self, 2, first, Behind(residual=x, stride=self.stride, then=second)).values


class Bottleneck(nn.Module):
    """1x1x1, 3x3x3 and 1x1x1 convolutions; the shortcut projects where dimensions grow (Li et al. 2021, Sec. 2.5, Fig. 2)."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, factorised: bool, plain: bool = False) -> None:
        super().__init__()
        self.plain = plain
        add_unit(self, 1, Unit(channels, width, 1, (1, 1), False, plain))
        self.relu = nn.ReLU(inplace=True)
        add_unit(self, 2, Unit(width, width, 3, (stride, stride), factorised, plain))
        add_unit(self, 3, Unit(width, width * self.expansion, 1, (1, 1), False, plain))
        self.downsample = None
        if stride != 1 or channels != width * self.expansion:
            projection = (nn.Conv3d if plain else Conv3d)(channels, width * self.expansion, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm3d(width * self.expansion))

    def forward(self, x: Tensor) -> Tensor:
        if self.plain or _observed(self.children()):
            y = self.relu(unit_by_modules(self, 1, x))
            y = self.relu(unit_by_modules(self, 2, y))
            y = unit_by_modules(self, 3, y)
            return self.relu(y + (x if self.downsample is None else self.downsample(x)))
        first = fused_unit(self, 1, Activation(x), Behind(then=units(self, 2)[0][0]))
        second = fused_unit(self, 2, first, Behind(then=units(self, 3)[0][0]))
        residual = x
        if self.downsample is not None:
            residual = conv_norm_relu(*self.downsample, Activation(x), Behind(relu=False)).values  # type: ignore[call-arg]
        return fused_unit(self, 3, second, Behind(residual=residual)).values


@dataclass(frozen=True)
class Behind:
    """What stands behind a batch norm: ReLU, residual sum, the convolution `then`.

    `stride` is that of the residual. Inside of a (2+1)D convolution, a GPU may add channels that are zero, which `then` leaves out.
    """

    relu: bool = True
    residual: Tensor | None = None
    stride: int = 1
    then: Conv3d | None = None
    inside: bool = False


@dataclass(frozen=True)
class Unit:
    """A convolution from `channels` to `width` channels, and its batch norm; `stride` is that in depth and that in the plane."""

    channels: int
    width: int
    kernel: int
    stride: tuple[int, int]
    factorised: bool
    plain: bool


def add_unit(module: nn.Module, number: int, unit: Unit) -> None:
    """Give `module` convolution `number` with its batch norm, whole or in two steps, under 3D-ResNets-PyTorch's names."""
    kind = nn.Conv3d if unit.plain else Conv3d
    channels, width, kernel, (along, across), p = unit.channels, unit.width, unit.kernel, unit.stride, unit.kernel // 2
    if not unit.factorised:
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


def fused_unit(module: nn.Module, number: int, x: Activation, behind: Behind) -> Activation:
    """Convolution `number` with batch norm, residual sum and ReLU."""
    *before, last = units(module, number)
    for pair in before:
        x = conv_norm_relu(*pair, x, Behind(then=last[0], inside=True))
    return conv_norm_relu(*last, x, behind)


def conv_norm_relu(conv: Conv3d, norm: nn.BatchNorm3d, x: Activation, behind: Behind) -> Activation:
    """``relu(norm(conv(x)) + shortcut(residual))``; in inference, the batch norm is folded into the convolution."""
    relu, residual, stride = behind.relu, behind.residual, behind.stride
    if not _ours([(conv, norm)]):
        # Somebody has put another layer here, such as a synchronised batch norm.
        y = norm(conv(x.values))
        if residual is not None:
            y = y + shortcut(residual, y.shape[1], stride)
        return Activation(y.relu_() if relu else y)
    outputs = aligned(conv.out_channels) if behind.inside and type(behind.then) is Conv3d and passes.on_gpu(x.values) else None
    if norm.training:
        conv.kept = None
        y = forgetful(conv, x) if outputs is None else forgetful(conv, x, outputs)
        return norm_relu(y, norm, relu, residual, stride, _order_for(behind.then, y.shape[2]))
    added = None if residual is None else shortcut(residual, norm.num_features, stride)
    return Activation(convolve(x.values, _with_norm(conv, norm, x.values, outputs), relu, added))


def _order_for(then: nn.Module | None, depth: int) -> Order | None:
    """The memory order that the next convolution wants, if it is one of ours."""
    return then.order_for(depth) if type(then) is Conv3d else None


def _with_norm(conv: Conv3d, norm: nn.BatchNorm3d, x: Tensor, outputs: int | None = None) -> Prepared:
    """The convolution's kernel for `x`, with the batch norm's running statistics in it, and `outputs` as for `prepare`.

    The kernel is kept where the weights are frozen, as those of a trained model are. Where they are trained it is computed on every call:
    not every optimiser leaves a trace of having changed them.
    """
    assert norm.running_mean is not None and norm.running_var is not None
    numbers: list[Tensor] = [conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var]

    def ready() -> Prepared:
        weight, bias = fold_norm(conv.kernel_for(x), norm)
        return prepare(weight, bias, *conv.geometry, x, outputs)

    if any(tensor.requires_grad or tensor.is_inference() or tensor.is_meta for tensor in numbers):
        conv.kept = None
        return ready()
    key = (x.shape[1:], x.dtype, x.device, outputs, [(tensor.data_ptr(), tensor._version) for tensor in numbers])
    # Read once: another thread may replace it at any moment.
    kept = conv.kept
    if kept is None or kept[0] != key:
        with torch.inference_mode(False), torch.no_grad():
            kept = (key, ready())
        conv.kept = kept
    return kept[1]


def _ours(pairs: Iterable[tuple[nn.Module, nn.Module]]) -> bool:
    """Whether convolution and batch norm are exactly the layers that the fused passes replace, not other layers or subclasses."""
    return all(type(conv) is Conv3d and type(norm) is nn.BatchNorm3d and norm.affine and norm.track_running_stats for conv, norm in pairs)


def _observed(modules: Iterable[nn.Module]) -> bool:
    """Whether a trace, or hooks on one of the modules or inside of them, want each of them to be called."""
    if torch.jit.is_tracing():
        return True
    # torch has no public way to ask for hooks. These are the dicts that nn.Module's own call looks into.
    inner = [one for module in modules for one in module.modules()]
    return any(one._forward_hooks or one._forward_pre_hooks or one._backward_hooks or one._backward_pre_hooks for one in inner)


def _precision(x: Tensor) -> torch.dtype:
    """The precision of autocast where it is on, except for float64, which autocast does not change either."""
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
