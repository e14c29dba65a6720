"""What an administrator asks of etcd: members, their health, leases, roles, users. On the store's own channels."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..config import EtcdSettings
from ..core.keys import Keys, prefix_end, root_of
from ..errors import Compacted, StoreRejected
from . import etcdrpc
from .etcd import EtcdStore

rpc = etcdrpc

#: A member copies all that its database holds, at the pace of its disk.
DEFRAGMENT_SECONDS = 600.0
#: How many keys are looked at in search of cells: beside those, etcd may hold any number of others.
MOST_LOOKS = 1000
#: What etcd says where something is there already.
_EXISTS = ("already exists", "already granted")
_MISSING = "not found"


@dataclass(frozen=True)
class Member:
    """A member as etcd lists it; one that never started has no client URLs, and mostly no name."""

    id: int
    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]

    @property
    def started(self) -> bool:
        """Whether it ever said to the others where its clients find it."""
        return bool(self.client_urls)


class EtcdAdmin(EtcdStore):
    """An :class:`EtcdStore` that also looks at the cluster, and changes members, roles and users.

    Where authentication is on, changes need etcd's root, and so may some of the looks.
    """

    async def __aenter__(self) -> EtcdAdmin:
        return self

    # --- members

    async def members(self) -> list[Member]:
        """All members, by quorum: where this answers, the cluster works."""
        request = rpc.MemberListRequest(linearizable=True)
        response = await self._calls.repeat("member list", "Cluster", "MemberList", request)
        return [Member(m.ID, m.name, tuple(m.peerURLs), tuple(m.clientURLs)) for m in response.members]

    async def knows_members(self) -> bool:
        """Whether any endpoint answers with members, be it without quorum: then a cluster exists."""
        response = await self._calls.repeat("member list", "Cluster", "MemberList", rpc.MemberListRequest())
        return bool(response.members)

    async def cluster_id(self) -> int:
        """The cluster's id."""
        response = await self._calls.repeat("member list", "Cluster", "MemberList", rpc.MemberListRequest())
        return int(response.header.cluster_id)

    async def remove_member(self, id: int) -> None:
        """Take a member out; one that is gone already is no error."""
        await self._unless("member remove", "Cluster", "MemberRemove", rpc.MemberRemoveRequest(ID=id), _MISSING)

    async def add_member(self, peer_url: str) -> None:
        """Let a member in that is about to start; one that is in already is no error."""
        request = rpc.MemberAddRequest(peerURLs=[peer_url])
        await self._unless("member add", "Cluster", "MemberAdd", request, "Peer URLs already exists")

    # --- space

    async def compact(self) -> None:
        """Forget all history before the present revision, and free its pages."""
        response = await self._calls.repeat("compact", "KV", "Range", rpc.RangeRequest(key=b"\0", count_only=True))
        request = rpc.CompactionRequest(revision=response.header.revision, physical=True)
        try:
            await self._calls.repeat("compact", "KV", "Compact", request, DEFRAGMENT_SECONDS)
        except Compacted:
            pass  # by somebody else, or there was no history

    async def defragment(self) -> None:
        """Make the file of the member at the endpoint in use as small as what it holds; it answers nobody meanwhile."""
        await self._calls.call("defragment", "Maintenance", "Defragment", rpc.DefragmentRequest(), DEFRAGMENT_SECONDS)

    async def disarm_nospace(self, member_id: int) -> None:
        """Let etcd take writes again; it raises the alarm anew if that member's file is still full."""
        action = rpc.AlarmRequest.DEACTIVATE
        request = rpc.AlarmRequest(action=action, memberID=member_id, alarm=rpc.AlarmType.NOSPACE)
        await self._calls.repeat("disarm", "Maintenance", "Alarm", request)

    # --- cells

    async def first_key(self, start: bytes, end: bytes = b"\0") -> bytes:
        """The first key from ``start`` on, before ``end`` (by default, of all there are); empty where there is none."""
        found = await self.first_keys(start, end, 1)
        return found[0] if found else b""

    async def first_keys(self, start: bytes, end: bytes, count: int) -> list[bytes]:
        """At most ``count`` keys from ``start`` on, before ``end``."""
        request = rpc.RangeRequest(key=start, range_end=end, limit=count, keys_only=True)
        return [bytes(kv.key) for kv in (await self._calls.repeat("first keys", "KV", "Range", request)).kvs]

    async def cells(self) -> list[str]:
        """The roots of the cells in this etcd, as far as a thousand looks find them.

        Raises:
            StoreRejected: these credentials may not look beyond their own.
        """
        roots: list[str] = []
        start = b"\0"
        for _ in range(MOST_LOOKS):
            key = await self.first_key(start)
            if not key:
                break
            root = root_of(key)
            if root is None:
                start = key + b"\0"
            else:
                roots.append(root)
                start = prefix_end(Keys(root).prefix)
        return roots

    # --- leases

    async def leases(self) -> list[int]:
        """Ids of all leases, of this cell and others."""
        found = await self._calls.repeat("leases", "Lease", "LeaseLeases", rpc.LeaseLeasesRequest())
        return [lease.ID for lease in found.leases]

    # --- roles and users

    async def enable_auth(self) -> None:
        """Let users and roles hold; root must exist."""
        await self._calls.call("auth enable", "Auth", "AuthEnable", rpc.AuthEnableRequest())

    async def add_role(self, role: str) -> None:
        """Create a role unless it is there."""
        await self._unless("role add", "Auth", "RoleAdd", rpc.AuthRoleAddRequest(name=role), *_EXISTS)

    async def permit(self, role: str, key: bytes, *, write: bool, prefix: bool = True) -> None:
        """Let a role read, or read and write, what is under a prefix, or one key."""
        kind = rpc.Permission.READWRITE if write else rpc.Permission.READ
        permission = rpc.Permission(permType=kind, key=key, range_end=prefix_end(key) if prefix else b"")
        request = rpc.AuthRoleGrantPermissionRequest(name=role, perm=permission)
        await self._calls.call("role grant", "Auth", "RoleGrantPermission", request)

    async def add_user(self, user: str, password: str = "") -> None:
        """Create a user unless it is there; without a password only its certificate says who it is."""
        options = rpc.UserAddOptions(no_password=not password)
        request = rpc.AuthUserAddRequest(name=user, password=password, options=options)
        await self._unless("user add", "Auth", "UserAdd", request, *_EXISTS)

    async def roles_of(self, user: str) -> list[str]:
        """The roles that a user has; none where there is no such user."""
        try:
            found = await self._calls.call("user get", "Auth", "UserGet", rpc.AuthUserGetRequest(name=user))
        except StoreRejected as exc:
            if _MISSING not in str(exc):
                raise
            return []
        return list(found.roles)

    async def delete_user(self, user: str) -> None:
        """Delete a user; one that is gone already is no error."""
        await self._unless("user delete", "Auth", "UserDelete", rpc.AuthUserDeleteRequest(name=user), _MISSING)

    async def grant_role(self, user: str, role: str) -> None:
        """Give a user a role; one that it has already is no error."""
        request = rpc.AuthUserGrantRoleRequest(user=user, role=role)
        await self._unless("user grant", "Auth", "UserGrantRole", request, *_EXISTS)

    async def password_holds(self, user: str, password: str) -> bool:
        """Whether a user has this password; only while auth is enabled."""
        request = rpc.AuthenticateRequest(name=user, password=password)
        try:
            await self._calls.call("authenticate", "Auth", "Authenticate", request)
        except StoreRejected:
            return False
        return True

    async def _unless(self, op: str, service: str, method: str, request: object, *fine: str) -> None:
        """Do it, unless etcd says that it is done."""
        try:
            await self._calls.call(op, service, method, request)
        except StoreRejected as exc:
            if not any(text in str(exc) for text in fine):
                raise


def without_user(settings: EtcdSettings) -> EtcdSettings:
    """The same without a name and password: before auth is enabled, etcd refuses them."""
    return replace(settings, username="", password="")


async def connect(settings: EtcdSettings) -> tuple[EtcdAdmin, bool]:
    """A connection, and whether users and roles hold: with the settings' name and password where they do.

    Raises:
        StoreError: no quorum answers, or users and roles hold and the settings name no user.
    """
    admin = EtcdAdmin(without_user(settings))
    try:
        enabled = await admin.auth_enabled()
    except StoreRejected:
        enabled = True  # or else nobody would refuse
        if not settings.username:
            await admin.close()
            raise
    except BaseException:
        await admin.close()
        raise
    if not (enabled and settings.username):
        return admin, enabled
    await admin.close()
    return EtcdAdmin(settings), enabled
