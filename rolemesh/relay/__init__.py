"""Moving one HTTP request from a client to an upstream and the answer back, byte for byte.

connection  one client connection: reads requests, begins jobs, writes replies, hands others on
acceptor    what a connection needs of its server
inbound     the server: accepts connections and owns the requests under way
application the aiohttp application that takes every other request
paths       which paths carry inference requests
request     a client's request: its head, checked, and its body, bounded
headers     syntax of HTTP heads, and which headers cross a hop
access      who may call
client      one request as read, and the reply side of it
job         one request from its arrival to its record; what gateway and agent have in common
edit        the few fields of a request body that are read and rewritten
members     a JSON object's members as they were written: split, and joined again
exchange    one attempt: a request to one upstream, its answer to the client
attempt     the same for who has to wait for a connection
collect     one attempt whose answer is taken whole: a stream, assembled
assembly    the plain reply that a stream makes
upstream    connections to upstreams and their pool
response    an upstream's response: its head, and where its body ends
events      which bytes of an SSE stream are comments
outbox      writes of many connections, made together
deadlines   one timer for all that waits
replies     errors as OpenAI-shaped HTTP replies
fetch       small requests of our own (probes, reports)
"""
