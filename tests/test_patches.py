"""Category patches: the PixelCNN's promises, what is cut and filled, what is sampled, kept and tiled."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from cagnet_hf.patches.bank import (
    PatchFit,
    fit_pixel_cnn,
    held_out_nats,
    make_patch_bank,
    open_patch_bank,
)
from cagnet_hf.patches.layouts import (
    SAMPLING_RULES,
    PatchSource,
    accept_patches,
    class_odds,
    collect_patches,
    cut_patches,
    fill_ignored,
    swap_in_unseen,
)
from cagnet_hf.patches.pixel_cnn import PatchPixelCNN, PatchPixelCNNConfig, RasterNetwork, log_likelihood

NUM_SEEN, UNSEEN = 4, (4, 5)
every_size = pytest.mark.parametrize("side", [3, 5, 7])


def small_config(side=3, **fields) -> PatchPixelCNNConfig:
    fields = {"num_classes": 6, "unseen_ids": UNSEEN, "embedding_size": 6, "hidden_size": 16} | fields
    return PatchPixelCNNConfig(patch_size=side, **fields)


def random_pixel_cnn(side=3, **fields) -> PatchPixelCNN:
    """The full depth with random weights and statistics, in evaluation mode and float64."""
    torch.manual_seed(side)
    model = PatchPixelCNN(small_config(side, **fields)).double().eval()
    model.class_embeddings.normal_()
    for layer in model.layers:
        layer.normalization.running_mean.normal_(std=0.1)
        layer.normalization.running_var.uniform_(0.5, 1.5)
    return model


def random_patches(number, side, num_classes=6) -> torch.Tensor:
    return torch.randint(num_classes, (number, side, side), generator=torch.Generator().manual_seed(number))


def with_holes(patches, share) -> torch.Tensor:
    holes = torch.rand(patches.shape, generator=torch.Generator().manual_seed(1)) < share
    return patches.masked_fill(holes, 255)


EMBEDDINGS = torch.eye(6)
NARROW = {"num_layers": 2, "kernel_size": 3}


# The network


@every_size
@torch.no_grad()
def test_no_position_sees_itself_or_a_later_one(side):
    model, patch, t = random_pixel_cnn(side), random_patches(1, side).flatten(), torch.arange(side * side)
    changed = torch.where(t < t[:, None], patch, (patch + 1) % 6)  # row t: everything from t on
    both = torch.cat([changed, patch[None]]).unflatten(1, (side, side))
    logits = model(both, condition_ids=patch[0].view(1, 1, 1)).logits.flatten(2).transpose(1, 2)  # (T + 1, T, N)
    unchanged = t <= t[:, None]
    difference = (logits[:-1] - logits[-1]).abs().amax(dim=2)
    assert difference[unchanged].max() < 1e-12
    assert difference[0, 1:].min() > 1e-12


@torch.no_grad()
def test_the_condition_is_the_class_of_the_first_pixel():
    model, patches = random_pixel_cnn(), random_patches(4, 3)
    torch.testing.assert_close(
        model(patches).logits, model(patches, condition_ids=patches[:, :1, :1].expand(-1, 3, 3)).logits
    )


@torch.no_grad()
def test_the_ablation_shows_every_pixel_to_its_own_prediction():
    model, patches = random_pixel_cnn(condition="patch"), random_patches(4, 3)
    changed = patches.clone()
    changed[:, 1, 1] = (changed[:, 1, 1] + 1) % 6
    assert (model(changed).logits - model(patches).logits)[:, :, 1, 1].abs().min() > 1e-6
    with pytest.raises(ValueError, match='condition="first"'):
        RasterNetwork(model)


@torch.no_grad()
def test_given_the_first_pixel_probabilities_of_all_patches_sum_to_one():
    model = random_pixel_cnn(num_classes=2, unseen_ids=[1])
    patches = torch.tensor([(0, *rest) for rest in itertools.product((0, 1), repeat=8)]).view(-1, 3, 3)
    log_probability, counted = log_likelihood(model(patches).logits, patches)
    assert log_probability.flatten(1).sum(1).exp().sum().item() == pytest.approx(1)
    assert counted.sum().item() == 8 * len(patches)


@pytest.mark.parametrize("side", [3, 5, 7])
def test_a_layer_is_the_masked_convolution(side):
    """Of classes, too, whose embeddings are folded into the weight."""
    model = random_pixel_cnn(side)
    patches = random_patches(7, side)
    hidden = model.class_embeddings[patches].movedim(-1, 1)
    one_hot = torch.nn.functional.one_hot(patches, 6).movedim(-1, 1).to(hidden)
    for index, layer in enumerate(model.layers):
        convolution = layer.convolution
        expected = torch.nn.functional.conv2d(hidden, convolution.visible_weight(), padding=convolution.padding)
        torch.testing.assert_close(convolution(hidden), expected)
        if index == 0:
            torch.testing.assert_close(convolution(one_hot, model.class_embeddings), expected)
        hidden = expected


def test_patches_of_any_number_and_integer_type_but_only_squares():
    model = random_pixel_cnn().eval()
    patches = random_patches(4, 3)
    with torch.no_grad():
        expected = model(patches).logits
        assert torch.equal(model(patches.int()).logits, expected)
        assert model(patches[:0]).logits.shape == (0, *expected.shape[1:])
        with pytest.raises(ValueError, match="patches of 2 x 3: they must be square"):
            model(patches[:, :2])


def test_the_loss_leaves_out_the_first_and_ignored_pixels():
    model, patches = random_pixel_cnn(), random_patches(4, 3)
    labels = patches.clone()
    labels[:, 2] = 255
    output = model(patches, labels=labels)
    log_probabilities = output.logits.log_softmax(1).gather(1, patches[:, None]).flatten(1)
    assert output.loss.item() == pytest.approx(-log_probabilities[:, 1:6].mean().item())
    assert model(patches, labels=torch.full_like(labels, 255)).loss.item() == 0


def test_masks_are_no_weights_and_leave_the_weights_alone():
    model = random_pixel_cnn()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(random_patches(4, 3), labels=random_patches(4, 3)).loss.backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    leaves = {f"normalization.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")}
    leaves |= {"convolution.weight", "condition.weight", "normalization.num_batches_tracked"}
    layers = {f"layers.{index}.{leaf}" for index in range(8) for leaf in leaves}
    assert set(before) == layers | {"head.weight", "head.bias", "class_embeddings"}


def test_published_sizes_are_the_defaults():
    sizes = {side: PatchPixelCNNConfig(patch_size=side) for side in (3, 5, 7)}
    assert {k: (c.kernel_size, c.num_layers) for k, c in sizes.items()} == {3: (7, 8), 5: (3, 4), 7: (3, 4)}
    model = PatchPixelCNN(small_config())
    assert [layer.dropout.p for layer in model.layers] == [0.0] * 6 + [0.5] * 2


@pytest.mark.parametrize(
    "field, value", [("patch_size", 4), ("condition", "all"), ("kernel_size", 4), ("num_classes", 256)]
)
def test_a_configuration_that_cannot_be_is_refused(field, value):
    with pytest.raises(Exception, match=field):
        PatchPixelCNNConfig(**{field: value})


def test_save_and_load(tmp_path):
    model = random_pixel_cnn(5).float()
    model.save_pretrained(tmp_path)
    loaded = PatchPixelCNN.from_pretrained(tmp_path)
    patches = random_patches(4, 5)
    assert torch.equal(loaded(patches).logits, model(patches).logits)
    assert (tmp_path / "model.safetensors").is_file()


# Sampling


@every_size
@pytest.mark.parametrize("condition", ["first", None])
@torch.no_grad()
def test_computing_only_what_is_new_gives_the_logits_of_the_whole_network(side, condition):
    model, patches = random_pixel_cnn(side, condition=condition), random_patches(8, side)
    network = RasterNetwork(model)
    state, whole = network.new_state(), model(patches).logits.flatten(2)
    for t in range(side * side):
        logits = network.logits(t, patches[:, 0, 0], state)
        torch.testing.assert_close(logits, whole[:, :, t], rtol=1e-9, atol=1e-9)
        network.add(t, patches.flatten(1)[:, t], state)


def sample_with_whole_network(model, first_classes, start, generator):
    """One pass through the whole network for each sampled position."""
    side = model.config.patch_size
    patches = first_classes[:, None].repeat(1, side * side)
    for t in range(start, side * side):
        probabilities = model(patches.unflatten(1, (side, side))).logits.flatten(2)[:, :, t].softmax(dim=1)
        patches[:, t] = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    return patches.unflatten(1, (side, side))


@every_size
@torch.no_grad()
def test_samples_are_those_of_the_whole_network(side):
    model, start = random_pixel_cnn(side), SAMPLING_RULES[side].start
    first = torch.tensor(UNSEEN).repeat(40)
    ours = RasterNetwork(model).sample(first, start, generator=torch.Generator().manual_seed(0))
    whole = sample_with_whole_network(model, first, start, torch.Generator().manual_seed(0))
    assert torch.equal(ours, whole)
    assert len(ours.unique(dim=0)) > 40


def test_kept_patches_follow_the_rules():
    model = random_pixel_cnn()
    bank, rate = make_patch_bank(model, 200, seed=0, batch_size=500)
    assert bank.shape == (200, 3, 3) and bank.dtype == torch.uint8
    assert 0 < rate < 1
    beginnings = bank.flatten(1)[:, :5]
    assert (beginnings == beginnings[:, :1]).all()
    assert set(beginnings[:, 0].tolist()) == set(UNSEEN)
    for patch in bank.flatten(1).tolist():
        assert sum(pixel in UNSEEN for pixel in patch) >= 7
        assert len(set(patch)) <= 3


def test_a_bank_is_a_function_of_its_seed():
    model = random_pixel_cnn()
    banks = [make_patch_bank(model, 100, seed=seed, batch_size=500)[0] for seed in (0, 0, 1)]
    assert torch.equal(banks[0], banks[1])
    assert not torch.equal(banks[0], banks[2])


def test_sampling_gives_up_where_nothing_is_kept():
    model = random_pixel_cnn()
    with torch.no_grad():
        model.head.bias[list(UNSEEN)] = -1e6
    with pytest.raises(ValueError, match="only 0 of 1000 sampled patches hold 7 unseen pixels"):
        make_patch_bank(model, 10, seed=0, batch_size=500, max_drawn=1000)


@pytest.mark.parametrize("side, start, unseen, classes", [(3, 5, 7, 3), (5, 13, 17, 8), (7, 25, 30, 12)])
def test_a_patch_is_kept_up_to_the_rules_and_no_further(side, start, unseen, classes):
    assert SAMPLING_RULES[side].start == start
    unseen_ids = range(100, 200)
    enough = torch.arange(side * side) % (classes - 1)  # seen classes
    enough[:unseen] = 100
    too_few = enough.clone()
    too_few[unseen - 1] = 0
    too_many = enough.clone()
    too_many[0] = 101
    patches = torch.stack([enough, too_few, too_many]).view(-1, side, side)
    assert [len(patch.unique()) for patch in patches] == [classes, classes, classes + 1]
    assert accept_patches(patches, unseen_ids).tolist() == [True, False, False]


# Cutting and filling


def test_blocks_are_cut_row_by_row_without_the_wholly_ignored():
    label_map = torch.arange(42).view(1, 6, 7)
    label_map[:, :3, 3:6] = 255
    assert cut_patches(label_map, 3).tolist() == [
        [[0, 1, 2], [7, 8, 9], [14, 15, 16]],
        [[21, 22, 23], [28, 29, 30], [35, 36, 37]],
        [[24, 25, 26], [31, 32, 33], [38, 39, 40]],
    ]


def test_label_maps_without_a_patch_are_refused():
    with pytest.raises(ValueError, match="4 x 9 pixels hold no patch of 5 x 5"):
        cut_patches(torch.zeros(1, 4, 9), 5)
    with pytest.raises(ValueError, match="no labelled pixel"):
        collect_patches([torch.full((9, 9), 255)], 3)


@pytest.mark.parametrize("ignore_index", [-100, 77, 1000])
def test_label_maps_may_mark_pixels_without_a_class_as_the_model_does(ignore_index):
    maps = with_holes(random_patches(4, 12, NUM_SEEN), 0.5)
    marked = [label_map.where(label_map != 255, ignore_index) for label_map in maps]
    expected = collect_patches(maps, 3)
    assert torch.equal(collect_patches(marked, 3, ignore_index=ignore_index), expected)
    assert torch.equal(collect_patches(maps.to(torch.uint8), 3, ignore_index=ignore_index), expected)  # as stored


def test_no_more_label_maps_are_read_than_needed():
    label_maps = iter([torch.zeros(6, 6), torch.ones(6, 9), torch.ones(3, 3)])
    assert collect_patches(label_maps, 3, max_patches=7).flatten(1)[:, 0].tolist() == [0] * 4 + [1] * 3
    assert len(list(label_maps)) == 1


@every_size
def test_no_counted_pixel_was_copied_to_an_earlier_position(side):
    """A pixel that the loss looks at can change without a change in what the network sees before it."""
    patches = with_holes(random_patches(300, side), 0.6)
    patches[:, -1, -1] = 3
    filled, labels = fill_ignored(patches)
    assert (labels != patches).any()
    assert (filled != 255).all()
    for t in range(side * side):
        counted = labels.flatten(1)[:, t] != 255
        changed = patches[counted].flatten(1)
        changed[:, t] = (changed[:, t] + 1) % 6
        after, _ = fill_ignored(changed.view(-1, side, side))
        assert torch.equal(after.flatten(1)[:, :t], filled[counted].flatten(1)[:, :t])


def test_an_unseen_class_takes_the_place_of_one_class():
    torch.manual_seed(0)
    filled, labels = fill_ignored(with_holes(random_patches(200, 3, NUM_SEEN), 0.2))
    new_filled, new_labels = swap_in_unseen(filled, labels, UNSEEN, share=1.0)
    swapped = new_filled != filled
    for old, new, where in zip(filled, new_filled, swapped, strict=True):
        assert len(old[where].unique()) == len(new[where].unique()) == 1
        assert not torch.isin(old[where].unique(), old[~where]).item()
    assert set(new_filled[swapped].tolist()) == set(UNSEEN)
    torch.testing.assert_close(new_labels, torch.where(labels == 255, 255, new_filled))
    assert 60 < (swap_in_unseen(filled, labels, UNSEEN, share=0.5)[0] != filled).flatten(1).any(1).sum() < 140


# Fitting


def iid_patches(number, share_ignored=0.3):
    odds = torch.tensor([0.55, 0.25, 0.15, 0.05])
    labels = torch.multinomial(odds, number * 9, replacement=True, generator=torch.Generator().manual_seed(0))
    entropy = -(odds * odds.log()).sum().item()
    return with_holes(labels.view(number, 3, 3), share_ignored).to(torch.uint8), entropy


QUICK = PatchFit(epochs=4, learning_rate=1e-2, batch_size=512, held_out=0.5, unseen_share=0.0)


def test_independent_labels_cost_their_entropy_and_not_less(one_thread):
    patches, entropy = iid_patches(24_000)
    _, report = fit_pixel_cnn(patches, small_config(**NARROW), EMBEDDINGS, QUICK)
    assert report["unigram_nats"] == pytest.approx(entropy, abs=0.01)
    assert report["unigram_nats"] - 0.003 < min(report["held_out_nats"]) < report["unigram_nats"] + 0.01


def test_a_network_that_is_shown_its_target_costs_less_than_the_entropy(one_thread):
    patches, entropy = iid_patches(24_000)
    _, report = fit_pixel_cnn(patches, small_config(condition="patch", **NARROW), EMBEDDINGS, QUICK)
    assert min(report["held_out_nats"]) < 0.5 * entropy


def test_the_best_epoch_is_kept_and_the_seed_decides_everything(one_thread):
    patches = random_patches(150, 3, NUM_SEEN).to(torch.uint8)  # nothing to learn: in the end it overfits
    config, fit = small_config(dropout=0.0, **NARROW), replace(QUICK, epochs=8, learning_rate=3e-2, batch_size=32)
    state = torch.get_rng_state()
    (model, report), (again, same_report) = (fit_pixel_cnn(patches, config, EMBEDDINGS, fit) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert report == same_report
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )

    assert report["kept_epoch"] < 8
    early, _ = fit_pixel_cnn(patches, config, EMBEDDINGS, replace(fit, epochs=report["kept_epoch"]))
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), early.state_dict().values(), strict=True)
    )


def test_layouts_of_seen_classes_carry_over_to_unseen_ones(one_thread):
    """Trained on patches of one class, the network goes on with the class it began with, seen or not."""
    patches = random_patches(2000, 3, NUM_SEEN)[:, :1, :1].expand(-1, 3, 3).to(torch.uint8)
    fit = PatchFit(epochs=6, learning_rate=3e-3, batch_size=64, unseen_share=0.5)
    model, report = fit_pixel_cnn(patches, small_config(**NARROW), EMBEDDINGS, fit)
    assert min(report["held_out_nats"]) < 0.2 * math.log(NUM_SEEN)
    first = torch.tensor(UNSEEN).repeat(100)
    sampled = RasterNetwork(model).sample(first, 5, generator=torch.Generator().manual_seed(0))
    assert (sampled == first[:, None, None]).float().mean() > 0.95


@pytest.mark.parametrize(
    "label, message", [(4, "class 4, which is unseen: hide it"), (9, "label 9, but there are 6 classes")]
)
def test_labels_that_cannot_be_trained_on_are_refused(label, message):
    patches = random_patches(20, 3, NUM_SEEN).to(torch.uint8)
    patches[3, 1, 1] = label
    with pytest.raises(ValueError, match=message):
        fit_pixel_cnn(patches, small_config(), EMBEDDINGS, PatchFit())


def test_too_few_patches_are_refused():
    with pytest.raises(ValueError, match=r"3 patches with held_out=0\.1 leave 0"):
        fit_pixel_cnn(random_patches(3, 3, NUM_SEEN), small_config(), EMBEDDINGS, PatchFit())


# The folder

FIT = PatchFit(epochs=1, bank_size=64, batch_size=64)


def label_maps():
    yield from random_patches(20, 12, NUM_SEEN).to(torch.uint8).numpy()


def refuse_to_be_read():
    raise AssertionError("the label maps were read again")
    yield


@pytest.fixture(scope="module")
def bank_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bank") / "patches"
    return folder, *open_patch_bank(folder, label_maps(), small_config(**NARROW), EMBEDDINGS, FIT)


def test_a_bank_is_found_again(bank_folder):
    folder, bank, report = bank_folder
    again, same_report = open_patch_bank(folder, refuse_to_be_read(), small_config(**NARROW), EMBEDDINGS, FIT)
    assert torch.equal(again, bank) and same_report == report
    assert 0 < report["acceptance_rate"] <= 1
    remade, _ = make_patch_bank(PatchPixelCNN.from_pretrained(folder), FIT.bank_size, FIT.seed)
    assert torch.equal(remade, bank)


def test_a_bank_of_other_settings_is_refused(bank_folder):
    other = replace(FIT, learning_rate=1e-2)
    with pytest.raises(ValueError, match="made with other learning_rate; remove"):
        open_patch_bank(bank_folder[0], refuse_to_be_read(), small_config(**NARROW), EMBEDDINGS, other)
    with pytest.raises(ValueError, match="made with other condition, class_embeddings; remove"):
        config = small_config(condition=None, **NARROW)
        open_patch_bank(bank_folder[0], refuse_to_be_read(), config, 2 * EMBEDDINGS, FIT)


def test_a_bank_that_cannot_be_made_leaves_nothing_behind(tmp_path):
    with pytest.raises(AssertionError):
        open_patch_bank(tmp_path / "patches", refuse_to_be_read(), small_config(**NARROW), EMBEDDINGS, FIT)
    assert not (tmp_path / "patches").exists()


# Synthetic label maps


@every_size
def test_label_maps_are_tiled_with_sampled_and_pure_patches(side):
    bank = random_patches(50, side)
    source = PatchSource(bank, class_odds(6, UNSEEN, unseen_rate=9.0))
    maps = source.draw((8, 6 * side, 10 * side), generator=torch.Generator().manual_seed(0))
    assert maps.shape == (8, 6 * side, 10 * side)
    tiles = cut_patches(maps, side).flatten(1)
    assert len(tiles) == 480
    pure = (tiles == tiles[:, :1]).all(dim=1)
    assert 0.85 < pure.float().mean() < 0.92  # 8 of 9
    members = {tuple(patch) for patch in bank.flatten(1).tolist()}
    assert {tuple(tile) for tile in tiles[~pure].tolist()} <= members
    unseen = torch.isin(tiles[pure][:, 0], torch.tensor(UNSEEN)).float().mean().item()
    assert unseen == pytest.approx(20 / 24, abs=0.06)


def test_label_maps_are_a_function_of_the_generator():
    source = PatchSource(random_patches(50, 3), torch.ones(6))
    draws = [source.draw((2, 9, 9), generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_sizes_that_do_not_fit_name_the_nearest_that_does():
    source = PatchSource(random_patches(5, 5), torch.ones(6))
    with pytest.raises(ValueError, match="48 x 25 pixels are no whole number of patches of 5; 50 x 25 are"):
        source.draw((1, 48, 25))
    with pytest.raises(ValueError, match="2 x 5 pixels are no whole number of patches of 5; 5 x 5 are"):
        source.draw((1, 2, 5))


def test_an_empty_bank_is_refused():
    with pytest.raises(ValueError, match="no patch"):
        PatchSource(torch.empty(0, 3, 3), torch.ones(6))


def test_held_out_nats_are_those_of_the_loss():
    model, patches = random_pixel_cnn(), random_patches(3000, 3)
    assert held_out_nats(model, patches, patches) == pytest.approx(model(patches, labels=patches).loss.item())
