"""config.pbtxt, read back by the parser of Triton's own schema."""

from dataclasses import replace

import pytest
import tritonclient.grpc as triton
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as schema

from models.config import validate
from models.errors import ConfigError, InputError, RankyardError
from registry import golden
from serving.triton.config import config_pbtxt
from serving.triton.repository import CONFIG, write
from serving.triton.settings import TritonSettings
from tests.bundles import tiny_bundle
from tests.serving.gateway.bundles import joint_bundle
from tests.triton_server import needs_triton


def parsed(bundle, **settings) -> schema.ModelConfig:
    return text_format.Parse(config_pbtxt("shop-query", "7", bundle, TritonSettings(**settings)), schema.ModelConfig())


def test_a_text_model_is_declared_without_its_batch_axis(tmp_path):
    bundle = tiny_bundle(tmp_path, "intent")
    config = parsed(bundle)
    assert (config.name, config.backend, config.max_batch_size) == ("shop-query", "python", 64)
    assert [(one.name, one.data_type, list(one.dims)) for one in config.input] == [
        ("ngram_ids", schema.TYPE_INT64, [-1]),
        ("ngram_counts", schema.TYPE_FP32, [-1]),
    ]
    assert [(one.name, one.data_type, list(one.dims)) for one in config.output] == [
        ("intent_logits", schema.TYPE_FP32, [3])
    ]
    assert list(config.version_policy.specific.versions) == [7]
    assert config.dynamic_batching.max_queue_delay_microseconds == 200
    assert [(group.kind, group.count) for group in config.instance_group] == [(schema.ModelInstanceGroup.KIND_AUTO, 2)]
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "intra_op_thread_count": "1",
        "inter_op_thread_count": "1",
        "rankyard.digest.7": bundle.digest,
    }
    (warm,) = config.model_warmup
    assert warm.batch_size == 1
    longest = max((row.encoded for row in golden.read(bundle)), key=lambda encoded: encoded.length)
    for name, kind in (("ngram_ids", schema.TYPE_INT64), ("ngram_counts", schema.TYPE_FP32)):
        one = warm.inputs[name]
        assert (one.data_type, list(one.dims), one.input_data_file) == (kind, [longest.length], f"7/{name}")


def test_a_score_is_a_row_of_one_number_that_the_model_gives_without_an_axis(tmp_path):
    config = parsed(tiny_bundle(tmp_path, "ranking"))
    assert config.max_batch_size == 8192
    assert [list(one.dims) for one in config.input] == [[2]]
    (score,) = config.output
    assert (list(score.dims), score.HasField("reshape"), list(score.reshape.shape)) == ([1], True, [])
    assert config.model_warmup[0].batch_size == 32


def test_a_joint_model_gives_tags_of_every_token(tmp_path):
    config = parsed(joint_bundle(tmp_path))
    assert [(one.name, list(one.dims)) for one in config.output] == [("tag_logits", [-1, 4]), ("intent_logits", [2])]


def test_the_version_before_goes_on_being_served_where_it_has_the_same_shape(tmp_path):
    def served(text):
        config = text_format.Parse(text, schema.ModelConfig())
        digests = {key: one.string_value for key, one in config.parameters.items() if "digest" in key}
        return list(config.version_policy.specific.versions), digests

    one, two, three = (tiny_bundle(tmp_path, "intent", name=name) for name in ("one", "two", "three"))
    first = config_pbtxt("shop-query", "1", one, TritonSettings())
    second = config_pbtxt("shop-query", "2", two, TritonSettings(), first)
    assert served(second) == ([1, 2], {"rankyard.digest.1": one.digest, "rankyard.digest.2": two.digest})
    assert config_pbtxt("shop-query", "2", two, TritonSettings(), second) == second
    third = config_pbtxt("shop-query", "3", three, TritonSettings(max_queue_delay_us=9), second)
    assert served(third)[0] == [2, 3]
    back = config_pbtxt("shop-query", "2", two, TritonSettings(), third)
    assert served(back) == ([3, 2], {"rankyard.digest.3": three.digest, "rankyard.digest.2": two.digest})
    wider = tiny_bundle(tmp_path, "intent", labels=("a", "b", "c", "oos"))
    assert served(config_pbtxt("shop-query", "4", wider, TritonSettings(), third))[0] == [4]
    assert served(config_pbtxt("shop-query", "4", three, TritonSettings(backend="onnxruntime"), third))[0] == [4]


