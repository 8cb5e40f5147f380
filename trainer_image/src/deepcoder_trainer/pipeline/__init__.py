"""The training loop of one stage: sampling, judging and training overlapped within `maxOffPolicy`.

`controller` is the loop and describes what waits for what. `work_buffer` bounds staleness, `groups` fills batches
(`refill` redraws groups), `stage_progress` decides when a stage is over, `device_turns` shares devices, `probe`
compares samplers with the learner, and `saving` makes checkpoints and ends the run.
"""
