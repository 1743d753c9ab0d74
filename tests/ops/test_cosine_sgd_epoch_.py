import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metarec.ops import cosine_scores, cosine_sgd_epoch_, reference
from metarec.ops.library import NATIVE
from metarec.testing.ops.cosine_sgd_epoch_ import KINDS, TOLERANCE, Epoch, in_double, problem, samples

TYPES = [torch.float32, torch.float64, torch.bfloat16]


def copies(args):
    return [arg.clone() for arg in args]


@pytest.mark.parametrize("sample", list(samples()), ids=str)
def test_equals_reference_in_double(sample):
    sample.check(sample.call(*sample.arguments()))


@pytest.mark.parametrize(("similarity", "loss"), KINDS)
@pytest.mark.parametrize("head_lr", [None, 0.07, 0.0])
def test_each_step_is_along_the_gradient_of_its_loss(similarity, loss, head_lr):
    *parameters, user, item, rating = problem(4, 3, 5, 1)
    leaves = [parameter.clone().requires_grad_() for parameter in parameters]
    u, v = leaves[0][user[0]], leaves[1][item[0]]
    score = u @ v / (u.norm() * v.norm() if similarity == "cosine" else 1)
    predicted = leaves[4][0] * score + leaves[4][1] + leaves[2][user[0]] + leaves[3][item[0]]
    value = (
        (predicted - rating[0]).square() / 2
        if loss == "squared"
        else torch.nn.functional.binary_cross_entropy_with_logits(predicted, rating[0])
    )
    penalty = sum(part.square() for part in (u.norm(), v.norm(), leaves[2][user[0]], leaves[3][item[0]]))
    gradients = torch.autograd.grad(value + 0.3 / 2 * penalty, leaves)
    options = {"similarity": similarity, "loss": loss, "head_lr": head_lr}
    got = cosine_sgd_epoch_(*parameters, user, item, rating, lr=0.2, l2=0.3, **options)
    assert got.item() == pytest.approx(value.item(), rel=1e-12)
    rates = [0.2] * 4 + [0.2 if head_lr is None else head_lr]
    for parameter, leaf, rate, gradient in zip(parameters, leaves, rates, gradients, strict=True):
        torch.testing.assert_close(parameter, leaf.detach() - rate * gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ratings", [0, 1, 2047, 2048, 40_000])
def test_blocks_of_a_round_share_nothing_and_an_epoch_takes_each_rating_once(ratings):
    *_, user, item, _ = problem(300, 200, 1, ratings)
    rounds = list(reference.sgd_rounds(user, item, 300, 200, 5))
    taken = [entry for blocks in rounds for block in blocks.values() for entry in block]
    assert sorted(taken) == list(range(ratings))
    assert len(rounds) == (1 if ratings < 2048 else 2 if ratings < 8192 else 8)
    for blocks in rounds:
        for rows in (user, item):
            named = [set(rows[block].tolist()) for block in blocks.values()]
            assert len(set().union(*named)) == sum(len(rows_of_block) for rows_of_block in named)


def test_the_seed_decides_the_order():
    def run(seed):
        args = problem(300, 200, 8, 9000)
        cosine_sgd_epoch_(*args, lr=0.1, seed=seed)
        return args[0]

    assert torch.equal(run(1), run(1))
    assert not torch.allclose(run(1), run(2), atol=1e-4)
    orders = [list(reference.sgd_rounds(*problem(30, 20, 1, 50)[5:7], 30, 20, seed)) for seed in range(9)]
    assert len({str(order) for order in orders}) == 9


@pytest.mark.parametrize(("similarity", "loss"), KINDS)
def test_bfloat16_is_rounded_as_by_the_reference(similarity, loss):
    # Many steps on each row. Where sums in float32 and float64 differ they may be rounded to neighbours, but few values
    # are; by the noise of another step or side half of them would be.
    sample = Epoch(25, 40, 64, 300, similarity, loss, torch.bfloat16)
    found, expected = (values(*sample.arguments()) for values in (sample.call, sample.expected))
    for name in ("users", "items"):
        assert (found[name] != expected[name]).double().mean() < 0.01


def planted_factors(rate, epochs, descend):
    """Descend to a planted model of rank two, from random tables of bfloat16, and give the last loss."""
    generator = torch.Generator().manual_seed(0)
    sizes = 12, 10
    planted = [torch.randn(size, 2, generator=generator) for size in sizes]
    user, item = torch.cartesian_prod(*map(torch.arange, sizes)).T.contiguous()
    rating = (planted[0] @ planted[1].T).flatten()
    tables = [torch.randn(size, 8, generator=generator).bfloat16() for size in sizes]
    others = [torch.zeros(sizes[0]), torch.zeros(sizes[1]), torch.tensor([1.0, 0.0])]
    options = {"lr": rate, "similarity": "dot", "head_lr": 0.0}
    for epoch in range(epochs):
        loss = descend(tables, others, user, item, rating, seed=epoch, **options)
    return loss.item()


@pytest.mark.skipif(not NATIVE, reason="no native kernels in this build")
def test_small_steps_are_not_lost_in_bfloat16_as_they_are_to_the_nearest():
    def to_the_nearest(tables, others, user, item, rating, *, seed, **options):
        losses = []
        for entry in torch.randperm(len(rating), generator=torch.Generator().manual_seed(seed)).split(1):
            moved = [table.float() for table in tables]
            losses.append(
                cosine_sgd_epoch_(*moved, *others, user[entry], item[entry], rating[entry], **options)
            )
            tables[:] = [table.bfloat16() for table in moved]
        return torch.stack(losses).mean()

    def in_float32(tables, others, *ratings, **options):
        tables[:] = [table.float() for table in tables]
        return cosine_sgd_epoch_(*tables, *others, *ratings, **options)

    def in_bfloat16(tables, others, *ratings, **options):
        return cosine_sgd_epoch_(*tables, *others, *ratings, **options)

    loss, rounded, lost = (
        planted_factors(0.0005, 150, descend) for descend in (in_float32, in_bfloat16, to_the_nearest)
    )
    assert rounded == pytest.approx(loss, rel=0.1)
    assert lost > 2 * loss


@pytest.mark.skipif(not NATIVE, reason="no native kernels in this build")
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("similarity", "loss"), KINDS)
def test_bit_equal_for_any_number_of_threads(dtype, similarity, loss, threads):
    runs = []
    for number in (1, 2, 3):
        threads(number)
        args = problem(900, 400, 19, 60_000, dtype)
        losses = [
            cosine_sgd_epoch_(*args, lr=0.02, l2=0.1, similarity=similarity, loss=loss, seed=epoch)
            for epoch in range(2)
        ]
        runs.append((*losses, *args[:5]))
    for run in runs[1:]:
        assert all(torch.equal(value, wanted) for value, wanted in zip(run, runs[0], strict=True))


