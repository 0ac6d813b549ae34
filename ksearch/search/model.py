"""What the told configs say of the untold: a Gaussian process, where configs are alike by steps apart.

TPE sees each parameter by itself; the last few percent are often one or two changes away from the best, and
which ones depends on the rest of the config.

Matrices are small, and the larger products are `einsum`: a BLAS that starts its threads beside busy
compilers took 68 ms a proposal where one thread takes 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ksearch.search.points import Points

Floats = NDArray[np.float64]

_FROM, _NEAR, _RANDOM = 3, 300, 100
"""Candidates: so many of those within two steps of the best three, and some from anywhere."""

_FAST, _SLOW = 36, 24
"""Told configs that the model is made of: the fastest, and some of all others so that it knows where not to
look. OpenBLAS factors a matrix of 60 on one thread."""

_NOISE = 0.01
"""Of the variance: what two measurements of one config differ by, and what no axis explains."""

_CLIP = 1.2
"""Of the logarithm of how much slower than the best. Beyond that, or failed, how bad does not matter."""

_REFIT = 10
"""Told trials after which the weights of the axes are found anew; it costs ten proposals."""

_PRIOR, _LEAST, _GREATEST = 0.5, 0.01, 4.0
"""Weights of an axis: at 0.5, configs that are one step of it apart are alike by exp(-0.25)."""


class Model:
    """Proposes the untried config near the best that may be fastest; equal seeds propose alike."""

    def __init__(self, points: Points, seed: int) -> None:
        self._points = points
        self._random = np.random.default_rng(seed)
        # Squared distances of the codes of two ranks: half their difference, or 1 for two kinds.
        self._codes: list[Floats] = [
            (np.tri(len(values), k=-1) if points.ordered[name] else np.eye(len(values))) * math.sqrt(0.5)
            for name, values in points.values.items()
        ]
        self._weights = np.full(len(self._codes), _PRIOR)
        self._fitted = 0

    def propose(self, told: Sequence[int], times: Sequence[float | None], running: Sequence[int]) -> int:
        """The index of an untried config, given those told (None: failed) and those in flight.

        The lowest of mean minus deviation; what is in flight counts as being what is expected of it.
        """
        best = min((time for time in times if time is not None), default=1.0)
        slower = np.array([_CLIP if time is None else min(_CLIP, math.log(time / best)) for time in times])
        order = np.argsort(slower, kind="stable")
        others = order[_FAST:]
        some = np.linspace(0, len(others) - 1, min(_SLOW, len(others))).astype(int)
        order = np.concatenate([order[:_FAST], others[some]])
        known, slower = [told[i] for i in order], slower[order]
        if len(told) >= self._fitted + _REFIT:
            self._fit(known, slower)
            self._fitted = len(told)
        features, off = self._features(known), slower - slower.mean()
        solved = np.linalg.solve(_alike(features, features) + _NOISE * np.eye(len(off)), off)
        scale = math.sqrt(max(float(off @ solved) / len(off), 1e-12))
        expected = self._features(running)
        off = np.concatenate([off, np.einsum("ij,j->i", _alike(expected, features), solved)])
        features = np.concatenate([features, expected])
        inverse = np.linalg.inv(_alike(features, features) + _NOISE * np.eye(len(off)))
        candidates = self._candidates(known[:_FROM])
        likeness = _alike(self._features(candidates), features)
        mean = np.einsum("ij,j->i", likeness, np.einsum("ij,j->i", inverse, off))
        explained = (np.einsum("ij,jk->ik", likeness, inverse) * likeness).sum(axis=1)
        deviation = scale * np.sqrt(np.maximum(1e-6, 1.0 - explained))
        return candidates[int((mean - deviation).argmin())]

    def _candidates(self, best: Sequence[int]) -> list[int]:
        near: set[int] = set()
        for start in best:
            first = self._points.steps(start)
            near.update(first, *map(self._points.steps, first))
        untried = sorted(index for index in near if not self._points.taken[index])
        if len(untried) > _NEAR:
            untried = [int(i) for i in self._random.choice(untried, _NEAR, replace=False)]
        anywhere = self._random.integers(len(self._points.configs), size=_RANDOM)
        untried += [int(i) for i in anywhere if not self._points.taken[i]]
        return untried or [int(self._points.taken.argmin())]

    def _features(self, indices: Sequence[int]) -> Floats:
        """One row a config; squared distances of rows say how far apart configs are."""
        ranks = self._points.columns[:, list(indices)]
        scaled = zip(self._codes, np.sqrt(self._weights), ranks, strict=True)
        return np.concatenate([(codes * weight)[places] for codes, weight, places in scaled], axis=1)

    def _fit(self, told: Sequence[int], slower: Floats) -> None:
        """Double or halve the weight of each axis where that makes what was told more likely."""
        ranks = self._points.columns[:, list(told)]
        apart = np.stack(
            [_squared(codes[at], codes[at]) for codes, at in zip(self._codes, ranks, strict=True)]
        )
        off = slower - slower.mean()

        def unlikely(weights: Floats) -> float:
            matrix = np.exp(-np.tensordot(weights, apart, 1)) + _NOISE * np.eye(len(off))
            root = np.linalg.cholesky(matrix)
            variance = max(float(np.square(np.linalg.solve(root, off)).mean()), 1e-12)
            spread = np.square(np.log(weights / _PRIOR)).sum()
            return float(0.5 * len(off) * math.log(variance) + np.log(np.diag(root)).sum() + 0.15 * spread)

        least = unlikely(self._weights)
        for axis in range(len(self._weights)):
            for factor in (0.5, 2.0):
                other = self._weights.copy()
                other[axis] = np.clip(other[axis] * factor, _LEAST, _GREATEST)
                if (value := unlikely(other)) < least:
                    least, self._weights = value, other


def _squared(one: Floats, other: Floats) -> Floats:
    """Squared distances between the rows of two matrices."""
    lengths = np.square(one).sum(axis=1)[:, None] + np.square(other).sum(axis=1)
    distances: Floats = np.maximum(0.0, lengths - 2.0 * np.einsum("ik,jk->ij", one, other))
    return distances


def _alike(one: Floats, other: Floats) -> Floats:
    """How much two configs' times go together: 1 for equal ones."""
    return np.exp(-_squared(one, other))
