import "fake-indexeddb/auto";
import fc from "fast-check";
import { expect, test } from "vitest";
import { type Page, Profile, until } from "./support/page";
import { FakeServer } from "./support/server";

interface Doc {
  n: number;
  list: { id: string }[];
}

const step = fc.oneof(
  { weight: 8, arbitrary: fc.record({ act: fc.constant("type"), page: fc.nat(3) }) },
  { weight: 2, arbitrary: fc.record({ act: fc.constant("wait"), page: fc.nat(3) }) },
  { weight: 2, arbitrary: fc.record({ act: fc.constant("crash"), page: fc.nat(3) }) },
  { weight: 1, arbitrary: fc.record({ act: fc.constant("close"), page: fc.nat(3) }) },
  {
    weight: 1,
    arbitrary: fc.record({ act: fc.constantFrom("kill", "start", "mute"), page: fc.nat(0) }),
  },
);

/**
 * Two profiles with two tabs each; tabs crash and are closed, the server is killed, and what it
 * says is lost. Each change inserts an element and counts it: so one that took effect twice, or in
 * part, shows as a number that is not the list's length.
 */
test("B1, B2, B3, X2: whatever dies when, what was stored takes effect once", async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 10, maxLength: 60 }), async (steps) => {
      const server = new FakeServer();
      server.create("s", { n: 0, list: [] });
      const profiles = [new Profile(server), new Profile(server)];
      const open = (at: number) => profiles[at >> 1]?.open<Doc>() as Page<Doc>;
      const pages = [0, 1, 2, 3].map(open);
      const stored = new Set<string>();
      let made = 0;
      await Promise.all(pages.map(({ ready }) => ready));

      for (const { act, page: at } of steps) {
        const page = pages[at] as Page<Doc>;
        if (act === "type") {
          await page.ready;
          const id = `${++made}`;
          const change = page.session.change([
            { op: "insert", path: "/list", value: { id } },
            { op: "inc", path: "/n", by: 1 },
          ]);
          void change.stored.then((durable) => durable && stored.add(id));
        }
        if (act === "wait") await new Promise((resolve) => setTimeout(resolve, 5));
        if (act === "crash") page.kill();
        if (act === "close") await page.session.close();
        if (act === "crash" || act === "close") {
          pages[at] = open(at);
          await pages[at]?.ready;
        }
        if (act === "mute") server.mute = true;
        if (act === "kill") server.kill();
        if (act === "start") {
          // What was lost while it was mute comes with the next welcome.
          if (server.mute) server.kill();
          server.mute = false;
          server.up = true;
        }
      }
      server.kill();
      server.mute = false;
      server.up = true;
      const version = () => server.session("s").commits.length;
      const settled = ({ session }: Page<Doc>) =>
        session.status.saved && session.version === version();
      await until(() => pages.every(settled), "all pages saved");

      const state = server.session("s").state as unknown as Doc;
      const ids = state.list.map(({ id }) => id);
      expect(new Set(ids).size).toBe(ids.length);
      expect(state.n).toBe(ids.length);
      for (const id of stored) expect(ids).toContain(id);
      for (const { session } of pages) {
        expect(session.state).toEqual(state);
        expect(session.rejected).toEqual([]);
      }
      expect(server.online).toBeLessThanOrEqual(2);
      await Promise.all(pages.map(({ session }) => session.close()));
    }),
    { numRuns: Number(process.env.CHAOS_RUNS ?? 25) },
  );
}, 600_000);
