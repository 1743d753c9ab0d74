"""``cosine_topk`` beside implicit's topk, torch's product and topk, and the flat index of faiss."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks import roofline
from benchmarks.ops import Case
from benchmarks.timing import CPU, Call
from metarec.ops import cosine_topk, prepare_items

ITEMS, DIM, QUERIES, K = 200_000, 64, 1024, 20


def cases(device: torch.device = CPU) -> Iterator[Case]:
    """Lists for many users at once, of float32 and of bfloat16, and for one."""
    generator, on_cpu = torch.Generator().manual_seed(0), device.type == "cpu"
    items = torch.randn(ITEMS, DIM, generator=generator).to(device)
    queries = torch.randn(QUERIES, DIM, generator=generator).to(device)
    one = queries[:1]
    prepared = prepare_items(items, similarity="dot")
    integers = "a first pass in integers of 16 bits, twice as many at once as the floats of the floor"
    in_integers = integers if on_cpu else None
    yield Case(
        f"{K} best of {ITEMS:,} × {DIM} for {QUERIES:,} queries",
        ours=lambda: cosine_topk(queries, prepared, K, similarity="dot"),
        work=roofline.cosine_topk(QUERIES, ITEMS, DIM, K),
        peers={
            **({"implicit topk": by_implicit(items, queries)} if on_cpu else {}),
            "torch matmul + topk": lambda: torch.topk(queries @ items.T, K),
        },
        least_ratio={"implicit topk": 2, "torch matmul + topk": 3},
        faster_than_floor=in_integers,
    )
    narrow, narrow_queries = prepare_items(items.bfloat16(), similarity="dot"), queries.bfloat16()
    yield Case(
        f"{K} best of {ITEMS:,} × {DIM} of bfloat16 for {QUERIES:,} queries",
        ours=lambda: cosine_topk(narrow_queries, narrow, K, similarity="dot"),
        work=roofline.cosine_topk(QUERIES, ITEMS, DIM, K, itemsize=2),
        peers={"of float32": lambda: cosine_topk(queries, prepared, K, similarity="dot")},
        faster_than_floor=in_integers,
    )
    yield Case(
        f"{K} best of {ITEMS:,} × {DIM} for one query",
        ours=lambda: cosine_topk(one, prepared, K, similarity="dot"),
        work=roofline.cosine_topk(1, ITEMS, DIM, K, item_bytes=DIM + 8 if on_cpu else None),
        peers={
            **({"faiss IndexFlatIP": by_faiss(items, one)} if on_cpu else {}),
            "torch matmul + topk": lambda: torch.topk(one @ items.T, K),
        },
        least_ratio={"faiss IndexFlatIP": 1.5},
    )


def by_implicit(items: torch.Tensor, queries: torch.Tensor) -> Call:
    """Let implicit share out the queries over the threads: a product inside a thread takes no others."""
    from implicit.cpu.topk import topk
    from threadpoolctl import threadpool_limits

    def call() -> object:
        with threadpool_limits(1, "blas"):
            return topk(items.numpy(), queries.numpy(), K, num_threads=torch.get_num_threads())

    return call


def by_faiss(items: torch.Tensor, queries: torch.Tensor) -> Call:
    """Search the flat index."""
    import faiss

    index = faiss.IndexFlatIP(DIM)
    index.add(items.numpy())
    return lambda: index.search(queries.numpy(), K)
