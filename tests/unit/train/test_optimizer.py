from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipelines.errors import ConfigError, DataError
from pipelines.train.config import OptimizerConfig
from pipelines.train.ema import WeightAverage
from pipelines.train.optimizer import load_state_tensors, make_optimizer, set_rate, state_tensors
from pipelines.train.precision import Precision, has_cpu_bf16, resolve_precision


def make_net(width: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2)
    )


def train_step(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    net(images).square().sum().backward()
    optimizer.step()


def test_norms_and_biases_are_not_decayed() -> None:
    net = make_net()
    optimizer = make_optimizer(net, OptimizerConfig(weight_decay=0.01))
    decayed, free = optimizer.param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3, 3, 3), (2, 4)]
    assert decayed["weight_decay"] == 0.01
    assert free["weight_decay"] == 0.0
    assert len(free["params"]) == 4


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_biases_of_norms_alone_hurry_and_a_step_decays_them_as_it_does_the_weights(name: str) -> None:
    net = make_net()
    config = OptimizerConfig(name=name, lr=0.01, weight_decay=0.5, norm_bias_factor=64.0, momentum=0.0)
    optimizer = make_optimizer(net, config)
    weights, free, hurried = optimizer.param_groups
    assert [p is net[1].bias for p in hurried["params"]] == [True]
    assert {id(p) for p in free["params"]} == {id(net[0].bias), id(net[1].weight), id(net[4].bias)}
    set_rate(optimizer, 0.005)
    assert [group["lr"] for group in (weights, free, hurried)] == [0.005, 0.005, 0.32]
    with torch.no_grad():
        net[1].bias.fill_(1.0)
    before = net[0].weight.detach().clone()
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(net[1].bias.detach(), torch.full((4,), 1 - 0.005 * 0.5))
    torch.testing.assert_close(net[0].weight.detach(), before * (1 - 0.005 * 0.5))


def test_the_state_of_a_start_leaves_no_momentum_behind() -> None:
    net = make_net()
    optimizer = make_optimizer(net, OptimizerConfig(lr=0.01))
    train_step(net, optimizer, seed=0)
    assert state_tensors(net, optimizer)
    load_state_tensors(net, optimizer, {})
    assert state_tensors(net, optimizer) == {}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_state_survives_as_named_tensors(name: str) -> None:
    config = OptimizerConfig(name=name, lr=0.01)
    one = make_net()
    optimizer = make_optimizer(one, config)
    for seed in range(3):
        train_step(one, optimizer, seed)
    two = make_net()
    two.load_state_dict(one.state_dict())
    resumed = make_optimizer(two, config)
    load_state_tensors(two, resumed, state_tensors(one, optimizer))
    train_step(one, optimizer, 9)
    train_step(two, resumed, 9)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_steps_are_those_of_torchs_own_optimisers_to_the_bit(name: str) -> None:
    ours, peers = make_net(), make_net()
    optimizer = make_optimizer(ours, OptimizerConfig(name=name, lr=0.01))
    options = {key: value for key, value in optimizer.defaults.items() if key in ("betas", "momentum", "nesterov")}
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[name]
    by_shape = [[p for p in peers.parameters() if (p.ndim > 1) == is_decayed] for is_decayed in (True, False)]
    groups = [
        {"params": params, "weight_decay": group["weight_decay"]}
        for params, group in zip(by_shape, optimizer.param_groups, strict=True)
    ]
    peer = kind(groups, lr=0.01, fused=True, **options)
    for seed in range(3):
        train_step(ours, optimizer, seed)
        train_step(peers, peer, seed)
    for a, b in zip(ours.parameters(), peers.parameters(), strict=True):
        assert torch.equal(a, b)
        assert b.grad is not None
    optimizer.zero_grad()
    assert all(p.grad is None for p in ours.parameters())


def test_state_of_another_network_is_refused_by_name() -> None:
    wide = make_net(5)
    optimizer = make_optimizer(wide, OptimizerConfig())
    train_step(wide, optimizer, 0)
    tensors = state_tensors(wide, optimizer)
    net = make_net()
    with pytest.raises(DataError, match=r"optimiser state 0\.weight/momentum_buffer of shape \(5, 3, 3, 3\) fits no"):
        load_state_tensors(net, make_optimizer(net, OptimizerConfig()), tensors)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_step_that_the_scaler_leaves_out_leaves_no_trace(name: str) -> None:
    """The first steps in fp16 often overflow; a fused SGD would go on from a momentum that was never written."""

    def trained(gradients: list[float]) -> list[Tensor]:
        network = nn.Linear(3, 2)
        nn.init.constant_(network.weight, 1.0)
        nn.init.constant_(network.bias, 1.0)
        optimizer = make_optimizer(network, OptimizerConfig(name=name, lr=0.1, momentum=0.9), skips_steps=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1000)
        for gradient in gradients:
            loss = (network(torch.ones(1, 3)) * gradient).sum()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return [parameter.detach().clone() for parameter in network.parameters()]

    for one, other in zip(trained([float("inf"), 1.0, 2.0]), trained([1.0, 2.0]), strict=True):
        torch.testing.assert_close(one, other)


def test_set_rate_reaches_every_group() -> None:
    optimizer = make_optimizer(make_net(), OptimizerConfig())
    set_rate(optimizer, 0.025)
    assert [group["lr"] for group in optimizer.param_groups] == [0.025, 0.025]


def test_average_follows_the_network_quickly_at_first_then_slowly() -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)
    average = WeightAverage(net, 0.9)
    nn.init.ones_(net.weight)
    average.update(net, 1)
    assert average.tensors["weight"].item() == pytest.approx(1 - 2 / 11)
    nn.init.zeros_(net.weight)
    before = average.tensors["weight"].item()
    average.update(net, 10_000)
    assert average.tensors["weight"].item() == pytest.approx(0.9 * before)


def test_average_covers_norm_statistics_and_copies_counters() -> None:
    net = make_net()
    average = WeightAverage(net, 0.5)
    net(torch.randn(4, 3, 8, 8))
    average.update(net, 1000)
    assert torch.allclose(average.tensors["1.running_var"], (1 + net[1].running_var) / 2)
    assert average.tensors["1.num_batches_tracked"].item() == 1


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="precision is fp16 and training runs on a CPU"):
        resolve_precision("fp16", torch.device("cpu"))


def test_auto_takes_bf16_on_a_cpu_only_where_it_is_in_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    for has, name in [(False, "float32"), (True, "bf16")]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: {"avx512_bf16": has})
        assert has_cpu_bf16() is has
        assert resolve_precision("auto", torch.device("cpu")) == Precision(name, "cpu")


def test_emulated_bf16_is_warned_about(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    precision = resolve_precision("bf16", torch.device("cpu"))
    assert "precision is bf16, which this CPU has to emulate" in caplog.text
    with precision.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_float32_leaves_the_network_alone() -> None:
    with Precision("float32", "cpu").autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
