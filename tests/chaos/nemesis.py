"""The faults: what is done to the fleet, and undone. Each is one cycle; a test runs it several times."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from random import Random

from etcd_pd.client.drain import drain
from etcd_pd.errors import AgentUnavailable
from tests.support.etcd_server import EtcdCluster
from tests.support.waiting import wait_until

from .rig import Rig

TTL = 5.0  # of the agents' sessions
Act = Callable[[Rig, EtcdCluster, Random], None]


@dataclass(frozen=True)
class Fault:
    """One kind of harm.

    Attributes:
        act: does it once, and undoes it.
        cycles: how often.
        timeout: of the decodes' waits: longer than the fault.
        proxied: needs proxies between agents and etcd.
        quick: belongs to the selection that ``make test`` runs.
    """

    act: Act
    cycles: int = 3
    timeout: float = 15.0
    proxied: bool = False
    quick: bool = False


# --- engines


def rank_killed(rig: Rig, cluster: EtcdCluster, random: Random) -> None:
    """An engine's process dies; another takes its place in the same start of the instance."""
    name = random.choice(rig.ranks())
    with rig.fault("rank SIGKILL"):
        rig.kill(rig.engines[name])
        rig.live(random.uniform(0.1, 1.5))
        rig.restart_engine(name)


def rank_stopped(rig: Rig, cluster: EtcdCluster, random: Random) -> None:
    """An engine wedges for longer than its heartbeat allows, and recovers."""
    name = random.choice(rig.ranks())
    with rig.fault("rank SIGSTOP"):
        rig.kill(rig.engines[name], signal.SIGSTOP)
        rig.live(random.uniform(1.5, 3.0))
        rig.kill(rig.engines[name], signal.SIGCONT)


def instance_restarted(rig: Rig, cluster: EtcdCluster, random: Random) -> None:
    """All ranks die and another start of the instance takes its name."""
    launch = f"launch-{random.getrandbits(32):08x}"
    with rig.fault("instance restart"):
        for name in rig.ranks():
            rig.kill(rig.engines[name])
        for name in rig.ranks():
            rig.restart_engine(name, launch)


def rank_drained(rig: Rig, cluster: EtcdCluster, random: Random) -> None:
    """A node drains: its ranks take nothing new, then end, and others take their place."""
    agent = random.choice(sorted(set(rig.shape.places)))
    with rig.fault("node drains"):
        with suppress(AgentUnavailable):  # what its decodes wait for may outlast the time
            drain(rig.socket_path(agent), random.uniform(0.5, 2.0))
        for name in rig.ranks(agent):
            rig.kill(rig.engines[name])
            rig.restart_engine(name)


# --- agents


def agent_killed_briefly(rig: Rig, cluster: EtcdCluster, random: Random) -> None:
    """An agent dies and is back within its session's TTL."""
    name = random.choice(["a0", "a1", "a2"])
    with rig.fault("agent SIGKILL, back within the TTL"):
        rig.kill(rig.agents[name])
        rig.live(random.uniform(0.0, 0.5))
        rig.start_agent(name)
        rig.wait_agent(name)


def agent_killed(rig: Rig, cluster: EtcdCluster, random: Random) -> None:
    """An agent dies and is back after its session's TTL."""
    name = random.choice(["a0", "a1"])
    with rig.fault("agent SIGKILL, back after the TTL"):
        rig.kill(rig.agents[name])
        rig.live(TTL + random.uniform(1.0, 2.0))
        rig.start_agent(name)
        rig.wait_agent(name)


def agent_stopped(rig: Rig, cluster: EtcdCluster, random: Random) -> None:
    """An agent freezes until its session has ended, and wakes up."""
    name = random.choice(["a0", "a1"])
    with rig.fault("agent SIGSTOP past the TTL"):
        rig.kill(rig.agents[name], signal.SIGSTOP)
        rig.live(TTL + random.uniform(2.0, 3.0))
        rig.kill(rig.agents[name], signal.SIGCONT)


