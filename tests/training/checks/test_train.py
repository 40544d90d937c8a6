"""`rankyard check data` and `rankyard train` as a person meets them: what was put into the data stands on the page."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

import rankyard

VERBS = {"search": ("find", "show me", "i want"), "order": ("where is", "track", "when comes")}
THINGS = {"search": ("red shoes", "a blue shirt", "green socks"), "order": ("my order", "the parcel", "my delivery")}
ROWS = [
    {"text": f"{VERBS[label][n % 3]} {THINGS[label][n // 3 % 3]} {n}", "label": label}
    for n in range(60)
    for label in ("search", "order")
]
TWICE = {"text": "where can the <b>blue</b> parrot be", "label": "order"}
WRONG = {"text": "find red shoes and a blue shirt and green socks", "label": "order"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("shop")
    splits = {"train": [*ROWS[:90], TWICE, WRONG], "valid": ROWS[90:105], "test": [*ROWS[105:], TWICE]}
    for name, rows in splits.items():
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def artifact(workspace: Path, run_id: str) -> str:
    run = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}").get_run(run_id)
    return (Path(run.info.artifact_uri.removeprefix("file://")) / "data" / "report.html").read_text()


def test_a_training_keeps_the_page_and_says_what_it_found(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "intent", "--config", "intent_linear", "--data", str(data), "--json"]
    settings = ["--set", "evaluate.n_resamples=100", "--workspace", str(tmp_path)]
    assert rankyard.main([*arguments, *settings]) == 0
    captured = capfd.readouterr()
    assert "warning: 1 of the 16 test texts (6.2 %) stands in train too" in captured.err
    assert "data/report.html of the run" in captured.err
    page = artifact(tmp_path, json.loads(captured.out)["run_id"])
    assert "where can the &lt;b&gt;blue&lt;/b&gt; parrot be" in page
    assert WRONG["text"] in page


def test_a_check_prints_few_lines_and_writes_the_page(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    arguments = ["check", "data", "--data", str(data), "--html", str(page), "--workspace", str(tmp_path)]
    assert rankyard.main(arguments) == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) <= 15
    assert lines[0] == f"intent data in {data}"
    assert rankyard.main([*arguments, "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert {"family", "splits", "warnings", "findings", "run_id"} <= set(answer)
    rules = {finding["rule"]: finding for finding in answer["findings"]}
    assert rules["duplicates_train_test"]["examples"][0]["text in test"] == TWICE["text"]
    assert WRONG["text"] in [example["text"] for example in rules["label_noise"]["examples"]]
    assert page.read_text() == artifact(tmp_path, answer["run_id"])


def test_a_page_that_cannot_be_written_is_one_sentence(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["check", "data", "--data", str(data), "--html", str(tmp_path / "no" / "page.html")]
    assert rankyard.main([*arguments, "--workspace", str(tmp_path)]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("rankyard: --html must be a file that can be written, got ")


BAD = {
    "an empty file": ("train.jsonl", "", "it is empty"),
    "one label": ("train.jsonl", '{"text": "a", "label": "x"}\n' * 4, "at least two labels"),
    "a column that is missing": ("train.csv", "text,intent\na,x\n", "must have one column label"),
    "a NaN label": ("train.csv", "text,label\na,nan\nb,x\n", "label must not be NaN"),
    "a null label": ("train.jsonl", '{"text": "a", "label": null}\n', "label must be text, got None"),
    "no relevant document": ("train.txt", "0 qid:1 1:1 2:3\n0 qid:1 1:2 2:2\n", "differ in relevance"),
    "one document a list": ("train.txt", "1 qid:1 1:1 2:3\n0 qid:2 1:2 2:2\n", "at least two documents"),
    "no Parquet": ("train.parquet", "PAR0", "must be a Parquet file"),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_what_training_would_refuse_is_refused_in_one_sentence(
    case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name, content, said = BAD[case]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).write_text(content)
    (tmp_path / "data" / name.replace("train", "valid")).write_text(content)
    workspace = tmp_path / "workspace"
    assert rankyard.main(["check", "data", "--data", str(tmp_path / "data"), "--workspace", str(workspace)]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1
    assert said in captured.err
    assert not workspace.exists()
