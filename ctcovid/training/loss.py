"""What a step minimises: cross-entropy, with what may be asked for beside it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def mean_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0, weights: Tensor | None = None) -> Tensor:
    """Mean cross-entropy per volume, float ().

    With `weights`, float (classes,), a volume counts as many times as its class says. The sum is divided by the number of volumes, not
    by that of their weights as in torch, so that the parts of a batch add up to the batch however it is cut.

    logits : float (B, classes); labels : int64 (B,); smoothing : the share of the target that is spread over all classes
    """
    if weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    each = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    return (each * weights[labels]).mean()
