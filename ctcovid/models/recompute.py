"""Trade time for memory: activations that are computed anew in the backward pass, batch norm counted once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[[Tensor], Tensor], x: Tensor, norms: Sequence[nn.BatchNorm3d]) -> Tensor:
    """``function(x)``, whose inner activations are not kept for the backward pass but computed again there.

    Values and gradients are those of the plain call. `norms` are the batch norms in `function`: the second pass must not count the
    batch into their running statistics again.
    """
    y = checkpoint(
        function, x, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: (contextlib.nullcontext(), _uncounted(norms))
    )
    assert isinstance(y, Tensor)
    return y


@contextlib.contextmanager
def _uncounted(norms: Sequence[nn.BatchNorm3d]) -> Iterator[None]:
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm, _, count in before:
            norm.momentum = 0.0
            norm.num_batches_tracked = None if count is None else count.clone()
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum, norm.num_batches_tracked = momentum, count
