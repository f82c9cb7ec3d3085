"""OpenAI's objects, as the clients of 2026 send and read them.

``request`` has what all requests share, ``chat`` and ``completion`` the two kinds; ``answer`` what
is given back, ``error`` how a request is refused. Requests are read with tolerance: ``null`` is
absent, known fields without a meaning here are accepted, unknown ones are set aside and named.
"""
