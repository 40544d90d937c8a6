"""`rankyard bench` as a person meets it, on a real gateway."""

import json

import pytest

import rankyard
from tests.serving.authority import terminating

QUICK = ["--seconds", "0.6", "--warmup-seconds", "0.1"]


@pytest.fixture
def bench(url, capfd):
    def call(*arguments):
        capfd.readouterr()
        status = rankyard.main(["bench", "--url", url, *QUICK, *map(str, arguments)])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--concurrency", 2, "--zipf", 1.0, "--distinct", 50],
        ["--scenario", "rank", "--form", "rows", "--list-sizes", "3,20", "--top-k", 2],
        ["--scenario", "rank", "--texts", "--deadline-ms", 25_000],
        ["--scenario", "rank", "--form", "arrow", "--list-sizes", "3,20", "--top-k", 2, "--texts"],
        ["--scenario", "rank", "--form", "binary", "--list-sizes", "3,20"],
        ["--scenario", "mixed", "--form", "binary", "--deadline-ms", 25_000],
        ["--scenario", "mixed", "--rate", 100, "--arrivals", "constant", "--connections", 100],
    ],
    ids=lambda part: " ".join(map(str, part)),
)
def test_every_scenario_is_answered_without_a_failure(bench, arguments):
    status, out, _ = bench("--json", *arguments)
    found = json.loads(out)
    assert status == 0
    assert set(found) >= {"scenario", "requests", "failed", "throughput_per_s", "p50_ms", "p95_ms", "p99_ms"}
    assert found["failed"] == 0
    assert found["requests"] > 0
    assert set(found["models"]) == {"shop-query/3", "shop-ltr/2"}
    assert 0 < found["p50_ms"] <= found["p95_ms"] <= found["p99_ms"]
    assert 0 < found["client_cpu_share"] < 1


def test_the_same_seed_sends_the_same_and_the_file_s_queries(bench, tmp_path):
    (tmp_path / "queries").write_text("red nike shoes\nwhere is my order\n")
    status, out, _ = bench("--json", "--queries", tmp_path / "queries", "--seed", 3)
    assert (status, json.loads(out)["load"]["seed"]) == (0, 3)


def test_a_sweep_finds_goodput_draws_it_and_compares_it_with_an_earlier_one(bench, tmp_path):
    rates = ["--rates", "50,100"]
    status, out, said = bench(*rates, "--out", tmp_path / "before.json", "--picture", tmp_path / "p.png")
    assert status == 0
    assert "goodput with a p99 of at most 50 ms" in out
    assert said.count("/s offered") == 2
    stored = json.loads((tmp_path / "before.json").read_text())
    assert [point["rate_per_s"] for point in stored["points"]] == [50, 100]
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    for point in stored["points"]:
        point["throughput_per_s"] *= 2
    (tmp_path / "before.json").write_text(json.dumps(stored))
    arguments = ["--compare", tmp_path / "before.json", "--picture", tmp_path / "both.png", "--json"]
    status, out, _ = bench(*rates, "--out", tmp_path / "after.json", *arguments)
    assert status == 0
    status, out, _ = bench(*rates, "--out", tmp_path / "last.json", "--compare", tmp_path / "before.json")
    comparison = out.partition("\n\n")[2].splitlines()
    assert "shop-query/3, shop-ltr/2" in comparison[0]
    assert "goodput/s with a p99 of at most 50 ms" in comparison[2]
    ratio = next(line for line in out.splitlines() if "100/s: answered/s" in line).split()[-1]
    then, now = (
        json.loads((tmp_path / name).read_text())["points"][1]["throughput_per_s"]
        for name in ("before.json", "last.json")
    )
    assert float(ratio) == pytest.approx(now / then, abs=0.006)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--concurrency", 2, "--rate", 5], "one of --concurrency, --rate and --rates"),
        (["--distinct", 5], "--distinct does nothing without --zipf"),
        (["--form", "rows"], "--form does nothing without --scenario rank or mixed"),
        (["--scenario", "rank", "--rank-share", 0.5], "--rank-share does nothing without --scenario mixed"),
        (["--scenario", "rank", "--form", "binary", "--top-k", 3], "--top-k does nothing with --form binary"),
        (["--arrivals", "constant"], "--arrivals does nothing without --rate"),
        (["--picture", "p.png", "--rate", 5], "--picture does nothing without --rates"),
        (["--rates", "5,5"], "--rates must rise, got 5,5"),
        (["--rate", "-1"], "rate must be above 0, got -1"),
        (["--rate", "inf"], "rate must be a finite number, got inf"),
        (["--scenario", "rank", "--list-sizes", "1.5"], "list_sizes[0]"),
        (["--seed", "-1"], "seed"),
        (["--queries", "/no/such"], "--queries must be a readable file"),
        (["--out", "/no/such/file"], "a directory that exists"),
        (["--compare", "/no/such"], "a result of `rankyard bench --out`"),
        (["--scenario", "rank", "--features", "weight"], "'weight'"),
        (["--scenario", "rank", "--list-sizes", 20_000], "at most 10000 candidates"),
    ],
    ids=lambda part: str(part)[:50],
)
def test_what_cannot_be_done_is_one_sentence_and_status_2(bench, arguments, said):
    status, out, err = bench(*arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_a_run_of_another_load_is_not_compared(bench, tmp_path):
    assert bench("--concurrency", 2, "--out", tmp_path / "before.json")[0] == 0
    status, _, err = bench("--concurrency", 3, "--compare", tmp_path / "before.json")
    assert status == 2
    assert "concurrency 2 there and 3 here" in err
    assert "understand" not in err


def test_a_gateway_behind_tls_is_loaded_with_its_authority_s_file_alone(url, authority, capfd, tmp_path):
    ca_file, tls = authority
    with terminating(url, tls) as address:
        asked = ["bench", "--url", address, "--scenario", "rank", *QUICK, "--concurrency", "2"]
        assert rankyard.main([*asked, "--ca-file", str(ca_file), "--out", str(tmp_path / "o.json")]) == 0
        assert rankyard.main(asked) == 2
    captured = capfd.readouterr()
    assert "name who signed it with ca_file" in captured.err
    assert "would see it: p50" in captured.out
    found = json.loads((tmp_path / "o.json").read_text())
    assert (found["failed"], found["requests"] > 0) == (0, True)


def test_no_gateway_is_one_sentence(capfd):
    assert rankyard.main(["bench", "--url", "http://127.0.0.1:9"]) == 1
    assert "rankyard serve" in capfd.readouterr().err
