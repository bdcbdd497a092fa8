"""rolemeshctl: what people ask RoleMesh and tell it.

main -> verbs (which module is which verb) -> one module per verb:
  status, nodes, aliases, explain, ps, cancel, drain, undrain, reload   ask or tell the gateway
  config (config_cat, config_delta, config_show)               read this host's configuration files
  key (key_files, key_staging)                                 client and node keys as drop-ins
  trace (trace_records, host_journal)                          one request, over all hosts
  complete                                                     words for the shell's completion
gateway_address says where the gateway is, gateway_api speaks to it, output writes for people and
for programs, outcomes has the exit codes. A verb's module is imported only when it is used: the
program has to be quick.
"""
