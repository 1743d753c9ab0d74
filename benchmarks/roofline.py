"""What each op must move and compute at least, as a function of its sizes, on any device: the floor of its time.

Bytes are those of the arguments that must be read and of the results that must be written, each once, however often a
kernel reads them; of what is changed in place, both. Operations are additions and multiplications, of the cheapest form
of the mathematics that we know, by any order of the loops; what is one root, logarithm or exponential per value is left
out. Copies, sorting and workspaces are a kernel's own affair, and so no part of it.

``itemsize`` is that of the values, 4 for float32; offsets are int64.

The CUDA kernels are planned for these shares of the floor; the comments at their heads in ``csrc/ops/cuda`` say why.

==============================  ======  =====================================================================
cosine_scores                   80 %    of the bandwidth, where no row is read again from memory
cosine_scores backward          60 %
cosine_topk                     60 %
embedding_update_               70 %    from some 100,000 gradients on
gaussian_posterior              60 %
gaussian_posterior backward     20 %    bound by shared memory, of which it is planned for 60 %
gaussian_update                 60 %
inner_loop, also backward       33 %    tiles of small matrices, and barriers between them
cosine_sgd_epoch_               none    64 warps at most, each of which waits: planned is a time, that of 16 to 64 cores
==============================  ======  =====================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from benchmarks.timing import Rates

INDEX = 8
"""Bytes of an offset, and of a row's number where nothing else is said."""


@dataclass(frozen=True)
class Work:
    """What any program must do."""

    bytes: float
    """Read from memory and written to it."""
    operations: float = 0
    """Multiplications and additions."""

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.operations + other.operations)

    def __mul__(self, times: float) -> Work:
        return Work(times * self.bytes, times * self.operations)

    def seconds(self, rates: Rates) -> float:
        """Give the floor: no program on a device of these rates is faster."""
        return max(self.bytes / rates.bytes_per_second, self.operations / rates.operations_per_second)


def cosine_scores(pairs: int, rows: int, dim: int, *, itemsize: int = 4, index: int = INDEX) -> Work:
    """Give the scores of pairs.

    Parameters
    ----------
    pairs : int
        How many.
    rows : int
        The distinct rows that they name, of both tables together: a product per pair, a norm per row. Where no cache
        can hold the rows, those of most pairs come from memory again, up to ``2 * pairs``, and the share that is
        reached is low by as much.
    dim : int
        The length of a row.
    itemsize, index : int
        Bytes of a value, and of a row's number. Scores of bfloat16 are float32.
    """
    return Work(
        rows * dim * itemsize + pairs * (2 * index + max(itemsize, 4)),
        2 * dim * (pairs + rows),
    )


def cosine_scores_backward(
    pairs: int, rows: int, dim: int, *, dense: int | None = None, itemsize: int = 4, index: int = INDEX
) -> Work:
    """Give the gradients of both tables: each row of a pair is added to the sum of the other.

    Parameters
    ----------
    pairs, rows, dim, itemsize, index
        As for :func:`cosine_scores`.
    dense : int, optional
        The rows of both tables together, where their gradients are dense. Otherwise they are sparse.
    """
    written = dense * dim * itemsize if dense is not None else rows * (dim * itemsize + INDEX)
    read = rows * dim * itemsize + pairs * (2 * index + max(itemsize, 4))
    return Work(read + written, dim * (4 * pairs + rows))


def cosine_sgd_epoch_(
    ratings: int,
    rows: int,
    dim: int,
    *,
    similarity: Literal["cosine", "dot"] = "cosine",
    itemsize: int = 4,
    index: int = 4,
) -> Work:
    """Give an epoch: of a rating its products, and the moves of both rows along themselves and each other.

    Parameters
    ----------
    ratings : int
        How many.
    rows : int
        The distinct rows that they name, users and items together; each with a bias.
    dim : int
        The length of a row.
    similarity : {"cosine", "dot"}
        Cosine needs the squared norms besides.
    itemsize, index : int
        Bytes of a value, and of the number of a user or an item. Beside bfloat16 the biases and ratings are float32.
    """
    products = 3 if similarity == "cosine" else 1
    # a u + b v takes three operations a value, of either row.
    return Work(
        ratings * (2 * index + max(itemsize, 4)) + 2 * rows * (dim * itemsize + max(itemsize, 4)),
        (2 * products + 6) * dim * ratings,
    )


