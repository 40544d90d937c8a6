"""Confident learning against a hand calculation, and against wrong labels that were put in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from sklearn.naive_bayes import MultinomialNB

from training.checks.confident import cross_validated, doubt, numbered, stratified_folds


def test_the_confident_joint_by_hand() -> None:
    # Class 0: 0.9, 0.8 and 0.1, mean 0.6. Class 1: 0.8, 0.7 and 0.7, mean 0.733. The third row's 0.9 of class 1 is
    # above that mean, so it counts as class 1; no other row counts as another class than its own.
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.3, 0.7], [0.3, 0.7]])
    found = doubt(probabilities, np.array([0, 0, 0, 1, 1, 1]), lowest=0.5)
    assert found.rows.tolist() == [2]
    assert found.classes.tolist() == [1]
    assert (found.given.tolist(), found.preferred.tolist()) == ([0.1], [0.9])


def test_a_class_that_nothing_recognises_does_not_draw_every_example_to_it() -> None:
    # The mean of class 2 is 0.1: below `lowest`, all rows that give it 0.15 would be above it.
    probabilities = np.tile([0.45, 0.4, 0.15], (20, 1))
    probabilities[0] = [0.5, 0.4, 0.1]
    classes = np.array([2, *[0, 1] * 9, 0])
    assert len(doubt(probabilities, classes, lowest=0.0)) > 0
    assert len(doubt(probabilities, classes, lowest=0.6)) == 0


def test_probabilities_order_as_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(3)
    features = csr_matrix(generator.poisson(0.8, (60, 12)).astype(float))
    classes = generator.integers(0, 3, 60)
    folds = stratified_folds(classes, 1)
    ours = cross_validated(features, classes, folds)
    for fold in range(5):
        theirs = MultinomialNB(alpha=0.1).fit(features[folds != fold], classes[folds != fold])
        held = theirs.predict_log_proba(features[folds == fold])
        # One temperature for all: logarithms are theirs times one factor, up to a constant a row.
        differences = np.log(ours[folds == fold])[:, 1:] - np.log(ours[folds == fold])[:, :1]
        expected = held[:, 1:] - held[:, :1]
        factor = (differences / expected).ravel()
        assert factor == pytest.approx(np.full(len(factor), factor[0]), rel=1e-6)


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=60), st.integers(0, 5))
@settings(deadline=None, max_examples=40)
def test_folds_hold_every_class_evenly(classes: list[str], seed: int) -> None:
    names, numbers = numbered(classes)
    assert [names[number] for number in numbers] == classes
    folds = stratified_folds(numbers, seed)
    for number in range(len(names)):
        sizes = np.bincount(folds[numbers == number], minlength=5)
        assert sizes.max() - sizes.min() <= 1


@given(st.integers(2, 5), st.integers(1, 40), st.integers(0, 9))
@settings(deadline=None, max_examples=40)
def test_what_is_doubted_is_preferred_otherwise(n_classes: int, n_examples: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.full(n_classes, 0.3), n_examples)
    classes = generator.integers(0, n_classes, n_examples)
    before = probabilities.copy()
    found = doubt(probabilities, classes, lowest=0.5)
    np.testing.assert_array_equal(probabilities, before)
    assert len(set(found.rows.tolist())) == len(found)
    assert (found.classes != classes[found.rows]).all()
    np.testing.assert_array_equal(found.given, probabilities[found.rows, classes[found.rows]])
