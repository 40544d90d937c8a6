"""Processes that work together: none is left behind, and what one of them meets is said."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from models.errors import DataError, RefusedError
from training.tuning import workers


def write(number: int, directory: Path) -> None:
    (directory / str(number)).write_text(os.environ["OMP_NUM_THREADS"])


def die(number: int, directory: Path, who: tuple[int, ...]) -> None:
    if number in who:
        os.kill(os.getpid(), signal.SIGKILL)
    write(number, directory)


def refuse(number: int, directory: Path) -> None:
    if number == 1:
        raise DataError("a row must have a label")
    write(number, directory)


def wait(number: int, directory: Path) -> None:
    try:
        write(number, directory)
        time.sleep(600)
    finally:
        (directory / f"{number} stopped").touch()


def until(*paths: Path) -> None:
    end = time.monotonic() + 60
    while not all(path.exists() for path in paths):
        assert time.monotonic() < end, paths
        time.sleep(0.05)


def test_every_worker_works_with_its_share_of_the_cores(tmp_path: Path) -> None:
    before = os.environ.get("OMP_NUM_THREADS")
    workers.run(2, write, (tmp_path,), print)
    cores = len(os.sched_getaffinity(0))
    shares = [int((tmp_path / name).read_text()) for name in ("1", "2")]
    assert sum(shares) == max(cores, 2)
    assert os.environ.get("OMP_NUM_THREADS") == before


def test_a_killed_worker_is_said_and_the_others_go_on(tmp_path: Path) -> None:
    said: list[str] = []
    workers.run(2, die, (tmp_path, (2,)), said.append)
    assert said == ["worker 2 was killed by signal 9"]
    assert (tmp_path / "1").exists()


def test_that_all_were_killed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="all workers were killed"):
        workers.run(1, die, (tmp_path, (1,)), lambda _: None)


def test_the_refusal_of_one_is_raised_when_all_have_ended(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a row must have a label"):
        workers.run(2, refuse, (tmp_path,), print)
    assert (tmp_path / "2").exists()


_SCRIPT = """
from pathlib import Path
from training.tuning import workers
from tests.training.tuning.test_workers import wait
if __name__ == "__main__":
    workers.run(2, wait, (Path({!r}),), print)
"""


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_first_process_however_it_ends(tmp_path: Path, signal_number: int) -> None:
    script = tmp_path / "start.py"
    script.write_text(_SCRIPT.format(str(tmp_path)))
    root = Path(__file__).parents[3]
    first = subprocess.Popen(
        [sys.executable, script], env={**os.environ, "PYTHONPATH": str(root)}, stderr=subprocess.PIPE
    )
    until(tmp_path / "1", tmp_path / "2")
    first.send_signal(signal_number)
    until(tmp_path / "1 stopped", tmp_path / "2 stopped")
    first.communicate(timeout=60)
    assert first.returncode == -signal_number
