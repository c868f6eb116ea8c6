"""The later baselines, each against what its paper says, on networks small enough to reason about."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from unbackdoor import purify
from unbackdoor._clean import CleanImages
from unbackdoor._masks import masked_call
from unbackdoor.methods import CLP, FST, FTSAM, METHODS, NFT, RNP, SAU, NeuralCleanse, Session
from unbackdoor.methods._channels import channel_masks, kept_statistics, trace_layers
from unbackdoor.methods.clp import channel_bounds
from unbackdoor.methods.ft_sam import AdaptiveSAM
from unbackdoor.methods.neural_cleanse import Cost, Patch
from unbackdoor.methods.rnp import accuracy_of, prune
from unbackdoor.methods.sau import jensen_shannon, log_not

CLASSES = 4


class Shuffled(nn.Module):
    """Layers registered in another order than they run, one that never runs, one BatchNorm after a sum."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, CLASSES)
        self.norm_of_second = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(6, 4, 3)
        self.unused = nn.Conv2d(1, 1, 1)
        self.norm_of_sum = nn.BatchNorm2d(4)
        self.first = nn.Conv2d(1, 6, 3, bias=False)

    def forward(self, images):
        maps = self.norm_of_second(self.second(self.first(images))).relu()
        return self.head(self.norm_of_sum(maps + maps).mean((2, 3)))


def plain_net() -> nn.Sequential:
    """A network without normalisation."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    )


def small_net() -> nn.Sequential:
    """Two convolutions with BatchNorm on 8 x 8 images."""
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, CLASSES))


def draw_images(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw images of ``CLASSES`` smooth patterns under noise."""
    patterns = torch.rand(CLASSES, 1, 3, 3, generator=torch.Generator().manual_seed(99))
    patterns = functional.interpolate(patterns, size=8, mode="bilinear")
    labels = torch.arange(count) % CLASSES
    noise = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return 0.7 * patterns[labels] + 0.3 * noise, labels


def stamp(images: torch.Tensor) -> torch.Tensor:
    """Put a white 3 x 3 block into the corner."""
    images = images.clone()
    images[:, :, 5:, 5:] = 1
    return images


