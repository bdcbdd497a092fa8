"""The node agent, in path order.

nvml -> inventory -> desired -> placement -> instance -> fleet -> unit_control (child_supervisor)
inference: a request to an instance; node_api: everything else on the port
host_watch -> report -> reporter: what the gateways and people are told
main: the composition root
"""
