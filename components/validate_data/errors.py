"""What goes wrong in validation."""


class DataValidationError(Exception):
    """The data is refused, or could not be judged; the message says what is wrong, where, and what to do."""
