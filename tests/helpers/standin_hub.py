"""A stand-in for the Hugging Face hub: serves folders under the ids that recipes name.

ROOT/models/OWNER/NAME/... and ROOT/datasets/OWNER/NAME/... are what it has. Point HF_ENDPOINT at
its `url`. It answers what huggingface_hub and datasets ask when they load and when they upload a
model, and nothing else. Whoever has a token may write, but not for the owner "locked"; large files
come by the LFS protocol. What is uploaded lies in ROOT as what is served.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse

import yaml

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serving(root: Path):
    """The hub's address while the block lasts, and the requests that it got."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.root, server.asked, server.hidden, server.large = root, [], set(), {}
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", server.asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self):
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length)
        url = urlparse(self.path)
        path = unquote(url.path)
        self.server.asked.append(f"{self.command} {path}")
        if self.command in ("POST", "PUT") and (answer := self._upload(path, body)):
            return self._send(*answer)
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            return self._file(self._repository(match[1], match[2]) / match[3])
        if match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(.+))?", path):
            return self._api(match[1] == "datasets", match[2], match[3] or "", body, url.query)
        return self._send(404, {"error": "Not found"})

    def _repository(self, datasets, name):
        return self.server.root / ("datasets" if datasets else "models") / name

    def _api(self, datasets, name, rest, body, query):
        folder = self._repository(datasets, name)
        if not folder.is_dir():
            return self._send(404, {"error": "Repository not found"}, code="RepoNotFound")
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if rest.startswith("tree/"):
            under = folder / "/".join(rest.split("/")[2:])
            deep = parse_qs(query).get("recursive", ["false"])[0].lower() in ("true", "1")
            if not under.exists():
                return self._send(404, {"error": "Entry not found"}, code="EntryNotFound")
            found = under.rglob("*") if deep else under.iterdir()
            return self._send(200, [_entry(folder, path) for path in sorted(found)])
        if rest.startswith("paths-info/"):
            fields = parse_qs(body.decode())
            asked = fields.get("paths") or json.loads(body or b"{}").get("paths", [])
            found = [folder / path for path in asked if (folder / path).exists()]
            return self._send(200, [_entry(folder, path) for path in found])
        if rest in ("", "revision/main", f"revision/{COMMIT}"):
            siblings = [{"rfilename": str(path.relative_to(folder))} for path in files]
            return self._send(
                200,
                {
                    "id": name,
                    "sha": COMMIT,
                    "siblings": siblings,
                    "tags": [],
                    "private": name in self.server.hidden,
                },
            )
        return self._send(404, {"error": "Not found"})

    def _upload(self, path, body):
        """Status and answer to a step of an upload; nothing where this is none."""
        if match := re.fullmatch(r"/large/(\w+)", path):
            assert hashlib.sha256(body).hexdigest() == match[1]
            self.server.large[match[1]] = body
            return 200, {}
        if path == "/api/validate-yaml":
            return _validated(json.loads(body)["content"])
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            return 200, {"objects": [self._place(each) for each in json.loads(body)["objects"]]}
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            return 200, {"files": [_mode(each) for each in json.loads(body)["files"]]}
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            return self._commit(match[1], [json.loads(line) for line in body.splitlines()])
        return None

    def _create(self, asked):
        owner, name = asked["organization"], asked["name"]
        if not self.headers.get("authorization"):
            return 401, {"error": "Invalid username or password."}
        if owner == "locked":
            return 403, {
                "error": "You don't have the rights to create a model under this namespace"
            }
        folder = self._repository(None, f"{owner}/{name}")
        url = f"http://{self.headers['host']}/{owner}/{name}"
        if folder.is_dir():
            return 409, {"error": "You already created this model repo", "url": url}
        folder.mkdir(parents=True)
        if asked.get("visibility") == "private":
            self.server.hidden.add(f"{owner}/{name}")
        return 200, {"url": url}

    def _place(self, asked):
        url = f"http://{self.headers['host']}/large/{asked['oid']}"
        return {**asked, "actions": {"upload": {"href": url}}}

    def _commit(self, name, lines):
        folder = self._repository(None, name)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                (folder / value["path"]).write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                (folder / value["path"]).write_bytes(self.server.large[value["oid"]])
        url = f"http://{self.headers['host']}/{name}/commit/{COMMIT}"
        return 200, {"commitUrl": url, "commitOid": COMMIT, "success": True}

    def _file(self, path):
        if not path.is_file():
            return self._send(404, {"error": "Entry not found"}, code="EntryNotFound")
        content = path.read_bytes()
        first, last, status = 0, len(content) - 1, 200
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range") or ""):
            first, last, status = int(wanted[1]), int(wanted[2] or last), 206
        part = content[first : last + 1]
        self.send_response(status)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(part)
        return None

    def _send(self, status, answer, code=None):
        content = json.dumps(answer).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _validated(card):
    """What the hub has against the YAML of a model card."""
    front = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    if front and isinstance(yaml.safe_load(front[1]), dict):
        return 200, {"errors": [], "warnings": []}
    return 400, {"errors": [{"message": "metadata is missing"}], "warnings": []}


def _mode(file):
    large = file["path"].endswith(".safetensors")
    return {
        "path": file["path"],
        "uploadMode": "lfs" if large else "regular",
        "shouldIgnore": False,
    }


def _entry(folder, path):
    name = str(path.relative_to(folder))
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": COMMIT}
    content = path.read_bytes()
    oid = hashlib.sha1(content).hexdigest()
    return {"type": "file", "path": name, "oid": oid, "size": len(content)}
