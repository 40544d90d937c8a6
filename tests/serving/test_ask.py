"""`rankyard predict --url`: a running gateway asked from the command line."""

import json

import pytest

import rankyard


def test_every_line_is_answered_as_the_gateway_does(url, tmp_path, capsys):
    rank = {"candidates": {"ids": ["a", "b"], "features": {"popularity": [1, 2]}}, "top_k": 1}
    (tmp_path / "lines").write_text(f"red nike shoes\n{json.dumps(rank)}\n")
    arguments = ["predict", "where is my order", "--url", url, "--file", str(tmp_path / "lines")]
    assert rankyard.main(arguments) == 0
    first, second, third = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["intent"]["label"], first["models"]) == ("order_status", {"intent": "shop-query/3"})
    assert second["intent"]["label"] == "product_search"
    assert third["ranking"] == [{"id": "b", "score": 2.0, "rank": 1}]


@pytest.mark.parametrize(
    ("line", "code"), [('{"candidates": 5}', "invalid_input"), ("{", "malformed_json"), ("x" * 2_000, "too_large")]
)
def test_a_bad_line_fails_alone(url, capsys, line, code):
    assert rankyard.main(["predict", "--url", url, line, "red nike shoes"]) == 2
    captured = capsys.readouterr()
    first, second = (json.loads(line) for line in captured.out.splitlines())
    assert first["error"]["code"] == code
    assert second["intent"]["label"] == "product_search"
    assert "1 of 2 are not" in captured.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["red shoes", "--url", "http://127.0.0.1:9"], "rankyard serve"),
        (["red shoes", "--url", "127.0.0.1:9"], "must be like"),
        (["--url", "http://127.0.0.1:9"], "at least one TEXT"),
        ([], "needs a REF"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(capsys, arguments, said):
    assert rankyard.main(["predict", *arguments]) in (1, 2)
    assert said in capsys.readouterr().err