@pytest.mark.skipif(not NATIVE, reason="no native kernels in this build")
def test_finds_the_factors_of_a_matrix_without_noise():
    # A planted model of rank two by cosine: what was left out is predicted as well as what was seen.
    generator = torch.Generator().manual_seed(0)
    users, items = 60, 50
    planted = [torch.randn(count, 2, generator=generator, dtype=torch.float64) for count in (users, items)]
    everything = torch.arange(users * items)
    user, item = everything // items, everything % items
    truth = 2 * cosine_scores(*planted, user, item) + 0.5
    seen = torch.rand(users * items, generator=generator) < 0.6
    args = problem(users, items, 3, 0)[:5]
    for parameter in args[2:4]:
        parameter.zero_()
    losses = [
        cosine_sgd_epoch_(*args, user[seen], item[seen], truth[seen], lr=0.1, seed=epoch).item()
        for epoch in range(300)
    ]
    scores = args[4][0] * cosine_scores(*args[:2], user, item) + args[4][1] + args[2][user] + args[3][item]
    assert losses[0] > 0.5 and losses[-1] < 1e-5
    assert (scores - truth)[~seen].abs().mean() < 0.02


@pytest.mark.skipif(not NATIVE, reason="no native kernels in this build")
def test_biases_alone_reach_ridge_regression():
    # With tables of zero only the biases and the shared bias learn: a linear model, whose optimum is a linear system.
    users, items, l2 = 8, 6, 0.05
    pairs = torch.cartesian_prod(torch.arange(users), torch.arange(items))
    user, item = pairs.T.contiguous()
    rating = torch.rand(len(pairs), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    args = [torch.zeros(shape, dtype=torch.float64) for shape in ((users, 2), (items, 2), users, items, 2)]
    for epoch in range(4000):
        lr = 0.1 / (1 + epoch / 100)
        cosine_sgd_epoch_(*args, user, item, rating, lr=lr, l2=l2, similarity="dot", seed=epoch)
    design = torch.cat(
        [
            torch.nn.functional.one_hot(user, users),
            torch.nn.functional.one_hot(item, items),
            torch.ones(len(user), 1),
        ],
        dim=1,
    ).double()
    # Each rating pulls its own two biases, so a bias is penalised once per rating.
    penalty = l2 * torch.cat([design.sum(0)[:-1], torch.zeros(1, dtype=torch.float64)])
    optimum = torch.linalg.solve(design.T @ design + torch.diag(penalty), design.T @ rating)
    assert not args[0].any() and not args[1].any()
    torch.testing.assert_close(torch.cat([args[2], args[3], args[4][1:]]), optimum, rtol=0, atol=2e-3)


@pytest.mark.parametrize("dtype", TYPES)
def test_zero_vectors_stay_and_harm_nothing(dtype):
    args = problem(3, 3, 4, 60, dtype)
    args[0][1], args[1][2] = 0, 0
    cosine_sgd_epoch_(*args, lr=0.1, seed=1)
    assert (args[0][1] == 0).all() and (args[1][2] == 0).all()
    assert all(parameter.isfinite().all() for parameter in args[:5])


@pytest.mark.parametrize("dtype", TYPES)
def test_vectors_too_short_to_have_a_direction_do_not_turn(dtype):
    args = problem(3, 3, 4, 60, dtype)
    args[0][1] *= 1e-13
    args[1][2] *= 1e-13
    before, doubles = copies(args), in_double(args)
    cosine_sgd_epoch_(*args, lr=0.1, seed=1)
    reference.cosine_sgd_epoch_(*doubles, 0.1, 0.0, True, False, 1, 0.1)
    assert torch.equal(args[0][1], before[0][1]) and torch.equal(args[1][2], before[1][2])
    for got, wanted in zip(args[:5], doubles[:5], strict=True):
        torch.testing.assert_close(
            got.double(), wanted.double(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
        )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("cosine", [False, True])
def test_opcheck(dtype, cosine):
    args = problem(4, 3, 5, 12, dtype)
    torch.library.opcheck(
        torch.ops.metarec.cosine_sgd_epoch_.default, (*args, 0.1, 0.2, cosine, not cosine, 3, 0.1)
    )


def test_compiles_within_a_training_loop():
    def epoch(*args):
        loss = cosine_sgd_epoch_(*args, lr=0.1, l2=0.1, seed=4)
        return loss + args[0].square().mean()

    results = []
    for function in (epoch, torch.compile(epoch, backend="aot_eager", fullgraph=True)):
        args = problem(4, 3, 5, 12)
        results.append((function(*args), *args[:5]))
    for value, wanted in zip(*results, strict=True):
        torch.testing.assert_close(value, wanted)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_rows_in_any_order_repeated_or_out_of_range(data):
    users, items = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    index = data.draw(st.sampled_from([torch.int32, torch.int64]))
    pairs = data.draw(
        st.lists(st.tuples(st.integers(-1, users), st.integers(-1, items)), min_size=1, max_size=12)
    )
    args = list(problem(users, items, 2, len(pairs)))
    args[5:7] = torch.tensor(pairs, dtype=index).T.contiguous()
    before = copies(args)
    wrong_users = [row for row, _ in pairs if not 0 <= row < users]
    wrong_items = [row for _, row in pairs if not 0 <= row < items]
    if not wrong_users and not wrong_items:
        cosine_sgd_epoch_(*args, lr=0.1, seed=2)
        reference.cosine_sgd_epoch_(*before, 0.1, 0.0, True, False, 2, 0.1)
    else:
        name, count, wrong = ("users", users, wrong_users) if wrong_users else ("items", items, wrong_items)
        with pytest.raises(ValueError, match=f"{name} must be from 0 to {count - 1}, got {wrong[0]} at"):
            cosine_sgd_epoch_(*args, lr=0.1, seed=2)
    for got, wanted in zip(args[:5], before[:5], strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, torch.zeros(3, 2).half(), "users must be float32, float64 or bfloat16, got torch.float16"),
        (0, torch.zeros(3), r"users must have two dimensions, got shape \[3\]"),
        (1, torch.zeros(2, 4), r"items must be torch.float32 of shape \[2, 2\]"),
        (1, torch.zeros(2, 2).T, "items must be contiguous"),
        (
            1,
            torch.zeros(2, 2).bfloat16(),
            r"items must be torch.float32 of shape \[2, 2\] .*, got torch.bfloat16",
        ),
        (2, torch.zeros(2), r"user_biases must be torch.float32 of shape \[3\]"),
        (3, torch.zeros(2).double(), "item_biases must be torch.float32"),
        (4, torch.zeros(1), r"head must be torch.float32 of shape \[2\]"),
        (5, torch.zeros(2), r"user must be int32 or int64 of shape \[2\]"),
        (6, torch.zeros(3, dtype=torch.int64), r"item must be int32 or int64 of shape \[2\]"),
        (7, torch.zeros(2).double(), "rating must be torch.float32"),
        (7, torch.tensor([0, math.inf]), "ratings must be finite, got inf at 1"),
        (7, torch.tensor([math.nan, 0]), "ratings must be finite, got nan at 0"),
    ],
)
def test_bad_arguments_are_named(index, value, message):
    args = [torch.ones(3, 2), torch.ones(2, 2), torch.ones(3), torch.ones(2), torch.ones(2)]
    args += [torch.tensor([0, 1]), torch.tensor([0, 1]), torch.ones(2)]
    args[index] = value
    with pytest.raises(ValueError, match=message):
        cosine_sgd_epoch_(*args, lr=0.1)


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (1, torch.ones(2, 2), "items must be torch.bfloat16 .*, got torch.float32"),
        (2, torch.ones(3).bfloat16(), "user_biases must be torch.float32 .*, got torch.bfloat16"),
        (3, torch.ones(2).bfloat16(), "item_biases must be torch.float32 .*, got torch.bfloat16"),
        (4, torch.ones(2).bfloat16(), "head must be torch.float32 .*, got torch.bfloat16"),
        (7, torch.ones(2).bfloat16(), "rating must be torch.float32 .*, got torch.bfloat16"),
    ],
)
def test_what_stands_beside_bfloat16_is_float32(index, value, message):
    args = [
        torch.ones(3, 2).bfloat16(),
        torch.ones(2, 2).bfloat16(),
        torch.ones(3),
        torch.ones(2),
        torch.ones(2),
    ]
    args += [torch.tensor([0, 1]), torch.tensor([0, 1]), torch.ones(2)]
    args[index] = value
    with pytest.raises(ValueError, match=message):
        cosine_sgd_epoch_(*args, lr=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be finite and not negative, got -1.0"),
        ({"l2": math.inf}, "l2 must be finite"),
        ({"head_lr": -0.5}, "head_lr must be finite and not negative, got -0.5"),
        ({"similarity": "l2"}, "similarity must be 'cosine' or 'dot', got 'l2'"),
        ({"loss": "hinge"}, "loss must be 'squared' or 'logistic', got 'hinge'"),
        ({"seed": -1}, "seed must be from 0 to"),
        ({"loss": "logistic"}, "ratings must be from 0 to 1 for the logistic loss, got 1.50* at 2"),
    ],
)
def test_bad_options_are_named(options, message):
    args = problem(3, 2, 2, 4)
    args[7][2] = 1.5
    with pytest.raises(ValueError, match=message):
        cosine_sgd_epoch_(*args, **{"lr": 0.1, **options})
