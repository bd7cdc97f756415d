"""Grad-CAM, Grad-CAM++ and Smooth Grad-CAM++ (Li et al. 2021, Sec. 2.8): channels of a layer, weighted by the gradients of a class score.

The three differ only in the weight w_k of channel k. A_k is its feature map, S the class score before the softmax, and sums run over the
positions i of the map:

*Grad-CAM* (Selvaraju et al. 2017, Eqs. 1 and 2): w_k = mean_i dS/dA_k,i and L = ReLU(sum_k w_k A_k). Channels that speak against the class
keep their negative weight.

*Grad-CAM++* (Chattopadhyay et al. 2018). The score Y is to equal the sum of the map, Y = sum_k w_k sum_j A_k,j, with w_k = sum_i alpha_k,i
ReLU(dY/dA_k,i). Where the gradient is positive, differentiating both sides twice by A_k,i gives

    d2Y = 2 alpha d2Y + (sum_j A_k,j) alpha d3Y,   so   alpha_k,i = d2Y / (2 d2Y + (sum_j A_k,j) d3Y)        (their Eq. 10)

A network of ReLUs is piecewise linear, so the higher derivatives of S vanish; those of Y = exp(S) are Y g, Y g^2 and Y g^3 with
g = dS/dA (their Eqs. 15 to 19). The factor Y cancels in alpha, and in w scales the whole map, so it is omitted:

    alpha = g^2 / (2 g^2 + (sum_j A_k,j) g^3),   w_k = sum_i alpha_k,i ReLU(g_k,i)

*Smooth Grad-CAM++* (Omeiza et al. 2019, Eqs. 8 to 11) takes n copies of the volume with Gaussian noise, and puts the means of g, g^2 and
g^3 over the copies in place of the three derivatives. Li et al., Sec. 2.8, say which maps the weights apply to: "For each sample from
the noise samples, the weighted average of feature maps and weights of the target layer are selected to generate a saliency map. The final
saliency map is resized to the original tensor size using the average of saliency maps." So L = mean over copies of ReLU(sum_k w_k A_k of
the copy), and sum_j A_k,j is that of the mean map. The published Eq. 9 has the first derivative in the numerator, which does not follow
from the equation above. The second is used here, as in Grad-CAM++: with one copy and no noise both methods are equal.

The torch-cam package (0.5) differs. It averages g^2 and g^3, but takes g and the weighted feature maps from the last copy only. The sum in
its denominator is over A_k,j g^3_k,j, with A_k of the volume without noise. Its noise does not depend on the volume's grey range.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctcovid.base.choices import PLAIN


class Gathered:
    """Feature maps of the copies of one volume, and sums of the powers of their gradients."""

    def __init__(self) -> None:
        self.maps: list[Tensor] = []
        self.moments: list[Tensor] = []

    def add(self, maps: Tensor, gradients: Tensor) -> None:
        """Add one copy: feature maps (C, d, h, w) and gradients of K class scores (K, C, d, h, w)."""
        powers = [gradients, gradients**2, gradients**3]
        self.moments = [total + power for total, power in zip(self.moments, powers, strict=True)] if self.moments else powers
        self.maps.append(maps)

    def saliency(self, method: str) -> Tensor:
        """Saliency maps for each class, float (K, d, h, w), not negative."""
        first, second, third = (total / len(self.maps) for total in self.moments)
        maps = torch.stack(self.maps)
        if method == PLAIN:
            weights = first.mean((2, 3, 4))
        else:
            weights = plus_weights(maps.mean(0), first, second, third)
        return torch.relu(torch.einsum("kc,ncdhw->nkdhw", weights, maps)).mean(0)


def plus_weights(maps: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """Weights of the channels, float (K, C), from feature maps (C, d, h, w) and moments of the gradients (K, C, d, h, w)."""
    denominator = 2 * second + maps.sum((1, 2, 3))[:, None, None, None] * third
    alpha = torch.where(denominator != 0, second / torch.where(denominator != 0, denominator, 1.0), 0.0)
    return (alpha * torch.relu(first)).sum((2, 3, 4))