def test_no_batch_that_warms_up_is_larger_than_the_largest(tmp_path):
    config = parsed(tiny_bundle(tmp_path, "ranking"), max_documents=5)
    assert (config.max_batch_size, config.model_warmup[0].batch_size) == (5, 5)


def test_settings_are_written(tmp_path):
    config = parsed(tiny_bundle(tmp_path), max_batch_size=8, max_queue_delay_us=5, n_instances=3)
    assert config.max_batch_size == 8
    assert config.dynamic_batching.max_queue_delay_microseconds == 5
    assert config.instance_group[0].count == 3


def test_backends_differ_in_one_line(tmp_path):
    bundle = tiny_bundle(tmp_path)
    ours, theirs = (
        config_pbtxt("shop-query", "7", bundle, TritonSettings(backend=backend)).splitlines()
        for backend in ("python", "onnxruntime")
    )
    assert [pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1]] == [
        ('backend: "python"', 'backend: "onnxruntime"')
    ]


def test_int8_stays_on_the_cpu(tmp_path):
    config = parsed(tiny_bundle(tmp_path, int8=True))
    assert config.instance_group[0].kind == schema.ModelInstanceGroup.KIND_CPU


def test_a_variant_that_is_asked_for_is_named_and_half_precision_goes_to_a_gpu(tmp_path):
    bundle = tiny_bundle(tmp_path, "intent", int8=True)
    kinds = schema.ModelInstanceGroup
    for variant, kind in (("fp16", kinds.KIND_GPU), ("float32", kinds.KIND_AUTO), ("int8", kinds.KIND_CPU)):
        config = parsed(bundle, variant=variant, backend="onnxruntime")
        assert config.instance_group[0].kind == kind
        assert config.parameters["rankyard.variant"].string_value == variant
    assert parsed(bundle).instance_group[0].kind == kinds.KIND_CPU
    assert "rankyard.variant" not in parsed(bundle).parameters


def half(bundle):
    """The bundle, as if it had been trained with quantize.fp16."""
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"fp16_tolerance": 0.01}))


GPU = {"backend": "onnxruntime", "variant": "float32"}


def test_scheduling_is_written(tmp_path):
    config = parsed(tiny_bundle(tmp_path), preferred_batch_sizes=(4, 16), n_threads=2)
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 16]
    assert config.parameters["intra_op_thread_count"].string_value == "2"


def test_instances_are_placed_on_the_gpus_that_are_named(tmp_path):
    (group,) = parsed(tiny_bundle(tmp_path), **GPU, gpus=(0, 2), n_instances=3).instance_group
    assert (group.kind, list(group.gpus), group.count) == (schema.ModelInstanceGroup.KIND_GPU, [0, 2], 3)
    assert not parsed(tiny_bundle(tmp_path), **GPU).HasField("optimization")


