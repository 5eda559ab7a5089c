/** Several users of one browser profile: what is one's is not another's (rule F4). */

import "fake-indexeddb/auto";
import { beforeEach, describe, expect, test } from "vitest";
import { type Page, Profile, until } from "./support/page";
import { FakeServer } from "./support/server";

interface Doc {
  title: string;
}

let server: FakeServer;
let profile: Profile;
/** Who is signed in, as the server sees it. */
let signedIn: string;

beforeEach(() => {
  server = new FakeServer();
  server.create("s", { title: "" });
  server.gate = ({ user_id }) => (user_id === signedIn ? null : 4401);
  profile = new Profile(server);
});

const title = () => (server.session("s").state as unknown as Doc).title;
const online = (page: Page<Doc>) => until(() => page.session.status.connection === "online");

async function arrive(user: string, env = {}): Promise<Page<Doc>> {
  signedIn = user;
  const page = profile.open<Doc>({ user, env });
  await page.ready;
  await online(page);
  return page;
}

/** Ann types where nobody hears it, and is gone. */
async function leaveWork(env = {}): Promise<void> {
  const ann = await arrive("ann", env);
  ann.session.local("caret").set(7);
  server.kill();
  await ann.session.set("/title", "ann's").stored;
  await ann.session.close();
  server.up = true;
}

describe.each([
  ["with locks", {}],
  ["without", { locks: undefined }],
])("signing in as somebody else, %s", (_, env) => {
  test("neither shows nor sends the first one's work, which waits for them", async () => {
    await leaveWork(env);
    const bob = await arrive("bob", env);
    expect(bob.session.state).toEqual({ title: "" });
    expect(bob.session.status).toMatchObject({ pending: 0, saved: true });
    expect(bob.session.export()).toMatchObject({ changes: [], rejected: [] });
    expect(bob.session.local("caret").get()).toBeUndefined();
    await bob.session.close();
    expect(server.changes).toEqual([]);

    server.kill();
    signedIn = "ann";
    const ann = profile.open<Doc>({ user: "ann", env });
    await ann.ready;
    expect(ann.session.state).toEqual({ title: "ann's" });
    expect(ann.session.local("caret").get()).toBe(7);
    server.up = true;
    await until(() => title() === "ann's");
    expect(server.changes).toHaveLength(1);
  });

  test("nor is there anything of either for who has not signed in", async () => {
    await leaveWork(env);
    server.gate = () => null;
    const nobody = profile.open<Doc>({ env });
    await nobody.ready;
    await online(nobody);
    expect(nobody.session.state).toEqual({ title: "" });
    expect(server.hellos.at(-1)).not.toHaveProperty("user_id");
    expect(server.changes).toEqual([]);
  });
});

test("each user has a client and a device of their own, and has them again", async () => {
  for (const user of ["ann", "bob", "ann"]) await (await arrive(user)).session.close();
  const [ann, bob, again] = server.hellos.map(({ client_id, device }) => [client_id, device.id]);
  expect(again).toEqual(ann);
  expect(bob?.[0]).not.toBe(ann?.[0]);
  expect(bob?.[1]).not.toBe(ann?.[1]);
});

test("a tab that is open when somebody else signs in gets no line until its user is back", async () => {
  const ann = await arrive("ann");
  const bob = await arrive("bob");
  // Neither waits for the other's lock, and neither hears what the other's tabs say.
  expect([ann, bob].map(({ session }) => session.status.connection)).toEqual(["online", "online"]);
  // Her line is lost, and what the profile has to show for a next one is his.
  ann.network(false);
  for (const socket of [...server.sockets]) if (socket.client !== "") socket.end(1006);
  await ann.session.set("/title", "ann's").stored;
  ann.network(true);
  await until(() => ann.session.status.error?.code === "not_authenticated");
  await online(bob);
  expect(ann.session.status).toMatchObject({ connection: "reconnecting", pending: 1 });
  expect(server.changes).toEqual([]);
  expect(bob.session.state).toEqual({ title: "" });

  signedIn = "ann";
  await until(() => ann.session.status.saved);
  expect(title()).toBe("ann's");
  expect(ann.session.status).toMatchObject({ connection: "online", error: null });
});
