import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

from models.answers import Understanding, to_json
from models.batch import collate, split
from models.errors import InputError
from models.intent import IntentModel
from models.model import open_model
from models.ranking import RankingModel, RankRequest
from models.session import OnnxSession
from registry.bundle import Bundle
from registry.flavor import RankyardModel, input_example, save_model, signature
from registry.tracking import Tracking
from tests.bundles import tiny_bundle
from tests.mlflow_server import in_another_process
from tests.registry.conftest import register
from tests.serving.gateway.bundles import cross_bundle, list_bundle

QUERIES = ["red nike shoes", "where is my parcel", "", "tell me a joke"]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    directory = tmp_path_factory.mktemp("bundles")
    return {family: tiny_bundle(directory, family, int8=family == "intent") for family in ("intent", "ranking")}


@pytest.fixture
def ranker(bundles: dict[str, Bundle]) -> RankyardModel:
    return RankyardModel(bundles["ranking"], "shop-ltr/1")


def alone(bundle: Bundle, request: Any) -> Any:
    """Answer one request by the parts the gateway is made of, with the served variant."""
    model = open_model(bundle.path, bundle.manifest)
    encoded = model.encode(request)
    outputs = OnnxSession(bundle.model_file()).run(collate([encoded], bundle.manifest.signature))
    return model.decode(request, encoded, split(outputs, [encoded], bundle.manifest.signature)[0])


def test_texts_are_answered_as_the_gateway_answers_each(bundles: dict[str, Bundle]) -> None:
    bundle = bundles["intent"]
    assert isinstance(open_model(bundle.path, bundle.manifest), IntentModel)
    frame = RankyardModel(bundle, "shop-query/3").predict(pd.DataFrame({"query": QUERIES}, index=[7, 5, 3, 1]))
    assert list(frame.index) == [7, 5, 3, 1]
    for query, found in zip(QUERIES, frame.to_dict("records"), strict=True):
        reading = alone(bundle, query)
        expected = Understanding(query, reading.intent, (), {"intent": "shop-query/3"})
        assert found == json.loads(json.dumps(to_json(expected)))


def test_candidates_are_ranked_within_their_query_and_stay_in_their_rows(
    bundles: dict[str, Bundle], ranker: RankyardModel
) -> None:
    # score = popularity - price / 100
    frame = pd.DataFrame(
        {
            "query_id": [3, 1, 3, 1, 3],
            "id": ["a", "b", "c", "d", "e"],
            "price": [10, 10, 10, 10, 10],
            "popularity": [1.0, 2.0, 5.0, np.nan, 1.0],
        }
    )
    found = ranker.predict(frame)
    assert list(found.columns) == ["query_id", "id", "score", "rank"]
    assert list(found["id"]) == ["a", "b", "c", "d", "e"]
    assert list(found["rank"]) == [2, 1, 1, 2, 3]  # equal scores keep the order they came in
    assert found["score"].to_numpy() == pytest.approx([0.9, 1.9, 4.9, -0.1, 0.9], abs=1e-6)
    assert isinstance(open_model(bundles["ranking"].path, bundles["ranking"].manifest), RankingModel)
    features = {name: frame[name].to_numpy(np.float32)[[0, 2, 4]] for name in ("price", "popularity")}
    ranked = alone(bundles["ranking"], RankRequest(("a", "c", "e"), features=features))
    assert {one.id: one.score for one in ranked} == dict(zip("ace", found["score"].to_numpy()[[0, 2, 4]], strict=True))


def test_without_query_id_all_rows_are_one_list_and_an_absent_feature_is_missing(ranker: RankyardModel) -> None:
    found = ranker.predict(pd.DataFrame({"popularity": [1.0, 3.0, 2.0]}, index=["x", "y", "z"]))
    assert list(found["rank"]) == [3, 1, 2]
    assert list(found["id"]) == ["x", "y", "z"]
    assert found["query_id"].isna().all()
    assert len(ranker.predict(pd.DataFrame({"popularity": []}))) == 0


