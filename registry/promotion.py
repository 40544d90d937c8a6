"""Promotion and rollback: fetch, verify, judge, move the aliases, publish, record.

The order is what makes a crash harmless. Bundles are in place before an alias or a pointer speaks of them; a promotion
sets `previous` before it moves `champion`; what a crash left unpublished is published by the next promotion or rollback
of the name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Literal

from models.errors import InputError, NotFoundError, RefusedError
from registry import deployment
from registry.deployment import Published
from registry.gates import Evidence, Gate, GatesConfig, judge
from registry.references import check_alias, check_name
from registry.tracking import CANDIDATE, Tracking, Version

CHAMPION, PREVIOUS = "champion", "previous"
EXPERIMENT = "promotions"
_OWN_ALIASES = {CANDIDATE, PREVIOUS}
"""Set by registration and by promotion; nobody promotes to them."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What came of a promotion or rollback; `run_id` is its record in MLflow, empty for a dry run."""

    name: str
    version: str
    decision: Literal["promoted", "refused"]
    gates: tuple[Gate, ...]
    run_id: str


def promote(
    tracking: Tracking,
    name: str,
    version: str | None = None,
    *,
    to: str = CHAMPION,
    gates: GatesConfig | None = None,
    dry_run: bool = False,
) -> Decision:
    """Judge a version (None: the newest) against the champion and, where every gate passes, give it the alias `to`.

    A refusal moves nothing and is recorded too; a dry run records nothing either. InputError for a version that has
    the alias already; WorkspaceError while another promotion of the name is under way.
    """
    if check_alias(to) in _OWN_ALIASES:
        raise InputError(f"--to must not be {to}, which rankyard sets itself; champion is the usual one")
    config = gates or GatesConfig()
    tracking.aliases(name)  # an unknown name is refused before there is a lock to write
    with tracking.workspace.lock(f"promote-{check_name(name)}"):
        aliases = tracking.aliases(name)
        chosen = _choose(tracking, name, version)
        if not dry_run:
            _publish(tracking, name, aliases)
        if aliases.get(to) == chosen.version:
            raise InputError(f"a promotion must change something, {chosen.ref} is {to} already; train or name another")
        champion = aliases.get(CHAMPION)
        bundle = tracking.fetch(chosen)
        champion_evidence = Evidence.of(tracking.resolve(f"{name}/{champion}")) if champion else None
        verdicts = tuple(judge(config, Evidence.of(bundle), champion_evidence))
        passed = all(gate.passed for gate in verdicts)
        decision = Decision(name, chosen.version, "promoted" if passed else "refused", verdicts, "")
        if dry_run:
            return decision
        if passed:
            deployment.place(tracking.workspace.deployment, bundle)  # a full disk must show before any alias moves
            _move(tracking, name, _moves(aliases, to, chosen.version))
        return _record(tracking, decision, "promote", to, aliases, config)


def rollback(tracking: Tracking, name: str) -> Decision:
    """Make `previous` the champion again, and the champion `previous`; no quality gates, every digest verified.

    RefusedError where there is no previous champion.
    """
    tracking.aliases(name)  # an unknown name is refused before there is a lock to write
    with tracking.workspace.lock(f"promote-{check_name(name)}"):
        aliases = tracking.aliases(name)
        back, current = aliases.get(PREVIOUS), aliases.get(CHAMPION)
        if back is None or current is None or back == current:
            raise RefusedError(
                f"{name} must have a previous champion to go back to, its aliases are "
                f"{', '.join(f'{alias} (version {v})' for alias, v in aliases.items()) or 'none'}; promote a version"
            )
        for version in (back, current):
            deployment.place(tracking.workspace.deployment, tracking.resolve(f"{name}/{version}"))
        _move(tracking, name, {CHAMPION: back, PREVIOUS: current})
        decision = Decision(name, back, "promoted", (), "")
        return _record(tracking, decision, "rollback", CHAMPION, aliases, None)


def _choose(tracking: Tracking, name: str, version: str | None) -> Version:
    if version is not None:
        return tracking.locate(f"{name}/{version}")
    versions = tracking.versions(name)
    if not versions:
        raise NotFoundError(f"{name} must have a version to be promoted, it has none; make one with `rankyard train`")
    return versions[-1]


