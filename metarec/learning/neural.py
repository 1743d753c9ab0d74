"""What learners with a network share: the network in `fit`, in the state and in artifacts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from metarec.data import Dataset, Side
from metarec.device import seeded
from metarec.errors import ConfigError
from metarec.learning.algorithm import Algorithm, moved
from metarec.learning.biases import Baseline, Biases, fit_biases, fit_popularity
from metarec.learning.embedding import EntityEmbedding
from metarec.learning.run import Run
from metarec.learning.training import Trainer, Training
from metarec.learning.virtual import VirtualEntities
from metarec.tasks import Sampling, Tasks, TaskSampler

INITIALISATIONS: dict[str, Callable[[Tensor], object]] = {
    "normal": partial(nn.init.normal_, std=0.1),
    "uniform": partial(nn.init.uniform_, a=-0.1, b=0.1),
    "xavier": nn.init.xavier_uniform_,
}


@dataclass(frozen=True)
class Sizes:
    """What a network must know of the training set: numbers of entities and of feature columns."""

    users: int
    items: int
    user_columns: int
    item_columns: int

    @classmethod
    def of(cls, train: Dataset) -> Sizes:
        """Those of a training set with features."""
        assert train.users.features is not None and train.items.features is not None, (
            "a split encodes both sides"
        )
        return cls(len(train.users), len(train.items), train.users.features.width, train.items.features.width)


class NeuralAlgorithm(Algorithm):
    """Base of algorithms that train a network on tasks.

    A subclass says what the network is (`build`) and how it is judged (`loss`). Ratings are standardised: the network
    sees ``(r − mean) / deviation`` of the training ratings, or 0 and 1 where feedback is implicit.

    Before the network, biases of users and items are fitted, or how often each was chosen: a network that takes up what
    its `baseline` says starts where the best of the floors stands, and learns the rest.

    Attributes
    ----------
    sides : tuple of "user", "item"
        Whose tasks it trains on, default both: one network for new users and for new items.

    Parameters
    ----------
    training : Training
        How the weights are trained.
    sampling : Sampling
        How training tasks are drawn.
    """

    sides: ClassVar[tuple[Side, ...]] = ("user", "item")
    network_: nn.Module

    def __init__(self, *, training: Training = Training(), sampling: Sampling = Sampling()) -> None:
        self.training = training
        self.sampling = sampling

    @abstractmethod
    def build(self, sizes: Sizes) -> nn.Module:
        """A network with fresh weights, on the CPU and drawn from torch's default generator.

        So that they are the same ones wherever the network goes.
        """

    @abstractmethod
    def loss(self, tasks: Tasks) -> Tensor:
        """The mean loss of the tasks' query ratings, differentiable in the network's weights."""

    def fit(self, train: Dataset, *, valid: Tasks | None = None, run: Run = Run()) -> Self:
        """Train the network on tasks of the known entities.

        Where `valid` is not given, some of them are first taken for newcomers, to see how many epochs serve those
        best; then a fresh network is trained on all of them, for as many epochs.
        """
        self.sizes_ = asdict(Sizes.of(train))
        self.implicit_ = train.scale.implicit
        self.mean_ = 0.0 if self.implicit_ else float(train.rating.mean())
        self.deviation_ = 1.0 if self.implicit_ else max(float(train.rating.std()), 1e-3)
        biases = fit_popularity(train) if self.implicit_ else fit_biases(train)
        self.biases_ = moved(asdict(biases), run.device)
        sampler = TaskSampler(train, self.sides, self.sampling, device=run.device, dtype=run.dtype)
        if valid is not None:
            self._train(self._with_virtual(sampler, train, run), [valid], run)
        else:
            epochs = self._best_epochs(sampler, train, run)
            self._train(self._with_virtual(sampler, train, run), [], run, epochs)
        self.network_.eval()
        return self

    def _with_virtual(self, sampler: TaskSampler, train: Dataset, run: Run) -> TaskSampler:
        """The sampler, with virtual entities where it wants some: of a model of the ratings that it draws from."""
        if self.sampling.virtual == 0:
            return sampler
        if train.scale.implicit:
            raise ConfigError(
                f"algorithm {self.name!r}: sampling.virtual is {self.sampling.virtual}, expected 0 where feedback is "
                "implicit"
            )
        return sampler.with_virtual(VirtualEntities.fit(train.take(sampler.interactions), run))

    def _best_epochs(self, sampler: TaskSampler, train: Dataset, run: Run) -> int | None:
        """After how many epochs without them newcomers were served best; None where there are none."""
        rest, newcomers = sampler.hold_out(self.training.held_out, run.generator())
        if not newcomers or not len(rest):
            return None
        if run.checkpoint is not None:
            run = replace(run, checkpoint=run.checkpoint.with_name(f"{run.checkpoint.name}.held-out"))
        return self._train(self._with_virtual(rest, train, run), newcomers, run)

    def _train(
        self, sampler: TaskSampler, valid: Sequence[Tasks], run: Run, epochs: int | None = None
    ) -> int:
        """Train a fresh network; the epochs that its weights come from."""
        with seeded(run.seed):
            network = self.build(Sizes(**self.sizes_))
            if self.training.initialisation != "default":
                initialise(network, INITIALISATIONS[self.training.initialisation])
            self.network_ = network.to(run.device, run.dtype)
        trainer = Trainer(
            self.network_, self.loss, self.training, run, name=self.name, backward=self.backward
        )
        return trainer.train(
            sampler, valid, lambda epoch, values: run.report(self, epoch, values), epochs=epochs
        )

    def backward(self, tasks: Tasks) -> Tensor:
        """Add the gradients of a batch to the weights', and return its loss; by autograd through `loss`."""
        loss = self.loss(tasks)
        loss.backward()
        return loss

    def state(self) -> dict[str, Any]:
        """What `fit` learnt, the network as a mapping of its tensors."""
        learnt = super().state()
        return {**learnt, "network_": dict(self.network_.state_dict())} if "network_" in learnt else learnt

    def restore(self, state: Mapping[str, Any]) -> Self:
        """Take up what another instance's `state` holds; return self."""
        super().restore({name: value for name, value in state.items() if name != "network_"})
        weights = state["network_"]
        like = next(iter(weights.values()))
        with seeded(0):
            network = self.build(Sizes(**self.sizes_))
        network.to(like.device, like.dtype).load_state_dict(weights)
        self.network_ = network.eval()
        return self

    def baseline(self, side: Side) -> Baseline:
        """What the biases say of the standardised ratings of a side's tasks; a part of a network, on the CPU."""
        return Baseline(Biases(**moved(self.biases_, "cpu")), side, self.mean_, self.deviation_)

    def standardised(self, rating: Tensor) -> Tensor:
        """Ratings as the network sees them."""
        return (rating - self.mean_) / self.deviation_

    def rated(self, output: Tensor) -> Tensor:
        """Ratings that the network's outputs stand for."""
        return self.mean_ + self.deviation_ * output


class Perceptron(nn.Sequential):
    """Two layers."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))

    @property
    def last(self) -> nn.Linear:
        """The second layer."""
        return cast(nn.Linear, self[-1])


def silent(layer: nn.Linear) -> nn.Linear:
    """It, with weights of 0: at first nothing is added to the baseline."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def initialise(network: nn.Module, draw: Callable[[Tensor], object]) -> None:
    """Draw the tables of embeddings and the matrices of linear layers anew; set the biases of these to 0."""
    for part in network.modules():
        if isinstance(part, nn.Linear):
            draw(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, EntityEmbedding):
            for table in part.parameters(recurse=False):
                draw(table)


# Rows are taken by `index_select`, here and in what builds on this: the gradient of plain indexing adds in an order
# that depends on the threads.
def distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The different values of `rows` (int64 [n]), rising, and the place of each entry's in them."""
    values, places = torch.unique(rows, return_inverse=True)
    return values, places