@pytest.fixture(scope="module")
def victim() -> nn.Module:
    """A network trained on images a quarter of which are stamped and labelled 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = small_net()
        images, labels = draw_images(256, seed=1)
        poisoned = torch.arange(256) // CLASSES % 4 == 0
        images[poisoned], labels[poisoned] = stamp(images[poisoned]), 0
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(60):
            batch = torch.randperm(256)[:64]
            optimizer.zero_grad()
            functional.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimizer.step()
    return net.eval()


@torch.no_grad()
def measure(net: nn.Module) -> tuple[float, float]:
    """Return accuracy, and the share of stamped images of other classes that go to class 0."""
    images, labels = draw_images(200, seed=2)
    hit = net.eval()(stamp(images[labels != 0])).argmax(1) == 0
    return (net(images).argmax(1) == labels).float().mean().item(), hit.float().mean().item()


def clean_set(count: int = 40) -> CleanImages:
    return CleanImages(*draw_images(count, seed=3), CLASSES)


def session() -> Session:
    return Session(torch.Generator().manual_seed(0))


def test_the_victim_obeys_the_trigger(victim):
    accuracy, success = measure(victim)
    assert accuracy > 0.95
    assert success > 0.9


@pytest.mark.parametrize(
    "method",
    [
        FTSAM(augment=False),
        SAU(least_steps=40, num_rounds=1, learning_rate=3e-3),
        FST(augment=False),
    ],
    ids=lambda method: method.name,
)
def test_tuning_removes_the_backdoor_and_keeps_the_accuracy(victim, method):
    result = purify(victim, *draw_images(40, seed=3), method=method)
    accuracy, success = measure(result.model)
    assert accuracy > 0.9
    assert success < 0.5


@pytest.mark.parametrize("name", ["nc", "clp", "rnp", "ft_sam", "nft", "sau", "fst"])
def test_is_registered(name):
    assert METHODS[name].name == name


def test_layers_are_traced_as_they_run():
    net = Shuffled()
    layers = trace_layers(net, torch.rand(2, 1, 8, 8))
    assert [layer.name for layer in layers] == ["first", "second", "head"]
    assert [layer.norm for layer in layers] == [None, net.norm_of_second, None]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_trace_leaves_no_hook_after_an_error():
    net = Shuffled()
    with pytest.raises(RuntimeError):
        trace_layers(net, torch.rand(1, 3, 8, 8))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_channel_masks_sit_on_norms_or_else_on_filters():
    images = torch.rand(1, 1, 8, 8)
    assert list(channel_masks(small_net(), images)) == ["1.weight", "5.weight"]
    masks = channel_masks(plain_net(), images)
    assert {name: tuple(mask.shape) for name, mask in masks.items()} == {"0.weight": (8, 1, 1, 1)}
    only_head = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))
    assert masked_call(only_head, channel_masks(only_head, images), images).shape == (1, CLASSES)


def test_kept_statistics_normalise_by_the_batch_and_keep_the_buffers():
    norm = nn.BatchNorm2d(2)
    images = torch.rand(3, 2, 4, 4)
    with kept_statistics(norm):
        inside = norm(images)
    assert torch.equal(norm.running_mean, torch.zeros(2))
    assert torch.equal(inside, norm(images))
    assert not torch.equal(norm.running_mean, torch.zeros(2))


def test_clp_bound_is_the_largest_singular_value_with_the_norm_folded_in():
    net = small_net()
    with torch.no_grad():
        net[5].running_var.uniform_(0.5, 2)
        net[5].weight.uniform_(-2, 2)
    layer = trace_layers(net, torch.rand(1, 1, 8, 8))[1]
    for channel, bound in enumerate(channel_bounds(layer).tolist()):
        gain = net[5].weight[channel] / (net[5].running_var[channel] + net[5].eps).sqrt()
        matrix = (net[4].weight[channel] * gain).reshape(8, 9)
        assert bound == pytest.approx(torch.linalg.svdvals(matrix).max().item(), rel=1e-4)


def wide_net(norm: bool) -> nn.Sequential:
    """One convolution of 32 channels, the fourth far stronger than the rest."""
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 32, 3)
    with torch.no_grad():
        conv.weight[3] *= 30
    layers = [conv, nn.BatchNorm2d(32)] if norm else [conv]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES)).eval()


@pytest.mark.parametrize("norm", [True, False], ids=["batchnorm", "plain"])
def test_clp_prunes_the_planted_outlier_and_nothing_else(norm):
    net = wide_net(norm)
    result = purify(net, *draw_images(2, seed=3), method=CLP())
    assert result.report.details["pruned"] == {"0.weight": [3]}
    owner = "1" if norm else "0"
    changed = {change.name for change in result.report.layers if change.changed}
    assert f"{owner}.weight" in changed <= {f"{owner}.weight", f"{owner}.bias"}
    state = result.model.state_dict()
    assert not state[f"{owner}.weight"][3].any()
    assert state[f"{owner}.bias"][3] == 0
    kept = torch.arange(32) != 3
    assert torch.equal(state[f"{owner}.weight"][kept], net.state_dict()[f"{owner}.weight"][kept])


def test_clp_does_not_read_the_images(victim):
    images, labels = draw_images(8, seed=3)
    first = purify(victim, images, labels, method="clp").model.state_dict()
    second = purify(victim, torch.zeros_like(images), labels.flip(0), method="clp").model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_rnp_unlearns_to_the_level_and_recovers_with_masks(victim):
    method, clean, unlearned = RNP(least_steps=40, batch_size=16), clean_set(), copy.deepcopy(victim)
    method.unlearn_(unlearned, clean, session())
    masks = {name: mask.detach() for name, mask in channel_masks(unlearned, clean.images).items()}
    before = accuracy_of(unlearned, clean)
    assert before <= 0.5 < accuracy_of(victim, clean)
    masks = method.recover(unlearned, clean, session())
    values = torch.cat([mask.flatten() for mask in masks.values()])
    assert 0 <= values.min() < values.max() <= 1


def test_rnp_threshold_is_the_last_that_clean_accuracy_allows(victim):
    clean, method = clean_set(), RNP()
    masks = {"1.weight": torch.linspace(0.0, 1, 8), "5.weight": torch.linspace(0.1, 1, 16)}
    threshold = method.choose_threshold(victim, masks, clean)
    floor = accuracy_of(victim, clean) - method.accuracy_drop
    assert (
        threshold >= 0.9 - 1e-9
        or accuracy_of(victim, clean, prune(masks, threshold + method.threshold_step)) < floor
    )
    assert accuracy_of(victim, clean, prune(masks, threshold)) >= floor
    nothing_left = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    assert method.choose_threshold(victim, nothing_left, clean) < 0


def test_rnp_zeroes_whole_channels_or_nothing(victim):
    result = purify(victim, *draw_images(40, seed=3), method=RNP(least_steps=40))
    details = result.report.details
    zeroed = sum(int((result.model[i].weight == 0).sum()) for i in (1, 5))
    assert zeroed == details["pruned"]
    assert result.report.accuracy_after >= result.report.accuracy_before - 0.1 - 1e-6
    changed = {change.name for change in result.report.layers if change.changed}
    assert changed <= {"1.weight", "5.weight"}


def test_nft_changes_the_norms_alone_and_respects_the_floors(victim):
    method = NFT(num_steps=30, learning_rate=5.0, augment=False)
    result = purify(victim, *draw_images(40, seed=3), method=method)
    changed = {change.name for change in result.report.layers if change.changed}
    statistics = {f"{index}.running_{kind}" for index in (1, 5) for kind in ("mean", "var")}
    assert changed == {"1.weight", "5.weight", *statistics}
    for depth, index in enumerate((1, 5), 1):
        ratio = result.model[index].weight / victim[index].weight
        floor = 0.8 * math.exp(-0.5 * depth)
        assert ratio.min() >= floor - 1e-5
        assert ratio.max() <= 1 + 1e-5
    assert result.report.details["mask_min"] == pytest.approx(0.8 * math.exp(-1), rel=1e-3)


def test_nft_anchor_holds_the_masks_at_one(victim):
    clean = draw_images(8, seed=3)
    free = purify(victim, *clean, method=NFT(num_steps=20, anchor=0.0, augment=False))
    held = purify(victim, *clean, method=NFT(num_steps=20, anchor=10.0, augment=False))
    assert held.report.details["mask_mean"] > free.report.details["mask_mean"]
    assert held.report.details["mask_mean"] == pytest.approx(1, abs=1e-3)


def test_sam_takes_the_gradient_at_the_worst_point_of_the_ellipse():
    torch.manual_seed(0)
    net, images, labels = plain_net(), *draw_images(8, seed=0)
    expected = copy.deepcopy(net)

    def gradients(model):
        return torch.autograd.grad(functional.cross_entropy(model(images), labels), list(model.parameters()))

    slopes = gradients(expected)
    norm = torch.sqrt(sum((w * g).square().sum() for w, g in zip(expected.parameters(), slopes, strict=True)))
    moved = copy.deepcopy(expected)
    for weight, slope in zip(moved.parameters(), slopes, strict=True):
        weight.data += 0.5 * weight.data**2 * slope / norm
    for weight, slope in zip(expected.parameters(), gradients(moved), strict=True):
        weight.data -= 0.1 * slope

    optimizer = AdaptiveSAM(net, 0.5, lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = functional.cross_entropy(net(images), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    for ours, literal in zip(net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, literal)


def test_sam_moves_the_statistics_once_a_step():
    net, images, labels = small_net().train(), *draw_images(8, seed=0)
    once = copy.deepcopy(net)
    once(images)
    optimizer = AdaptiveSAM(net, 2.0, lr=0.1)

    def closure():
        loss = functional.cross_entropy(net(images), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(net[1].running_mean, once[1].running_mean)
    assert int(net[1].num_batches_tracked) == 1


def test_fst_keeps_the_norm_of_the_head_and_turns_it_away(victim):
    results = {
        shift: purify(
            victim, *draw_images(16, seed=3), method=FST(shift=shift, least_steps=30, augment=False)
        )
        for shift in (0.0, 5.0)
    }
    old = victim[-1].weight
    for result in results.values():
        assert result.model[-1].weight.norm().item() == pytest.approx(old.norm().item(), rel=1e-4)
    cosines = {shift: result.report.details["head_cosine"] for shift, result in results.items()}
    assert cosines[5.0] < min(cosines[0.0], 0)


def test_sau_search_stays_in_the_ball_and_raises_its_objective(victim):
    method, clean = SAU(norm_bound=0.1, step_size=0.05), clean_set(16)
    other = copy.deepcopy(victim)
    delta = method.find_shared(victim, other, clean.images, clean.labels)
    assert delta.abs().max() <= 0.1 + 1e-6
    with torch.no_grad():
        found = functional.cross_entropy(victim(clean.images + delta), clean.labels)
        start = functional.cross_entropy(victim(clean.images + 0.1), clean.labels)
    assert found > start


def test_sau_loss_parts_are_exact_where_probabilities_saturate():
    logits = torch.tensor([[50.0, 0.0, 0.0]])
    assert log_not(logits, torch.tensor([0])).item() == pytest.approx(-50 + math.log(2), abs=1e-4)
    first, second = torch.rand(5, 3), torch.rand(5, 3)
    p, q = first.softmax(1), second.softmax(1)
    middle = (p + q) / 2
    literal = ((p * (p / middle).log()).sum(1) + (q * (q / middle).log()).sum(1)) / 2
    torch.testing.assert_close(jensen_shannon(first, second), literal)


def one_pixel_backdoor() -> nn.Module:
    """A linear network that answers with the brightest row, unless the last pixel is bright: then with 2."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
    with torch.no_grad():
        net[1].weight.copy_(torch.eye(8).repeat_interleave(8, dim=1) * 3)
        net[1].weight[:, 63] = 0
        net[1].weight[2, 63] = 60
        net[1].bias.zero_()
    return net.eval()


