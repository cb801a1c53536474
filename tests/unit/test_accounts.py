"""Keys, JWTs and credentials, without a server."""

import base64
import json
import stat
import time
from pathlib import Path
from typing import Any

import msgspec
import nkeys
import pytest

from core import accounts, bus, errors, topology
from core.accounts import Authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.load_or_create(tmp_path_factory.mktemp("keys"))


def claims(jwt: str) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(part(jwt, 1))
    return decoded


def part(jwt: str, number: int) -> bytes:
    text = jwt.split(".")[number]
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def allowed(credentials: accounts.Credentials, what: str) -> list[str]:
    subjects: list[str] = claims(credentials.jwt)["nats"][what]["allow"]
    return subjects


def user_key() -> str:
    return accounts.Key.new(nkeys.PREFIX_BYTE_USER).public


def test_a_user_is_signed_by_its_account_and_that_by_the_operator(tmp_path: Path) -> None:
    authority = Authority.load_or_create(tmp_path)
    user, account = authority.desk().jwt, authority.account_jwt("FLEET")
    for jwt, name in ((user, "fleet"), (account, "operator")):
        key = nkeys.from_seed(bytearray((tmp_path / f"{name}.seed").read_bytes().strip()))
        assert claims(jwt)["iss"] == key.public_key.decode()
        assert key.verify(jwt.rpartition(".")[0].encode(), part(jwt, 2))
    assert claims(account)["sub"] == claims(user)["iss"] == authority.public_key("FLEET")


def test_the_operator_names_the_system_account(authority: Authority) -> None:
    operator = claims(authority.operator_jwt())["nats"]
    assert operator["system_account"] == authority.public_key("SYS")


def test_only_control_and_fleet_have_jetstream_and_its_space_is_bounded(
    authority: Authority,
) -> None:
    space = {
        name: claims(authority.account_jwt(name))["nats"]["limits"].get("disk_storage")
        for name in authority.declared.accounts
    }
    assert {name: bytes_ for name, bytes_ in space.items() if bytes_ is not None} == {
        name: account.disk_mib * topology.MIB
        for name, account in authority.declared.accounts.items()
        if account.disk_mib
    }
    assert {name for name, bytes_ in space.items() if bytes_} == {"CONTROL", "FLEET"}


def test_the_same_folder_gives_the_same_keys(tmp_path: Path) -> None:
    first, second = (Authority.load_or_create(tmp_path / "keys") for _ in range(2))
    for name in first.declared.accounts:
        assert first.public_key(name) == second.public_key(name)


