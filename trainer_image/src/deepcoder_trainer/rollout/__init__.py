"""From an admitted problem to a judged group: generate, extract, judge, one coroutine a sample."""
