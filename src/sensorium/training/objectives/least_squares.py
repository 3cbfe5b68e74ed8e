"""Alignment in closed form: the linear map from features to word embeddings with the least squared error.

What SITTA (arXiv 2307.05591) and ReCap do before, or instead of, training: pairs of a feature and the embedding of its
word, a ridge regression, done. It starts a projector; `training.word_directions` is its counterpart for classes.
"""

from __future__ import annotations

import numpy as np


class LeastSquares:
    """Sums of a ridge regression, filled batch by batch: memory does not grow with the pairs.

    Args:
        features: width of a feature.
        targets: width of a target.
    """

    def __init__(self, features: int, targets: int) -> None:
        self.xx = np.zeros((features + 1, features + 1))
        self.xy = np.zeros((features + 1, targets))
        self.pairs = 0.0

    def add(self, x: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None) -> None:
        """Take pairs ``x`` [n, features], ``y`` [n, targets], each counted ``weight`` [n] times."""
        one = np.concatenate((x, np.ones((len(x), 1), x.dtype)), axis=1).astype(np.float64)
        scaled = one if weight is None else one * weight[:, None]
        self.xx += scaled.T @ one
        self.xy += scaled.T @ y
        self.pairs += len(x) if weight is None else float(weight.sum())

    def solve(self, ridge: float = 1e-3) -> tuple[np.ndarray, np.ndarray]:
        """(weight [targets, features], bias [targets]) with the least squared error plus ``ridge`` per pair, scaled to
        the features' mean square; the bias is not penalised."""
        features = len(self.xx) - 1
        penalty = np.full(features + 1, ridge * max(float(np.trace(self.xx[:-1, :-1])) / max(features, 1), 1e-12))
        penalty[-1] = 1e-9 * max(self.pairs, 1.0)
        solution = np.linalg.solve(self.xx + np.diag(penalty), self.xy)
        return solution[:-1].T.astype(np.float32), solution[-1].astype(np.float32)