def test_seeds_and_credentials_are_for_the_owner_only(tmp_path: Path) -> None:
    Authority.load_or_create(tmp_path / "keys").write_credentials(tmp_path / "creds")
    for folder in (tmp_path / "keys", tmp_path / "creds"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_a_set_up_that_broke_off_is_completed(tmp_path: Path) -> None:
    first = Authority.load_or_create(tmp_path)
    for name in ("complete", "fleet.seed", "operator.seed"):
        (tmp_path / name).unlink()
    second = Authority.load_or_create(tmp_path)
    assert second.public_key("CONTROL") == first.public_key("CONTROL")
    assert (tmp_path / "complete").exists()


@pytest.mark.parametrize("account", ["CONTROL", "FLEET"])
def test_a_lost_key_of_an_account_with_messages_is_refused(tmp_path: Path, account: str) -> None:
    Authority.load_or_create(tmp_path)
    (tmp_path / f"{account.lower()}.seed").unlink()
    with pytest.raises(errors.DataDirectoryError, match=f"messages of {account} .* backup"):
        Authority.load_or_create(tmp_path)


def test_a_lost_key_of_an_account_that_stores_nothing_is_made_again(tmp_path: Path) -> None:
    first = Authority.load_or_create(tmp_path)
    (tmp_path / "agents.seed").unlink()
    assert Authority.load_or_create(tmp_path).public_key("AGENTS") != first.public_key("AGENTS")


@pytest.mark.parametrize("damage", [b"", b"SA", b"\xff\xfe", b"A" * 58, None])
def test_a_damaged_seed_is_refused_by_name(tmp_path: Path, damage: bytes | None) -> None:
    Authority.load_or_create(tmp_path)
    path = tmp_path / "control.seed"
    good = path.read_bytes()
    path.write_bytes(good.replace(good[20:21], b"B" if good[20:21] == b"A" else b"A", 1))
    if damage is not None:
        path.write_bytes(damage)
    with pytest.raises(errors.DataDirectoryError, match=r"control\.seed holds no seed"):
        Authority.load_or_create(tmp_path)


def test_a_seed_of_another_kind_is_refused(tmp_path: Path) -> None:
    Authority.load_or_create(tmp_path)
    (tmp_path / "control.seed").write_bytes(accounts.Key.new(nkeys.PREFIX_BYTE_USER).seed)
    with pytest.raises(errors.DataDirectoryError, match="holds no seed of CONTROL"):
        Authority.load_or_create(tmp_path)


def test_a_folder_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a file")
    with pytest.raises(errors.DataDirectoryError, match="cannot be used"):
        Authority.load_or_create(tmp_path / "keys")


def test_an_agent_may_speak_on_its_own_subjects_and_lanes_only(authority: Authority) -> None:
    agent = authority.agent("a1", ["cpu", "gpu"], None)
    assert allowed(agent, "pub") == [
        "fleet.a1.*",
        "hb.a1",
        "telemetry.a1.*",
        "chunk.a1.*",
        "fleet.a1.hello.cpu",
        "fleet.a1.hello.gpu",
        "$JS.API.CONSUMER.MSG.NEXT.WORK.cpu",
        "$JS.API.CONSUMER.MSG.NEXT.WORK.gpu",
        "$JS.ACK.WORK.cpu.>",
        "$JS.ACK.WORK.gpu.>",
    ]
    assert allowed(agent, "sub") == ["_INBOX_a1.>"]


def test_all_that_an_agent_may_say_is_imported_by_its_account(authority: Authority) -> None:
    imports = authority.declared.accounts["AGENTS"].imports["FLEET"]
    for subject in allowed(authority.agent("a1", ["cpu"], None), "pub"):
        assert any(topology.covers(pattern, subject) for pattern in imports), subject


@pytest.mark.parametrize("worker", ["*", ">", "a.b", "", "a b", "غصن", "a" * 65, "a\n"])
def test_a_worker_that_is_no_token_is_refused(authority: Authority, worker: str) -> None:
    with pytest.raises(errors.Invalid, match="part of a subject"):
        authority.agent(worker, ["cpu"], None)
    with pytest.raises(errors.Invalid, match="part of a subject"):
        authority.agent("a1", [worker], None)


def test_no_agent_gets_the_name_under_which_the_desk_writes(authority: Authority) -> None:
    with pytest.raises(errors.Invalid, match="choose another"):
        authority.agent("desk", ["cpu"], None)


def test_an_agent_that_made_its_own_key_gets_no_seed(authority: Authority) -> None:
    public = user_key()
    agent = authority.agent("a1", ["cpu"], public)
    assert (agent.seed, agent.public_key, claims(agent.jwt)["sub"]) == (None, public, public)


BAD_KEYS = {
    "empty": "",
    "short": "UA",
    "not ASCII": "U" + "غ" * 55,
    "not base32": "U" + "1" * 55,
    "an account": accounts.Key.new(nkeys.PREFIX_BYTE_ACCOUNT).public,
    "a seed": accounts.Key.new(nkeys.PREFIX_BYTE_USER).seed.decode(),
    "lower case": user_key().lower(),
    "two keys": user_key() * 2,
}


@pytest.mark.parametrize("key", BAD_KEYS.values(), ids=BAD_KEYS.keys())
def test_what_is_no_public_key_of_a_user_is_refused(authority: Authority, key: str) -> None:
    with pytest.raises(errors.Invalid, match="no public key"):
        authority.agent("a1", ["cpu"], key)


def test_a_public_key_with_a_typing_error_is_refused(authority: Authority) -> None:
    key = user_key()
    wrong = key[:30] + ("A" if key[30] != "A" else "B") + key[31:]
    with pytest.raises(errors.Invalid, match="no public key"):
        authority.agent("a1", ["cpu"], wrong)


def test_credentials_may_expire(authority: Authority) -> None:
    brief = authority.mint("AGENTS", "brief", expires_seconds=60)
    assert 58 <= claims(brief.jwt)["exp"] - time.time() <= 60
    assert "exp" not in claims(authority.mint("AGENTS", "lasting").jwt)


def test_a_credentials_file_is_what_the_bus_reads(authority: Authority, tmp_path: Path) -> None:
    desk = authority.desk()
    (tmp_path / "desk.creds").write_bytes(desk.creds_file())
    assert bus.read_credentials(tmp_path / "desk.creds") == (desk.jwt, desk.seed)


def test_every_role_has_its_file(authority: Authority, tmp_path: Path) -> None:
    authority.write_credentials(tmp_path)
    assert sorted(path.stem for path in tmp_path.iterdir()) == [
        "control",
        "desk",
        "inspect-control",
        "inspect-fleet",
        "judge",
        "judge-fleet",
        "notifier",
        "system",
    ]


@pytest.mark.parametrize("account", ["CONTROL", "FLEET"])
def test_an_inspector_may_ask_what_its_account_imports_and_no_more(
    authority: Authority, account: str
) -> None:
    inspector = authority.inspector(account)
    imports = authority.declared.accounts[f"INSPECT_{account}"].imports
    assert claims(inspector.jwt)["iss"] == authority.public_key(f"INSPECT_{account}")
    assert allowed(inspector, "pub") == imports[account]
    assert list(imports) == [account]


def test_nobody_but_control_and_the_desk_is_in_an_account_with_streams(
    authority: Authority,
) -> None:
    storing = {authority.public_key(name) for name in ("CONTROL", "FLEET")}
    others = [
        authority.notifier(),
        authority.system(),
        authority.judge(),
        authority.judge_fleet(),
        authority.inspector("CONTROL"),
        authority.inspector("FLEET"),
        authority.agent("a1", ["cpu"], None),
    ]
    assert not storing & {claims(one.jwt)["iss"] for one in others}


def test_the_declaration_of_a_file_is_used(tmp_path: Path) -> None:
    declared = topology.load()
    sys = declared.accounts["SYS"]
    smaller = msgspec.structs.replace(declared, accounts={"SYS": sys}, streams={})
    assert Authority.load_or_create(tmp_path, smaller).declared is smaller
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "complete",
        "operator.seed",
        "sys.seed",
    ]
