"""Errors a user can cause: one clear sentence each, shown without a traceback by the scripts."""


class CaptionerError(Exception):
    """An error of input or settings; the message says what was found and what was expected."""


class ConfigError(CaptionerError):
    """A configuration key or value that cannot be used."""


class DataError(CaptionerError):
    """A file, folder, caption or split that cannot be used."""


class ImageError(DataError):
    """An image that cannot be read."""


class CheckpointError(CaptionerError):
    """A checkpoint that is damaged, of another version, or of another model."""


class NumericsError(CaptionerError):
    """A loss or gradient that is no longer finite."""
