"""What a request can be refused with."""


class RequestError(Exception):
    """The request is bad: its configuration, or the work folder it names; the message says which and what to do."""
