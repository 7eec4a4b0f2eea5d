"""Metrics of matching and of segmentation, as torchmetrics: states are sums, so they add up over processes."""

from cosegflow.metrics.dense import PCK, EndPointError, box_length
from cosegflow.metrics.flow_accuracy import FlowAccuracy, scale_flow, valid_flow
from cosegflow.metrics.keypoints import (
    THRESHOLDS,
    KeypointPCK,
    PCKMeans,
    Threshold,
    keypoint_box_length,
    reference_length,
    rescale_keypoints,
    transfer_keypoints,
)
from cosegflow.metrics.label_transfer import LabelTransfer, localisation_error
from cosegflow.metrics.masks import MaskIoU, PrecisionJaccard
from cosegflow.metrics.means import CategoryMeans, Means

__all__ = [
    "PCK",
    "THRESHOLDS",
    "CategoryMeans",
    "EndPointError",
    "FlowAccuracy",
    "KeypointPCK",
    "LabelTransfer",
    "MaskIoU",
    "Means",
    "PCKMeans",
    "PrecisionJaccard",
    "Threshold",
    "box_length",
    "keypoint_box_length",
    "localisation_error",
    "reference_length",
    "rescale_keypoints",
    "scale_flow",
    "transfer_keypoints",
    "valid_flow",
]