def cosine_topk(
    queries: int, items: int, dim: int, k: int, *, itemsize: int = 4, item_bytes: int | None = None
) -> Work:
    """Give the best items of each query: a product per pair of them.

    Parameters
    ----------
    queries, items, dim, k : int
        The sizes.
    itemsize : int
        Bytes of a value; a score has at least 4.
    item_bytes : int, optional
        What is read of an item, where that is not all of its values: few queries on the CPU read ``dim + 8``, a byte
        per value and two bounds, and only few items in full.
    """
    item_bytes = dim * itemsize if item_bytes is None else item_bytes
    return Work(
        items * item_bytes + queries * (dim * itemsize + k * (max(itemsize, 4) + INDEX)),
        2 * dim * items * queries,
    )


def embedding_update_(
    gradients: int,
    rows: int,
    dim: int,
    *,
    rule: Literal["sgd", "adagrad", "adam"],
    itemsize: int = 4,
    index: int = INDEX,
) -> Work:
    """Give one step: all gradients are read, and the distinct rows and their state are read and written.

    Parameters
    ----------
    gradients : int
        How many.
    rows : int
        The distinct rows that they name.
    dim : int
        The length of a row.
    rule : {"sgd", "adagrad", "adam"}
        The rule, without penalty or decay.
    itemsize, index : int
        Bytes of a value, and of the number of a row; a value of the state has at least 4.
    """
    wide = max(itemsize, 4)
    state = {"sgd": 0, "adagrad": wide, "adam": 2 * dim * wide + 4}[rule]
    step = {"sgd": 2, "adagrad": 4, "adam": 12}[rule]
    return Work(
        gradients * (dim * itemsize + index) + 2 * rows * (dim * itemsize + state),
        dim * (gradients - rows + step * rows),
    )


def gather(entries: int, rows: int, dim: int, *, itemsize: int = 4, index: int = INDEX) -> Work:
    """Give the rows of a table that entries name, as ``torch.index_select`` does.

    Parameters
    ----------
    entries, rows, dim, itemsize, index
        As for :func:`embedding_update_`, an entry in the place of a gradient.
    """
    return Work(rows * dim * itemsize + entries * (dim * itemsize + index))


def gaussian_posterior(
    tasks: int,
    observations: int,
    rank: int,
    *,
    own_mean: bool = False,
    own_precision: bool = False,
    itemsize: int = 4,
) -> Work:
    """Give the posteriors: Gram matrices, their factors, two substitutions each, and residuals for the evidence.

    Parameters
    ----------
    tasks, observations : int
        How many, the observations of all tasks together.
    rank : int
        The number of features.
    own_mean, own_precision : bool
        Whether each task has a prior mean, or precision, of its own.
    itemsize : int
        Bytes of a value.
    """
    triangle = rank * (rank + 1) // 2  # what is read of a symmetric matrix, or of a factor
    means, priors = tasks if own_mean else 1, tasks if own_precision else 1
    values = observations * (rank + 2) + means * rank + priors * triangle + tasks * (rank + rank * rank + 1)
    # An observation is scaled, and enters its product, its target's and its residual.
    per_observation = rank + 2 * triangle + 2 * rank + 2 * rank
    per_task = rank**3 / 3 + 2 * rank**2 + 2 * triangle  # factor, substitutions, the prior's misfit
    shared = priors * rank**3 / 3 + max(means, priors) * 2 * rank**2  # its determinant, precision times mean
    return Work(
        values * itemsize + (tasks + 1) * INDEX,
        observations * per_observation + tasks * per_task + shared,
    )


