"""Evaluation of a checkpoint, or of pretrained features alone, on the benchmarks: `cosegflow eval`."""

from cosegflow.evaluate.errors import EvaluationError
from cosegflow.evaluate.predictors import CheckpointPredictor, Predictor, ZeroShotPredictor
from cosegflow.evaluate.protocols import Evaluator, make_evaluator
from cosegflow.evaluate.run import evaluate_pairs

__all__ = [
    "CheckpointPredictor",
    "EvaluationError",
    "Evaluator",
    "Predictor",
    "ZeroShotPredictor",
    "evaluate_pairs",
    "make_evaluator",
]
