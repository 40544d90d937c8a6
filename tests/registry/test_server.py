"""A real `mlflow server` with its artifact proxy does all that SQLite does."""

from pathlib import Path

import pytest

from models.errors import NotFoundError
from registry import deployment
from registry.promotion import promote, rollback
from registry.tracking import Tracking
from registry.workspace import Workspace
from tests.mlflow_server import in_another_process
from tests.registry.conftest import register


def test_a_server_registers_serves_another_machine_and_promotes(server: str, tmp_path: Path) -> None:
    here = Tracking(Workspace(tmp_path / "here"), server)
    with pytest.raises(NotFoundError, match="remote"):
        here.models("remote")
    first, version = register(here, "remote", quality={"share_right": 0.9})
    assert version == "1"
    assert not here.workspace.database.exists()
    assert not here.workspace.artifacts.exists()

    there = Tracking(Workspace(tmp_path / "there"), server)
    fetched = there.resolve("remote@candidate")
    assert fetched.digest == first.digest
    assert fetched.path == there.workspace.bundles / first.digest

    assert promote(there, "remote").decision == "promoted"
    register(here, "remote", quality={"share_right": 0.95})
    assert promote(there, "remote").decision == "promoted"
    register(here, "remote", quality={"share_right": 0.4})
    assert promote(there, "remote").decision == "refused"
    assert here.aliases("remote") == {"candidate": "3", "champion": "2", "previous": "1"}
    assert deployment.resolve(there.workspace.deployment, "remote@champion").version == "2"
    assert rollback(there, "remote").version == "1"
    (model,) = here.models("remote")
    assert model["aliases"] == {"candidate": "3", "champion": "1", "previous": "2"}
    assert [one["metrics"]["accuracy"] for one in model["versions"]] == pytest.approx([0.9, 0.95, 0.4])

    code = (
        "import mlflow, pandas\n"
        "model = mlflow.pyfunc.load_model('models:/remote@champion')\n"
        "(answer,) = model.predict(pandas.DataFrame({'query': ['where is my order']})).to_dict('records')\n"
        "print(answer['intent']['label'], answer['models']['intent'])"
    )
    assert in_another_process(code, server) == "order_status remote/1\n"
