"""What a gateway tells Prometheus, read by the parser of Prometheus' own client."""

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


def samples(client: httpx.Client) -> list[Sample]:
    """Every sample of `/metrics`."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return [sample for family in families for sample in family.samples]


def value(client: httpx.Client, name: str, **labels: str) -> float | None:
    """The value of one series; None where there is none."""
    found = [sample.value for sample in samples(client) if (sample.name, sample.labels) == (name, labels)]
    return found[0] if found else None
