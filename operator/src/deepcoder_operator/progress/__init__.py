"""The endpoint to which trainers report, and where they learn whether to drain: HTTPS, authenticated by pod tokens.

It fails closed: a trainer that cannot be authenticated gets an error and continues training, because lost progress
reports do no harm.
"""
