"""The floor of each op, against programs that do its work and are counted, and against the sizes of tensors.

Every program counted here gives the op's results, which is checked: so what it does is enough for the op.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, permutations
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from metarec.ops import (
    InnerHead,
    InnerSteps,
    cosine_scores,
    cosine_sgd_epoch_,
    cosine_topk,
    embedding_state,
    embedding_update_,
    gaussian_posterior,
    gaussian_update,
    inner_loop,
    inner_loop_effects,
    inner_loop_predict,
    inner_loop_state,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def roofline() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)  # benchmarks are not installed
        return importlib.import_module("benchmarks.roofline")


@pytest.fixture(scope="module")
def timing(roofline: ModuleType) -> ModuleType:
    return sys.modules[roofline.Rates.__module__]


class Counted(float):
    """A number that counts what is added and multiplied."""

    operations = 0


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv"):

    def _counted(self: float, other: float, plain: Any = getattr(float, f"__{_name}__")) -> Any:
        if not isinstance(other, int | float):
            return NotImplemented  # an array, which comes back with its values
        Counted.operations += 1
        return Counted(plain(self, other))

    setattr(Counted, f"__{_name}__", _counted)


def counted(program: Callable[..., Any], *tensors: Tensor) -> tuple[int, list[Tensor]]:
    """Run a program on arrays of such numbers; give the operations and the results."""
    arrays = [np.vectorize(Counted, otypes=[object])(tensor.detach().numpy()) for tensor in tensors]
    Counted.operations = 0
    results = program(*arrays)
    operations = Counted.operations
    return operations, [torch.from_numpy(np.asarray(result, float)) for result in results]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def nbytes(*tensors: Tensor) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def triangle(matrix: Tensor) -> Tensor:
    """Give what is read of a matrix whose lower triangle is."""
    row, column = torch.tril_indices(matrix.size(-2), matrix.size(-1))
    return matrix[..., row, column]


# Bayesian regression.


def factor(matrix: Any) -> Any:
    lower = np.tril(matrix)
    for k in range(len(lower)):
        lower[k, k] = Counted(math.sqrt(lower[k, k]))
        lower[k + 1 :, k] = lower[k + 1 :, k] / lower[k, k]
        for i in range(k + 1, len(lower)):
            lower[i, k + 1 : i + 1] = lower[i, k + 1 : i + 1] - lower[i, k] * lower[k + 1 : i + 1, k]
    return lower


def forward(lower: Any, right: Any) -> Any:
    solved = right.copy()
    for k in range(len(lower)):
        solved[k] = solved[k] / lower[k, k]
        solved[k + 1 :] = solved[k + 1 :] - lower[k + 1 :, k] * solved[k]
    return solved


def back(lower: Any, right: Any) -> Any:
    solved = right.copy()
    for k in reversed(range(len(lower))):
        solved[k] = solved[k] / lower[k, k]
        solved[:k] = solved[:k] - lower[k, :k] * solved[k]
    return solved


def add_outer(lower: Any, left: Any, right: Any) -> None:
    for i in range(len(lower)):
        lower[i, : i + 1] = lower[i, : i + 1] + left[i] * right[: i + 1]


def form(lower: Any, x: Any) -> Any:
    """x^T M x, of which the half below the diagonal is multiplied once."""
    return sum(x[i] * (lower[i, i] * x[i] + 2 * np.dot(lower[i, :i], x[:i])) for i in range(len(x)))


def inverse(lower: Any) -> Any:
    """Give the lower triangle of the inverse of a factored matrix."""
    rank = len(lower)
    turned = np.zeros((rank, rank), object)  # the rows are the columns of the factor's inverse
    for k, unit in enumerate(np.eye(rank)):
        turned[k, k:] = forward(lower[k:, k:], unit[k:].astype(object))
    result = np.zeros((rank, rank), object)
    for i in range(rank):
        for j in range(i + 1):
            result[i, j] = np.dot(turned[i, i:], turned[j, i:])
    return result


def log_determinant(lower: Any) -> float:
    return 2 * sum(math.log(lower[k, k]) for k in range(len(lower)))


def posterior(f: Any, y: Any, w: Any, m: Any, p: Any) -> tuple[Any, Any, Any]:
    """Give those of tasks ``[T, n, r]`` that share their prior."""
    shift, prior_determinant = p @ m, log_determinant(factor(p))
    means, factors, evidences = [], [], []
    for task_f, task_y, task_w in zip(f, y, w, strict=True):
        total, right = np.tril(p), shift.copy()
        for x, target, precision in zip(task_f, task_y, task_w, strict=True):
            scaled = precision * x
            add_outer(total, scaled, x)
            right = right + target * scaled
        lower = factor(total)
        mean = back(lower, forward(lower, right))
        misfit = form(p, mean - m)
        for x, target, precision in zip(task_f, task_y, task_w, strict=True):
            residual = target - np.dot(x, mean)
            misfit = misfit + precision * residual * residual - math.log(precision / (2 * math.pi))
        means.append(mean)
        factors.append(lower)
        evidences.append((prior_determinant - log_determinant(lower) - misfit) / 2)
    return means, factors, evidences


def reverse_factor(lower: Any, bar: Any) -> Any:
    """Give the gradient of the matrix's lower triangle, of that of its factor."""
    bar = bar.copy()
    for k in reversed(range(len(lower))):
        for i in range(k + 1, len(lower)):
            own = bar[i, k + 1 : i + 1]
            bar[i, k] = bar[i, k] - np.dot(own, lower[k + 1 : i + 1, k])
            bar[k + 1 : i + 1, k] = bar[k + 1 : i + 1, k] - own * lower[i, k]
        bar[k + 1 :, k] = bar[k + 1 :, k] / lower[k, k]
        bar[k, k] = (bar[k, k] - np.dot(lower[k + 1 :, k], bar[k + 1 :, k])) / lower[k, k] / 2
    return bar


