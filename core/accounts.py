"""Who may do what on the NATS server: keys, and the JWTs signed with them.

Operator mode (ADR-14 and "JWT Guide" of NATS): the operator's key signs accounts, an account's key
signs users, and the server believes whoever shows a JWT with that chain. So a user is made here
without the server hearing of it. Accounts, exports and imports are declared in streams.yaml.
"""

import base64
import binascii
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import nkeys

from core import errors, platforms, topology

SYSTEM = "SYS"
OPERATOR = "operator"
COMPLETE = "complete"
RESERVED_WORKERS = frozenset({"desk"})

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Credentials(msgspec.Struct, frozen=True):
    """A signed user, and the seed of its key; None where only its owner has that."""

    jwt: str
    public_key: str
    seed: str | None

    @property
    def pair(self) -> tuple[str, str]:
        """What a connection takes in place of a file: the JWT, and the seed."""
        assert self.seed is not None, "whoever made the key connects"
        return self.jwt, self.seed

    def creds_file(self) -> bytes:
        """The content of a `.creds` file, as every NATS client reads it."""
        assert self.seed is not None, "whoever made the key writes the file"
        return (
            f"-----BEGIN NATS USER JWT-----\n{self.jwt}\n------END NATS USER JWT------\n\n"
            "Anyone who has this file can use it: it is a private key.\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{self.seed}\n------END USER NKEY SEED------\n"
        ).encode()


class Key:
    """An nkey pair: Ed25519, in the text form of NATS."""

    def __init__(self, seed: bytes) -> None:
        self.seed = seed
        self._pair = nkeys.from_seed(bytearray(seed))
        self.public: str = self._pair.public_key.decode()

    @classmethod
    def new(cls, prefix: int) -> "Key":
        return cls(nkeys.encode_seed(os.urandom(32), prefix))

    def sign(self, data: bytes) -> bytes:
        signature: bytes = self._pair.sign(data)
        return signature


