"""The rolemesh-llama program, main process of one llama-server.

In path order:

parameters -> node_directory -> job (job_checks, gguf, file_access; build, server_options: what the
installed llama-server knows; model_options, command) -> runtime_files -> server_process, all by
`main`, and from there on by `service`: server (log_tail, explanation, oom_kills) -> server_facts
-> readiness (load_progress; wedge_watch, wedge, activity: whether it goes on) -> slot_cache

`gguf`, `job`, `parameters`, `runtime_files` and `server_facts` are also the agent's.
What a model takes is the agent's alone: hyperparameters, memory_options -> memory (memory_weights,
memory_context).
"""
