import json
from pathlib import Path

import numpy as np
import pytest

from models.batch import Arrays
from models.errors import BundleError, ParityError
from models.model import open_model
from models.ranking import RankRequest
from models.session import OnnxSession
from registry import golden
from registry.bundle import Bundle
from tests.bundles import tiny_bundle


@pytest.fixture(scope="module", params=["intent", "ranking"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("bundles"), request.param, int8=True)


@pytest.mark.parametrize("variant", ["float32", "int8"])
def test_a_variant_repeats_its_own_golden_rows(bundle: Bundle, variant: str) -> None:
    golden.check(bundle, variant, OnnxSession(bundle.model_file(variant)).run)


def test_every_row_is_run_alone(bundle: Bundle) -> None:
    session, sizes = OnnxSession(bundle.model_file("float32")), []

    def run(arrays: Arrays) -> Arrays:
        sizes.append({array.shape[0] for array in arrays.values()})
        return session.run(arrays)

    golden.check(bundle, "float32", run)
    rows = golden.read(bundle)
    is_text = bundle.manifest.family == "intent"
    assert sizes == [{1} if is_text else {row.encoded.length} for row in rows]


def test_a_difference_beyond_the_tolerance_names_row_output_and_size(bundle: Bundle) -> None:
    session, n_calls = OnnxSession(bundle.model_file("float32")), 0

    def run(arrays: Arrays) -> Arrays:
        nonlocal n_calls
        outputs = session.run(arrays)
        if n_calls == 1:
            outputs = {name: output + np.float32(0.5) for name, output in outputs.items()}
        n_calls += 1
        return outputs

    (output,) = bundle.manifest.signature.outputs
    with pytest.raises(ParityError, match=rf"golden row 1 .*{output.name}.*0\.5"):
        golden.check(bundle, "float32", run)


def test_nan_where_a_number_belongs_and_a_missing_output_are_differences(bundle: Bundle) -> None:
    session = OnnxSession(bundle.model_file("float32"))
    with pytest.raises(ParityError, match="nan"):
        golden.check(bundle, "float32", lambda arrays: {k: v * np.nan for k, v in session.run(arrays).items()})
    with pytest.raises(ParityError, match="must have the output"):
        golden.check(bundle, "float32", lambda arrays: {"other": next(iter(session.run(arrays).values()))})


def test_requests_come_back_as_they_were_and_encode_to_the_stored_inputs(bundle: Bundle) -> None:
    golden.check_encoding(bundle, open_model(bundle.path, bundle.manifest).encode)


def test_an_encoding_that_changed_since_training_is_found(bundle: Bundle) -> None:
    model = open_model(bundle.path, bundle.manifest)
    last = golden.read(bundle)[-1].request
    with pytest.raises(ParityError, match="input"):
        golden.check_encoding(bundle, lambda _: model.encode(last))


def test_missing_values_are_null_in_the_file_and_nan_again_when_read(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path, "ranking")
    stored = json.loads((bundle.path / golden.FILE).read_text(), parse_constant=lambda name: pytest.fail(name))
    assert stored["rows"][0]["request"]["candidates"]["features"]["price"] == [10.0, None, 30.0, 5.0]
    row = golden.read(bundle)[0]
    assert isinstance(row.request, RankRequest)
    np.testing.assert_array_equal(row.request.features["price"], np.array([10, np.nan, 30, 5], dtype=np.float32))
    assert row.encoded.arrays["features"].dtype == np.float32


def test_infinities_survive_the_file(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path, "ranking")
    signature = bundle.manifest.signature
    model = open_model(bundle.path, bundle.manifest)
    request = RankRequest(("a", "b", "c"), features={"price": np.array([np.inf, -np.inf, np.nan], dtype=np.float32)})
    golden.write(
        tmp_path, signature, [(request, model.encode(request))], {"float32": OnnxSession(bundle.model_file()).run}
    )
    row = golden.read(Bundle(tmp_path, bundle.manifest, bundle.digest))[0]
    np.testing.assert_array_equal(row.encoded.arrays["features"][:, 0], [np.inf, -np.inf, np.nan])
    np.testing.assert_array_equal(row.outputs["float32"]["score"], [-np.inf, np.inf, 0])


@pytest.mark.parametrize("text", ["", "{}", '{"rows": []}', '{"rows": [{"request": {}}]}', '{"rows": 3}'])
def test_golden_rows_that_prove_nothing_are_refused(tmp_path: Path, text: str) -> None:
    bundle = tiny_bundle(tmp_path)
    (bundle.path / golden.FILE).write_text(text)
    with pytest.raises(BundleError, match=r"golden\.json"):
        golden.check(bundle, "float32", OnnxSession(bundle.model_file()).run)


def test_a_bundle_without_golden_rows_or_without_the_variant_cannot_be_proved(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    run = OnnxSession(bundle.model_file()).run
    with pytest.raises(BundleError, match="variant int8"):
        golden.check(bundle, "int8", run)
    (bundle.path / golden.FILE).unlink()
    with pytest.raises(BundleError, match=r"must hold golden\.json"):
        golden.check(bundle, "float32", run)


def test_only_half_precision_has_a_tolerance_of_its_own(bundle: Bundle) -> None:
    manifest = bundle.manifest.model_copy(update={"fp16_tolerance": 0.05})
    assert [manifest.tolerance_of(variant) for variant in ("float32", "int8", "fp16")] == [1e-4, 1e-4, 0.05]
    assert bundle.manifest.tolerance_of("fp16") == 1e-4