def decode_agent_killed_amid_a_death(rig: Rig, cluster: EtcdCluster, random: Random) -> None:
    """A rank dies while the agent of those that wait for its rooms is away: nobody was there to notice."""
    name = random.choice(rig.ranks())
    with rig.fault("rank SIGKILL while a decode's agent is away"):
        rig.kill(rig.agents["a2"])
        rig.kill(rig.engines[name])
        rig.live(random.uniform(0.2, 1.5))
        rig.restart_engine(name)
        rig.start_agent("a2")
        rig.wait_agent("a2")


# --- etcd


def all_frozen(rig: Rig, cluster: EtcdCluster, random: Random) -> None:
    """All of etcd freezes, for shorter than the sessions' TTL or for longer."""
    with rig.fault("etcd SIGSTOP"):
        for node in cluster.nodes:
            node.pause()
        rig.live(random.choice([TTL / 2, TTL + 3.0]))
        for node in cluster.nodes:
            node.unpause()


def leader_killed(rig: Rig, cluster: EtcdCluster, random: Random) -> None:
    """The leader's process dies and is started again."""
    leader = cluster.leader()
    with rig.fault("leader SIGKILL"):
        leader.kill()
        rig.live(random.uniform(2.0, 4.0))
        leader.start()


def leader_stopped(rig: Rig, cluster: EtcdCluster, random: Random) -> None:
    """The leader freezes for 15 s: its sockets stay open and say nothing."""
    leader = cluster.leader()
    with rig.fault("leader SIGSTOP 15 s"):
        leader.pause()
        rig.live(15.0)
        leader.unpause()


def follower_restarted(rig: Rig, cluster: EtcdCluster, random: Random) -> None:
    """A follower is stopped in order and started again."""
    follower = random.choice(cluster.followers())
    with rig.fault("follower restart"):
        follower.stop()
        rig.live(random.uniform(0.5, 1.5))
        follower.start()


def leader_partitioned(rig: Rig, cluster: EtcdCluster, random: Random) -> None:
    """The leader loses its peers; its clients still reach it."""
    leader = cluster.leader()
    with rig.fault("partition of the leader"):
        cluster.partition(leader)
        rig.live(random.uniform(6.0, 9.0))
        cluster.heal(leader)


def quorum_lost(rig: Rig, cluster: EtcdCluster, random: Random) -> None:
    """Two members of three freeze for 30 s."""
    frozen = random.sample(cluster.nodes, 2)
    with rig.fault("quorum lost 30 s"):
        for node in frozen:
            node.pause()
        rig.live(30.0)
        for node in frozen:
            node.unpause()


def compacted_while_away(rig: Rig, cluster: EtcdCluster, random: Random) -> None:
    """An agent is cut off while etcd forgets the history that it would resume from."""
    name = random.choice(["a0", "a1", "a2"])
    with rig.fault("compaction during disconnect"):
        for proxy in rig.proxies[name]:
            proxy.cut()
        rig.live(random.uniform(1.0, 2.0))
        rig.ctl.compact()
        rig.live(random.uniform(0.5, 1.0))
        for proxy in rig.proxies[name]:
            proxy.heal()


def rolling_restart(rig: Rig, cluster: EtcdCluster, random: Random) -> None:
    """Every member is restarted in turn."""
    with rig.fault("rolling restart"):
        for node in random.sample(cluster.nodes, 3):
            node.stop()
            rig.live(random.uniform(0.2, 0.6))
            node.start()
            cluster.leader()
            rig.live(random.uniform(0.5, 1.0))


def lease_revoked(rig: Rig, cluster: EtcdCluster, random: Random) -> None:
    """Somebody revokes leases by hand: an agent's session, and one that rooms hang on."""
    with rig.fault("lease revoked by hand"):
        agent = random.choice(["a0", "a1"])
        session = rig.ctl.get(f"{rig.root}/v1/agents/{agent}")
        room = random.choice(rig.ctl.get_prefix(f"{rig.root}/v1/rooms/"))
        assert session is not None
        for lease in (room.lease, session.lease):
            rig.record("revoked", lease=lease)
            rig.ctl.revoke(lease)
        wait_until(lambda: _stands_again(rig, agent, session.lease), f"{agent} has a session again")


