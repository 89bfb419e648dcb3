"""Trains a small neural network on scikit-learn's handwritten digits, and logs every step of it.

The network has one hidden layer; its gradients are written out below, and nothing but numpy does the work. The data (1797
images of 8x8 pixels) lie inside scikit-learn, so nothing is downloaded. A run takes about two seconds.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy
from numpy.typing import NDArray
from sklearn.datasets import load_digits

import sdk

Array = NDArray[numpy.float64]
Labels = NDArray[numpy.int64]
CLASSES = 10
WARM_UP_SHARE = 0.05


class Split(NamedTuple):
    """Images float64[n, 64] in 0..1 and their digits int64[n]."""

    images: Array
    labels: Labels


class Gradients(NamedTuple):
    """The loss of a batch, how many of it were right, and the derivative of the loss by each parameter."""

    loss: float
    accuracy: float
    by_parameter: list[Array]


class Network:
    """64 pixels -> tanh hidden layer -> softmax over the ten digits."""

    def __init__(self, hidden: int, generator: numpy.random.Generator) -> None:
        """Draws the weights with the scale of Glorot and Bengio (2010), which suits tanh."""
        self.parameters: list[Array] = []
        for inputs, outputs in ((64, hidden), (hidden, CLASSES)):
            scale = math.sqrt(6 / (inputs + outputs))
            self.parameters += [generator.uniform(-scale, scale, (inputs, outputs)), numpy.zeros(outputs)]

    def forward(self, images: Array) -> tuple[Array, Array]:
        """The hidden activations float64[n, hidden] and the log-probabilities float64[n, 10]."""
        weight_1, bias_1, weight_2, bias_2 = self.parameters
        hidden = numpy.tanh(images @ weight_1 + bias_1)
        logits = hidden @ weight_2 + bias_2
        logits -= logits.max(axis=1, keepdims=True)
        return hidden, logits - numpy.log(numpy.exp(logits).sum(axis=1, keepdims=True))

    def evaluate(self, data: Split) -> tuple[float, float]:
        """Mean cross-entropy and accuracy."""
        _, log_probabilities = self.forward(data.images)
        rows = numpy.arange(len(data.labels))
        right = log_probabilities.argmax(axis=1) == data.labels
        return float(-log_probabilities[rows, data.labels].mean()), float(right.mean())

    def gradients(self, batch: Split, weight_decay: float) -> Gradients:
        """Back-propagation, by hand: of softmax with cross-entropy, the derivative by the logits is p - y."""
        weight_1, _, weight_2, _ = self.parameters
        hidden, log_probabilities = self.forward(batch.images)
        count = len(batch.labels)
        rows = numpy.arange(count)
        by_logits = numpy.exp(log_probabilities)
        by_logits[rows, batch.labels] -= 1.0
        by_logits /= count
        by_hidden = (by_logits @ weight_2.T) * (1.0 - hidden * hidden)
        return Gradients(
            loss=float(-log_probabilities[rows, batch.labels].mean()),
            accuracy=float((log_probabilities.argmax(axis=1) == batch.labels).mean()),
            by_parameter=[
                batch.images.T @ by_hidden + weight_decay * weight_1,
                by_hidden.sum(axis=0),
                hidden.T @ by_logits + weight_decay * weight_2,
                by_logits.sum(axis=0),
            ],
        )


class Momentum:
    """Stochastic gradient descent with heavy-ball momentum (0: plain)."""

    def __init__(self, parameters: list[Array], momentum: float) -> None:
        """Borrows the arrays and changes them in place."""
        self.parameters = parameters
        self.momentum = momentum
        self.velocities = [numpy.zeros_like(parameter) for parameter in parameters]

    def step(self, gradients: list[Array], learning_rate: float) -> None:
        """Moves every parameter once."""
        for parameter, velocity, gradient in zip(self.parameters, self.velocities, gradients):
            velocity *= self.momentum
            velocity -= learning_rate * gradient
            parameter += velocity


def load(seed: int) -> tuple[Split, Split]:
    """The digits, shuffled: four fifths to train on, one fifth to measure on."""
    digits = load_digits()
    order = numpy.random.default_rng(seed).permutation(len(digits.target))
    images, labels = digits.data[order] / 16.0, digits.target[order]
    cut = len(labels) * 4 // 5
    return Split(images[:cut], labels[:cut]), Split(images[cut:], labels[cut:])


def batches(data: Split, size: int, generator: numpy.random.Generator) -> Iterator[Split]:
    """One epoch in a new order; the last, smaller batch is left out."""
    order = generator.permutation(len(data.labels))
    for start in range(0, len(order) - size + 1, size):
        chosen = order[start : start + size]
        yield Split(data.images[chosen], data.labels[chosen])


def learning_rate_at(step: int, steps: int, highest: float) -> float:
    """A short linear warm-up, then half a cosine down to zero."""
    warm_up = max(1, int(steps * WARM_UP_SHARE))
    if step < warm_up:
        return highest * (step + 1) / warm_up
    return highest * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def train(options: argparse.Namespace) -> float:
    """Trains, logs each step, and returns the best accuracy on the images that were not trained on."""
    training, validation = load(options.seed)
    generator = numpy.random.default_rng(options.seed + 1)
    network = Network(options.hidden, generator)
    optimizer = Momentum(network.parameters, options.momentum)
    steps_per_epoch = len(training.labels) // options.batch_size
    steps = steps_per_epoch * options.epochs
    best_accuracy = 0.0
    step = 0
    config = {key: value for key, value in vars(options).items() if key not in ("name", "project")}
    with sdk.init(project=options.project, name=options.name, config=config) as run:
        for epoch in range(options.epochs):
            for batch in batches(training, options.batch_size, generator):
                learning_rate = learning_rate_at(step, steps, options.learning_rate)
                gradients = network.gradients(batch, options.weight_decay)
                optimizer.step(gradients.by_parameter, learning_rate)
                step += 1
                if step % steps_per_epoch == 0:
                    # Pieces of the same row: what is known first waits for the rest of its step.
                    loss, accuracy = network.evaluate(validation)
                    sdk.log({"val/loss": loss}, commit=False)
                    sdk.log({"val/accuracy": accuracy, "epoch": epoch}, commit=False)
                    best_accuracy = max(best_accuracy, accuracy)
                sdk.log(
                    {
                        "train/loss": gradients.loss,
                        "train/accuracy": gradients.accuracy,
                        "train/learning_rate": learning_rate,
                        "train/gradient_norm": math.sqrt(sum(float((g * g).sum()) for g in gradients.by_parameter)),
                    }
                )
        run.summary["best_accuracy"] = best_accuracy
    return best_accuracy


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The hyperparameters of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--name", help="name of the run (default: one is made up)")
    parser.add_argument("--project", default="digits")
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--weight-decay", type=float, default=1e-4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=48)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seed", type=int, default=7)
    return parser.parse_args(arguments)


def main() -> None:
    """Trains one network with the hyperparameters of the command line."""
    options = parse()
    best_accuracy = train(options)
    print(f"{options.name or 'the run'}: best accuracy {best_accuracy:.4f} after {options.epochs} epochs")


if __name__ == "__main__":
    main()
