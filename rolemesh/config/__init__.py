"""From files to settings.

In the order of the path:

tree              values that know the file and line they were written at
yamlread          one YAML file -> tree
dropins           which files are read, in which order; environment and options as further layers
merge             several trees -> one
schema            JSON Schema over the merged tree -> findings (quick_check: surely none)
gateway_checks    what a schema cannot say about the gateway's tree
node_checks       ... and about the node's
taken_paths       which paths an operator cannot add
keys              the keys in a tree, and the files that hold some of them
x509              until when a certificate is valid
tls               TLS settings -> ssl.SSLContext, and what is wrong with the files they name
tls_checks        ... wherever a tree names such files
settings          the result: frozen dataclasses, the only home of defaults
sections          sections that both programs have: tree -> settings
gateway_settings  gateway tree -> GatewaySettings
node_settings     node tree -> NodeSettings
load              all of the above in one call: a source -> settings, or every problem at once
store             the current settings of a running program, and their reload
node_files        whether the files a node's settings name are there (a warning, never a refusal)
cli               command-line options that both daemons share, and `--check`
"""
