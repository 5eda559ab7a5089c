"""The world of one seed: a database, two nodes, a bus, a network, some devices, and a witness."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import msgspec

from reattach.testing.simulator.broken import Broken
from reattach.testing.simulator.database import Database, at_once
from reattach.testing.simulator.device import Device
from reattach.testing.simulator.document import START, Paper
from reattach.testing.simulator.json import encoded
from reattach.testing.simulator.loop import VirtualLoop
from reattach.testing.simulator.network import Link
from reattach.testing.simulator.node import BadBus, Node, NodeClock
from reattach.testing.simulator.peers import Effects, Peer, Refused
from reattach.testing.simulator.story import DEVICES, Step, Story
from reattach.testing.simulator.user import PROFILES, Marks, User
from reattach.testing.simulator.witness import Witness

__all__ = ["MakePeer", "World", "play"]

MakePeer = Callable[[str, int, Any], Peer]
"""Makes a client's core with an empty disk, given its name, its seed and what it creates."""

SESSION = "s"
NODES = 2
GOES_BACK = 0
"""The device whose disk fails, and is put back. Its clock is right: a change that it makes anew has
another `at` then, which is all that tells it from the one that was lost."""
T0 = 1_764_000_000_000
REST_S = 240.0
"""How long it may take until all is said and done, once nothing is in the way any more."""
_LOOK_S = 0.5


