"""The command line: parse, call one function a command, print, exit. Imports on use, so that help is quick."""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import InputError, NotFoundError, RankyardError, WorkspaceError

if TYPE_CHECKING:
    from registry.tracking import Tracking
    from registry.workspace import Workspace
    from serving.runtime.protocol import ServedModel
    from serving.triton.repository import Deployed
    from serving.triton.settings import TritonSettings

VERSION = "0.1.0"
FAMILIES = ("intent", "tagging", "ranking")
TUNE_HELP = "search for a better configuration and train it, or for a better scheduling on Triton"
CA_FILE_HELP = "certificates, in PEM, of who may sign for an https gateway"
REF_HELP = "NAME@alias, NAME/VERSION, or a bundle's directory"

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}

Answer = dict[str, Any]
"""What a command prints as JSON; its key `text`, not printed there, is what a person reads."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (0 done, 1 the work says no, 2 the call was wrong)."""
    options = _parser().parse_args(arguments)
    try:
        with ctrl_c_kept():
            return _print(options, options.run(options))
    except RankyardError as error:
        return _refuse(error)
    except ModuleNotFoundError as error:
        return _refuse(_missing_package(error))
    except KeyboardInterrupt:
        print(f"rankyard: stopped by Ctrl-C{options.after_interrupt}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        return _refuse(_disk(error))


@contextmanager
def ctrl_c_kept() -> Iterator[None]:
    """Send a Ctrl-C again that came inside a finalizer or a collected object's callback, where Python drops it."""
    before = sys.unraisablehook

    def send_again(lost: sys.UnraisableHookArgs) -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):
            threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            before(lost)

    sys.unraisablehook = send_again
    try:
        yield
    finally:
        sys.unraisablehook = before


def _print(options: argparse.Namespace, answer: Answer) -> int:
    text = answer.pop("text", "")
    if options.json and answer:
        print(json.dumps(answer))
    elif text:
        print(text)
    return 1 if answer.get("decision") == "refused" else 0


def _refuse(error: RankyardError) -> int:
    print(f"rankyard: {error.message}", file=sys.stderr)
    return error.exit_status


def _missing_package(error: ModuleNotFoundError) -> RankyardError:
    return InputError(
        f"this command needs the package {error.name}, which is not installed; "
        "pip install 'rankyard[serve]' to serve, 'rankyard[train]' to train and promote, 'rankyard[triton]' for Triton"
    )


def _disk(error: OSError) -> RankyardError:
    """What no part of the program expected: a disk may be full at any file."""
    return WorkspaceError(
        f"every file of this command must fit on its disk, which must let it be written, got {error.filename} "
        f"({error.strerror}); free some space or name another place"
    )


def _workspace(options: argparse.Namespace) -> Workspace:
    from registry.workspace import Workspace

    return Workspace(Path(options.workspace).absolute())


def _tracking(options: argparse.Namespace) -> Tracking:
    from registry.tracking import Tracking

    return Tracking(_workspace(options), os.environ.get("MLFLOW_TRACKING_URI"))


def _demo(options: argparse.Namespace) -> Answer:
    _install_for_demo()
    from training.demo import run, write_data

    if options.data_only:
        return write_data(Path(options.data_only))
    return run(_workspace(options).open(), _call)


def _install_for_demo() -> None:
    """Install what the demo needs beyond a bare `pip install rankyard`: it trains and serves, so both extras."""
    import importlib.util
    import subprocess
    from importlib import metadata

    if all(importlib.util.find_spec(module) for module in ("mlflow", "torch", "httptools")):
        return
    wanted = [
        requirement.partition(";")[0].strip()
        for requirement in metadata.requires("rankyard") or ()
        if requirement.endswith(('extra == "train"', 'extra == "serve"'))
    ]
    print(
        f"the demo trains and serves: installing the packages of rankyard[train,serve] into {sys.prefix}",
        file=sys.stderr,
    )
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode:  # noqa: S603 - our own requirements
        raise InputError("the demo needs the packages of rankyard[train,serve]; pip install 'rankyard[train,serve]'")
    importlib.invalidate_caches()


