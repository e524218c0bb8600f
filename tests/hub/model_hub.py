"""A model hub on loopback: as much of its interface as huggingface_hub needs to upload a folder and to fetch one."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Handler(BaseHTTPRequestHandler):
    """Repositories are `server.repos`: {"name/model": {path: bytes}}; each has one revision."""

    def log_message(self, *_):
        pass

    def answer(self, content=b"", status=200, **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def info(self, repo):
        files = self.server.repos[repo]
        return {"_id": repo, "id": repo, "sha": revision(files), "private": False, "tags": [], "downloads": 0,
                "likes": 0, "siblings": [{"rfilename": name} for name in sorted(files)]}

    def do_POST(self):
        parts, body = unquote(urlsplit(self.path).path).strip("/").split("/"), self.body()
        if parts == ["api", "repos", "create"]:
            request = json.loads(body)
            repo = f"{request.get('organization') or 'someone'}/{request['name']}"
            self.server.repos.setdefault(repo, {})
            return self.answer({"url": f"{self.server.address}/{repo}", "id": repo})
        if parts == ["api", "validate-yaml"]:
            return self.answer({"errors": [], "warnings": []})
        repo, action = "/".join(parts[2:4]), parts[4]
        if action == "preupload":
            return self.answer({"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                                          for file in json.loads(body)["files"]]})
        assert action == "commit"
        for line in body.splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                self.server.repos[repo][item["value"]["path"]] = base64.b64decode(item["value"]["content"])
        sha = revision(self.server.repos[repo])
        return self.answer({"commitUrl": f"{self.server.address}/{repo}/commit/{sha}", "commitOid": sha})

    def do_GET(self):
        path = unquote(urlsplit(self.path).path).strip("/")
        parts = path.split("/")
        if path == "api/whoami-v2":
            return self.answer({"name": "someone", "type": "user"})
        repo = "/".join(parts[2:4]) if parts[0] == "api" else "/".join(parts[:2])
        if repo not in self.server.repos:
            return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        files = self.server.repos[repo]
        if parts[0] == "api" and "tree" in parts:
            return self.answer([{"type": "file", "path": name, "size": len(content), "oid": blob(content)}
                                for name, content in sorted(files.items())])
        if parts[0] == "api":
            return self.answer(self.info(repo))
        name = "/".join(parts[4:])
        if name not in files:
            return self.answer(b"", 404, X_Error_Code="EntryNotFound")
        return self.answer(files[name], X_Repo_Commit=revision(files),
                           ETag=f'"{blob(files[name])}"')

    do_HEAD = do_GET


def blob(content):
    return hashlib.sha1(content).hexdigest()


def revision(files):
    digest = hashlib.sha1()
    for name in sorted(files):
        digest.update(name.encode() + files[name])
    return digest.hexdigest()


@contextmanager
def serve(repos=None):
    """Yield a running hub; `.address` is what HF_ENDPOINT is set to."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.repos, server.address = dict(repos or {}), f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