def regression(tasks: int, observations: int, rank: int) -> tuple[Tensor, ...]:
    f, y = normal(tasks, observations, rank), normal(tasks, observations, seed=1)
    w = normal(tasks, observations, seed=2).square() + 0.5
    root = normal(rank, rank, seed=3) / rank**0.5
    return f, y, w, normal(rank, seed=4), root @ root.mT + torch.eye(rank, dtype=torch.float64)


def flat(f: Tensor, y: Tensor, w: Tensor, m: Tensor, p: Tensor) -> tuple[Tensor, ...]:
    tasks, observations, rank = f.shape
    offsets = torch.arange(tasks + 1) * observations
    return f.reshape(-1, rank), y.flatten(), w.flatten(), offsets, m, p


@pytest.mark.parametrize(
    ("tasks", "observations", "rank", "tolerance"), [(2, 0, 48, 0.03), (1, 400, 16, 0.02), (2, 10, 32, 0.03)]
)
def test_gaussian_posterior(roofline, tasks, observations, rank, tolerance) -> None:
    given = regression(tasks, observations, rank)
    work = roofline.gaussian_posterior(tasks, tasks * observations, rank, itemsize=8)
    operations, (mean, cholesky, evidence) = counted(posterior, *given)
    assert work.operations == pytest.approx(operations, rel=tolerance)

    f, y, w, offsets, m, p = flat(*given)
    found = gaussian_posterior(f, y, w, offsets, m, p)
    torch.testing.assert_close((mean, cholesky, evidence), tuple(found))
    assert work.bytes == nbytes(f, y, w, offsets, m, triangle(p), *found)


