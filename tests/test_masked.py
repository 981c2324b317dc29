"""Inpainting: what its network is told, and the network itself."""

import numpy as np
import pytest
import torch
from refusals import one_sentence

from guided_diffusion import conditioning, flags
from guided_diffusion.conditioning.masked import BLOCKS, MASKS, Masked, MaskFlags, distorted, filled
from guided_diffusion.generate import IndexedNoise
from guided_diffusion.networks import NETWORKS, InpaintFlags, UNetFlags, for_inference, for_training
from guided_diffusion.process import DiffusionFlags

WORDS = "--image_size 8 --num_channels 32 --num_res_blocks 1 --channel_mult 1,1 --attention_resolutions 4".split()


def images(count, channels=3, side=8):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(count)) * 2 - 1


def network(*words):
    network = NETWORKS["inpaint"]
    made = network.create(flags.parse([*WORDS, *words], [*network.groups, DiffusionFlags], ""))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    return made.eval()


# ---------------------------------------------------------------------------------------------- holes


def test_families_of_masks():
    drawn = torch.arange(2 * BLOCKS**2).reshape(2, BLOCKS, BLOCKS) - 10.5
    center, column, blocks = (MASKS[name](drawn, 8, 16) for name in ("center", "column", "blocks"))
    inside = np.zeros((8, 16))
    inside[1:7, 2:14] = 1
    assert center.shape == (2, 1, 8, 16) and (center.numpy() == inside).all()
    assert (column.numpy() == (np.arange(16) >= 2) * (np.arange(16) < 14)).all()
    assert np.array_equal(blocks[0, 0], np.kron(np.arange(16).reshape(4, 4) > 10, np.ones((2, 4))))
    assert blocks[1].all()


@pytest.mark.parametrize("channels", [1, 3])
def test_training_sees_the_hole_in_the_reference_alone(channels):
    x = images(64, channels)
    torch.manual_seed(0)
    told = Masked(list(MASKS), dropout=0.25).of_data(x, None)
    assert {k: v.shape[1] for k, v in told.items()} == {"masked": channels, "mask": 1, "reference": channels + 1}
    assert torch.equal(filled(x, told), x)
    assert (told["masked"] * told["mask"] == 0).all() and set(told["mask"].unique().tolist()) == {0, 1}
    assert len({tuple(mask.flatten().tolist()) for mask in told["mask"]}) > 20  # blocks are drawn, each for itself
    shown = told["reference"][:, -1].flatten(1).sum(1) > 0
    assert 0.5 < shown.float().mean() < 0.95 and (told["reference"][~shown] == 0).all()
    # whatever is around the hole cannot reach the reference
    torch.manual_seed(0)
    again = Masked(list(MASKS), dropout=0.25).of_data(x * told["mask"] + 0.5 * (1 - told["mask"]), None)
    assert torch.equal(again["reference"], told["reference"])
    assert "reference" not in Masked(["center"], shows=False).of_data(x, None)


def test_references_are_distorted_each_its_own_way():
    dot = torch.zeros(200, 1, 16, 16)
    dot[:, :, 7:9, 11:13] = 1
    torch.manual_seed(0)
    places = {}
    for mirrors in (False, True):
        moved = distorted(dot, mirrors)
        assert moved.shape == dot.shape and moved.min() >= 0 and moved.max() <= 1
        seen = moved.flatten(1).sum(1) > 0
        columns = (moved.sum(dim=(1, 2)) * torch.arange(16)).sum(1)[seen] / moved[seen].flatten(1).sum(1)
        places[mirrors] = columns
        assert seen.float().mean() > 0.9 and columns.unique().numel() > 100
    assert (places[False] > 7.5).float().mean() > 0.95
    assert 0.35 < (places[True] > 7.5).float().mean() < 0.65


