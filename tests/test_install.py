"""The project as others install it: away from the checkout, and the gateway's part alone."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
import venv
from pathlib import Path

import pytest

from registry.deployment import Published, publish
from tests.bundles import tiny_bundle

ROOT = Path(__file__).parent.parent
PATIENTLY = ("--quiet", "--retries", "10", "--timeout", "60")  # with a package index that stumbles
HEAVY = ("torch", "mlflow", "xgboost", "sklearn", "transformers", "pandas")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the files that a release would hold, so that nothing is left in the checkout."""
    directory = tmp_path_factory.mktemp("wheel")
    source = directory / "source"
    source.mkdir()
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, tracked.split("\0")):
        if name.startswith(("configs/", "models/", "registry/", "serving/", "training/")) or name in (
            "pyproject.toml",
            "README.md",
            "rankyard.py",
        ):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", *PATIENTLY, "--no-deps", "--wheel-dir", str(directory)]
    subprocess.run([*pip, str(source)], check=True)
    return next(directory.glob("*.whl"))


def environment(directory: Path) -> Path:
    """A fresh virtual environment's bin directory."""
    venv.create(directory, with_pip=True)
    return directory / "bin"


def clean_environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RANKYARD", "MLFLOW"))}


def test_a_gateway_installs_and_answers_from_the_serve_extra_alone(wheel: Path, tmp_path: Path) -> None:
    bin_ = environment(tmp_path / "venv")
    lock = ROOT / "requirements.lock"
    subprocess.run(
        [bin_ / "python", "-m", "pip", "install", *PATIENTLY, "--constraint", lock, f"{wheel}[serve]"], check=True
    )
    code = f"import importlib.util as u; assert not [m for m in {HEAVY} if u.find_spec(m)]"
    subprocess.run([bin_ / "python", "-c", code], check=True, cwd=tmp_path)
    workspace = tmp_path / "workspace"
    bundle = tiny_bundle(tmp_path / "bundles")
    publish(workspace / "deployment", "shop-intent", {"champion": Published("1", bundle)})
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [bin_ / "rankyard", "serve", "--port", "0", "--workspace", workspace],
            stderr=output,
            cwd=tmp_path,
            env=clean_environ(),
        )
    try:
        give_up_at = time.monotonic() + 180
        while not (found := re.search(r"http://[\d.:]+", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < give_up_at, log.read_text()
            time.sleep(0.05)
        body = json.dumps({"query": "where is my order"}).encode()
        request = urllib.request.Request(f"{found[0]}/v1/understand", body, {"x-deadline-ms": "30000"})
        with urllib.request.urlopen(request, timeout=60) as response:
            assert json.load(response)["intent"]["label"] == "order_status"
    finally:
        process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_the_demo_works_from_an_installed_wheel_in_an_empty_directory(wheel: Path, tmp_path: Path) -> None:
    bin_ = environment(tmp_path / "venv")
    subprocess.run([bin_ / "python", "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    # The packages it needs are the ones that the tests run with; downloading them again would prove nothing new.
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    here = [path for path in sys.path if path.endswith("site-packages")]
    (site / "packages-of-the-tests.pth").write_text("\n".join(here) + "\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    command = [bin_ / "rankyard", "demo", "--json"]
    done = subprocess.run(command, cwd=empty, env=clean_environ(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["promoted"]["decision"] == "promoted"
    assert told["refused"]["decision"] == "refused"
    assert [answer["intent"]["in_scope"] for answer in told["answers"]] == [True, True, False]
    assert "rankyard ui" in done.stderr
    assert [path.name for path in empty.iterdir()] == [".rankyard"]
