"""From a PyTorch network to `model.onnx`: one graph for any batch and length, with the encoder's attention fused.

torch's exporter writes attention as some twenty small operators, in a form that ONNX Runtime's fusions do not know.
Where the encoder's self-attention is one of those known here, it is therefore exported as ONNX Runtime's own Attention
operator (`com.microsoft`), with query, key and value in one product, and packed (`training.packing`): padding costs
nothing but in attention itself. Every other encoder is exported as it is.
"""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.optimizer import optimize_model
from torch import Tensor, nn

from models.errors import RankyardError
from models.networks.transformer import TransformerNetwork
from models.session import OnnxSession
from training.contrib import CONTRIB, import_contrib
from training.packing import pack

OPSET = 18

_TOLERANCE = 1e-4


def network_to_onnx(network: TransformerNetwork, path: Path) -> None:
    """Write `network` as ONNX: its inputs, int64 [batch, length], in; its logits, float32, out.

    The fastest of four graphs that answers as the network does is written: with fused attention and packed, or as torch
    exports it, each with fused layer norms or without. RankyardError where not even the last one does.
    """
    network = copy.deepcopy(network).eval()
    probes = _probes(network)
    for exported in (_FusedAttention.of(network), _Plain(network)):
        if exported is None:
            continue
        graph = _export(exported, probes[0], network)
        for candidate in (_fuse(graph, network), graph):
            onnx.save_model(pack(candidate), str(path))
            if _agrees(network, path, probes):
                return
    raise RankyardError(
        f"the ONNX export of {type(network.encoder).__name__} must answer as PyTorch does to {_TOLERANCE}, "
        "it does not; choose another model.encoder"
    )


class _Plain(nn.Module):
    """The network with its outputs as a tuple, as the exporter wants them."""

    def __init__(self, network: TransformerNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.network(*inputs).values())


class _Mask:
    """The batch's mask [B, T] int32, lent to every layer: the encoder itself builds a larger one that goes unused."""

    value: Tensor


_BERT = ("query", "key", "value")
_DISTILBERT = ("q_lin", "k_lin", "v_lin", "out_lin")
_MPNET = ("q", "k", "v", "o")
_FORMS = (_BERT, _DISTILBERT, _MPNET)
"""What the layers of a self-attention are called: three projections, and the one behind it where it has that too."""


class _Attention(nn.Module):
    """ONNX Runtime's Attention in place of an encoder's self-attention of a form; it can be exported, not run."""

    def __init__(self, attention: nn.Module, form: Sequence[str], mask: _Mask) -> None:
        super().__init__()
        *layers, last = (*(getattr(attention, name) for name in form), nn.Identity())[:4]
        self.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]).T.contiguous())
        self.bias = nn.Parameter(torch.cat([layer.bias for layer in layers]))
        self.n_heads = _n_heads(attention)
        self.last = last
        self._mask = mask
        self._is_biased = form == _MPNET

    def forward(
        self, hidden_states: Tensor, _mask: object = None, bias_BNTT: Tensor | None = None, *_: object, **__: object
    ) -> tuple[Tensor, None]:
        others = (None, bias_BNTT) if self._is_biased else ()
        states_BTH = torch.onnx.ops.symbolic(
            f"{CONTRIB}::Attention",
            (hidden_states, self.weight, self.bias, self._mask.value, *others),
            {"num_heads": self.n_heads},
            dtype=hidden_states.dtype,
            shape=hidden_states.shape,
            version=1,
        )
        return self.last(states_BTH), None


class _FusedAttention(nn.Module):
    """The network with every self-attention of its encoder replaced by `_Attention`."""

    def __init__(self, network: TransformerNetwork, mask: _Mask) -> None:
        super().__init__()
        self.network = network
        self._mask = mask

    @classmethod
    def of(cls, network: TransformerNetwork) -> _FusedAttention | None:
        """Give the network in this form, or None where its encoder is not one of layers that are known."""
        network = copy.deepcopy(network)
        mask = _Mask()
        found = [
            (parent, name, child, form)
            for parent in network.encoder.modules()
            for name, child in parent.named_children()
            if (form := _form(child)) is not None
        ]
        if len(found) != getattr(network.encoder.config, "num_hidden_layers", -1):
            return None
        for parent, name, child, form in found:
            setattr(parent, name, _Attention(child, form, mask))
        return cls(network, mask)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        input_ids, attention_mask, *others = inputs
        self._mask.value = self.network.attended(input_ids, attention_mask).to(torch.int32)
        return tuple(self.network.answer(self.network.states(input_ids, None, *others), attention_mask).values())


