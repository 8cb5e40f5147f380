"""Judging over Together Code Interpreter, a hosted API that runs Python but does not judge.

Its protocol, as published (docs.together.ai/reference/tci-execute and tci-sessions; togethercomputer/openapi,
openapi.yaml, `ExecuteRequest` and `ExecuteResponse`; togethercomputer/together-python, types/code_interpreter.py):
`POST /tci/execute` with a bearer key and `{code, language: "python", session_id?, files?}` answers `{data: {session_id,
status, outputs: [{type, data}]}, errors: null}`, or `{data: null, errors: […]}`. `type` is stdout, stderr, error (the
code itself failed), display_data or execute_result. Without a session_id it starts a new session. Each session is
billed, and lives for half an hour or an hour (the pages differ). No limit of time, memory, output or rate is published,
nor a way to end a session.

So the judge is split. `harness` and `runner` are sent to the API as text: the first runs the program once per test in a
separate process, under limits, and reports the results; the second is that process. `report` reads the report and
compares outputs here. This has these consequences:

- Expected outputs never leave the trainer. (rLLM's `codetool_check_correctness` sends them along and takes "the API
  reported no error" for a pass, so that a program which exits early passes and an API outage is a wrong answer.)
- Every submission has its own session: nothing that a program leaves behind reaches another.
- Harness and program run as the same user there, so a program can forge the report. A forged output is compared like
  any other, so it gains nothing over printing it. Forged times and limits matter only together with a right answer. An
  inconsistent report counts as a failure of the judge, never as a pass.
"""
