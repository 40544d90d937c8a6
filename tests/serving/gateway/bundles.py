"""Tiny bundles that read sub-word tokens: what they answer is looked up word by word, and can be said by hand."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from models.features import PairFeaturizer, write_corpus
from models.lexical import Corpus, read
from models.manifest import Contents, Manifest, PairFeatures, PairText, Signature, SubwordText, TensorSpec
from models.model import open_model
from models.ranking import RankRequest
from models.session import OnnxSession
from registry import bundle, golden
from registry.bundle import MODEL, Bundle
from tests.bundles import ranking_contents, ranking_graph, tiny_bundle
from tests.word_encoder import write_encoder

LABELS = ("product_search", "order_status")
TAGS = ("O", "B-colour", "B-brand", "I-brand")
WORDS = {"red": "B-colour", "new": "B-brand", "balance": "I-brand", "shoes": "O", "where": "O", "order": "O"}
WORTH = {"red": 1.0, "new": 2.0, "balance": 4.0, "shoes": 8.0}
_SURE = 8.0


def joint_bundle(directory: Path, max_windows: int = 1) -> Bundle:
    """Seal a model that tags WORDS as they say and reads `where` and `order` as order_status."""
    contents = Contents(
        family="tagging",
        labels=LABELS,
        tags=TAGS,
        text=SubwordText(max_tokens=16, max_windows=max_windows),
        signature=Signature(
            layout="rows",
            inputs=tuple(
                TensorSpec(name=name, dtype="int64", shape=(-1, -1)) for name in ("input_ids", "attention_mask")
            ),
            outputs=(
                TensorSpec(name="tag_logits", dtype="float32", shape=(-1, -1, len(TAGS))),
                TensorSpec(name="intent_logits", dtype="float32", shape=(-1, len(LABELS))),
            ),
        ),
    )
    facts = tiny_bundle(directory / "facts").manifest.model_dump()
    with bundle.draft(directory) as draft:
        vocabulary = _tokenizer(draft / "tokenizer.json")
        onnx.save(_graph(contents, vocabulary), draft / MODEL)
        model = open_model(draft, contents)
        texts = ["red new balance shoes", "where order", "", *(["red shoes " * 9] if max_windows > 1 else [])]
        rows = [(text, model.encode(text)) for text in texts]
        golden.write(draft, contents.signature, rows, {"float32": OnnxSession(draft / MODEL).run})
        return bundle.seal(
            draft, Manifest(**{**facts, **contents.model_dump(), "name": "joint", "files": {}}), directory
        )


def cross_bundle(directory: Path) -> Bundle:
    """Seal a cross-encoder of 12 tokens: a pair's score is what its words are WORTH together."""
    contents = Contents(
        family="ranking",
        pair_text=PairText(max_tokens=12),
        signature=Signature(
            layout="concat",
            inputs=tuple(
                TensorSpec(name=name, dtype="int64", shape=(-1, -1)) for name in ("input_ids", "attention_mask")
            ),
            outputs=(TensorSpec(name="score", dtype="float32", shape=(-1,)),),
        ),
    )
    facts = tiny_bundle(directory / "facts", "ranking").manifest.model_dump()
    with bundle.draft(directory) as draft:
        vocabulary = _tokenizer(draft / "tokenizer.json")
        onnx.save(_worth_graph(vocabulary), draft / MODEL)
        model = open_model(draft, contents)
        requests = [RankRequest(("a", "b"), "red shoes", ("new balance shoes", "")), RankRequest(("a",), "", ("red",))]
        rows = [(request, model.encode(request)) for request in requests]
        golden.write(draft, contents.signature, rows, {"float32": OnnxSession(draft / MODEL).run})
        return bundle.seal(
            draft, Manifest(**{**facts, **contents.model_dump(), "name": "cross", "files": {}}), directory
        )


def text_bundle(directory: Path, titles: Sequence[str]) -> Bundle:
    """Seal a ranker of text features whose score is the cosine of query and title less a tenth of the price."""
    features = (*PairFeaturizer.names, "price")
    weights = np.array([float(name == "cosine") - 0.1 * float(name == "price") for name in features])
    contents = ranking_contents({"features": features}).model_copy(update={"pair_features": PairFeatures(max_tokens=4)})
    facts = tiny_bundle(directory / "facts", "ranking").manifest.model_dump()
    with bundle.draft(directory) as draft:
        write_encoder(draft)
        write_corpus(draft / "features.json", Corpus.of(map(read, titles)))
        onnx.save(ranking_graph(contents, weights, int8=False), draft / MODEL)
        model = open_model(draft, contents)
        requests = [RankRequest(("a", "b"), "red shoes", ("blue shirt", "red shirt"))]
        rows = [(request, model.encode(request)) for request in requests]
        golden.write(draft, contents.signature, rows, {"float32": OnnxSession(draft / MODEL).run})
        return bundle.seal(
            draft, Manifest(**{**facts, **contents.model_dump(), "name": "texts", "files": {}}), directory
        )