def test_sampling_takes_families_in_turn_and_images_by_their_index():
    x = images(6)

    def pictures(indices):
        return x[indices], x[[5 - i for i in indices]]

    told = Masked(["column", "blocks"], pictures=pictures)
    all_at_once = told.of_indices(IndexedNoise(3, range(6)), list(range(6)))
    assert (all_at_once["mask"][::2] == MASKS["column"](torch.zeros(3, 4, 4), 8, 8)).all()
    for part in ([0, 1], [4, 5]):
        alone = told.of_indices(IndexedNoise(3, part), part)
        assert all(torch.equal(value, all_at_once[name][part]) for name, value in alone.items())
    assert torch.equal(all_at_once["reference"], torch.cat([x.flip(0) * all_at_once["mask"], all_at_once["mask"]], 1))
    assert torch.equal(filled(x, all_at_once), x)


def test_previews_draw_nothing_and_swap_their_images():
    torch.manual_seed(0)
    before, x = torch.get_rng_state(), images(4)
    told = Masked(["center", "blocks"]).shown(4, x, None)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(told["reference"][1:, :3], (x[:-1] * told["mask"][1:]))


def test_guidance_leaves_the_reference_out():
    told = Masked(["center"]).of_data(images(2), None)
    without = conditioning.dropped(told)
    assert without["masked"] is told["masked"] and without["mask"] is told["mask"]
    assert (without["reference"] == 0).all() and without["reference"].shape == told["reference"].shape


@pytest.mark.parametrize("masks", ["", ",", "center,eyes"])
def test_unknown_holes_are_refused(masks):
    one_sentence(lambda: MaskFlags(masks=masks), "--masks", repr(masks), "center, column, blocks")


# -------------------------------------------------------------------------------------------- network


def test_it_begins_as_a_network_that_sees_x_alone():
    made = NETWORKS["inpaint"].create(flags.parse(WORDS, [UNetFlags, InpaintFlags, DiffusionFlags], ""))
    first = made.input_blocks[0][0].weight
    assert first.shape[1] == 7 and (first[:, 3:] == 0).all() and (first[:, :3] != 0).all()


def test_what_is_shown_nowhere_is_no_reference():
    made, x, t = network(), images(3), torch.tensor([5.0, 50.0, 500.0])
    told = Masked(["center"]).of_data(x, None)
    hidden = told["reference"].clone()
    hidden[1:, -1] = 0
    with torch.no_grad():
        full, some = (made(x, t, **{**told, "reference": reference}) for reference in (told["reference"], hidden))
        other = made(x, t, **{**told, "reference": torch.cat([hidden[:, :3] * 2, hidden[:, 3:]], dim=1)})
        plain = network("--reference_cond", "False")
        plain.load_state_dict({k: v for k, v in made.state_dict().items() if not k.startswith("encoder")})
        without = plain(x, t, masked=told["masked"], mask=told["mask"])
    assert torch.equal(full[0], some[0]) and not torch.allclose(full[1:], some[1:])
    assert torch.allclose(some[1:], without[1:], atol=1e-6) and torch.allclose(other[1:], some[1:], atol=1e-6)
    assert not torch.allclose(other[0], some[0])


@pytest.mark.parametrize("faster", [for_inference, for_training])
def test_it_is_as_fast_as_the_networks_that_it_is_made_of(faster):
    made, x, t = network(), images(3), torch.tensor([5.0, 50.0, 500.0])
    told, fast = Masked(["center"]).of_data(x, None), faster(made)
    assert fast is not made and type(fast) is type(made)
    assert type(fast.input_blocks[1][0]) is not type(made.input_blocks[1][0])
    with torch.no_grad():
        torch.testing.assert_close(fast(x, t, **told), made(x, t, **told), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("words, missing", [([], "reference"), (["--reference_cond", "False"], "mask")])
def test_it_says_what_it_misses(words, missing):
    made = network(*words)
    told = {name: images(1, 1) for name in made.takes if name != missing}
    one_sentence(lambda: made(images(1), torch.zeros(1), **told), missing)


def test_it_has_no_classes():
    one_sentence(lambda: network("--class_cond", "True"), "--class_cond True")
