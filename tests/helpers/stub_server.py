"""A server on loopback that speaks as vLLM and SGLang do, about a model that a test made."""

import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread

import torch


class Stub:
    """What the server serves, and what it does wrong: `failures` are taken one a request."""

    def __init__(self, model, name="tiny", limit=20, length=None):
        self.model, self.name, self.limit, self.length = model, name, limit, length
        self.lacks = ()  # paths
        self.refuses_logprobs = None  # or how it says that it has none
        self.root = None  # what it was loaded from
        self.failures = []
        self.asked = []
        self.gone_after = None  # requests; every one behind these is answered with 503
        self.key = None
        self.tokenizer = None  # of the texts of its ids; None: it gives none
        self.lock = Lock()
        self.released = Event()  # what is slow ends

    def logs(self, ids):
        with torch.no_grad(), self.lock:
            return self.model(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)

    def completions(self, body):
        if self.refuses_logprobs:
            return 400, {"error": {"message": self.refuses_logprobs}}
        if body["prompt_logprobs"] > self.limit:
            said = f"Requested prompt logprobs of {body['prompt_logprobs']}, which is greater than"
            return 400, {"error": {"message": f"{said} max allowed: {self.limit}"}}
        ids, k = body["prompt"], body["prompt_logprobs"]
        if self.length is not None and len(ids) + body["max_tokens"] > self.length:
            said = f"This model's maximum context length is {self.length} tokens"
            return 400, {"error": {"message": said}}
        if max(ids) >= self.model.config.vocab_size:
            return 400, {"error": {"message": f"Token id {max(ids)} is out of vocabulary"}}
        entries = [None]
        for position, logs in enumerate(self.logs(ids)):
            best = {*logs.topk(k).indices.tolist(), ids[position + 1]}
            entries.append({str(n): {"logprob": float(logs[n]), "rank": 1} for n in best})
        if self.tokenizer is not None:
            for entry in entries[1:]:
                for n, position in entry.items():
                    position["decoded_token"] = self.tokenizer.decode([int(n)])
        return 200, {"choices": [{"prompt_logprobs": entries}]}

    def generate(self, body):
        entries = [None]
        if body.get("return_text_in_logprobs"):
            texts = [self.tokenizer and self.tokenizer.decode([n]) for n in body["input_ids"]]
            each = zip(texts, body["input_ids"], strict=True)
            return 200, {"meta_info": {"input_token_logprobs": [[-1.0, n, t] for t, n in each]}}
        for logs in self.logs(body["input_ids"]):
            found = logs.topk(body["top_logprobs_num"])
            each = zip(found.values.tolist(), found.indices.tolist(), strict=True)
            entries.append([[log, n, None] for log, n in each])
        return 200, {"meta_info": {"input_top_logprobs": entries}}

    def chat(self, body):
        """An answer to the question and the seed; questions may ask for something odd."""
        asked = body["messages"][-1]["content"]
        message = {"role": "assistant", "content": f"{asked} {body['seed'] % 7}, I say"}
        reason = "stop"
        if "long" in asked:
            reason = "length"
        if "empty" in asked:
            message["content"] = " "
        if "refuse" in asked:
            message |= {"content": None, "refusal": "No."}
        if "filter" in asked:
            reason = "content_filter"
        if "forbidden" in asked:
            return 400, {"error": {"code": "content_filter"}}
        return 200, {"choices": [{"message": message, "finish_reason": reason}]}

    def models(self, _):
        return 200, {"data": [{"id": self.name, "max_model_len": self.length, "root": self.root}]}


PATHS = {
    "/v1/models": Stub.models,
    "/v1/completions": Stub.completions,
    "/generate": Stub.generate,
    "/v1/chat/completions": Stub.chat,
}


class Server(ThreadingHTTPServer):
    """A busy machine accepts late: no connection of a few at once may be refused for it."""

    request_queue_size = 128


@contextmanager
def serving(stub, port=0):
    """The address at which it answers."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            self.do_POST()

        def do_POST(self):
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or "null")
            stub.asked.append((self.path, body))
            with stub.lock:
                failure = stub.failures.pop(0) if stub.failures and body is not None else None
                if stub.gone_after is not None and len(stub.asked) > stub.gone_after:
                    failure = 503
            if failure == "reset":
                self.close_connection = True
                self.connection.close()
                return
            if failure == "slow":  # until the client has given up on it
                stub.released.wait(10)
                stub.released.clear()
                self.close_connection = True
                self.connection.close()
                return
            if stub.key and self.headers.get("Authorization") != f"Bearer {stub.key}":
                return self._send(401, b"{}")
            if self.path in stub.lacks:
                return self._send(404, b"{}")
            status, answer = PATHS[self.path](stub, body)
            content = json.dumps(answer).encode()
            if isinstance(failure, int):
                return self._send(failure, b"{}")
            if failure == "half":
                return self._send(status, content[: len(content) // 2], len(content))
            if isinstance(failure, str):
                content = failure.encode()
            self._send(status, content)

        def _send(self, status, content, length=None):
            self.send_response(status)
            self.send_header("Content-Length", str(length or len(content)))
            self.end_headers()
            self.wfile.write(content)
            if length:
                self.close_connection = True

    server = Server(("127.0.0.1", port), Handler)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
