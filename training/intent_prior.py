"""What the training rows say of an intent's tags: which types of spans it has, and which it is not seen with.

Shapes: N rows, C intent labels, K tags.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.tagging import spans
from training.data.splits import TaggingRows


def penalties(rows: TaggingRows, labels: Sequence[str], tags: Sequence[str]) -> NDArray[np.float32]:
    """What each intent [C] takes from the logits of its tags [C, K]: 0 or less, the same for `B-x` and `I-x`.

    min(0, log((n + 1) / (e + 1))) of label and type, their smoothed pointwise mutual information (Church and Hanks
    1990) where it is negative: n rows have both, e = rows with the label x rows with the type / N would by chance. Two
    that are rare are kept apart by little, since little is known of them.
    """
    types = sorted({tag[2:] for tag in tags if "-" in tag})
    has_label_NC = np.array([[label == known for known in labels] for label in rows.labels or ()], dtype=np.float64)
    types_N = [{span.type for span in spans(row)} for row in rows.tags]
    has_type_NY = np.array([[known in found for known in types] for found in types_N], dtype=np.float64)
    found_CY = has_label_NC.T @ has_type_NY
    expected_CY = np.outer(has_label_NC.sum(axis=0), has_type_NY.sum(axis=0)) / len(rows)
    penalties_CY = np.minimum(0.0, np.log((found_CY + 1) / (expected_CY + 1)))
    places = {name: place for place, name in enumerate(types)}
    penalties_CK = np.zeros((len(labels), len(tags)), dtype=np.float32)
    for column, tag in enumerate(tags):
        if "-" in tag:
            penalties_CK[:, column] = penalties_CY[:, places[tag[2:]]]
    return penalties_CK
