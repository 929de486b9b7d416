"""Object-discovery metrics from joint label histograms, and the named protocols that fix every choice."""

from glass_fast.metrics.ground_truth import GroundTruth, build_ground_truth
from glass_fast.metrics.objects import (
    HistogramScores,
    adjusted_rand_index,
    hungarian_iou,
    joint_histogram,
    pairwise_iou,
    score_histogram,
)
from glass_fast.metrics.protocols import Protocol, get_protocol, protocol_names

__all__ = [
    "GroundTruth",
    "HistogramScores",
    "Protocol",
    "adjusted_rand_index",
    "build_ground_truth",
    "get_protocol",
    "hungarian_iou",
    "joint_histogram",
    "pairwise_iou",
    "protocol_names",
    "score_histogram",
]
