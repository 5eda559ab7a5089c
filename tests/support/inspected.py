"""A session to which much has happened: what the inspector shows."""

from __future__ import annotations

from typing import Any

from tests.support.wire_client import WireClient, clock

TRAP = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
"""Text that would run, were it ever taken for HTML."""
SESSION = "order:4711"
PHONE = {"id": "phone-1", "name": f"Phone {TRAP}", "info": {"kind": "phone"}}
STATE: dict[str, Any] = {
    "step": "address",
    "customer": {"name": "Ada Park", "email": "ada@example.org", "note": ""},
    "items": [
        {"id": "a1", "article": "Tide gauge", "quantity": 1, "price": 249.0},
        {"id": "b2", "article": "Mounting kit", "quantity": 2, "price": 19.5},
    ],
    "delivery": {"express": False, "street": None, "tags": ["new", "checked"]},
}


def put(path: str, value: Any) -> dict[str, Any]:
    """The operation that sets a value."""
    return {"op": "set", "path": path, "value": value}


async def write_history(url: str, session_id: str = SESSION) -> None:
    """Two devices, a conflict, a refusal, a gap of one of them, a restore and checkpoints.

    `url` is the WebSockets'. One device is called what would run as HTML.
    """
    state = STATE | {TRAP: {"says": TRAP}}
    desk = WireClient(url, session_id, "desk", create=state)
    phone = WireClient(url, session_id, "phone")
    await desk.connect(device={"id": "desk-1", "name": "Desk", "info": {"kind": "desktop"}})
    await phone.connect(
        device={"id": "phone-1", "name": f"Phone {TRAP}", "info": {"kind": "phone"}}
    )
    street = "Quay 7, 20457 Hamburg"
    for end in range(4, len(street) + 1, 3):
        await desk.change(put("/delivery/street", street[:end]))
    await desk.settled()
    await phone.at(desk.version or 0)
    seen = phone.version
    await phone.change({"op": "inc", "path": "/items/#b2/quantity", "by": 1})
    await phone.change(put("/items/#a1/quantity", 2))
    await phone.settled()
    # An older act that comes later: the value that was put first stays.
    await desk.at(phone.version or 0)
    await desk.change(put("/customer/name", "Ada Park-Lee"))
    await desk.settled()
    await phone.change(put("/customer/name", f"A. Park {TRAP}"), base=seen, at=clock() - 60_000)
    await phone.change({"op": "test", "path": "/step", "value": "payment"}, put("/step", "done"))
    await phone.settled()
    await desk.send(
        type="save_checkpoint", name=f"Address is known {TRAP}", ref="1", data={"by": "hand"}
    )
    await desk.told(lambda frame: frame["type"] == "checkpoint_saved", what="the checkpoint")
    await phone.disconnect()
    good = desk.version
    for number in range(12):
        await desk.change(
            put("/customer/note", f"Leave it with the harbour master, berth {number}")
        )
    await desk.change({"op": "unset", "path": "/delivery/tags"})
    await desk.settled()
    await desk.change({"op": "restore", "version": good})
    await desk.settled()
    await phone.connect(
        device={"id": "phone-1", "name": f"Phone {TRAP}", "info": {"kind": "phone"}}
    )
    await phone.change(put("/step", "payment"))
    await phone.change(put("/delivery/express", True))
    await phone.settled()
    await desk.disconnect()
    await phone.close()
    await desk.close()