def list_bundle(directory: Path) -> Bundle:
    """Seal a ranker that reads the whole list: a score is a document's price less the mean price of its list."""
    contents = Contents(
        family="ranking",
        features=("price",),
        signature=Signature(
            layout="rows",
            inputs=(
                TensorSpec(name="features", dtype="float32", shape=(-1, -1, 1)),
                TensorSpec(name="mask", dtype="float32", shape=(-1, -1)),
            ),
            outputs=(TensorSpec(name="score", dtype="float32", shape=(-1, -1)),),
        ),
    )
    facts = tiny_bundle(directory / "facts", "ranking").manifest.model_dump()
    with bundle.draft(directory) as draft:
        onnx.save(_mean_graph(), draft / MODEL)
        model = open_model(draft, contents)
        columns = {"price": np.array([1.0, 3.0, 8.0], dtype=np.float32)}
        requests = [RankRequest(("a", "b", "c"), features=columns), RankRequest(("a",), query_features={"price": 2.0})]
        rows = [(request, model.encode(request)) for request in requests]
        golden.write(draft, contents.signature, rows, {"float32": OnnxSession(draft / MODEL).run})
        return bundle.seal(
            draft, Manifest(**{**facts, **contents.model_dump(), "name": "list", "files": {}}), directory
        )


def _mean_graph() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Squeeze", ["features", "last"], ["price_BD"]),
        helper.make_node("Mul", ["price_BD", "mask"], ["real_BD"]),
        helper.make_node("ReduceSum", ["real_BD", "documents"], ["sum_B1"], keepdims=1),
        helper.make_node("ReduceSum", ["mask", "documents"], ["n_B1"], keepdims=1),
        helper.make_node("Div", ["sum_B1", "n_B1"], ["mean_B1"]),
        helper.make_node("Sub", ["price_BD", "mean_B1"], ["score"]),
    ]
    graph = helper.make_graph(
        nodes,
        "list",
        [
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["b", "d", 1]),
            helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["b", "d"]),
        ],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["b", "d"])],
        initializer=[
            numpy_helper.from_array(np.array([2], dtype=np.int64), "last"),
            numpy_helper.from_array(np.array([1], dtype=np.int64), "documents"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def _worth_graph(vocabulary: dict[str, int]) -> onnx.ModelProto:
    worth_V = np.zeros(len(vocabulary), dtype=np.float32)
    for word, value in WORTH.items():
        worth_V[vocabulary[word]] = value
    nodes = [
        helper.make_node("Gather", ["worth_V", "input_ids"], ["worth_NT"]),
        helper.make_node("Cast", ["attention_mask"], ["mask_NT"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["worth_NT", "mask_NT"], ["real_NT"]),
        helper.make_node("ReduceSum", ["real_NT", "last"], ["score"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "cross",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "t"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n"])],
        initializer=[
            numpy_helper.from_array(worth_V, "worth_V"),
            numpy_helper.from_array(np.array([1], dtype=np.int64), "last"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def _tokenizer(path: Path) -> dict[str, int]:
    vocabulary = {word: number for number, word in enumerate(("[UNK]", "[CLS]", "[SEP]", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.save(str(path))
    return vocabulary


def _graph(contents: Contents, vocabulary: dict[str, int]) -> onnx.ModelProto:
    tags = np.zeros((len(vocabulary), len(TAGS)), dtype=np.float32)
    intents = np.zeros((len(vocabulary), len(LABELS)), dtype=np.float32)
    for word, tag in WORDS.items():
        tags[vocabulary[word], TAGS.index(tag)] = _SURE
        intents[vocabulary[word], int(word in ("where", "order"))] = _SURE
    tags[: len(vocabulary) - len(WORDS), 0] = _SURE
    stored = [
        numpy_helper.from_array(tags, "tags_VK"),
        numpy_helper.from_array(intents, "intents_VC"),
        numpy_helper.from_array(np.array([1], dtype=np.int64), "middle"),
        numpy_helper.from_array(np.array([2], dtype=np.int64), "last"),
    ]
    nodes = [
        helper.make_node("Gather", ["tags_VK", "input_ids"], ["tag_logits"]),
        helper.make_node("Gather", ["intents_VC", "input_ids"], ["picked_NTC"]),
        helper.make_node("Cast", ["attention_mask"], ["mask_NT"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask_NT", "last"], ["mask_NT1"]),
        helper.make_node("Mul", ["picked_NTC", "mask_NT1"], ["masked_NTC"]),
        helper.make_node("ReduceSum", ["masked_NTC", "middle"], ["intent_logits"], keepdims=0),
    ]
    inputs = [helper.make_tensor_value_info(s.name, TensorProto.INT64, ["n", "t"]) for s in contents.signature.inputs]
    outputs = [
        helper.make_tensor_value_info("tag_logits", TensorProto.FLOAT, ["n", "t", len(TAGS)]),
        helper.make_tensor_value_info("intent_logits", TensorProto.FLOAT, ["n", len(LABELS)]),
    ]
    graph = helper.make_graph(nodes, "joint", inputs, outputs, initializer=stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model
