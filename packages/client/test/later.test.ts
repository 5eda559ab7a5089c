import { afterEach, expect, test, vi } from "vitest";
import { dialer } from "../src/dial";
import { browserEnvironment, type Environment } from "../src/env";
import { beside, streams } from "../src/later";

vi.mock("../src/sse.js", () => {
  throw new Error("this module is not to be had");
});
vi.mock("../src/beside.js", () => {
  throw new Error("this module is not to be had");
});

afterEach(() => void vi.restoreAllMocks());

test("what is asked beside the line is unreachable where its module cannot be loaded", async () => {
  await expect(beside()).rejects.toMatchObject({ name: "ReattachError", code: "unreachable" });
});

test("without the stream's module a WebSocket is tried again, and again", async () => {
  await expect(streams()).rejects.toThrow();
  let tried = 0;
  class Refused {
    onclose: ((event: object) => void) | null = null;
    constructor() {
      tried++;
      queueMicrotask(() => this.onclose?.({ code: 1006, reason: "refused" }));
    }
    close() {}
  }
  const env = {
    ...browserEnvironment(),
    WebSocket: Refused as unknown as Environment["WebSocket"],
  };
  const open = dialer(env, "http://server", "s", async () => undefined);
  const attempt = () => new Promise<number>((closed) => open({ opened() {}, frame() {}, closed }));
  for (let i = 1; i <= 4; i++) {
    expect(await attempt()).toBe(1006);
    expect(tried).toBe(i);
  }
});

test("who stops before the module is there hears nothing of it", async () => {
  const closed = vi.fn();
  const env = { ...browserEnvironment(), WebSocket: undefined };
  const line = dialer(
    env,
    "http://server",
    "s",
    async () => undefined,
  )({
    opened() {},
    frame() {},
    closed,
  });
  line.stop();
  await streams().catch(() => {});
  await new Promise((resolve) => setTimeout(resolve));
  expect(closed).not.toHaveBeenCalled();
});
