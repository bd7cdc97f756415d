"""Factorised 3D convolutions that run as 2D ones on the same memory.

A (2+1)D network (Li et al. 2021, Sec. 2.6) is made of 1xkxk and kx1x1 kernels. In channels-last memory both are 2D convolutions of
a *view* of the activations, and 2D kernels are the ones that CPU and GPU libraries have tuned, bfloat16 among them. Parameters keep
the names and shapes of ``Conv3d``, so that weights interchange with every other implementation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def channels_last(x_NCDHW: Tensor) -> Tensor:
    """The same tensor in channels-last memory, without a copy where it already is."""
    return x_NCDHW.contiguous(memory_format=torch.channels_last_3d)


class SpatialConv(nn.Conv3d):
    """1xkxk convolution: every slice is one image of a 2D convolution.

    Parameters
    ----------
    x : float (B, C, D, H, W)

    Returns
    -------
    float (B, O, D, H', W') in channels-last memory
    """

    def __init__(self, channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            channels,
            out_channels,
            kernel_size=(1, kernel, kernel),
            stride=(1, stride, stride),
            padding=(0, kernel // 2, kernel // 2),
            bias=False,
        )

    def forward(self, x: Tensor) -> Tensor:
        B, C, D, H, W = x.shape
        slices = channels_last(x).permute(0, 2, 1, 3, 4).reshape(B * D, C, H, W)
        y = F.conv2d(slices, self.weight.squeeze(2), stride=self.stride[1:], padding=self.padding[1:])
        # A depth of 1 has to get the stride that channels-last memory gives it: batch norm chooses its fast kernel by strides.
        return y.unsqueeze(2) if D == 1 else y.unflatten(0, (B, D)).transpose(1, 2)


class PointConv(nn.Conv3d):
    """1x1x1 convolution: one matrix product over all voxels, of which a stride leaves every `stride`-th.

    Parameters
    ----------
    x : float (B, C, D, H, W)

    Returns
    -------
    float (B, O, D', H', W') in channels-last memory
    """

    def __init__(self, channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(channels, out_channels, kernel_size=1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        s = self.stride[0]
        kept = channels_last(x[:, :, ::s, ::s, ::s])
        y = F.conv2d(kept.flatten(2, 3), self.weight.squeeze(4))
        return y.unflatten(2, kept.shape[2:4])


class DepthConv(nn.Conv3d):
    """kx1x1 convolution: a 2D convolution of the image whose height is the depth and whose width is all pixels of a slice.

    Where the volume is shallower than the kernel, as everywhere at the paper's depth of 4, most taps would only ever see padding.
    Then one kernel per output slice, over all input slices and without padding, does the same with less work.

    Parameters
    ----------
    x : float (B, C, D, H, W)

    Returns
    -------
    float (B, O, D', H, W) in channels-last memory
    """

    def __init__(self, channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            channels,
            out_channels,
            kernel_size=(kernel, 1, 1),
            stride=(stride, 1, 1),
            padding=(kernel // 2, 0, 0),
            bias=False,
        )

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[3:]
        columns = channels_last(x).flatten(3)
        if x.shape[2] < self.kernel_size[0]:
            y = self._banded(columns)
        else:
            y = F.conv2d(columns, self.weight.squeeze(4), stride=(self.stride[0], 1), padding=(self.kernel_size[0] // 2, 0))
        return y.unflatten(3, (H, W))

    def _banded(self, columns: Tensor) -> Tensor:
        D = columns.shape[2]
        k, s, p = self.kernel_size[0], self.stride[0], self.kernel_size[0] // 2
        taps = F.pad(self.weight.flatten(2), (D, D))
        outputs = range((D + 2 * p - k) // s + 1)
        # Output slice o sees input slice i through tap i - o*s + p.
        band = torch.stack([taps[:, :, D + p - o * s : 2 * D + p - o * s] for o in outputs])
        y = F.conv2d(columns, band.flatten(0, 1).unsqueeze(3))
        if len(outputs) == 1:
            return y
        return y.squeeze(2).unflatten(1, band.shape[:2]).transpose(1, 2).contiguous(memory_format=torch.channels_last)
