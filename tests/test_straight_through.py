"""Values that are exactly what they should be, with gradients that an attack can use."""

import torch

from autoshield_bench.straight_through import clip_to_range, straight_through


def test_clipping_is_exact_and_lets_gradients_through_at_the_ends_of_the_range():
    x = torch.tensor([-5.3, -1e-9, 0.0, 0.5, 1.0, 1.0000001, 7.7], requires_grad=True)
    clipped = clip_to_range(x)
    assert clipped.tolist() == [0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0]
    clipped.sum().backward()
    assert x.grad.tolist() == [1.0] * 7


def test_the_value_of_one_with_the_gradient_of_the_other():
    x = torch.tensor([0.2, 0.7], requires_grad=True)
    value = straight_through((x * 4).round() / 4, 3 * x)
    assert value.tolist() == [0.25, 0.75]
    value.sum().backward()
    assert x.grad.tolist() == [3.0, 3.0]
