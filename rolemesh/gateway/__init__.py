"""The gateway: one OpenAI-compatible address for every role of the mesh.

REQUEST PATH: main -> inference -> dispatch -> roles -> selection -> admission -> (relay)
main           composition root: settings -> objects -> daemon
routes         every other path and what answers it, one screen
inference      one inference request: who asks, what for, and its record in the log
dispatch       candidates one after another until one answers
admission      slot leases and bounded queues; the only owner of in-flight counts
selection      which candidates of a target, in which order, and why not the others; pure
routing_table  settings + nodes + health -> immutable table of targets; pure
CONTROL PATH
node_api       register, heartbeat, removal
registry       what nodes said last; single writer
health         whether static upstreams and doubtful nodes answer
client_api     /v1/models, /health, /ready
"""
