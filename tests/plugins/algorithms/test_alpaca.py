"""ALPaCA against Gaussian-process algebra on its own features, and on tasks whose law is known."""

from __future__ import annotations

import pytest
import torch

from metarec.learning import Run, Training
from metarec.plugins.algorithms.alpaca import Alpaca
from metarec.tasks import Tasks
from metarec.testing import AlgorithmConformance
from metarec.testing.world import small_world

SMALL = {"size": 4, "rank": 3, "training": Training(epochs=2)}


class TestConformance(AlgorithmConformance):
    algorithm = Alpaca
    options = SMALL


@pytest.fixture(scope="module")
def fitted() -> Alpaca:
    return Alpaca(**SMALL).fit(small_world().split.train, run=Run(dtype=torch.float64))


@pytest.fixture(params=["new-user", "new-item", "new-both"])
def tasks(request: pytest.FixtureRequest) -> Tasks:
    tasks = small_world().tasks(request.param)
    tasks = tasks.select((tasks.support.counts > 0).nonzero().flatten())
    return Tasks(
        tasks.support.to(dtype=torch.float64),
        tasks.query.to(dtype=torch.float64),
        tasks.rating.double(),
        tasks.entity,
        tasks.candidates,
    )


def test_it_is_the_gaussian_process_of_its_features(fitted: Alpaca, tasks: Tasks):
    prediction = fitted.predict(fitted.adapt(tasks.support), tasks.query)
    head = fitted.head(tasks.support.side)
    with torch.no_grad():
        features, noise = head.features(tasks.query.partners)
        prior, covariance = head.prior_mean(tasks.support.entities), torch.linalg.inv(head.prior_precision())
    for task in range(len(tasks)):
        begin, end = tasks.support.offsets[task : task + 2].tolist()
        held = tasks.support.partner[begin:end]
        begin_query, end_query = tasks.query.offsets[task : task + 2].tolist()
        asked = tasks.query.partner[begin_query:end_query]
        rating = (tasks.support.rating[begin:end] - fitted.mean_) / fitted.deviation_
        kernel = features[held] @ covariance @ features[held].T + torch.diag(noise[held])
        cross = features[asked] @ covariance @ features[held].T
        mean = features[asked] @ prior[task] + cross @ torch.linalg.solve(
            kernel, rating - features[held] @ prior[task]
        )
        unknown = features[asked] @ covariance @ features[asked].T - cross @ torch.linalg.solve(
            kernel, cross.T
        )
        here = slice(begin_query, end_query)
        assert torch.allclose(prediction.mean[here], fitted.mean_ + fitted.deviation_ * mean, rtol=1e-10)
        variance = fitted.deviation_**2 * (unknown.diagonal() + noise[asked])
        assert torch.allclose(prediction.variance[here], variance, rtol=1e-9)
        assert torch.allclose(prediction.noise[here], fitted.deviation_**2 * noise[asked], rtol=1e-12)


def test_its_loss_is_the_negative_log_density_of_the_query(fitted: Alpaca, tasks: Tasks):
    prediction = fitted.predict(fitted.adapt(tasks.support), tasks.query)
    law = torch.distributions.Normal(prediction.mean, prediction.variance.sqrt())
    expected = -law.log_prob(tasks.rating).mean() - torch.tensor(fitted.deviation_).log()
    assert fitted.loss(tasks).item() == pytest.approx(expected.item(), rel=1e-9)
