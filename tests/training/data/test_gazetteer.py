import pytest

from models.errors import DataError
from training.data.gazetteer import read_gazetteer


def test_rows_of_both_kinds_give_the_same_terms(tmp_path):
    (tmp_path / "terms.jsonl").write_text(
        '{"type": "brand", "term": "New  Balance"}\n\n{"type": "kind", "term": "shoes", "id": 3}\n'
    )
    (tmp_path / "terms.csv").write_text("id,type,term\n1,kind,shoes\n2,brand,New Balance\n3,kind,shoes\n")
    expected = {"brand": ("New Balance",), "kind": ("shoes",)}
    assert read_gazetteer(tmp_path / "terms.jsonl").gazetteer.terms == expected
    assert read_gazetteer(tmp_path / "terms.csv").gazetteer.terms == expected


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("a.jsonl", '{"type": "brand"}', "line 1: a row must have term, got the keys type"),
        ("a.jsonl", '{"type": "brand", "term": " "}', "line 1: term must not be blank"),
        ("a.csv", "type,name\nbrand,nike", "must have the columns type and term, it lacks term"),
        ("a.csv", "type,term\nbrand\n", "line 2: a row must have 2 fields"),
        ("a.csv", "type,term\n", "must have at least one row"),
        ("a.txt", "brand nike", r"a gazetteer must end in \.jsonl or \.csv"),
        ("a.csv", "type,term\n" + "".join(f"t{n},x\n" for n in range(32)), "at most 31 types of terms, it has 32"),
    ],
)
def test_files_that_are_no_gazetteer_are_refused(tmp_path, name, content, rule):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=rule):
        read_gazetteer(tmp_path / name)
