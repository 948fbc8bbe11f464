"""Heat maps lie where the evidence is known to lie, follow the weights, add up, and leave the model as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from resnet_models.checkpointing import checkpoint_activations
from resnet_models.explain.gradcam import grad_cam, grad_cam_plus_plus
from resnet_models.explain.integrated import integrated_gradients
from resnet_models.explain.occlusion import occlusion
from resnet_models.resnet import ResNet, build
from tests.squares import SPEC, square_batch, trained_on_squares

Method = Callable[..., Tensor]
METHODS: list[Method] = [grad_cam, grad_cam_plus_plus, integrated_gradients, occlusion]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)


@pytest.fixture(scope="module")
def trained() -> ResNet:
    return trained_on_squares()


def mass_inside(maps: Tensor, inside: Tensor) -> Tensor:
    """Return the share (N,) of each map's positive part that lies within two pixels of the square."""
    near = nn.functional.max_pool2d(inside[:, None].float(), 5, stride=1, padding=2)[:, 0]
    positive = maps.relu()
    return (positive * near).sum(dim=(1, 2)) / positive.sum(dim=(1, 2)).clamp(min=1e-12)


def rank_correlation(left: Tensor, right: Tensor) -> Tensor:
    """Return Spearman's correlation (N,) of maps."""
    ranks = [maps.flatten(1).argsort(dim=1).argsort(dim=1).double() for maps in (left, right)]
    a, b = (rank - rank.mean(dim=1, keepdim=True) for rank in ranks)
    return (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))


@every_method
def test_maps_lie_in_the_square_that_decides(method: Method, trained: ResNet) -> None:
    images, targets, inside = square_batch(10, seed=7)
    assert torch.equal(trained(images).argmax(dim=1), targets)
    maps = method(trained, images)
    assert (maps.shape, maps.dtype) == ((10, 32, 32), torch.float32)
    share = mass_inside(maps, inside)  # the square and its rim are 14% of the image
    assert share.mean() > 0.7
    assert share.min() > 0.5


@every_method
def test_random_weights_give_other_maps(method: Method, trained: ResNet) -> None:
    """The sanity check of Adebayo et al. 2018, arXiv:1810.03292: a map that survives it shows edges, not the model."""
    images, targets, inside = square_batch(8, seed=8)
    random = build(SPEC, seed=5).eval()
    maps, others = method(trained, images, targets), method(random, images, targets)
    assert rank_correlation(maps, maps).min() > 0.999
    assert rank_correlation(maps, others).mean() < 0.5
    assert mass_inside(others, inside).mean() < mass_inside(maps, inside).mean() - 0.2


@every_method
def test_model_stays_as_it_was(method: Method, trained: ResNet) -> None:
    images, _, _ = square_batch(2, seed=3)
    kept = images.clone()
    trained.train()
    trained.stages[0].eval()  # a mode of its own, as frozen stages have
    trained.head.weight.requires_grad_(False)
    trained.head.bias.grad = torch.ones_like(trained.head.bias)
    state = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    modes = [module.training for module in trained.modules()]
    generator = torch.get_rng_state()
    try:
        with torch.no_grad():
            first, second = method(trained, images), method(trained, images)
        with torch.inference_mode():
            third = method(trained, images)
        assert torch.equal(first, second)
        assert torch.equal(first, third)
        assert not first.requires_grad
        assert torch.equal(images, kept)
        assert [module.training for module in trained.modules()] == modes
        assert all(torch.equal(tensor, state[name]) for name, tensor in trained.state_dict().items())
        assert [name for name, weight in trained.named_parameters() if weight.grad is not None] == ["head.bias"]
        assert torch.equal(trained.head.bias.grad, torch.ones_like(trained.head.bias))
        assert not trained.head.weight.requires_grad
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in trained.modules())
        assert torch.equal(torch.get_rng_state(), generator)
    finally:
        trained.eval()
        trained.head.weight.requires_grad_(True)
        trained.head.bias.grad = None


