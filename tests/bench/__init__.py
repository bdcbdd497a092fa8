"""The benchmark: RoleMesh beside nginx and vllm-router in one run, against the goals it has.

docs/performance.md says how it measures and what each row means. The C programs are backend.c (a
fake llama-server), loadgen.c (the clients) and journal_sink.c (stands where the journal does).

prepare.sh   what a machine needs for it
__main__     the command line
workshop     where a run takes place: cores, compiled programs, the journal's stand-in
host         processes on chosen cores, and what the kernel says of them
load         one run of the load generator
rivals       nginx and vllm-router
rolemesh     gateway and node agent, in each of their columns
fleet        hundreds of nodes that only exist in a gateway's registry
rounds       what is measured round by round, all targets in turn
once         what is measured once: memory, leaving, stuck readers, start, idling
samples      everything measured, as it is saved
goals        rows, ratios, verdicts
table        how that is printed
"""