def _moves(aliases: Mapping[str, str], to: str, version: str) -> dict[str, str]:
    """Aliases to set, in this order: what they replace stays reachable at every moment."""
    replaced = aliases.get(CHAMPION) if to == CHAMPION else None
    return ({PREVIOUS: replaced} if replaced else {}) | {to: version}


def _move(tracking: Tracking, name: str, moves: Mapping[str, str]) -> None:
    for alias, version in moves.items():
        tracking.move_alias(name, alias, version)
    _publish(tracking, name, tracking.aliases(name))


def _publish(tracking: Tracking, name: str, aliases: Mapping[str, str]) -> None:
    """Bring the pointer to what the registry says, fetching and verifying every bundle it will speak of."""
    wanted = {alias: version for alias, version in aliases.items() if alias != CANDIDATE}
    directory = tracking.workspace.deployment
    try:
        known = {alias: release.version for alias, release in deployment.pointer(directory, name).aliases.items()}
    except NotFoundError:
        known = {}
    if wanted and wanted != known:
        published = {
            alias: Published(version, tracking.resolve(f"{name}/{version}")) for alias, version in wanted.items()
        }
        deployment.publish(directory, name, published)


def _record(
    tracking: Tracking,
    decision: Decision,
    action: Literal["promote", "rollback"],
    alias: str,
    before: Mapping[str, str],
    config: GatesConfig | None,
) -> Decision:
    """Write the decision as a run of the experiment `promotions`, with a report that a person can read."""
    after = tracking.aliases(decision.name)
    text = report(decision, action, alias, before, after)
    with tracking.start(EXPERIMENT, f"{action} {decision.name}/{decision.version}", description=text) as run:
        run.tags(
            {
                "rankyard.action": action,
                "rankyard.decision": decision.decision,
                "rankyard.name": decision.name,
                "rankyard.version": decision.version,
                "rankyard.aliases_before": json.dumps(dict(before)),
                "rankyard.aliases_after": json.dumps(after),
            }
            | {f"gate.{gate.name}": "passed" if gate.passed else "failed" for gate in decision.gates}
        )
        run.parameters({"name": decision.name, "version": decision.version, "to": alias, "action": action})
        if config is not None:
            run.parameters({"gates": config.model_dump(mode="json")})
        for part, figures in (
            ("value", {gate.name: gate.value for gate in decision.gates}),
            ("bound", {gate.name: gate.bound for gate in decision.gates}),
            ("passed", {gate.name: float(gate.passed) for gate in decision.gates}),
        ):
            run.metrics({f"{name}.{part}": figure for name, figure in figures.items() if figure is not None})
        run.text(text, "report.md")
        run.text(json.dumps([asdict(gate) for gate in decision.gates], indent=2), "gates.json")
    return Decision(decision.name, decision.version, decision.decision, decision.gates, run.id)


def report(decision: Decision, action: str, alias: str, before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """Say a decision in Markdown: what was asked, each gate's figure, bound and verdict, and what moved."""
    lines = [
        f"# {action} {decision.name}/{decision.version} to {alias}: {decision.decision}",
        "",
        f"{datetime.now(UTC).isoformat(timespec='seconds')}",
        "",
    ]
    if failed := [gate for gate in decision.gates if not gate.passed]:
        lines += ["Refused by:", "", *(f"- **{gate.name}**: {gate.detail}" for gate in failed), ""]
    if decision.gates:
        lines += [
            "| gate | value | bound | verdict | detail |",
            "|---|---|---|---|---|",
            *map(_row, decision.gates),
            "",
        ]
    return "\n".join([*lines, f"Aliases before: {_said(before)}", "", f"Aliases after: {_said(after)}", ""])


def _row(gate: Gate) -> str:
    figures = (f"{figure:.6g}" if figure is not None else "" for figure in (gate.value, gate.bound))
    return "| " + " | ".join([gate.name, *figures, "passed" if gate.passed else "**failed**", gate.detail]) + " |"


def _said(aliases: Mapping[str, str]) -> str:
    return ", ".join(f"{alias} = {version}" for alias, version in sorted(aliases.items())) or "none"