@pytest.mark.parametrize(
    ("tasks", "observations", "rank", "tolerance"), [(3, 0, 48, 0.05), (1, 200, 16, 0.03)]
)
def test_gaussian_posterior_backward(roofline, tasks, observations, rank, tolerance) -> None:
    f, y, w, offsets, m, p = flat(*regression(tasks, observations, rank))
    arguments = [tensor.requires_grad_() for tensor in (f, y, w, m, p)]
    found = gaussian_posterior(f, y, w, offsets, m, p)
    bars = normal(tasks, rank, seed=5), normal(tasks, rank, rank, seed=6).tril(), normal(tasks, seed=7)
    gradients = torch.autograd.grad(list(found), arguments, bars)

    def program(mean, lower, mean_bar, lower_bar, e, f, y, w, m, p) -> tuple[Any, ...]:  # type: ignore[no-untyped-def]
        to_p, to_m = sum(e) * inverse(factor(p)), np.zeros(rank, object)
        to_f, to_y, to_w = (np.zeros(given.shape, object) for given in (f, y, w))
        for t in range(tasks):
            bar = lower_bar[t].copy()
            for k in range(rank):
                bar[k, k] = bar[k, k] - e[t] / lower[t][k, k]
            twice = reverse_factor(
                lower[t], bar
            )  # the gradient of the posterior precision, as one of symmetric ones
            for k in range(rank):
                twice[k, k] = 2 * twice[k, k]
            solved, deviation = back(lower[t], forward(lower[t], mean_bar[t])), mean[t] - m
            misfit = solved + e[t] / 2 * deviation
            add_outer(to_p, -misfit, deviation)
            add_outer(to_p, -deviation, misfit)
            for i in range(rank):
                to_p[i, : i + 1] = to_p[i, : i + 1] + twice[i, : i + 1]
            add_outer(twice, -solved, mean[t])
            add_outer(twice, -mean[t], solved)
            to_m = to_m + p @ (solved + e[t] * deviation)
            full = np.tril(twice) + np.tril(twice, -1).T  # zeros beside it: no sums
            Counted.operations -= rank * rank
            for j in range(offsets[t], offsets[t + 1]):
                pushed, residual = full @ f[j], y[j] - np.dot(f[j], mean[t])
                along, towards = np.dot(f[j], solved), e[t] * residual
                to_f[j] = w[j] * pushed + (w[j] * y[j]) * solved + (w[j] * towards) * mean[t]
                to_y[j] = w[j] * (along - towards)
                to_w[j] = (
                    np.dot(f[j], pushed) / 2 + y[j] * along + e[t] * (1 / w[j] - residual * residual) / 2
                )
        to_p = to_p / 2
        return to_f, to_y, to_w, to_m, to_p

    operations, results = counted(program, *found[:2], *bars, *arguments)
    expected = list(gradients)
    results[4], expected[4] = results[4].tril(), expected[4].tril()
    torch.testing.assert_close(results, expected)
    work = roofline.gaussian_posterior_backward(tasks, tasks * observations, rank, itemsize=8)
    assert work.operations == pytest.approx(operations, rel=tolerance)
    read = (
        f, y, w, offsets, m, triangle(p), found.mean, triangle(found.cholesky), bars[0], triangle(bars[1]), bars[2]
    )  # fmt: skip
    assert work.bytes == nbytes(*read, *gradients)


def test_gaussian_posterior_with_priors_of_its_own(roofline) -> None:
    f, y, w, offsets, m, p = flat(*regression(3, 5, 8))
    m, p = m.expand(3, 8).contiguous().requires_grad_(), p.expand(3, 8, 8).contiguous().requires_grad_()
    found = gaussian_posterior(f, y, w, offsets, m, p)
    own = {"own_mean": True, "own_precision": True, "itemsize": 8}
    read = nbytes(f, y, w, offsets, m, triangle(p))
    assert roofline.gaussian_posterior(3, 15, 8, **own).bytes == read + nbytes(*found)
    gradients = torch.autograd.grad(found.log_evidence.sum(), [m, p])
    back = nbytes(found.mean, triangle(found.cholesky))
    bars = back + nbytes(found.log_evidence)
    written = nbytes(f, y, w, *gradients)
    assert roofline.gaussian_posterior_backward(3, 15, 8, **own).bytes == read + back + bars + written
    alone = [roofline.gaussian_posterior(1, 5, 8), roofline.gaussian_posterior_backward(1, 5, 8)]
    together = [
        roofline.gaussian_posterior(3, 15, 8, **own),
        roofline.gaussian_posterior_backward(3, 15, 8, **own),
    ]
    assert [work.operations for work in together] == pytest.approx([3 * work.operations for work in alone])


def test_gaussian_update(roofline) -> None:
    rank = 48
    root = normal(2, rank, rank) / rank**0.5
    cholesky = torch.linalg.cholesky(root @ root.mT + torch.eye(rank, dtype=torch.float64))
    mean, f, y = normal(2, rank, seed=1), normal(2, rank, seed=2), normal(2, seed=3)
    w = normal(2, seed=4).square()

    def program(mean, lower, f, y, w) -> tuple[Any, Any]:  # type: ignore[no-untyped-def]
        for t in range(2):
            x = Counted(math.sqrt(w[t])) * f[t]
            for k in range(rank):
                pivot = Counted(math.sqrt(lower[t][k, k] * lower[t][k, k] + x[k] * x[k]))
                cosine, sine, inverse = pivot / lower[t][k, k], x[k] / lower[t][k, k], lower[t][k, k] / pivot
                below = (lower[t][k + 1 :, k] + sine * x[k + 1 :]) * inverse
                x[k + 1 :] = cosine * x[k + 1 :] - sine * below
                lower[t][k, k], lower[t][k + 1 :, k] = pivot, below
            scale = w[t] * (y[t] - np.dot(f[t], mean[t]))
            mean[t] = mean[t] + scale * back(lower[t], forward(lower[t], f[t]))
        return mean, lower

    operations, results = counted(program, mean, cholesky, f, y, w)
    found = gaussian_update(mean, cholesky, f, y, w)
    torch.testing.assert_close(results, list(found))
    work = roofline.gaussian_update(2, rank, itemsize=8)
    assert work.operations == pytest.approx(operations, rel=0.1)  # 15 r beside 5 r^2
    assert work.bytes == nbytes(mean, triangle(cholesky), f, y, w, *found)


