"""Settings that are one of a few words."""

from __future__ import annotations

from enum import Enum


class Part(str, Enum):
    """Parts of the data."""

    TRAIN, VALID, TEST = "train", "valid", "test"


PARTS = tuple(part.value for part in Part)


class Interval(str, Enum):
    """Kinds of confidence interval."""

    PERCENTILE, NORMAL, BCA = "percentile", "normal", "bca"


class Level(str, Enum):
    """What is scored, or drawn in a bootstrap sample."""

    VOLUME, SCAN, PATIENT = "volume", "scan", "patient"


class Join(str, Enum):
    """How volumes make a scan or patient."""

    MEAN, MAX, NOISY_OR, VOTE = "mean", "max", "noisy-or", "vote"


class PrecisionChoice(str, Enum):
    """Precisions to compute in."""

    AUTO, FLOAT32, BFLOAT16 = "auto", "float32", "bfloat16"


class BalanceChoice(str, Enum):
    """What is done about classes of unequal size."""

    NONE, WEIGHTS, SAMPLER = "none", "weights", "sampler"


class ScheduleChoice(str, Enum):
    """How the learning rate falls."""

    STEP, COSINE = "step", "cosine"


class ImagesChoice(str, Enum):
    """Kinds of CT images: with everything, or black outside the lungs."""

    COMPLETE, SEGMENTED, ALL = "complete", "segmented", "all"


class ProblemChoice(str, Enum):
    """What is done about scans with something wrong."""

    REPAIR, DROP, STOP = "repair", "drop", "stop"


class MethodChoice(str, Enum):
    """Ways to make saliency maps."""

    SMOOTH, PLAIN, PLUS, OCCLUSION = "smooth-gradcam++", "gradcam", "gradcam++", "occlusion"
