"""``embedding_update_`` beside torch's SparseAdam, and the row-wise Adagrad of FBGEMM and in torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import count, repeat

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import roofline
from benchmarks.ops import Case
from benchmarks.timing import CPU, Call
from metarec.ops import embedding_state, embedding_update_

ROWS, DIM, ENTRIES, EXPONENT = 1_000_000, 64, 65_536, 1.3


def cases(device: torch.device = CPU) -> Iterator[Case]:
    """Gradients of rows as unequally popular as items are: each of our steps, and theirs."""
    random = np.random.default_rng(0)
    rank = random.zipf(EXPONENT, 2 * ENTRIES)
    rank = rank[rank <= ROWS][:ENTRIES]
    rows = torch.from_numpy(random.permutation(ROWS)[rank - 1]).to(device)
    gradients = 1e-2 * torch.randn(ENTRIES, DIM, generator=torch.Generator().manual_seed(0)).to(device)
    distinct = len(rows.unique())
    name = f"{ENTRIES:,} Zipf({EXPONENT}) gradients into {ROWS:,} × {DIM}, {distinct:,} distinct rows"
    yield adam(name, rows, gradients, distinct)
    yield adam(name, rows, gradients, distinct, torch.bfloat16)
    yield adagrad(name, rows, gradients, distinct)
    yield adagrad_with_forward(name, rows, gradients, distinct)


def adam(
    name: str, rows: Tensor, gradients: Tensor, distinct: int, stored: torch.dtype = torch.float32
) -> Case:
    """Give the step of Adam, with stochastic rounding where the table is of bfloat16; theirs is of float32."""
    table, given = gradients.new_zeros(ROWS, DIM, dtype=stored), gradients.to(stored)
    state = embedding_state(table, "adam")
    seeds = count() if stored == torch.bfloat16 else repeat(None)
    theirs = nn.Parameter(gradients.new_zeros(ROWS, DIM))
    optimizer = torch.optim.SparseAdam([theirs], lr=1e-3)
    theirs.grad = torch.sparse_coo_tensor(rows[None], gradients, theirs.shape, check_invariants=False)
    return Case(
        f"Adam{' of bfloat16' if stored == torch.bfloat16 else ''}, {name}",
        ours=lambda: embedding_update_(
            table, rows, given, rule="adam", state=state, lr=1e-3, seed=next(seeds)
        ),
        work=roofline.embedding_update_(ENTRIES, distinct, DIM, rule="adam", itemsize=stored.itemsize),
        peers={"torch SparseAdam": optimizer.step},
        least_ratio={"torch SparseAdam": 10},
    )


def adagrad(name: str, rows: Tensor, gradients: Tensor, distinct: int) -> Case:
    """Give the step of row-wise Adagrad alone."""
    table = gradients.new_zeros(ROWS, DIM)
    state = embedding_state(table, "adagrad")
    return Case(
        f"row-wise Adagrad, {name}",
        ours=lambda: embedding_update_(table, rows, gradients, rule="adagrad", state=state, lr=1e-2),
        work=roofline.embedding_update_(ENTRIES, distinct, DIM, rule="adagrad"),
        peers={
            **({"fbgemm-gpu-cpu": fbgemm_update(rows, gradients)} if rows.device.type == "cpu" else {}),
            "torch coalesce + index_add": torch_adagrad(rows, gradients),
        },
    )


def adagrad_with_forward(name: str, rows: Tensor, gradients: Tensor, distinct: int) -> Case:
    """Give a gather of the rows and the step of row-wise Adagrad.

    What is gathered goes to a tensor that is kept, so that no memory is asked of the system; the module of FBGEMM
    makes one anew each time.
    """
    table = gradients.new_zeros(ROWS, DIM)
    state = embedding_state(table, "adagrad")
    gathered = torch.zeros_like(gradients)

    def ours() -> None:
        torch.index_select(table, 0, rows, out=gathered)
        embedding_update_(table, rows, gradients, rule="adagrad", state=state, lr=1e-2)

    return Case(
        f"gather and row-wise Adagrad, {name}",
        ours=ours,
        work=roofline.gather(ENTRIES, distinct, DIM)
        + roofline.embedding_update_(ENTRIES, distinct, DIM, rule="adagrad"),
        peers={"fbgemm-gpu-cpu": fbgemm_step(rows, gradients)} if rows.device.type == "cpu" else {},
        least_ratio={"fbgemm-gpu-cpu": 2.5},
    )


def torch_adagrad(rows: Tensor, gradients: Tensor) -> Call:
    """Give the step of row-wise Adagrad as one writes it in torch."""
    table, sums = gradients.new_zeros(ROWS, DIM), gradients.new_zeros(ROWS)

    def call() -> None:
        shape = (ROWS, DIM)
        summed = torch.sparse_coo_tensor(rows[None], gradients, shape, check_invariants=False).coalesce()
        distinct, values = summed.indices()[0], summed.values()
        total = sums.index_select(0, distinct) + values.square().mean(1)
        sums.index_copy_(0, distinct, total)
        table.index_add_(0, distinct, values / (total.sqrt() + 1e-8)[:, None], alpha=-1e-2)

    return call


def fbgemm_update(rows: Tensor, gradients: Tensor) -> Call:
    """Give FBGEMM's update alone, which is its backward pass."""
    forward = fbgemm()(rows, torch.arange(ENTRIES + 1))
    return lambda: forward.backward(gradients, retain_graph=True)


def fbgemm_step(rows: Tensor, gradients: Tensor) -> Call:
    """Give FBGEMM's gather and update."""
    module, offsets = fbgemm(), torch.arange(ENTRIES + 1)
    return lambda: module(rows, offsets).backward(gradients)


def fbgemm() -> nn.Module:
    """Give FBGEMM's table, with its update fused into the backward pass; bags of one row are its faster form."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SplitTableBatchedEmbeddingBagsCodegen(
            [(ROWS, DIM, EmbeddingLocation.HOST, ComputeDevice.CPU)],
            optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=1e-2,
            pooling_mode=PoolingMode.SUM,
        )
