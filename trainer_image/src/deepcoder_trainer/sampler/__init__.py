"""Samples responses with vLLM engines in Ray actors, and combines several of them behind one interface.

`settings` derives an engine's settings (pure); `engine`, `stepped`, `weights` and `translation` talk to vLLM; `actor`
wraps an engine in a Ray actor; `group` distributes requests over actors and survives their deaths.
"""
