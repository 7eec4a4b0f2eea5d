"""The error of evaluation."""


class EvaluationError(ValueError):
    """An option or a data set that cannot be evaluated; one line that names it and says what is needed."""