# Tables.


def pairs() -> tuple[Tensor, ...]:
    """Pairs that name 5 rows of 6 and 4 of 5."""
    return (
        normal(6, 64),
        normal(5, 64, seed=1),
        torch.tensor([0, 1, 1, 3, 4, 5, 5, 5, 1, 0]),
        torch.tensor([0, 0, 2, 3, 4, 4, 2, 0, 4, 3]),
    )


def test_cosine_scores(roofline) -> None:
    left, right, rows, others = pairs()
    named = len(rows.unique()) + len(others.unique())
    bar = normal(len(rows), seed=2)

    def scores(left, right) -> tuple[Any, ...]:  # type: ignore[no-untyped-def]
        squares = [
            {row: np.dot(t[row], t[row]) for row in set(r.tolist())}
            for t, r in ((left, rows), (right, others))
        ]
        return (
            [
                np.dot(left[i], right[j]) / Counted(math.sqrt(squares[0][i] * squares[1][j]))
                for i, j in zip(rows.tolist(), others.tolist(), strict=True)
            ],
        )

    def gradients(left, right, bar, scores, norms, other_norms) -> tuple[Any, ...]:  # type: ignore[no-untyped-def]
        results = []
        for own, other, own_rows, other_rows, n, o in (
            (left, right, rows, others, norms, other_norms),
            (right, left, others, rows, other_norms, norms),
        ):
            to = np.zeros(own.shape, object)
            for row in set(own_rows.tolist()):
                named = (own_rows == row).nonzero()[:, 0].tolist()
                terms = [bar[p] / (n[row] * o[other_rows[p]]) * other[other_rows[p]] for p in named]
                along = np.dot(bar[named], scores[named])
                to[row] = sum(terms[1:], start=terms[0]) - along / (n[row] * n[row]) * own[row]
            results.append(to)
        return tuple(results)

    operations, (expected,) = counted(scores, left, right)
    tables = left.requires_grad_(), right.requires_grad_()
    found = cosine_scores(*tables, rows, others)
    torch.testing.assert_close(found, expected)
    sizes = len(rows), named, 64
    work = roofline.cosine_scores(*sizes, itemsize=8)
    assert work.operations == pytest.approx(operations, rel=0.03)
    read = nbytes(left[rows.unique()], right[others.unique()], rows, others)
    assert work.bytes == read + nbytes(found)

    dense = torch.autograd.grad(found, tables, bar)
    norms = left.norm(dim=1), right.norm(dim=1)
    operations, results = counted(gradients, left, right, bar, found, *norms)
    torch.testing.assert_close(results, list(dense))
    work = roofline.cosine_scores_backward(*sizes, dense=11, itemsize=8)
    assert work.operations == pytest.approx(operations, rel=0.03)
    assert work.bytes == read + nbytes(bar, *dense)
    scores_of = cosine_scores(*tables, rows, others, sparse_grad=True)
    sparse = [gradient.coalesce() for gradient in torch.autograd.grad(scores_of, tables, bar)]
    written = nbytes(*(part for gradient in sparse for part in (gradient.indices(), gradient.values())))
    assert roofline.cosine_scores_backward(*sizes, itemsize=8).bytes == read + nbytes(bar) + written

    half, narrow = (
        [table.detach().bfloat16().requires_grad_() for table in tables],
        (rows.int(), others.int()),
    )
    moved = nbytes(half[0][rows.unique()], half[1][others.unique()], *narrow)
    found = cosine_scores(*half, *narrow)
    assert roofline.cosine_scores(*sizes, itemsize=2, index=4).bytes == moved + nbytes(found)
    dense = torch.autograd.grad(found, half, bar.float())
    work = roofline.cosine_scores_backward(*sizes, dense=11, itemsize=2, index=4)
    assert work.bytes == moved + nbytes(bar.float(), *dense)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_cosine_sgd_epoch(roofline, similarity) -> None:
    users, items, biases = (
        normal(3, 64),
        normal(2, 64, seed=1),
        (torch.zeros(3).double(), torch.zeros(2).double()),
    )
    head = torch.tensor([1.5, 3.0]).double()
    user, item, rating = (
        torch.tensor([0, 1, 2]).int(),
        torch.tensor([0, 1, 1]).int(),
        torch.tensor([4, 2, 5.0]),
    )
    arguments = (users, items, *biases, user, item, rating.double())
    lr, l2 = 0.1, 0.02
    orders = []

    def program(order: tuple[int, ...]) -> Callable[..., Any]:
        def steps(users, items, user_biases, item_biases, head, rating) -> tuple[Any, Any]:  # type: ignore[no-untyped-def]
            for step in order:
                i, j = int(user[step]), int(item[step])
                u, v = users[i], items[j]
                product, along, along_other = np.dot(u, v), 0, 0
                factor = head[0]
                if similarity == "cosine":
                    square, other = np.dot(u, u), np.dot(v, v)
                    inverse = 1 / Counted(math.sqrt(square * other))
                    product, factor = product * inverse, factor * inverse
                    along, along_other = product / square * head[0], product / other * head[0]
                error = head[1] + head[0] * product + user_biases[i] + item_biases[j] - rating[step]
                push = lr * error
                keep, keep_other = 1 - lr * l2 + push * along, 1 - lr * l2 + push * along_other
                users[i], items[j] = keep * u - push * factor * v, keep_other * v - push * factor * u
                user_biases[i] = user_biases[i] - lr * (error + l2 * user_biases[i])
                item_biases[j] = item_biases[j] - lr * (error + l2 * item_biases[j])
            return users, items

        return steps

    for order in permutations(range(3)):
        operations, results = counted(program(order), users, items, *biases, head, rating)
        orders.append(results)
    learnt = [tensor.clone() for tensor in arguments[:4]]
    cosine_sgd_epoch_(*learnt, head, user, item, arguments[6], lr=lr, l2=l2, similarity=similarity, head_lr=0)
    assert any(
        torch.allclose(users, learnt[0]) and torch.allclose(items, learnt[1]) for users, items in orders
    )
    work = roofline.cosine_sgd_epoch_(3, 5, 64, similarity=similarity, itemsize=8)
    assert work.operations == pytest.approx(
        operations, rel=0.06
    )  # some 30 per rating do not depend on the length
    assert work.bytes == nbytes(*arguments) + nbytes(*learnt)
    half = [table.bfloat16() for table in (users, items)] + [bias.float() for bias in biases]
    cosine_sgd_epoch_(*half, head.float(), user, item, rating, lr=lr, l2=l2, similarity=similarity)
    work = roofline.cosine_sgd_epoch_(3, 5, 64, similarity=similarity, itemsize=2)
    assert work.bytes == 2 * nbytes(*half) + nbytes(user, item, rating)


