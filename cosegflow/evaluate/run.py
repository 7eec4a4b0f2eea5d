"""The loop over pairs."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from cosegflow.data.pair import Pair
from cosegflow.evaluate.errors import EvaluationError
from cosegflow.evaluate.predictors import Predictor
from cosegflow.evaluate.protocols import Evaluator


def evaluate_pairs(
    pairs: Iterable[Pair], predictor: Predictor, evaluator: Evaluator, advance: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Evaluates pair after pair, one at a time, since photographs differ in size.

    Args:
        pairs: single pairs, as `PairDataset` gives them.
        predictor: what is evaluated.
        evaluator: the protocol.
        advance: called after each pair.

    Returns:
        "pairs" (how many), the evaluator's result with "pairs" in each category too, and "per_pair": the name, category
        and values of each.

    Raises:
        EvaluationError: a pair lacks the truth that the protocol needs, or there is no pair.
        DatasetError: a file of a pair is missing or damaged.
    """
    rows = []
    for pair in pairs:
        values = evaluator.update(pair, predictor)
        rows.append({"name": str(pair.name), "category": str(pair.category), **values})
        advance()
    if not rows:
        raise EvaluationError("need at least one pair to evaluate, got none")
    result, counts = evaluator.result(), Counter(row["category"] for row in rows)
    result["per_category"] = {
        name: {"pairs": counts[name], **values} for name, values in result["per_category"].items()
    }
    return {"pairs": len(rows), **result, "per_pair": rows}
