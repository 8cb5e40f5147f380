"""Glue: observe, call the pure planner, carry out its plan, write the status once."""