def play(story: Story, make_peer: MakePeer) -> World:
    """Let a story happen; return the world as it then is. Raises `Broken`."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(_play(loop, story, make_peer))
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.set_exception_handler(lambda *_: None)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _play(loop: VirtualLoop, story: Story, make_peer: MakePeer) -> World:
    world = World(loop, story, make_peer)
    try:
        await world.run()
    finally:
        for node in world.nodes:
            node.kill()
        await asyncio.sleep(0)
    return world


class World:
    """Everything, and what befalls it."""

    def __init__(self, loop: VirtualLoop, story: Story, make_peer: MakePeer) -> None:
        """Switch everything on."""
        self.story = story
        chance = Random(f"world {story.seed}")
        self._loop = loop
        self._chance = chance
        self.clocks = [NodeClock(f"n{number}", T0) for number in range(NODES)]
        self.witness = Witness(lambda: max(clock.latest for clock in self.clocks))
        self.database = Database(Random(chance.random()), self._now, self.witness)
        self.bus = BadBus(Random(chance.random()))
        self._lives = 0
        self.nodes = [self._node(number) for number in range(NODES)]
        self.marks = Marks()
        self.profile = chance.choice(PROFILES)
        create: dict[str, Any] = {"state": START}
        if chance.random() < 0.5:
            create["schema"] = Paper.__name__
            self.witness.merges = True
        self.devices = [
            Device(
                f"d{number}",
                make_peer(f"d{number}", chance.getrandbits(31), create),
                self,
                Random(chance.random()),
                self._now,
            )
            for number in range(DEVICES)
        ]
        self.met: dict[str, int] = {}
        self._links: dict[Link, Node] = {}
        self._refs = 0
        self._offline: set[str] = set()
        self._draining = False
        self._waits_for_epoch: str | None = None
        """After a backup was put back: who has seen most, and has to come first."""
        self._acts: Mapping[str, Callable[[Step, Random], None]] = {
            "change": self._change,
            "restore": self._go_back,
            "session ended": self._end_session,
            "device killed": self._kill_device,
            "device comes back as it once was": self._put_back,
            "disk copied": self._copy_disk,
            "disk fails": self._fail_disk,
            "device clock jumps": self._jump_device,
            "line cut": self._cut,
            "line stalls": self._stall,
            "late close": self._late_close,
            "line superseded": self._supersede,
            "offline": self._go_offline,
            "node killed": self._kill_node,
            "node clock jumps": self._jump_node,
            "node drained": self._kill_node,
            "reads fail": self._fail_reads,
            "database down": self._database_down,
            "backup": self._back_up,
            "backup restored": self._restore,
        }

    # The story

    async def run(self) -> None:
        """Let the story happen, then let everything come to rest and look at it."""
        for device in self.devices:
            device.start()
        done = self._loop.create_future()
        for step in self.story.steps:
            self._loop.call_at(step.at / 1000, self._act, step)
        last = max((step.at for step in self.story.steps), default=0) / 1000
        self._loop.call_at(last + 0.5, done.set_result, None)
        await self._until(done.done)
        self._heal()
        give_up = self._loop.time() + REST_S
        while not self._at_rest():
            if self._loop.time() > give_up:
                raise Broken("it comes to rest", self._unrest())
            await self._until(self._look_in(_LOOK_S))
        # Once more round, so that what would be found by the second is found.
        await self._until(self._look_in(2.5))
        if not self._at_rest():
            raise Broken("it stays at rest", self._unrest())
        self._check_rest()

    def _look_in(self, seconds: float) -> Callable[[], bool]:
        until = self._loop.time() + seconds
        self._loop.call_at(until, lambda: None)
        return lambda: self._loop.time() >= until - 1e-6

    async def _until(self, holds: Callable[[], bool]) -> None:
        """Wait, and end where somebody broke a promise, or failed."""
        while not holds():
            await asyncio.sleep(0.05)
            if self.witness.failure is not None:
                raise self.witness.failure
            for fault in self._loop.faults:
                error = fault.get("exception")
                raise Broken("nothing fails", f"{fault.get('message')}: {error!r}") from error

    def _act(self, step: Step) -> None:
        chance = Random(step.seed)
        kind, _, detail = step.kind.partition(" ")
        if kind == "transaction":
            self.database.faults.extend([detail] * chance.choice([1, 1, 2, 5]))
        elif kind == "bus":
            self._spoil_bus(detail, chance)
        else:
            self._acts[step.kind](step, chance)

    def _now(self) -> int:
        """Return the right time, ms since 1970."""
        return T0 + int(self._loop.time() * 1000)

    def _meet(self, fault: str) -> None:
        self.met[fault] = self.met.get(fault, 0) + 1

    # Users

    def _change(self, step: Step, chance: Random) -> None:
        device = self.devices[step.who]
        if not device.running or self._loop.time() < device.looked_at_until:
            return
        look = device.peer.look()
        if look.shown is None:
            return
        user = User(chance, self.marks, self.profile, device.name)
        ops = user.act(look.shown, look.conflicts)
        when = None
        if step.who != GOES_BACK and chance.random() < 0.04:
            when = device.clock() + chance.choice([-3_600_000, -5_000, 5_000, 86_400_000])
            self._meet("lie about when")
        self._make(device, ops, user.deleted, when)

    def _make(
        self, device: Device, ops: list[dict[str, Any]], deleted: set[str], when: int | None
    ) -> None:
        self._refs += 1
        ref = f"r{self._refs}"
        self.witness.made[ref] = ops
        over = [name for name, _, _ in device.peer.view.pending]
        self.witness.over[ref] = over
        if device.jumped.intersection(over):
            self.witness.blurred.add(ref)
        self.witness.meant_to_delete[ref] = deleted
        try:
            device.change(ops, ref, when)
        except Refused:
            self.witness.count("changes that made no sense")

    def _end_session(self, step: Step, chance: Random) -> None:
        del chance
        device = self.devices[step.who]
        if device.running and device.peer.look().shown is not None:
            self._meet("session ended")
            self._make(device, [{"op": "end"}], set(), None)

    def _go_back(self, step: Step, chance: Random) -> None:
        """A user wants the state that was, or undoes that; sometimes one that never was."""
        device = self.devices[step.who]
        if not device.running or device.peer.look().shown is None:
            return
        version = device.peer.view.version or 0
        to: dict[str, Any] = {"version": chance.randrange(version + 2)}
        if chance.random() < 0.3:
            to = {"checkpoint_id": "latest"}
        self._meet("restore")
        self._make(device, [{"op": "restore", **to}], set(), None)

    # Devices

    def _kill_device(self, step: Step, chance: Random) -> None:
        device = self.devices[step.who]
        if device.running:
            self._meet("device killed")
            client_id = device.peer.view.client_id
            device.kill()
            # Where its disk failed, numbers that it gave out may be known to nobody here.
            back = self._come_back if device.disk_failed else self._start_device
            self._loop.call_later(chance.uniform(0.05, 4.0), back, device, client_id)

    def _start_device(self, device: Device, client_id: str = "") -> None:
        del client_id
        if not device.running:
            device.start()

    def _copy_disk(self, step: Step, chance: Random) -> None:
        del step, chance
        self.devices[GOES_BACK].save()

    def _put_back(self, step: Step, chance: Random) -> None:
        del step
        device = self.devices[GOES_BACK]
        if device.has_copy and device.running:
            self._meet("device comes back as it once was")
            client_id = device.peer.view.client_id
            device.kill()
            device.put_back()
            self._loop.call_later(chance.uniform(0.05, 2.0), self._come_back, device, client_id)

    def _come_back(self, device: Device, client_id: str) -> None:
        """Start a device whose disk went back, once nothing that it sent before is on its way.

        Numbers that it gave out before mean other changes now: no client could tell them apart.
        """
        rooms = [host.room for node in self.nodes for host in node.registry.hosts.values()]
        if any(client_id in room.inbox.lowest() or not room.at_rest for room in rooms):
            self._loop.call_later(0.05, self._come_back, device, client_id)
        else:
            self._start_device(device)

    def _fail_disk(self, step: Step, chance: Random) -> None:
        del step
        self.devices[GOES_BACK].disk_faults += chance.choice([1, 2])
        self._meet("disk fails")

    def _jump_device(self, step: Step, chance: Random) -> None:
        if step.who != GOES_BACK:
            device = self.devices[step.who]
            if chance.random() < 0.4 and device.link is not None:
                # It slept: the line is dead, nobody has told it, and its user only looks at first.
                self._meet("line dead after sleep")
                device.link.cut(None, chance.choice([0.01, 2.0]))
                device.looked_at_until = self._loop.time() + chance.uniform(2.0, 12.0)
            device.offset += chance.choice([-86_400_000, -4_000, 7_000, 3_600_000])
            self._meet("device clock jumps")

    # The network

    def dial(self, device: Device) -> Link | None:
        """Connect a device to some node."""
        if device.name in self._offline:
            return None
        if self._waits_for_epoch not in {None, device.name}:
            return None
        node = self._chance.choice(self.nodes)
        if node.handle.dead:
            return None
        chance = Random(self._chance.random())
        link = Link(device, node.registry, node.context, SESSION, chance, self.witness)
        self._links[link] = node
        return link

    def _cut(self, step: Step, chance: Random) -> None:
        link = self.devices[step.who].link
        if link is not None:
            self._meet("line cut")
            link.cut(chance.choice([0.01, 0.5, None]), chance.choice([0.01, 2.0, None]))

    def _late_close(self, step: Step, chance: Random) -> None:
        """The device is back on another connection before its node hears of the old one's end."""
        link = self.devices[step.who].link
        if link is not None:
            self._meet("late close")
            link.cut(0.01, chance.uniform(1.0, 9.0))

    def _supersede(self, step: Step, chance: Random) -> None:
        """Its user's machine changes networks: the old connection stands, and says nothing."""
        device = self.devices[step.who]
        link = device.link
        if link is not None:
            self._meet("line superseded")
            link.stall(chance.uniform(3.0, 12.0), up=True, down=True)
            link.device_gone = True
            device.ended(link, 1006, "another network")

    def _stall(self, step: Step, chance: Random) -> None:
        link = self.devices[step.who].link
        if link is not None:
            self._meet("line stalls")
            up, down = chance.choice([(True, False), (False, True), (True, True)])
            link.stall(chance.choice([0.5, 3.0, 18.0]), up=up, down=down)

    def _go_offline(self, step: Step, chance: Random) -> None:
        device = self.devices[step.who]
        if device.name in self._offline:
            return
        self._meet("offline")
        self._offline.add(device.name)
        if device.link is not None:
            device.link.cut(0.01, chance.choice([0.5, None]))
        device.feed({"type": "network", "online": False})
        self._loop.call_later(chance.uniform(0.5, 8.0), self._come_online, device)

    def _come_online(self, device: Device) -> None:
        if device.name in self._offline:
            self._offline.discard(device.name)
            device.feed({"type": "network", "online": True})

    # Nodes and their bus

    def _node(self, number: int) -> Node:
        self._lives += 1
        return Node(f"n{number}.{self._lives}", self.database, self.bus, self.clocks[number])

    def _kill_node(self, step: Step, chance: Random) -> None:
        number = step.who % NODES
        if self.nodes[number].handle.dead:
            return
        self._meet(step.kind)
        self._end_node(number, chance, chance.uniform(0.1, 3.0))

    def _end_node(self, number: int, chance: Random, seconds: float) -> None:
        node = self.nodes[number]
        node.kill()
        for link in [link for link, other in self._links.items() if other is node]:
            del self._links[link]
            link.node_gone = True
            link.cut(chance.choice([0.005, 0.2, None]), None)
        self._loop.call_later(seconds, self._start_node, number)

    def _start_node(self, number: int) -> None:
        if self.nodes[number].handle.dead:
            self.nodes[number] = self._node(number)

    def _jump_node(self, step: Step, chance: Random) -> None:
        self.clocks[step.who % NODES].offset += chance.choice([-60_000, -3_000, 4_000, 90_000])
        self._meet("node clock jumps")

    def _spoil_bus(self, detail: str, chance: Random) -> None:
        bus = self.bus
        if detail == "drop":
            bus.lose = 0.5
        elif detail == "delay":
            bus.delay = 0.6
        elif detail == "repeat":
            bus.repeat = 0.6
        else:
            bus.lose = 1.0
        self._loop.call_later(chance.choice([1.0, 4.0, 60.0]), bus.heal)

    # The database

    def _fail_reads(self, step: Step, chance: Random) -> None:
        del step
        self.database.read_faults += chance.choice([1, 3])

    def _database_down(self, step: Step, chance: Random) -> None:
        del step
        self.database.down = True
        self._meet("database down")
        self._loop.call_later(chance.uniform(0.3, 5.0), self._database_up)

    def _database_up(self) -> None:
        self.database.down = False

    def _back_up(self, step: Step, chance: Random) -> None:
        del step, chance
        if self.witness.truth.epoch:
            # Without the session there is nothing to go on with.
            self.database.back_up()
            self.witness.back_up()

    def _restore(self, step: Step, chance: Random) -> None:
        """The database is lost and its backup put back, with all nodes down meanwhile."""
        if not self.database.has_backup:
            return
        self._meet("backup restored")
        seconds = chance.uniform(0.2, 1.0)
        for number in range(NODES):
            if not self.nodes[number].handle.dead:
                self._end_node(number, chance, seconds)
        backup = self.witness.backup
        ahead = [one for one in self.devices if self._is_ahead(one)]
        if step.who == 0 and ahead:
            # Nobody has thought of the epoch: who has seen most finds out.
            first = max(ahead, key=lambda one: one.peer.view.version or 0)
            self._waits_for_epoch = first.name
            self.database.set_back(None)
            self._loop.call_later(0.1, self._watch_epoch, backup.epoch)
        else:
            self.database.set_back(lambda: f"epoch-{self._loop.time()}")

    def _is_ahead(self, device: Device) -> bool:
        view, backup = device.peer.view, self.witness.backup
        return view.epoch == backup.epoch and (view.version or 0) > backup.version

    def _watch_epoch(self, epoch: str) -> None:
        if self.witness.truth.epoch == epoch:
            self._loop.call_later(0.1, self._watch_epoch, epoch)
        else:
            self._waits_for_epoch = None

    # What devices ask for

    def history(self, device: Device, client_id: str, first: int) -> None:
        """Answer with a client's commits, from the database."""
        delay = self._chance.uniform(0.005, 0.05)
        self._loop.call_later(delay, self._answer_history, device, device.life, client_id, first)

    def _answer_history(self, device: Device, life: int, client_id: str, first: int) -> None:
        if device.life != life:
            return
        self._meet("history asked")
        commits: list[dict[str, Any]] | None = None
        reachable = not self.database.down and device.name not in self._offline
        if reachable and any(not node.handle.dead for node in self.nodes):
            log = at_once(self.database.rows.log(SESSION, first=first, client_id=client_id))
            commits = [{**msgspec.json.decode(one.body), "client_at": one.client_at} for one in log]
        device.feed({"type": "history", "commits": commits})

    def stepped(self, device: Device, effects: Effects) -> None:
        """Look at what a device's core just did."""
        self.witness.guard(self._stepped, device, effects)

    def _stepped(self, device: Device, effects: Effects) -> None:
        witness, view = self.witness, device.peer.view
        if view.state is not msgspec.UNSET and view.epoch is not None and view.version is not None:
            stood = witness.states.get((view.epoch, view.version))
            if stood is None:
                raise Broken("W5 durable first", f"{device.name} shows {view.epoch}.{view.version}")
            if encoded(view.state) != stood:
                raise Broken(
                    "convergence",
                    f"{device.name} has {encoded(view.state)!r} at {view.version}, not {stood!r}",
                )
        for effect in effects:
            kind = effect["type"]
            if kind == "send":
                self._sends(device, effect)
            elif kind == "kept" and effect.get("durable", True):
                device.kept.add(effect["ref"])
            elif kind == "decided":
                self._decided(device, effect["ref"], effect.get("error"))
            elif kind == "event" and effect["event"]["type"] == "historyLost":
                witness.count("histories lost")
            elif kind == "event" and effect["event"]["type"] == "initialStateReceived":
                device.jumped = {name for name, _, _ in view.pending}

    def _sends(self, device: Device, effect: Mapping[str, Any]) -> None:
        frame = effect["frame"]
        link = device.link
        if frame["type"] == "hello" and link is not None:
            link.hello, link.client_id = frame, frame["client_id"]
        if frame["type"] != "change":
            return
        ref, view = effect.get("ref"), device.peer.view
        if ref is None:
            raise Broken("only what was made", f"{device.name} sends {frame} that nobody made")
        known = self.witness.sends(device.name, ref, view.client_id, frame)
        if not known and not device.went_back and not device.disk_failed:
            raise Broken(
                "B2 numbers are given out once",
                f"{device.name} gave {frame['seq']} to {ref} and before to another change",
            )
        stored = next((kept for name, _, kept in view.pending if name == ref), True)
        if not stored and not device.disk_failed:
            raise Broken("B1 stored before sent", f"{device.name} sent {ref} too early")

    def _decided(self, device: Device, ref: str, error: Mapping[str, Any] | None) -> None:
        witness = self.witness
        device.kept.discard(ref)
        device.decided[ref] = None if error is None else error["code"]
        names = witness.names.get(ref, [])
        ever = witness.ever_committed if error is None else witness.ever_refused
        if not any(name in ever for name in names):
            raise Broken(
                "W5 durable first",
                f"{device.name} was told that {ref} is {error or 'committed'}; it is {names}",
            )

    # Rest

    def _heal(self) -> None:
        """From now on nothing goes wrong."""
        self.database.faults.clear()
        self.database.read_faults = 0
        self.database.down = False
        self.bus.heal()
        for number in range(NODES):
            self._start_node(number)
        for device in self.devices:
            device.disk_faults = 0
            self._come_online(device)
            self._start_device(device)

    def _at_rest(self) -> bool:
        truth = self.witness.truth
        for device in self.devices:
            view = device.peer.view
            if view.connection == "closed" and not truth.active:
                continue
            if (
                view.connection != "online"
                or view.pending
                or (view.epoch, view.version) != (truth.epoch, truth.version)
                # H2: who takes a dead line for a living one has yet to find out.
                or device.link is None
                or device.link.severed
            ):
                return False
        return all(
            host.room.at_rest
            and not host.room.has_work
            and host.stands[:2] == (truth.epoch, truth.version)
            for node in self.nodes
            for host in node.registry.hosts.values()
        )

    def _unrest(self) -> str:
        truth = self.witness.truth
        devices = [
            (one.name, one.peer.view.connection, one.peer.view.version, one.peer.view.pending)
            for one in self.devices
        ]
        nodes = [
            (node.name, host.stands, host.room.has_work)
            for node in self.nodes
            for host in node.registry.hosts.values()
        ]
        return f"the database is at {truth.epoch}.{truth.version}; {devices}; {nodes}"

    def _check_rest(self) -> None:
        truth = self.witness.truth
        for device in self.devices:
            shown = device.peer.look().shown
            if truth.active and encoded(shown) != truth.encoded:
                raise Broken("convergence", f"{device.name} shows {encoded(shown)!r} at rest")
            self._check_kept(device)
            self._check_online(device)
        for node in self.nodes:
            for host in node.registry.hosts.values():
                if encoded(host.room.session.document.state) != truth.encoded:
                    raise Broken("convergence", f"{node.name} has another state at rest")
        self._check_rows()

    def _check_kept(self, device: Device) -> None:
        """Whatever was said to be on the device's disk has been decided, or is still there."""
        pending = {ref for ref, _, _ in device.peer.view.pending}
        rejected = set(device.peer.view.rejected)
        for ref in device.kept - pending - rejected:
            committed = any(
                name in self.witness.ever_committed for name in self.witness.names.get(ref, ())
            )
            if not committed:
                raise Broken("B1 what is kept is kept", f"{ref} of {device.name} is nowhere")
        for ref, code in device.decided.items():
            made = self.witness.made[ref]
            forgot = device.went_back or device.disk_failed
            if code is not None and made and ref not in rejected and not forgot:
                raise Broken("L3 refused changes are kept", f"{ref} of {device.name}: {code}")

    def _check_online(self, device: Device) -> None:
        """F2: who is connected is online, whatever older connections do."""
        link = device.link
        if link is None or not self.witness.truth.active:
            return
        node = self._links[link]
        statuses = {one.id: one.online for one in node.registry.hosts[SESSION].room.statuses()}
        told = {one["id"]: one["online"] for one in link.devices}
        for books in (statuses, told):
            if not books.get(device.name, False):
                raise Broken("F2 online goes by connection", f"{device.name} is offline: {books}")

    def _check_rows(self) -> None:
        """The rows say what was told all the time."""
        rows, truth = self.database.rows, self.witness.truth
        loaded = at_once(rows.load(SESSION))
        if loaded is None:
            raise Broken("the rows are there", "the session is gone")
        version, epoch = loaded.session.version, loaded.session.epoch
        if (epoch, version) != (truth.epoch, truth.version):
            raise Broken("the rows are there", f"they are at {epoch}.{version}")
        for (client_id, seq), body in truth.refusals.items():
            decision = at_once(rows.decision(SESSION, client_id, seq))
            if decision is None or decision.refusal != body:
                raise Broken("refusals never change", f"{client_id} {seq}: {decision}")