@every_method
def test_model_stays_as_it_was_after_an_error(method: Method, trained: ResNet) -> None:
    trained.train()
    try:
        with pytest.raises(ValueError, match="in_channels is 3: the images have shape"):
            method(trained, torch.zeros(1, 4, 32, 32))
        assert all(module.training for module in trained.modules())
        assert not any(module._forward_hooks for module in trained.modules())
    finally:
        trained.eval()


@every_method
def test_an_image_is_explained_alike_in_any_batch(method: Method, trained: ResNet) -> None:
    images, targets, _ = square_batch(3, seed=2)
    together = method(trained, images, targets)
    for index in range(3):
        alone = method(trained, images[index : index + 1], int(targets[index]))
        torch.testing.assert_close(alone[0], together[index], rtol=1e-3, atol=1e-5)


@every_method
def test_odd_sizes_and_other_modules(method: Method) -> None:
    """Any module that gives logits, with in-place operations and frozen weights too."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.ReLU(inplace=True),
        nn.Conv2d(1, 4, 3),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    ).requires_grad_(False)
    images = torch.randn(2, 1, 19, 31)
    kept = images.clone()
    options = {"layer": "1"} if method in (grad_cam, grad_cam_plus_plus) else {}
    maps = method(model, images, 1, **options)
    assert maps.shape == (2, 19, 31)
    assert maps.abs().sum() > 0
    assert torch.equal(images, kept)


@pytest.mark.parametrize("baseline", [0.0, 0.5, torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(1))])
def test_integrated_gradients_are_complete(baseline: float | Tensor, trained: ResNet) -> None:
    images, targets, _ = square_batch(3, seed=4)
    maps = integrated_gradients(trained, images, targets, baseline=baseline, steps=96)
    start = torch.as_tensor(baseline).expand(images.shape)
    rise = (trained(images) - trained(start)).gather(1, targets[:, None])[:, 0].detach()
    assert rise.abs().max() > 1.0
    torch.testing.assert_close(maps.sum(dim=(1, 2)), rise, rtol=0.01, atol=0.02)


def test_integrated_gradients_of_a_linear_model_are_exact() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 5, 2))
    images = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    maps = integrated_gradients(model, images, 1, steps=1)
    expected = (images * model[1].weight[1].view(3, 4, 5)).sum(dim=1)
    torch.testing.assert_close(maps, expected.detach())


def test_grad_cam_is_the_papers_sum() -> None:
    """One linear layer on averaged maps: Grad-CAM is then the class's weights times the maps (CAM), eq. 1 and 2."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)
    )
    images = torch.randn(3, 3, 8, 8)
    maps = torch.relu(model[0](images))
    expected = torch.einsum("k,nkhw->nhw", model[4].weight[2] / 64, maps).relu().detach()
    torch.testing.assert_close(grad_cam(model, images, 2, layer="1"), expected)
    plus = grad_cam_plus_plus(model, images, 2, layer="1")
    gradient = model[4].weight[2] / 64  # the same at every place, so eq. 19's sums can be written out
    sums = maps.sum(dim=(2, 3))
    weights = 64 * gradient.relu() * gradient**2 / (2 * gradient**2 + sums * gradient**3)
    expected = torch.einsum("nk,nkhw->nhw", torch.where(gradient > 0, weights, 0.0), maps).relu().detach()
    torch.testing.assert_close(plus, expected)


def test_occlusion_of_a_sum_is_what_was_covered() -> None:
    class BrightCorner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, :, :2, :2].sum(dim=(1, 2, 3)), x[:, :, 5:].sum(dim=(1, 2, 3))], dim=1)

    images = torch.ones(1, 2, 7, 9)
    maps = occlusion(BrightCorner(), images, 0, size_px=2, stride_px=2)
    assert maps[0, :2, :2].eq(8.0).all()
    assert maps[0, 2:].eq(0.0).all()
    assert maps[0, :, 2:].eq(0.0).all()
    filled = occlusion(BrightCorner(), images, 0, size_px=2, stride_px=2, fill=torch.tensor([1.0, 0.0])[:, None, None])
    assert filled[0, 0, 0] == 4.0  # the first channel stayed


