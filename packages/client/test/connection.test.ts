import { expect, test } from "vitest";
import { Connection } from "../src/connection";
import type { Input } from "../src/core/effects";
import { browserEnvironment } from "../src/env";

test("a history that hangs is given up with the line, and its late answer is nothing", async () => {
  const fed: Input[] = [];
  let given: AbortSignal | null | undefined;
  let answer: (answer: Response) => void = () => {};
  const env = {
    ...browserEnvironment(),
    fetch: ((_: string, init: RequestInit) => {
      given = init.signal;
      return new Promise<Response>((resolve) => {
        answer = resolve;
      });
    }) as unknown as typeof fetch,
  };
  const connection = new Connection(env, "http://server", "s", (input) => fed.push(input));
  const asked = connection.history("me", 1);
  await expect.poll(() => given).toBeDefined();
  connection.hangUp();
  expect(given?.aborted).toBe(true);
  answer(Response.json({ items: [] }));
  await asked;
  expect(fed).toEqual([]);
});