def test_what_the_gateway_would_refuse_is_refused(bundles: dict[str, Bundle], ranker: RankyardModel) -> None:
    with pytest.raises(InputError, match="clicks"):
        ranker.predict(pd.DataFrame({"price": [1.0], "clicks": [2.0]}))
    with pytest.raises(InputError, match="price must be numbers"):
        ranker.predict(pd.DataFrame({"price": ["cheap"]}))
    with pytest.raises(InputError, match="one query"):
        ranker.predict(pd.DataFrame({"query": ["shoes", "shirts"], "price": [1.0, 2.0]}))
    reader = RankyardModel(bundles["intent"], "shop-query/3")
    with pytest.raises(InputError, match="column query"):
        reader.predict(pd.DataFrame({"text": ["shoes"]}))
    with pytest.raises(InputError, match="in row 1"):
        reader.predict(pd.DataFrame({"query": ["shoes", None]}))
    with pytest.raises(InputError, match="params"):
        reader.predict(pd.DataFrame({"query": ["shoes"]}), {"temperature": 2})


@pytest.mark.parametrize("family", ["intent", "ranking"])
def test_a_saved_model_says_what_it_takes_and_holds_no_code(
    bundles: dict[str, Bundle], tmp_path: Path, family: str
) -> None:
    save_model(bundles[family], tmp_path / "model")
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    assert loaded.metadata.signature == signature(bundles[family])
    assert loaded.metadata.flavors["rankyard"]["digest"] == bundles[family].digest
    pd.testing.assert_frame_equal(loaded.input_example, input_example(bundles[family]))
    assert len(loaded.predict(loaded.input_example)) == len(loaded.input_example)
    assert not [path for path in (tmp_path / "model").rglob("*") if path.suffix in {".py", ".pkl", ".pickle"}]


def test_columns_are_named_with_their_types(bundles: dict[str, Bundle]) -> None:
    assert signature(bundles["intent"]).inputs.input_names() == ["query"]
    assert signature(bundles["intent"]).outputs.input_names() == ["query", "intent", "entities", "models"]
    ranking = signature(bundles["ranking"]).inputs
    assert ranking.input_names() == ["query_id", "id", "query", "text", "price", "popularity"]
    assert ranking.required_input_names() == []


def test_a_registered_model_is_loaded_by_plain_mlflow_and_signs_with_its_version(tracking: Tracking) -> None:
    register(tracking, "plain")
    tracking.move_alias("plain", "champion", "1")
    register(tracking, "plain-ltr", "ranking")
    code = (
        "import json, mlflow, pandas\n"
        "reader = mlflow.pyfunc.load_model('models:/plain@champion')\n"
        "answer = reader.predict(pandas.DataFrame({'query': ['red shoes']}))\n"
        "frame = pandas.DataFrame({'query_id': [1, 1], 'id': [4, 5], 'price': [9, 8], 'popularity': [3, 7]})\n"
        "ranks = mlflow.pyfunc.load_model('models:/plain-ltr/1').predict(frame)\n"
        "print(json.dumps([answer.to_dict('records'), ranks['rank'].tolist()]))"
    )
    (answer,), ranks = json.loads(in_another_process(code, tracking.uri))
    assert answer["models"] == {"intent": "plain/1"}
    assert answer["intent"]["label"] == "product_search"
    assert ranks == [2, 1]


def test_a_cross_encoder_reads_texts_and_takes_no_features(tmp_path: Path) -> None:
    model = RankyardModel(cross_bundle(tmp_path), "shop-cross/1")
    required = {column.name: column.required for column in signature(model.bundle).inputs}
    assert required == {"query_id": False, "id": False, "query": True, "text": True}
    frame = model.predict(pd.DataFrame({"query": ["new"] * 3, "text": ["red", "balance shoes", ""]}))
    # "new" is worth 2, "red" 1, "balance" 4, "shoes" 8.
    assert frame["score"].tolist() == [3.0, 14.0, 2.0]
    assert frame["rank"].tolist() == [2, 1, 3]
    with pytest.raises(InputError, match="got \\['price'\\]"):
        model.predict(pd.DataFrame({"query": ["new"], "text": ["red"], "price": [1.0]}))


def test_a_ranker_of_whole_lists_scores_each_list_by_itself(tmp_path: Path) -> None:
    model = RankyardModel(list_bundle(tmp_path), "shop-list/1")
    frame = model.predict(pd.DataFrame({"query_id": ["a", "b", "a", "a", "b"], "price": [1.0, 5.0, 3.0, 8.0, 7.0]}))
    assert frame["score"].tolist() == [-3.0, -1.0, -1.0, 4.0, 1.0]
