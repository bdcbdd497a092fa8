"""The gateway: one OpenAI-compatible address for every role of the mesh.

REQUEST PATH: main -> inference -> dispatch -> roles -> selection -> admission -> (relay)
main           composition root: settings -> objects -> daemon
routes         every other path and what answers it, one screen
openapi        the same as a document (openapi.json)
inference      one inference request: who asks, what for, and its record in the log
dispatch       candidates one after another until one answers
admission      slot leases and bounded queues; the only owner of in-flight counts
selection      which candidates of a target, in which order, and why not the others; pure
routing_table  settings + nodes + health -> immutable table of targets; pure
CONTROL PATH
node_api       register, heartbeat, removal
registry       what nodes said last; single writer
health         whether static upstreams and doubtful nodes answer
upstream_kinds what servers of other kinds mean by what they answer; pure
client_api     /v1/models, /health, /ready
OPERATORS
operator_api   /v1/rolemesh: what there is, cancel, drain, reload
operator_view  nodes, aliases, requests and keys as operators are shown them; pure
node_relay     what operators ask of a node, passed on to its agent
explain        who would answer an alias, and why nobody else would; pure
trace          what became of a request, here and on the nodes
metrics        /metrics
request_counts requests by alias, node and status, and how long they took
"""
