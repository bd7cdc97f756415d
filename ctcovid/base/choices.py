"""Settings that are one of a few words."""

from __future__ import annotations

from enum import Enum


class Part(str, Enum):
    """Parts of the data."""

    TRAIN, VALID, TEST = "train", "valid", "test"


class Interval(str, Enum):
    """Kinds of confidence interval."""

    PERCENTILE, NORMAL = "percentile", "normal"


class PrecisionChoice(str, Enum):
    """Precisions to compute in."""

    AUTO, FLOAT32, BFLOAT16 = "auto", "float32", "bfloat16"


class BalanceChoice(str, Enum):
    """What is done about classes of unequal size."""

    NONE, WEIGHTS, SAMPLER = "none", "weights", "sampler"


class ScheduleChoice(str, Enum):
    """How the learning rate falls."""

    STEP, COSINE = "step", "cosine"


class MethodChoice(str, Enum):
    """Ways to make saliency maps."""

    SMOOTH, PLAIN, PLUS, OCCLUSION = "smooth-gradcam++", "gradcam", "gradcam++", "occlusion"
