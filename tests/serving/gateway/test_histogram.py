import numpy as np
import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.exposition import generate_latest

from serving.gateway.histogram import Histogram

BUCKETS = (0.0, 0.001, 0.5, 1, 20)


def exposition(kind, amounts):
    registry = CollectorRegistry()
    histogram = kind("rankyard_test", "A test.", ["model", "version"], buckets=BUCKETS, registry=registry)
    for place, amount in enumerate(amounts):
        histogram.labels("shop", str(place % 3)).observe(amount)
    return generate_latest(registry)


def test_it_is_exposed_as_the_client_librarys_own_is():
    disable_created_metrics()
    random = np.random.default_rng(0)
    amounts = [*BUCKETS, *random.uniform(0, 2, 200).tolist(), *random.uniform(0, 100, 50).tolist(), 3]
    assert exposition(Histogram, amounts) == exposition(prometheus_client.Histogram, amounts)


def test_a_series_is_dropped_once():
    histogram = Histogram("rankyard_test", "A test.", ["model"], buckets=BUCKETS, registry=CollectorRegistry())
    histogram.labels("shop").observe(1)
    histogram.remove("shop")
    assert [family.samples for family in histogram.collect()] == [[]]
    with pytest.raises(KeyError):
        histogram.remove("shop")
