"""The words of a command line become the options that the command line would give, and options become words again."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctcovid.base.errors import UsageError
from ctcovid.options.words import parsed, words_of


def test_words_go_before_environment_before_file_before_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text("seed = 7\n[train]\nepochs = 3\nbatch = 4\nmicro-batch = 2\n[evaluate]\nbootstrap = 50\n")
    monkeypatch.setenv("CTCOVID_TRAIN_BATCH", "16")
    monkeypatch.setenv("CTCOVID_EPOCHS", "9")
    options = parsed("train", ["--epochs", 5, "--data", tmp_path / "volumes.h5", "--resume"], settings)
    assert (options.epochs, options.batch, options.micro_batch, options.seed, options.arch) == (5, 16, 2, 7, "r3d18")
    assert options.data == tmp_path / "volumes.h5" and options.resume and options.config == settings
    found = {name: options.sources[name] for name in ("epochs", "batch", "micro_batch", "seed", "arch", "config")}
    assert list(found.values()) == ["option", "environment", "file", "file", "default", "option"]


def test_a_wrong_value_in_the_environment_or_a_file_is_the_users_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"ctcovid train: .*no such file"):
        parsed("train", [], tmp_path / "nosuch.toml")
    monkeypatch.setenv("CTCOVID_TRAIN_MICRO_BATCH", "some")
    with pytest.raises(UsageError, match=r"ctcovid train: .*some is neither a number of volumes nor auto"):
        parsed("train", [])


def test_what_is_given_becomes_the_words_that_give_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text("[paper]\nseeds = 2\n")
    monkeypatch.setenv("CTCOVID_PAPER_SIZE", "64")
    options = parsed("paper", ["sbatch", "scans", "--synthetic", "--depths", "2 4", "--seed", 0, "--cell", "7"], settings)
    words = words_of(options, without=("cell",))
    assert words == ["--synthetic", "--size", "64", "--depths", "2 4", "--seeds", "2", "--seed", "0", "--config", str(settings)]
    monkeypatch.delenv("CTCOVID_PAPER_SIZE")
    assert parsed("paper", ["run", *words]).size == 64