def _stands_again(rig: Rig, agent: str, old_lease: int) -> bool:
    found = rig.ctl.get(f"{rig.root}/v1/agents/{agent}")
    return found is not None and found.lease != old_lease


def no_space(rig: Rig, cluster: EtcdCluster, random: Random) -> None:
    """etcd's quota is used up: it takes no more writes until the alarm is disarmed."""
    member = random.choice(cluster.nodes).ctl
    with rig.fault("NOSPACE alarm"):
        member.alarm("NOSPACE", active=True)
        try:
            rig.live(random.uniform(2.0, 4.0))
        finally:
            member.alarm("NOSPACE", active=False)


# --- the network between an agent and etcd


def cut_from_one(rig: Rig, cluster: EtcdCluster, random: Random) -> None:
    """An agent does not reach the member that it uses."""
    name = random.choice(["a0", "a1", "a2"])
    with rig.fault("agent cut from one endpoint"):
        proxy = random.choice(rig.proxies[name])
        proxy.cut()
        rig.live(random.uniform(5.0, 7.0))
        proxy.heal()


def cut_from_all(rig: Rig, cluster: EtcdCluster, random: Random) -> None:
    """An agent reaches no member until its session has ended: its node is gone."""
    name = random.choice(["a0", "a1"])
    with rig.fault("agent cut from all endpoints"):
        for proxy in rig.proxies[name]:
            proxy.cut()
        rig.live(TTL + random.uniform(1.0, 3.0))
        for proxy in rig.proxies[name]:
            proxy.heal()


def cut_one_way(rig: Rig, cluster: EtcdCluster, random: Random) -> None:
    """What an agent says reaches etcd and the answers do not reach it, or the other way round."""
    name = random.choice(["a0", "a1", "a2"])
    to_server = random.random() < 0.5
    with rig.fault(f"asymmetric partition, {'requests' if to_server else 'answers'} lost"):
        for proxy in rig.proxies[name]:
            proxy.cut(to_server=to_server, to_client=not to_server)
        rig.live(random.uniform(3.0, 8.0))
        for proxy in rig.proxies[name]:
            proxy.heal()


FAULTS: dict[str, Fault] = {
    "rank-sigkill": Fault(rank_killed, cycles=5, quick=True),
    "rank-sigstop": Fault(rank_stopped),
    "instance-restart": Fault(instance_restarted),
    "node-drains": Fault(rank_drained),
    "decode-agent-away": Fault(decode_agent_killed_amid_a_death, quick=True),
    "agent-sigkill-within-ttl": Fault(agent_killed_briefly, quick=True),
    "agent-sigkill-after-ttl": Fault(agent_killed, cycles=2),
    "agent-sigstop-past-ttl": Fault(agent_stopped, cycles=2),
    "all-frozen": Fault(all_frozen, cycles=2, timeout=25.0),
    "leader-sigkill": Fault(leader_killed, quick=True),
    "leader-sigstop": Fault(leader_stopped, cycles=2, timeout=25.0),
    "follower-restart": Fault(follower_restarted),
    "leader-partition": Fault(leader_partitioned, cycles=2, timeout=20.0),
    "quorum-lost": Fault(quorum_lost, cycles=1, timeout=45.0),
    "compaction": Fault(compacted_while_away, proxied=True),
    "rolling-restart": Fault(rolling_restart, cycles=1),
    "lease-revoked": Fault(lease_revoked, cycles=5),
    "no-space": Fault(no_space, cycles=2),
    "cut-from-one": Fault(cut_from_one, proxied=True),
    "cut-from-all": Fault(cut_from_all, cycles=2, timeout=20.0, proxied=True, quick=True),
    "cut-one-way": Fault(cut_one_way, timeout=20.0, proxied=True),
}
