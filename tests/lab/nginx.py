"""nginx as a plain load balancer: round robin, straight to the servers, with what it does by itself."""

import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from tests.lab.poll import eventually
from tests.lab.processes import Program, free_port, running

CONFIGURATION = """
daemon off; master_process off; pid {folder}/pid; error_log stderr warn;
events {{ worker_connections 512; }}
http {{
  access_log off;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  client_max_body_size 64m; client_body_buffer_size 1m;
  upstream servers {{ {servers} }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://servers; proxy_http_version 1.1; proxy_buffering off;
      proxy_read_timeout 600;
    }}
  }}
}}
"""


def nginx_program() -> Path:
    """Return nginx's program, which `make test` sees to."""
    found = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    assert found, "nginx is missing: apt-get install nginx (`make test` as root installs it)"
    return Path(found)


@asynccontextmanager
async def round_robin(folder: Path, sockets: Sequence[Path]) -> AsyncIterator[str]:
    """Run nginx in front of servers that listen on UNIX sockets; yields its URL."""
    port = free_port()
    configuration = _write_configuration(folder, port, sockets)
    command = (nginx_program(), "-p", folder, "-c", configuration, "-e", "stderr")
    url = f"http://127.0.0.1:{port}"
    async with running(command, log=folder / "log") as program:
        await eventually(lambda: _is_healthy(program, url), what="nginx answers")
        yield url


def _write_configuration(folder: Path, port: int, sockets: Sequence[Path]) -> Path:
    folder.mkdir()
    servers = " ".join(f"server unix:{socket};" for socket in sockets)
    path = folder / "nginx.conf"
    path.write_text(CONFIGURATION.format(folder=folder, port=port, servers=servers))
    return path


async def _is_healthy(program: Program, url: str) -> bool:
    assert program.status is None, "\n".join(program.lines())
    try:
        async with aiohttp.ClientSession() as session, session.get(f"{url}/health") as reply:
            return reply.status == 200
    except aiohttp.ClientError:
        return False
