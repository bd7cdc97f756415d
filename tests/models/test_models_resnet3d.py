"""The paper's networks are those of its Table 3, and interchange weights with 3D-ResNets-PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctcovid.models import registry, resnet3d
from ctcovid.models.architectures import ARCHITECTURES
from ctcovid.models.resnet3d import BasicBlock, Bottleneck

# Table 3: N of Conv2 to Conv5. The (2+1)D networks replace the convolutions only (Sec. 2.6).
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}
PAPER = [name for name in ARCHITECTURES if not name.startswith("tv_")]


def layers(name: str) -> int:
    return int(name.removeprefix("r3d").removeprefix("r2plus1d"))


def meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return registry.create(name).eval()


def feature_maps(name: str, depth: int, size: int) -> dict[str, tuple[int, ...]]:
    """Channels, depth, height and width of what each stage gives, without computing anything."""
    network, shapes = meta(name), {}

    def keep(stage: str) -> Callable[..., None]:
        return lambda module, inputs, output: shapes.update({stage: tuple(output.shape[1:])})

    stem = "conv1_t" if network.factorised else "conv1"
    for stage in (stem, "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc"):
        network.get_submodule(stage).register_forward_hook(keep("conv1" if stage == stem else stage))
    with torch.inference_mode():
        network(torch.empty(1, 1, depth, size, size, device="meta"))
    return shapes


@pytest.mark.parametrize("name", ["r3d18", "r3d34", "r3d50", "r2plus1d18", "r2plus1d34", "r2plus1d50"])
def test_feature_maps_at_the_papers_depth_and_size_are_those_of_table_3(name: str) -> None:
    wider = 4 if layers(name) >= 50 else 1
    assert feature_maps(name, 4, 512) == {
        "conv1": (64, 4, 256, 256),
        "maxpool": (64, 2, 128, 128),
        "layer1": (64 * wider, 2, 128, 128),
        "layer2": (128 * wider, 1, 64, 64),
        "layer3": (256 * wider, 1, 32, 32),
        "layer4": (512 * wider, 1, 16, 16),
        "avgpool": (512 * wider, 1, 1, 1),
        "fc": (3,),
    }


@pytest.mark.parametrize("name", ["r3d18", "r2plus1d18"])
@pytest.mark.parametrize(("depth", "last"), [(2, 1), (4, 1), (8, 1), (16, 1), (32, 2), (64, 4)])
def test_every_depth_of_table_5_goes_through(name: str, depth: int, last: int) -> None:
    assert feature_maps(name, depth, 512)["layer4"] == (512, last, 16, 16)


@pytest.mark.parametrize("name", PAPER)
def test_stages_have_the_blocks_of_table_3(name: str) -> None:
    network = meta(name)
    kind = BasicBlock if layers(name) < 50 else Bottleneck
    for stage, blocks in enumerate(BLOCKS[layers(name)], start=1):
        found = list(network.get_submodule(f"layer{stage}"))
        assert len(found) == blocks
        assert all(type(block) is kind for block in found)


def test_the_first_convolution_of_a_stage_halves_all_three_dimensions() -> None:
    network = meta("r3d18")
    strides = {name: module.stride for name, module in network.named_modules() if isinstance(module, nn.Conv3d)}
    assert strides.pop("conv1") == (1, 2, 2)
    assert {name for name, stride in strides.items() if stride == (2, 2, 2)} == {f"layer{stage}.0.conv1" for stage in (2, 3, 4)}
    assert set(strides.values()) == {(1, 1, 1), (2, 2, 2)}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "r3d18",
            {
                "conv1.weight": (64, 3, 7, 7, 7),
                "bn1.running_var": (64,),
                "layer1.0.conv1.weight": (64, 64, 3, 3, 3),
                "layer2.0.conv1.weight": (128, 64, 3, 3, 3),
                "layer3.1.bn2.bias": (256,),
                "layer4.1.conv2.weight": (512, 512, 3, 3, 3),
                "fc.weight": (3, 512),
                "fc.bias": (3,),
            },
        ),
        (
            "r2plus1d18",
            {
                "conv1_s.weight": (110, 3, 1, 7, 7),
                "bn1_s.weight": (110,),
                "conv1_t.weight": (64, 110, 7, 1, 1),
                "bn1_t.weight": (64,),
                "layer1.0.conv1_s.weight": (144, 64, 1, 3, 3),
                "layer1.0.conv1_t.weight": (64, 144, 3, 1, 1),
                "layer2.0.conv1_s.weight": (230, 64, 1, 3, 3),
                "layer2.0.conv1_t.weight": (128, 230, 3, 1, 1),
                "layer2.0.conv2_s.weight": (288, 128, 1, 3, 3),
                "layer4.1.bn2_t.running_mean": (512,),
            },
        ),
        (
            "r3d50",
            {
                "layer1.0.conv1.weight": (64, 64, 1, 1, 1),
                "layer1.0.conv2.weight": (64, 64, 3, 3, 3),
                "layer1.0.conv3.weight": (256, 64, 1, 1, 1),
                "layer1.0.downsample.0.weight": (256, 64, 1, 1, 1),
                "layer1.0.downsample.1.num_batches_tracked": (),
                "layer2.0.downsample.0.weight": (512, 256, 1, 1, 1),
                "layer4.2.bn3.weight": (2048,),
                "fc.weight": (3, 2048),
            },
        ),
        (
            "r2plus1d50",
            {
                "layer1.0.conv1.weight": (64, 64, 1, 1, 1),
                "layer1.0.conv2_s.weight": (144, 64, 1, 3, 3),
                "layer1.0.conv2_t.weight": (64, 144, 3, 1, 1),
                "layer1.0.conv3.weight": (256, 64, 1, 1, 1),
            },
        ),
    ],
)
def test_parameters_have_the_names_and_shapes_of_3d_resnets_pytorch(name: str, expected: dict[str, tuple[int, ...]]) -> None:
    found = {key: tuple(tensor.shape) for key, tensor in meta(name).state_dict().items()}
    assert {key: found.get(key) for key in expected} == expected


@pytest.mark.parametrize("name", ["r3d18", "r3d34", "r2plus1d18", "r2plus1d34"])
def test_shortcuts_of_basic_blocks_have_no_parameters(name: str) -> None:
    assert not [key for key in meta(name).state_dict() if "downsample" in key or "shortcut" in key]


def test_bottlenecks_project_only_where_dimensions_grow() -> None:
    projections = {key.rsplit(".", 2)[0] for key in meta("r3d50").state_dict() if "downsample" in key}
    assert projections == {f"layer{stage}.0.downsample" for stage in (1, 2, 3, 4)}


@pytest.mark.parametrize("factorised", [False, True])
def test_the_basic_shortcut_passes_the_gradient(factorised: bool) -> None:
    """With a silenced second batch norm nothing but the shortcut is left of a block."""
    block = BasicBlock(4, 8, 2, factorised)
    norm = block.bn2_t if factorised else block.bn2
    nn.init.zeros_(norm.weight)
    x = torch.rand(2, 4, 4, 6, 6).add(0.1).requires_grad_()
    block(x).sum().backward()
    expected = torch.zeros_like(x)
    expected[:, :, ::2, ::2, ::2] = 1
    assert torch.equal(x.grad, expected)


class Plain:
    """The same networks once more, as one function of their weights, from nothing but torch's own 3D operations."""

    def __init__(self, weights: dict[str, Tensor], name: str, training: bool) -> None:
        self.weights, self.blocks, self.training = weights, BLOCKS[layers(name)], training
        self.used: set[str] = set()

    def __call__(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(F.relu(self.unit("conv1", "bn1", x, (1, 2, 2))), 3, 2, 1)
        for stage, blocks in enumerate(self.blocks, start=1):
            for number in range(blocks):
                x = self.block(f"layer{stage}.{number}.", x, 2 if stage > 1 and number == 0 else 1)
        return F.linear(x.mean((2, 3, 4)), self.get("fc.weight"), self.get("fc.bias"))

    def block(self, path: str, x: Tensor, s: int) -> Tensor:
        count = 3 if path + "conv3.weight" in self.weights else 2
        strides = {2: (s, 1), 3: (1, s, 1)}[count]
        y = x
        for number, stride in enumerate(strides, start=1):
            y = self.unit(f"{path}conv{number}", f"{path}bn{number}", y, (stride,) * 3)
            if number < count:
                y = F.relu(y)
        if count == 2:
            shortcut = F.avg_pool3d(x, 1, s)
            if y.shape[1] > x.shape[1]:
                shortcut = torch.cat([shortcut, torch.zeros_like(y)[:, x.shape[1] :]], 1)
        elif y.shape != x.shape:
            shortcut = self.norm(path + "downsample.1", F.conv3d(x, self.get(path + "downsample.0.weight"), stride=s))
        else:
            shortcut = x
        return F.relu(y + shortcut)

    def unit(self, convolution: str, norm: str, x: Tensor, stride: tuple[int, ...]) -> Tensor:
        if convolution + "_s.weight" not in self.weights:
            kernel = self.get(convolution + ".weight")
            return self.norm(norm, F.conv3d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2))
        in_plane, along = self.get(convolution + "_s.weight"), self.get(convolution + "_t.weight")
        x = F.conv3d(x, in_plane, stride=(1, *stride[1:]), padding=(0, in_plane.shape[3] // 2, in_plane.shape[4] // 2))
        x = F.relu(self.norm(norm + "_s", x))
        return self.norm(norm + "_t", F.conv3d(x, along, stride=(stride[0], 1, 1), padding=(along.shape[2] // 2, 0, 0)))

    def norm(self, name: str, x: Tensor) -> Tensor:
        statistics = self.get(name + ".running_mean"), self.get(name + ".running_var")
        return F.batch_norm(x, *statistics, self.get(name + ".weight"), self.get(name + ".bias"), self.training, 0.1, 1e-5)

    def get(self, name: str) -> Tensor:
        self.used.add(name)
        return self.weights[name]


def lived_in(name: str) -> nn.Module:
    """A network whose batch norms have seen something, so that a mistake with any of their numbers shows."""
    torch.manual_seed(layers(name))
    network = registry.create(name)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2.0)
    return network


def copied(network: nn.Module) -> dict[str, Tensor]:
    kept = {name: tensor.detach().clone() for name, tensor in network.state_dict().items() if "num_batches" not in name}
    for name, _ in network.named_parameters():
        kept[name].requires_grad_()
    return kept


@pytest.mark.parametrize(("name", "depth"), [("r3d18", 4), ("r3d50", 4), ("r2plus1d18", 4), ("r2plus1d18", 1), ("r2plus1d18", 9)])
def test_the_network_agrees_with_a_plain_one(name: str, depth: int) -> None:
    network = lived_in(name).eval()
    plain = Plain(weights := copied(network), name, training=False)
    x = torch.rand(2, 1, depth, 40, 40)
    with torch.inference_mode():
        expected = plain(x.expand(-1, 3, -1, -1, -1))
        found = network(x)
    assert plain.used == set(weights)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


# Each kind of block at every kind of depth; networks of more of the same blocks once.
OF_EACH_KIND = ["r3d18", "r3d50", "r2plus1d18", "r2plus1d50"]
IN_TRAINING = [(name, depth) for name in PAPER for depth in ((1, 2, 3, 4, 9, 16) if name in OF_EACH_KIND else (4,))]


@pytest.mark.parametrize(("name", "depth"), IN_TRAINING)
def test_the_network_agrees_with_a_plain_one_in_training(name: str, depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits, gradients of the input and of all parameters, and all running statistics, in float64 and sixteen times thinner."""
    monkeypatch.setattr(resnet3d, "WIDTHS", (4, 8, 16, 32))
    network = lived_in(name).double().train()
    x, labels = torch.rand(3, 1, depth, 37, 35, dtype=torch.float64), torch.tensor([0, 2, 1])
    grey = [x.clone().requires_grad_() for _ in range(2)]
    plain = Plain(weights := copied(network), name, training=True)
    logits = plain(grey[0].expand(-1, 3, -1, -1, -1))
    F.cross_entropy(logits, labels).backward()
    found = network(grey[1])
    F.cross_entropy(found, labels).backward()
    torch.testing.assert_close(found, logits, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(grey[1].grad, grey[0].grad, rtol=0, atol=1e-7 * grey[0].grad.abs().max().item() + 1e-12)
    for key, parameter in network.named_parameters():
        wanted = weights[key].grad
        assert torch.allclose(parameter.grad, wanted, rtol=0, atol=1e-7 * wanted.abs().max().item() + 1e-12), key
    for key, buffer in network.named_buffers():
        expected = torch.tensor(1) if "num_batches" in key else weights[key]
        assert torch.allclose(buffer, expected, rtol=1e-8, atol=1e-10), key


def gradients(network: nn.Module, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    logits = network(x)
    F.cross_entropy(logits, labels).backward()
    return {"logits": logits.detach(), "x": x.grad, **{key: parameter.grad for key, parameter in network.named_parameters()}}


@pytest.mark.parametrize(("name", "depth", "batch"), [("r3d18", 4, 3), ("r3d18", 16, 1), ("r3d50", 5, 1), ("r2plus1d18", 4, 3)])
def test_in_float32_the_folded_network_is_as_near_to_the_truth_as_the_plain_one(
    name: str, depth: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The truth is the plain network in float64, the measure how torch's own two memory orders differ from it.

    Where a value falls on the other side of a ReLU by rounding, gradients differ in the third digit in any implementation; so the
    median over all tensors is held to 1e-4, and the worst one to what torch itself does.
    """
    monkeypatch.setattr(resnet3d, "WIDTHS", (32, 64, 128, 256))
    torch.manual_seed(depth + batch)
    plain = registry.create(name, plain=True).train()
    weights = {key: tensor.clone() for key, tensor in plain.state_dict().items()}
    x, labels = torch.rand(batch, 1, depth, 64, 64), torch.arange(batch) % 3

    def made(plain: bool) -> nn.Module:
        network = registry.create(name, plain=plain)
        network.load_state_dict(weights)
        return network.train()

    truth = gradients(made(True).double(), x.double(), labels)

    def distances(network: nn.Module, x: Tensor) -> list[float]:
        found = gradients(network, x, labels)
        return sorted(((found[key].double() - right).norm() / right.norm()).item() for key, right in truth.items())

    contiguous = distances(made(True), x)
    last = distances(made(True).to(memory_format=torch.channels_last_3d), x.contiguous(memory_format=torch.channels_last_3d))
    ours = distances(made(False), x)
    worst = max(contiguous[-1], last[-1])
    assert ours[-1] < max(10 * worst, 0.05)
    middle = len(ours) // 2
    assert ours[middle] < max(1e-4, 10 * max(contiguous[middle], last[middle]))


@pytest.mark.parametrize("name", ["r3d18", "r2plus1d18", "r3d50"])
def test_ten_training_steps_from_the_same_seed_stay_together(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resnet3d, "WIDTHS", (8, 16, 32, 64))
    losses = []
    for plain in (True, False):
        torch.manual_seed(0)
        network = registry.create(name, plain=plain).double().train()
        optimiser = torch.optim.Adam(network.parameters(), lr=2e-4)
        x, labels = torch.rand(6, 1, 4, 48, 48, dtype=torch.float64), torch.arange(6) % 3
        found = []
        for _ in range(10):
            optimiser.zero_grad()
            loss = F.cross_entropy(network(x), labels)
            loss.backward()
            optimiser.step()
            found.append(loss.item())
        losses.append(found)
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert losses[0][-1] < losses[0][0]


@pytest.mark.parametrize("name", PAPER)
def test_the_same_weights_load_into_the_plain_and_the_folded_network(name: str) -> None:
    with torch.device("meta"):
        plain, folded = registry.create(name, plain=True), registry.create(name)
    assert {key: tensor.shape for key, tensor in plain.state_dict().items()} == {
        key: tensor.shape for key, tensor in folded.state_dict().items()
    }


def test_a_kernel_that_was_made_ready_follows_every_change_of_its_numbers() -> None:
    """In use, batch norm is folded into the convolution; what was folded once must not outlive a change of weights or statistics."""
    torch.manual_seed(0)
    network, plain = lived_in("r3d18").eval().requires_grad_(False), registry.create("r3d18", plain=True).eval()
    x = torch.rand(1, 1, 4, 32, 32)

    def agree() -> None:
        plain.load_state_dict(network.state_dict())
        with torch.inference_mode():
            expected = plain(x)
            for _ in range(2):
                torch.testing.assert_close(network(x), expected, rtol=0, atol=2e-5 * expected.abs().max().item())

    agree()
    with torch.no_grad():
        network.conv1.weight.mul_(1.5)
    agree()
    network.layer2[0].bn1.running_mean.add_(0.3)
    agree()
    network.load_state_dict({key: tensor + 0.01 if tensor.is_floating_point() else tensor for key, tensor in network.state_dict().items()})
    agree()
    # With torch's own passes, the running statistics move without a trace.
    network.train()(torch.rand(2, 1, 4, 64, 64))
    network.eval()
    agree()
    x = torch.rand(1, 1, 6, 32, 32)
    agree()
    x = torch.rand(1, 3, 6, 32, 32)
    agree()


def test_a_layer_that_somebody_replaced_is_called() -> None:
    """As torch.nn.SyncBatchNorm.convert_sync_batchnorm does it for several GPUs."""
    network = lived_in("r3d18").train()
    network.layer2[0].bn1 = nn.GroupNorm(1, 128)
    network.bn1 = nn.GroupNorm(1, 64)
    network(torch.rand(2, 1, 4, 32, 32)).sum().backward()
    assert network.layer2[0].bn1.weight.grad is not None and network.bn1.weight.grad is not None


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_traced_network_gives_what_the_network_gives() -> None:
    network = lived_in("r3d18").eval().requires_grad_(False)
    x = torch.rand(1, 1, 4, 32, 32)
    with torch.inference_mode():
        network(x)
    with torch.no_grad():
        expected = network(x)
        traced = torch.jit.trace(network, x)
        torch.testing.assert_close(traced(x), expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("training", [False, True])
def test_a_hook_on_a_module_sees_what_the_plain_one_gives(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused passes skip modules; hooks on them must still fire, with the module's own output."""
    monkeypatch.setattr(resnet3d, "WIDTHS", (8, 16, 32, 64))
    network = lived_in("r3d18").double().train(training)
    plain = registry.create("r3d18", plain=True).double().train(training)
    x = torch.rand(2, 1, 4, 40, 40, dtype=torch.float64)
    for layer in ("conv1", "bn1", "relu", "maxpool", "layer1.0.bn2", "layer2.0.conv1", "layer2.1.relu", "layer4.1.bn1", "avgpool"):
        seen: list[Tensor] = []
        plain.load_state_dict(network.state_dict())
        for module in (network, plain):
            inner = module.get_submodule(layer)
            handle = inner.register_forward_hook(lambda module, inputs, output, to=seen: to.append(output.detach().clone()))
            with torch.no_grad():
                module(x)
            handle.remove()
        half = len(seen) // 2
        assert half >= 1
        # In front of an in-place ReLU the output is seen before it is overwritten.
        torch.testing.assert_close(seen[half - 1], seen[-1], rtol=0, atol=1e-7 * seen[-1].abs().max().item())


@pytest.mark.parametrize("name", ["r3d18", "r2plus1d18", "tv_mc3_18", "tv_swin3d_t"])
def test_one_channel_means_three_equal_ones(name: str) -> None:
    """Li et al. 2021, Sec. 2.2: the paper's 512*512*3 is three equal copies."""
    torch.manual_seed(0)
    network = registry.create(name).eval()
    x = torch.rand(2, 1, 4, 32, 32)
    with torch.inference_mode():
        one, three = network(x), network(x.repeat(1, 3, 1, 1, 1))
        other = network(torch.rand(2, 3, 4, 32, 32))
    torch.testing.assert_close(one, three, rtol=0, atol=1e-6)
    assert one.shape == (2, 3)
    assert not torch.allclose(one, other, atol=1e-4)


def test_the_initial_weights_are_he_normal_by_fan_out() -> None:
    """As 3D-ResNets-PyTorch has it, and He et al. before it."""
    torch.manual_seed(0)
    kernel = registry.create("r3d18").get_parameter("layer4.1.conv2.weight")
    assert kernel.std().item() == pytest.approx((2 / (512 * 27)) ** 0.5, rel=0.01)
    assert abs(kernel.mean().item()) < 1e-4
