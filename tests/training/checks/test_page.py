"""The page: whole without anything beside it, and harmless whatever the data hold."""

from html.parser import HTMLParser

from hypothesis import given, settings
from hypothesis import strategies as st

from training.checks.finding import Chart, Finding, count, examples, percent, some
from training.checks.html import page
from training.checks.report import DataReport
from training.checks.svg import svg

EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&"


class Page(HTMLParser):
    """Collects tags, attributes and text; a tag that is never closed, or closed twice, is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, list[str]] = {}
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value or "")
        if tag != "meta":
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def report(text: str, *, kind: str = "bars") -> DataReport:
    chart = Chart(text, (text, "b"), {"train": (1.0, 2.5), text: (0.0, 3.0)}, text, kind)  # type: ignore[arg-type]
    finding = Finding("label_noise", "warning", 1, text, examples([{"text": text, text: 3, "share": 0.25}]), chart)
    splits = {"train": {"file": text, "rows": 2, "words": {"min": 1, "median": 1, "max": 2}, "sha256": "0" * 64}}
    return DataReport("intent", splits, (text,), (finding, Finding("lengths", "note", 2, "half of them")))


def test_the_page_loads_and_runs_nothing() -> None:
    shown = Page(page(report(EVIL)))
    assert not {"script", "img", "link", "iframe", "object"} & set(shown.tags)
    assert not {name for name in shown.attributes if name.startswith("on") or name in {"src", "href"}}
    assert EVIL in shown.text
    assert "http" not in page(report("plain")).replace("http-equiv", "")


@given(st.text(max_size=40), st.sampled_from(["bars", "columns"]))
@settings(deadline=None, max_examples=60)
def test_any_text_is_shown_as_text(text: str, kind: str) -> None:
    shown = Page(page(report(text, kind=kind)))
    assert set(shown.tags) == set(Page(page(report("plain", kind=kind))).tags)


def test_the_page_tells_a_reader_what_is_what() -> None:
    text = page(report("plain"))
    shown = Page(text)
    assert '<html lang="en">' in text
    assert "width=device-width" in text
    assert {"h1", "h2", "h3", "table", "th", "figure", "figcaption", "svg", "details"} <= set(shown.tags)
    assert shown.attributes["role"] == ["img"]
    assert shown.attributes["aria-label"] == ["plain"]
    assert set(shown.attributes["scope"]) == {"col"}
    assert shown.text.index("What to look at") < shown.text.index("Good to know")


def test_long_texts_are_cut_and_examples_are_few() -> None:
    rows = examples([{"text": "x" * 100_000, "row": n} for n in range(1000)])
    assert len(rows) == 10
    assert len(str(rows[0]["text"])) == 201
    assert len(page(report("y" * 10))) < 20_000


def test_bars_are_as_long_as_their_values() -> None:
    drawn = svg(Chart("t", ("a", "b"), {"train": (1.0, 4.0)}, "rows"))
    widths = [float(part.split('"')[0]) for part in drawn.split(' width="')[2:]]
    assert widths == [95.0, 380.0]
    assert svg(Chart("t", ("a",), {"train": (0.0,)}, "rows", "columns")).count("<rect") == 1


def test_numbers_read_as_words_do() -> None:
    assert [count(n, noun) for n, noun in ((1, "row"), (2000, "row"), (3, "query"))] == [
        "1 row",
        "2,000 rows",
        "3 queries",
    ]
    assert [percent(*pair) for pair in ((0, 5), (1, 8), (1, 100_000), (5, 5))] == [
        "0.0 %", "12.5 %", "below 0.1 %", "100.0 %"
    ]  # fmt: skip
    assert some([str(n) for n in range(7)], 3) == "0, 1, 2 and 4 more"
