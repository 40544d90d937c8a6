"""The README's commands, run as they stand there, in an empty directory."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import rankyard
from models.config import shipped

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def commands() -> list[str]:
    block = README.split("<!-- tested -->")[1].split("<!-- /tested -->")[0]
    return [line.strip() for line in block.splitlines() if line.strip()]


def test_the_way_from_files_to_a_champion_works_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for command in commands():
        program, *arguments = shlex.split(command)
        assert program == "rankyard"
        status = rankyard.main(arguments)
        assert status == 0, f"{command}: {capfd.readouterr().err}"


def test_every_command_that_the_readme_names_exists(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        rankyard.main(["--help"])
    known = capsys.readouterr().out
    for command in set(re.findall(r"rankyard ([a-z]+) ", README)):
        assert re.search(rf"^ +{command} ", known, re.MULTILINE), command


def test_every_shipped_configuration_is_described() -> None:
    assert [name for name in shipped() if f"`{name}`" not in README] == []


def test_the_results_tables_are_what_the_studies_found() -> None:
    command = [sys.executable, "-m", "experiments.report"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert printed.strip() in README


def test_every_study_with_a_target_is_in_the_results_tables() -> None:
    for path in (ROOT / "experiments").glob("*/results/*.json"):
        if any(row["target"] is not None for row in json.loads(path.read_text()).get("rows", [])):
            assert f"[{path.parts[-3]}](experiments/{path.parts[-3]})" in README


def test_every_link_into_the_tree_leads_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
