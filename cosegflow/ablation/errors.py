"""The error of the ablation."""


class AblationError(ValueError):
    """One line that names the argument or file, what came, and what is needed."""