def _call(arguments: Sequence[str]) -> Answer:
    """Run a command as `main` does, but give its answer; what the demo is made of."""
    options = _parser().parse_args(arguments)
    answer: Answer = options.run(options)
    return answer


def _train(options: argparse.Namespace) -> Answer:
    from models.config import read
    from training import line
    from training.config import parse
    from training.terminal import terminal

    config = parse(read(options.config, options.set), options.task)
    order = line.Order(config, Path(options.data), options.name or options.task, resume=options.resume)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and getattr(config.training, "engine", "") != "torchrun":
        raise InputError(f"torchrun must start a training with training.engine torchrun, got {config.task} without it")
    if int(os.environ.get("RANK", "0")) > 0:  # torchrun's own variable: another process does what is to be done once
        line.follow(order, _tracking(options))
        return {}
    with terminal() as screen:
        trained = line.run(order, _tracking(options), screen)
    return {
        "name": trained.name,
        "version": trained.version,
        "run_id": trained.run_id,
        "bundle": str(trained.bundle.path),
        "metrics": trained.metrics,
        "seconds": round(trained.seconds, 2),
        "text": trained.summary(),
    }


def _tune(options: argparse.Namespace) -> Answer:
    from training.terminal import terminal
    from training.tuning import tune
    from training.tuning.space import read_tuning
    from training.tuning.trials import Order

    config, space = read_tuning(options.config, options.set, options.task)
    order = Order(
        config,
        space,
        Path(options.data),
        options.name or options.task,
        options.trials,
        options.timeout,
        options.workers,
    )
    with terminal() as screen:
        tuned = tune.run(order, _tracking(options), screen)
    return {**tuned.answer(), "text": tuned.summary()}


def _tune_triton(options: argparse.Namespace) -> Answer:
    from serving.triton.tuning import tune
    from serving.triton.tuning.settings import SweepSettings, sweep_settings

    workspace, settings = _workspace(options), _triton_settings(options)
    if options.forget:
        return _forget(options, workspace, settings)
    if options.triton_url and options.repository is None:
        raise InputError("--triton-url must come with --repository, the directory that the server reads; give both")
    given = {name: value for name in SweepSettings.model_fields if (value := getattr(options, name)) is not None}
    repository = Path(options.repository) if options.repository else workspace.triton / "repository"
    order = tune.Order(options.name, sweep_settings(given), settings, repository, options.triton_url)
    with _tracking(options).start(tune.EXPERIMENT, options.name) as run:
        tuned = tune.tune(order, workspace, run, say=lambda line: print(line, file=sys.stderr, flush=True))
    return tuned.answer()


def _forget(options: argparse.Namespace, workspace: Workspace, settings: TritonSettings) -> Answer:
    from registry.deployment import resolve
    from serving.triton import kept

    target = kept.target(resolve(workspace.deployment, f"{options.name}@champion").bundle, settings)
    was_kept = kept.forget(workspace.deployment, options.name, target)
    done = "is forgotten, the next deploy takes the default" if was_kept else "was not kept"
    return {
        "name": options.name,
        "target": target,
        "forgotten": was_kept,
        "text": f"what was tuned for {target} {done}",
    }


def _evaluate(options: argparse.Namespace) -> Answer:
    from training.line import evaluate_file

    bundle = _tracking(options).resolve(options.ref)
    evaluated = evaluate_file(bundle, Path(options.data))
    lines = [
        f"  {name:<20} {value:.4f}  [{evaluated.intervals[name][0]:.4f}, {evaluated.intervals[name][1]:.4f}]"
        for name, value in evaluated.metrics.items()
    ]
    notes = [f"  note: {note}" for note in evaluated.notes]
    return {
        "ref": options.ref,
        "n": evaluated.n,
        "metrics": evaluated.metrics,
        "intervals": evaluated.intervals,
        "notes": evaluated.notes,
        "text": "\n".join([f"{options.ref} on {evaluated.n} examples of {options.data}", *lines, *notes]),
    }