def _form(module: nn.Module) -> Sequence[str] | None:
    """Which form of plain scaled dot-product attention a module is: its projections, dropout, no more; None for none.

    BERT's is also RoBERTa's and ELECTRA's. MPNet's is given a bias [B, heads, T, T] by the tokens' distance.
    """
    children = {name: child for name, child in module.named_children() if name != "dropout"}
    form = next((form for form in _FORMS if set(form) == children.keys()), None)
    is_plain = (
        _n_heads(module) > 0
        and not getattr(module, "is_decoder", False)
        and all(isinstance(layer, nn.Linear) and layer.bias is not None for layer in children.values())
    )
    return form if is_plain else None


def _n_heads(attention: nn.Module) -> int:
    return int(getattr(attention, "num_attention_heads", getattr(attention, "n_heads", 0)))


def _export(exported: nn.Module, probe: tuple[Tensor, ...], network: TransformerNetwork) -> onnx.ModelProto:
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            exported.eval(),
            probe,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(network.input_names),
            output_names=list(network.output_names),
            # One argument of `forward`, which takes all inputs as such.
            dynamic_shapes=((sizes,) * len(probe),),
            verbose=False,
        )
    if program is None:
        raise AssertionError("torch.onnx.export gives a program when no file is named")
    graph: onnx.ModelProto = program.model_proto
    return graph


def _fuse(graph: onnx.ModelProto, network: TransformerNetwork) -> onnx.ModelProto:
    """Fuse layer norms and activations with what is added before them."""
    config = network.encoder.config
    options = FusionOptions("bert")
    options.enable_attention = False
    options.enable_embed_layer_norm = False  # it wants a mask [B, T], and hides the table of tokens
    norms = [node for node in graph.graph.node if node.op_type == "LayerNormalization"]
    options.enable_skip_layer_norm = all(len(norm.input) == 3 for norm in norms)  # it takes a bias for granted
    with quiet():
        fused = optimize_model(
            copy.deepcopy(graph),
            model_type="bert",
            num_heads=int(config.num_attention_heads),
            hidden_size=int(config.hidden_size),
            opt_level=0,
            optimization_options=options,
        )
    model: onnx.ModelProto = fused.model
    import_contrib(model)
    return model


def _probes(network: TransformerNetwork) -> list[tuple[Tensor, ...]]:
    """Batches of random tokens with padding: of the shape that is traced, and of two others."""
    generator = torch.Generator().manual_seed(0)
    n_tokens = int(network.encoder.config.vocab_size)
    probes = []
    for shape in ((3, 7), (1, 2), (5, 16)):
        input_ids = torch.randint(0, n_tokens, shape, generator=generator)
        attention_mask = torch.ones_like(input_ids)
        attention_mask[1:, shape[1] - 2 :] = 0
        others = [torch.randint(0, 4, shape, generator=generator) for _ in network.input_names[2:]]
        probes.append((input_ids, attention_mask, *others))
    return probes


def _agrees(network: TransformerNetwork, path: Path, probes: list[tuple[Tensor, ...]]) -> bool:
    """Compare the file with the network; a padded position has no meaning and is left out."""
    session = OnnxSession(path)
    for probe in probes:
        with torch.inference_mode():
            expected = network(*probe)
        try:
            found = session.run({name: array.numpy() for name, array in zip(network.input_names, probe, strict=True)})
        except RankyardError:
            return False
        is_real_BT = probe[1].numpy().astype(bool)
        for name, tensor in expected.items():
            ours, theirs = tensor.numpy(), found[name]
            if ours.shape != theirs.shape:
                return False
            if ours.ndim == is_real_BT.ndim + 1:
                ours, theirs = ours[is_real_BT], theirs[is_real_BT]
            if not np.allclose(ours, theirs, rtol=_TOLERANCE, atol=_TOLERANCE):
                return False
    return True


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what the exporter and the optimizer say, and print, to their own developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.filterwarnings("ignore", category=FutureWarning, message=r"`isinstance\(treespec, LeafSpec\)`")
            warnings.filterwarnings("ignore", category=UserWarning, message="# The axis name: .* will not be used")
            yield
    finally:
        logging.disable(before)