def test_cosine_topk(roofline) -> None:
    queries, items = normal(7, 24), normal(50, 24, seed=1)
    found = cosine_topk(queries, items, 3, similarity="dot")
    with FlopCounterMode(display=False) as counter:
        scores, rows = (queries @ items.mT).topk(3)
    torch.testing.assert_close(tuple(found), (scores, rows))
    work = roofline.cosine_topk(7, 50, 24, 3, itemsize=8)
    assert work == roofline.Work(nbytes(queries, items, *found), counter.get_total_flops())
    codes, bounds = torch.empty(50, 24, dtype=torch.int8), torch.empty(50, 2)
    coded = roofline.cosine_topk(7, 50, 24, 3, itemsize=8, item_bytes=24 + 8)
    assert coded.bytes == nbytes(codes, bounds, queries, *found)
    narrow = queries.bfloat16(), items.bfloat16()
    found = cosine_topk(*narrow, 3, similarity="dot")
    assert roofline.cosine_topk(7, 50, 24, 3, itemsize=2).bytes == nbytes(*narrow, *found)


@pytest.mark.parametrize("rule", ["sgd", "adagrad", "adam"])
def test_embedding_update(roofline, rule) -> None:
    dim, rows = 64, torch.tensor([4, 1, 4, 4, 0])
    named = rows.unique()
    table, gradients = normal(6, dim), normal(5, dim, seed=1)
    state = embedding_state(table, rule)
    lr, eps, beta1, beta2 = 0.1, 1e-8, 0.9, 0.999

    def program(table, gradients, *means) -> tuple[Any]:  # type: ignore[no-untyped-def]
        for row in named.tolist():
            own = (rows == row).nonzero()[:, 0].tolist()
            g = gradients[own[0]]
            for other in own[1:]:
                g = g + gradients[other]
            if rule == "sgd":
                table[row] = table[row] - lr * g
            elif rule == "adagrad":
                table[row] = table[row] - lr / (math.sqrt(np.dot(g, g) / dim) + eps) * g
            else:  # its first step
                mean = beta1 * means[0][row] + (1 - beta1) * g
                square = beta2 * means[1][row] + (1 - beta2) * (g * g)
                root = np.vectorize(lambda x: Counted(math.sqrt(x)), otypes=[object])(
                    square * (1 / (1 - beta2))
                )
                table[row] = table[row] - lr / (1 - beta1) * mean / (root + eps)
        return (table,)

    operations, (expected,) = counted(program, table, gradients, *state.values())
    whole = [table, *state.values()]
    moved = 2 * nbytes(*(tensor[named] for tensor in whole)) + nbytes(gradients, rows)
    embedding_update_(table, rows, gradients, rule=rule, state=state, lr=lr)
    torch.testing.assert_close(table, expected)
    work = roofline.embedding_update_(5, 3, dim, rule=rule, itemsize=8)
    assert work.operations == pytest.approx(operations, rel=0.02)
    assert work.bytes == moved
    narrow = [table.bfloat16(), *embedding_state(table.bfloat16(), rule).values()]
    moved = 2 * nbytes(*(tensor[named] for tensor in narrow)) + nbytes(gradients.bfloat16(), rows)
    assert roofline.embedding_update_(5, 3, dim, rule=rule, itemsize=2).bytes == moved


