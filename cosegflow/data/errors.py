"""The error of the data sets."""


class DatasetError(ValueError):
    """Data that cannot be used; the message is one line that names the data set, the file and what is needed."""
