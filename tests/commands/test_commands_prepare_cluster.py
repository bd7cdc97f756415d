"""ctcovid prepare --executor: the same file, whoever decodes, and whoever dies of it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_commands_prepare import card, content, ctcovid, prepare, sources

from ctcovid.base.errors import CtcovidError, UsageError
from ctcovid.commands import prepare as module
from ctcovid.volumes.layout import ScanRow
from ctcovid.volumes.writer import VolumesWriter

SIZE = 48


class Cluster:
    """A Dask scheduler and its workers, each a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        self.workers: list[subprocess.Popen[bytes]] = []
        self.start("scheduler", "--port", "0", "--no-dashboard", "--host", "127.0.0.1")
        deadline = time.monotonic() + 120
        while (found := re.search(r"Scheduler at:\s+tcp(://\S+)", (folder / "0.log").read_text())) is None:
            assert time.monotonic() < deadline, "the scheduler did not start"
            time.sleep(0.1)
        self.address = f"dask{found[1]}"

    def start(self, *line: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{len(self.processes)}.log").open("wb") as log:
            self.processes.append(
                subprocess.Popen([sys.executable, "-m", "dask", *line], stdout=log, stderr=subprocess.STDOUT, cwd=self.folder)
            )
        return self.processes[-1]

    def work(self, count: int) -> None:
        """Start workers of one thread each, which nothing starts again when they die."""
        for _ in range(count):
            address = self.address.replace("dask://", "tcp://")
            self.workers.append(self.start("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", "."))

    def end(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    pytest.importorskip("distributed", reason="the extra dask is not installed")
    (tmp_path / "cluster").mkdir()
    cluster = Cluster(tmp_path / "cluster")
    yield cluster
    cluster.end()


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """24 scans of 20 slices, which take long enough to pack."""
    generator = np.random.default_rng(0)
    for number in range(24):
        folder = tmp_path / "CC-CCII" / ("NCP", "CP", "Normal")[number % 3] / str(number) / "1"
        folder.mkdir(parents=True)
        for position in range(20):
            Image.fromarray(generator.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)).save(folder / f"{position:04d}.png")
    # A slice that cannot be read stands in the file with its path.
    (tmp_path / "CC-CCII" / "CP" / "4" / "1" / "0007.png").write_bytes(b"")
    return tmp_path / "CC-CCII"


def after(monkeypatch: pytest.MonkeyPatch, count: int, act: Callable[[], object]) -> None:
    """Do something when so many scans are packed."""
    add = VolumesWriter.add

    def adding(self: VolumesWriter, row: ScanRow, chunks: Any) -> None:
        add(self, row, chunks)
        if len(self.rows) == count:
            act()

    monkeypatch.setattr(VolumesWriter, "add", adding)


def test_dask_worker_that_is_killed_loses_nothing_and_the_file_is_the_same(
    cluster: Cluster, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.work(2)
    prepare(dataset, tmp_path / "here.h5", size=SIZE, workers=2)
    after(monkeypatch, 6, cluster.workers[0].kill)
    summary = prepare(dataset, tmp_path / "there.h5", size=SIZE, executor=cluster.address)
    assert cluster.workers[0].wait() == -signal.SIGKILL and cluster.workers[1].poll() is None
    assert summary.failed == []
    assert content(tmp_path / "there.h5") == content(tmp_path / "here.h5")
    assert len(sources(tmp_path / "there.h5")) == 24


def test_scheduler_that_dies_ends_the_run_and_processes_here_go_on_with_it(
    cluster: Cluster, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(dataset, tmp_path / "here.h5", size=SIZE)
    output = tmp_path / "there.h5"
    cluster.work(1)
    with monkeypatch.context() as patch, pytest.raises(CtcovidError, match=r"scheduler at .* is gone. Start it again.*same command"):
        after(patch, 6, cluster.processes[0].kill)
        prepare(dataset, output, size=SIZE, executor=cluster.address)
    assert card(output)["status"] == "failed" and not output.exists()
    assert len(sources(output.with_name("there.h5.partial"))) >= 6
    prepare(dataset, output, size=SIZE)
    assert content(output) == content(tmp_path / "here.h5")


def test_cluster_without_workers_ends_with_what_to_do(
    cluster: Cluster, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctcovid.base.cluster.PATIENCE", 3)
    with pytest.raises(CtcovidError, match=r"has no workers\. Start some with dask worker"):
        prepare(dataset, tmp_path / "there.h5", size=SIZE, executor=cluster.address)


def test_worker_that_does_not_see_the_scans_is_no_loss_of_scans(
    cluster: Cluster, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.work(1)
    output = tmp_path / "there.h5"
    with pytest.raises(CtcovidError, match=r"has no access to .*CC-CCII\. Put the scans on a disk"):
        after(monkeypatch, 3, lambda: shutil.move(dataset, tmp_path / "elsewhere"))
        prepare(dataset, output, size=SIZE, executor=cluster.address)
    assert not output.exists()


def test_line_with_a_path_of_its_own_folder_works_on_a_cluster(cluster: Cluster, dataset: Path, tmp_path: Path) -> None:
    cluster.work(1)
    scheduler = cluster.address.replace("dask://", "tcp://")
    done = ctcovid(tmp_path, "prepare", "CC-CCII", "--size", SIZE, "--executor", "dask", DASK_SCHEDULER_ADDRESS=scheduler)
    assert done.returncode == 0, done.stderr
    assert "distributed" not in done.stderr and "Traceback" not in done.stderr
    assert len(sources(tmp_path / "volumes.h5")) == 24


@pytest.mark.parametrize(
    ("executor", "said"),
    [
        ("spark", "--executor spark: give processes"),
        ("dask://", "--executor dask://: give"),
        ("dask://127.0.0.1:1", "No Dask scheduler answers"),
    ],
)
def test_engine_that_is_not_there_is_a_usage_error(
    executor: str, said: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "1" in executor:
        pytest.importorskip("distributed", reason="the extra dask is not installed")
        monkeypatch.setattr("ctcovid.base.cluster.ANSWER", 2)
    with pytest.raises(UsageError, match=said):
        prepare(dataset, tmp_path / "there.h5", executor=executor)
    assert not (tmp_path / "there.h5.partial").exists()


@pytest.mark.parametrize(("executor", "extra"), [("dask://host:8786", "dask"), ("dask", "dask"), ("mpi", "mpi")])
def test_engine_whose_package_is_absent_names_the_extra(
    executor: str, extra: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctcovid.base.cluster.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=rf"not installed: pip install 'ctcovid\[{extra}\]'"):
        prepare(dataset, tmp_path / "there.h5", executor=executor)
    assert [path.name for path in tmp_path.iterdir()] == ["CC-CCII"]


def test_processes_of_mpi_write_the_same_file(dataset: Path, tmp_path: Path) -> None:
    pytest.importorskip("mpi4py", reason="the extra mpi is not installed")
    if shutil.which("mpiexec") is None:
        pytest.skip("no mpiexec here")
    prepare(dataset, tmp_path / "here.h5", size=SIZE)
    line = ["mpiexec", "-n", "3", sys.executable, "-m", "mpi4py.futures", "-m", "ctcovid", "prepare", dataset]
    line += ["--size", SIZE, "--executor", "mpi", "--output", tmp_path / "there.h5"]
    done = subprocess.run([str(word) for word in line], capture_output=True, text=True, env=dict(os.environ), timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "there.h5") == content(tmp_path / "here.h5")


def test_only_so_many_tasks_are_with_a_cluster_at_a_time(cluster: Cluster, tmp_path: Path) -> None:
    cluster.work(1)
    drawn: list[int] = []

    def tasks() -> Iterator[int]:
        for number in range(200):
            drawn.append(number)
            yield number

    with module.cluster_workers(cluster.address, tmp_path) as pool:
        results = pool.map(abs, tasks())
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        assert len(drawn) <= 3 + 2 * 1 + 2
        assert list(results) == list(range(3, 200))
