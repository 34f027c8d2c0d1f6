"""What each view of the network may and may not see; losses against their definitions."""

import math

import numpy as np
import pytest
import torch

from scmoe.config import Config, ModelConfig, preset
from scmoe.nn import losses
from scmoe.nn.cells import Cells
from scmoe.nn.network import Network

SIZES = [13, 6, 21]


KINDS = {
    "one router": dict(n_routers=1),
    "two routers": dict(n_routers=2),
    "three members": dict(members=3),
    "no attention": dict(members=2, attention=False),
}


def make_network(**change):
    torch.manual_seed(0)
    usual = dict(members=1, d=16, n_patches=4, n_heads=2, n_experts=4, attention=True)
    network = Network(ModelConfig(**(usual | change)), SIZES, n_groups=3).eval()
    for weights in network.parameters():
        if not weights.any():  # the last layers start at 0, and would answer nothing
            torch.nn.init.normal_(weights, std=0.3)
    return network


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def network(request):
    return make_network(**request.param)


def cells(n=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = [torch.randn(1, n, f, generator=generator) for f in SIZES]
    return x, torch.ones(1, n, 3, dtype=torch.bool)


def test_the_alone_view_depends_on_its_own_modality_only(network):
    x, present = cells()
    other = [x[0], *cells(seed=1)[0][1:]]
    before = network.encode(x, present, "alone").latents[:, :, 0]
    after = network.encode(other, present, "alone").latents[:, :, 0]
    assert (before - after).abs().max() < 1e-6


def test_the_joint_view_reads_all_modalities(network):
    x, present = cells()
    other = [x[0], *cells(seed=1)[0][1:]]
    before, after = (network.encode(given, present) for given in (x, other))
    assert (before.fused - after.fused).abs().max() > 1e-4
    own = (before.latents[:, :, 0] - after.latents[:, :, 0]).abs().max()
    assert own > 1e-4 if network.config.attention else own == 0


def test_members_are_networks_of_their_own():
    network, x = make_network(members=3), cells()[0]
    present = torch.ones(3, 7, 3, dtype=torch.bool)
    apart = [torch.cat([cells(seed=k)[0][i] for k in range(3)]) for i in range(3)]
    together = network.encode(apart, present).latents
    for k in range(3):
        alone = network.encode(cells(seed=k)[0], present[:1]).latents
        assert torch.allclose(together[k], alone[k], atol=1e-5)
    before = network.encode(x, present[:1]).latents
    with torch.no_grad():
        for weights in network.parameters():
            weights.view(3, -1)[1].add_(1.0)
    after = network.encode(x, present[:1]).latents
    assert torch.equal(before[[0, 2]], after[[0, 2]]) and not torch.equal(before[1], after[1])


def test_both_views_in_one_pass_equal_each_by_itself(network):
    x, present = cells()
    shown = present.clone()
    shown[:, :4, 2] = False
    joint, alone = network.encode_both(x, shown, present)
    assert torch.allclose(joint.latents, network.encode(x, shown).latents, atol=1e-5)
    assert torch.allclose(alone.latents, network.encode(x, present, "alone").latents, atol=1e-5)


def test_the_training_masks_source_only_view_ignores_the_target(network):
    x, present = cells()
    network.train()
    views = []
    for target in (x[2], torch.full_like(x[2], 1e3)):
        torch.manual_seed(5)
        _, alone = network.encode_both([x[0], x[1], target], present, present)
        views.append(network.decode(alone, 2)[:, :, :2])
    assert (views[0] - views[1]).abs().max() < 1e-6


def test_an_absent_modality_is_neither_read_nor_attended_to(network):
    x, present = cells()
    present[..., 1] = False
    noise = [x[0], torch.full_like(x[1], math.nan), x[2]]
    gone = [x[0], None, x[2]]
    expected = network.encode(x, present)
    read, left_out = (network.encode(given, present).latents for given in (noise, gone))
    assert torch.equal(read, expected.latents)
    # a token that is left out goes to another expert, whose product then has another size: with
    # two threads its last bits differ
    assert torch.allclose(left_out, expected.latents, rtol=0, atol=1e-6)
    assert not read[:, :, 1].any() and not left_out[:, :, 1].any()


def test_translation_is_what_the_alone_view_decodes(network):
    x, present = cells()
    alone = network.decode(network.encode(x, present, "alone"), 2)[:, :, 0]
    assert torch.allclose(network.translate(x[0], present[..., 0], 2, 0), alone, atol=1e-5)


def test_features_are_cut_into_zero_padded_patches():
    network, (x, present) = make_network(published_layers=True), cells()
    padded = torch.nn.functional.pad(x[0], (0, 3)).view(7, 4, 4)
    embed = network.embed[0]
    expected = padded @ embed.weight[0].T + embed.bias[0] + network.position[0, 0]
    assert torch.allclose(network.encode(x, present).embedded[0, :, 0], expected, atol=1e-6)


@pytest.mark.parametrize("dataset", ["dyngen", "dbitseq", "patchseq", "atacseq"])
def test_paper_presets_carry_every_switch_of_the_reference(dataset):
    config = preset(dataset, "paper")
    assert config.model.n_components is None and not config.model.input_residual
    assert config.model.members == 1 and config.model.attention
    assert config.train.target_visible and config.train.ce_on_softmax and config.train.sum_pairs
    assert config.model.top_k == 2
    assert Config.from_dict(config.to_dict()) == config


def test_strict_preset_has_none_of_them():
    train = preset("patchseq").train
    assert not (train.target_visible or train.ce_on_softmax or train.sum_pairs)
    assert not (train.own_scaling or train.r2_upper_pairs_only or train.test_chooses_epoch)


@pytest.mark.parametrize(
    "change",
    [
        dict(d=30), dict(top_k=9), dict(hidden=6), dict(hidden=-4), dict(epochs=0), dict(lr=0),
        dict(n_experts=0), dict(foo=1), dict(n_routers=0), dict(n_components=0.5), dict(d="64"),
        dict(epochs=True), dict(epochs=1.0), dict(patience=-5), dict(patience=0), dict(lr="x"),
        dict(lr=math.inf), dict(lr=math.nan), dict(lr=None), dict(clip=-1), dict(clip=0),
        dict(clip=math.nan), dict(modality_dropout=5), dict(dropout=-0.1), dict(dropout=1),
        dict(gate_weight=-1), dict(weight_decay=math.nan), dict(attention=1), dict(hold_out="no"),
        dict(input_noise=[1]), dict(input_noise={"rna": -1}), dict(input_noise={"rna": "a"}),
        dict(max_steps=0), dict(precision="half"),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused_by_name(change):
    with pytest.raises(ValueError, match=rf"\b{next(iter(change))}\b"):
        Config().replace(**change)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "'model'"), (None, "NoneType"), ({"model": {}}, "'train'"), ([], "list"),
        ({"model": {"depth": 3}, "train": {}}, "depth"), ({"model": 3, "train": {}}, "int"),
    ],
)  # fmt: skip
def test_what_are_no_settings_is_refused(values, says):
    with pytest.raises(ValueError, match=f"No settings as Config.to_dict gives them: .*{says}"):
        Config.from_dict(values)


