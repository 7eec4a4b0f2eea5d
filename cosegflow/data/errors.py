"""The error of the data sets."""


class DatasetError(ValueError):
    """Data that cannot be used; the message is one line that names the data set, the file and what is needed."""

    def __init__(self, message: str) -> None:
        # An error in a DataLoader's worker is raised again with the worker's whole traceback as its message, whose
        # last line is the error itself.
        if message.startswith("Caught ") and "\n" in message:
            message = message.strip().splitlines()[-1].partition("Error: ")[2]
        super().__init__(message)
