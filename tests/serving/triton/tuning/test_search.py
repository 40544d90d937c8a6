"""The search, on servers that are formulas: what it finds, what it does not try, when it says that nothing helps."""

from collections.abc import Callable

import pytest

from models.errors import RankyardError, RefusedError, UnavailableError
from serving.triton.settings import Scheduling
from serving.triton.tuning.search import DEFAULT, Found, Search, Space
from serving.triton.tuning.settings import space, sweep_settings

LIMIT_MS = 20
SPACE = Space(
    loads=(1, 2, 4, 8, 16),
    arrangements=((1, 1), (1, 2), (2, 1), (4, 1)),
    delays_us=(0, 1_000),
    batch_sizes=((4, 8),),
    max_delay_us=10_000,
)


class Formula:
    """A closed loop on a server of so many answers a second: n callers wait n / capacity, at least a millisecond."""

    def __init__(self, capacity_per_s: Callable[[Scheduling], float]) -> None:
        self.capacity_per_s = capacity_per_s
        self.asked: list[tuple[Scheduling, float]] = []

    def __call__(self, scheduling: Scheduling, load: float) -> dict[str, float]:
        self.asked.append((scheduling, load))
        capacity = self.capacity_per_s(scheduling)
        wait_ms = max(1.0, 1e3 * load / capacity)
        throughput = min(capacity, 1e3 * load)
        within = 1.0 if wait_ms <= LIMIT_MS else 0.9
        return {"throughput_per_s": throughput, "p50_ms": wait_ms / 2, "p99_ms": wait_ms, "within_limit": within}


def search(server: Formula, n_trials: int = 50, n_rounds: int = 5, **changes: object) -> Found:
    tried = Space(**{name: changes.get(name, getattr(SPACE, name)) for name in Space.__slots__})
    return Search(server, tried, n_trials, n_rounds, seed=1).run(changes.get("earlier"))  # type: ignore[arg-type]


def test_the_best_combination_is_found_and_its_gain_is_that_of_the_formula():
    """Two threads make 1.5 times as much of an instance, batches of 4 and 8 another 1.2 times: 1.8 in all."""

    def capacity(scheduling: Scheduling) -> float:
        threads = 1.5 if (scheduling.n_instances, scheduling.n_threads) == (1, 2) else 1.0
        batches = 1.2 if scheduling.preferred_batch_sizes == (4, 8) else 1.0
        return 1_000 * threads * batches

    found = search(Formula(capacity))
    best = found.chosen.scheduling
    assert (best.n_instances, best.n_threads, best.preferred_batch_sizes) == (1, 2, (4, 8))
    assert found.beats_default
    assert found.gain == pytest.approx(1.8)
    assert found.chosen.throughput_per_s == pytest.approx(1_800)


def test_delays_are_refined_around_the_best():
    """Best at 2,000 us, which is not among the coarse delays: twice the best of those."""
    found = search(Formula(lambda one: 1_000 - abs(one.max_queue_delay_us - 2_000) / 10))
    assert found.chosen.scheduling.max_queue_delay_us == 2_000


def test_no_load_is_tried_above_one_that_broke_the_limit():
    """Six milliseconds a caller: two hold the 20 ms, four do not."""
    asked: list[float] = []

    def measure(_: Scheduling, load: float) -> dict[str, float]:
        asked.append(load)
        return {
            "throughput_per_s": 100 * load,
            "p50_ms": load,
            "p99_ms": 6 * load,
            "within_limit": 1.0 if 6 * load <= LIMIT_MS else 0.9,
        }

    found = Search(measure, SPACE, 50, 5).run()
    assert set(asked) == {1, 2, 4}
    assert (found.chosen.load, found.chosen.throughput_per_s) == (2, 200)


def test_no_load_is_tried_once_two_in_a_row_brought_nothing():
    server = Formula(lambda _: 1_000)
    search(server)
    assert 8 not in {load for _, load in server.asked}


def test_at_most_so_many_schedulings_are_tried_and_the_default_is_always_one():
    server = Formula(lambda one: 100 * one.n_instances)
    search(server, n_trials=3)
    tried = dict.fromkeys(scheduling for scheduling, _ in server.asked)
    assert len(tried) == 3
    assert next(iter(tried)) == DEFAULT