def _models(options: argparse.Namespace) -> Answer:
    models = _tracking(options).models(options.name)
    lines = []
    for model in models:
        roles: dict[str, list[str]] = {}
        for alias, version in model["aliases"].items():
            roles.setdefault(version, []).append(alias)
        lines.append(model["name"])
        for entry in model["versions"]:
            metrics = ", ".join(f"{name} {value:.4f}" for name, value in entry["metrics"].items())
            number = entry["version"]
            lines.append(f"  {number:>3}  {entry['created'][:19]}  {', '.join(roles.get(number, ())):<22} {metrics}")
    return {"models": models, "text": "\n".join(lines) or "no models yet; make one with `rankyard train`"}


def _promote(options: argparse.Namespace) -> Answer:
    from models.config import read, validate
    from registry.gates import GatesConfig
    from registry.promotion import promote

    gates = validate(GatesConfig, read(options.gates))
    decision = promote(
        _tracking(options), options.name, options.version, to=options.to, gates=gates, dry_run=options.dry_run
    )
    return _decision(asdict(decision))


def _rollback(options: argparse.Namespace) -> Answer:
    from registry.promotion import rollback

    return _decision(asdict(rollback(_tracking(options), options.name)))


def _decision(answer: Answer) -> Answer:
    lines = [
        f"  {'passed' if gate['passed'] else 'FAILED':<7} {gate['name']:<16} {gate['detail']}"
        for gate in answer["gates"]
    ]
    return {**answer, "text": "\n".join([f"{answer['name']}/{answer['version']} {answer['decision']}", *lines])}


def _predict(options: argparse.Namespace) -> Answer:
    texts = options.texts
    if options.url:  # a gateway knows what it serves: the first word is a text already
        texts = [*([] if options.ref is None else [options.ref]), *texts]
    elif options.ref is None:
        raise InputError("predict needs a REF, or a running gateway's --url, got neither")
    elif options.ca_file:
        raise InputError("--ca-file does nothing without --url; give that too or leave it out")
    lines = [*texts, *(_lines(Path(options.file)) if options.file else ())]
    if not lines:
        raise InputError("predict needs at least one TEXT or --file, got none")
    n_failed = 0
    for answer in _answers(options, lines):
        print(json.dumps(answer), flush=True)
        n_failed += "error" in answer
    if n_failed:
        raise InputError(f"every line must be a request that the model can answer, {n_failed} of {len(lines)} are not")
    return {}


def _answers(options: argparse.Namespace, lines: Sequence[str]) -> Iterator[Answer]:
    if options.url:
        from serving.ask import ask

        return ask(options.url, lines, Path(options.ca_file) if options.ca_file else None)
    from serving.gateway.predict import predict

    return predict(_served(options), lines)


def _served(options: argparse.Namespace) -> ServedModel:
    from registry.deployment import resolve
    from registry.references import parse
    from serving.runtime.protocol import ServedModel

    published = _workspace(options).deployment
    if isinstance(parse(options.ref), Path):
        return ServedModel(*resolve(published, options.ref))
    if "MLFLOW_TRACKING_URI" not in os.environ:
        with suppress(NotFoundError):  # what is published is what a gateway answers with, and needs no MLflow
            return ServedModel(*resolve(published, options.ref))
    tracking = _tracking(options)
    found = tracking.locate(options.ref)
    return ServedModel(found.name, found.version, tracking.fetch(found))


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--file must be a readable file in UTF-8, got {file} ({error})") from error


def _check(options: argparse.Namespace) -> Answer:
    from training.check import check_data, check_workspace, log_data

    if options.what == "workspace":
        found = check_workspace(_workspace(options))
        bad = [sentence for sentence in found.values() if sentence != "ok"]
        lines = [f"  {name:<28} {verdict}" for name, verdict in found.items()] or ["  nothing in it yet"]
        decision = {"decision": "refused"} if bad else {}
        return {"checked": found, "ok": not bad, **decision, "text": "\n".join([options.workspace, *lines])}
    if options.data is None:
        raise InputError("check data needs --data DIR, got none")
    report = check_data(Path(options.data), options.config)
    if options.html:
        _write(Path(options.html), report.html())
    run_id = log_data(report, Path(options.data), _tracking(options))
    lines = [f"{report.family} data in {options.data}"]
    for split, figures in report.splits.items():
        shown = ", ".join(f"{name} {value}" for name, value in figures.items() if name != "sha256")
        lines.append(f"  {split:<6} {shown}")
    lines += [f"  {line}" for line in report.said(options.html or f"run {run_id} of the experiment data")]
    return {**asdict(report), "warnings": report.warnings, "run_id": run_id, "text": "\n".join(lines)}


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--html must be a file that can be written, got {file} ({error.strerror})") from error


