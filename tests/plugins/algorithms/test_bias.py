"""Biases against ridge regression, their posterior against dense Gaussian algebra, variances against the truth."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from metarec.data import Dataset, Entities, Features, RatingScale, partner_side
from metarec.learning import Run
from metarec.plugins.algorithms.bias import Bias
from metarec.tasks import EntityRows, Query, Support
from metarec.testing import AlgorithmConformance

DOUBLE = Run(dtype=torch.float64)


class TestConformance(AlgorithmConformance):
    algorithm = Bias


def drawn(users=300, items=200, tau=(0.5, 0.3), sigma=0.8, mean=3.2, share=0.3, seed=0):
    """Unclipped ratings from the model itself, and the biases they were made with."""
    random = np.random.default_rng(seed)
    bias = {"user": random.normal(0, tau[0], users), "item": random.normal(0, tau[1], items)}
    user, item = np.nonzero(random.random((users, items)) < share)
    rating = mean + bias["user"][user] + bias["item"][item] + random.normal(0, sigma, len(user))
    dataset = Dataset(
        "drawn",
        Entities(pl.Series(range(users)), pl.DataFrame(height=users)),
        Entities(pl.Series(range(items)), pl.DataFrame(height=items)),
        torch.from_numpy(user).int(),
        torch.from_numpy(item).int(),
        torch.from_numpy(rating).float(),
        RatingScale(-9.0, 9.0, relevant_from=4.0),
    )
    return dataset, bias


def test_the_biases_are_those_of_ridge_regression_with_the_fitted_damping(explicit, frame):
    """Minimise Σ (r − μ − b_u − b_i)² + Σ (σ²/τ²) b²: one linear system, μ not damped."""
    ratings, users, items = frame(explicit.train), len(explicit.train.users), len(explicit.train.items)
    fitted = Bias(iterations=10_000).fit(explicit.train, run=DOUBLE)
    design = np.zeros((len(ratings), 1 + users + items))
    design[:, 0] = 1
    design[np.arange(len(ratings)), 1 + ratings["user"]] = 1
    design[np.arange(len(ratings)), 1 + users + ratings["item"]] = 1
    damping = np.repeat(
        [0, fitted.noise_ / fitted.prior_["user"], fitted.noise_ / fitted.prior_["item"]], [1, users, items]
    )
    expected = np.linalg.solve(design.T @ design + np.diag(damping), design.T @ ratings["rating"])
    found = np.concatenate([[fitted.mean_], fitted.bias_["user"], fitted.bias_["item"]])
    assert np.abs(expected).max() > 0.3
    assert np.allclose(found, expected, atol=2e-3)


def test_the_variances_satisfy_their_equations(explicit, frame):
    """τ² = mean(b² + v), σ² = mean((r − μ − b_u − b_i)² + v_u + v_i), v = 1/(1/τ² + n/σ²)."""
    ratings = frame(explicit.train)
    fitted = Bias(iterations=10_000).fit(explicit.train, run=DOUBLE)
    square = 0.0
    residual = ratings["rating"] - fitted.mean_
    for side in ("user", "item"):
        bias, variance = fitted.bias_[side].numpy(), fitted.bias_variance_[side].numpy()
        count = ratings[side].value_counts().reindex(range(len(bias)), fill_value=0).to_numpy()
        assert np.allclose(variance, 1 / (1 / fitted.prior_[side] + count / fitted.noise_), rtol=1e-3)
        assert fitted.prior_[side] == pytest.approx(np.mean(bias**2 + variance), rel=1e-3)
        residual = residual - bias[ratings[side]]
        square += variance[ratings[side]].mean()
    assert fitted.noise_ == pytest.approx((residual**2).mean() + square, rel=1e-3)


def test_it_finds_what_ratings_were_made_with():
    dataset, bias = drawn()
    fitted = Bias().fit(dataset, run=DOUBLE)
    assert fitted.noise_ == pytest.approx(0.8**2, rel=0.03)
    assert fitted.prior_["user"] == pytest.approx(np.mean(bias["user"] ** 2), rel=0.1)
    assert fitted.prior_["item"] == pytest.approx(np.mean(bias["item"] ** 2), rel=0.1)
    for side in ("user", "item"):
        error = fitted.bias_[side].numpy() - (bias[side] - bias[side].mean())
        assert np.mean(error**2) == pytest.approx(fitted.bias_variance_[side].mean().item(), rel=0.3)


def test_a_task_has_the_exact_posterior_of_its_bias(explicit):
    """Condition the joint Gaussian of the task's bias, the partners' biases and the noise on the ratings."""
    fitted = Bias().fit(explicit.train, run=DOUBLE)
    for cell in explicit.cells:
        tasks = replace(cell.tasks, support=cell.tasks.support.to(dtype=torch.float64))
        side = tasks.support.side
        mean, variance = partner_bias(fitted, side, tasks.query.partners.rows)
        prior, noise = fitted.prior_[side], fitted.noise_
        adapted = fitted.adapt(tasks.support)
        found = fitted.predict(adapted, tasks.query)
        assert torch.equal(found.noise, torch.full_like(found.mean, noise))
        for task in range(0, len(tasks), 3):
            a, b = tasks.support.offsets[task : task + 2].tolist()
            partner, rating = tasks.support.partner[a:b].numpy(), tasks.support.rating[a:b].numpy()
            covariance = prior * np.ones((b - a, b - a)) + np.diag(noise + variance[partner])
            gain = prior * np.linalg.solve(covariance, np.ones(b - a))
            bias = gain @ (rating - fitted.mean_ - mean[partner])
            left = prior - gain.sum() * prior
            a, b = tasks.query.offsets[task : task + 2].tolist()
            asked = tasks.query.partner[a:b].numpy()
            assert np.allclose(found.mean[a:b], fitted.mean_ + bias + mean[asked])
            assert np.allclose(found.variance[a:b], noise + left + variance[asked])


def partner_bias(fitted, side, rows):
    """Mean and variance of each partner's bias: its own where known, else that of a training rating's partner."""
    other = partner_side(side)
    bias, variance = fitted.bias_[other].numpy(), fitted.bias_variance_[other].numpy()
    met = [fitted.met_[other][name] for name in ("mean", "variance")]
    known = rows.numpy() >= 0
    return np.where(known, bias[rows], met[0]), np.where(known, variance[rows], met[1])


def test_a_new_partner_is_like_one_met_in_a_rating(explicit, frame):
    """By the law of total variance over the training ratings."""
    fitted, ratings = Bias().fit(explicit.train, run=DOUBLE), frame(explicit.train)
    for side in ("user", "item"):
        bias, variance = (
            fitted.bias_[side].numpy()[ratings[side]],
            fitted.bias_variance_[side].numpy()[ratings[side]],
        )
        assert fitted.met_[side]["mean"] == pytest.approx(bias.mean(), abs=1e-9)
        assert fitted.met_[side]["variance"] == pytest.approx(bias.var() + variance.mean())


def test_predictions_of_newcomers_are_calibrated():
    """Squared errors are as large as the variances say, for supports from none to many."""
    dataset, _ = drawn(users=600, items=300, share=0.2)
    new = dataset.user >= 400
    known = dataset.take(~new).restrict(torch.arange(400), torch.arange(300))
    fitted = Bias().fit(known, run=DOUBLE)
    random = np.random.default_rng(1)
    for size in (0, 1, 10):
        scores = []
        for user in range(400, 600):
            mine = (dataset.user == user).nonzero().flatten()[torch.from_numpy(random.permutation(30))]
            scores.append(score(fitted, dataset, mine[:size], mine[size:]))
        assert np.mean(scores) == pytest.approx(1, abs=0.1)


def score(fitted, dataset, support, query):
    """Mean of squared error over variance, one new user at a time."""
    partners = EntityRows(torch.arange(300), Features.empty(300, dtype=torch.float64))
    one = EntityRows(torch.tensor([-1]), Features.empty(1, dtype=torch.float64))
    rating, item = dataset.rating.double(), dataset.item.long()
    adapted = fitted.adapt(
        Support(torch.tensor([0, len(support)]), item[support], "user", one, partners, rating[support])
    )
    found = fitted.predict(adapted, Query(torch.tensor([0, len(query)]), item[query], partners))
    return ((found.mean - rating[query]) ** 2 / found.variance).mean().item()