def test_gather(roofline) -> None:
    table, rows = normal(6, 5).float(), torch.tensor([4, 1, 4, 4, 0])
    found = table.index_select(0, rows)
    assert roofline.gather(5, 3, 5) == roofline.Work(nbytes(table[rows.unique()], rows, found))


# The inner loop.

WIDTHS = (10, 12, 8, 1)
RATE = 0.1


@dataclass
class Own:
    """A first layer of the task's own."""

    x: Tensor
    asked: Tensor
    weight: Tensor
    bias: Tensor

    def sums(self) -> Tensor:
        return self.x @ self.weight.mT + self.bias

    def move(self, gradient: Tensor) -> None:
        self.weight = self.weight - RATE * (gradient.mT @ self.x)
        self.bias = self.bias - RATE * gradient.sum(0)

    def asked_sums(self) -> Tensor:
        return self.asked @ self.weight.mT + self.bias

    def of_rows(self, rows: Tensor) -> Own:
        return Own(self.x[rows], self.asked, self.weight, self.bias)


@dataclass
class Gram:
    """The same by coefficients of the support, of which the products with all rows are known."""

    start: Tensor
    asked_start: Tensor
    products: Tensor | None
    asked_products: Tensor
    coefficients: Tensor | None = None

    def sums(self) -> Tensor:
        return self.start if self.coefficients is None else self.start - self.products @ self.coefficients

    def move(self, gradient: Tensor) -> None:
        taken = RATE * gradient
        self.coefficients = taken if self.coefficients is None else self.coefficients + taken

    def asked_sums(self) -> Tensor:
        return self.asked_start - self.asked_products @ self.coefficients

    def of_rows(self, rows: Tensor) -> Gram:
        return Gram(
            self.start[rows], self.asked_start, self.products[rows][:, rows], self.asked_products[:, rows]
        )


