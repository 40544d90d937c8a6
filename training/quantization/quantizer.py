"""From `model.onnx` to an INT8 model by a recipe: one graph is rewritten, so that answers do not depend on the batch.

ONNX Runtime's own dynamic quantization takes one range for a whole batch: MiniLM-L6's tag logits of size 1.0 move by
0.29 when texts are batched. Here an activation is scaled by a range measured beforehand (`quantization.ranges`), or
row by row (a token) by its own largest value, and a text is answered alone as in any batch (1e-7). Layer norms fused
with what is added before them are taken apart: ONNX Runtime's SkipLayerNormalization takes 0.73 ms on the CPU for 384
tokens of 384 channels, Sum and LayerNormalization 0.12 ms. `docs/decisions/0003-int8-independent-of-the-batch.md` has
the figures.

Shapes: R rows of activations, K inputs and N outputs of one product, V rows of an embedding table, G blocks of K.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from training.contrib import CONTRIB, import_contrib
from training.quantization.ranges import Range
from training.quantization.recipes import RECIPES, Recipe

_WEIGHT_LEVELS = 63  # 7 bits: AVX2 adds two products in 16 bits, and 2 x 255 x 63 just fits
_ROW_LEVELS = 127
_ROW_ZERO_POINT = 128
_TABLE_LEVELS = 127
_MIN_TABLE_SIZE = 50_000  # a smaller table is not worth three more operators
_BLOCK = 32  # inputs that share a scale where weights have 4 bits
_INT8_ACTIVATIONS = 4  # MatMulNBits' accuracy_level that multiplies in 8 bits, each row by its own scale
_SMOOTHING = 0.5  # Xiao et al. 2023, "SmoothQuant", equation 4, without its share of the weights
_UNEQUAL = 4.0  # widest channel by the median one from which smoothing is worth a multiplication

_QUANTIZABLE = ("MatMul", "Gemm")


def quantize(
    float32_path: Path,
    int8_path: Path,
    recipe: Recipe = RECIPES["by_token"],
    *,
    ranges: Mapping[str, Range] | None = None,
    spared: Iterable[str] = (),
) -> None:
    """Write the INT8 variant of a network of opset 13 or later.

    Quantized are: MatMul and Gemm by constant matrices, and large embedding tables (Gather). All else stays, inputs and
    outputs included.
    ranges: of every product's input, for a static recipe. spared: outputs of products that are treated as
    `recipe.spared` says (None: left in float32).
    """
    if recipe.activations == "batch":
        _by_onnxruntime(float32_path, int8_path)
        return
    model = onnx.load(str(float32_path))
    _Rewriter(model, recipe, ranges or {}, frozenset(spared)).rewrite()
    onnx.save_model(model, str(int8_path))


def products(model: onnx.ModelProto) -> dict[str, str]:
    """Of every product by a constant matrix, its output and its input."""
    matrices = {
        tensor.name
        for tensor in model.graph.initializer
        if len(tensor.dims) == 2 and tensor.data_type == TensorProto.FLOAT
    }
    return {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type in _QUANTIZABLE and node.input[1] in matrices
    }


def _by_onnxruntime(float32_path: Path, int8_path: Path) -> None:
    """Its settings for a processor without VNNI, as the tools built on it choose them."""
    logging.disable(logging.WARNING)  # It advises a preparation that the fused graph has behind it.
    try:
        quantize_dynamic(
            float32_path,
            int8_path,
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
    finally:
        logging.disable(logging.NOTSET)


class _Rows(NamedTuple):
    """Activations as uint8: names of the levels, of their one scale and zero point, and of row scales [..., 1].

    factor: what the channels [K] of the activations were divided by, so that the weights must be multiplied by it.
    """

    levels: str
    scale: str
    zero_point: str
    row_scales: str | None = None
    factor: NDArray[np.float32] | None = None


class _Rewriter:
    """One graph while it is rewritten; what it adds is named `int8/...`."""

    def __init__(
        self, model: onnx.ModelProto, recipe: Recipe, ranges: Mapping[str, Range], spared: frozenset[str]
    ) -> None:
        self._model = model
        self._recipe = recipe
        self._ranges = ranges
        self._spared = spared
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._n_readers = Counter(name for node in model.graph.node for name in node.input)
        self._n_readers.update(output.name for output in model.graph.output)
        self._nodes: list[onnx.NodeProto] = []
        self._rows: dict[tuple[str, str], _Rows] = {}
        self._open: dict[str, onnx.NodeProto] = {}
        """Products that can take a bias themselves, by their output."""

    def rewrite(self) -> None:
        graph = self._model.graph
        rules = {
            "MatMul": self._matmul,
            "Gemm": self._gemm,
            "Add": self._add_bias,
            "Gather": self._table,
            "SkipLayerNormalization": self._skip_norm,
        }
        for node in graph.node:
            rule = rules.get(node.op_type)
            if rule is None or not rule(node):
                self._nodes.append(node)
        used = _names_read(self._nodes) | {output.name for output in graph.output}
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(self._nodes)
        graph.initializer.extend(tensor for name, tensor in self._constants.items() if name in used)
        import_contrib(self._model)

    def _matmul(self, node: onnx.NodeProto) -> bool:
        weights_KN = self._matrix(node.input[1])
        if weights_KN is None or not self._is_quantized(node):
            return False
        self._product(node, weights_KN, node.input[1], node.output[0])
        return True

    def _gemm(self, node: onnx.NodeProto) -> bool:
        weights = self._matrix(node.input[1])
        attributes = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0, **_attributes(node)}
        is_transposed = attributes.pop("transB")
        if weights is None or attributes != {"alpha": 1.0, "beta": 1.0, "transA": 0} or not self._is_quantized(node):
            return False
        name = f"{node.input[1]}/transposed" if is_transposed else node.input[1]
        has_bias = len(node.input) > 2 and bool(node.input[2])
        product = f"int8/{node.output[0]}/product" if has_bias else node.output[0]
        self._product(node, weights.T if is_transposed else weights, name, product)
        if has_bias:
            self._add("Add", [product, node.input[2]], node.output[0])
        return True

    def _add_bias(self, node: onnx.NodeProto) -> bool:
        """A bias right behind a product that can take it."""
        product, bias = node.input
        tensor = self._constants.get(bias)
        if product not in self._open or tensor is None or len(tensor.dims) != 1 or self._n_readers[product] > 1:
            return False
        self._biased(product, bias)
        self._open.pop(product).output[0] = node.output[0]
        return True

    def _table(self, node: onnx.NodeProto) -> bool:
        """Rows of 8-bit levels, each with its scale; only the rows that are read become floats."""
        name, indices = node.input
        table_VK = self._matrix(name)
        if table_VK is None or table_VK.size < _MIN_TABLE_SIZE or _attributes(node).get("axis"):
            return False
        output = node.output[0]
        if self._recipe.table_bits == 4 and table_VK.shape[1] % _BLOCK == 0:
            levels_VG, scales_VG = _blocks(table_VK, n_bits=4)
            packed = self._constant(f"{name}/blocks", levels_VG.reshape(len(table_VK), -1))
            inputs = [packed, indices, self._constant(f"{name}/block_scales", scales_VG)]
            self._add(
                "GatherBlockQuantized", inputs, output, domain=CONTRIB, bits=4, block_size=_BLOCK, quantize_axis=1
            )
            return True
        levels_VK, scales_V1 = _levels(table_VK, axis=1, n_levels=_TABLE_LEVELS)
        picked = self._add("Gather", [self._constant(f"{name}/table", levels_VK), indices], f"int8/{output}/levels")
        scales = self._add("Gather", [self._constant(f"{name}/scales", scales_V1), indices], f"int8/{output}/scales")
        floats = self._add("Cast", [picked], f"int8/{output}/floats", to=TensorProto.FLOAT)
        self._add("Mul", [floats, scales], output)
        return True

    def _skip_norm(self, node: onnx.NodeProto) -> bool:
        """The sum and the norm, in operators of their own; Sum, because ONNX Runtime would fuse Add again."""
        states, skip, gamma, beta, *bias = node.input
        if len(node.output) > 1 or node.domain != CONTRIB:
            return False
        output = node.output[0]
        if bias and bias[0]:
            states = self._biased(states, bias[0])
        total = self._add("Sum", [states, skip], f"int8/{output}/sum")
        epsilon = _attributes(node).get("epsilon", 1e-12)
        self._add("LayerNormalization", [total, gamma, beta], output, axis=-1, epsilon=epsilon)
        return True

    def _biased(self, states: str, bias: str) -> str:
        """Add a bias, inside the product that made the states where that is possible."""
        product = self._open.get(states)
        if product is None or self._n_readers[states] > 1:
            return self._add("Add", [states, bias], f"int8/{states}/biased")
        product.input.extend(["", bias])
        return states

    def _is_quantized(self, node: onnx.NodeProto) -> bool:
        is_left = node.output[0] in self._spared and self._recipe.spared in (None, "float")
        return self._recipe.product_bits < 32 and not is_left

    def _activations(self, node: onnx.NodeProto) -> str:
        if node.output[0] in self._spared and self._recipe.spared is not None:
            return self._recipe.spared
        return self._recipe.activations

    def _product(self, node: onnx.NodeProto, weights_KN: NDArray[np.float32], name: str, output: str) -> None:
        """Integer product of quantized rows and columns, times the scale of each column and each row."""
        activations = self._activations(node)
        if activations == "float":
            self._weights_only(node.input[0], weights_KN, name, output)
            return
        make = self._static if activations == "static" else self._by_token
        rows = make(node.input[0], len(weights_KN))
        levels, scales = self._columns(weights_KN, name, rows)
        inputs = [rows.levels, levels, rows.scale, scales, rows.zero_point]
        if rows.row_scales is None:
            self._add("MatMulIntegerToFloat", inputs, output, domain=CONTRIB)
            self._open[output] = self._nodes[-1]
            return
        product = self._add("MatMulIntegerToFloat", inputs, f"int8/{output}/unscaled", domain=CONTRIB)
        self._add("Mul", [product, rows.row_scales], output)

    def _weights_only(self, activations: str, weights_KN: NDArray[np.float32], name: str, output: str) -> None:
        bits = self._recipe.product_bits
        n_inputs, n_outputs = weights_KN.shape
        levels_NG, scales_NG = _blocks(weights_KN.T, n_bits=bits)
        inputs = [
            activations,
            self._constant(f"{name}/blocks", levels_NG),
            self._constant(f"{name}/block_scales", scales_NG),
        ]
        sizes = {"K": n_inputs, "N": n_outputs, "bits": bits, "block_size": _BLOCK}
        self._add("MatMulNBits", inputs, output, domain=CONTRIB, accuracy_level=_INT8_ACTIVATIONS, **sizes)

    def _columns(self, weights_KN: NDArray[np.float32], name: str, rows: _Rows) -> tuple[str, str]:
        """Names of the weights as 7-bit levels and of their scales, one a column or one in all."""
        if rows.factor is not None:
            name, weights_KN = f"{name}/smooth", weights_KN * rows.factor[:, None]
        axis = 0 if self._recipe.is_per_column else None
        levels_KN, scales = _levels(weights_KN, axis=axis, n_levels=_WEIGHT_LEVELS)
        return self._constant(f"{name}/columns", levels_KN), self._constant(f"{name}/column_scales", scales.reshape(-1))

    def _static(self, name: str, n_inputs: int) -> _Rows:
        """Activations by their measured range; made once for all who read them.

        Channels that differ much are divided by the square root of their largest magnitude first, and the weights
        multiplied by it: otherwise one wide channel would leave few levels for the others.
        """
        if (name, "static") in self._rows:
            return self._rows[name, "static"]
        low_K, high_K = (np.resize(edge, n_inputs) for edge in (self._ranges[name].low, self._ranges[name].high))
        widest_K = np.maximum(np.maximum(-low_K, high_K), np.float32(1e-6))
        source, factor_K = name, None
        if self._recipe.is_smooth and widest_K.max() > _UNEQUAL * np.median(widest_K):
            factor_K = (widest_K / widest_K.max()) ** np.float32(_SMOOTHING)
            low_K, high_K = low_K / factor_K, high_K / factor_K
            source = self._add("Mul", [name, self._constant(f"{name}/smooth", 1 / factor_K)], f"int8/{name}/smoothed")
        low, high = min(float(low_K.min()), 0.0), max(float(high_K.max()), 0.0)
        if self._recipe.is_symmetric:
            low, high = -max(-low, high), max(-low, high)
        step = (high - low) / 255 or 1.0
        scale = self._constant(f"{name}/scale", np.float32(step))
        zero_point = self._constant(f"{name}/zero_point", np.uint8(round(-low / step)))
        levels = self._add("QuantizeLinear", [source, scale, zero_point], f"int8/{name}/static")
        self._rows[name, "static"] = _Rows(levels, scale, zero_point, factor=factor_K)
        return self._rows[name, "static"]

    def _by_token(self, name: str, n_inputs: int) -> _Rows:
        """Activations [..., K] by the largest magnitude of each row; made once for all who read them.

        A row of zeros has scale 0: its levels mean nothing, and every product of it is 0, as it should be.
        """
        if (name, "token") in self._rows:
            return self._rows[name, "token"]
        new = f"int8/{name}"
        last = self._constant("last", np.array([-1]))
        flat = self._constant(f"rows_of_{n_inputs}", np.array([-1, n_inputs]))
        zero_points = numpy_helper.from_array(np.array([_ROW_ZERO_POINT], dtype=np.uint8))
        magnitudes = self._add("Abs", [name], f"{new}/magnitudes")
        largest = self._reduce_max(magnitudes, last, f"{new}/largest")
        scales = self._add("Mul", [largest, self._constant("step", np.float32(1 / _ROW_LEVELS))], f"{new}/scales")
        scales_R = self._add("Reshape", [scales, last], f"{new}/scales_flat")
        n_rows = self._add("Shape", [scales_R], f"{new}/n_rows")
        zeros_R = self._add("ConstantOfShape", [n_rows], f"{new}/zero_points", value=zero_points)
        matrix_RK = self._add("Reshape", [name, flat], f"{new}/flat")
        levels_RK = self._add("QuantizeLinear", [matrix_RK, scales_R, zeros_R], f"{new}/levels_flat", axis=0)
        shape = self._add("Shape", [name], f"{new}/shape")
        levels = self._add("Reshape", [levels_RK, shape], f"{new}/levels")
        one, zero_point = (
            self._constant("one", np.float32(1)),
            self._constant("zero_point", np.uint8(_ROW_ZERO_POINT)),
        )
        self._rows[name, "token"] = _Rows(levels, one, zero_point, row_scales=scales)
        return self._rows[name, "token"]

    def _reduce_max(self, name: str, last: str, output: str) -> str:
        opset = next(opset.version for opset in self._model.opset_import if opset.domain in ("", "ai.onnx"))
        if opset < 18:
            return self._add("ReduceMax", [name], output, axes=[-1], keepdims=1)
        return self._add("ReduceMax", [name, last], output, keepdims=1)

    def _matrix(self, name: str) -> NDArray[np.float32] | None:
        """The constant of that name where it is a float32 matrix."""
        tensor = self._constants.get(name)
        if tensor is None or len(tensor.dims) != 2 or tensor.data_type != TensorProto.FLOAT:
            return None
        return np.asarray(numpy_helper.to_array(tensor), dtype=np.float32)

    def _constant(self, name: str, array: ArrayLike) -> str:
        name = f"int8/{name}"
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(array).reshape(np.shape(array)), name)
        return name

    def _add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output


def _levels(
    weights: NDArray[np.float32], axis: int | None, n_levels: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round to whole multiples of max |w| / n_levels along `axis` (None: of all): the multiples, and those steps."""
    steps = (np.abs(weights).max(axis=axis, keepdims=True) / n_levels).astype(np.float32)
    return np.round(weights / np.where(steps > 0, steps, 1)).astype(np.int8), steps


def _blocks(rows_NK: NDArray[np.float32], n_bits: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Rows in blocks of 32, as ONNX Runtime packs them: levels [N, G, bytes] around a middle, and scales [N, G]."""
    n_rows, n_inputs = rows_NK.shape
    n_blocks = -(-n_inputs // _BLOCK)
    padded = np.zeros((n_rows, n_blocks * _BLOCK), dtype=np.float32)
    padded[:, :n_inputs] = rows_NK
    middle = 1 << (n_bits - 1)
    levels, steps = _levels(padded.reshape(n_rows, n_blocks, _BLOCK), axis=2, n_levels=middle - 1)
    packed: NDArray[np.uint8] = (levels.astype(np.int16) + middle).astype(np.uint8)
    if n_bits == 4:
        packed = np.bitwise_or(packed[..., 0::2], np.left_shift(packed[..., 1::2], 4))
    return packed, steps[..., 0]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _names_read(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Every name that the nodes read, also inside the branches of If and the bodies of loops."""
    names: set[str] = set()
    for node in nodes:
        names.update(node.input)
        for attribute in node.attribute:
            names |= _names_read(attribute.g.node) | {output.name for output in attribute.g.output}
    return names
