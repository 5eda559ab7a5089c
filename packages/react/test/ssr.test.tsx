// @vitest-environment node
import { version } from "react";
import { renderToString } from "react-dom/server";
import { expect, test } from "vitest";
import { SaveStatus, SessionProvider } from "../src/index.js";
import { Server } from "./server.js";

test("a server without a window imports it all, and renders the fallback", async () => {
  expect(globalThis).not.toHaveProperty("window");
  const session = new Server().connect();
  const page = (
    <SessionProvider session={session} fallback={<p>Looking…</p>}>
      <SaveStatus />
    </SessionProvider>
  );
  expect(renderToString(page)).toBe("<p>Looking…</p>");
  await session.ready;
  // What a server knows is no page's: its browser begins with the fallback, too.
  expect(renderToString(page)).toBe("<p>Looking…</p>");
  await session.close();
});

test("these tests run on the React that they are meant for", () => {
  expect(version).toMatch(process.env.REACT === "18" ? /^18\./ : /^19\./);
});