class Loop:
    """Steps on a head of tanh for one task, in plain products."""

    def __init__(self, support: int, query: int, steps: int) -> None:
        self.steps = steps
        self.x, self.asked = normal(support, WIDTHS[0]), normal(query, WIDTHS[0], seed=1)
        self.y = normal(support, seed=2)
        self.layers = [
            (normal(out, width, seed=3) / width**0.5, normal(out, seed=4)) for width, out in pairwise(WIDTHS)
        ]
        self.parameters = [parameter.requires_grad_() for layer in self.layers for parameter in layer]
        self.head = InnerHead(self.layers, activation="tanh")
        offsets = [torch.tensor([0, rows]) for rows in (support, query)]
        self.arguments = (
            self.head, InnerSteps(steps, RATE), self.x, self.y, offsets[0], self.asked, offsets[1]
        )  # fmt: skip
        """Those of the op."""
        self.sizes = [support], [query], WIDTHS, steps
        """Those of the formula."""
        self.symmetric = (support * support - support) * WIDTHS[0] if steps > 1 else 0
        """What a product with itself repeats."""

    def first(self, form: type[Own | Gram]) -> Own | Gram:
        weight, bias = self.layers[0]
        if form is Own:
            return Own(self.x, self.asked, weight, bias)
        starts = [rows @ weight.mT + bias for rows in (self.x, self.asked)]
        products = self.x @ self.x.mT + 1 if self.steps > 1 else None  # the first step has no coefficients
        return Gram(*starts, products, self.asked @ self.x.mT + 1)

    def predictions(self, first: Own | Gram, y: Tensor, order: int) -> Tensor:
        """Take the steps, which move the first layer that is given."""
        above = self.layers[1:]
        for _ in range(self.steps):
            sums = [first.sums()]
            for weight, bias in above:
                sums.append(sums[-1].tanh() @ weight.mT + bias)
            gradient = (sums.pop() - y[:, None]) / len(y)
            moved = []
            for weight, bias in reversed(above):
                inputs = sums.pop().tanh()
                taken = constant(order, gradient.mT @ inputs), constant(order, gradient.sum(0))
                moved.insert(0, (weight - RATE * taken[0], bias - RATE * taken[1]))
                gradient = gradient @ weight * (1 - inputs.square())
            first.move(constant(order, gradient))
            above = moved
        return self.through(first.asked_sums(), above)

    def through(self, sums: Tensor, above: Any) -> Tensor:
        for weight, bias in above:
            sums = sums.tanh() @ weight.mT + bias
        return sums[:, 0]


def constant(order: int, gradient: Tensor) -> Tensor:
    return gradient.detach() if order == 1 else gradient


def flops(program: Callable[[], Any]) -> tuple[int, Any]:
    with FlopCounterMode(display=False) as counter:
        result = program()
    return counter.get_total_flops(), result


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    ("support", "query", "steps", "less", "more"),
    [(5, 7, 2, Gram, Own), (5, 2, 1, Gram, Own), (40, 7, 3, Own, Gram)],
)
def test_inner_loop(roofline, support, query, steps, less, more, order) -> None:
    loop, bar = Loop(support, query, steps), normal(query, seed=9)
    native = inner_loop(*loop.arguments, order=order)
    native_gradients = torch.autograd.grad(native, loop.parameters, bar)
    there, back = {}, {}
    for form in (less, more):
        there[form], predictions = flops(lambda form=form: loop.predictions(loop.first(form), loop.y, order))
        back[form], gradients = flops(partial(torch.autograd.grad, predictions, loop.parameters, bar))
        torch.testing.assert_close(native, predictions)
        torch.testing.assert_close(native_gradients, gradients)
    there[Gram] -= loop.symmetric
    assert there[less] < there[more] and back[less] <= back[more]
    assert roofline.inner_loop(*loop.sizes).operations == there[less]
    assert roofline.inner_loop_backward(*loop.sizes, order=order).operations == back[less]


def test_bytes_of_inner_loop(roofline) -> None:
    supports, queries = [3, 0, 8], [2, 5, 1]
    offsets = [torch.tensor([0, *sizes]).cumsum(0) for sizes in (supports, queries)]
    loop = Loop(11, 8, 2)
    arguments = loop.head, InnerSteps(2, RATE), loop.x, loop.y, offsets[0]
    asked = loop.asked, offsets[1]
    predictions, weights = inner_loop(*arguments, *asked), torch.ones_like(loop.y)
    support = nbytes(loop.x, loop.y, weights)
    shared = nbytes(*asked, offsets[0], *loop.parameters)
    sizes, steps = (supports, queries, WIDTHS), 2
    moved = support + shared + nbytes(predictions)
    assert roofline.inner_loop(*sizes, steps, itemsize=8).bytes == moved
    gradients = nbytes(*loop.parameters)
    for order, read in ((2, support), (1, 0)):
        back = roofline.inner_loop_backward(*sizes, steps, order=order, itemsize=8)
        assert back.bytes == read + shared + nbytes(predictions) + gradients
    effects = inner_loop_effects(*arguments, *asked)
    moved = support + shared + nbytes(effects)
    assert roofline.inner_loop_effects(*sizes, steps, itemsize=8).bytes == moved
    state = inner_loop_state(*arguments)
    predictions = inner_loop_predict(loop.head, state, offsets[0], *asked)
    moved = nbytes(*state, loop.parameters[0], *asked, offsets[0], predictions)
    assert roofline.inner_loop_predict(*sizes, itemsize=8).bytes == moved


