"""The torchvision package beside any build of torch. Everything in ctcovid that needs torchvision imports it through here."""

from __future__ import annotations

import torch
from torch import library

# torch drops operator definitions when their library object goes, so these live as long as the process.
_definitions: list[library.Library] = []

# The compiled part of torchvision's ordinary package wants the CUDA build of torch. Beside a CPU-only build it does not load, and
# the import stops at the first of its operators that Python code refers to.
_OPERATORS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def import_torchvision() -> object:
    """The torchvision package, whether or not its compiled operators load beside this build of torch."""
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        for name, schema in _OPERATORS.items():
            if not hasattr(torch.ops.torchvision, name):
                definition = library.Library("torchvision", "FRAGMENT")
                definition.define(schema)
                _definitions.append(definition)
        import torchvision
    return torchvision
