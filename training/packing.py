"""A batch of texts without its padding: what is computed token by token is computed for real tokens alone.

Texts of a batch differ in length, and padding them to the longest costs a third to a half of the work. Only attention
needs to know which tokens make up a text. In the packed graph the tokens of all texts stand under each other, [N, H];
each attention reads its queries, keys and values from there into [B, T, H], and its answer goes back; all else is done
on [N, H]. Inputs, outputs and answers stay as they are. The idea, on GPUs: ByteDance 2020, "Effective Transformer", and
Fang et al. 2021, "TurboTransformers".

Shapes: B texts, T tokens of the longest, N real tokens of all texts, H hidden units.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from training.contrib import CONTRIB

MASK = "attention_mask"

_TOKENWISE = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Erf", "Tanh", "Relu", "Cast", "Identity", "MatMul"),
        *("Gelu", "BiasGelu", "FastGelu", "QuickGelu", "LayerNormalization", "SkipLayerNormalization"),
    }
)
"""Operators that treat each row [H] by itself, as long as all else that they read is the same for every row."""


def pack(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give the graph with every `com.microsoft` Attention, and all tokenwise operators after the first, packed.

    The graph must have an input `attention_mask`, int64 [B, T], with at least one real token in the batch. In its
    outputs a position of padding has a number without meaning. A graph without Attention is given back as it is.
    """
    if not any(_is_attention(node) for node in model.graph.node):
        return model
    packed = onnx.ModelProto()
    packed.CopyFrom(model)
    _Packing(packed).rewrite()
    return packed


def _is_attention(node: onnx.NodeProto) -> bool:
    return bool(node.op_type == "Attention" and node.domain == CONTRIB)


class _Packing:
    """One graph while it is packed; what it adds is named `packed/...`, packed states keep their names."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._constants = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
        self._outputs = {output.name for output in model.graph.output}
        self._nodes: list[onnx.NodeProto] = []
        self._names: dict[str, str] = {}
        """States [B, T, H] of the graph as it was, and where they are packed, [N, H]."""
        self._padded: dict[str, str] = {}

    def rewrite(self) -> None:
        graph = self._graph
        self._index()
        for node in graph.node:
            if _is_attention(node):
                self._attention(node)
            elif self._is_tokenwise(node):
                self._copy(node, [self._names.get(name, name) for name in node.input], map(self._pack, node.output))
            else:
                self._copy(node, [self._pad(name) for name in node.input], node.output)
        for output in graph.output:
            self._pad(output.name)
        del graph.node[:], graph.value_info[:]
        graph.node.extend(self._nodes)

    def _index(self) -> None:
        """Find the cells of real tokens, [N], and of each cell the token, [B, T]: padding reads one that is masked."""
        is_real_BT = self._add("Cast", [MASK], "is_real", to=TensorProto.BOOL)
        is_real = self._add("Reshape", [is_real_BT, self._constant("all", [-1])], "is_real_flat")
        found = self._add("NonZero", [is_real], "cells")
        self._cells_N = self._add("Reshape", [found, self._constant("all", [-1])], "cells_flat")
        ones = self._add("Cast", [is_real], "ones", to=TensorProto.INT64)
        counted = self._add("CumSum", [ones, self._constant("axis", 0)], "counted")
        before = self._add("Sub", [counted, self._constant("one", 1)], "before")
        tokens = self._add("Max", [before, self._constant("none", 0)], "tokens_flat")
        self._tokens_BT = self._add("Reshape", [tokens, self._add("Shape", [MASK], "shape")], "tokens")
        self._parts_BT = [self._add("Mul", [self._tokens_BT, self._constant("three", 3)], "queries")]
        for part in ("keys", "values"):
            self._parts_BT.append(self._add("Add", [self._parts_BT[-1], self._constant("one", 1)], part))

    def _attention(self, node: onnx.NodeProto) -> None:
        """One product for queries, keys and values of all tokens, attention within each text, its answer packed."""
        states, weights, bias, mask, *others = node.input
        n_hidden = next(tensor.dims[0] for tensor in self._graph.initializer if tensor.name == weights)
        rows = self._constant(f"rows_of_{n_hidden}", [-1, n_hidden])
        if states not in self._names:
            self._padded[states] = states
            self._names[states] = self._add("Gather", [self._add("Reshape", [states, rows]), self._cells_N])
        product = self._add("MatMul", [self._names[states], weights])
        projected = self._add("Reshape", [self._add("Add", [product, bias]), rows])  # [3 N, H]
        parts = [self._add("Gather", [projected, part_BT]) for part_BT in self._parts_BT]
        attended = self._add("MultiHeadAttention", [*parts, "", mask, *others[1:2]], domain=CONTRIB)
        self._nodes[-1].attribute.extend(node.attribute)
        flat = self._add("Reshape", [attended, rows])
        self._nodes.append(helper.make_node("Gather", [flat, self._cells_N], [self._pack(node.output[0])]))

    def _is_tokenwise(self, node: onnx.NodeProto) -> bool:
        if node.op_type not in _TOKENWISE or not any(name in self._names for name in node.input):
            return False
        others = [(place, name) for place, name in enumerate(node.input) if name and name not in self._names]
        most = {place: 2 if (node.op_type, place) == ("MatMul", 1) else 1 for place, _ in others}
        return all(self._constants.get(name, 3) <= most[place] for place, name in others)

    def _pack(self, name: str) -> str:
        """Name packed states; a graph's output must be padded and keeps its own name for that."""
        return self._names.setdefault(name, f"packed/{name}" if name in self._outputs else name)

    def _pad(self, name: str) -> str:
        """Give packed states as [B, T, H] again, and all else as it is."""
        packed = self._names.get(name)
        if packed is None:
            return name
        if name not in self._padded:
            self._padded[name] = name if packed != name else f"packed/{name}/padded"
            self._nodes.append(helper.make_node("Gather", [packed, self._tokens_BT], [self._padded[name]]))
        return self._padded[name]

    def _copy(self, node: onnx.NodeProto, inputs: Iterable[str], outputs: Iterable[str]) -> None:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        del copy.input[:], copy.output[:]
        copy.input.extend(inputs)
        copy.output.extend(outputs)
        self._nodes.append(copy)

    def _constant(self, name: str, values: ArrayLike) -> str:
        name = f"packed/{name}"
        if name not in self._constants:
            array = np.asarray(values, dtype=np.int64)
            self._graph.initializer.append(numpy_helper.from_array(array, name))
            self._constants[name] = array.ndim
        return name

    def _add(self, operator: str, inputs: list[str], name: str | None = None, **attributes: Any) -> str:
        output = f"packed/{name or len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output
