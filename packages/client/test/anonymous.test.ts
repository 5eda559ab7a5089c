/** Beginning without an account, claiming later, going on with another device (rules A31 to A35). */

import "fake-indexeddb/auto";
import { createHmac } from "node:crypto";
import { afterAll, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { WebSocket } from "ws";
import { connect, memoryStore, redeem, type Session } from "../src";
import type { Environment } from "../src/env";
import { LiveServer, Wire } from "./support/live";
import { type Page, Profile, until } from "./support/page";
import { FakeServer } from "./support/server";

interface Doc {
  title: string;
  n: number;
}

const SECRET = "a secret of tests that is long enough";
const server = new LiveServer();
let profile: Profile;
let place: { session: string; token: string; secret: string };

beforeAll(async () => {
  vi.stubEnv("REATTACH_AUTH", "jwt");
  vi.stubEnv("REATTACH_JWT_SECRET", SECRET);
  vi.stubEnv("REATTACH_ANONYMOUS", "true");
  await server.start();
}, 30_000);

afterAll(async () => {
  vi.unstubAllEnvs();
  await server.stop();
});

beforeEach(async () => {
  profile = new Profile(new FakeServer());
  const answer = await fetch(`${server.url}/api/v0/session`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ state: { title: "", n: 0 } }),
  });
  const { session_id, token, claim_secret } = (await answer.json()) as Record<string, string>;
  place = { session: session_id ?? "", token: token ?? "", secret: claim_secret ?? "" };
});

function tokenOf(sub: string): string {
  const parts = [{ alg: "HS256", typ: "JWT" }, { sub }].map((part) =>
    Buffer.from(JSON.stringify(part)).toString("base64url"),
  );
  const text = parts.join(".");
  return `${text}.${createHmac("sha256", SECRET).update(text).digest("base64url")}`;
}

const env: Partial<Environment> = {
  fetch: (...request) => fetch(...request),
  WebSocket: WebSocket as unknown as Environment["WebSocket"],
};

/** A tab of the profile: of a user, or of nobody who has signed in. */
function open(user?: string, token: string = place.token): Page<Doc> {
  const { session } = place;
  return profile.open<Doc>({ url: server.url, session, token, ...(user && { user }), env });
}

const online = (session: Session<Doc>) =>
  until(() => session.status.connection === "online", "a line", 10_000);
const saved = (session: Session<Doc>) => until(() => session.status.saved, "all saved", 10_000);

