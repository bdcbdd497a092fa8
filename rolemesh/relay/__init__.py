"""Moving one HTTP request from a client to an upstream and the answer back, byte for byte.

connection  one client connection: reads requests, begins jobs, writes replies, hands others on
acceptor    what a connection needs of its server
inbound     the server: accepts connections and owns the requests under way
handoff     reads every other request whole, and hands it on in plain words
application the aiohttp application that answers it
cors        what lets web pages from elsewhere read replies
paths       which paths carry inference requests
request     a client's request: its head, checked, and its body, bounded
target      what a request is for, in one spelling
hard_close  closing so that the client sees an error
headers     syntax of HTTP heads, and which headers cross a hop
access      who may call
client      one request as read, and the reply side of it
job         one request from its arrival to its record; what gateway and agent have in common
edit        the few fields of a request body that are read and rewritten
members     a JSON object's members as they were written: split, and joined again
exchange    one attempt: a request to one upstream, its answer to the client
attempt     the same for who has to wait for a connection
collect     one attempt whose answer is taken whole: a stream, assembled
echo        one attempt whose answer names the alias as its model
assembly    the plain reply that a stream makes
choices     ... one of chat or text completions; messages, responses: of those APIs
upstream    connections to upstreams and their pool
response    an upstream's response: its head, and where its body ends
events      which bytes of an SSE stream are comments
outbox      writes of many connections, made together
deadlines   one timer for all that waits
replies     errors as HTTP replies, in OpenAI's or Anthropic's shape
fetch       small requests of our own (probes, reports)
control_socket  the way in for operators of this machine
reloading   what they are answered who have a daemon reload
"""
