"""A workflow as the subject of a bench: its own sampler, guider, scheduler and encoders, run in this process.

Of the graph nothing is changed but the MODEL that enters the sampler or its guider, the seed, the number of steps, and the text
of the positive prompt.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..host.attach import detached
from ..tools.comfy import Sampling, Subject, node
from ..tools.graph import node_info
from ..tools.workflow import to_prompt

Given = Mapping[tuple[str, str], Any]  # values in place of nodes' inputs, by node and name
SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")
SEEDS = ("seed", "noise_seed")
ENCODED = ("positive", "conditioning")  # inputs that a prompt comes in by


class Graph:
    """Runs nodes of an API prompt, each once for what it is given."""

    def __init__(self, prompt: Mapping[str, dict]):
        self.prompt = prompt
        self._kept: dict[tuple, tuple] = {}

    def inputs(self, name: str) -> dict[str, Any]:
        return self.prompt[name]["inputs"]

    def links(self, name: str) -> dict[str, tuple[str, int]]:
        """The inputs of a node that come from other nodes, with these and their slots."""
        found = {key: value for key, value in self.inputs(name).items() if isinstance(value, list) and len(value) == 2}
        return {key: (str(source), slot) for key, (source, slot) in found.items() if str(source) in self.prompt}

    def upstream(self, name: str) -> Iterator[str]:
        """A node and all that it depends on, nearest first."""
        seen, waiting = set(), [name]
        while waiting:
            at = waiting.pop(0)
            if at not in seen:
                seen.add(at)
                yield at
                waiting += [source for source, _ in self.links(at).values()]

    def outputs(self, name: str, given: Given) -> tuple:
        """What a node gives. It is kept, but where a model or the like is given. A link that is given is not followed."""
        needed = self._needed(name, given)
        own = tuple(item for item in given.items() if item[0][0] in needed)
        keeps = all(isinstance(value, str | int) for _, value in own)
        if keeps and (name, own) in self._kept:
            return self._kept[name, own]
        values = dict(self.inputs(name))
        for key, (source, slot) in self.links(name).items():
            if (name, key) not in given:
                values[key] = self.outputs(source, given)[slot]
        values.update({key: value for (at, key), value in given.items() if at == name})
        found = node(self.prompt[name]["class_type"], **values)
        if keeps:
            self._kept[name, own] = found
        return found

    def _needed(self, name: str, given: Given) -> set[str]:
        """A node and all that it depends on where links that are given are cut."""
        seen, waiting = set(), [name]
        while waiting:
            at = waiting.pop()
            if at not in seen:
                seen.add(at)
                waiting += [source for key, (source, _) in self.links(at).items() if (at, key) not in given]
        return seen

    def only(self, *kinds: str) -> str:
        """The one node of these types. Raises ValueError where there is none, or several."""
        found = [name for name, own in self.prompt.items() if own["class_type"] in kinds]
        if len(found) != 1:
            raise ValueError(f"the workflow has {len(found)} nodes of type {' or '.join(kinds)}; the bench needs exactly one")
        return found[0]


def read_prompt(path: Path) -> dict[str, dict]:
    """The API prompt of a workflow file, exported for the API or saved by the frontend. Raises ValueError for other files, and
    for a saved one with subgraphs, which only the frontend can unfold."""
    data = json.loads(path.read_text())
    if "nodes" in data:
        if (data.get("definitions") or {}).get("subgraphs"):
            raise ValueError(f"{path} has subgraphs; export it with Workflow, Export (API), and give that file")
        kinds = {own["type"] for own in data["nodes"]} - {"Note", "MarkdownNote"}
        try:
            return to_prompt(data, {kind: node_info(kind) for kind in kinds})
        except KeyError as error:
            raise ValueError(f"{path} uses node {error.args[0]}, which is not installed") from None
    if data and all(isinstance(own, dict) and "class_type" in own for own in data.values()):
        return data
    raise ValueError(f"{path} is no workflow: neither saved by the frontend nor exported for the API")


class WorkflowSubject(Subject):
    """A workflow with one sampler node and one VAEDecode behind it. sampling: as its widgets have it; `fewer steps` changes the
    steps alone."""

    def __init__(self, path: Path):
        self.graph = graph = Graph(read_prompt(path))
        self.sampler = graph.only(*SAMPLERS)
        self.decoder = graph.only("VAEDecode", "VAEDecodeTiled")
        before = list(graph.upstream(self.sampler))
        self.user = self._first(before, "model")  # the sampler, or its guider
        self.seeds = [(at, key) for at in before for key in SEEDS if key in graph.inputs(at)]
        self.counts = [(at, "steps") for at in before if isinstance(graph.inputs(at).get("steps"), int)]
        self.texts = list(self._texts())
        source, slot = graph.links(self.user)["model"]
        model = detached(graph.outputs(source, {})[slot])
        vae_source, vae_slot = graph.links(self.decoder)["vae"]
        latent_source, latent_slot = graph.links(self.sampler)["latent_image"]
        latent = graph.outputs(latent_source, {})[latent_slot]["samples"]
        super().__init__(model, None, graph.outputs(vae_source, {})[vae_slot], max(latent.shape[-2:]))
        self.sampling = self._sampling(before)

    def _first(self, names: list[str], key: str) -> str:
        found = next((at for at in names if key in self.graph.links(at)), None)
        if found is None:
            raise ValueError(f"nothing with a {key} input leads to the workflow's sampler")
        return found

    def _texts(self) -> Iterator[tuple[str, str]]:
        """The text widgets of the nearest nodes that the positive prompt comes from."""
        consumer = next((at for at in (self.user, self.sampler) if set(ENCODED) & set(self.graph.links(at))), None)
        if consumer is None:
            raise ValueError("the sampler has neither a positive nor a conditioning input; the bench cannot set its prompt")
        link = next(self.graph.links(consumer)[key] for key in ENCODED if key in self.graph.links(consumer))
        for at in self.graph.upstream(link[0]):
            spec = node_info(self.graph.prompt[at]["class_type"])["input"]
            widgets = {**spec.get("required", {}), **spec.get("optional", {})}
            own = [key for key, value in self.graph.inputs(at).items() if isinstance(value, str) and _is_text(widgets.get(key))]
            if own:
                yield from ((at, key) for key in own)
                return
        raise ValueError("no node with a text widget leads to the positive prompt; the bench cannot set it")

    def _sampling(self, before: list[str]) -> Sampling:
        """What the widgets say."""
        own = [self.graph.inputs(at) for at in before]
        says = lambda key, other: next((v[key] for v in own if not isinstance(v.get(key), list | None)), other)  # noqa: E731
        if not self.counts:
            raise ValueError("nothing that leads to the sampler has a steps widget; the bench cannot compare fewer steps")
        return Sampling(says("sampler_name", "?"), says("steps", 0), float(says("cfg", 1.0)), says("scheduler", "?"))

    def cond(self, prompt: str) -> Any:
        """Nothing: the graph encodes."""

    @torch.no_grad()
    def sample(self, model: Any, prompt: str, seed: int, sampling: Sampling, negative: str = "") -> tuple[Tensor, float]:
        given = {
            (self.user, "model"): model, **dict.fromkeys(self.texts, prompt), **dict.fromkeys(self.seeds, seed),
            **dict.fromkeys(self.counts, sampling.steps),
        }  # fmt: skip
        for source, _ in [link for key, link in self.graph.links(self.user).items() if key != "model"]:
            self.graph.outputs(source, given)  # what is encoded outside the time
        started = time.perf_counter()
        return self.graph.outputs(self.sampler, given)[0]["samples"], time.perf_counter() - started


def _is_text(spec: Any) -> bool:
    return bool(spec) and spec[0] == "STRING"
