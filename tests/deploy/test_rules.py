"""Alerts, by the promtool that would load them."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus.rules.yml"
CASES = DEPLOY / "prometheus.rules.test.yml"

pytestmark = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool here (Debian: prometheus)")


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_are_rules():
    promtool("check", "rules", "--lint=all", "--lint-fatal", str(RULES))


def test_every_alert_comes_when_it_must_and_not_otherwise():
    promtool("test", "rules", str(CASES))


def test_every_alert_has_a_case_where_it_comes():
    rules = yaml.safe_load(RULES.read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}
    cases = yaml.safe_load(CASES.read_text())["tests"]
    seen = {case["alertname"] for test in cases for case in test["alert_rule_test"] if "exp_alerts" in case}
    assert seen == alerts
