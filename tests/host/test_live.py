"""A run shown while it samples, on a real headless ComfyUI with real websockets."""

import asyncio
import copy
import json
import socket
import uuid
from collections.abc import Awaitable, Callable
from contextlib import contextmanager

import aiohttp
import pytest
import torch
from highlight_diffusion.engine.report.latent_rgb import pictures, sample
from highlight_diffusion.host.live import latent_colours, watch
from highlight_diffusion.tools.server import Server
from highlight_diffusion.tools.workflow import of_type, to_prompt
from safetensors.torch import load_file

from . import tiny

pytestmark = pytest.mark.beside
STEPS = 16
EVENT = "highlight_diffusion.run"


@pytest.fixture(scope="module")
def graph(server, pack) -> dict:
    """The demo workflow, which saves its latent as it is and reports."""
    workflow = json.loads((pack / "workflows" / "highlight_demo.json").read_text())
    graph = to_prompt(workflow, server.get("/object_info"))
    of_type(graph, "KSampler")["steps"] = STEPS
    of_type(graph, "EmptyLatentImage").update(width=256, height=256)
    patch, sampler = (
        next(k for k, n in graph.items() if n["class_type"] == kind) for kind in ("HighlightDiffusion", "KSampler")
    )
    graph["latent"] = {"class_type": "SaveLatent", "inputs": {"samples": [sampler, 0], "filename_prefix": "latent"}}
    graph["report"] = {"class_type": "HighlightReport", "inputs": {"trace": [patch, 1], "after": [sampler, 0], "run": 0}}
    return graph


class Outcome:
    """What a prompt gave: its latent and its report."""

    def __init__(self, server: Server, outputs: dict):
        (saved,) = outputs["latent"]["latents"]
        self.latent = load_file(server.path_of(saved))["latent_tensor"]
        (self.report,) = outputs["report"]["highlight_report"]


async def outcome(server: Server, graph: dict, client: str) -> Outcome:
    """Queue for a client, freshly sampled, and wait."""
    fresh = copy.deepcopy(graph)
    of_type(fresh, "HighlightDiffusion")["max_area"] = 0.6 - 1e-6 * (uuid.uuid4().int % 1000)  # past ComfyUI's cache
    return Outcome(server, await asyncio.to_thread(server.run, fresh, 300.0, client))


async def with_client(server: Server, work: Callable[[str], Awaitable]) -> tuple[object, list[dict]]:
    """What `work` gives, with a client that listens, and what it heard from us."""
    client, heard = uuid.uuid4().hex, []
    url = f"http://127.0.0.1:{server.port}/ws?clientId={client}"
    async with aiohttp.ClientSession() as session, session.ws_connect(url) as ws:

        async def listen() -> None:
            async for message in ws:
                if message.type == aiohttp.WSMsgType.TEXT:
                    told = message.json()
                    if told["type"] == EVENT:
                        heard.append(told["data"])

        listening = asyncio.create_task(listen())
        result = await work(client)
        await asyncio.sleep(0.5)
        listening.cancel()
    return result, heard


@contextmanager
def deaf_client(server: Server):
    """A client that opens a websocket and never reads a byte of it."""
    client = uuid.uuid4().hex
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        raw.connect(("127.0.0.1", server.port))
        raw.sendall(
            f"GET /ws?clientId={client} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        assert b"101" in raw.recv(64)
        yield client


@pytest.fixture(scope="module")
def unwatched(server, graph) -> Outcome:
    return asyncio.run(outcome(server, graph, uuid.uuid4().hex))


def test_with_nobody_listening_the_hook_does_nothing(unwatched):
    assert unwatched.report["preview_ms"] == 0 and sum(unwatched.report["evaluations"].values()) == STEPS


def test_a_watched_run_has_the_same_latent_and_is_told_whole(server, graph, unwatched):
    watched, heard = asyncio.run(with_client(server, lambda client: outcome(server, graph, client)))
    assert torch.equal(watched.latent, unwatched.latent)
    assert watched.report["preview_ms"] > 0
    assert [cell["index"] for message in heard for cell in message["cells"]] == list(range(STEPS))
    assert heard[-1]["done"]["completed"] and len({message["key"] for message in heard}) == 1
    assert any("heatmaps" in message for message in heard) and any("pictures" in message for message in heard)


def test_a_client_that_never_reads_changes_neither_the_latent_nor_the_time(server, graph, unwatched):
    with deaf_client(server) as client:
        slow = asyncio.run(outcome(server, graph, client))
    assert torch.equal(slow.latent, unwatched.latent)
    assert sum(slow.report["evaluations"].values()) == STEPS


def test_an_interrupted_run_is_told_to_its_end(server, graph):
    async def interrupted(client: str) -> None:
        long = copy.deepcopy(graph)
        of_type(long, "KSampler")["steps"] = 400
        prompt_id = await asyncio.to_thread(server.post, long, client)
        await asyncio.sleep(3)
        await asyncio.to_thread(server.open, "/interrupt", b"{}")
        while prompt_id not in await asyncio.to_thread(server.get, f"/history/{prompt_id}"):
            await asyncio.sleep(0.1)

    _, heard = asyncio.run(with_client(server, interrupted))
    assert heard and heard[-1]["done"]["completed"] is False
    assert 0 < sum(len(message["cells"]) for message in heard) < 400


def test_where_no_server_runs_nobody_watches():
    assert watch(None) is None


def test_latent_formats_are_read_whatever_they_know():
    import comfy.latent_formats

    for name in ("SD15", "SDXL", "SD3", "Flux", "Wan21", "Flux2", "LatentFormat"):
        fmt = getattr(comfy.latent_formats, name, None)
        if fmt is None:
            continue
        colours = latent_colours(fmt())
        hash((colours.factors, colours.bias))
        assert not colours.factors or all(len(row) == 3 for row in colours.factors), name


@pytest.mark.parametrize("make", [tiny.sd15, *tiny.TRANSFORMERS.values()], ids=["sd15", *tiny.TRANSFORMERS])
def test_every_family_can_be_previewed(make):
    """Rough pictures of a latent of every family, videos among them."""
    latent_format = make().patcher.get_model_object("latent_format")
    frames = [5] if latent_format.latent_dimensions == 3 else []
    rough = pictures(sample(torch.randn(2, latent_format.latent_channels, *frames, 16, 16)), latent_colours(latent_format))
    assert rough.shape[:2] == (2, 5 if frames else 1) and rough.shape[-1] == 3 and rough.float().std() > 1