def test_where_all_are_equal_the_default_stays():
    found = search(Formula(lambda _: 1_000))
    assert not found.beats_default
    assert found.chosen.scheduling == DEFAULT


@pytest.mark.parametrize("bad_call", [None, 4])
def test_a_gain_that_one_round_does_not_show_is_none(bad_call):
    """Ten per cent more, but once, in the third of five rounds, half: the median alone would take it."""
    calls = {"n": 0}

    def capacity(scheduling: Scheduling) -> float:
        if scheduling == DEFAULT:
            return 1_000
        calls["n"] += 1
        return 500 if calls["n"] == bad_call else 1_100

    found = search(Formula(capacity), loads=(2,), arrangements=((4, 1),), delays_us=(), batch_sizes=(), n_trials=2)
    assert found.best.throughput_per_s == 1_100
    assert found.beats_default == (bad_call is None)
    assert found.chosen.throughput_per_s == (1_100 if bad_call is None else 1_000)


def test_a_machine_that_grows_slower_is_nobodys_gain():
    calls = {"n": 0}

    def capacity(_: Scheduling) -> float:
        calls["n"] += 1
        return 1_000 * 0.99 ** calls["n"]

    assert not search(Formula(capacity)).beats_default


def test_what_an_earlier_search_found_is_measured_again():
    earlier = Scheduling(max_queue_delay_us=77, n_instances=7)
    found = search(Formula(lambda one: 2_000 if one.n_instances == 7 else 1_000), earlier=earlier)
    assert found.chosen.scheduling.n_instances == 7


def test_where_only_the_default_breaks_the_limit_another_is_chosen():
    found = search(Formula(lambda one: 40 if one == DEFAULT else 400))
    assert found.default is None
    assert found.gain is None
    assert found.beats_default
    assert found.chosen.scheduling != DEFAULT


def test_where_every_scheduling_breaks_the_limit_the_least_p99_is_said():
    """One caller at 40/s waits 25 ms."""
    with pytest.raises(RefusedError, match=r"least p99 was 25 ms.*raise --p99-ms"):
        search(Formula(lambda _: 40))


def test_a_scheduling_that_cannot_be_loaded_is_left_out_and_said():
    def capacity(scheduling: Scheduling) -> float:
        if scheduling.n_instances == 4:
            raise RankyardError("Triton must accept it, it refused: out of memory")
        return 1_000

    found = search(Formula(capacity))
    assert {one.n_instances for one in found.failures} == {4}
    assert set(found.failures.values()) == {"Triton must accept it, it refused: out of memory"}
    assert {point.scheduling.n_instances for point in found.points}.isdisjoint({4})


def test_a_server_that_is_gone_ends_the_search():
    def capacity(_: Scheduling) -> float:
        raise UnavailableError("a Triton server must answer")

    with pytest.raises(UnavailableError):
        search(Formula(capacity))


def test_two_cores_are_tried_by_half_once_and_twice():
    tried = space(sweep_settings({"p99_ms": 20}), n_cores=2, needs_gpu=False, n_rows=1, max_rows=64)
    assert set(tried.arrangements) == {(1, 1), (1, 2), (2, 1), (2, 2), (4, 1)}
    on_gpu = space(sweep_settings({"p99_ms": 20}), n_cores=2, needs_gpu=True, n_rows=1, max_rows=64)
    assert {threads for _, threads in on_gpu.arrangements} == {1}


def test_a_delay_leaves_half_of_the_limit():
    tried = space(sweep_settings({"p99_ms": 2}), n_cores=2, needs_gpu=False, n_rows=1, max_rows=64)
    assert tried.max_delay_us == 1_000
    assert max(tried.delays_us) == 1_000


def test_preferred_batches_are_whole_requests_that_fit():
    tried = space(sweep_settings({"p99_ms": 20}), n_cores=2, needs_gpu=False, n_rows=100, max_rows=1_000)
    assert tried.batch_sizes == [(400, 800), (800,)]


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"p99_ms": 5, "concurrency": [1], "rates": [5]}, "one of --concurrency and --rates"),
        ({"p99_ms": 5, "concurrency": [4, 1]}, "must rise, got 4,1"),
        ({"p99_ms": 0}, "p99_ms"),
    ],
)
def test_what_cannot_be_measured_is_refused(given, rule):
    with pytest.raises(RankyardError, match=rule):
        sweep_settings(given)
