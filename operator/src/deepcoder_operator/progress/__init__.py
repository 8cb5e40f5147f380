"""Where trainers report and learn whether to drain: HTTPS, authenticated by their pod's own token.

Fails closed: whoever cannot be checked gets an error and goes on training, since progress may be lost without harm.
"""
