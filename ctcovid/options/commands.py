"""All commands in the order in which a user needs them: the options and an example of each."""

from __future__ import annotations

from dataclasses import dataclass

from ctcovid.options import demo, evaluate, explain, manual, models, paper, predict, prepare, shared, train


@dataclass(frozen=True)
class Command:
    """A command: its options, whose docstring is its help, and an example."""

    options: type[shared.Options]
    example: str

    @property
    def help(self) -> str:
        """What it does, in one sentence."""
        return str(self.options.__doc__).partition("\n")[0]


COMMANDS = {
    "prepare": Command(prepare.Options, "ctcovid prepare ./CC-CCII --depth 4"),
    "train": Command(train.Options, "ctcovid train --arch r2plus1d18"),
    "evaluate": Command(evaluate.Options, "ctcovid evaluate r3d18-d4-b32 r2plus1d18-d4-b32"),
    "predict": Command(predict.Options, "ctcovid predict scan_dir/ -o predictions.csv"),
    "explain": Command(explain.Options, "ctcovid explain scan_dir/ --layer layer3"),
    "models": Command(models.Options, "ctcovid models --cost r3d18 --depth 4 --size 512"),
    "demo": Command(demo.Options, "ctcovid demo --data-only synthetic --patients 50 --size 256"),
    "paper": Command(paper.Options, "ctcovid paper run ./CC-CCII --segmented ./CC-CCII"),
    "manual": Command(manual.Options, "ctcovid manual predict"),
}
