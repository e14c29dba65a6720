"""A decode engine that asks for one room: `tutorial_decode.py ADDRESS ROOM`."""

import sys
import time

import etcd_pd

address, room = sys.argv[1], int(sys.argv[2])
client = etcd_pd.connect()
client.decode.want(address, room, timeout=60)
waiting = True
while waiting:  # your engine's loop
    for event in client.decode.poll():
        if isinstance(event, etcd_pd.Resolved):
            found = event.assignment
            print(f"room {room} is with dp_rank {found.dp_rank} of {found.instance}", flush=True)
            # fetch its KV cache now; until done(), Ended would say that the rank has died
        elif isinstance(event, etcd_pd.Ended):
            print(f"{type(event.error).__name__}: {event.error}", flush=True)
        waiting = not isinstance(event, (etcd_pd.Resolved, etcd_pd.Ended))
    time.sleep(0.001)  # your engine computes here
client.decode.done(address, room)
client.close()