def gaussian_posterior_backward(
    tasks: int,
    observations: int,
    rank: int,
    *,
    own_mean: bool = False,
    own_precision: bool = False,
    itemsize: int = 4,
) -> Work:
    """Give the gradients of all arguments, by the factors that the forward pass left.

    Parameters
    ----------
    tasks, observations, rank, own_mean, own_precision, itemsize
        As for :func:`gaussian_posterior`.
    """
    triangle = rank * (rank + 1) // 2
    means, priors = tasks if own_mean else 1, tasks if own_precision else 1
    read = (
        observations * (rank + 2) + means * rank + priors * triangle + 2 * tasks * (rank + triangle) + tasks
    )
    written = observations * (rank + 2) + means * rank + priors * rank * rank
    # Of an observation: its product with the gradient of the precision; three sums; three terms of its own gradient.
    per_observation = 2 * rank**2 + 6 * rank + 5 * rank
    # The way back through the factor, which costs that twice; two substitutions, the prior precision times what reaches
    # the mean, and two outer products for the gradient of either precision, which is added to that of the other.
    per_task = 2 * rank**3 / 3 + 2 * rank**2 + 2 * rank**2 + 9 * triangle
    shared = priors * rank**3  # the inverse of the prior precision
    return Work(
        (read + written) * itemsize + (tasks + 1) * INDEX,
        observations * per_observation + tasks * per_task + shared,
    )


def gaussian_update(tasks: int, rank: int, *, itemsize: int = 4) -> Work:
    """Give an observation more per task: a rotation per column of its factor, and two substitutions.

    Parameters
    ----------
    tasks, rank, itemsize : int
        As for :func:`gaussian_posterior`.
    """
    triangle = rank * (rank + 1) // 2
    return Work(
        tasks * (triangle + rank * rank + 3 * rank + 2) * itemsize,
        tasks * (3 * rank**2 + 2 * rank**2),
    )


def inner_loop(
    supports: Sequence[int],
    queries: Sequence[int],
    widths: Sequence[int],
    steps: int,
    *,
    itemsize: int = 4,
) -> Work:
    """Give the steps of each task and the predictions of its queries.

    The first layer takes the cheaper of two forms, task by task: a weight of its own, or the inner products of its rows
    (``csrc/core/inner_loop_kernel.h``).

    Parameters
    ----------
    supports, queries : sequence of int
        The rows of each task.
    widths : sequence of int
        Inputs, hidden widths and outputs of the layers that adapt.
    steps : int
        How many.
    itemsize : int
        Bytes of a value.
    """
    first, above = widths[0] * widths[1], _products(widths[1:])
    operations = 0.0
    for s, q in zip(supports, queries, strict=True):
        own = (2 * steps * s + q) * first
        gram = _of_inputs(s, q, widths, steps) + _of_coefficients(s, q, widths, steps)
        operations += (steps * 3 * s + q) * above + min(own, gram)
    return Work(
        _inner_bytes(supports, queries, widths, itemsize) + sum(queries) * widths[-1] * itemsize,
        2 * operations,
    )


def inner_loop_backward(
    supports: Sequence[int],
    queries: Sequence[int],
    widths: Sequence[int],
    steps: int,
    *,
    order: Literal[1, 2],
    itemsize: int = 4,
) -> Work:
    """Give the gradient of the parameters, by steps that the forward pass kept.

    Parameters
    ----------
    supports, queries, widths, steps, itemsize
        As for :func:`inner_loop`.
    order : {1, 2}
        Of order 1 it comes from the queries alone. Of order 2 each product of a step that is not with the inputs costs
        two more: three below the gradients and three below the sums, less what only the inputs would need.
    """
    first, above = widths[0] * widths[1], _products(widths[1:])
    operations = 0.0
    for s, q in zip(supports, queries, strict=True):
        operations += q * (first + 2 * above)
        if order == 1:
            continue
        own = 2 * steps * s * first
        gram = s * first + _of_coefficients(s, q, widths, steps)
        operations += steps * 6 * s * above + min(own, gram)
    parameters = sum((width + 1) * height for width, height in pairwise(widths))
    read = supports if order == 2 else [0] * len(supports)
    return Work(
        _inner_bytes(read, queries, widths, itemsize) + (sum(queries) * widths[-1] + parameters) * itemsize,
        2 * operations,
    )