class Authority:
    """The operator and the accounts, and all JWTs that they sign."""

    def __init__(self, declared: topology.Topology, keys: dict[str, Key]) -> None:
        self.declared = declared
        self._keys = keys

    @classmethod
    def load_or_create(
        cls, keys_dir: Path, declared: topology.Topology | None = None
    ) -> "Authority":
        """The authority whose seeds a folder holds; they are made at the first start.

        Until all are written durably the folder is not marked complete, and a set-up that broke
        off is completed. Afterwards a key that is missing is made again only for accounts that
        store nothing: JetStream keeps an account's messages under its public key, so with another
        one they would be gone.

        Raises DataDirectoryError when a seed is missing or damaged, or the folder cannot be used.
        """
        declared = declared or topology.load()
        try:
            keys_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            platforms.owner_only(keys_dir)
            keys = {name: _load_key(keys_dir, name, declared) for name in _names(declared)}
            if not (keys_dir / COMPLETE).exists():
                platforms.write_atomically(keys_dir / COMPLETE, b"")
                platforms.sync_folder(keys_dir.parent)
        except OSError as error:
            raise errors.DataDirectoryError(
                f"The keys in {keys_dir} cannot be used: {error.strerror or error}."
            ) from error
        return cls(declared, keys)

    def public_key(self, account: str) -> str:
        """The public key of an account, by which the server knows it."""
        return self._keys[account].public

    def operator_jwt(self) -> str:
        """What the server's configuration says of its operator."""
        claims = {"type": "operator", "version": 2, "system_account": self.public_key(SYSTEM)}
        operator = self._keys[OPERATOR]
        return _sign(operator, operator.public, "aghsan", claims)

    def account_jwt(self, account: str) -> str:
        """An account as declared: its limits, what it exports and what it imports."""
        declared = self.declared.accounts[account]
        claims = {
            "type": "account",
            "version": 2,
            "description": declared.description,
            "limits": _limits(declared),
            "exports": [
                {
                    "name": export.subject,
                    "subject": export.subject,
                    "type": "service",
                    "response_type": "Singleton" if export.responses == "one" else "Stream",
                }
                for export in declared.exports
            ],
            "imports": [
                {
                    "name": subject,
                    "subject": subject,
                    "account": self.public_key(exporter),
                    "type": "service",
                }
                for exporter, subjects in declared.imports.items()
                for subject in subjects
            ],
        }
        return _sign(self._keys[OPERATOR], self.public_key(account), account, claims)

    def mint(
        self,
        account: str,
        name: str,
        *,
        publish: Iterable[str] | None = None,
        subscribe: Iterable[str] | None = None,
        public_key: str | None = None,
        expires_seconds: float | None = None,
    ) -> Credentials:
        """A user of an account, limited to the given subjects (None: all of the account's).

        With a `public_key` the user is whoever has its seed, and none is made here.
        Raises Invalid when it is no public key of a user.
        """
        if public_key is not None and not _is_user_key(public_key):
            raise errors.Invalid(
                f"{public_key[:80]!r} is no public key of a NATS user: 56 characters from U… are."
            )
        key = Key.new(nkeys.PREFIX_BYTE_USER) if public_key is None else None
        public = public_key if key is None else key.public
        assert public is not None
        claims: dict[str, Any] = {
            "type": "user",
            "version": 2,
            "subs": -1,
            "data": -1,
            "payload": -1,
            "pub": {} if publish is None else {"allow": list(publish)},
            "sub": {} if subscribe is None else {"allow": list(subscribe)},
        }
        jwt = _sign(self._keys[account], public, name, claims, expires_seconds)
        return Credentials(jwt, public, None if key is None else key.seed.decode())

    def control(self) -> Credentials:
        """The control process in CONTROL: everything, appending to EVENTS included."""
        return self.mint("CONTROL", "control")

    def desk(self) -> Credentials:
        """The control process in FLEET: everything there."""
        return self.mint("FLEET", "desk")

    def notifier(self) -> Credentials:
        """The control process in AGENTS: it pushes notices to agents' inboxes."""
        return self.mint(
            "AGENTS", "notifier", publish=["*.notice"], subscribe=["_INBOX_notifier.>"]
        )

    def system(self) -> Credentials:
        """The control process in SYS: it sees connections come and go, and asks the server."""
        return self.mint(
            SYSTEM,
            "system",
            publish=["$SYS.REQ.>"],
            subscribe=["$SYS.ACCOUNT.>", "$SYS.SERVER.>", "_INBOX_system.>"],
        )

    def judge(self) -> Credentials:
        """A judge, where it meets CONTROL: EVENTS to read, JUDGEMENTS to pull, commands to send."""
        return self._importer("JUDGES", "judge", "CONTROL", "_INBOX_judge.>")

    def judge_fleet(self) -> Credentials:
        """A judge, where it meets FLEET: CHUNKS to read."""
        return self._importer("JUDGES", "judge-fleet", "FLEET", "_INBOX_judge.>")

    def inspector(self, account: str) -> Credentials:
        """Whoever wants to look into CONTROL or FLEET, with the `nats` CLI for one.

        Streams and consumers can be listed and messages got; nothing can be published, created,
        purged or acknowledged.
        """
        # The inbox of all clients' defaults, so that no tool needs a flag.
        return self._importer(
            f"INSPECT_{account}", f"inspect-{account.lower()}", account, "_INBOX.>"
        )

    def _importer(self, account: str, name: str, exporter: str, inbox: str) -> Credentials:
        """A user that may ask exactly what its account imports from another."""
        publish = self.declared.accounts[account].imports[exporter]
        return self.mint(account, name, publish=publish, subscribe=[inbox])

    def agent(self, worker: str, lanes: Iterable[str], public_key: str | None) -> Credentials:
        """An agent, by its subject token (`subjects.token`): its own subjects and lanes, no others.

        Raises Invalid for anything that is no token: a wildcard in it would open other subjects.
        """
        lanes = list(lanes)
        for part in (worker, *lanes):
            if not _TOKEN.fullmatch(part):
                raise errors.Invalid(f"{part!r} cannot be part of a subject.")
        if worker in RESERVED_WORKERS:
            raise errors.Invalid(
                f"The worker id {worker!r} is used by the server itself; choose another."
            )
        own = [f"fleet.{worker}.*", f"hb.{worker}", f"telemetry.{worker}.*", f"chunk.{worker}.*"]
        # Its lane stands on the subject of its hello, where the server checks it.
        hello = [f"fleet.{worker}.hello.{lane}" for lane in lanes]
        pull = [f"$JS.API.CONSUMER.MSG.NEXT.WORK.{lane}" for lane in lanes]
        ack = [f"$JS.ACK.WORK.{lane}.>" for lane in lanes]
        return self.mint(
            "AGENTS",
            worker,
            publish=own + hello + pull + ack,
            subscribe=[f"_INBOX_{worker}.>"],
            public_key=public_key,
        )

    def write_credentials(self, folder: Path) -> None:
        """Write a fresh `.creds` file for each role that this data directory serves.

        Raises DataDirectoryError.
        """
        roles = {
            "control": self.control(),
            "desk": self.desk(),
            "notifier": self.notifier(),
            "system": self.system(),
            "judge": self.judge(),
            "judge-fleet": self.judge_fleet(),
            "inspect-control": self.inspector("CONTROL"),
            "inspect-fleet": self.inspector("FLEET"),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            platforms.owner_only(folder)
            for name, credentials in roles.items():
                platforms.write_atomically(folder / f"{name}.creds", credentials.creds_file())
            platforms.sync_folder(folder.parent)
        except OSError as error:
            raise errors.DataDirectoryError(
                f"The credentials in {folder} cannot be written: {error.strerror or error}."
            ) from error


def _names(declared: topology.Topology) -> list[str]:
    return [OPERATOR, *declared.accounts]


def _load_key(keys_dir: Path, name: str, declared: topology.Topology) -> Key:
    path = keys_dir / f"{name.lower()}.seed"
    prefix = nkeys.PREFIX_BYTE_OPERATOR if name == OPERATOR else nkeys.PREFIX_BYTE_ACCOUNT
    try:
        seed = path.read_bytes().strip()
    except FileNotFoundError:
        stores = name != OPERATOR and declared.accounts[name].disk_mib is not None
        if stores and (keys_dir / COMPLETE).exists():
            raise errors.DataDirectoryError(
                f"The seed {path} is missing. The messages of {name} are kept under its key, so no"
                " new one is made: restore it from a backup."
            ) from None
        key = Key.new(prefix)
        platforms.write_atomically(path, key.seed + b"\n")
        return key
    if not _is_nkey(seed, nkeys.PREFIX_BYTE_SEED) or nkeys.decode_seed(seed)[0] != prefix:
        raise errors.DataDirectoryError(
            f"{path} holds no seed of {name}: it is damaged. Restore it from a backup."
        )
    return Key(seed)


def _limits(account: topology.Account) -> dict[str, object]:
    unlimited = ("subs", "conn", "leaf", "imports", "exports", "data", "payload")
    limits: dict[str, object] = {**dict.fromkeys(unlimited, -1), "wildcards": True}
    if account.disk_mib is not None:
        limits |= {"mem_storage": -1, "streams": -1, "consumer": -1}
        limits["disk_storage"] = account.disk_mib * topology.MIB
    return limits


def _sign(
    issuer: Key,
    subject: str,
    name: str,
    claims: dict[str, Any],
    expires_seconds: float | None = None,
) -> str:
    now = time.time()
    body: dict[str, Any] = {
        "iat": int(now),
        "iss": issuer.public,
        "name": name,
        "sub": subject,
        "nats": claims,
    }
    if expires_seconds is not None:
        body["exp"] = int(now + expires_seconds)
    digest = hashlib.sha256(json.dumps(body).encode()).digest()
    body["jti"] = base64.b32encode(digest).rstrip(b"=").decode()
    header = {"typ": "JWT", "alg": "ed25519-nkey"}
    signed = f"{_encode(json.dumps(header).encode())}.{_encode(json.dumps(body).encode())}"
    return f"{signed}.{_encode(issuer.sign(signed.encode()))}"


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _is_user_key(text: str) -> bool:
    return text.isascii() and _is_nkey(text.encode(), nkeys.PREFIX_BYTE_USER)


def _is_nkey(text: bytes, prefix: int) -> bool:
    """Whether this is an nkey of a kind, its checksum included."""
    try:
        raw = base64.b32decode(text + b"=" * (-len(text) % 8))
    except binascii.Error:
        return False
    # A public key has 1 byte of kind and 32 of key; a seed has 2 bytes of kinds.
    size = 36 if prefix == nkeys.PREFIX_BYTE_SEED else 35
    kind = raw[0] & 0xF8 if raw else None
    return (
        len(raw) == size
        and kind == prefix
        and nkeys.crc16(raw[:-2]) == int.from_bytes(raw[-2:], "little")
    )
