import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { type ConnectOptions, connect, memoryStore, type Session } from "../src";
import type { ServerFrame } from "../src/core/wire";
import { dialer } from "../src/dial";
import { browserEnvironment, type Environment } from "../src/env";
import { openStream } from "../src/sse";
import { by, welcome } from "./support/frames";
import { LiveServer, Wire } from "./support/live";
import { until } from "./support/page";

interface Doc {
  text: string;
  n: number;
}

const server = new LiveServer();
const open: Session<Doc>[] = [];

beforeAll(async () => void (await server.start()), 30_000);
afterAll(() => server.stop());
afterEach(async () => void (await Promise.all(open.splice(0).map((session) => session.close()))));

function join(id: string, refuses = true, options: Partial<ConnectOptions> = {}) {
  const wire = new Wire();
  wire.refuses = refuses;
  const session = connect<Doc>({
    url: server.url,
    session: id,
    create: { state: { text: "", n: 0 } },
    store: memoryStore(),
    env: { ...wire.env(), ...(refuses && { setTimer: hurried }) },
    ...options,
  });
  open.push(session);
  return Object.assign(session, { wire });
}

const online = (...sessions: Session<Doc>[]) =>
  until(() => sessions.every(({ status }) => status.connection === "online"));

/** A clock whose longest waits are short. */
const hurried = (callback: () => void, ms: number) =>
  setTimeout(callback, ms > 15_000 ? ms / 20 : ms);

test("where no WebSocket comes through, two devices write by HTTP and are told by a stream", async () => {
  const one = join("refused");
  const heard: unknown[] = [];
  one.addEventListener("initialStateReceived", ({ detail }) => heard.push(detail));
  await online(one);
  expect(one.wire.tried).toBe(2);
  expect(heard).toEqual([{ version: 0, created: true }]);
  const two = join("refused");
  await online(two);
  const acknowledged = [one.inc("/n"), two.inc("/n"), one.splice("/text", 0, 0, "Grüße 😀")];
  await Promise.all(acknowledged.map((change) => change.acknowledged));
  await until(() => one.version === 3 && two.version === 3);
  expect(two.state).toEqual({ text: "Grüße 😀", n: 2 });
  await until(() => one.devices.filter((device) => device.online).length === 2);
});

test("a refusal comes in the list, in its place, and what was made behind it is done", async () => {
  const session = join("rejected");
  await online(session);
  const before = session.inc("/n");
  const refused = session.change([{ op: "restore", version: 99 }]);
  const after = session.inc("/n");
  await before.acknowledged;
  await expect(refused.acknowledged).rejects.toMatchObject({ name: "ReattachError" });
  await after.acknowledged;
  expect(session.rejected.length).toBe(1);
  expect(session.confirmed.n).toBe(2);
});

test("presence goes both ways, between a stream and a WebSocket", async () => {
  const [one, two] = [join("present"), join("present", false)];
  await online(one, two);
  const heard: [string, unknown][] = [];
  for (const [name, session] of Object.entries({ one, two })) {
    session.addEventListener("presence", ({ detail }) => heard.push([name, detail.data]));
  }
  one.presence({ at: 1 });
  await until(() => heard.length === 1);
  two.presence({ at: 2 });
  await until(() => heard.length === 2);
  expect(heard).toEqual([
    ["two", { at: 1 }],
    ["one", { at: 2 }],
  ]);
});