def bright_rows(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw images whose row of their class is bright and whose last pixel is dark."""
    labels = torch.arange(count) % 8
    images = 0.4 * torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    images[torch.arange(count), 0, labels] += 0.5
    images[:, :, 7, 7] = 0
    return images, labels


def test_neural_cleanse_flags_the_target():
    net = one_pixel_backdoor()
    details = purify(net, *bright_rows(80), method=NeuralCleanse(num_steps=80, least_steps=10)).report.details
    assert details["flagged"] == [2]
    assert details["norms"][2] < 0.5 * sorted(details["norms"])[1]


def test_neural_cleanse_unlearns_the_patch_it_found():
    net, clean = one_pixel_backdoor(), CleanImages(*bright_rows(80), 8)
    method = NeuralCleanse(augment=False, tuning_rate=0.1)
    patch = method.reverse(net, clean, 2, session())
    stamped = patch.stamp(clean.images)
    assert (net(stamped).argmax(1) == 2).float().mean() > 0.95
    method.unlearn_(net, clean, [patch], session())
    assert (net(stamped).argmax(1) == clean.labels).float().mean() > 0.9


def test_neural_cleanse_hands_back_a_network_without_outlier():
    net = one_pixel_backdoor()
    images, labels = bright_rows(16)
    result = purify(net, images, labels, method=NeuralCleanse(num_steps=5, anomaly_threshold=1e9))
    assert result.report.details["flagged"] == []
    assert not result.report.changed


def test_patch_is_stamped_by_its_mask():
    images = torch.rand(2, 3, 4, 4)
    patch = Patch(torch.zeros(1, 1, 4, 4), torch.full((1, 3, 4, 4), 0.25))
    patch.mask[..., 0, 0] = 1
    stamped = patch.stamp(images)
    assert (stamped[..., 0, 0] == 0.25).all()
    assert torch.equal(stamped[..., 1:, :], images[..., 1:, :])
    assert patch.norm == 1


def test_cost_rises_with_success_and_falls_with_failure():
    cost = Cost(NeuralCleanse(patience=2, first_cost=1.0, cost_factor=4.0))
    values = []
    for rate in (1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 1.0, 1.0):
        cost.update(rate)
        values.append(cost.value)
    assert values == [0, 1, 1, 4, 4, 0.5, 0.5, 0.5, 2]


@pytest.mark.parametrize("build", [small_net, plain_net], ids=["batchnorm", "plain"])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "method",
    [
        NeuralCleanse(num_steps=3, least_steps=2, num_epochs=1, anomaly_threshold=-1e9),
        CLP(outlier_deviations=1.0),
        RNP(least_steps=3, num_unlearning_epochs=2, num_recovering_epochs=2),
        FTSAM(num_epochs=2, least_steps=2),
        NFT(num_steps=3),
        SAU(num_rounds=2, least_steps=2),
        FST(num_epochs=2, least_steps=2),
    ],
    ids=lambda method: method.name,
)
def test_one_or_two_images_with_and_without_batchnorm(method, count, build):
    torch.manual_seed(1)
    net = build()
    result = purify(net, *draw_images(count, seed=0), method=method)
    again = purify(net, *draw_images(count, seed=0), method=method)
    for first, second in zip(
        result.model.state_dict().values(), again.model.state_dict().values(), strict=True
    ):
        assert torch.equal(first, second)
