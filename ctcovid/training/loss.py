"""What a step minimises: cross-entropy, with what may be asked for beside it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def summed_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy, summed over the volumes, float (); 0 of none.

    With `weights`, float (classes,), a volume counts as many times as its class says. The mean over a batch is this by the number of its
    volumes, not by that of their weights as in torch, so that the parts of a batch add up to the batch however it is cut.

    logits : float (B, classes); labels : int64 (B,); smoothing : the share of the target that is spread over all classes
    """
    if weights is None:
        return F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
    each = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    return (each * weights[labels]).sum()
