"""The node agent, in path order.

nvml -> inventory -> desired -> placement -> instance, transitions -> fleet -> unit_control
unit_host: who implements unit_control here:
systemd_units: systemd (systemd_bus: its D-Bus interface; systemd_errors: what its errors mean)
child_supervisor: this process, where systemd is not PID 1 (child_unit: one unit; notify_socket)
inference: a request to an instance (streaming: which are asked for as streams; batches: which in
parts; request_headers)
node_api: everything else on the port
host_watch -> report -> reporter: what the gateways and people are told
main: the composition root
"""