def test_one_wide_expert_is_a_dense_perceptron_of_equal_size():
    def layer(**change):
        config = ModelConfig(members=1, d=16, n_heads=2, n_experts=4, top_k=2, hidden=None)
        config = Config(config).replace(**change).model
        return Network(config, SIZES, n_groups=3).layers[0]

    sparse, dense = layer(), layer(n_experts=1, top_k=1, hidden=4 * 2 * 16)
    assert dense.experts.w1.numel() == sparse.experts.w1.numel()
    x = torch.randn(1, 5, 3, 8, 16)
    _, routing = dense(x, None, torch.ones(1, 5, 3, dtype=torch.bool))
    assert (routing.weights == 1).all() and routing.balance == 0


def test_cross_entropy_of_softmax_outputs_cannot_reach_zero():
    logits = 100 * torch.eye(5)[None]
    labels = torch.arange(5)[None]
    assert losses.cross_entropy(logits, labels) < 1e-6
    floor = math.log(1 + 4 / math.e)
    assert losses.cross_entropy(logits, labels, on_softmax=True).item() == pytest.approx(floor)


def test_unlabelled_cells_do_not_count_in_cross_entropy():
    logits, labels = torch.randn(1, 6, 3), torch.tensor([[0, 1, 2, -1, -1, 0]])
    known = labels >= 0
    expected = torch.nn.functional.cross_entropy(logits[known], labels[known])
    assert torch.allclose(losses.cross_entropy(logits, labels), expected)


def test_ddc_prefers_assignments_that_follow_the_neighbourhoods():
    hidden = torch.tensor([[0.0], [0.5], [1.0], [5.0], [5.5], [6.0]])
    right = 20 * torch.eye(2)[[0, 0, 0, 1, 1, 1]]
    wrong = 20 * torch.eye(2)[[0, 1, 0, 1, 0, 1]]
    assert losses.ddc(right, hidden) < losses.ddc(wrong, hidden) - 0.5


def test_ddc_equals_its_definition():
    torch.manual_seed(1)
    logits, hidden = torch.randn(9, 3), torch.randn(9, 4)
    a = logits.double().softmax(1).numpy()
    h = hidden.double().numpy()
    squared = ((h[:, None] - h[None]) ** 2).sum(-1)
    width = (
        0.15 * np.sort(squared.ravel())[(squared.size - 1) // 2]
    )  # torch's median: the lower one
    kernel = np.exp(-squared / (2 * width))

    def divergence(a):
        total = 0
        for i in range(3):
            for j in range(i + 1, 3):
                total += (
                    a[:, i]
                    @ kernel
                    @ a[:, j]
                    / math.sqrt((a[:, i] @ kernel @ a[:, i]) * (a[:, j] @ kernel @ a[:, j]))
                )
        return total / 3

    corners = np.exp(-((a[:, None] - np.eye(3)[None]) ** 2).sum(-1))
    assert losses.ddc(logits, hidden).item() == pytest.approx(
        divergence(a) + divergence(corners), rel=1e-4
    )


def test_sparse_rows_come_out_as_they_went_in():
    from scipy import sparse

    matrix = sparse.random(30, 17, density=0.1, format="csr", random_state=0, dtype=np.float32)
    kept = Cells([matrix], np.ones((30, 1), bool))
    index = torch.tensor([[3, 0, 29], [3, 7, 1]])  # of two members
    assert np.array_equal(kept.batch(index).x[0].numpy(), matrix.toarray()[index])
