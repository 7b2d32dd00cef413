"""The components of a peak on CUDA, by what is held then: here with a meter whose peak is set by hand."""

import torch

from probes.worker.walk import Walk


class Meter:
    """Peaks as a CUDA device would tell them."""

    def __init__(self):
        self.bytes = 0

    def peak(self):
        return self.bytes, self.bytes

    def raised(self):
        return self.bytes


class Load:
    """What runs: an optimizer with one state."""

    def __init__(self):
        self.state = []

    def holdings(self):
        return {"optimizer_state": [self.state]}


def made(masters=False):
    model = torch.nn.Sequential(torch.nn.Linear(256, 256, bias=False), torch.nn.Linear(256, 256, bias=False))
    meter, load = Meter(), Load()
    walk = Walk(model, meter, masters=masters)
    walk.watch(load)
    return walk, model, meter, load


WEIGHTS = 2 * 256 * 256 * 4


def test_the_rest_of_a_peak_are_activations_and_everything_adds_up():
    walk, _, meter, load = made()
    walk.begin("forward")
    load.state.append(torch.zeros(1000))
    meter.bytes = WEIGHTS + 4096 + 512
    assert walk.components() == {"weights": WEIGHTS, "optimizer_state": 4096, "activations": 512}


def test_gradients_count_as_many_as_there_were_when_the_peak_was_raised():
    """The peak stands when the backward begins to make gradients: at first none, then the last layer's."""
    walk, model, meter, _ = made()
    loss = model(torch.ones(1, 256)).sum()
    walk.begin("backward")
    meter.bytes = WEIGHTS + 2_000_000
    loss.backward()
    assert "gradients" not in walk.components()
    loss = model(torch.ones(1, 256)).sum()
    walk.begin("backward")
    loss.backward()
    assert walk.components()["gradients"] == WEIGHTS


def test_fp32_parameters_of_a_mixed_training_are_masters():
    walk, _, meter, _ = made(masters=True)
    walk.begin("load")
    meter.bytes = WEIGHTS
    assert walk.components() == {"master_weights": WEIGHTS}
