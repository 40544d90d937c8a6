"""config.pbtxt, read back by the parser of Triton's own schema."""

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as schema

from serving.triton.config import TritonSettings, config_pbtxt
from tests.bundles import tiny_bundle
from tests.serving.gateway.bundles import joint_bundle


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
    (warmup,) = config.model_warmup
    assert warmup.batch_size == 1
    assert {name: (one.data_type, list(one.dims), one.zero_data) for name, one in warmup.inputs.items()} == {
        "ngram_ids": (schema.TYPE_INT64, [16], True),
        "ngram_counts": (schema.TYPE_FP32, [16], True),
    }


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
        config = parsed(bundle, variant=variant)
        assert config.instance_group[0].kind == kind
        assert config.parameters["rankyard.variant"].string_value == variant
    assert parsed(bundle).instance_group[0].kind == kinds.KIND_CPU
    assert "rankyard.variant" not in parsed(bundle).parameters