def _deploy(options: argparse.Namespace) -> Answer:
    from serving.triton.repository import deploy

    deployed = deploy(
        _workspace(options).deployment,
        options.names,
        Path(options.repository),
        _triton_settings(options),
        options.triton_url,
    )
    models = [
        {
            "name": one.name,
            "version": one.version,
            "path": str(one.path),
            "ready": one.is_ready,
            "tuned": None if one.kept is None else one.kept.model_dump(mode="json"),
        }
        for one in deployed
    ]
    return {"models": models, "text": "\n".join(map(_deployed, deployed))}


def _deployed(one: Deployed) -> str:
    proved = ", loaded and proved" if one.is_ready else ""
    tuned = "" if one.kept is None else f", {one.kept}"
    return f"{one.name}/{one.version} in {one.path}{proved}{tuned}"


def _triton_settings(options: argparse.Namespace) -> TritonSettings:
    from models.config import validate
    from serving.triton.settings import TritonSettings

    given = {name: getattr(options, name) for name in ("backend", "variant", "gpus", "tensorrt")}
    return validate(TritonSettings, {name: value for name, value in given.items() if value is not None})


def _triton(options: argparse.Namespace) -> Answer:
    from serving.triton import server

    directory = _workspace(options).triton
    if options.what == "down":
        was_running = server.down(directory)
        return {"running": False, "text": "Triton has ended" if was_running else "no Triton server runs here"}
    if options.what == "up":
        _workspace(options).open()
        server.up(directory, Path(options.repository) if options.repository else directory / "repository")
    running = server.status(directory)
    if running is None:
        return {"running": False, "text": "no Triton server runs here"}
    is_ready = server.is_ready(running.http)
    state = "ready" if is_ready else "not ready"
    text = (
        f"Triton is {state}: http {running.http}, grpc {running.grpc}, metrics {running.metrics}, process {running.pid}"
    )
    return {"running": True, "ready": is_ready, **asdict(running), "text": text}


def _serve(options: argparse.Namespace) -> Answer:
    from models.config import read, validate
    from serving.gateway import logs
    from serving.gateway.config import GatewayConfig
    from serving.gateway.server import run
    from serving.triton.server import status

    raw = read(options.config)
    if options.processes is not None:
        raw["processes"] = options.processes
    config = validate(GatewayConfig, raw)
    workspace = _workspace(options)
    if config.runtime.triton_url is None and (local := status(workspace.triton)) is not None:
        config = validate(GatewayConfig, raw | {"runtime": (raw.get("runtime") or {}) | {"triton_url": local.grpc}})
    run(
        config,
        workspace.deployment,
        options.runtime,
        options.host,
        options.port,
        say=lambda line: print(logs.told(config.logs, line), file=sys.stderr, flush=True),
    )
    return {}


def _bench(options: argparse.Namespace) -> Answer:
    from serving.bench.bench import bench
    from serving.bench.settings import Settings, settings

    given = {name: value for name in Settings.model_fields if (value := getattr(options, name)) is not None}
    return bench(settings(given), say=lambda line: print(line, file=sys.stderr, flush=True))


def _ui(options: argparse.Namespace) -> Answer:
    from serving.gateway.port import address, bind

    tracking = _tracking(options)
    with bind(options.host, options.port) as taken:  # MLflow would tell of a taken port late, and of a wrong one never
        url, port = address(taken), taken.getsockname()[1]
    print(f"MLflow UI of {tracking.uri} on {url}, Ctrl-C ends it", file=sys.stderr)
    os.execv(sys.executable, [sys.executable, "-m", *tracking.ui_command(options.host, port)])  # noqa: S606 - no shell wanted


def _count(text: str) -> int:
    """A whole number from 1 of the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    """A positive number of the command line."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, got {text!r}")
    return seconds


