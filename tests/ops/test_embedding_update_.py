import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from metarec.ops import RowOptimizer, cosine_scores, embedding_state, embedding_update_, reference
from metarec.ops.library import NATIVE
from metarec.testing.ops.embedding_update_ import OPTIONS, RULES, by_reference, problem, samples


def doubled(state):
    """A copy in double precision."""
    return {
        name: value.double().clone() if value.is_floating_point() else value.clone()
        for name, value in state.items()
    }


@pytest.mark.parametrize("sample", list(samples()), ids=str)
def test_equals_reference_in_double(sample):
    sample.check(sample.call(*sample.arguments()))


@pytest.mark.parametrize(
    ("rule", "make"),
    [
        ("sgd", lambda table: torch.optim.SGD([table], lr=0.1, weight_decay=0.3)),
        ("adagrad", lambda table: torch.optim.Adagrad([table], lr=0.1, weight_decay=0.3, eps=1e-3)),
        ("adam", lambda table: torch.optim.Adam([table], 0.1, (0.8, 0.9), 1e-3, weight_decay=0.3)),
        ("adamw", lambda table: torch.optim.AdamW([table], 0.1, (0.8, 0.9), 1e-3, weight_decay=0.2)),
    ],
)
def test_equals_torch_where_every_row_has_a_gradient(rule, make):
    # One dimension, so that Adagrad by rows is that by values.
    ours, theirs = (nn.Parameter(problem(6, 1, 0)[0]) for _ in range(2))
    penalty = {"weight_decay": 0.2} if rule == "adamw" else {"l2": 0.3}
    optimizer = RowOptimizer([ours], 0.1, rule=rule.removesuffix("w"), betas=(0.8, 0.9), eps=1e-3, **penalty)
    torch_optimizer = make(theirs)
    for step in range(5):
        rows = torch.cat([torch.arange(6), torch.tensor([3, 1, 3])])[torch.randperm(9)]
        gradients = problem(6, 1, 9, seed=step)[2]
        ours.grad = torch.sparse_coo_tensor(rows[None], gradients, ours.shape, check_invariants=False)
        theirs.grad = ours.grad.to_dense()
        optimizer.step()
        torch_optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("rule", "make"),
    [
        ("sgd", lambda table: torch.optim.SGD([table], lr=0.1)),
        ("adam", lambda table: torch.optim.SparseAdam([table], lr=0.1, betas=(0.8, 0.9), eps=1e-30)),
    ],
)
def test_equals_torch_on_sparse_gradients(rule, make):
    # SparseAdam counts the steps of the table: the same where the same rows take all of them. It adds eps before it
    # corrects the bias of the root, ours after, as Adam does.
    ours, theirs = (nn.Embedding(9, 5, sparse=True, dtype=torch.float64) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizer = RowOptimizer(ours.parameters(), 0.1, rule=rule, betas=(0.8, 0.9), eps=1e-30)
    torch_optimizer = make(theirs.weight)
    target = problem(7, 5, 0)[0]
    for _ in range(5):
        for table, chosen in ((ours, optimizer), (theirs, torch_optimizer)):
            chosen.zero_grad()
            (table(torch.tensor([8, 1, 1, 5, 0, 5, 1])) - target).square().sum().backward()
            chosen.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-12, atol=1e-12)


