"""Losses by hand."""

from __future__ import annotations

import math

import pytest
import torch

from glass_fast.training.losses import instance_loss, match_segments, semantic_loss


def case():
    """Three slots on four tokens; two segments; the last token is uncertain.

    Hardened slots: tokens 0, 1 -> slot 2; token 2 -> slot 0; token 3 -> slot 1 (uncertain, does not count).
    Segment a = {0}, b = {2, 3}: IoU(a, slot 2) = 1/2, IoU(b, slot 0) = 1, so a -> 2 and b -> 0.
    """
    masks = torch.tensor(
        [[[0.2, 0.1, 0.7, 0.1], [0.1, 0.2, 0.2, 0.8], [0.7, 0.7, 0.1, 0.1]]], dtype=torch.float64
    )
    segments = torch.tensor([[[True, False, False, False], [False, False, True, True]]])
    return masks, segments, torch.tensor([2]), torch.tensor([[True, True, True, False]])


def test_matching_uses_hard_masks_and_valid_tokens_only():
    assert match_segments(*case()).tolist() == [[2, 0]]


def test_plain_by_hand():
    masks, segments, counts, valid = case()
    loss, found = semantic_loss(masks, segments, counts, valid, "plain")
    pair_a = -(math.log(0.7) + math.log(1 - 0.7) + math.log(1 - 0.1))
    pair_b = -(math.log(1 - 0.2) + math.log(1 - 0.1) + math.log(0.7))
    assert found.tolist() == [[2, 0]]
    assert float(loss) == pytest.approx((pair_a + pair_b) / 6, abs=1e-14)


def test_balanced_by_hand():
    masks, segments, counts, valid = case()
    loss, _ = semantic_loss(masks, segments, counts, valid, "balanced")
    pair_a = 0.5 * -math.log(0.7) + 0.5 * -(math.log(0.3) + math.log(0.9)) / 2
    pair_b = 0.5 * -math.log(0.7) + 0.5 * -(math.log(0.8) + math.log(0.9)) / 2
    assert float(loss) == pytest.approx((pair_a + pair_b) / 2, abs=1e-14)


def test_unmatched_slots_and_uncertain_tokens_have_no_gradient():
    masks, segments, counts, valid = case()
    masks.requires_grad_()
    for reduction in ("plain", "balanced"):
        (gradient,) = torch.autograd.grad(semantic_loss(masks, segments, counts, valid, reduction)[0], masks)
        assert float(gradient[0, 1].abs().max()) == 0.0
        assert float(gradient[0, :, 3].abs().max()) == 0.0
        assert float(gradient[0, [0, 2], :3].abs().min()) > 0.0


def test_padding_segments_and_images_without_segments_do_not_count():
    masks, segments, counts, valid = case()
    wide = torch.cat([segments, torch.zeros(1, 2, 4, dtype=torch.bool)], 1)
    two = (masks.repeat(2, 1, 1), wide.repeat(2, 1, 1), torch.tensor([2, 0]), valid.repeat(2, 1))
    for reduction in ("plain", "balanced"):
        alone, _ = semantic_loss(masks, segments, counts, valid, reduction)
        both, found = semantic_loss(*two, reduction)
        assert found.tolist() == [[2, 0, -1, -1], [-1, -1, -1, -1]]
        assert float(both) == pytest.approx(float(alone), abs=1e-14)
        nothing, _ = semantic_loss(masks, segments, torch.tensor([0]), valid, reduction)
        assert float(nothing) == 0.0


def test_probabilities_are_clamped():
    """A certain and wrong slot costs -ln 1e-6 a token, not infinity; float64 keeps the last digits."""
    masks = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]], dtype=torch.float64)
    segments = torch.tensor([[[False, True]]])
    loss, _ = semantic_loss(masks, segments, torch.tensor([1]), torch.ones(1, 2, dtype=torch.bool), "plain")
    assert float(loss) == pytest.approx((-math.log(1e-6) - math.log(1 - 1e-6)) / 2, rel=1e-9)


def test_more_segments_than_slots_leaves_the_worst_out():
    masks = torch.tensor([[[0.9, 0.9, 0.1], [0.1, 0.1, 0.9]]])
    segments = torch.tensor([[[True, True, False], [False, False, True], [False, True, False]]])
    found = match_segments(masks, segments, torch.tensor([3]), torch.ones(1, 3, dtype=torch.bool))
    assert found.tolist() == [[0, 1, -1]]


def test_instance_loss_is_the_mean_over_all_elements():
    assert float(instance_loss(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0, 2.0]]]))) == 2.0


def test_soft_cost_gives_a_free_segment_to_the_slot_that_attends_to_it():
    """One slot wins every token; the others differ only in soft attention."""
    masks = torch.tensor([[[0.60, 0.60, 0.60, 0.60], [0.30, 0.30, 0.10, 0.10], [0.10, 0.10, 0.30, 0.30]]])
    segments = torch.tensor([[[True, False, False, False], [False, False, True, True]]])
    counts, valid = torch.tensor([2]), torch.ones(1, 4, dtype=torch.bool)
    # hard: slot 0 holds all, segment 1 has the larger IoU with it; segment 0 ties and falls to the lowest index
    assert match_segments(masks, segments, counts, valid, "hard").tolist() == [[1, 0]]
    # soft: IoU(0, seg 1) = 1.2/3.2 + ..., slot 1 sits on the left, slot 2 on the right
    assert match_segments(masks, segments, counts, valid, "soft").tolist()[0][0] == 1
    swapped = masks[:, [0, 2, 1]]
    assert match_segments(swapped, segments, counts, valid, "hard").tolist() == [[1, 0]]
    assert match_segments(swapped, segments, counts, valid, "soft").tolist()[0][0] == 2