@pytest.mark.parametrize(("support", "query", "compact"), [(5, 2, True), (30, 60, False)])
def test_inner_loop_predict(roofline, support, query, compact) -> None:
    loop = Loop(support, query, 2)
    state = inner_loop_state(*loop.arguments[:5])
    native = inner_loop_predict(loop.head, state, *loop.arguments[4:])
    weight, bias = loop.layers[0]
    first, above = state.coefficients, []
    begin = len(bias)
    for w, b in loop.layers[1:]:
        own = state.parameters[0, begin:]
        above.append((own[: w.numel()].view(w.shape), own[w.numel() : w.numel() + len(b)]))
        begin += w.numel() + len(b)

    def program(compact: bool) -> Tensor:
        if compact:
            sums = loop.asked @ weight.mT - (loop.asked @ state.rows.mT) @ first
        else:
            sums = loop.asked @ (weight - first.mT @ state.rows).mT
        return loop.through(sums + state.parameters[0, : len(bias)], above)

    counts = {}
    with torch.no_grad():
        for form in (True, False):
            counts[form], predictions = flops(partial(program, form))
            torch.testing.assert_close(native, predictions)
    assert counts[compact] < counts[not compact]
    assert roofline.inner_loop_predict(*loop.sizes[:3]).operations == counts[compact]


@pytest.mark.parametrize(("support", "less", "more"), [(5, Gram, Own), (32, Own, Gram)])
def test_inner_loop_effects(roofline, support, less, more) -> None:
    loop = Loop(support, 4, 3)
    native = inner_loop_effects(*loop.arguments)

    def program(form: type[Own | Gram]) -> Tensor:
        first, all_rows = loop.first(form), torch.arange(support)
        kept = [all_rows, *(all_rows[all_rows != left_out] for left_out in all_rows)]
        whole, *without = (loop.predictions(first.of_rows(rows), loop.y[rows], order=1) for rows in kept)
        return torch.cat([whole - other for other in without])

    counts = {}
    with torch.no_grad():
        for form in (less, more):
            counts[form], effects = flops(partial(program, form))
            torch.testing.assert_close(native, effects)
    counts[Gram] -= loop.symmetric
    assert counts[less] < counts[more]
    assert roofline.inner_loop_effects(*loop.sizes).operations == counts[less]


# Rates.


def test_the_floor_is_of_what_takes_longer(roofline, timing) -> None:
    rates = timing.Rates(bytes_per_second=10.0, operations_per_second=100.0)
    assert roofline.Work(50, 100).seconds(rates) == 5
    assert roofline.Work(50, 1000).seconds(rates) == 10
    assert (roofline.Work(1, 2) + roofline.Work(3, 4)) * 2 == roofline.Work(8, 12)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({"copy": 0.5, "small copy": 1e-6}, 1e9),  # a cache holds the work
        ({"copy": 0.5, "small copy": 1e-3}, 2**28),  # the call takes longer than to copy
    ],
)
def test_rates(timing, monkeypatch, times, expected) -> None:
    def medians(calls: Any, *, seconds: float, device: torch.device) -> dict[str, float]:
        for call in calls.values():
            call()
        return {**times, "product": 2.0}

    monkeypatch.setattr(timing, "medians", medians)
    rates = timing.Rates.measure(bytes=1000)
    assert rates == timing.Rates(pytest.approx(expected), 768**3)


def test_the_clock_of_a_device_counts(timing, monkeypatch) -> None:
    """Each call takes 3 ms on it, of which the processor sees nothing."""
    clock = SimpleNamespace(now=0.0)

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.recorded = self.seen = None

        def record(self) -> None:
            self.recorded = clock.now

        def synchronize(self) -> None:
            self.seen = self.recorded

        def elapsed_time(self, end: Event) -> float:
            return end.seen - self.recorded  # milliseconds, of an event that was waited for

    def call() -> None:
        clock.now += 3.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    taken = timing.medians({"call": call}, seconds=0, device=torch.device("cuda"))
    assert taken == {"call": pytest.approx(3e-3)}
