"""Sampling responses: vLLM engines in Ray actors, and several of them behind one face.

`settings` decides (pure), `engine` and `weights` talk to vLLM and are the only modules that import it, `actor` puts
an engine into a Ray actor, `group` spreads requests over actors and survives their deaths.
"""
