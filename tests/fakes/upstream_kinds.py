"""What servers of other kinds say of themselves, as recorded from them, or as their source has it.

LLAMA_SERVER*, ROUTER*  llama-server 0.7.0 (build 11669)
LITELLM*                LiteLLM 1.106.2 in front of a llama-server
OLLAMA*                 Ollama's openai/openai.go (ToListCompletion) and middleware/openai.go
VLLM*                   vLLM's entrypoints/openai (OpenAIModelRegistry.show_available_models)
"""

import json
from typing import Any

LLAMA_SERVER = (
    b'{"models":[{"name":"a1","model":"a1","modified_at":"","size":"","digest":"","type":"model",'
    b'"description":"","tags":[""],"capabilities":["completion"],"parameters":"","details":{}}],'
    b'"object":"list","data":[{"id":"a1","aliases":["a1","a2"],"tags":[],"object":"model",'
    b'"created":1795368512,"owned_by":"llamacpp","meta":{"vocab_type":2,"n_ctx":512}}]}'
)
LLAMA_SERVER_LOADING = (
    b'{"error":{"message":"Loading model","type":"unavailable_error","code":503}}'
)
LLAMA_SERVER_KEY = (
    b'{"error":{"message":"Invalid API Key","type":"authentication_error","code":401}}'
)


def router(**statuses: dict[str, Any]) -> bytes:
    """Return the router's list of models, by name and `status`."""
    models = [
        {
            "id": name.replace("_", "-"),
            "aliases": [f"{name}-alias"],
            "tags": [],
            "object": "model",
            "owned_by": "llamacpp",
            "created": 1795368482,
            "status": {**status, "args": ["llama-server"], "preset": ""},
            "source": "models_dir",
        }
        for name, status in statuses.items()
    ]
    return json.dumps({"data": models, "object": "list"}).encode()


ROUTER = router(
    bad={"value": "unloaded", "exit_code": 1, "failed": True},
    tiny_1={"value": "loaded"},
    tiny_2={"value": "unloaded"},
    tiny_3={"value": "loading"},
    tiny_4={"value": "sleeping"},
)
ROUTER_PROPS = b'{"role":"router","max_instances":1,"models_autoload":true,"model_path":"none"}'
ROUTER_PROPS_NO_AUTOLOAD = ROUTER_PROPS.replace(b"true", b"false")

OLLAMA = (
    b'{"object":"list","data":[{"id":"llama3:latest","object":"model","created":1795368482,'
    b'"owned_by":"library"},{"id":"qwen2.5-coder:7b","object":"model","created":1795368482,'
    b'"owned_by":"library"},{"id":"someone/tuned:latest","object":"model","created":1795368482,'
    b'"owned_by":"someone"}]}'
)
OLLAMA_EMPTY = b'{"object":"list","data":null}'
OLLAMA_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nDate: Sun, 22 Nov 2026 18:00:00 GMT\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
OLLAMA_STREAM = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1795368482,'
    b'"model":"llama3","system_fingerprint":"fp_ollama","choices":[{"index":0,'
    b'"delta":{"role":"assistant","content":"Hello"},"finish_reason":null}]}\n\n',
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1795368482,'
    b'"model":"llama3","system_fingerprint":"fp_ollama","choices":[{"index":0,'
    b'"delta":{"role":"assistant","content":""},"finish_reason":"stop"}]}\n\n',
    b"data: [DONE]\n\n",
)
OLLAMA_UNKNOWN_MODEL = (
    b'{"error":{"message":"model \\"nosuch\\" not found, try pulling it first",'
    b'"type":"not_found_error","param":null,"code":null}}'
)

VLLM = (
    b'{"object":"list","data":[{"id":"Qwen/Qwen3-8B","object":"model","created":1795368482,'
    b'"owned_by":"vllm","root":"Qwen/Qwen3-8B","parent":null,"max_model_len":32768,'
    b'"permission":[]}]}'
)

LITELLM = (
    b'{"data":[{"id":"coder","object":"model","created":1677610602,"owned_by":"openai"}],'
    b'"object":"list"}'
)
LITELLM_KEY = (
    b'{"error":{"message":"No connected db.","type":"no_db_connection","param":null,"code":"400"}}'
)

ROLEMESH = (
    b'{"object":"list","data":[{"id":"planner","object":"model","created":1795368482,'
    b'"owned_by":"rolemesh"}],"rolemesh":{"unavailable_models":[{"id":"coder",'
    b'"reason":"box: stale: not heard for 47 s"}]}}'
)