test("the server is killed in mid-typing, then the stream is cut: all is there, once, in order", async () => {
  const session = join("killed");
  await online(session);
  let text = "";
  for (let i = 0; i < 120; i++) {
    session.splice("/text", text.length, 0, `${i} `);
    session.inc("/n");
    text += `${i} `;
    if (i === 40) {
      await server.kill();
      void server.start();
    }
    if (i % 30 === 10) session.wire.cut();
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
  await until(() => session.status.saved, "saved after the restart", 20_000);
  expect(await stored("killed")).toEqual({ text, n: 120 });
}, 40_000);

test("acknowledgements are lost with the stream: each change is made once", async () => {
  const session = join("lost");
  await online(session);
  for (let round = 1; round <= 4; round++) {
    session.wire.deaf = true;
    for (let i = 0; i < 20; i++) session.inc("/n");
    while ((await stored("lost")).n < round * 20);
    session.wire.cut();
    session.wire.deaf = false;
    await until(() => session.status.saved);
  }
  expect(session.confirmed.n).toBe(80);
}, 30_000);

async function stored(id: string): Promise<Doc> {
  const answer = await fetch(`${server.url}/api/v0/session/${id}`);
  return ((await answer.json()) as { state: Doc }).state;
}

test("back to a WebSocket when one comes through: never offline, nothing lost or twice", async () => {
  const session = join("back");
  const { wire } = session;
  const connections: string[] = [];
  await online(session);
  session.addEventListener("connectionStatusChanged", ({ detail }) =>
    connections.push(detail.connection),
  );
  let n = 0;
  const typing = setInterval(() => {
    session.inc("/n");
    n++;
  }, 1);
  try {
    await until(() => wire.tried > 3);
    wire.refuses = false;
    await until(() => wire.sockets.size === 1 && [...wire.sockets][0]?.readyState === 1);
    const before = session.version;
    await until(() => session.version > before + 20);
  } finally {
    clearInterval(typing);
  }
  await until(() => session.status.saved);
  expect((await stored("back")).n).toBe(n);
  expect(session.confirmed.n).toBe(n);
  expect(connections).toEqual([]);
  // From now on it is a WebSocket that is opened first.
  const { tried } = wire;
  wire.cut();
  await until(() => wire.tried > tried);
  await online(session);
  expect(wire.sockets.size).toBe(1);
});

test("a server that is down is no reason for a stream", async () => {
  const session = join("down", false);
  await online(session);
  await server.kill();
  await until(() => session.wire.tried > 3, "attempts", 15_000);
  await server.start();
  await online(session);
  expect(session.wire.sockets.size).toBe(1);
}, 30_000);

test("what ends a session ends it here too: no such session, and one that was erased", async () => {
  const stranger = join("nowhere", true, { create: undefined as never });
  await expect(stranger.ready).rejects.toMatchObject({ code: "session_not_found" });
  const session = join("erased");
  await online(session);
  await fetch(`${server.url}/api/v0/session/erased`, {
    method: "DELETE",
    headers: { Origin: server.url },
  });
  await until(() => session.status.connection === "closed");
  expect(session.status.error?.code).toBe("session_ended");
});

test("a session that is ended says so", async () => {
  const session = join("ended");
  await online(session);
  await session.change([{ op: "end" }]).acknowledged;
  await until(() => session.status.connection === "closed");
});

test("a checkpoint is saved once for its ref, and who may not hears why", async () => {
  await online(join("marked"));
  const frames: ServerFrame[] = [];
  const env = { ...browserEnvironment(), ...new Wire().env() };
  const line = openStream(env, server.url, "marked", {
    opened: () =>
      line.send({ type: "hello", client_id: "marker", device: { id: "marker" }, t: Date.now() }),
    frame: (frame) => frames.push(frame),
    closed: () => {},
  });
  const told = (ref: string) => frames.filter((frame) => "ref" in frame && frame.ref === ref);
  await until(() => frames.length > 0);
  line.send({ type: "save_checkpoint", ref: "r1", name: "First" });
  await until(() => told("r1").length === 1);
  line.send({ type: "save_checkpoint", ref: "r1", name: "First" });
  await until(() => told("r1").length === 2);
  line.send({ type: "save_checkpoint", ref: "r2", name: "First", data: "x".repeat(5_000) });
  await until(() => told("r2").length === 1);
  line.stop();
  expect(told("r1")[0]).toMatchObject({ type: "checkpoint_saved", checkpoint: { name: "First" } });
  expect(told("r2")[0]).toMatchObject({ type: "error" });
  const listed = await fetch(`${server.url}/api/v0/session/marked/checkpoints`);
  expect(((await listed.json()) as { items: unknown[] }).items).toHaveLength(1);
});

const encoder = new TextEncoder();
const problem = (status: number, code: string) => Response.json({ code, detail: "" }, { status });

/** A `fetch` whose other side is the test: what the stream says, and what is answered to POSTs. */
function byHand(post: (path: string) => Response = () => problem(500, "internal")) {
  let body: ReadableStreamDefaultController<Uint8Array> | undefined;
  const answer = async (path: string) => {
    if (!path.endsWith("/events")) return post(path);
    return new Response(
      new ReadableStream<Uint8Array>({
        start(controller) {
          body = controller;
        },
      }),
    );
  };
  return {
    fetch: ((input: string) => answer(input)) as unknown as typeof fetch,
    opened: () => until(() => body !== undefined),
    say: (frame: { type: string }) =>
      body?.enqueue(encoder.encode(`event: ${frame.type}\ndata: ${JSON.stringify(frame)}\n\n`)),
  };
}

/** What came over a line, and how it ended. */
function heard() {
  const frames: ServerFrame[] = [];
  const ends: number[] = [];
  return {
    frames,
    ends,
    events: {
      frame: (frame: ServerFrame) => void frames.push(frame),
      closed: (code: number) => void ends.push(code),
    },
  };
}

const HELLO = { type: "hello", client_id: "me", device: { id: "d" }, t: 0, seq: 0 } as const;

async function scripted(post?: (path: string) => Response) {
  const { fetch, opened, say } = byHand(post);
  const { frames, ends, events } = heard();
  const line = openStream({ ...browserEnvironment(), fetch }, "http://server", "s", {
    ...events,
    opened: () => line.send(HELLO),
  });
  await opened();
  return { line, say, frames, ends };
}

test.each([
  [403, "forbidden"],
  [404, "session_not_found"],
])("a %i to what goes up ends the line, not the session", async (status, code) => {
  const { line, ends } = await scripted(() => problem(status, code));
  line.send({ type: "heartbeat", t: 0 });
  await until(() => ends.length > 0);
  expect(ends).toEqual([1006]);
});

test("a decision that was not told is asked for: what comes behind it is not passed on", async () => {
  const { line, say, frames, ends } = await scripted();
  const own = (seq: number) => ({
    ...{ type: "state_update", version: seq, patch: [], at: 0 },
    by: { client_id: "me", device_id: "d", seq },
  });
  say(own(1));
  await until(() => frames.length === 1);
  say(own(3));
  await until(() => ends.length > 0);
  line.stop();
  expect(ends).toEqual([1006]);
  expect(frames).toHaveLength(1);
});

test("where neither says anything, a WebSocket is given all its time again", () => {
  const timers: { callback: () => void; ms: number }[] = [];
  let tried = 0;
  let closes = 0;
  class Silent {
    constructor() {
      tried++;
    }
    close() {
      closes++;
    }
  }
  const open = dialer(
    {
      ...browserEnvironment(),
      WebSocket: Silent as unknown as Environment["WebSocket"],
      setTimer: (callback, ms) => timers.push({ callback, ms }),
      clearTimer() {},
    },
    "http://server",
    "s",
    async () => undefined,
  );
  const attempt = () => {
    const line = open({ opened() {}, frame() {}, closed() {} });
    timers.pop()?.callback();
    line.stop();
  };
  attempt();
  expect(closes).toBe(1);
  // The second one is given up for a stream, which says nothing either.
  attempt();
  expect(closes).toBe(2);
  const line = open({ opened() {}, frame() {}, closed() {} });
  timers.pop()?.callback();
  expect(closes).toBe(2);
  expect(tried).toBe(3);
  line.stop();
});

describe("a WebSocket that is tried beside a stream", () => {
  /** WebSockets in the order in which they were made, and what was said on each. */
  let sockets: Socket[] = [];
  let timers: (() => void)[] = [];
  let tokens: string[] = [];

  class Socket {
    onopen: ((event: unknown) => void) | null = null;
    onmessage: ((event: { data: string }) => void) | null = null;
    onclose: ((event: { code: number; reason: string }) => void) | null = null;
    onerror: (() => void) | null = null;
    sent: { type: string; seq?: number; token?: string }[] = [];
    closed = false;
    constructor() {
      sockets.push(this);
    }
    send(data: string) {
      this.sent.push(JSON.parse(data) as { type: string });
    }
    say(frame: object) {
      this.onmessage?.({ data: JSON.stringify(frame) });
    }
    close() {
      this.closed = true;
    }
  }

  const own = (seq: number) =>
    ({ type: "state_update", version: seq, patch: [], at: 0, by: by("me", seq) }) as const;

  /** A stream that stands, after two WebSockets that said nothing. */
  async function onStream() {
    sockets = [];
    timers = [];
    tokens = ["second", "third"];
    const { fetch, opened, say } = byHand();
    const { frames, ends, events } = heard();
    const env = {
      ...browserEnvironment(),
      WebSocket: Socket as unknown as Environment["WebSocket"],
      fetch,
      setTimer: (callback: () => void) => timers.push(callback),
      clearTimer() {},
    };
    const open = dialer(env, "http://server", "s", async () => tokens.shift());
    open({ ...events, opened() {} }).stop();
    timers.pop()?.();
    const line = open({ ...events, opened: () => line.send({ ...HELLO, token: "first" }) });
    timers.pop()?.();
    await opened();
    say({ type: "initial_state", ...welcome(), state: {} } as never);
    await until(() => frames.length === 1);
    /** Lets the time pass after which a WebSocket is tried, and opens it. */
    const probe = async (): Promise<Socket> => {
      const { length } = sockets;
      timers.pop()?.();
      await until(() => sockets.length > length);
      const tried = sockets.at(-1) as Socket;
      tried.onopen?.({});
      return tried;
    };
    return { say, frames, ends, probe, line };
  }

  test("says what the stream has told since, and shows the token of now", async () => {
    const { say, frames, probe, line } = await onStream();
    say(own(1));
    await until(() => frames.length === 2);
    expect((await probe()).sent).toMatchObject([{ type: "hello", seq: 1, token: "second" }]);
    line.stop();
  });

  test("is given up where its welcome is of before that: no other client is at work", async () => {
    const { say, frames, ends, probe, line } = await onStream();
    const tried = await probe();
    say(own(1));
    await until(() => frames.length === 2);
    tried.say({ type: "resumed", ...welcome({ seq: 0 }), commits: [] });
    expect(tried.closed).toBe(true);
    expect(frames).toHaveLength(2);
    expect(ends).toEqual([]);
    // The stream goes on, and another is tried.
    const next = await probe();
    expect(next.sent).toMatchObject([{ type: "hello", seq: 1, token: "third" }]);
    next.say({ type: "resumed", ...welcome({ seq: 1 }), commits: [] });
    expect(frames).toHaveLength(3);
    line.stop();
    expect(next.closed).toBe(true);
  });
});

/** What a server that closes says on the stream instead. */
test.each([
  [4401, "not_authenticated"],
  [4403, "forbidden"],
  [4413, "too_large"],
  [4429, "too_fast"],
])("a stream that the server closes with %i ends as a WebSocket does", async (code, reason) => {
  const { say, ends } = await scripted();
  say({ type: "close", code, reason } as never);
  await until(() => ends.length > 0);
  expect(ends).toEqual([code]);
});

test.each([
  [401, 4401],
  [413, 4413],
  [429, 4429],
])("changes that are answered %i end the line with %i", async (status, code) => {
  const { line, say, frames, ends } = await scripted(() => problem(status, "some_code"));
  say({ type: "initial_state", ...welcome(), state: {} } as never);
  await until(() => frames.length === 1);
  line.send({ type: "change", seq: 1, epoch: "E", base: 0, at: 0, ops: [] });
  await until(() => ends.length > 0);
  expect(ends).toEqual([code]);
});
