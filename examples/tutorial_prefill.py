"""A prefill rank that does as it is told: `register ROOM`, `release ROOM` or `fail ROOM` on standard input."""

import select
import sys

import etcd_pd

client = etcd_pd.connect()  # to the node's agent, at $ETCD_PD_SOCKET; connects by itself, never blocks
client.prefill.announce(
    "my-prefill",  # stable id of this instance
    rank=etcd_pd.Rank(dp=1),
    topology=etcd_pd.Topology(dp=2),
    launch_id="start-1",  # the same for all ranks of one start
    addresses=["127.0.0.1:8998"],  # how requests name this instance
    ip="127.0.0.1",
    port=9000,  # where decode fetches this rank's KV caches
)
while True:  # your scheduler's loop
    if select.select([sys.stdin], [], [], 0.01)[0]:  # your engine computes and hands over here
        verb, _, room = sys.stdin.readline().partition(" ")
        if verb == "register":
            client.prefill.register(int(room))
        elif verb == "release":
            client.prefill.release(int(room))
        elif verb == "fail":
            client.prefill.fail(int(room), "out of memory")
        else:
            break
    for event in client.prefill.poll():  # Announced, Registered, Rejected, RankEnded, ...
        print(event, flush=True)
client.close()  # the rank leaves etcd at once
