import numpy as np
import torch
from sklearn.decomposition import PCA

from models.networks.student import principal_components, student_encoder


def table(n_tokens=50, n_dimensions=8):
    return torch.from_numpy(np.random.default_rng(0).normal(size=(n_tokens, n_dimensions)) * np.arange(1, 9)).float()


def test_principal_components_are_those_of_scikit_learn_up_to_sign_and_scale():
    ours = principal_components(table(), 3).numpy()
    theirs = PCA(3, svd_solver="full").fit_transform(table().double().numpy())
    theirs *= 0.05 / theirs.std(ddof=1)
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-6)
    np.testing.assert_array_equal(ours, principal_components(table(), 3).numpy())


def test_a_student_begins_with_the_teachers_components_and_fills_up_what_is_wider():
    sizes = {"n_layers": 1, "n_heads": 2, "n_intermediate": 8, "dropout": 0.0, "n_positions": 16, "pad": 0}
    narrow = student_encoder(table(), n_hidden=4, **sizes)
    weight = narrow.embeddings.word_embeddings.weight.detach()
    torch.testing.assert_close(weight, principal_components(table(), 4))
    wide = student_encoder(table(), n_hidden=12, **sizes)
    weight = wide.embeddings.word_embeddings.weight.detach()
    torch.testing.assert_close(weight[:, :8], principal_components(table(), 8))
    assert weight[1:, 8:].abs().min() > 0
