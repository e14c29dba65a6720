"""Release 0.1.0 of agent and plug-in on one side, in the same cell as this one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.agents import AgentProcess

from .fleet import (
    BOOTSTRAP_PORT,
    DECODE_PORT,
    DP_SIZE,
    PREFILL_PORT,
    ROOT,
    Fleet,
    decode_environment,
    decode_server,
    prefill_environment,
    prefill_server,
)
from .processes import MADE, REPOSITORY, SHIM, Router
from .test_fleet import expected

pytestmark = pytest.mark.timeout(600)

FIRST_RELEASE = MADE / "v0.1.0"
OLD_PREFILL_PORT, OLD_BOOTSTRAP_PORT, OLD_DECODE_PORT = 30003, 8997, 31003


class OldAgent(AgentProcess):
    """An agent of release 0.1.0."""

    def __init__(self, endpoint: str, name: str) -> None:
        super().__init__(endpoint, ROOT, name)
        program = ["env", f"PYTHONPATH={FIRST_RELEASE}", str(FIRST_RELEASE / "bin" / "etcd-pd")]
        self._command = [*program, *self._command[self._command.index("agent") :]]


@pytest.fixture(scope="module")
def old(fleet: Fleet) -> Iterator[None]:
    """A prefill and a decode with the plug-in and agents of release 0.1.0."""
    subprocess.run([REPOSITORY / "scripts" / "first-release"], check=True)
    path = {"PYTHONPATH": f"{SHIM}:{FIRST_RELEASE}"}
    with ExitStack() as stack:
        agents = {
            side: stack.enter_context(OldAgent(fleet.etcd.endpoint, f"old-{side}")) for side in ("prefill", "decode")
        }
        environment = prefill_environment(agents["prefill"], "prefill-old", OLD_BOOTSTRAP_PORT) | path
        ports = (OLD_PREFILL_PORT, OLD_BOOTSTRAP_PORT)
        prefill = prefill_server("prefill-old", fleet.home, *ports, DP_SIZE[True], environment)
        environment = decode_environment(agents["decode"], "decode-old") | path
        decode = decode_server("decode-old", fleet.home, OLD_DECODE_PORT, environment)
        for server in (prefill, decode):
            stack.callback(server.stop)
            server.start()
        for server in (prefill, decode):
            server.await_healthy()
        assert "etcd_pd: announcing instance=prefill-old" in prefill.log
        yield


@pytest.mark.parametrize(
    ("prefill", "bootstrap", "decode"),
    [
        (OLD_PREFILL_PORT, OLD_BOOTSTRAP_PORT, DECODE_PORT[True]),
        (PREFILL_PORT[True], BOOTSTRAP_PORT[True], OLD_DECODE_PORT),
        (PREFILL_PORT[False], BOOTSTRAP_PORT[False], OLD_DECODE_PORT),
    ],
    ids=["old prefill", "old decode", "plain prefill, old decode"],
)
def test_requests_are_served_when_one_side_is_of_the_first_release(
    fleet: Fleet, old: None, prefill: int, bootstrap: int, decode: int
) -> None:
    router = Router(prefill, decode, bootstrap)
    try:
        sent = [router.send(number) for number in range(8)]
        for number, (at_prefill, at_decode) in enumerate(sent):
            assert at_prefill.result().status == 200, at_prefill.result()
            assert at_decode.result().tokens == expected(fleet, number)
    finally:
        router.close()
