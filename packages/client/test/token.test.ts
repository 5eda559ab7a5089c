/** Tokens that expire while the user types, at a real server (rule A9). */

import { createHmac } from "node:crypto";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { connect, memoryStore } from "../src";
import { LiveServer, Wire } from "./support/live";
import { until } from "./support/page";

const SECRET = "a secret of tests that is long enough";

const server = new LiveServer();

beforeAll(async () => {
  vi.stubEnv("REATTACH_AUTH", "jwt");
  vi.stubEnv("REATTACH_JWT_SECRET", SECRET);
  await server.start();
}, 30_000);

afterAll(async () => {
  vi.unstubAllEnvs();
  await server.stop();
});

function signed(claims: object): string {
  const parts = [{ alg: "HS256", typ: "JWT" }, claims].map((part) =>
    Buffer.from(JSON.stringify(part)).toString("base64url"),
  );
  const text = parts.join(".");
  return `${text}.${createHmac("sha256", SECRET).update(text).digest("base64url")}`;
}

test("a client goes on with fresh tokens, and each change takes effect once", async () => {
  let asked = 0;
  const session = connect<{ n: number }>({
    url: server.url,
    session: "typed",
    create: { state: { n: 0 } },
    store: memoryStore(),
    env: new Wire().env(),
    token: () => {
      asked += 1;
      return signed({ sub: "ada", exp: Math.floor(Date.now() / 1000) + 2 });
    },
  });
  await session.ready;
  let written = 0;
  await until(
    () => {
      session.inc("/n");
      written += 1;
      return asked >= 3;
    },
    "three tokens",
    20_000,
  );
  const done = () => session.confirmed.n === written && session.status.connection === "online";
  await until(done, "all of it", 20_000);
  expect(session.state).toEqual({ n: written });
  expect(session.rejected).toEqual([]);
  await session.close();
}, 45_000);
