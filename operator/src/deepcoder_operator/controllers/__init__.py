"""Glue: observe, call the pure planner, write the status once, carry out the plan."""