describe("a claim", () => {
  test("keeps the client and what waits in it, and leaves nothing to who signs in next", async () => {
    const { session } = open();
    await session.ready;
    await online(session);
    await session.set("/title", "before").acknowledged;
    const { client_id } = session.export();
    const { deviceId } = session;
    await server.kill();
    await session.inc("/n").stored;
    await expect(session.claim(place.secret, tokenOf("ann"))).rejects.toMatchObject({
      code: "unreachable",
    });
    await server.start();
    await session.claim(place.secret, tokenOf("ann"));
    await session.claim(place.secret, tokenOf("ann"));
    await online(session);
    await saved(session);
    expect(session.state).toEqual({ title: "before", n: 1 });
    expect(session.export().client_id).toBe(client_id);
    await session.close();

    const bob = open("bob", tokenOf("bob")).session;
    await expect(bob.ready).rejects.toMatchObject({ code: "session_not_found" });
    const nobody = open();
    await until(() => nobody.session.status.error?.code === "not_authenticated");
    expect(() => nobody.session.state).toThrow(/ready/);
    nobody.kill();

    await server.kill();
    const ann = open("ann", tokenOf("ann")).session;
    await ann.ready;
    expect(ann.state).toEqual({ title: "before", n: 1 });
    expect([ann.export().client_id, ann.deviceId]).toEqual([client_id, deviceId]);
    await server.start();
    await ann.inc("/n").acknowledged;
    expect(ann.state.n).toBe(2);
    await ann.close();
  }, 60_000);

  test("in one tab is one in all: whichever has the line goes on", async () => {
    const [first, second] = [open(), open()];
    await Promise.all([first.ready, second.ready]);
    await online(first.session);
    await online(second.session);
    await second.session.claim(place.secret, tokenOf("ann"));
    for (const { session } of [first, second]) {
      await session.inc("/n").acknowledged;
      await online(session);
      expect(session.status.error).toBeNull();
    }
    first.kill();
    await second.session.inc("/n").acknowledged;
    expect(second.session.state.n).toBe(3);
    await second.session.close();
  }, 30_000);

  test("adds to what the user has on this device, and loses none of it", async () => {
    // Ann has typed into what will be her session, on this device, before it is hers.
    await server.kill();
    const early = profile.open<Doc>({
      url: server.url,
      session: place.session,
      user: "ann",
      token: tokenOf("ann"),
      create: { state: { title: "", n: 0 } },
      env,
    }).session;
    await early.ready;
    await early.set("/title", "early").stored;
    await early.close();
    await server.start();
    const { session } = open();
    await session.ready;
    await online(session);
    await session.claim(place.secret, tokenOf("ann"));
    await session.inc("/n").acknowledged;
    await session.close();
    const again = open("ann", tokenOf("ann")).session;
    await until(() => again.status.saved && again.status.connection === "online", "both", 10_000);
    await again.close();
    const last = open("ann", tokenOf("ann")).session;
    await online(last);
    expect(last.state).toEqual({ title: "early", n: 1 });
    await last.close();
  }, 60_000);

  test("right after connect comes before the line, which is the user's then", async () => {
    const before = open();
    await before.ready;
    await online(before.session);
    await before.session.inc("/n").acknowledged;
    await before.session.close();
    const { session } = open(undefined, tokenOf("ann"));
    await session.claim(place.secret);
    await online(session);
    await session.inc("/n").acknowledged;
    expect(session.state.n).toBe(2);
    await session.close();
  }, 30_000);

  test("with a wrong secret changes nothing", async () => {
    const { session } = open();
    await session.ready;
    await online(session);
    await expect(session.claim("reattach_claim_x", tokenOf("eve"))).rejects.toMatchObject({
      code: "session_not_found",
    });
    await session.inc("/n").acknowledged;
    await session.close();
    const again = open().session;
    await again.ready;
    expect(again.state.n).toBe(1);
    await again.close();
  }, 30_000);
});

describe("a link for another device", () => {
  test("shows the same session there, live, both ways; and to no third one", async () => {
    const { session } = open();
    await session.ready;
    await online(session);
    const { link, expiresAt } = await session.handOff("https://app.example.org/page#old");
    const [page, secret = ""] = link.split("#handoff=");
    expect(page).toBe("https://app.example.org/page");
    expect(expiresAt - Date.now()).toBeGreaterThan(9 * 60_000);

    const store = memoryStore();
    const options = { url: server.url, store };
    await redeem(secret, options);
    // Its answer was lost: once more.
    const found = await redeem(secret, { ...options, device: { name: "Phone" } });
    expect(found.role).toBe("owner");
    const { session: id, token } = found;
    const there = connect<Doc>({ ...options, session: id, token, env: new Wire().env() });
    await there.ready;
    await there.set("/title", "from there").acknowledged;
    await until(() => session.state.title === "from there");
    await session.set("/title", "from here").acknowledged;
    await until(() => there.state.title === "from here");
    await until(() => session.devices.filter((one) => one.online).length === 2, "both", 10_000);
    expect(session.devices.map((one) => one.id)).toContain(there.deviceId);

    const third = redeem(secret, { url: server.url, store: memoryStore() });
    await expect(third).rejects.toMatchObject({ code: "handoff_over" });
    await there.close();
    await session.close();
  }, 30_000);
});
