"""Moving one HTTP request from a client to an upstream and the answer back, byte for byte.

paths     which paths carry inference requests
edit      the few fields of a request body that are read and rewritten
headers   syntax of HTTP heads, and which headers cross a hop
client    one request as read, and the reply side of it
connection  one client connection: reads requests, writes replies, hands other requests on
access    who may call
application  the aiohttp application that takes every other request
inbound   accepts connections and owns the requests under way
request   incremental reader of a client's request
upstream  connections to upstreams and their pool
response  incremental reader of an upstream's response
events    which bytes of an SSE stream are comments
exchange  one attempt: a request to one upstream, its answer to the client
assembly  the plain reply that a stream makes
collect   one attempt whose answer is taken whole: a stream, assembled
replies   errors as OpenAI-shaped HTTP replies
fetch     small requests of our own (probes, reports)
"""
