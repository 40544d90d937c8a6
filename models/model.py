"""From a bundle's directory to the model that encodes requests and decodes outputs."""

from __future__ import annotations

from pathlib import Path

from models.features import PairFeaturizer
from models.intent import IntentModel
from models.manifest import Contents, NgramText
from models.pairs import PairEncoder
from models.ranking import RankingModel
from models.tagging import TaggingModel
from models.text import NgramEncoder, SubwordEncoder
from models.text_cache import TextCache

TOKENIZER = "tokenizer.json"

Model = IntentModel | TaggingModel | RankingModel


def open_model(directory: Path, contents: Contents, texts: TextCache | None = None) -> Model:
    """Open the model that `contents` describes; `directory` holds its tokenizer or feature statistics.

    texts: where a model that computes features of texts keeps what it knows of them (None: for itself).
    """
    if contents.family == "ranking":
        return RankingModel(contents, _featurizer(directory, contents, texts), _pairs(directory, contents))
    if isinstance(contents.text, NgramText):
        return IntentModel(contents, NgramEncoder(contents.text))
    if contents.text is None:
        raise ValueError(f"a model of the family {contents.family} must have text settings")
    encoder = SubwordEncoder(directory / TOKENIZER, contents.text.max_tokens, contents.text.max_windows)
    if contents.family == "tagging":
        return TaggingModel.open(directory, contents, encoder)
    return IntentModel(contents, encoder)


def _featurizer(directory: Path, contents: Contents, texts: TextCache | None) -> PairFeaturizer | None:
    if contents.pair_features is None:
        return None
    return PairFeaturizer.load(directory, contents.pair_features, texts=texts)


def _pairs(directory: Path, contents: Contents) -> PairEncoder | None:
    if contents.pair_text is None:
        return None
    pad = next(spec.pad for spec in contents.signature.inputs if spec.name == "input_ids")
    return PairEncoder(directory / TOKENIZER, contents.pair_text.max_tokens, pad, is_apart=contents.pair_text.is_apart)
