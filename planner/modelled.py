"""What no closed form covers."""


class NotModelled(Exception):
    """No closed form yet for something the scenario asks; the message says what."""
