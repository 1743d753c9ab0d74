"""What a rating has helped to fit is what it may not be foretold by: biases without it, against sums without it."""

import torch

from metarec.learning import Baseline, fit_biases
from metarec.learning.biases import fit_popularity
from metarec.testing.world import small_world


def test_without_a_rating_a_bias_is_the_posterior_given_the_others():
    train, mean, deviation = small_world().split.train, 3.1, 1.3
    biases, entity, row = fit_biases(train, iterations=1000), train.user.long(), train.item.long()
    others = train.rating.double() - biases.mean - biases.bias["user"][entity]
    count, total = torch.bincount(row).double(), torch.bincount(row, weights=others)
    precision = 1 / biases.prior["item"] + (count[row] - 1) / biases.noise
    left = (total[row] - others) / biases.noise / precision
    baseline = Baseline(biases, "user", mean, deviation)
    found, noise = baseline.without(row, entity, (train.rating.double() - mean) / deviation)
    assert torch.allclose(mean + deviation * found, biases.mean + left, atol=2e-3)
    assert torch.allclose(deviation**2 * noise, biases.noise + 1 / precision, rtol=1e-3)
    assert (baseline(row)[0] - found).abs().max() > 0.03


def test_a_newcomer_among_partners_has_no_rating_to_leave_out():
    train, new = small_world().split.train, torch.tensor([-1])
    baseline = Baseline(fit_biases(train), "user", 0.0, 1.0)
    assert baseline.without(new, torch.tensor([0]), torch.tensor([5.0])) == baseline(new)


def test_popularity_is_the_log_of_how_often_an_entity_was_chosen():
    train = small_world(implicit=True).split.train
    bias = fit_popularity(train).bias["item"]
    count = torch.bincount(train.item).double()
    assert torch.allclose(bias.exp() * (1 + count.mean()), 1 + count)