def inner_loop_predict(
    supports: Sequence[int], queries: Sequence[int], widths: Sequence[int], *, itemsize: int = 4
) -> Work:
    """Give predictions by heads that were adapted before, whose first weight is kept as rows and coefficients.

    Parameters
    ----------
    supports, queries, widths, itemsize
        As for :func:`inner_loop`.
    """
    inputs, first = widths[0], widths[0] * widths[1]
    above = _products(widths[1:])
    operations = 0.0
    for s, q in zip(supports, queries, strict=True):
        operations += q * (first + above) + min(s * first, q * s * (inputs + widths[1]))
    parameters = sum((width + 1) * height for width, height in pairwise(widths)) - first
    values = (
        sum(supports) * (inputs + widths[1])
        + len(supports) * parameters
        + first
        + sum(queries) * (inputs + widths[-1])
    )
    return Work(values * itemsize + 2 * (len(supports) + 1) * INDEX, 2 * operations)


def inner_loop_effects(
    supports: Sequence[int],
    queries: Sequence[int],
    widths: Sequence[int],
    steps: int,
    *,
    itemsize: int = 4,
) -> Work:
    """Give the effect of each support rating: steps with all of them, and steps without each.

    What depends on the inputs alone is computed once.

    Parameters
    ----------
    supports, queries, widths, steps, itemsize
        As for :func:`inner_loop`.
    """
    first, above = widths[0] * widths[1], _products(widths[1:])
    operations = 0.0
    for s, q in zip(supports, queries, strict=True):
        own, gram = 0.0, _of_inputs(s, q, widths, steps)
        for rows, times in ((s, 1), (s - 1, s)):
            own += times * (2 * steps * rows + q) * first
            gram += times * _of_coefficients(rows, q, widths, steps)
            operations += times * (steps * 3 * rows + q) * above
        operations += min(own, gram)
    effects = sum(s * q for s, q in zip(supports, queries, strict=True)) * widths[-1]
    return Work(_inner_bytes(supports, queries, widths, itemsize) + effects * itemsize, 2 * operations)


def _of_inputs(s: int, q: int, widths: Sequence[int], steps: int) -> float:
    """Count the products of a task's rows with the first weight, and with the support as far as it has coefficients."""
    inner = (s * (s + 1) / 2 if steps > 1 else 0) + (q * s if steps > 0 else 0)
    return (s + q) * widths[0] * widths[1] + inner * widths[0]


def _of_coefficients(s: int, q: int, widths: Sequence[int], steps: int) -> float:
    """Count those of the inner products with coefficients, which the first step has none of yet."""
    return (max(steps - 1, 0) * s * s + min(steps, 1) * q * s) * widths[1]


def _products(widths: Sequence[int]) -> int:
    return sum(width * height for width, height in pairwise(widths))


def _inner_bytes(
    supports: Sequence[int], queries: Sequence[int], widths: Sequence[int], itemsize: int
) -> int:
    """Count what is read: inputs, targets and weights, the parameters, and where each task's rows begin."""
    parameters = sum((width + 1) * height for width, height in pairwise(widths))
    values = sum(supports) * (widths[0] + 2) + sum(queries) * widths[0] + parameters
    return values * itemsize + 2 * (len(supports) + 1) * INDEX
