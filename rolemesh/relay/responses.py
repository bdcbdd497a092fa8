"""The plain reply of `/v1/responses` out of its stream (OpenAI's Responses API); pure.

The last event of a stream repeats the whole response. What it lacks of llama-server's plain reply
(0.7.0) is `completed_at` and the status of an item of reasoning.
"""

from rolemesh.relay.assembly import REPLY_LIMIT_BYTES, Assembly, AssemblyError, Tree, expect


class ResponsesAssembly(Assembly):
    """Takes the response from the event that has it."""

    def __init__(self, limit_bytes: int = REPLY_LIMIT_BYTES) -> None:
        super().__init__(limit_bytes)
        self._response: Tree | None = None

    def _take_event(self, event: Tree) -> bool:
        kind = event.get("type")
        if kind == "response.completed":
            self._response = expect(dict, event.get("response"), "response")
            self._done = True
        return kind not in ("response.created", "response.in_progress")

    def _plain_reply(self) -> Tree:
        response = self._response
        if response is None:
            msg = "the stream ended before the answer was whole"
            raise AssemblyError(msg)
        items = expect(list, response.get("output"), "output")
        output = [{"status": "completed", **expect(dict, item, "item")} for item in items]
        return {"completed_at": response.get("created_at"), **response, "output": output}
