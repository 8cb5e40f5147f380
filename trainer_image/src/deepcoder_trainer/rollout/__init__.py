"""From an admitted problem to a judged group: generate, extract, judge, with one coroutine per sample."""