def test_a_checkpointed_network_is_explained_alike(trained: ResNet) -> None:
    images, targets, _ = square_batch(2, seed=5)
    network = copy.deepcopy(trained)
    checkpoint_activations(network)
    for method in (grad_cam, integrated_gradients):
        assert torch.equal(method(network, images, targets), method(trained, images, targets))


def test_target_takes_a_class_for_all_or_one_each(trained: ResNet) -> None:
    images, _, _ = square_batch(3, seed=6)
    each = grad_cam(trained, images, torch.tensor([0, 1, 2]))
    for index in range(3):
        assert torch.equal(each[index], grad_cam(trained, images, index)[index])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            (torch.zeros(3, 8, 8),),
            {},
            r"images are float32 \[3, 8, 8\]: give the batch \(N, C, H, W\) of normalised floats",
        ),
        ((torch.zeros(1, 3, 32, 32, dtype=torch.uint8),), {}, r"images are uint8 \[1, 3, 32, 32\]: give the batch"),
        ((torch.zeros(0, 3, 32, 32),), {}, r"images are float32 \[0, 3, 32, 32\]: give the batch"),
        ((torch.zeros(1, 3, 32, 32), 3), {}, "target is 3: the model's classes are 0 to 2"),
        ((torch.zeros(1, 3, 32, 32), -1), {}, "target is -1: the model's classes are 0 to 2"),
        ((torch.zeros(1, 3, 32, 32), torch.tensor([1, 1])), {}, "give one class, or one per image"),
        ((torch.zeros(1, 3, 32, 32), torch.tensor([0.5])), {}, "give one class, or one per image"),
    ],
)
@every_method
def test_bad_input_is_refused(
    method: Method, arguments: tuple[object, ...], options: dict[str, object], message: str, trained: ResNet
) -> None:
    with pytest.raises(ValueError, match=message):
        method(trained, *arguments, **options)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (
            grad_cam,
            {"layer": "stages.7"},
            r"layer is 'stages.7': the model has no such module; did you mean stages\.[01]",
        ),
        (grad_cam, {"layer": ""}, "layer is '': the model has no such module; its modules are stem, stages"),
        (grad_cam, {"layer": "head"}, r"layer head gives \[1, 3\]: Grad-CAM needs feature maps \(N, K, h, w\)"),
        (integrated_gradients, {"steps": 0}, "steps is 0: it must be 1 or more"),
        (
            integrated_gradients,
            {"baseline": torch.zeros(2, 5, 5)},
            r"baseline has shape \[2, 5, 5\]: it must fit \[1, 3, 32, 32\]",
        ),
        (
            occlusion,
            {"fill": torch.zeros(2, 1, 1)},
            r"fill has shape \[2, 1, 1\]: give a number, or a colour \[3, 1, 1\]",
        ),
        (occlusion, {"size_px": 33}, "size_px is 33: it must be 1 to 32, the image's shorter side"),
        (
            occlusion,
            {"size_px": 4, "stride_px": 5},
            r"stride_px is 5: it must be 1 to size_px \(4\), or pixels are never",
        ),
    ],
)
def test_bad_options_are_refused(method: Method, options: dict[str, object], message: str, trained: ResNet) -> None:
    with pytest.raises(ValueError, match=message):
        method(trained, torch.zeros(1, 3, 32, 32), **options)


def test_a_module_without_stages_needs_a_layer() -> None:
    with pytest.raises(ValueError, match="layer is None: a Linear has no stages; name a module with feature maps"):
        grad_cam(nn.Linear(2, 2), torch.zeros(1, 3, 8, 8))


def test_a_model_without_logits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the model's output is \[1, 3, 8, 8\]: explanations need logits"):
        occlusion(nn.Identity(), torch.zeros(1, 3, 8, 8))