def test_the_bias_of_a_row_is_corrected_by_its_own_steps():
    table = torch.zeros(2, 1, dtype=torch.float64)
    state = embedding_state(table, "adam")
    # 64 steps more than the other row: the kernel keeps corrections by the last bits of the count.
    for step in range(65):
        rows = torch.tensor([0] if step < 64 else [0, 1])
        embedding_update_(table, rows, torch.ones(len(rows), 1).double(), rule="adam", state=state, lr=0.1)
    assert state["step"].tolist() == [65, 1]
    # A constant gradient makes Adam step by lr from the first step on.
    assert table[:, 0].tolist() == pytest.approx([-6.5, -0.1], rel=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_rows_without_a_gradient_stay_bit_for_bit(rule):
    table, rows, gradients = problem(1000, 9, 200)
    state = embedding_state(table, rule)
    for value in state.values():
        value.fill_(3)
    before, before_state = table.clone(), copy.deepcopy(state)
    embedding_update_(table, rows, gradients, rule=rule, state=state, **OPTIONS)
    rest = torch.ones(1000, dtype=torch.bool).index_fill(0, rows, False)
    for value, old in [(table, before), *((state[name], before_state[name]) for name in state)]:
        assert torch.equal(value[rest], old[rest])
        assert (value[~rest] != old[~rest]).any()


@pytest.mark.skipif(not NATIVE, reason="no native kernels in this build")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_bit_equal_for_any_number_of_threads(dtype, rule, threads):
    runs = []
    for number in (1, 2, 3):
        threads(number)
        table, rows, gradients = problem(20_000, 19, 100_000, dtype)
        state = embedding_state(table, rule)
        for seed in (1, 2):
            seeded = {"seed": seed} if dtype == torch.bfloat16 else {}
            embedding_update_(table, rows, gradients, rule=rule, state=state, **OPTIONS, **seeded)
        runs.append((table, *state.values()))
    for run in runs[1:]:
        assert all(torch.equal(value, wanted) for value, wanted in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("dtype", "seed"),
    [(torch.float32, None), (torch.float64, None), (torch.bfloat16, None), (torch.bfloat16, 2**63 - 1)],
)
def test_opcheck(dtype, seed, rule):
    table, rows, gradients = problem(5, 3, 9, dtype)
    state = list(embedding_state(table, rule).values())
    args = (table, state, rows, gradients, rule, 0.1, 0.2, 0.3, 0.8, 0.9, 1e-3, seed)
    torch.library.opcheck(torch.ops.metarec.embedding_update_.default, args)


def test_compiles_within_a_training_step():
    def step(table, rows, gradients, state):
        embedding_update_(table, rows, gradients * 2, rule="adam", state=state, **OPTIONS)
        return table.square().sum()

    results = []
    for function in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        table, rows, gradients = problem(5, 3, 9)
        state = embedding_state(table, "adam")
        results.append((function(table, rows, gradients, state), table, *state.values()))
    for value, wanted in zip(*results, strict=True):
        torch.testing.assert_close(value, wanted)


# Of tables of bfloat16.


def exact(count, dim, entries):
    """A table and gradients that are small whole numbers: their sums, of a row up to some hundreds, are exact."""
    table, rows, gradients = problem(count, dim, entries)
    return (8 * table).round().bfloat16(), rows, (3 * gradients).round().bfloat16()


@pytest.mark.parametrize("seed", [None, 0, 2**63 - 1])
@pytest.mark.parametrize("shape", [(1, 1, 1), (9, 37, 300), (200, 64, 1500), (30, 5, 20_000)], ids=str)
def test_only_the_table_is_rounded(shape, seed):
    table, rows, gradients = exact(*shape)
    # Whole numbers, and a rate of 1/16: nothing is rounded in float32.
    change = torch.zeros(table.shape, dtype=torch.float64).index_add_(0, rows, gradients.double())
    values = table.double() - change / 16
    assert torch.equal(values.float().double(), values)
    wanted = values.bfloat16()
    if seed is not None:
        noise = reference.row_noise(seed, range(len(table)), table.size(1))
        wanted = reference.round_stochastically(values.float(), noise)
    embedding_update_(table, rows, gradients, rule="sgd", state={}, lr=1 / 16, seed=seed)
    assert torch.equal(table, wanted)


def test_the_state_of_a_bfloat16_table_is_that_of_its_values_in_float32():
    table, rows, gradients = problem(50, 37, 300, torch.bfloat16)
    for rule in RULES:
        narrow, wide = table.clone(), table.float()
        state, wanted = embedding_state(narrow, rule), embedding_state(wide, rule)
        embedding_update_(narrow, rows, gradients, rule=rule, state=state, **OPTIONS)
        embedding_update_(wide, rows, gradients.float(), rule=rule, state=wanted, **OPTIONS)
        torch.testing.assert_close(state, wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("rule", RULES)
def test_stochastic_rounding_is_right_on_average(rule):
    table, rows, gradients = problem(20, 37, 60, torch.bfloat16)
    wide, runs = table.float(), 400
    state = embedding_state(wide, rule)
    embedding_update_(wide, rows, gradients.float(), rule=rule, state=state, **OPTIONS)
    below = (wide.view(torch.int32) & ~0xFFFF).view(torch.float32)  # towards zero
    chance = (wide.view(torch.int32) & 0xFFFF) / 2**16
    raised = torch.zeros(table.shape)
    for seed in range(runs):
        narrow, state = table.clone(), embedding_state(table, rule)
        embedding_update_(narrow, rows, gradients, rule=rule, state=state, seed=seed, **OPTIONS)
        units = (narrow.view(torch.int16) - below.bfloat16().view(torch.int16)).float()
        assert units.min() >= 0 and units.max() <= 1
        raised += units
    spread = (runs * chance * (1 - chance)).sqrt()
    assert ((raised - runs * chance).abs() <= 5 * spread + 3).all()


def test_steps_too_small_for_the_nearest_value_add_up_by_stochastic_rounding():
    # From 1 on the values of bfloat16 are 1/128 apart; a step is a twentieth of that.
    steps, lr = 400, 1 / 128 / 20
    nearest, stochastic = torch.ones(2, 60, 37).bfloat16()
    rows, gradients = torch.arange(60), torch.full((60, 37), -1.0).bfloat16()
    for seed in range(steps):
        embedding_update_(nearest, rows, gradients, rule="sgd", state={}, lr=lr)
        embedding_update_(stochastic, rows, gradients, rule="sgd", state={}, lr=lr, seed=seed)
    assert (nearest == 1).all()
    spread = (steps * 0.05 * 0.95) ** 0.5 / 128
    apart = stochastic.double() - 1 - steps * lr
    assert apart.mean().abs() < 5 * spread / 60**0.5  # as if a row's columns were one
    assert 0.8 * spread < apart.std() < 1.2 * spread


def test_a_bfloat16_embedding_has_the_gradients_that_its_update_takes():
    table = nn.Embedding(9, 4, sparse=True, dtype=torch.bfloat16)
    table(torch.tensor([8, 1, 1])).float().square().sum().backward()
    gradient, before = table.weight.grad, table.weight.detach().clone()
    embedding_update_(table.weight, gradient._indices()[0], gradient._values(), rule="sgd", state={}, lr=0.25)
    wanted = before.float()
    wanted[8] -= 0.25 * (2 * before[8].float())
    wanted[1] -= 0.25 * (4 * before[1].float())
    assert torch.equal(table.weight, wanted.bfloat16())


def test_autograd_notices_that_the_table_has_changed():
    table, rows, gradients = problem(5, 3, 9)
    leaf = torch.ones(5, 3, dtype=torch.float64, requires_grad=True)
    loss = (leaf * table).sum()
    embedding_update_(table, rows, gradients, rule="sgd", state={}, lr=0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_rows_in_any_order_repeated_or_out_of_range(data):
    count = data.draw(st.integers(1, 6))
    named = data.draw(st.lists(st.integers(-1, count), max_size=20))
    rule = data.draw(st.sampled_from(RULES))
    table, _, gradients = problem(count, 2, len(named))
    rows = torch.tensor(named, dtype=data.draw(st.sampled_from([torch.int32, torch.int64])))
    state = embedding_state(table, rule)
    before = table.clone()
    if all(0 <= row < count for row in named):
        expected, expected_state = table.clone(), doubled(state)
        by_reference(expected, rows, gradients, rule, expected_state, **OPTIONS)
        embedding_update_(table, rows, gradients, rule=rule, state=state, **OPTIONS)
        torch.testing.assert_close(table, expected, rtol=1e-12, atol=1e-12)
    else:
        wrong = next(entry for entry, row in enumerate(named) if not 0 <= row < count)
        message = f"rows must be from 0 to {count - 1}, got {named[wrong]} at {wrong}"
        with pytest.raises(ValueError, match=message):
            embedding_update_(table, rows, gradients, rule=rule, state=state, **OPTIONS)
        assert torch.equal(table, before) and not any(value.any() for value in state.values())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("dtype", "seed"), [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, 4)]
)
def test_state_survives_saving_and_loading(dtype, seed, rule):
    def train(table, optimizer, steps):
        for step in steps:
            _, rows, gradients = problem(8, 3, 10, dtype, seed=step)
            table.grad = torch.sparse_coo_tensor(rows[None], gradients, table.shape, check_invariants=False)
            optimizer.step()

    through, resumed = (nn.Parameter(problem(8, 3, 0, dtype)[0]) for _ in range(2))
    optimizer = RowOptimizer([through], 0.1, rule=rule, seed=seed)
    train(through, optimizer, range(6))
    first = RowOptimizer([resumed], 0.1, rule=rule, seed=seed)
    train(resumed, first, range(3))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = RowOptimizer([resumed], 0.5, rule=rule)
    second.load_state_dict(torch.load(file, weights_only=True))
    train(resumed, second, range(3, 6))
    assert torch.equal(through, resumed)
    assert second.param_groups[0]["seed"] == (None if seed is None else seed + 6)
    for name, value in optimizer.state[through].items():
        assert value.dtype == second.state[resumed][name].dtype
        assert torch.equal(value, second.state[resumed][name])


def test_the_optimizer_trains_both_tables_of_a_model():
    generator = torch.Generator().manual_seed(0)
    tables = [torch.randn(30, 4, generator=generator) for _ in range(2)]
    left, right = torch.randint(30, (2, 400), generator=generator)
    truth = cosine_scores(*tables, left, right)
    users, items = (nn.Parameter(table + torch.randn(table.shape, generator=generator)) for table in tables)
    optimizer = RowOptimizer([{"params": [users]}, {"params": [items], "lr": 0.05}], 0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)

    def loss():
        optimizer.zero_grad()
        value = (cosine_scores(users, items, left, right, sparse_grad=True) - truth).square().mean()
        value.backward()
        return value

    losses = []
    for _ in range(200):
        losses.append(optimizer.step(loss).item())
        schedule.step()
    assert losses[0] > 0.2 and losses[-1] < 5e-3


def test_dense_gradients_are_refused():
    table = nn.Parameter(torch.ones(3, 2))
    table.grad = torch.ones(3, 2)
    with pytest.raises(
        ValueError, match=r"shape \[3, 2\] must be sparse in its rows: use torch.nn.Embedding"
    ):
        RowOptimizer([table]).step()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "rmsprop"}, r"rule must be one of \['sgd', 'adagrad', 'adam'\], got 'rmsprop'"),
        ({"lr": -0.1}, "lr must be finite and not negative, got -0.1"),
        ({"l2": float("nan")}, "l2 must be finite and not negative, got nan"),
        ({"weight_decay": float("inf")}, "weight_decay must be finite"),
        ({"betas": (0.9, 1.0)}, r"betas must be from 0 to below 1, got \(0.9, 1.0\)"),
        ({"eps": 0.0}, "eps must be finite and positive, got 0.0"),
        ({"table": torch.zeros(3, 2).half()}, "table must be float32, float64 or bfloat16 of two"),
        ({"table": torch.zeros(2, 3).T}, "and contiguous"),
        ({"rows": torch.zeros(2)}, "rows must be int32 or int64 of one dimension"),
        ({"gradients": torch.zeros(3, 2)}, r"gradients must be torch.float32 of shape \[2, 2\] on cpu, got"),
        ({"gradients": torch.zeros(2, 2).double()}, "gradients must be torch.float32"),
        ({"gradients": torch.zeros(2, 2).bfloat16()}, "gradients must be torch.float32"),
        ({"table": torch.ones(3, 2).bfloat16()}, "gradients must be torch.bfloat16 of shape"),
        ({"seed": 0}, r"a seed, .* is for .* a bfloat16 table, got 0 and a table of torch.float32"),
        ({"table": torch.ones(3, 2).bfloat16(), "seed": -1}, r"a seed, from 0 to 2\^63 - 1, .* got -1"),
        ({"state": {}}, r"the state of 'adam' holds \['exp_avg', 'exp_avg_sq', 'step'\], got \[\]"),
        (
            {"state": embedding_state(torch.zeros(4, 2), "adam")},
            r"state 'exp_avg' must be torch.float32 of shape \[3, 2\]",
        ),
        ({"rows": torch.tensor([0, 3])}, "rows must be from 0 to 2, got 3 at 1"),
    ],
)
def test_bad_arguments_are_named(change, message):
    table = torch.ones(3, 2)
    args = {
        "table": table,
        "rows": torch.tensor([0, 2]),
        "gradients": torch.ones(2, 2),
        "rule": "adam",
        "state": embedding_state(table, "adam"),
        "lr": 0.1,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        embedding_update_(**args)


def test_bad_options_of_a_group_are_named():
    table = nn.Parameter(torch.ones(3, 2))
    with pytest.raises(ValueError, match="lr must be finite and not negative, got -1"):
        RowOptimizer([{"params": [table], "lr": -1}])
    with pytest.raises(ValueError, match="rule must be one of"):
        embedding_state(table, "adamw")
