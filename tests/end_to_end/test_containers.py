"""docs/containers.md and docs/kubernetes.md: their files, read as a runtime reads them, and their commands run as processes."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import sdk
from tests.end_to_end.world import until
from tests.pretended import EXAMPLES, Container, kill_daemons, programs

SHORT = {"STEP_SECONDS": "0.002", "SAVE_EVERY": "10"}


class World:
    """A machine with volumes."""

    def __init__(self, root: Path, memory: Path) -> None:
        self.root, self.memory = root, memory
        self.environment = {**programs(root / "bin"), **SHORT}
        self.begun: list[Container] = []

    def volume(self, name: str) -> Path:
        path = self.root / "volumes" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def shared_memory(self, name: str) -> Path:
        path = self.memory / name
        path.mkdir(exist_ok=True)
        return path

    def start(self, command: list[str], own: dict[str, str], mounts: dict[str, Path], **more: str) -> Container:
        begun = Container(command, {**self.environment, **more}, own, mounts)
        self.begun.append(begun)
        return begun

    def end(self) -> None:
        for begun in self.begun:
            begun.kill()
            with contextlib.suppress(ValueError):  # its output was read
                begun.wait()
        kill_daemons(self.root)


@pytest.fixture(name="world")
def _world(tmp_path: Path) -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="stepd-test-", dir="/dev/shm") as memory:
        world = World(tmp_path, Path(memory))
        try:
            yield world
        finally:
            world.end()


def steps(store: Path, run: str, ranks: int) -> dict[int | None, list[int]]:
    found = sdk.open_store(str(store)).run(run)
    assert (found.gaps, found.damage) == ([], [])
    if ranks == 1:
        return {None: [int(step) for step in found.series("loss").step]}
    return {rank: [int(step) for step in found.series("loss", rank=rank).step] for rank in range(ranks)}


def has_logged(store: Path, run: str, ranks: int) -> bool:
    """Whether every rank has ten steps there."""
    with contextlib.suppress(sdk.Error):
        return all(len(found) >= 10 for found in steps(store, run, ranks).values())
    return False


# -- compose ---------------------------------------------------------------------------------------------------------------


class Compose:
    """containers/compose.yaml with its Dockerfile."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.file: dict[str, Any] = yaml.safe_load(
            (EXAMPLES / "containers" / "compose.yaml").read_text(encoding="utf-8")
        )
        image = (EXAMPLES / "containers" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
        (entry,) = re.findall(r"^ENTRYPOINT (.*)$", image, re.MULTILINE)
        (variables,) = re.findall(r"^ENV (.*)$", image, re.MULTILINE)
        self._entrypoint: list[str] = json.loads(entry)
        self._variables = dict(word.split("=", 1) for word in variables.split())

    def up(self, service: str, **more: str) -> Container:
        said = self.file["services"][service]
        mounts = {place: self._world.volume(name) for name, place in (text.split(":") for text in said["volumes"])}
        mounts["/dev/shm"] = self._world.shared_memory(service)
        own = {**self._variables, **said.get("environment", {})}
        return self._world.start(said.get("entrypoint", self._entrypoint), own, mounts, **more)


def test_two_containers_with_one_store(world: World) -> None:
    """`docker compose up`, `docker compose stop`, `up` again: both ranks go on, and the archive holds every step once."""
    compose = Compose(world)
    ranks = [compose.up(f"rank{rank}", STEPS="100000") for rank in range(2)]
    until(
        lambda: (
            has_logged(world.volume("runs"), "digits-1", 2)
            and all((world.volume("checkpoints") / f"checkpoint.{rank}.json").exists() for rank in range(2))
        )
    )
    for container in ranks:
        container.stop()
    for container in ranks:
        code, told = container.wait()
        assert code == 75, told
    kill_daemons(world.root)
    end = min(map(len, steps(world.volume("runs"), "digits-1", 2).values())) + 20
    for container in [compose.up(f"rank{rank}", STEPS=str(end)) for rank in range(2)]:
        code, told = container.wait()
        assert code == 0, told
    kill_daemons(world.root)
    code, told = compose.up("drain").wait()
    assert code == 0, told
    # Nothing here lets ranks wait for one another: they were stopped at different steps, and go on from the least.
    assert steps(world.volume("archive"), "digits-1", 2) == {rank: list(range(end)) for rank in range(2)}


def test_a_container_is_given_memory_and_time(world: World) -> None:
    """What the page says of shm_size, init and stop_grace_period stands in the file for every container that trains."""
    services = Compose(world).file["services"]
    for name in ("rank0", "rank1"):
        said = services[name]
        assert (said["shm_size"], said["init"], said["stop_grace_period"]) == ("1gb", True, "60s")
        assert said["environment"]["STEPD_RUN_ID"] == services["rank0"]["environment"]["STEPD_RUN_ID"]


# -- Kubernetes ------------------------------------------------------------------------------------------------------------


class Pod:
    """A pod of a Job: `fetch` ran to its end, `carry` and `train` run."""

    def __init__(self, world: World, job: dict[str, Any], name: str, index: int = 0, **more: str) -> None:
        self._world, self._name, self._index, self._more = world, name, index, more
        self._said = job["spec"]["template"]["spec"]
        kinds = {volume["name"]: volume for volume in self._said["volumes"]}
        self._places = {
            volume: world.shared_memory(name) if said.get("emptyDir", {}).get("medium") == "Memory"
            else world.volume(volume if "persistentVolumeClaim" in said else f"{name}-{volume}")
            for volume, said in kinds.items()
        }  # fmt: skip
        self.sidecars = []
        for container in self._said["initContainers"]:
            begun = self._start(container)
            if container.get("restartPolicy") == "Always":
                self.sidecars.append(begun)
            else:
                code, told = begun.wait()
                assert code == 0, told
        (train,) = self._said["containers"]
        self.train = self._start(train)

    def _start(self, container: dict[str, Any]) -> Container:
        own = {}
        for variable in container["env"]:
            if "valueFrom" in variable:
                assert "job-completion-index" in variable["valueFrom"]["fieldRef"]["fieldPath"]
            own[variable["name"]] = variable.get("value", str(self._index))
        mounts = {mount["mountPath"]: self._places[mount["name"]] for mount in container["volumeMounts"]}
        return self._world.start(container["command"], own, mounts, **self._more)

    def end(self) -> int:
        """As the kubelet ends a pod: sidecars are told when the others have ended, and have the rest of the time. `train`'s code."""
        code, told = self.train.wait()
        kill_daemons(self._places["runs"])  # of the container that trained
        for sidecar in self.sidecars:
            sidecar.stop()
        for sidecar in self.sidecars:
            ended, said = sidecar.wait()
            assert ended == 0, told + said
        return code


def job_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((EXAMPLES / "kubernetes" / name).read_text(encoding="utf-8"))
    return found


def test_a_pod_is_evicted_and_another_goes_on(world: World) -> None:
    """SIGTERM, then a pod with empty disks elsewhere: it fetches the run, and the archive holds every step once."""
    job = job_of("job.yaml")
    pod = Pod(world, job, "first", STEPS="100000")
    until(lambda: has_logged(world.volume("first-runs") / "store", "digits-1", 1))
    pod.train.stop()
    assert pod.end() == 75
    archive = world.volume("archive")
    first = len(steps(archive / "store", "digits-1", 1)[None])
    assert json.loads((archive / "checkpoint.0.json").read_text())["step"] == first
    assert Pod(world, job, "second", STEPS=str(first + 20)).end() == 0
    assert steps(archive / "store", "digits-1", 1) == {None: list(range(first + 20))}


def test_what_a_killed_trainer_left_is_carried(world: World) -> None:
    """Out of memory: SIGKILL for the trainer and its daemon. The sidecar takes the rest out of the memory that they shared."""
    pod = Pod(world, job_of("job.yaml"), "only", STEPS="100000")
    until(lambda: has_logged(world.volume("only-runs") / "store", "digits-1", 1))
    seen = len(steps(world.volume("only-runs") / "store", "digits-1", 1)[None])
    pod.train.kill()
    assert pod.end() == -9
    found = steps(world.volume("archive") / "store", "digits-1", 1)[None]
    assert found == list(range(len(found)))
    assert len(found) >= seen


def test_ranks_in_pods_of_their_own(world: World) -> None:
    """An indexed job: each pod is a rank, all carry into one store at once, and there they are one run."""
    job = job_of("indexed-job.yaml")
    count = 2  # of the four: each is some processes
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 4
    # Without checkpoints: a rank that comes late would begin behind the last.
    pods = [Pod(world, job, f"pod{index}", index, STEPS="50", SAVE_EVERY="1000") for index in range(count)]
    assert [pod.end() for pod in pods] == [0] * count
    assert steps(world.volume("archive") / "store", "digits-4", count) == {
        rank: list(range(50)) for rank in range(count)
    }


@pytest.mark.parametrize("name", ["job.yaml", "indexed-job.yaml"])
def test_a_pod_has_memory_and_time(name: str) -> None:
    """Rings lie in a volume of memory that all containers mount; there is more time to end than a drain takes; 75 is no failure."""
    spec = job_of(name)["spec"]
    pod = spec["template"]["spec"]
    (memory,) = (volume for volume in pod["volumes"] if volume["name"] == "memory")
    assert memory["emptyDir"]["medium"] == "Memory"
    carry = next(container for container in pod["initContainers"] if container["name"] == "carry")
    (timeout,) = re.findall(r"--timeout (\d+)", " ".join(carry["command"]))
    assert pod["terminationGracePeriodSeconds"] >= int(timeout) + 60
    assert pod["shareProcessNamespace"] is True
    for container in (carry, *pod["containers"]):
        assert "/dev/shm" in {mount["mountPath"] for mount in container["volumeMounts"]}
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [75]