def _numbers(text: str) -> list[float]:
    """Numbers of the command line, with commas between them."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers with commas between them, got {text!r}") from None


def _counts(text: str) -> list[int]:
    """Whole numbers from 0 of the command line, with commas between them."""
    if not all(part.isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"must be whole numbers with commas between them, got {text!r}")
    return [int(part) for part in text.split(",")]


def _names(text: str) -> list[str]:
    """Names of the command line, with commas between them; '' for none."""
    return [name for name in text.split(",") if name]


COMMON = argparse.ArgumentParser(add_help=False)
COMMON.add_argument(
    "--workspace",
    metavar="DIR",
    default=os.environ.get("RANKYARD_WORKSPACE", ".rankyard"),
    help="holds everything that a run writes (default: $RANKYARD_WORKSPACE or .rankyard)",
)
COMMON.add_argument("--json", action="store_true", help="print one JSON object on standard output")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rankyard",
        description="The models behind a shop's search, from raw files to served, gated, reversible answers.",
        epilog="Exit status: 0 done, 1 the work says no (a gate refused, parity failed), 2 the call was wrong.",
    )
    parser.add_argument("--version", action="version", version=f"rankyard {VERSION}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(
        name: str, run: Callable[[argparse.Namespace], Answer], summary: str, *, after_interrupt: str = ""
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=summary, parents=[COMMON])
        added.set_defaults(run=run, after_interrupt=after_interrupt)
        return added

    demo = command("demo", _demo, "run the whole line on the built-in demo shop")
    demo.add_argument("--data-only", metavar="DIR", help="write the demo shop's files to DIR and stop")

    train = command(
        "train",
        _train,
        "train, export, quantize, evaluate and register a model",
        after_interrupt="; the same command with --resume goes on from the last checkpoint",
    )
    train.add_argument("task", choices=FAMILIES)
    train.add_argument("--config", required=True, metavar="FILE", help="a YAML file, or the name of a shipped one")
    train.add_argument("--data", required=True, metavar="DIR", help="holds train, valid and test files")
    train.add_argument("--name", help="the registered model's name (default: the task)")
    train.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key, e.g. training.epochs=3"
    )
    train.add_argument("--resume", action="store_true", help="go on from the checkpoint of a training that was stopped")

    tune = commands.add_parser("tune", help=TUNE_HELP, description=TUNE_HELP)
    _add_tune(tune)

    evaluate = command("evaluate", _evaluate, "measure a model on a labelled file")
    evaluate.add_argument("ref", metavar="REF", help=REF_HELP)
    evaluate.add_argument("--data", required=True, metavar="FILE")

    predict = command("predict", _predict, "answer as the gateway would, one JSON object a line")
    predict.add_argument("ref", nargs="?", metavar="REF", help=f"{REF_HELP}; none with --url")
    predict.add_argument("texts", nargs="*", metavar="TEXT")
    predict.add_argument("--file", metavar="FILE", help="a text a line; for ranking a /v1/rank request a line")
    predict.add_argument("--url", metavar="URL", help="ask a running gateway there, instead of a model in this process")
    predict.add_argument("--ca-file", metavar="FILE", help=CA_FILE_HELP)

    models = command("models", _models, "list models with their versions, roles and metrics")
    models.add_argument("name", nargs="?")

    check = command("check", _check, "check data before training, or a workspace")
    check.add_argument("what", choices=("data", "workspace"))
    check.add_argument("--data", metavar="DIR", help="for `check data`: holds train, valid and test files")
    check.add_argument("--config", metavar="FILE", help="what will be trained (default: its family's default)")
    check.add_argument("--html", metavar="FILE", help="write the whole report there too, as one page")

    promote = command("promote", _promote, "run the gates and, where all pass, move an alias")
    promote.add_argument("name")
    promote.add_argument("--version", help="the version to promote (default: the newest)")
    promote.add_argument("--to", default="champion", help="the alias to move (default: champion)")
    promote.add_argument("--gates", default="gates", metavar="FILE", help="a YAML file, or the name of a shipped one")
    promote.add_argument("--dry-run", action="store_true", help="run the gates, change nothing")

    rollback = command("rollback", _rollback, "make the previous champion the champion again")
    rollback.add_argument("name")

    deploy = command("deploy", _deploy, "write champions into a Triton model repository, and load them")
    deploy.add_argument("names", nargs="+", metavar="NAME")
    deploy.add_argument("--repository", required=True, metavar="DIR")
    deploy.add_argument("--triton-url", metavar="URL", help="HTTP address of a running server to load them into")
    _add_triton_settings(deploy)

    triton = command("triton", _triton, "run a local Triton server, without a container")
    triton.add_argument("what", choices=("up", "down", "status"))
    triton.add_argument("--repository", metavar="DIR", help="the model repository (default: the workspace's)")

    serve = command("serve", _serve, "start the gateway")
    serve.add_argument("--config", default="gateway", metavar="FILE", help="a YAML file, or the name of a shipped one")
    serve.add_argument("--runtime", choices=("onnx", "triton"), help="where models run (default: the configuration's)")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=8080, help="0: any free one")
    serve.add_argument(
        "--processes",
        type=_count,
        metavar="N",
        help="how many answer at that port, for more cores than one can feed (default: the configuration's, 1)",
    )

    _add_bench(command("bench", _bench, "load a running gateway, and say how fast and how well it answers"))

    ui = command("ui", _ui, "open the MLflow UI on the workspace")
    ui.add_argument("--host", default="127.0.0.1")
    ui.add_argument("--port", type=int, default=5000)
    return parser


def _add_tune(tune: argparse.ArgumentParser) -> None:
    tasks = tune.add_subparsers(metavar="TASK", required=True)
    for family in FAMILIES:
        summary = f"search for a better configuration of {family}, and train it"
        task = tasks.add_parser(family, help=summary, description=summary, parents=[COMMON])
        goes_on = "; the same command goes on with the trials that are left"
        task.set_defaults(run=_tune, task=family, after_interrupt=goes_on)
        task.add_argument(
            "--config", required=True, metavar="FILE", help="a study's YAML file, or the name of a shipped one"
        )
        task.add_argument("--data", required=True, metavar="DIR", help="holds train, valid and test files")
        task.add_argument("--trials", required=True, type=_count, metavar="N", help="trials of the study in all")
        task.add_argument("--timeout", type=_seconds, metavar="S", help="seconds after which no further trial begins")
        task.add_argument(
            "--workers", type=_count, default=1, metavar="N", help="processes that share the cores (default: 1)"
        )
        task.add_argument("--name", help="the registered model's name (default: the task)")
        task.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the base configuration"
        )
    summary = "measure how Triton serves a champion best: instances, threads, batch sizes, delay; keep what is found"
    triton = tasks.add_parser("triton", help=summary, description=summary, parents=[COMMON])
    triton.set_defaults(run=_tune_triton, after_interrupt="; nothing was changed")
    _add_tune_triton(triton)


def _add_tune_triton(triton: argparse.ArgumentParser) -> None:
    triton.add_argument("name", metavar="NAME", help="the model whose champion is measured")
    what = triton.add_mutually_exclusive_group(required=True)
    what.add_argument("--p99-ms", type=float, metavar="MS", help="within which 99 of 100 requests must be answered")
    what.add_argument("--forget", action="store_true", help="measure nothing: later deploys take the default again")
    triton.add_argument(
        "--repository", metavar="DIR", help="where the result is written (default: the workspace's own)"
    )
    triton.add_argument(
        "--triton-url",
        metavar="URL",
        help="HTTP address of a running server of that repository, to measure there (default: one of its own)",
    )
    _add_triton_settings(triton)
    load = triton.add_argument_group("load")
    load.add_argument(
        "--concurrency", type=_counts, metavar="N,N,...", help="closed loops (default: 1,2,4,8,16,32,64 callers)"
    )
    load.add_argument("--rates", type=_numbers, metavar="R,R,...", help="open loops instead, of R requests a second")
    load.add_argument("--size", type=_count, metavar="N", help="texts of a request (1), or documents of a list (100)")
    load.add_argument("--queries", metavar="FILE", help="a query a line, instead of generated ones")
    load.add_argument("--seconds", type=_seconds, metavar="S", help="of each loop (default: 2)")
    load.add_argument("--warmup-seconds", type=float, metavar="S", help="before each, not counted (default: 0.5)")
    search = triton.add_argument_group("search")
    search.add_argument("--trials", type=_count, metavar="N", help="schedulings at most, before the finals (24)")
    search.add_argument("--repeats", type=_count, metavar="N", help="rounds of the finals (5)")
    search.add_argument("--seed", type=int, help="of the order and of what is sent (0)")


def _add_triton_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend",
        choices=("python", "onnxruntime"),
        help="Triton's backend (default: python, which every server has; containers have onnxruntime too)",
    )
    parser.add_argument("--variant", choices=("float32", "int8", "fp16"), help="default: each bundle's own choice")
    parser.add_argument("--gpus", type=_counts, metavar="N,N,...", help="run on these GPUs (needs onnxruntime)")
    parser.add_argument("--tensorrt", choices=("fp32", "fp16"), help="let TensorRT run it on a GPU, in this precision")


def _add_bench(bench: argparse.ArgumentParser) -> None:
    bench.add_argument("--url", help="the gateway (default: http://127.0.0.1:8080)")
    bench.add_argument(
        "--scenario", choices=("understand", "rank", "mixed"), help="what is asked (default: understand)"
    )
    bench.add_argument("--ca-file", metavar="FILE", help=CA_FILE_HELP)
    load = bench.add_argument_group(
        "load",
        "one of the first three. Latency counts from when a request was due: an open loop tells what independent"
        " callers wait. Those of a closed loop send nothing during a stall; its percentiles are given as measured, and"
        " corrected as HdrHistogram does for what each would have sent every median latency.",
    )
    load.add_argument("--concurrency", type=_count, metavar="N", help="closed loop of N callers (default: 16)")
    load.add_argument("--rate", type=float, metavar="R", help="open loop of R requests a second")
    load.add_argument("--rates", type=_numbers, metavar="R,R,...", help="a sweep: one open loop after the other")
    load.add_argument("--arrivals", choices=("poisson", "constant"), help="of an open loop (default: poisson)")
    load.add_argument("--connections", type=_count, metavar="N", help="an open loop's most (default: 512)")
    load.add_argument("--seconds", type=_seconds, metavar="S", help="of each loop (default: 10)")
    load.add_argument("--warmup-seconds", type=float, metavar="S", help="before each, not counted (default: 2)")
    load.add_argument("--p99-limit-ms", type=float, metavar="MS", help="what goodput is about (default: 50)")
    load.add_argument("--deadline-ms", type=float, metavar="MS", help="told to the gateway (default: its own)")
    sent = bench.add_argument_group("what is sent", "generated by --seed, no query twice unless --zipf says so")
    sent.add_argument("--seed", type=int, help="(default: 0); another one sends other queries")
    sent.add_argument("--queries", metavar="FILE", help="a query a line, instead of generated ones")
    sent.add_argument("--zipf", type=float, metavar="S", help="query i of --distinct has a chance ~ i^-S")
    sent.add_argument("--distinct", type=_count, metavar="N", help="queries that --zipf draws from (default: 100000)")
    sent.add_argument("--list-sizes", type=_numbers, metavar="N,N,...", help="candidates, in turn (default: 100)")
    sent.add_argument(
        "--form",
        choices=("columns", "rows", "arrow", "binary"),
        help="of candidates (default: columns); binary: tensors of the Open Inference Protocol, to one ranker",
    )
    sent.add_argument("--features", type=_names, metavar="NAME,...", help="default: all that the model reads")
    sent.add_argument("--texts", action="store_true", default=None, help="candidates have a text")
    sent.add_argument("--top-k", type=_count, metavar="K", help="answers wanted of a list (default: all)")
    sent.add_argument("--rank-share", type=float, metavar="P", help="of the requests of `mixed` (default: 0.2)")
    files = bench.add_argument_group("files")
    files.add_argument("--out", metavar="FILE", help="write the result there, as JSON")
    files.add_argument("--picture", metavar="FILE", help="draw a sweep's latency over load there, as PNG")
    files.add_argument("--compare", metavar="FILE", help="an earlier --out of the same load: say the ratios")


if __name__ == "__main__":
    sys.exit(main())