def test_tensorrt_compiles_one_network_for_every_shape(tmp_path):
    """Each input's smallest, usual and largest shape: at most 64 texts of at most 16 tokens."""
    config = parsed(half(joint_bundle(tmp_path)), **GPU, tensorrt="fp16")
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert config.instance_group[0].kind == schema.ModelInstanceGroup.KIND_GPU
    assert config.parameters["rankyard.precision"].string_value == "fp16"
    names = [one.name for one in config.input]
    assert dict(accelerator.parameters) == {
        "precision_mode": "FP16",
        "max_workspace_size_bytes": "1073741824",
        "trt_engine_cache_enable": "1",
        "trt_profile_min_shapes": ",".join(f"{name}:1x1" for name in names),
        "trt_profile_opt_shapes": ",".join(f"{name}:16x4" for name in names),
        "trt_profile_max_shapes": ",".join(f"{name}:64x16" for name in names),
    }
    plain = parsed(joint_bundle(tmp_path), **GPU, tensorrt="fp32").optimization.execution_accelerators
    assert plain.gpu_execution_accelerator[0].parameters["precision_mode"] == "FP32"


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"gpus": [0]}, "need the backend onnxruntime"),
        ({"variant": "fp16"}, "need the backend onnxruntime"),
        ({"backend": "onnxruntime", "variant": "int8", "gpus": [0]}, "int8 must stay on a CPU"),
        ({"backend": "onnxruntime", "variant": "fp16", "tensorrt": "fp16"}, "must be given the variant float32"),
        ({"backend": "onnxruntime", "gpus": []}, "gpus: "),
        ({**GPU, "gpus": [0], "n_threads": 2}, "n_threads does nothing on a GPU"),
        ({"preferred_batch_sizes": [8, 4]}, "must rise"),
        ({"max_queue_delay_us": -1}, "max_queue_delay_us must be at least 0, got -1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, rule):
    with pytest.raises(ConfigError, match=rule):
        validate(TritonSettings, settings)


def test_settings_that_do_not_fit_the_bundle_are_refused(tmp_path):
    linear, joint = tiny_bundle(tmp_path, int8=True), joint_bundle(tmp_path)
    for bundle, settings, rule in (
        (linear, {"preferred_batch_sizes": (65,)}, "at most 64 rows"),
        (linear, {"backend": "onnxruntime", "gpus": (0,)}, "int8, which tiny-intent chose for itself, must stay"),
        (half(linear), {**GPU, "tensorrt": "fp16"}, "tiny-intent reads numbers"),
        (joint, {**GPU, "tensorrt": "fp16"}, "quantize.fp16: true"),
    ):
        with pytest.raises(InputError, match=rule):
            parsed(bundle, **settings)


def test_a_version_that_ran_in_another_precision_does_not_stay(tmp_path):
    bundle = half(joint_bundle(tmp_path))
    plain, half_ = (TritonSettings(**GPU, gpus=(0,), tensorrt=precision) for precision in (None, "fp16"))
    first = config_pbtxt("m", "1", bundle, half_)
    assert "versions: [ 1, 2 ]" in config_pbtxt("m", "2", bundle, half_, first)
    assert "versions: [ 2 ]" in config_pbtxt("m", "2", bundle, plain, first)


@needs_triton
def test_a_server_reads_what_is_meant_for_a_gpu(tmp_path, triton_server):
    """This one has none: the same file on the processor is loaded and given back; on a GPU it is refused for that."""
    bundle, settings = half(joint_bundle(tmp_path)), TritonSettings(**GPU, gpus=(0,), tensorrt="fp16")
    directory = triton_server.repository / "c-tensorrt"
    write(triton_server.repository, "c-tensorrt", "1", bundle, settings)
    text = (directory / CONFIG).read_text().replace('backend: "onnxruntime"', 'backend: "python"')
    (directory / CONFIG).write_text(text)
    with pytest.raises(RankyardError, match="unsupported gpu id 0"):
        triton_server.http.load("c-tensorrt")
    (directory / CONFIG).write_text(text.replace("KIND_GPU", "KIND_CPU").replace(" gpus: [ 0 ]", ""))
    triton_server.http.load("c-tensorrt")
    with triton.InferenceServerClient(triton_server.running.grpc) as client:
        read = client.get_model_config("c-tensorrt").config
    meant = text_format.Parse(config_pbtxt("c-tensorrt", "1", bundle, settings), schema.ModelConfig())
    assert read.optimization.execution_accelerators == meant.optimization.execution_accelerators
    assert read.parameters == meant.parameters
