"""Options whose value is one of a few words, and limits of numbers that several rooms know; each is declared once."""

from __future__ import annotations

from typing import Literal, get_args

Part = Literal["train", "valid", "test"]
Interval = Literal["percentile", "normal", "bca"]
# The unit that is scored, or drawn in a bootstrap sample.
Level = Literal["volume", "scan", "patient"]
# How volume probabilities are aggregated to those of their scan or patient.
Join = Literal["mean", "max", "noisy-or", "vote"]
Precision = Literal["auto", "float32", "bfloat16"]
ClassBalance = Literal["none", "weights", "sampler"]
Schedule = Literal["step", "cosine"]
# Complete CT, or black outside the lungs.
Images = Literal["complete", "segmented", "all"]
OnProblem = Literal["repair", "drop", "stop"]
Method = Literal["smooth-gradcam++", "gradcam", "gradcam++", "occlusion"]
# What ctcovid paper does.
PaperAction = Literal["run", "list", "sbatch", "report"]
# How large the demo is.
Preset = Literal["auto", "small", "medium", "full"]

PARTS: tuple[str, ...] = get_args(Part)
INTERVALS: tuple[str, ...] = get_args(Interval)
JOINS: tuple[str, ...] = get_args(Join)
PRECISIONS: tuple[str, ...] = get_args(Precision)
CLASS_BALANCES: tuple[str, ...] = get_args(ClassBalance)
SCHEDULES: tuple[str, ...] = get_args(Schedule)
PAPER_ACTIONS: tuple[PaperAction, ...] = get_args(PaperAction)
METHODS: tuple[Method, ...] = get_args(Method)
RUN, LIST, SBATCH, REPORT = PAPER_ACTIONS
SMOOTH, PLAIN, PLUS, OCCLUSION = METHODS
# The thickest scans have fewer slices.
MOST_SLICES = 1024
LEAST_SIDE, MOST_SIDE = 16, 4096
MOST_CLASSES = 1000
